/* The fence: from here to the end nobody but this job starts the server or writes its volumes.
 *
 * Order: own config files are saved, the server is stopped, the gate is closed durably (so that it
 * holds over a reboot, and nobody commits once the WAL was looked at), WAL that only this server
 * has is pushed, the volumes are unmounted, the devices are opened exclusively. Every failure up to
 * here is answered by restore_fence_lift(). */
#include "agent/restore.h"
#include "agent/cluster_gate.h"
#include "agent/log.h"
#include "agent/pg.h"
#include "agent/process.h"
#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

enum { UNMOUNT_TIMEOUT_S = 30 };

static const char fence_name[] = "fence";
static const char dropin_name[] = "tidemark-fence.conf";

/* --- the gate --------------------------------------------------------------------------------- */

static int write_text(const char *path, const char *text, struct err *err)
{
    close_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "create '%s'", path);
    if (write_all(fd, text, strlen(text)) < 0 || fsync(fd) < 0)
        return err_sys(err, ERR_DEVICE, "write '%s'", path);
    return 0;
}

/* A drop-in, because `systemctl mask` fails for units that lie in /etc/systemd/system (FACTS). */
static void dropin_directory(const struct restore *restore, char *ret, size_t size)
{
    static const char suffix[] = ".service"; /* postgresql@15-db.eu has a dot and no suffix */
    const char *unit = restore->conf.manager_arg;
    size_t len = strlen(unit);
    bool whole = len > sizeof(suffix) - 1 && strcmp(unit + len - (sizeof(suffix) - 1), suffix) == 0;
    (void)snprintf(ret, size, "/etc/systemd/system/%s%s.d", unit, whole ? "" : suffix);
}

static int reload_systemd(struct err *err)
{
    const char *argv[] = {"systemctl", "daemon-reload", NULL};
    struct process_options options = PROCESS_OPTIONS_INIT;
    char errors[256];
    int status;
    options.argv = argv;
    options.timeout_s = 60;
    int rc = process_run(&options, &status, NULL, errors, sizeof(errors), err);
    if (rc == 0 && status != 0)
        rc = err_set(err, ERR_POSTGRES, "systemctl daemon-reload ended with status %d: %s", status,
                     errors);
    return rc;
}

/* The unit that starts the server: its own, or Patroni's. */
static bool has_unit(const struct restore *restore)
{
    return restore->conf.manager == MANAGER_SYSTEMD ||
           (restore->conf.manager == MANAGER_PATRONI && restore->conf.manager_arg[0]);
}

static int close_systemd(const struct restore *restore, const char *fence, struct err *err)
{
    char dir[CONF_PATH_MAX + 64], path[CONF_PATH_MAX + 128], text[CONF_PATH_MAX + 256];
    dropin_directory(restore, dir, sizeof(dir));
    if (mkdir(dir, 0755) < 0 && errno != EEXIST)
        return err_sys(err, ERR_DEVICE, "create '%s'", dir);
    (void)chmod(dir, 0755);
    (void)snprintf(path, sizeof(path), "%s/%s", dir, dropin_name);
    (void)snprintf(text, sizeof(text),
                   "# tidemark: a restore is under way; removed when the server may start\n"
                   "[Unit]\nAssertPathExists=!%s\n",
                   fence);
    int rc = write_text(path, text, err);
    if (rc == 0)
        rc = sync_directory(dir, err);
    if (rc == 0)
        rc = sync_directory("/etc/systemd/system", err);
    return rc < 0 ? rc : reload_systemd(err);
}

int restore_gate_close(struct restore *restore, struct err *err)
{
    char path[CONF_PATH_MAX + 32], text[128];
    restore_state_path(restore, fence_name, path, sizeof(path));
    (void)snprintf(text, sizeof(text), "restore %s\n", restore->job->id);
    int rc = write_text(path, text, err);
    if (rc == 0)
        rc = sync_directory(restore->conf.state_dir, err);
    if (rc == 0 && has_unit(restore))
        rc = close_systemd(restore, path, err);
    return rc;
}

int restore_gate_open(struct restore *restore, struct err *err)
{
    char path[CONF_PATH_MAX + 128];
    if (has_unit(restore)) {
        char dir[CONF_PATH_MAX + 64];
        dropin_directory(restore, dir, sizeof(dir));
        (void)snprintf(path, sizeof(path), "%s/%s", dir, dropin_name);
        bool was_there = unlink(path) == 0;
        (void)rmdir(dir); /* fails, rightly, when the user has drop-ins of his own */
        int rc = was_there ? reload_systemd(err) : 0;
        if (rc < 0)
            return rc;
    }
    restore_state_path(restore, fence_name, path, sizeof(path));
    if (unlink(path) < 0 && errno != ENOENT)
        return err_sys(err, ERR_DEVICE, "remove '%s'", path);
    (void)json_object_del(restore->job->journal, "not_released");
    return sync_directory(restore->conf.state_dir, err);
}

