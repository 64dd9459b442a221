/* Siblings are found from /proc/self/exe, so that a build directory, a copy elsewhere and an
 * installed package all work without a configured path. */
#include "agent/program.h"

#include <stdio.h>

int program_find(const char *name, char ret[PATH_MAX], struct err *err)
{
    static const char *const places[] = {"", "../bin/", "../sbin/", "../lib/tidemark/"};
    char self[PATH_MAX], path[PATH_MAX + 64];
    const char *forced = secure_getenv("TIDEMARK_PROGRAMS");
    ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (len < 0)
        return err_sys(err, ERR_INTERNAL, "read /proc/self/exe");
    self[len] = '\0';
    char *slash = strrchr(self, '/');
    if (slash)
        slash[1] = '\0';
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        if (forced)
            (void)snprintf(path, sizeof(path), "%s/%s", forced, name);
        else
            (void)snprintf(path, sizeof(path), "%s%s%s", self, places[i], name);
        if (strlen(path) < PATH_MAX && access(path, X_OK) == 0) {
            (void)snprintf(ret, PATH_MAX, "%s", path);
            return 0;
        }
    }
    return err_set(err, ERR_INTERNAL, "program '%s' is not installed beside '%s'", name, self);
}
