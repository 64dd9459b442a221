/* tidemark check: is this node ready for a snapshot, and will a restore find what it needs? One
 * line a check, and a hint below each that failed; the first failure decides the exit status, but
 * all are made. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "agent/capture.h"
#include "agent/pg.h"
#include "agent/process.h"
#include "agent/program.h"
#include "agent/repository.h"
#include "agent/repository_access.h"
#include "agent/volume.h"
#include "agent/wal_command.h"
#include "agent/wal_report.h"
#include "tools/cmd_check.h"

enum { CHECK_RETRY_S = 5, FREE_MIN = 256 << 20 /* bytes */, TEST_TIMEOUT_S = 30 };

/* Members of group tidemark may use the agent, but what belongs to it is root's. The socket itself
 * has a hint of its own. */
static const char *hint_of(const struct err *err)
{
    bool needs_root = err->sys_errno == EACCES && err->code != ERR_AUTH && geteuid() != 0;
    return needs_root ? "run this as root" : err->hint;
}

void check_report(struct check *check, const char *name, int rc, const char *detail,
                  const struct err *err)
{
    const char *hint = rc < 0 ? hint_of(err) : "";
    if (check->cmd->json) {
        free_json json_t *json = json_pack("{s:s, s:b, s:s}", "check", name, "ok", rc == 0,
                                           "detail", rc == 0 ? detail : err->text);
        if (hint[0])
            (void)json_object_set_new(json, "hint", json_string(hint));
        cmd_print_json(json);
    } else {
        (void)printf("%-6s %-14s ", rc == 0 ? "ok" : "FAILED", name);
        cmd_print_text(rc == 0 ? detail : err->text, 0, stdout);
        if (hint[0])
            (void)printf("\n%-21s hint: %s", "", hint);
        (void)putchar('\n');
    }
    if (rc < 0 && check->failed_count++ == 0)
        check->first = err->code;
}

/* "" for a bucket. What a full repository stops first is the archive. */
static int check_free(const struct conf *conf, char ret[48], struct err *err)
{
    const char *directory = repository_directory(conf);
    struct statvfs fs;
    char size[24];
    ret[0] = '\0';
    if (!directory || statvfs(directory, &fs) < 0)
        return 0;
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    cmd_format_size(free_bytes, size);
    (void)snprintf(ret, 48, ", %s free", size);
    if (free_bytes >= FREE_MIN)
        return 0;
    (void)err_set(err, ERR_STORE, "the filesystem of '%s' has only %s free", directory, size);
    return err_hint(err, "free space there, or WAL cannot be archived soon");
}

static int check_repository(const struct conf *conf, char detail[256], struct err *err)
{
    struct store *store;
    struct repo repo;
    char id[ID_TEXT_LEN];
    struct conf hasty = *conf; /* a person waits: a few tries tell enough */
    hasty.repository_retry_timeout_s =
        (unsigned)min_u64(CHECK_RETRY_S, conf->repository_retry_timeout_s);
    int rc = repository_open(&hasty, NULL, &store, &repo, err);
    if (rc < 0)
        return rc;
    store_close(store);
    char space[48];
    id_to_text(repo.id, id);
    rc = check_free(conf, space, err);
    (void)snprintf(detail, 256, "%s, chunks of %u KiB%s", id, repo.chunk_size / 1024, space);
    return rc;
}

static int open_volumes(const struct conf *conf, struct volume_group *group, char detail[256],
                        struct err *err)
{
    int rc = volume_group_open(conf, group, err);
    for (size_t i = 0; rc == 0 && i < group->count; i++) {
        const struct volume *volume = &group->volumes[i];
        size_t len = strlen(detail);
        (void)snprintf(detail + len, 256 - len, "%s%s on %s", i ? ", " : "", volume->conf->name,
                       volume->mounted ? volume->mount_point : volume->device.path);
    }
    return rc;
}

/* What stands behind "ok": a script and a long freeze are not tried for the sake of a check. */
static const char *probed(const struct volume_group *group)
{
    switch (group->volumes[0].conf->provider) {
    case PROVIDER_PRECOPY:
        return "precopy: a write to each volume was seen";
    case PROVIDER_COMMAND:
        return "command: only a snapshot tries snapshot_command";
    case PROVIDER_FREEZE:
        return "freeze: writes will stand still for the whole copy";
    case PROVIDER_OFFLINE:
        return "offline: nobody may write during the copy";
    }
    abort();
}

