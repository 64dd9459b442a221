/* A cold snapshot: the server is stopped, its volumes are not mounted or mounted read-only. There
 * is no label and no restore point; the WAL is in the image, and a restore of it is a crash
 * recovery of what a clean shutdown left (target `snapshot`).
 *
 * What a restore must know comes from the files. A volume that is not mounted is mounted read-only
 * at its configured mount point in a mount namespace of this job's own, without log replay, so that
 * not one block of it is written; the mount ends with the process. */
#include "agent/snapshot.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pwd.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "agent/log.h"

/* --- mounts ----------------------------------------------------------------------------------- */

static int check_stopped(const struct snapshot *snapshot, struct err *err)
{
    enum pg_state state;
    int pid = 0;
    int rc = pg_server_state(snapshot->conf, &state, &pid, err);
    if (rc < 0 || state == PG_STOPPED)
        return rc;
    (void)err_set(err, ERR_REFUSED, "provider is offline, but the server runs (process %d)", pid);
    return err_hint(err,
                    "stop the server and mount its volumes read-only, or use another provider");
}

/* Slave, not private: what the host unmounts meanwhile goes away here too and does not stay busy.
 */
static int private_namespace(struct err *err)
{
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
        return err_sys(err, ERR_DEVICE, "make a mount namespace");
    return 0;
}

/* Without log replay: "ro" alone would write to a volume that was not cleanly unmounted. */
static const char *no_replay(const char *fs_type)
{
    return strcmp(fs_type, "xfs") == 0 ? "norecovery,nouuid" : "noload";
}

static int mount_volume(const struct conf_volume *volume, bool *ret_namespace, struct err *err)
{
    struct device_identity identity;
    struct device_use use;
    if (!volume->device[0])
        return 0; /* what is mounted there */
    int rc = device_identify(volume->device, &identity, err);
    if (rc == 0)
        rc = device_check_use(&identity, &use, err);
    if (rc < 0 || use.mounted)
        return rc;
    if (!*ret_namespace && (rc = private_namespace(err)) < 0)
        return rc;
    *ret_namespace = true;
    return volume_mount(identity.path, volume->mount, identity.fs_type, no_replay(identity.fs_type),
                        true, err);
}

int snapshot_offline_mount(struct snapshot *snapshot, struct err *err)
{
    bool has_namespace = false;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < snapshot->conf->volume_count; i++)
        rc = mount_volume(&snapshot->conf->volumes[i], &has_namespace, err);
    return rc;
}

/* --- facts ------------------------------------------------------------------------------------ */

static int read_version(struct snapshot *snapshot, struct err *err)
{
    struct record *record = &snapshot->record;
    char path[PATH_MAX], text[32] = "";
    (void)snprintf(path, sizeof(path), "%s/PG_VERSION", record->data_directory);
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
        return err_sys(err, ERR_DEVICE, "read '%s'", path);
    text[strcspn(text, "\n")] = '\0';
    record->pg_version_num = (uint32_t)strtoul(text, NULL, 10) * 10000;
    (void)snprintf(record->pg_version, sizeof(record->pg_version), "%s", text);
    return record->pg_version_num >= 150000
               ? 0
               : err_set(err, ERR_REFUSED, "PostgreSQL %s is too old: 15 or newer is needed", text);
}

static void add_setting(json_t *settings, const char *name, uint64_t value)
{
    char text[32];
    (void)snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
    json_object_set_new(settings, name, json_string(text));
}

/* "shut down" and nothing else: "in production" is a crash that nobody recovered from, and "shut
 * down in recovery" is a standby, whose image needs what only its primary knows. */
static int read_control(struct snapshot *snapshot, struct err *err)
{
    struct record *record = &snapshot->record;
    struct pg_control control;
    int rc = pg_control_read(snapshot->conf, record->data_directory, &control, err);
    if (rc < 0)
        return rc;
    if (strcmp(control.state, "shut down") != 0) {
        (void)err_set(err, ERR_REFUSED, "the server was not shut down cleanly: its state is '%s'",
                      control.state);
        return err_hint(err, "start it, let it recover, and stop it");
    }
    record->system_id = control.system_id;
    record->timeline = control.timeline;
    record->segment_size = control.segment_size;
    record->block_size = control.block_size;
    record->data_checksums = control.checksums;
    record->start_lsn = record->stop_lsn = record->tag_lsn = control.checkpoint_lsn;
    record->wal_in_image = true;
    record->settings = json_object();
    add_setting(record->settings, "max_connections", control.max_connections);
    add_setting(record->settings, "max_worker_processes", control.max_worker_processes);
    add_setting(record->settings, "max_wal_senders", control.max_wal_senders);
    add_setting(record->settings, "max_prepared_transactions", control.max_prepared_xacts);
    add_setting(record->settings, "max_locks_per_transaction", control.max_locks_per_xact);
    record->topology =
        json_pack("{s:[{s:s,s:s}]}", "nodes", "node", record->node, "role", "primary");
    return 0;
}

