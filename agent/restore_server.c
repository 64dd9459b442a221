/* The PostgreSQL of this host before a restore: the right version, the right cluster, settings that
 * replay will not stumble over. Read-only. */
#include "agent/restore.h"
#include "agent/repository_access.h"
#include "agent/pg.h"
#include "agent/process.h"

#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

enum { GET_TIMEOUT_S = 120 };

/* "postgres (PostgreSQL) 15.20 (Debian …)" → 15 */
static int check_version(struct restore *restore, struct err *err)
{
    const char *argv[] = {"postgres", "--version", NULL};
    free_mem char *text = NULL;
    int rc = pg_run(&restore->conf, argv, &text, err);
    unsigned recorded = restore->record.pg_version_num / 10000, here = 0;
    if (rc < 0) {
        (void)err_prefix(err, "PostgreSQL %u in '%s'", recorded, restore->conf.bin_directory);
        return err_hint(err, "install postgresql-%u, or set bin_directory", recorded);
    }
    const char *number = text;
    for (; *number && (*number < '0' || *number > '9'); number++)
        ;
    if (sscanf(number, "%u", &here) != 1 || here != recorded) {
        (void)err_set(err, ERR_REFUSED,
                      "the snapshot is of PostgreSQL %u, but '%s' holds PostgreSQL %u", recorded,
                      restore->conf.bin_directory, here);
        return err_hint(err, "install postgresql-%u, or set bin_directory", recorded);
    }
    return 0;
}

/* A server that runs in our data directory, or an old pg_control there, must be of this cluster. */
int restore_check_system(struct restore *restore, bool running, struct err *err)
{
    struct pg_control control;
    struct err ignored;
    const char *dir = restore->data_directory;
    if (pg_control_read(&restore->conf, dir, &control, &ignored) < 0) {
        if (!running)
            return 0; /* nothing to read there: destroyed, not mounted, or never made */
        *err = ignored;
        return err_prefix(err, "PostgreSQL runs in '%s', but", dir);
    }
    if (control.system_id == restore->record.system_id)
        return 0;
    bool by_person = !restore->request.cluster_job; /* a coordinator names whatever is mounted */
    for (size_t i = 0; by_person && i < restore->volume_count; i++)
        if (restore->volumes[i].holds_control && restore->volumes[i].named && !running)
            return 0;
    (void)err_set(err, ERR_REFUSED,
                  "'%s' belongs to another cluster: system identifier %llu, the snapshot has %llu",
                  dir, (unsigned long long)control.system_id,
                  (unsigned long long)restore->record.system_id);
    return err_hint(err, "stop that server and move its data away first");
}

static bool lower_than(const char *here, const json_t *recorded, char *ret_text, size_t size)
{
    unsigned long long want = 0, have = 0;
    if (json_is_integer(recorded))
        want = (unsigned long long)json_integer_value(recorded);
    else if (!json_is_string(recorded) || sscanf(json_string_value(recorded), "%llu", &want) != 1)
        return false;
    (void)snprintf(ret_text, size, "%llu", want);
    return sscanf(here, "%llu", &have) == 1 && have < want;
}

/* The files of this node win, and there are some. */
static bool keeps_config(const struct restore *restore)
{
    char path[CONF_PATH_MAX + 32];
    (void)snprintf(path, sizeof(path), "%s/PG_VERSION", restore->data_directory);
    return !restore->request.config_image && access(path, R_OK) == 0;
}

static int refuse_lower(const struct restore *restore, const char *list, struct err *err)
{
    (void)err_set(err, ERR_REFUSED, "%s", list);
    return err_hint(err, restore->request.cluster_job
                             ? "recovery would stop before its target: raise it in this node's "
                               "configuration, which is kept"
                             : "recovery would stop before its target: raise it, or restore with "
                               "--server-config=image");
}

/* Replay pauses or ends when one of these is below what the primary had (FACTS). */
static int check_settings(struct restore *restore, struct err *err)
{
    const char *const *names = record_replay_settings;
    char want[32], list[512] = "";
    if (!keeps_config(restore))
        return 0;
    restore_read_settings(restore, names);
    int rc = restore_check_written_paths(restore, err); /* these files will be kept */
    if (rc < 0)
        return rc;
    for (size_t i = 0; names[i]; i++) {
        const char *here = restore_setting(restore, names[i]);
        const json_t *recorded = json_object_get(restore->record.settings, names[i]);
        size_t len = strlen(list);
        if (here && recorded && lower_than(here, recorded, want, sizeof(want)))
            (void)snprintf(list + len, sizeof(list) - len,
                           "%s%s = %s here is lower than the snapshot's %s", len ? ", " : "",
                           names[i], here, want);
    }
    return list[0] ? refuse_lower(restore, list, err) : 0;
}

