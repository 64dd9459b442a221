/* Where the server's files lie. Everything that a restore brings back must be on a captured volume,
 * and a captured volume must not carry a second server: restoring the one would overwrite the
 * other. */
#include "agent/snapshot.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

static int refuse_outside(const char *what, const char *path, struct err *err)
{
    (void)err_set(err, ERR_REFUSED, "%s '%s' is not on a configured volume", what, path);
    return err_hint(err, "add a [volume NAME] section for the filesystem that holds it");
}

static int check_inside(const struct snapshot *snapshot, const char *what, const char *path,
                        struct err *err)
{
    char resolved[PATH_MAX];
    int rc = snapshot_resolve(path, resolved, sizeof(resolved), err);
    if (rc < 0)
        return rc;
    return volume_group_find_path(&snapshot->group, resolved) < 0 ? refuse_outside(what, path, err)
                                                                  : 0;
}

static int check_control(struct snapshot *snapshot, struct err *err)
{
    struct record *record = &snapshot->record;
    int index = volume_group_find_path(&snapshot->group, record->data_directory);
    if (index < 0)
        return refuse_outside("data directory", record->data_directory, err);
    (void)snprintf(record->control_volume, sizeof(record->control_volume), "%s",
                   snapshot->group.volumes[index].conf->name);
    return 0;
}

/* Directories of the data directory, links and mount points among them included: base/ on another
 * filesystem would not be in the image. */
static int check_subdirectories(const struct snapshot *snapshot, struct err *err)
{
    const char *data_directory = snapshot->record.data_directory;
    DIR *directory = opendir(data_directory);
    if (!directory)
        return err_sys(err, ERR_DEVICE, "open '%s'", data_directory);
    int rc = 0;
    for (const struct dirent *entry; rc == 0 && (entry = readdir(directory));) {
        char path[PATH_MAX];
        struct stat st;
        if (strcmp(entry->d_name, "..") == 0)
            continue;
        (void)snprintf(path, sizeof(path), "%s/%s", data_directory, entry->d_name);
        if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
            rc = check_inside(snapshot, "directory", path, err);
    }
    (void)closedir(directory);
    return rc;
}

static int check_tablespaces(const struct snapshot *snapshot, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < snapshot->record.tablespace_count; i++)
        rc = check_inside(snapshot, "tablespace", snapshot->record.tablespaces[i].location, err);
    return rc;
}

struct search {
    const struct snapshot *snapshot;
    const char *volume;
};

static int on_data_directory(void *ctx, const char *path, struct err *err)
{
    const struct search *search = ctx;
    char resolved[PATH_MAX];
    if (!realpath(path, resolved) || strcmp(resolved, search->snapshot->record.data_directory) == 0)
        return 0;
    (void)err_set(err, ERR_REFUSED, "volume '%s' also holds the data directory '%s'",
                  search->volume, path);
    return err_hint(err, "a restore would overwrite it: give every server a volume of its own");
}

static int check_strangers(const struct snapshot *snapshot, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < snapshot->group.count; i++) {
        const struct volume *volume = &snapshot->group.volumes[i];
        struct search search = {.snapshot = snapshot, .volume = volume->conf->name};
        if (volume->mounted)
            rc = volume_find_data_directories(volume->mount_point, on_data_directory, &search, err);
    }
    return rc;
}

int snapshot_check_layout(struct snapshot *snapshot, struct err *err)
{
    int rc = check_control(snapshot, err);
    if (rc == 0)
        rc = check_inside(snapshot, "WAL directory", snapshot->record.wal_directory, err);
    if (rc == 0)
        rc = check_subdirectories(snapshot, err);
    if (rc == 0)
        rc = check_tablespaces(snapshot, err);
    if (rc == 0)
        rc = check_strangers(snapshot, err);
    return rc;
}
