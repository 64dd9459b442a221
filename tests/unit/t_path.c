/* Paths: inside, outside, and where links lead that nothing is behind. */
#include "agent/path.h"
#include "tests/tap.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[PATH_MAX];

static void add_link(const char *target, const char *name)
{
    char path[PATH_MAX + 32];
    (void)snprintf(path, sizeof(path), "%s/%s", root, name);
    if (symlink(target, path) < 0)
        abort();
}

static void leads(const char *from, const char *to)
{
    char path[PATH_MAX + 64], want[PATH_MAX + 64], got[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/%s", root, from);
    (void)snprintf(want, sizeof(want), "%s%s%s", to[0] == '/' ? "" : root, to[0] == '/' ? "" : "/",
                   to);
    path_resolve(path, got);
    is_str(got, want, "%s", from);
}

int main(void)
{
    ok(path_is_plain("/a") && path_is_plain("/srv/p.g/..x"), "plain paths");
    static const char *const others[] = {"",      "/",    "a",    "a/b",     "/a/", "//a",
                                         "/a//b", "/a/.", "/./a", "/a/../b", "/..", NULL};
    for (size_t i = 0; others[i]; i++)
        ok(!path_is_plain(others[i]), "'%s' is none", others[i]);
    char name[] = "/var/tmp/tidemark-path-XXXXXX", path[PATH_MAX + 32];
    if (!mkdtemp(name) || !realpath(name, root))
        abort();
    (void)snprintf(path, sizeof(path), "%s/d", root);
    if (mkdir(path, 0700) < 0)
        abort();
    add_link("d", "to-d");
    add_link("/nowhere/at/all", "dead");
    add_link("../elsewhere", "d/dead");
    add_link("loop", "loop");
    leads("to-d", "d");
    leads("to-d/new/file", "d/new/file");
    leads("dead", "/nowhere/at/all");
    leads("dead/x", "/nowhere/at/all/x");
    leads("to-d/dead", "elsewhere");
    leads("d/gone/../../gone", "gone");
    leads("loop", "loop");
    path_resolve("/", path);
    is_str(path, "/", "the root");
    path_resolve("/no-such-entry/..", path);
    is_str(path, "/", "back to the root");
    for (const char *const *entry =
             (const char *const[]){"to-d", "dead", "d/dead", "loop", "d", NULL};
         *entry; entry++) {
        (void)snprintf(path, sizeof(path), "%s/%s", root, *entry);
        (void)remove(path);
    }
    (void)rmdir(root);
    return done();
}
