/* From a mounted image to a server that may be started: remove what belongs to the old one, write
 * what recovery needs, and only then the real pg_control. While that file is zero PostgreSQL
 * refuses to start, whoever tries; so its content also says how far an interrupted run came. The
 * start permit, which postgres -C needs as well, is there meanwhile and gone before. */
#include "agent/restore.h"
#include "agent/log.h"
#include "agent/pg.h"
#include "agent/process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

enum { CONTROL_LEN = 8192, FTW_FDS = 16, MOUNT_TRIES = 100, MOUNT_PAUSE_MS = 100 };

/* --- mount ------------------------------------------------------------------------------------ */

/* The kernel drops our exclusive open late: an io_uring keeps its registered files until its own
 * teardown, which runs in a worker after the last close. XFS refuses (EINVAL) the UUID of a volume
 * that a dying mount namespace still holds: the old one, when the restore went to a new device. */
static int mount_device(struct restore *restore, struct restore_volume *volume, struct err *err)
{
    struct timespec pause = {.tv_nsec = MOUNT_PAUSE_MS * 1000000};
    for (int i = 0;; i++) {
        int rc = volume_mount(volume->identity.path, volume->mount_point,
                              restore->record.volumes[volume->index].fs_type, volume->mount_options,
                              false, err);
        bool passing = rc < 0 && (err->sys_errno == EBUSY || err->sys_errno == EINVAL);
        if (!passing || i == MOUNT_TRIES)
            return rc;
        (void)nanosleep(&pause, NULL);
    }
}

static int mount_volume(struct restore *restore, struct restore_volume *volume, struct err *err)
{
    struct mount_entry entry;
    int rc = restore_recheck_device(restore, volume, err);
    if (rc < 0)
        return rc;
    if (restore_find_mount(volume->mount_point, &entry)) {
        if (entry.major == volume->identity.major && entry.minor == volume->identity.minor)
            return 0; /* an earlier run, fstab, or a person */
        return err_set(err, ERR_REFUSED, "'%s' is mounted on '%s', the place of volume '%s'",
                       entry.source, volume->mount_point, volume->name);
    }
    char inside[CONF_PATH_MAX + 8];
    (void)snprintf(inside, sizeof(inside), "%s/x", volume->mount_point);
    rc = restore_make_parents(inside, err);
    if (rc < 0)
        return rc;
    return mount_device(restore, volume, err);
}

int restore_mount(struct restore *restore, struct err *err)
{
    struct restore_volume *order[RECORD_VOLUMES_MAX];
    restore_mount_order(restore, order);
    for (size_t i = 0; i < restore->volume_count; i++) {
        int rc = mount_volume(restore, order[i], err);
        if (rc < 0)
            return err_prefix(err, "volume '%s'", order[i]->name);
    }
    return 0;
}

/* --- ownership -------------------------------------------------------------------------------- */

/* nftw() has no context argument; one thread, set before the walk. */
static struct {
    uid_t from_uid, to_uid;
    gid_t to_gid;
    int failed_errno;
} chown_walk;

static int chown_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)type;
    (void)ftw;
    if (st->st_uid == chown_walk.from_uid &&
        lchown(path, chown_walk.to_uid, chown_walk.to_gid) < 0) {
        chown_walk.failed_errno = errno;
        return -1;
    }
    return 0;
}

/* On another host the account may have another number. */
static int set_owner(struct restore *restore, struct err *err)
{
    char home[256];
    struct stat st;
    int rc = process_user(restore->conf.os_user, &chown_walk.to_uid, &chown_walk.to_gid, home, err);
    if (rc < 0)
        return rc;
    if (stat(restore->data_directory, &st) < 0)
        return err_sys(err, ERR_CORRUPT, "look at the restored data directory '%s'",
                       restore->data_directory);
    if (st.st_uid == chown_walk.to_uid)
        return 0;
    chown_walk.from_uid = st.st_uid;
    log_info("giving files of uid %u to '%s'", (unsigned)st.st_uid, restore->conf.os_user);
    for (size_t i = 0; i < restore->volume_count; i++)
        if (nftw(restore->volumes[i].mount_point, chown_entry, FTW_FDS,
                 FTW_PHYS | FTW_MOUNT | FTW_DEPTH) != 0) {
            errno = chown_walk.failed_errno;
            return err_sys(err, ERR_DEVICE, "change owners on '%s'",
                           restore->volumes[i].mount_point);
        }
    return 0;
}

