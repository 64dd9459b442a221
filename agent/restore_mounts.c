/* Mount points and options, from /proc/self/mountinfo (proc(5)): what is mounted where now, and
 * with which of its old options a restored filesystem is mounted again. */
#include "agent/restore.h"

#include <stdio.h>

/* mountinfo writes blank, tab, newline and backslash as \ooo. */
static void unescape(char *text)
{
    char *to = text;
    for (const char *from = text; *from;) {
        if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] && from[3]) {
            *to++ = (char)((from[1] - '0') * 64 + (from[2] - '0') * 8 + (from[3] - '0'));
            from += 4;
        } else {
            *to++ = *from++;
        }
    }
    *to = '\0';
}

/* id parent major:minor root MOUNT_POINT OPTIONS [tags …] - TYPE SOURCE SUPER_OPTIONS */
static bool parse_line(char *line, const char *mount_point, struct mount_entry *ret)
{
    char *fields[6], *state = NULL;
    char *tail = strstr(line, " - ");
    if (!tail)
        return false;
    *tail = '\0';
    tail += 3;
    size_t count = 0;
    for (char *word = strtok_r(line, " ", &state); word && count < ARRAY_LEN(fields);
         word = strtok_r(NULL, " ", &state))
        fields[count++] = word;
    if (count < 6)
        return false;
    unescape(fields[4]);
    if (strcmp(fields[4], mount_point) != 0)
        return false;
    state = NULL;
    char *type = strtok_r(tail, " ", &state), *source = strtok_r(NULL, " ", &state);
    char *options = strtok_r(NULL, " \n", &state);
    if (!options || sscanf(fields[2], "%u:%u", &ret->major, &ret->minor) != 2)
        return false;
    unescape(source);
    (void)snprintf(ret->source, sizeof(ret->source), "%s", source);
    (void)snprintf(ret->fs_type, sizeof(ret->fs_type), "%s", type);
    (void)snprintf(ret->options, sizeof(ret->options), "%s,%s", fields[5], options);
    return true;
}

bool restore_find_mount(const char *mount_point, struct mount_entry *ret)
{
    FILE *file = fopen("/proc/self/mountinfo", "re");
    if (!file)
        return false;
    free_mem char *line = NULL;
    size_t size = 0;
    bool found = false;
    struct mount_entry entry;
    while (getline(&line, &size, file) > 0)
        if (parse_line(line, mount_point, &entry)) {
            *ret = entry; /* later lines lie on top of earlier ones */
            found = true;
        }
    (void)fclose(file);
    return found;
}

static bool is_risky(const char *option)
{
    static const char *const whole[] = {"ro",           "noload",    "norecovery", "nouuid",
                                        "nobarrier",    "barrier=0", "loop",       "noquota",
                                        "errors=panic", "dax",       "norecover",  "rw"};
    static const char *const prefix[] = {
        "data=", "dax=", "sunit=", "swidth=", "stripe=",  "logdev=",  "rtdev=",     "journal_",
        "x-",    "sb=",  "loop=",  "offset=", "comment=", "context=", "init_itable"};
    for (size_t i = 0; i < ARRAY_LEN(whole); i++)
        if (strcmp(option, whole[i]) == 0)
            return true;
    for (size_t i = 0; i < ARRAY_LEN(prefix); i++)
        if (strncmp(option, prefix[i], strlen(prefix[i])) == 0)
            return true;
    return false;
}

void restore_mount_options(const char *recorded, char *ret, size_t size)
{
    char copy[512], *state = NULL;
    size_t len = 0;
    (void)snprintf(copy, sizeof(copy), "%s", recorded);
    ret[0] = '\0';
    for (char *word = strtok_r(copy, ",", &state); word; word = strtok_r(NULL, ",", &state)) {
        char quoted[520], seen[600];
        (void)snprintf(quoted, sizeof(quoted), ",%s,", word);
        (void)snprintf(seen, sizeof(seen), ",%s,", ret);
        size_t need = strlen(word) + (len > 0);
        if (is_risky(word) || strstr(seen, quoted) || len + need >= size)
            continue;
        len += (size_t)snprintf(ret + len, size - len, "%s%s", len ? "," : "", word);
    }
}
