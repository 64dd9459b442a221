/* Checks of the server and of its archiving: its settings, what its user may do, and a segment that
 * has to arrive in this very repository. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/archive_lag.h"
#include "agent/archive_proof.h"
#include "agent/check.h"
#include "agent/other_primary.h"
#include "agent/process.h"
#include "agent/program.h"
#include "agent/repository_access.h"
#include "agent/snapshot.h"
#include "agent/text.h"
#include "agent/wal_command.h"
#include "agent/wal_report.h"

enum { TEST_TIMEOUT_S = 30 };

static int setting(struct pg_session *session, const char *name, char **ret, struct err *err)
{
    const char *params[] = {name, NULL};
    int rc = pg_query_text(session, "select current_setting($1)", params, ret, err);
    if (rc == 0 && !*ret)
        return err_set(err, ERR_POSTGRES, "setting %s is null", name);
    return rc;
}

static int check_settings(struct pg_session *session, struct err *err)
{
    free_mem char *mode = NULL;
    free_mem char *command = NULL;
    free_mem char *level = NULL;
    int rc = setting(session, "archive_mode", &mode, err);
    if (rc == 0)
        rc = setting(session, "archive_command", &command, err);
    if (rc == 0)
        rc = setting(session, "wal_level", &level, err);
    if (rc != 0 || !mode || !command || !level)
        return rc;
    if (strcmp(mode, "off") == 0) {
        (void)err_set(err, ERR_REFUSED, "archive_mode is off: no restore could go past a snapshot");
        return err_hint(err, "set archive_mode = on and archive_command = 'tidemark-wal push %%p', "
                             "or take snapshots with --no-archive");
    }
    if (strcmp(level, "minimal") == 0) {
        (void)err_set(err, ERR_REFUSED, "wal_level is minimal: its WAL cannot be replayed");
        return err_hint(err, "set wal_level = replica and restart the server");
    }
    if (!strstr(command, "tidemark-wal push")) {
        (void)err_set(err, ERR_REFUSED, "archive_command does not call tidemark-wal push");
        return err_hint(err, "archive_command = 'tidemark-wal push %%p'");
    }
    return 0;
}

/* What tidemark-wal reads, changed since then: what failed may have been put right. NULL: none. */
static const char *changed_since(const struct conf *conf, int64_t time_s)
{
    const char *files[] = {conf->file, conf->wal_key_file,
                           repository_credentials_file(conf, REPOSITORY_WAL)};
    struct stat st;
    for (size_t i = 0; i < ARRAY_LEN(files); i++)
        if (files[i][0] && stat(files[i], &st) == 0 && st.st_mtim.tv_sec > time_s)
            return files[i];
    return NULL;
}

/* With the reason, where tidemark-wal could leave it. */
static int failing_archiver(const struct conf *conf, const char *name, int64_t failed_s,
                            struct err *err)
{
    char directory[CONF_PATH_MAX + 16], when[TEXT_TIME_LEN];
    struct err failure;
    const char *changed = changed_since(conf, failed_s);
    text_time(failed_s, when);
    (void)snprintf(directory, sizeof(directory), "%s/pg_wal", conf->data_directory);
    bool told = conf->data_directory[0] && wal_report_read(conf, directory, name, &failure);
    if (told)
        *err = failure;
    else
        (void)err_set(err, ERR_REFUSED, "its command failed");
    if (!told)
        (void)err_hint(err, "the server's log says why");
    if (!changed)
        return err_prefix(err, "archiving of %s fails, last at %s", name, when);
    (void)err_prefix(err, "archiving of %s failed at %s, before '%s' was changed", name, when,
                     changed);
    return err_hint(err, "PostgreSQL tries again within a minute: check again after that");
}