/* --- links ------------------------------------------------------------------------------------ */

static int replace_link(const struct restore *restore, const char *path, const char *to,
                        struct err *err)
{
    struct stat st;
    if (unlink(path) < 0 || symlink(to, path) < 0)
        return err_sys(err, ERR_DEVICE, "replace the link '%s'", path);
    if (stat(restore->data_directory, &st) < 0 || lchown(path, st.st_uid, st.st_gid) < 0)
        return err_sys(err, ERR_DEVICE, "change the owner of '%s'", path);
    log_info("link moved: link=%s to=%s", path, to);
    return 0;
}

/* A link to a recorded place becomes one to the place here; one to nowhere of ours is refused.
 * here: where it has to lead in the end, NULL = its own text has to say. Only that tells a link
 * that an earlier run has moved from one it has not, when two volumes change places. */
static int fix_link(const struct restore *restore, const char *path, const char *here,
                    struct err *err)
{
    char target[CONF_PATH_MAX + 1], mapped[CONF_PATH_MAX + 1];
    ssize_t len = readlink(path, target, sizeof(target) - 1);
    if (len < 0)
        return errno == EINVAL || errno == ENOENT ? 0 : err_sys(err, ERR_DEVICE, "read '%s'", path);
    target[len] = '\0';
    if (target[0] != '/' || (here && strcmp(target, here) == 0))
        return 0; /* stays inside, or the isolation check says otherwise; or is right */
    if (restore_map_path(restore, target, mapped, sizeof(mapped)))
        return strcmp(target, mapped) == 0 ? 0 : replace_link(restore, path, mapped, err);
    for (size_t i = 0; i < restore->volume_count; i++)
        if (path_inside(target, restore->volumes[i].mount_point))
            return 0; /* moved by an earlier run */
    (void)err_set(err, ERR_REFUSED, "link '%s' leads outside the restored volumes, to '%s'", path,
                  target);
    return err_hint(err, "take the snapshot with that place as a volume of its own");
}

/* pg_tblspc/OID of a tablespace in the record. */
static int fix_tablespace(const struct restore *restore, const char *oid, struct err *err)
{
    const struct record *record = &restore->record;
    char path[CONF_PATH_MAX + 288], here[CONF_PATH_MAX + 1];
    bool known = false;
    for (size_t i = 0; !known && i < record->tablespace_count; i++)
        known = strtoull(oid, NULL, 10) == record->tablespaces[i].oid &&
                restore_map_path(restore, record->tablespaces[i].location, here, sizeof(here));
    (void)snprintf(path, sizeof(path), "%s/pg_tblspc/%s", restore->data_directory, oid);
    return fix_link(restore, path, known ? here : NULL, err);
}

static int fix_links(const struct restore *restore, struct err *err)
{
    char path[CONF_PATH_MAX + 288];
    (void)snprintf(path, sizeof(path), "%s/pg_wal", restore->data_directory);
    int rc = fix_link(restore, path, restore->wal_directory, err);
    (void)snprintf(path, sizeof(path), "%s/pg_tblspc", restore->data_directory);
    DIR *dir = rc == 0 ? opendir(path) : NULL;
    if (rc == 0 && !dir)
        return err_sys(err, ERR_CORRUPT, "open '%s'", path);
    for (struct dirent *entry; rc == 0 && (entry = readdir(dir));) {
        if (entry->d_name[0] != '.')
            rc = fix_tablespace(restore, entry->d_name, err);
    }
    if (dir)
        (void)closedir(dir);
    return rc;
}

/* --- label, map, signal ----------------------------------------------------------------------- */