/* --- WAL -------------------------------------------------------------------------------------- */

static struct restore_volume *wal_volume(struct restore *restore)
{
    for (size_t i = 0; i < restore->volume_count; i++)
        if (restore->volumes[i].holds_wal)
            return &restore->volumes[i];
    return NULL;
}

static int refuse_unreadable(const struct restore_volume *volume, struct err *err)
{
    err->code = ERR_REFUSED;
    (void)err_prefix(err, "volume '%s' may hold commits that were never archived", volume->name);
    return err_hint(err, "repair it, or accept their loss with --discard-unarchived-wal");
}

/* A run that begins behind `marked` may find the marker where the plan saw the filesystem. */
static bool is_own_now(const struct restore *restore, const struct restore_volume *volume)
{
    struct device_identity identity;
    struct err ignored;
    return volume->content == CONTENT_OWN &&
           device_identify(volume->given, &identity, &ignored) == 0 &&
           strcmp(identity.fs_uuid, restore->record.volumes[volume->index].fs_uuid) == 0;
}

/* An old volume that nobody has mounted: read-write once, because a journal must be replayed before
 * pg_wal can be believed. Blank, marked, or foreign and named: nothing of ours is on it. */
static int mount_old(struct restore *restore, struct restore_volume *volume, struct err *err)
{
    struct mount_entry entry;
    if (restore_find_mount(volume->mount_point, &entry) || !is_own_now(restore, volume))
        return 0;
    if (access(volume->mount_point, F_OK) < 0 && mkdir(volume->mount_point, 0755) < 0)
        return err_sys(err, ERR_REFUSED, "create '%s'", volume->mount_point);
    int rc = volume_mount(volume->identity.path, volume->mount_point,
                          restore->record.volumes[volume->index].fs_type, volume->mount_options,
                          false, err);
    volume->mounted_by_fence = rc == 0;
    return rc;
}

/* The plan could not look into volumes that were not mounted. */
static int check_old(struct restore *restore, const struct restore_volume *volume, struct err *err)
{
    int rc = 0;
    if (!volume->mounted_by_fence || restore->past_mark)
        return 0;
    if (volume->holds_control)
        rc = restore_check_system(restore, false, err);
    return rc < 0 ? rc : restore_check_other_data(restore, volume, err);
}

/* All of them, for what else they hold. What cannot be mounted counts only where WAL is wanted. */
static int mount_all_old(struct restore *restore, struct err *err)
{
    struct restore_volume *order[RECORD_VOLUMES_MAX];
    restore_mount_order(restore, order);
    for (size_t i = 0; i < restore->volume_count; i++) {
        int rc = mount_old(restore, order[i], err);
        if (rc < 0 && order[i]->holds_wal && !restore->request.discard_unarchived_wal)
            return refuse_unreadable(order[i], err);
        if (rc < 0)
            log_warn("volume '%s' cannot be looked into: %s", order[i]->name, err->text);
    }
    for (size_t i = 0; i < restore->volume_count; i++) {
        int rc = check_old(restore, order[i], err);
        if (rc < 0)
            return rc;
    }
    err_clear(err);
    return 0;
}

/* The loss was accepted, of what cannot be saved: a cluster's restore says so for all its nodes,
 * and the WAL that one has lost another may still hold. */
static int accept_loss(struct restore *restore, int rc, struct err *err)
{
    if (rc >= 0 || rc == -ERR_CANCELLED || !restore->request.discard_unarchived_wal)
        return rc;
    log_warn("WAL that was never archived is given up, as asked for: %s", err->text);
    json_object_set_new(restore->job->journal, "wal_lost", json_string(err->text));
    err_clear(err);
    return 0;
}

/* Where the WAL is: the directory that pg_wal leads to, or the recorded place. */
static int save_wal(struct restore *restore, struct err *err)
{
    struct restore_volume *volume = wal_volume(restore);
    struct mount_entry entry;
    json_t *journal = restore->job->journal;
    uint64_t pushed = 0;
    int rc = mount_all_old(restore, err);
    if (rc < 0 || !volume || !restore_find_mount(volume->mount_point, &entry))
        return rc;
    char directory[CONF_PATH_MAX + 16];
    (void)snprintf(directory, sizeof(directory), "%s/pg_wal", restore->data_directory);
    if (access(directory, F_OK) < 0) /* the data volume is gone, or pg_wal was elsewhere */
        (void)snprintf(directory, sizeof(directory), "%s", restore->wal_directory);
    if (access(directory, F_OK) < 0 && errno == ENOENT)
        return 0;                               /* no server lives on this filesystem any more */
    (void)json_object_del(journal, "wal_lost"); /* what an earlier run could not, this one may */
    rc = accept_loss(restore, restore_salvage(restore, directory, &pushed, err), err);
    if (rc < 0 && rc != -ERR_CANCELLED)
        return refuse_unreadable(volume, err);
    pushed += (uint64_t)json_integer_value(json_object_get(journal, "wal_pushed"));
    json_object_set_new(journal, "wal_pushed", json_integer((json_int_t)pushed));
    return rc;
}