/* A command that has been failing since its last success is a server that does not archive. */
static int check_archiver(const struct conf *conf, struct pg_session *session, struct err *err)
{
    free_json json_t *rows = NULL;
    int rc = check_settings(session, err);
    if (rc == 0)
        rc = pg_query(session,
                      "select last_failed_wal, floor(extract(epoch from last_failed_time))::text "
                      "from pg_stat_archiver where "
                      "last_failed_time > coalesce(last_archived_time, '-infinity')",
                      NULL, 0, &rows, err);
    const json_t *row = json_array_get(rows, 0);
    const char *failing = json_string_value(json_array_get(row, 0));
    const char *failed_s = json_string_value(json_array_get(row, 1));
    if (rc == 0 && failing && failed_s)
        return failing_archiver(conf, failing, strtoll(failed_s, NULL, 10), err);
    return rc;
}

/* A directory: to be written. */
static int check_directory_user(const struct conf *conf, const char *directory, struct err *err)
{
    static const char script[] = "d=$1; [ -d \"$d/wal\" ] && d=$d/wal; [ -w \"$d\" ]";
    const char *argv[] = {"/bin/sh", "-c", script, "sh", directory, NULL};
    struct process_options options = PROCESS_OPTIONS_INIT;
    char errors[128];
    int status;
    options.argv = argv;
    options.user = conf->os_user;
    options.timeout_s = TEST_TIMEOUT_S;
    int rc = process_run(&options, &status, NULL, errors, sizeof(errors), err);
    if (rc < 0 || status == 0)
        return rc;
    (void)err_set(err, ERR_STORE, "the server's user '%s' cannot write to the repository",
                  conf->os_user);
    return err_hint(err,
                    "wal/ and all in it belong to [repository] group, mode 2770: is '%s' in that "
                    "group, and was the server restarted since?",
                    conf->os_user);
}

/* A bucket: with the keys of tidemark-wal, as it finds them, a file is asked for that nobody has; 1
 * means that the repository answered. Keys that are in the environment of the server cannot be
 * tried from here. */
static int check_bucket_user(const struct conf *conf, struct pg_session *session, struct err *err)
{
    static const char sql[] = "select system_identifier from pg_control_system()";
    free_mem char *id = NULL;
    char program[PATH_MAX], file[CONF_PATH_MAX + 16], system_id[48], errors[512];
    int status;
    if (!conf->file[0] || !repository_credentials_file(conf, REPOSITORY_WAL)[0])
        return 0;
    int rc = pg_query_text(session, sql, NULL, &id, err);
    if (rc == 0)
        rc = program_find("tidemark-wal", program, err);
    if (rc < 0)
        return rc;
    (void)snprintf(file, sizeof(file), "--config=%s", conf->file);
    (void)snprintf(system_id, sizeof(system_id), "--system-id=%llu",
                   (unsigned long long)strtoll(id ? id : "0", NULL, 10)); /* shown signed */
    const char *argv[] = {program, "get",     "FFFFFFFF.history", "/nonexistent/history",
                          file,    system_id, "--get-timeout=5s", "--prefetch=0",
                          NULL};
    struct process_options options = PROCESS_OPTIONS_INIT;
    options.argv = argv;
    options.user = conf->os_user;
    options.timeout_s = TEST_TIMEOUT_S;
    rc = process_run(&options, &status, NULL, errors, sizeof(errors), err);
    if (rc < 0 || status == WAL_EXIT_ABSENT)
        return rc;
    (void)err_set(err, ERR_AUTH, "the server's user '%s' cannot use the repository: %s",
                  conf->os_user, errors);
    return err_hint(err,
                    "'%s' has to be able to read '%s' and good keys: [wal] credentials_file, a "
                    "file of its own with mode 0600, or root's with its group and 0640",
                    conf->os_user, conf->file);
}

/* archive_command runs as the server's user; only root can try what that one may do. */
static int check_archive_user(const struct conf *conf, struct pg_session *session, struct err *err)
{
    const char *directory = repository_directory(conf);
    if (geteuid() != 0)
        return 0;
    return directory ? check_directory_user(conf, directory, err)
                     : check_bucket_user(conf, session, err);
}

static int no_directory(const struct conf *conf, struct err *err)
{
    (void)err_sys(err, ERR_CONFIG, "data_directory '%s'", conf->data_directory);
    return err_hint(err, "correct `data_directory` in section [postgresql], or mount its volume");
}

