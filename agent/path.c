/* Snapshot and restore have to agree on what lies outside: a link that only one of them follows
 * would make snapshots that nobody can restore. */
#include "agent/path.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINKS_MAX = 16 };

const char *const path_emptied[] = {"pg_replslot",  "pg_stat_tmp", "pg_dynshmem", "pg_serial",
                                    "pg_snapshots", "pg_notify",   NULL};

bool path_inside(const char *path, const char *directory)
{
    size_t len = strlen(directory);
    while (len > 1 && directory[len - 1] == '/')
        len--;
    if (len == 1 && directory[0] == '/')
        return path[0] == '/';
    return strncmp(path, directory, len) == 0 && (path[len] == '\0' || path[len] == '/');
}

bool path_is_plain(const char *path)
{
    if (path[0] != '/')
        return false;
    while (*path == '/') {
        size_t len = strcspn(++path, "/");
        bool dots = (len == 1 && path[0] == '.') || (len == 2 && path[0] == '.' && path[1] == '.');
        if (len == 0 || dots)
            return false;
        path += len;
    }
    return true;
}

/* parent without its last name; the root stays. */
static void drop_name(char *parent)
{
    char *slash = strrchr(parent, '/');
    if (slash)
        slash[slash == parent ? 1 : 0] = '\0';
}

/* realpath(3) gives up at the first name that is not there; here it stays as it is. */
static void resolve(const char *path, unsigned links_left, char ret[PATH_MAX])
{
    char copy[PATH_MAX], parent[PATH_MAX] = "/", next[PATH_MAX], target[PATH_MAX];
    if (realpath(path, ret))
        return;
    (void)snprintf(copy, sizeof(copy), "%s", path);
    char *slash = strrchr(copy, '/');
    if (!slash) {
        (void)snprintf(ret, PATH_MAX, "%s", path);
        return;
    }
    const char *name = slash + 1;
    *slash = '\0';
    if (slash != copy)
        resolve(copy, links_left, parent);
    if (strcmp(name, "..") == 0)
        drop_name(parent);
    if (name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        (void)snprintf(ret, PATH_MAX, "%s", parent);
        return;
    }
    const char *between = parent[1] ? "/" : "";
    (void)snprintf(next, sizeof(next), "%s%s%s", parent, between, name);
    ssize_t len = links_left > 0 ? readlink(next, target, sizeof(target) - 1) : -1;
    if (len <= 0) {
        (void)snprintf(ret, PATH_MAX, "%s", next);
        return;
    }
    target[len] = '\0';
    if (target[0] == '/')
        (void)snprintf(next, sizeof(next), "%s", target);
    else
        (void)snprintf(next, sizeof(next), "%s%s%s", parent, between, target);
    resolve(next, links_left - 1, ret);
}

void path_resolve(const char *path, char ret[PATH_MAX])
{
    resolve(path, LINKS_MAX, ret);
}
