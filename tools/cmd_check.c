/* tidemark check: is this node ready for a snapshot, and will a restore find what it needs? One
 * line a check, and a hint below each that failed; the first failure decides the exit status, but
 * all are made. */
#include <stdio.h>

#include "agent/pg.h"
#include "agent/repository.h"
#include "agent/volume.h"
#include "tools/cmd.h"

enum { CHECK_RETRY_S = 5 };

struct check {
    const struct cmd *cmd;
    unsigned failed_count;
    enum err_code first; /* of the first failure */
};

static void report(struct check *check, const char *name, int rc, const char *detail,
                   const struct err *err)
{
    if (check->cmd->json) {
        free_json json_t *json = json_pack("{s:s, s:b, s:s}", "check", name, "ok", rc == 0,
                                           "detail", rc == 0 ? detail : err->text);
        if (rc < 0 && err->hint[0])
            (void)json_object_set_new(json, "hint", json_string(err->hint));
        cmd_print_json(json);
    } else {
        (void)printf("%-6s %-14s ", rc == 0 ? "ok" : "FAILED", name);
        cmd_print_text(rc == 0 ? detail : err->text, 0, stdout);
        if (rc < 0 && err->hint[0])
            (void)printf("\n%-21s hint: %s", "", err->hint);
        (void)putchar('\n');
    }
    if (rc < 0 && check->failed_count++ == 0)
        check->first = err->code;
}

static int check_repository(const struct conf *conf, char detail[256], struct err *err)
{
    struct store *store;
    struct repo repo;
    char id[ID_TEXT_LEN];
    struct conf hasty = *conf; /* a person waits: a few tries tell enough */
    hasty.repository_retry_timeout_s =
        (unsigned)min_u64(CHECK_RETRY_S, conf->repository_retry_timeout_s);
    int rc = repository_open(&hasty, &store, &repo, err);
    if (rc < 0)
        return rc;
    store_close(store);
    id_to_text(repo.id, id);
    (void)snprintf(detail, 256, "%s, chunks of %u KiB", id, repo.chunk_size / 1024);
    return 0;
}

static int check_volumes(const struct conf *conf, char detail[256], struct err *err)
{
    struct volume_group *group = calloc(1, sizeof(*group)); /* large */
    if (!group)
        return err_set(err, ERR_INTERNAL, "out of memory");
    int rc = volume_group_open(conf, group, err);
    for (size_t i = 0; rc == 0 && i < group->count; i++) {
        const struct volume *volume = &group->volumes[i];
        size_t len = strlen(detail);
        (void)snprintf(detail + len, 256 - len, "%s%s on %s", i ? ", " : "", volume->conf->name,
                       volume->mounted ? volume->mount_point : volume->device.path);
    }
    volume_group_close(group);
    free(group);
    return rc;
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

/* A command that has been failing since its last success is a server that does not archive. */
static int check_archiver(struct pg_session *session, char detail[256], struct err *err)
{
    free_mem char *failing = NULL;
    int rc = check_archiving(session, err);
    if (rc == 0)
        rc = pg_query_text(session,
                           "select max(last_failed_wal) from pg_stat_archiver where "
                           "last_failed_time > coalesce(last_archived_time, '-infinity')",
                           NULL, &failing, err);
    if (rc == 0 && failing) {
        (void)err_set(err, ERR_REFUSED, "archiving of %s fails", failing);
        return err_hint(err, "the server's log says why");
    }
    (void)snprintf(detail, 256, "archive_command pushes to the repository");
    return rc;
}

static void check_server(struct check *check)
{
    struct pg_session *session;
    struct err err;
    char detail[256] = "";
    free_mem char *version = NULL;
    int rc = pg_open(&check->cmd->conf, NULL, &session, &err);
    if (rc < 0) {
        report(check, "server", rc, "", &err);
        return;
    }
    rc = setting(session, "server_version", &version, &err);
    report(check, "server", rc, version ? version : "", &err);
    rc = check_archiver(session, detail, &err);
    report(check, "archiving", rc, detail, &err);
    pg_close(session);
}

static void check_agent(struct check *check)
{
    struct client *client;
    struct err err;
    int rc = client_open(&check->cmd->conf, CLIENT_AUTO, &client, &err);
    bool local = rc == 0 && client_is_local(client);
    if (rc == 0)
        client_close(client);
    report(check, "agent", rc, local ? "not running: jobs run from the command line" : "answers",
           &err);
}

static int run(struct cmd *cmd, struct err *err)
{
    struct check check = {.cmd = cmd};
    const struct conf *conf = &cmd->conf;
    struct err one;
    char detail[256] = "";
    int rc = conf->file[0] ? 0 : no_file(&one);
    report(&check, "configuration", rc, conf->file, &one);
    rc = check_state_dir(conf, detail, &one);
    report(&check, "state_dir", rc, detail, &one);
    detail[0] = '\0';
    rc = check_repository(conf, detail, &one);
    report(&check, "repository", rc, detail, &one);
    detail[0] = '\0';
    rc = check_volumes(conf, detail, &one);
    report(&check, "volumes", rc, detail, &one);
    check_agent(&check);
    check_server(&check);
    if (check.failed_count == 0)
        return 0;
    (void)err_set(err, check.first, "%u of the checks failed", check.failed_count);
    return err_hint(err, "each has its own above");
}

const struct cmd_verb verb_check = {
    .name = "check",
    .args = "",
    .summary = "Checks configuration, repository, volumes, agent, server and archiving.",
    .notes = "All checks are made; the exit status is that of the first failure.\n",
    .run = run,
};