/* "OID PATH\n" lines; blanks and backslashes in paths are escaped by a backslash only before a
 * newline (xlogbackup), so a line is an OID, one blank, and the rest. */
static char *map_tablespaces(const struct restore *restore, const char *text)
{
    char *mapped = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&mapped, &len);
    if (!to)
        abort();
    while (*text) {
        size_t line = strcspn(text, "\n");
        char copy[CONF_PATH_MAX + 64], here[CONF_PATH_MAX + 1];
        (void)snprintf(copy, sizeof(copy), "%.*s", (int)line, text);
        char *path = strchr(copy, ' ');
        if (path && restore_map_path(restore, path + 1, here, sizeof(here)))
            fprintf(to, "%.*s %s\n", (int)(path - copy), copy, here);
        else
            fprintf(to, "%s\n", copy);
        text += line + (text[line] == '\n');
    }
    (void)fclose(to);
    return mapped;
}

static int write_below(const struct restore *restore, const char *name, const char *text,
                       struct err *err)
{
    char path[CONF_PATH_MAX + 64];
    (void)snprintf(path, sizeof(path), "%s/%s", restore->data_directory, name);
    return restore_write_file(restore, path, text, strlen(text), 0600, err);
}

const char *restore_signal_file(const struct restore *restore)
{
    bool follows = restore->request.standby || restore->request.replica;
    return follows ? "standby.signal" : "recovery.signal";
}

static int write_recovery_files(struct restore *restore, struct err *err)
{
    const struct record *record = &restore->record;
    bool label = restore->target != TARGET_SNAPSHOT && record->backup_label;
    int rc = 0;
    if (label && record->tablespace_map && record->tablespace_map[0]) {
        free_mem char *map = map_tablespaces(restore, record->tablespace_map);
        rc = write_below(restore, "tablespace_map", map, err);
    }
    if (rc == 0 && label)
        rc = write_below(restore, "backup_label", record->backup_label, err);
    if (rc == 0)
        rc = write_below(restore, restore_signal_file(restore), "", err);
    return rc;
}

/* The WAL that the fence saved last is there as a .partial only, which nobody asks the archive for.
 * For targets that may lie in it, it goes into pg_wal under the segment's plain name. */
static int place_partial(struct restore *restore, struct err *err)
{
    uint64_t end_lsn;
    char partial[WAL_NAME_MAX + 1];
    if (restore->request.standby) /* it would be replayed past the fork */
        return 0;
    if (restore->target == TARGET_TAG || restore->target == TARGET_SNAPSHOT)
        return 0;
    int rc = restore_timeline_end(restore, restore->target_timeline, &end_lsn, partial, err);
    if (rc < 0 || !partial[0])
        return rc;
    uint32_t segment_size = restore->record.segment_size;
    char name[25], path[CONF_PATH_MAX + 64], home[256];
    uid_t uid;
    gid_t gid;
    pg_segment_name(restore->target_timeline, end_lsn / segment_size - 1, segment_size, name);
    (void)snprintf(path, sizeof(path), "%s/pg_wal/%s", restore->data_directory, name);
    rc = wal_get(&restore->archive, partial, path, true, err);
    if (rc == 0)
        rc = process_user(restore->conf.os_user, &uid, &gid, home, err);
    if (rc == 0 && (chown(path, uid, gid) < 0 || chmod(path, 0600) < 0))
        rc = err_sys(err, ERR_DEVICE, "change the owner of '%s'", path);
    if (rc == 0)
        log_info("last partial segment placed: name=%s", partial);
    return rc;
}

/* --- pg_control ------------------------------------------------------------------------------- */