/* The configured data directory is there, and is the one of the server that answers. */
static int check_data_directory(const struct conf *conf, struct pg_session *session,
                                struct err *err)
{
    free_mem char *actual = NULL;
    struct stat here, there;
    if (!conf->data_directory[0])
        return 0;
    if (stat(conf->data_directory, &here) < 0)
        return errno == ENOENT || errno == ENOTDIR ? no_directory(conf, err) : 0;
    int rc = session ? setting(session, "data_directory", &actual, err) : 0;
    if (!actual || stat(actual, &there) < 0 ||
        (here.st_dev == there.st_dev && here.st_ino == there.st_ino))
        return rc;
    (void)err_set(err, ERR_CONFIG,
                  "the server has data directory '%s', but `data_directory` is '%s'", actual,
                  conf->data_directory);
    return err_hint(err, "correct `connection` or `data_directory` in section [postgresql]");
}

int check_server(struct check *check, struct err *err)
{
    const struct conf *conf = check->conf;
    free_mem char *version = NULL;
    int rc = check_data_directory(conf, NULL, err);
    if (rc == 0)
        rc = pg_open(conf, NULL, &check->session, err);
    if (rc == 0)
        rc = setting(check->session, "server_version", &version, err);
    if (rc == 0)
        rc = check_data_directory(conf, check->session, err);
    (void)snprintf(check->detail, sizeof(check->detail), "%s", version ? version : "");
    if (rc < 0) { /* nothing else is asked of a server that is another one */
        pg_close(check->session);
        check->session = NULL;
    }
    if (rc < 0 || conf->data_directory[0])
        return rc;
    return check_warning(
        err, "it answers, but data_directory is not set",
        "set it in section [postgresql]: a restore and `tidemark status` go by it");
}

/* As a snapshot asks it: everything that a restore brings back lies on the volumes. */
int check_layout(struct check *check, struct err *err)
{
    if (!check->group || !check->session) /* rows of their own say why */
        return CHECK_NONE;
    struct snapshot *snapshot = calloc(1, sizeof(*snapshot)); /* large */
    if (!snapshot)
        return err_set(err, ERR_INTERNAL, "out of memory");
    snapshot->conf = check->conf;
    snapshot->session = check->session;
    snapshot->group = *check->group;
    int rc = snapshot_pg_read_places(snapshot, err);
    if (rc == 0)
        rc = snapshot_check_layout(snapshot, err);
    (void)snprintf(check->detail, sizeof(check->detail),
                   "data directory, pg_wal and tablespaces (%zu) are on the volumes",
                   snapshot->record.tablespace_count);
    record_release(&snapshot->record);
    free(snapshot);
    return rc;
}

/* --- what waits to be archived ---------------------------------------------------------------- */

/* Before a segment is asked for: that one would be at the backlog's end. */
int check_backlog(struct check *check, struct err *err)
{
    const int64_t now_s = (int64_t)time(NULL);
    free_json json_t *archiving = NULL;
    int rc = check->session ? archive_lag_read(check->conf, check->session, &archiving, err) : 0;
    if (rc < 0 || !json_is_object(archiving))
        return rc < 0 ? rc : CHECK_NONE;
    archive_lag_text(archiving, now_s, check->detail);
    if (archive_lag_age(archiving, now_s) <= (int64_t)check->conf->wal_archive_timeout_s)
        return 0;
    return check_warning(err, check->detail,
                         "pg_wal keeps all of it until the repository has it: see archiving, and "
                         "the room on its filesystem");
}

/* --- a segment has to arrive ------------------------------------------------------------------ */

static int query_u64(struct pg_session *session, const char *sql, uint64_t *ret, struct err *err)
{
    free_mem char *text = NULL;
    int rc = pg_query_text(session, sql, NULL, &text, err);
    if (rc == 0)
        *ret = (uint64_t)strtoll(text ? text : "0", NULL, 10); /* shown signed */
    return rc;
}