static void add_settings(struct restore *restore, const char *const *names, json_t *to)
{
    bool keep = keeps_config(restore);
    if (keep)
        restore_read_settings(restore, names);
    for (size_t i = 0; names[i]; i++) {
        const char *here = keep ? restore_setting(restore, names[i]) : NULL;
        if (here)
            (void)json_object_set_new(to, names[i], json_string(here));
        else
            (void)json_object_set(to, names[i],
                                  json_object_get(restore->record.settings, names[i]));
    }
}

json_t *restore_plan_settings(struct restore *restore)
{
    static const char *const standbys[] = {"synchronous_standby_names", "cluster_name", NULL};
    json_t *object = json_object();
    add_settings(restore, record_replay_settings, object);
    add_settings(restore, standbys, object);
    return object;
}

/* --- the way to the WAL ----------------------------------------------------------------------- */

static int run_get(struct restore *restore, const char *name, const char *path, int want,
                   struct err *err)
{
    free_mem char *command = NULL;
    char errors[512];
    int status;
    int rc = restore_get_command(restore, name, path, &command, err);
    if (rc < 0)
        return rc;
    char line[PATH_MAX + 2 * CONF_PATH_MAX];
    (void)snprintf(line, sizeof(line), "%s --get-timeout=1s --prefetch=0", command);
    const char *argv[] = {"/bin/sh", "-c", line, NULL};
    struct process_options options = PROCESS_OPTIONS_INIT;
    options.argv = argv;
    options.user = restore->conf.os_user;
    options.timeout_s = GET_TIMEOUT_S;
    options.cancel = &restore->job->progress.cancel;
    rc = process_run(&options, &status, NULL, errors, sizeof(errors), err);
    if (rc < 0 || status == want)
        return rc;
    (void)err_set(err, ERR_REFUSED, "the server's user '%s' cannot fetch WAL (status %d): %s",
                  restore->conf.os_user, status, errors);
    if (restore->repo.cipher != REPO_PLAIN && !restore->conf.wal_key_file[0])
        return err_hint(err, "the repository is encrypted: `tidemark key wal FILE` makes a key "
                             "file for it; then [wal] key_file or --wal-key-file=FILE");
    if (repository_needs_credentials(&restore->conf))
        return err_hint(err, "give it keys in a file of its own, mode 0600: [wal] credentials_file "
                             "or --wal-credentials-file=FILE");
    return err_hint(err, "it has to read %s: is it in the group of the repository?",
                    restore->conf.repository_url);
}

/* The restore_command itself, run by the user that will run it: what it cannot read would come out
 * when the old data is gone. Without WAL in the repository, a file that nobody has. Once a job: the
 * executing run finds the earlier plan. */
static int check_wal_access(struct restore *restore, struct err *err)
{
    if (json_object_get(restore->job->journal, "plan"))
        return 0;
    const struct record *record = &restore->record;
    char directory[] = "/tmp/tidemark-plan-XXXXXX", path[64], name[25], home[256];
    bool archived = restore->target != TARGET_SNAPSHOT;
    uid_t uid;
    gid_t gid;
    int rc = process_user(restore->conf.os_user, &uid, &gid, home, err);
    if (rc < 0)
        return rc;
    if (!mkdtemp(directory) || chown(directory, uid, gid) < 0)
        return err_sys(err, ERR_INTERNAL, "make a directory below /tmp");
    (void)snprintf(path, sizeof(path), "%s/segment", directory);
    (void)snprintf(name, sizeof(name), "FFFFFFFF.history");
    if (archived)
        pg_segment_name(record->timeline, record->start_lsn / record->segment_size,
                        record->segment_size, name);
    rc = run_get(restore, name, path, archived ? 0 : 1, err);
    (void)unlink(path);
    (void)rmdir(directory);
    return rc;
}

/* --- all of it -------------------------------------------------------------------------------- */

int restore_check_server(struct restore *restore, json_t *warnings, struct err *err)
{
    enum pg_state state;
    int rc = check_version(restore, err);
    if (rc == 0)
        rc = pg_server_state(&restore->conf, &state, NULL, err);
    if (rc < 0)
        return rc;
    restore->server_was_running = state != PG_STOPPED;
    rc = restore_is_handover(restore) ? 0 : restore_check_patroni(restore, err);
    if (rc < 0)
        return rc;
    rc = restore_check_system(restore, restore->server_was_running, err);
    if (rc == 0)
        rc = check_settings(restore, err);
    if (rc == 0)
        rc = check_wal_access(restore, err);
    bool has_unit = restore->conf.manager == MANAGER_SYSTEMD ||
                    (restore->conf.manager == MANAGER_PATRONI && restore->conf.manager_arg[0]);
    if (rc == 0 && !has_unit && !restore_is_handover(restore))
        json_append_text(warnings,
                         "without manager = systemd nothing but the missing pg_control keeps "
                         "the server from being started while it is restored");
    return rc;
}