static int open_control(const struct restore *restore, int flags, int *ret_fd, struct err *err)
{
    char path[CONF_PATH_MAX + 64];
    struct stat st;
    (void)snprintf(path, sizeof(path), "%s/global/pg_control", restore->data_directory);
    close_fd int fd = open(path, flags | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return err_sys(err, ERR_CORRUPT, "open '%s'", path);
    if (fstat(fd, &st) < 0 || st.st_size != CONTROL_LEN)
        return err_set(err, ERR_CORRUPT, "'%s' does not have %d bytes", path, CONTROL_LEN);
    *ret_fd = take_fd(&fd);
    return 0;
}

static bool is_below(const struct restore *restore, const char *name)
{
    char path[CONF_PATH_MAX + 64];
    (void)snprintf(path, sizeof(path), "%s/%s", restore->data_directory, name);
    return access(path, F_OK) == 0;
}

/* True while pg_control is withheld: the configuration is not finished. The snapshot's own bytes
 * mean that it is finished and no server ran since, so the signal file must be there; without it
 * the blocks were never withheld, and a start would be a crash recovery on the old timeline. */
static int control_is_withheld(const struct restore *restore, bool *ret, struct err *err)
{
    static const uint8_t zeros[CONTROL_LEN];
    uint8_t bytes[CONTROL_LEN];
    close_fd int fd = -1;
    int rc = open_control(restore, O_RDONLY, &fd, err);
    if (rc < 0)
        return rc;
    if (pread(fd, bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
        return err_sys(err, ERR_DEVICE, "read pg_control");
    *ret = memcmp(bytes, zeros, sizeof(bytes)) == 0;
    if (memcmp(bytes, restore->record.control, sizeof(bytes)) != 0 ||
        is_below(restore, restore_signal_file(restore)))
        return 0;
    (void)err_set(err, ERR_CORRUPT,
                  "pg_control is there although recovery was never prepared: the record's place of "
                  "it is wrong");
    return err_hint(err, "do not start this server by hand; restore another snapshot");
}

/* In place: the same blocks that the record names, so a later mark and pull withholds them again.
 */
static int write_control(const struct restore *restore, struct err *err)
{
    close_fd int fd = -1;
    int rc = open_control(restore, O_RDWR, &fd, err);
    if (rc < 0)
        return rc;
    if (pwrite(fd, restore->record.control, CONTROL_LEN, 0) != CONTROL_LEN || fsync(fd) < 0)
        return err_sys(err, ERR_DEVICE, "write pg_control");
    return 0;
}

static int sync_volumes(const struct restore *restore, struct err *err)
{
    for (size_t i = 0; i < restore->volume_count; i++) {
        const char *path = restore->volumes[i].mount_point;
        close_fd int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || syncfs(fd) < 0)
            return err_sys(err, ERR_DEVICE, "sync '%s'", path);
    }
    return 0;
}

/* --- all of it -------------------------------------------------------------------------------- */

static int configure(struct restore *restore, struct err *err)
{
    int rc = set_owner(restore, err);
    if (rc == 0)
        rc = fix_links(restore, err);
    if (rc == 0)
        rc = restore_check_links(restore, err);
    if (rc == 0)
        rc = restore_clean(restore, err);
    if (rc == 0)
        rc = restore_put_config(restore, err);
    restore_forget_settings(restore);
    if (rc == 0)
        rc = restore_check_isolation(restore, err);
    if (rc == 0)
        rc = restore_write_settings(restore, err);
    if (rc == 0)
        rc = place_partial(restore, err);
    if (rc == 0)
        rc = write_recovery_files(restore, err);
    restore_test_stop("configured-files");
    if (rc == 0)
        rc = sync_volumes(restore, err);
    restore_permit_revoke(restore); /* from here on only that would keep a server from starting */
    if (rc == 0)
        rc = write_control(restore, err);
    restore_test_stop("configured-control");
    return rc;
}

int restore_configure(struct restore *restore, struct err *err)
{
    bool withheld;
    int rc = restore_mount(restore, err);
    if (rc == 0)
        rc = restore_check_directories(restore, err);
    if (rc == 0)
        rc = control_is_withheld(restore, &withheld, err);
    if (rc < 0)
        return rc;
    if (!withheld) {
        restore_forget_settings(restore);
        log_info("pg_control is there: the configuration was finished before");
        return 0;
    }
    rc = restore_permit_grant(restore, err);
    return rc < 0 ? rc : configure(restore, err);
}
