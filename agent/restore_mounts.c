/* What is mounted where now, and with which of its old options a restored filesystem is mounted
 * again. */
#include "agent/restore.h"

#include <stdio.h>

struct wanted {
    const char *mount_point;
    struct mount_entry *ret;
    bool found;
};

/* Later lines lie on top of earlier ones, so all are looked at. */
static int each_mount(void *ctx, const struct mount_entry *entry)
{
    struct wanted *wanted = ctx;
    if (strcmp(entry->mount_point, wanted->mount_point) == 0) {
        *wanted->ret = *entry;
        wanted->found = true;
    }
    return 0;
}

bool restore_find_mount(const char *mount_point, struct mount_entry *ret)
{
    struct err ignored;
    struct wanted wanted = {.mount_point = mount_point, .ret = ret};
    return mount_each(each_mount, &wanted, &ignored) == 0 && wanted.found;
}

static int compare_depth(const void *a, const void *b)
{
    const struct restore_volume *const *x = a, *const *y = b;
    size_t x_len = strlen((*x)->mount_point), y_len = strlen((*y)->mount_point);
    return x_len < y_len ? -1 : x_len > y_len;
}

void restore_mount_order(struct restore *restore, struct restore_volume *ret[RECORD_VOLUMES_MAX])
{
    for (size_t i = 0; i < restore->volume_count; i++)
        ret[i] = &restore->volumes[i];
    qsort(ret, restore->volume_count, sizeof(struct restore_volume *), compare_depth);
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
