/* See wal_ready.h. */
#include "agent/wal_ready.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static bool is_history(const char *name)
{
    enum wal_kind kind;
    return wal_name_parse(name, &kind, NULL) && kind == WAL_HISTORY;
}

int wal_ready_compare(const char *a, const char *b)
{
    bool first = is_history(a);
    if (first != is_history(b))
        return first ? -1 : 1;
    return strcmp(a, b);
}

/* Keeps the list sorted and drops what is beyond its end. */
static void insert(struct wal_ready *list, const char *name)
{
    size_t at = list->count;
    while (at > 0 && wal_ready_compare(name, list->names[at - 1]) < 0)
        at--;
    if (at == WAL_READY_MAX)
        return;
    if (list->count < WAL_READY_MAX)
        list->count++;
    memmove(list->names[at + 1], list->names[at], (list->count - at - 1) * sizeof(list->names[0]));
    (void)snprintf(list->names[at], sizeof(list->names[at]), "%s", name);
}

/* "NAME.ready" of a WAL file. */
static bool ready_name(const char *entry, char ret[WAL_NAME_MAX + 1])
{
    const char *dot = strrchr(entry, '.');
    if (!dot || strcmp(dot, ".ready") != 0 || (size_t)(dot - entry) > WAL_NAME_MAX)
        return false;
    (void)snprintf(ret, WAL_NAME_MAX + 1, "%.*s", (int)(dot - entry), entry);
    return wal_name_valid(ret, NULL);
}

bool wal_ready_scan(int wal_fd, struct wal_ready *ret)
{
    char name[WAL_NAME_MAX + 1];
    close_fd int fd = openat(wal_fd, "archive_status", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir)
        return false;
    (void)take_fd(&fd); /* closedir() closes it */
    ret->count = ret->total = 0;
    for (const struct dirent *entry; (entry = readdir(dir));)
        if (ready_name(entry->d_name, name)) {
            ret->total++;
            insert(ret, name);
        }
    (void)closedir(dir);
    return true;
}

bool wal_ready_has(int wal_fd, const char *name)
{
    char path[WAL_NAME_MAX + 32];
    (void)snprintf(path, sizeof(path), "archive_status/%s.ready", name);
    return faccessat(wal_fd, path, F_OK, 0) == 0;
}