/* --- unmount and open ------------------------------------------------------------------------- */

static int unmount_all(struct restore *restore, bool only_ours, struct err *err)
{
    struct restore_volume *order[RECORD_VOLUMES_MAX];
    struct mount_entry entry;
    restore_mount_order(restore, order);
    for (size_t i = restore->volume_count; i-- > 0;) {
        if (!restore_find_mount(order[i]->mount_point, &entry) ||
            (only_ours && !order[i]->mounted_by_fence))
            continue;
        int rc = volume_unmount(order[i]->mount_point, UNMOUNT_TIMEOUT_S, err);
        if (rc < 0)
            return rc;
        order[i]->mounted_by_fence = false;
    }
    return 0;
}

int restore_unmount(struct restore *restore, struct err *err)
{
    return unmount_all(restore, false, err);
}

/* No gate for a handover: whom it would stop is the Patroni that asks, and asks again after a
 * restart. What keeps the server from starting is that its volume is not mounted. */
static int close_gate(struct restore *restore, struct err *err)
{
    return restore_is_handover(restore) ? 0 : restore_gate_close(restore, err);
}

int restore_fence(struct restore *restore, struct err *err)
{
    bool handover = restore_is_handover(restore);
    int rc = handover ? 0 : restore_check_patroni(restore, err);
    if (rc == 0 && handover && !restore->past_mark)
        rc = restore_handover_check_empty(restore, err);
    if (rc == 0 && !restore->past_mark)
        rc = restore_save_config(restore, err);
    if (rc == 0 && !restore->past_mark)
        restore_commit_write(restore);
    if (rc == 0)
        rc = pg_server_stop(&restore->conf, err);
    restore_test_stop("fenced-stopped");
    if (rc == 0)
        rc = close_gate(restore, err);
    restore_test_stop("fenced-closed");
    if (rc == 0 && !restore->old_gone)
        rc = save_wal(restore, err);
    if (rc == 0)
        rc = restore_check_wal(restore, err);
    restore_test_stop("fenced-pushed");
    if (rc == 0)
        rc = unmount_all(restore, false, err);
    if (rc == 0 && handover)
        rc = restore_handover_shut(restore, err);
    if (rc == 0)
        rc = restore_open_devices(restore, err);
    return rc;
}

/* --- back ------------------------------------------------------------------------------------- */

static int mount_back(struct restore *restore, struct err *err)
{
    struct restore_volume *order[RECORD_VOLUMES_MAX];
    struct mount_entry entry;
    restore_mount_order(restore, order);
    for (size_t i = 0; i < restore->volume_count; i++) {
        const struct restore_volume *volume = order[i];
        char options[512];
        if (!volume->was_mounted || restore_find_mount(volume->mount_point, &entry))
            continue;
        restore_mount_options(volume->was_options, options, sizeof(options));
        int rc = volume_mount(volume->was_device, volume->mount_point, volume->was_type, options,
                              false, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* The cluster went on without it, or may have: as a primary it would be a second one. */
static bool stays_down(struct restore *restore)
{
    char path[CONF_PATH_MAX + 32];
    struct err *why = &restore->kept_down;
    (void)snprintf(path, sizeof(path), "%s/standby.signal", restore->data_directory);
    if (access(path, F_OK) == 0 ||
        (cluster_gate_check(&restore->conf, why) == 0 && restore_second_lift(restore, why) == 0))
        return false;
    log_warn("the fence is lifted, but the old server does not start again: %s", why->text);
    return true;
}

/* The next restore finds the volumes as this one did. */
int restore_fence_keep(struct restore *restore, struct err *err)
{
    restore_close_devices(restore);
    int rc = unmount_all(restore, true, err);
    return rc < 0 ? rc : mount_back(restore, err);
}

int restore_fence_lift(struct restore *restore, struct err *err)
{
    enum pg_state state;
    int rc = restore_fence_keep(restore, err);
    if (rc == 0)
        rc = restore_gate_open(restore, err);
    if (rc == 0)
        rc = pg_server_state(&restore->conf, &state, NULL, err);
    if (rc < 0 || !restore->server_was_running || state != PG_STOPPED || stays_down(restore))
        return rc;
    struct start_options options;
    log_info("the fence is lifted, the old server starts again");
    return pg_server_start(&restore->conf, restore_start_options(restore, &options), err);
}
