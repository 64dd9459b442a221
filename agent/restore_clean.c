/* What a block copy brings along and a restored server must not have: the old server's pid file,
 * signal and label files, replication slots (they would hold WAL for ever), temporary files, caches
 * of another moment, and pg_wal, which is replaced by the archive unless the target is the image
 * itself. Everything that is listed in PostgreSQL's "Backing Up The Data Directory". */
#include "agent/restore.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

enum { DEPTH_MAX = 16 };

/* --- removing ----------------------------------------------------------------------------------
 */

/* Everything below fd, never through a symbolic link. */
static int empty_directory(int fd, const char *path, unsigned depth, struct err *err);

static int remove_entry(int fd, const char *name, const char *path, unsigned depth, struct err *err)
{
    if (unlinkat(fd, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return err_sys(err, ERR_DEVICE, "remove '%s/%s'", path, name);
    close_fd int below = openat(fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (below < 0)
        return err_sys(err, ERR_DEVICE, "open '%s/%s'", path, name);
    int rc = depth == 0 ? err_set(err, ERR_DEVICE, "'%s/%s' is nested too deeply", path, name)
                        : empty_directory(below, path, depth - 1, err);
    if (rc == 0 && unlinkat(fd, name, AT_REMOVEDIR) < 0)
        return err_sys(err, ERR_DEVICE, "remove '%s/%s'", path, name);
    return rc;
}

/* fd stays the caller's. NULL: err is set. */
static DIR *read_directory(int fd, const char *path, struct err *err)
{
    int copy = dup(fd);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    if (!dir) {
        (void)err_sys(err, ERR_DEVICE, "read '%s'", path);
        cleanup_close(&copy);
    }
    return dir;
}

static int empty_directory(int fd, const char *path, unsigned depth, struct err *err)
{
    DIR *dir = read_directory(fd, path, err);
    if (!dir)
        return -ERR_DEVICE;
    int rc = 0;
    for (struct dirent *entry; rc == 0 && (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            rc = remove_entry(fd, entry->d_name, path, depth, err);
    (void)closedir(dir);
    if (rc == 0 && fsync(fd) < 0)
        return err_sys(err, ERR_DEVICE, "sync '%s'", path);
    return rc;
}

/* Empties base/name; absent is fine. follow: base/name may be a link (pg_wal). */
static int empty_below(const char *base, const char *name, bool follow, struct err *err)
{
    char path[CONF_PATH_MAX + 64];
    (void)snprintf(path, sizeof(path), "%s/%s", base, name);
    close_fd int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | (follow ? 0 : O_NOFOLLOW));
    if (fd < 0)
        return errno == ENOENT ? 0 : err_sys(err, ERR_DEVICE, "open '%s'", path);
    return empty_directory(fd, path, DEPTH_MAX, err);
}

/* --- files of another moment anywhere in the tree ----------------------------------------------
 */

static bool is_temporary(const char *name)
{
    return strncmp(name, "pgsql_tmp", 9) == 0 || strcmp(name, "pg_internal.init") == 0 ||
           strncmp(name, "pg_internal.init.", 17) == 0;
}

/* base/…, global/ and the tablespaces; links are not followed, tablespaces are walked by name. */
static int sweep(int fd, const char *path, unsigned depth, struct err *err)
{
    DIR *dir = read_directory(fd, path, err);
    if (!dir)
        return -ERR_DEVICE;
    int rc = 0;
    for (struct dirent *entry; rc == 0 && (entry = readdir(dir));) {
        if (entry->d_name[0] == '.')
            continue;
        if (is_temporary(entry->d_name)) {
            rc = remove_entry(fd, entry->d_name, path, DEPTH_MAX, err);
        } else if (entry->d_type == DT_DIR && depth > 0) {
            close_fd int below =
                openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            rc = below < 0 ? err_sys(err, ERR_DEVICE, "open '%s/%s'", path, entry->d_name)
                           : sweep(below, path, depth - 1, err);
        }
    }
    (void)closedir(dir);
    return rc;
}

static int sweep_path(const char *path, struct err *err)
{
    close_fd int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : err_sys(err, ERR_DEVICE, "open '%s'", path);
    return sweep(fd, path, 4, err);
}

static int sweep_all(struct restore *restore, struct err *err)
{
    char path[CONF_PATH_MAX + 64];
    (void)snprintf(path, sizeof(path), "%s/base", restore->data_directory);
    int rc = sweep_path(path, err);
    (void)snprintf(path, sizeof(path), "%s/global", restore->data_directory);
    if (rc == 0)
        rc = sweep_path(path, err);
    for (size_t i = 0; rc == 0 && i < restore->record.tablespace_count; i++) {
        char mapped[CONF_PATH_MAX + 1];
        if (restore_map_path(restore, restore->record.tablespaces[i].location, mapped,
                             sizeof(mapped)))
            rc = sweep_path(mapped, err);
    }
    return rc;
}

/* --- pg_wal ------------------------------------------------------------------------------------
 */

/* archive_status must be there: the server does not make it. */
static int empty_wal(struct restore *restore, struct err *err)
{
    char path[CONF_PATH_MAX + 64];
    struct stat st;
    int rc = empty_below(restore->data_directory, "pg_wal", true, err);
    if (rc < 0)
        return rc;
    (void)snprintf(path, sizeof(path), "%s/pg_wal", restore->data_directory);
    if (stat(path, &st) < 0)
        return err_sys(err, ERR_DEVICE, "look at '%s'", path);
    (void)snprintf(path, sizeof(path), "%s/pg_wal/archive_status", restore->data_directory);
    if (mkdir(path, 0700) < 0 || chown(path, st.st_uid, st.st_gid) < 0)
        return err_sys(err, ERR_DEVICE, "create '%s'", path);
    return 0;
}

/* Target snapshot: the image's segments stay. Its archive_status would make the archiver push again
 * what this or another server has pushed; pushing the same bytes twice is harmless. */
static int clean_wal(struct restore *restore, struct err *err)
{
    if (restore->target != TARGET_SNAPSHOT)
        return empty_wal(restore, err);
    char path[CONF_PATH_MAX + 64];
    (void)snprintf(path, sizeof(path), "%s/pg_wal", restore->data_directory);
    return empty_below(path, "tidemark-spool", false, err);
}

int restore_clean(struct restore *restore, struct err *err)
{
    static const char *const files[] = {
        "postmaster.pid", "postmaster.opts",  "standby.signal", "recovery.signal",
        "backup_label",   "backup_label.old", "tablespace_map", "tablespace_map.old",
        "promote",        "current_logfiles", "recovery.conf",  "fallback_promote",
    };
    /* Patroni's cache of its cluster's settings: in a cluster that it makes anew, of another one.
     */
    static const char dynamic[] = "patroni.dynamic.json";
    close_fd int fd = open(restore->data_directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(err, ERR_CORRUPT, "open the restored data directory '%s'",
                       restore->data_directory);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(files); i++)
        if (unlinkat(fd, files[i], 0) < 0 && errno != ENOENT)
            rc = err_sys(err, ERR_DEVICE, "remove '%s/%s'", restore->data_directory, files[i]);
    if (rc == 0 && restore_is_handover(restore) && unlinkat(fd, dynamic, 0) < 0 && errno != ENOENT)
        rc = err_sys(err, ERR_DEVICE, "remove '%s/%s'", restore->data_directory, dynamic);
    for (size_t i = 0; rc == 0 && path_emptied[i]; i++)
        rc = empty_below(restore->data_directory, path_emptied[i], false, err);
    if (rc == 0)
        rc = sweep_all(restore, err);
    if (rc == 0)
        rc = clean_wal(restore, err);
    return rc;
}
