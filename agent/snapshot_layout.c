/* Where the server's files lie. Everything that a restore brings back must be on a captured volume,
 * and a captured volume must not carry a second server: restoring the one would overwrite the
 * other.
 *
 * A restore knows places by the text of their paths below the recorded mount points, and refuses
 * links that lead elsewhere (restore_paths.c, restore_configure.c, restore_isolation.c). The same
 * is asked here, of every link that it will look at: a snapshot that nobody can restore must not
 * be taken. */
#include "agent/snapshot.h"
#include "agent/path.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* As restore_map_path() will see it. */
static bool has_place(const struct snapshot *snapshot, const char *path)
{
    bool inside = false;
    for (size_t i = 0; i < snapshot->group.count; i++) {
        const struct volume *volume = &snapshot->group.volumes[i];
        inside |= volume->mounted && path_inside(path, volume->mount_point);
    }
    return inside && !strstr(path, "/../");
}

static int check_place(const struct snapshot *snapshot, const char *what, const char *path,
                       struct err *err)
{
    int rc = check_inside(snapshot, what, path, err);
    if (rc < 0 || has_place(snapshot, path))
        return rc;
    (void)err_set(err, ERR_REFUSED, "%s '%s' does not lie below the mount point of its volume",
                  what, path);
    return err_hint(err, "a restore finds places by mount points: name it by a path without links "
                         "and second mounts");
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

/* --- links ------------------------------------------------------------------------------------ */

static int refuse_link(const char *path, const char *to, struct err *err)
{
    (void)err_set(err, ERR_REFUSED, "link '%s' leads outside the volumes, to '%s'", path, to);
    return err_hint(err, "a restore would refuse it: remove it when nothing needs it, or add a "
                         "[volume NAME] section for the filesystem that it leads to");
}

/* Where the link says and where it ends, whether or not there is anything. */
static int check_link(const struct snapshot *snapshot, const char *path, struct err *err)
{
    char target[PATH_MAX], resolved[PATH_MAX];
    ssize_t len = readlink(path, target, sizeof(target) - 1);
    if (len < 0) /* no link, or dropped since it was listed */
        return errno == EINVAL || errno == ENOENT ? 0 : err_sys(err, ERR_DEVICE, "read '%s'", path);
    target[len] = '\0';
    if (target[0] == '/' && !has_place(snapshot, target))
        return refuse_link(path, target, err);
    path_resolve(path, resolved);
    if (!has_place(snapshot, resolved))
        return refuse_link(path, resolved, err);
    return access(resolved, F_OK) == 0 ? check_inside(snapshot, "link", path, err) : 0;
}

static bool is_emptied(const char *name)
{
    for (size_t i = 0; path_emptied[i]; i++)
        if (strcmp(name, path_emptied[i]) == 0)
            return true;
    return false;
}

static int refuse_emptied(const char *path, struct err *err)
{
    (void)err_set(err, ERR_REFUSED, "'%s' is a link: a restore empties it and follows no link",
                  path);
    return err_hint(err, "stop the server and move the directory back to its place");
}

/* --- the data directory ----------------------------------------------------------------------- */

/* base/ on another filesystem, by a link or as a mount point, would not be in the image. Links to
 * files (certificates, say) and to nothing are of no concern to a restore. */
static int check_top(const struct snapshot *snapshot, const char *name, struct err *err)
{
    char path[PATH_MAX];
    struct stat st, link;
    (void)snprintf(path, sizeof(path), "%s/%s", snapshot->record.data_directory, name);
    int rc = 0;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        rc = check_inside(snapshot, "directory", path, err);
    if (rc < 0 || lstat(path, &link) < 0 || !S_ISLNK(link.st_mode))
        return rc;
    if (is_emptied(name))
        return refuse_emptied(path, err);
    const char *logs =
        json_string_value(json_object_get(snapshot->record.settings, "log_directory"));
    bool followed = strcmp(name, "pg_wal") == 0 || (logs && strcmp(name, logs) == 0);
    return followed ? check_link(snapshot, path, err) : 0;
}

/* Also links that no catalogue entry names: a restore cannot tell them apart. */
static int check_tablespace_link(const struct snapshot *snapshot, const char *name, struct err *err)
{
    char path[PATH_MAX];
    if (name[0] == '.')
        return 0;
    (void)snprintf(path, sizeof(path), "%s/pg_tblspc/%s", snapshot->record.data_directory, name);
    return check_link(snapshot, path, err);
}

static int each_entry(const struct snapshot *snapshot, const char *below,
                      int (*each)(const struct snapshot *, const char *name, struct err *err),
                      struct err *err)
{
    char path[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s%s", snapshot->record.data_directory, below);
    DIR *directory = opendir(path);
    if (!directory)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    int rc = 0;
    for (const struct dirent *entry; rc == 0 && (entry = readdir(directory));)
        if (strcmp(entry->d_name, "..") != 0)
            rc = each(snapshot, entry->d_name, err);
    (void)closedir(directory);
    return rc;
}

static int check_tablespaces(const struct snapshot *snapshot, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < snapshot->record.tablespace_count; i++)
        rc = check_place(snapshot, "tablespace", snapshot->record.tablespaces[i].location, err);
    return rc;
}

/* --- other servers ---------------------------------------------------------------------------- */

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
        rc = check_place(snapshot, "data directory", snapshot->record.data_directory, err);
    if (rc == 0)
        rc = check_place(snapshot, "WAL directory", snapshot->record.wal_directory, err);
    if (rc == 0)
        rc = each_entry(snapshot, "", check_top, err);
    if (rc == 0)
        rc = check_tablespaces(snapshot, err);
    if (rc == 0)
        rc = each_entry(snapshot, "/pg_tblspc", check_tablespace_link, err);
    if (rc == 0)
        rc = check_strangers(snapshot, err);
    return rc;
}