static void check_volumes(struct check *check)
{
    const struct conf *conf = &check->cmd->conf;
    struct volume_group *group = calloc(1, sizeof(*group)); /* large */
    struct err err;
    char detail[256] = "";
    int rc = group ? open_volumes(conf, group, detail, &err)
                   : err_set(&err, ERR_INTERNAL, "out of memory");
    check_report(check, "volumes", rc, detail, &err);
    if (rc == 0) {
        rc = capture_probe(conf, group, &err);
        check_report(check, "capture", rc, probed(group), &err);
    }
    volume_group_close(group);
    free(group);
}

static int no_file(struct err *err)
{
    (void)err_set(err, ERR_CONFIG, "there is no configuration file");
    return err_hint(err,
                    "`tidemark-agent --print-sample` prints one for /etc/tidemark/tidemark.conf");
}

static int check_state_dir(const struct conf *conf, char detail[256], struct err *err)
{
    if (access(conf->state_dir, W_OK) < 0) {
        (void)err_sys(err, ERR_DEVICE, "write to state_dir '%s'", conf->state_dir);
        return err_hint(err, "run this as root; the agent makes the directory when it starts");
    }
    (void)snprintf(detail, 256, "%s", conf->state_dir);
    return 0;
}

static int setting(struct pg_session *session, const char *name, char **ret, struct err *err)
{
    const char *params[] = {name, NULL};
    int rc = pg_query_text(session, "select current_setting($1)", params, ret, err);
    if (rc == 0 && !*ret)
        return err_set(err, ERR_POSTGRES, "setting %s is null", name);
    return rc;
}

static int check_archiving(struct pg_session *session, struct err *err)
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

/* With the reason, where tidemark-wal could leave it. */
static int failing_archiver(const struct conf *conf, const char *name, struct err *err)
{
    char directory[CONF_PATH_MAX + 16];
    struct err failure;
    (void)snprintf(directory, sizeof(directory), "%s/pg_wal", conf->data_directory);
    if (conf->data_directory[0] && wal_report_read(conf, directory, name, &failure)) {
        *err = failure;
        return err_prefix(err, "archiving of %s fails", name);
    }
    (void)err_set(err, ERR_REFUSED, "archiving of %s fails", name);
    return err_hint(err, "the server's log says why");
}