/* What the server says of its archiving is not the proof: another repository would do for it. */
static int prove(struct check *check, struct err *err)
{
    char directory[CONF_PATH_MAX + 16];
    free_mem char *data_directory = NULL;
    struct wal_archive archive = {.store = check->store, .repo = &check->repo};
    struct archive_proof proof = {
        .conf = check->conf,
        .session = check->session,
        .archive = &archive,
        .wal_directory = directory,
        .timeout_s = (unsigned)min_u64(CHECK_ARCHIVE_S, check->conf->wal_archive_timeout_s)};
    int rc = query_u64(check->session, "select system_identifier from pg_control_system()",
                       &archive.system_id, err);
    if (rc == 0)
        rc = setting(check->session, "data_directory", &data_directory, err);
    if (rc < 0)
        return rc;
    (void)snprintf(archive.cluster, sizeof(archive.cluster), "%s", check->conf->cluster);
    (void)snprintf(directory, sizeof(directory), "%s/pg_wal", data_directory);
    rc = archive_prove(&proof, err);
    if (rc == 0)
        (void)snprintf(check->detail, sizeof(check->detail),
                       "segment %s was ended and is in the repository", proof.segment);
    return rc;
}

/* A standby writes no WAL of its own. */
static int check_by_role(struct check *check, struct err *err)
{
    uint64_t standby = 0;
    int rc = query_u64(check->session, "select pg_is_in_recovery()::int", &standby, err);
    if (rc < 0 || !standby)
        return rc < 0 ? rc : prove(check, err);
    (void)snprintf(check->detail, sizeof(check->detail),
                   "a standby: whether its primary archives is checked there");
    return 0;
}

int check_archiving(struct check *check, struct err *err)
{
    if (!check->session) /* its own row says why */
        return CHECK_NONE;
    if (!check->store) {
        (void)err_set(err, ERR_STORE, "there is no repository to archive to");
        return err_hint(err, "see the check of the repository");
    }
    int rc = check_archive_user(check->conf, check->session, err);
    if (rc == 0)
        rc = check_archiver(check->conf, check->session, err);
    return rc < 0 ? rc : check_by_role(check, err);
}

/* Of a primary: that no other one runs. Who cannot be reached holds nothing up. */
static int check_alone(struct check *check, struct err *err)
{
    char where[OTHER_PRIMARY_TEXT];
    free_mem char *system_id = NULL;
    int rc =
        pg_query_text(check->session, "select system_identifier::text from pg_control_system()",
                      NULL, &system_id, err);
    if (rc < 0 || !system_id || !other_primary_find(check->conf, system_id, true, where))
        return rc < 0 ? rc : CHECK_NONE;
    (void)err_set(err, ERR_REFUSED,
                  "this server takes writes, and so does another one of this cluster, at %s: two "
                  "branches that nobody can merge",
                  where);
    return err_hint(err, "stop the one that the cluster went on without, mostly the one on the "
                         "lower timeline, and make it a standby (pg_rewind, pg_basebackup)");
}

int check_standby(struct check *check, struct err *err)
{
    uint64_t standby = 0;
    if (!check->session)
        return CHECK_NONE;
    int rc = query_u64(check->session, "select pg_is_in_recovery()::int", &standby, err);
    if (rc < 0 || !standby)
        return rc < 0 ? rc : check_alone(check, err);
    struct snapshot *snapshot = calloc(1, sizeof(*snapshot)); /* large */
    if (!snapshot)
        return err_set(err, ERR_INTERNAL, "out of memory");
    snapshot->conf = check->conf;
    snapshot->session = check->session;
    rc = snapshot_standby_open(snapshot, err);
    pg_close(snapshot->primary);
    free(snapshot);
    if (rc < 0) {
        (void)err_prefix(err, "there can be no snapshot of this standby");
        return CHECK_WARNING;
    }
    (void)snprintf(check->detail, sizeof(check->detail),
                   "answers, and lets a snapshot of this standby make its restore point");
    return 0;
}
