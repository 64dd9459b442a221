/* A snapshot remembers absolute paths of the host it was taken on. Here the volumes may be mounted
 * elsewhere, so every recorded path is split at the mount point of its volume and put together
 * again. A path on no volume of the snapshot is somebody else's file: it is never followed. */
#include "agent/restore.h"

#include <limits.h>
#include <stdio.h>

/* "/srv/pg" and "/srv/pg/ts" may both be volumes: the longest mount point wins. */
bool restore_map_path(const struct restore *restore, const char *path, char *ret, size_t size)
{
    const struct restore_volume *best = NULL;
    size_t best_len = 0;
    for (size_t i = 0; i < restore->volume_count; i++) {
        const struct restore_volume *volume = &restore->volumes[i];
        const char *mount_point = restore->record.volumes[volume->index].mount_point;
        size_t len = strlen(mount_point);
        if (len > 0 && path_inside(path, mount_point) && (!best || len > best_len)) {
            best = volume;
            best_len = len;
        }
    }
    if (!best || strstr(path, "/../"))
        return false;
    const char *rest = path + best_len;
    while (*rest == '/')
        rest++;
    int len = snprintf(ret, size, "%s%s%s", best->mount_point, *rest ? "/" : "", rest);
    return len > 0 && (size_t)len < size;
}

static int refuse_outside(const char *what, const char *path, struct err *err)
{
    (void)err_set(err, ERR_REFUSED, "%s '%s' lies outside the volumes of the snapshot", what, path);
    return err_hint(err, "a restore writes only to its own volumes; take the snapshot with every "
                         "volume that the server uses as a [volume] of the configuration");
}

/* The configured data directory must be the one that the snapshot brings back. */
static int compare_data_directory(struct restore *restore, struct err *err)
{
    const char *configured = restore->job->conf.data_directory;
    if (!configured[0] || strcmp(configured, restore->data_directory) == 0)
        return 0;
    char resolved[PATH_MAX], mapped[PATH_MAX];
    if (realpath(configured, resolved) && realpath(restore->data_directory, mapped) &&
        strcmp(resolved, mapped) == 0)
        return 0;
    (void)err_set(err, ERR_REFUSED,
                  "the snapshot's data directory comes back at '%s', but the configuration says "
                  "data_directory = '%s'",
                  restore->data_directory, configured);
    return err_hint(err, "set the mount points of the volumes so that both agree");
}

int restore_map_paths(struct restore *restore, struct err *err)
{
    const struct record *record = &restore->record;
    char mapped[CONF_PATH_MAX + 1];
    if (!restore_map_path(restore, record->data_directory, restore->data_directory,
                          sizeof(restore->data_directory)))
        return refuse_outside("data directory", record->data_directory, err);
    if (!restore_map_path(restore, record->wal_directory, restore->wal_directory,
                          sizeof(restore->wal_directory)))
        return refuse_outside("WAL directory", record->wal_directory, err);
    for (size_t i = 0; i < record->tablespace_count; i++)
        if (!restore_map_path(restore, record->tablespaces[i].location, mapped, sizeof(mapped)))
            return refuse_outside("tablespace", record->tablespaces[i].location, err);
    return compare_data_directory(restore, err);
}