/* A command that has been failing since its last success is a server that does not archive. */
static int check_archiver(const struct conf *conf, struct pg_session *session, char detail[256],
                          struct err *err)
{
    free_mem char *failing = NULL;
    int rc = check_archiving(session, err);
    if (rc == 0)
        rc = pg_query_text(session,
                           "select max(last_failed_wal) from pg_stat_archiver where "
                           "last_failed_time > coalesce(last_archived_time, '-infinity')",
                           NULL, &failing, err);
    if (rc == 0 && failing)
        return failing_archiver(conf, failing, err);
    (void)snprintf(detail, 256, "archive_command pushes to the repository");
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
                    "its directories belong to [repository] group, mode 2770: is '%s' in that "
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

static int check_archive(const struct check *check, struct pg_session *session, char detail[256],
                         struct err *err)
{
    if (!check->has_repository) {
        (void)err_set(err, ERR_STORE, "there is no repository to archive to");
        return err_hint(err, "see the check of the repository");
    }
    int rc = check_archive_user(&check->cmd->conf, session, err);
    return rc < 0 ? rc : check_archiver(&check->cmd->conf, session, detail, err);
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

static void check_server(struct check *check)
{
    const struct conf *conf = &check->cmd->conf;
    struct pg_session *session = NULL;
    struct err err;
    char detail[256] = "";
    free_mem char *version = NULL;
    int rc = check_data_directory(conf, NULL, &err);
    if (rc == 0)
        rc = pg_open(conf, NULL, &session, &err);
    if (rc < 0) {
        check_report(check, "server", rc, "", &err);
        return;
    }
    rc = setting(session, "server_version", &version, &err);
    if (rc == 0)
        rc = check_data_directory(conf, session, &err);
    check_report(check, "server", rc, version ? version : "", &err);
    rc = check_archive(check, session, detail, &err);
    check_report(check, "archiving", rc, detail, &err);
    pg_close(session);
}

/* A restore that waits for somebody comes before all that it leaves behind. */
static int check_health(const struct conf *conf, struct client *client, struct err *err)
{
    free_json json_t *health = NULL;
    int rc = client_call(client, "GET", "/health", NULL, &health, err);
    if (rc == 0)
        rc = cmd_health_error(health, err);
    if (rc == -ERR_POSTGRES) /* the server has rows of its own */
        rc = 0;
    if (rc < 0 || !json_is_true(json_object_get(health, "stale_configuration")))
        return rc;
    const char *who = conf->coordinator_members[0] ? "coordinator" : "agent";
    (void)err_set(err, ERR_CONFIG, "'%s' was changed after the %s read it", conf->file, who);
    return err_hint(err, "systemctl restart tidemark-%s; jobs go on meanwhile", who);
}

static void check_agent(struct check *check)
{
    const struct conf *conf = &check->cmd->conf;
    struct client *client = NULL;
    struct err err;
    int rc = client_open(conf, CLIENT_AUTO, &client, &err);
    bool local = rc == 0 && client_is_local(client);
    if (rc == 0)
        rc = check_health(conf, client, &err);
    client_close(client);
    check_report(check, conf->coordinator_members[0] ? "coordinator" : "agent", rc,
                 local ? "not running: jobs run from the command line" : "answers", &err);
}

/* An agent shows its certificate to coordinators; who does not listen shows his to agents. */
static int check_tls(const struct conf *conf, char detail[256], struct err *err)
{
    const struct tls_files files = {conf->tls_certificate_file, conf->tls_key_file,
                                    conf->tls_ca_file};
    bool agent = conf->tls_listen[0] && !conf->coordinator_members[0];
    const char *role = agent ? TLS_ROLE_AGENT : TLS_ROLE_COORDINATOR;
    struct tls *tls;
    time_t expires = 0;
    char until[32];
    int rc = tls_load(&files, &tls, err);
    if (rc < 0)
        return rc;
    rc = tls_check_own(tls, role, &expires, err);
    tls_free(tls);
    cmd_format_time((int64_t)expires, until);
    (void)snprintf(detail, 256, "role %s, until %s", role, until);
    return rc;
}

static void check_node(struct check *check)
{
    const struct conf *conf = &check->cmd->conf;
    check_volumes(check);
    check_server(check);
    if (conf->manager == MANAGER_PATRONI)
        check_patroni(check);
}

static int run(struct cmd *cmd, struct err *err)
{
    struct check check = {.cmd = cmd};
    const struct conf *conf = &cmd->conf;
    struct err one;
    char detail[256] = "";
    int rc = conf->file[0] ? 0 : no_file(&one);
    check_report(&check, "configuration", rc, conf->file, &one);
    check_agent(&check);
    rc = check_state_dir(conf, detail, &one);
    check_report(&check, "state_dir", rc, detail, &one);
    if (conf->tls_certificate_file[0]) {
        detail[0] = '\0';
        rc = check_tls(conf, detail, &one);
        check_report(&check, "certificate", rc, detail, &one);
    }
    detail[0] = '\0';
    rc = check_repository(conf, detail, &one);
    check.has_repository = rc == 0 || detail[0];
    check_report(&check, "repository", rc, detail, &one);
    if (conf->coordinator_members[0])
        check_coordinator(&check);
    else
        check_node(&check);
    if (check.failed_count == 0)
        return 0;
    (void)err_set(err, check.first, "%u of the checks failed", check.failed_count);
    return err_hint(err, "each has its own above");
}

const struct cmd_verb verb_check = {
    .name = "check",
    .args = "",
    .summary =
        "Checks configuration, repository, volumes, capture, agent, server, archiving, Patroni.",
    .notes =
        "With a coordinator's configuration: its certificate, the repository, the agent of every\n"
        "member, and [coordinator]. All checks are made; the exit status is that of the first\n"
        "failure.\n",
    .is_local = true,
    .run = run,
};
