/* Parsing of /proc/self/mountinfo: one place, because the octal escapes and the optional fields
 * are easily got wrong (a mount point may hold blanks, a source may be "none"). */
#include "io/mountinfo.h"

#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

static bool is_octal(char c)
{
    return c >= '0' && c <= '7';
}

/* The byte of three octal digits; 0 when there are none, or they are no byte that a name can hold.
 */
static int octal_escape(const char *digits)
{
    if (!is_octal(digits[0]) || !is_octal(digits[1]) || !is_octal(digits[2]))
        return 0;
    int code = (digits[0] - '0') * 64 + (digits[1] - '0') * 8 + (digits[2] - '0');
    return code <= UINT8_MAX ? code : 0;
}

const char *proc_field(const char *from, char *to, size_t to_len)
{
    while (*from == ' ' || *from == '\t')
        from++;
    if (*from == '\0')
        return NULL;
    size_t len = 0;
    while (*from != '\0' && *from != ' ' && *from != '\t') {
        char c = *from++;
        int code = c == '\\' ? octal_escape(from) : 0;
        if (code > 0) {
            c = (char)code;
            from += 3;
        }
        if (len + 1 >= to_len)
            return NULL;
        to[len++] = c;
    }
    to[len] = '\0';
    return from;
}

bool mount_has_option(const char *options, const char *name)
{
    size_t len = strlen(name);
    for (const char *at = options; at != NULL; at = strchr(at, ',')) {
        if (*at == ',')
            at++;
        if (strncmp(at, name, len) == 0 && (at[len] == '\0' || at[len] == ',' || at[len] == '='))
            return true;
    }
    return false;
}

/* 36 35 98:0 /root /mnt rw,noatime shared:1 … - ext4 /dev/sda1 rw,errors=continue */
bool mount_entry_parse(const char *line, struct mount_entry *ret)
{
    struct mount_entry entry = {0};
    char word[256];
    const char *at = line;
    for (int i = 0; i < 2; i++) /* mount id, parent id */
        if ((at = proc_field(at, word, sizeof(word))) == NULL)
            return false;
    if ((at = proc_field(at, word, sizeof(word))) == NULL ||
        sscanf(word, "%u:%u", &entry.major, &entry.minor) != 2)
        return false;
    if ((at = proc_field(at, entry.root, sizeof(entry.root))) == NULL ||
        (at = proc_field(at, entry.mount_point, sizeof(entry.mount_point))) == NULL ||
        (at = proc_field(at, entry.options, sizeof(entry.options))) == NULL)
        return false;
    do { /* any number of optional fields, then a lone hyphen */
        if ((at = proc_field(at, word, sizeof(word))) == NULL)
            return false;
    } while (strcmp(word, "-") != 0);
    if ((at = proc_field(at, entry.fs_type, sizeof(entry.fs_type))) == NULL ||
        (at = proc_field(at, entry.source, sizeof(entry.source))) == NULL ||
        proc_field(at, entry.super_options, sizeof(entry.super_options)) == NULL)
        return false;
    entry.read_only =
        mount_has_option(entry.options, "ro") || mount_has_option(entry.super_options, "ro");
    *ret = entry;
    return true;
}

int mount_each(int (*each)(void *ctx, const struct mount_entry *entry), void *ctx, struct err *err)
{
    FILE *file = fopen("/proc/self/mountinfo", "re");
    if (file == NULL)
        return err_sys(err, ERR_DEVICE, "open '/proc/self/mountinfo'");
    free_mem char *line = NULL;
    size_t capacity = 0;
    ssize_t len;
    int rc = 0;
    while (rc == 0 && (len = getline(&line, &capacity, file)) > 0) {
        struct mount_entry entry;
        if (line[len - 1] == '\n')
            line[len - 1] = '\0';
        if (mount_entry_parse(line, &entry))
            rc = each(ctx, &entry);
    }
    (void)fclose(file);
    return rc;
}

static bool is_node_of(const char *path, unsigned dev_major, unsigned dev_minor)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISBLK(st.st_mode) && major(st.st_rdev) == dev_major &&
           minor(st.st_rdev) == dev_minor;
}

int device_node_path(unsigned dev_major, unsigned dev_minor, const char *hint, char *ret,
                     size_t ret_len, struct err *err)
{
    char path[64], line[256];
    (void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/uevent", dev_major, dev_minor);
    FILE *file = fopen(path, "re");
    bool found = false;
    while (file != NULL && !found && fgets(line, sizeof(line), file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "DEVNAME=", 8) != 0)
            continue;
        char node[280];
        (void)snprintf(node, sizeof(node), "/dev/%s", line + 8);
        found = is_node_of(node, dev_major, dev_minor);
        if (found)
            (void)snprintf(ret, ret_len, "%s", node);
    }
    if (file != NULL)
        (void)fclose(file);
    if (!found && hint != NULL && is_node_of(hint, dev_major, dev_minor)) {
        (void)snprintf(ret, ret_len, "%s", hint);
        found = true;
    }
    if (!found)
        return err_set(err, ERR_DEVICE, "no node in /dev for block device %u:%u", dev_major,
                       dev_minor);
    return 0;
}