/* `postgres -C name` knows a setting without a server; it fails where the configuration is not in
 * the data directory, and then to is left as it is. */
static void ask_setting(struct snapshot *snapshot, const char *name, char *to, size_t size)
{
    const char *argv[] = {"postgres", "-D", snapshot->record.data_directory, "-C", name, NULL};
    free_mem char *output = NULL;
    struct err ignored;
    if (pg_run(snapshot->conf, argv, &output, &ignored) < 0 || !output)
        return;
    (void)snprintf(to, size, "%.*s", (int)strcspn(output, "\n,"), output);
}

static int read_config(struct snapshot *snapshot, struct err *err)
{
    static const char *const names[] = {"postgresql.conf", "postgresql.auto.conf", "pg_hba.conf",
                                        "pg_ident.conf"};
    struct record *record = &snapshot->record;
    char path[PATH_MAX], port[16] = "5432";
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(names); i++) {
        (void)snprintf(path, sizeof(path), "%s/%s", record->data_directory, names[i]);
        rc = snapshot_add_config_file(snapshot, path, err);
    }
    ask_setting(snapshot, "port", port, sizeof(port));
    ask_setting(snapshot, "unix_socket_directories", record->socket_directory,
                sizeof(record->socket_directory));
    record->port = (uint16_t)strtoul(port, NULL, 10);
    return rc;
}

/* The links of pg_tblspc; in-place tablespaces are plain directories there. */
static int read_tablespaces(struct snapshot *snapshot, struct err *err)
{
    struct record *record = &snapshot->record;
    char path[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/pg_tblspc", record->data_directory);
    DIR *directory = opendir(path);
    if (!directory)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    record->tablespaces = calloc(RECORD_TABLESPACES_MAX, sizeof(*record->tablespaces));
    int rc = record->tablespaces ? 0 : err_set(err, ERR_INTERNAL, "out of memory");
    for (const struct dirent *entry; rc == 0 && (entry = readdir(directory));) {
        char target[sizeof(record->tablespaces->location)];
        ssize_t len = readlinkat(dirfd(directory), entry->d_name, target, sizeof(target) - 1);
        if (len <= 0)
            continue;
        if (record->tablespace_count == RECORD_TABLESPACES_MAX) {
            rc = err_set(err, ERR_REFUSED, "more than %d tablespaces", RECORD_TABLESPACES_MAX);
            break;
        }
        target[len] = '\0';
        struct record_tablespace *to = &record->tablespaces[record->tablespace_count++];
        to->oid = (uint32_t)strtoul(entry->d_name, NULL, 10);
        (void)snprintf(to->name, sizeof(to->name), "%.60s", entry->d_name);
        memcpy(to->location, target, sizeof(target));
    }
    (void)closedir(directory);
    return rc;
}

static int read_paths(struct snapshot *snapshot, struct err *err)
{
    struct record *record = &snapshot->record;
    char pg_wal[PATH_MAX];
    struct stat st;
    if (!snapshot->conf->data_directory[0])
        return err_set(err, ERR_CONFIG, "an offline snapshot needs `data_directory`");
    int rc = snapshot_resolve(snapshot->conf->data_directory, record->data_directory,
                              sizeof(record->data_directory), err);
    if (rc < 0)
        return rc;
    (void)snprintf(pg_wal, sizeof(pg_wal), "%s/pg_wal", record->data_directory);
    rc = snapshot_resolve(pg_wal, record->wal_directory, sizeof(record->wal_directory), err);
    if (rc == 0 && stat(record->data_directory, &st) < 0)
        rc = err_sys(err, ERR_DEVICE, "stat '%s'", record->data_directory);
    if (rc < 0)
        return rc;
    const struct passwd *account = getpwuid(st.st_uid);
    record->os_uid = st.st_uid;
    record->os_gid = st.st_gid;
    (void)snprintf(record->os_user, sizeof(record->os_user), "%s",
                   account ? account->pw_name : snapshot->conf->os_user);
    (void)snprintf(record->bin_directory, sizeof(record->bin_directory), "%s",
                   snapshot->conf->bin_directory);
    return 0;
}

int snapshot_offline_open(struct snapshot *snapshot, struct err *err)
{
    int rc = check_stopped(snapshot, err);
    if (rc == 0)
        rc = read_paths(snapshot, err);
    if (rc == 0)
        rc = read_version(snapshot, err);
    if (rc == 0 && !snapshot->record.bin_directory[0])
        (void)snprintf(snapshot->record.bin_directory, sizeof(snapshot->record.bin_directory),
                       "/usr/lib/postgresql/%u/bin", snapshot->record.pg_version_num / 10000);
    if (rc == 0)
        rc = read_control(snapshot, err);
    if (rc == 0)
        rc = read_config(snapshot, err);
    if (rc == 0)
        rc = read_tablespaces(snapshot, err);
    return rc;
}
