/* tidemark check: is this node ready for a snapshot, and will a restore find what it needs? The
 * checks are agent/check.c's, made by the agent where one answers. One line a check, and a hint
 * below each that is not good; the first failure decides the exit status, but all are made. */
#include <stdio.h>

#include "agent/check.h"
#include "tools/cmd.h"

struct checked {
    const struct cmd *cmd;
    unsigned failed_count;
    enum err_code first; /* of the first failure */
};

enum { LEFT_COLUMNS = 21 };

static const char *word_of(const json_t *row)
{
    return json_is(row, "result", "failed")    ? "FAILED"
           : json_is(row, "result", "warning") ? "warn"
           : json_is(row, "result", "skipped") ? "-"
                                               : "ok";
}

static void print_row(const json_t *row)
{
    const char *hint = json_str(row, "hint");
    unsigned columns = cmd_columns(STDOUT_FILENO);
    (void)printf("%-6s %-14s ", word_of(row), json_str(row, "check"));
    cmd_print_wrapped(json_str(row, "detail"), LEFT_COLUMNS + 1, columns, stdout);
    if (!hint[0])
        return;
    (void)printf("%-*s hint: ", LEFT_COLUMNS, "");
    cmd_print_wrapped(hint, LEFT_COLUMNS + 7, columns, stdout);
}

static void take_row(void *ctx, const json_t *row)
{
    struct checked *checked = ctx;
    if (checked->cmd->json)
        cmd_print_json(row);
    else
        print_row(row);
    if (json_is(row, "result", "failed") && checked->failed_count++ == 0)
        checked->first = err_code_from_name(json_str(row, "code"));
}

static void tell(struct checked *checked, const char *name, int rc, const char *detail,
                 const struct err *err)
{
    free_json json_t *row = check_row(name, rc < 0 ? "failed" : "ok", detail, rc < 0 ? err : NULL);
    take_row(checked, row);
}

/* --- what only this process can tell ---------------------------------------------------------- */

static int check_file(const struct conf *conf, struct err *err)
{
    if (conf->file[0])
        return 0;
    (void)err_set(err, ERR_CONFIG, "there is no configuration file");
    return err_hint(err,
                    "`tidemark-agent --print-sample` prints one for /etc/tidemark/tidemark.conf");
}

static int check_stale(const json_t *health, struct err *err)
{
    const char *daemon = cmd_daemon(health), *who = strchr(daemon, '-') + 1;
    if (strcmp(json_str(health, "version"), TIDEMARK_VERSION) != 0) {
        (void)err_set(err, ERR_CONFIG, "the %s has version %.40s, this is %s", who,
                      json_str(health, "version"), TIDEMARK_VERSION);
        return err_hint(err, "systemctl restart %s; jobs go on meanwhile", daemon);
    }
    if (!json_is_true(json_object_get(health, "stale_configuration")))
        return 0;
    (void)err_set(err, ERR_CONFIG, "'%s' was changed after the %s read it",
                  json_str(health, "configuration_file"), who);
    return err_hint(err, "systemctl restart %s; jobs go on meanwhile", daemon);
}

/* Whoever names another file wants that one checked; whoever names an agent, what it has read. */
static bool is_meant(const struct cmd *cmd, const json_t *health)
{
    return cmd->agent || strcmp(json_str(health, "configuration_file"), cmd->conf.file) == 0;
}

static int open_client(const struct cmd *cmd, struct client **ret, struct err *err)
{
    return cmd->agent ? cmd_open(cmd, ret, err)
                      : client_open(&cmd->conf, cmd->local ? CLIENT_LOCAL : CLIENT_AUTO, ret, err);
}

/* NULL: the checks are to be made here, but for another host's agent. */
static struct client *check_agent(struct checked *checked)
{
    const struct cmd *cmd = checked->cmd;
    const struct conf *conf = &cmd->conf;
    const char *detail = "answers: what follows is what it found";
    free_json json_t *health = NULL;
    struct client *client = NULL;
    struct err err;
    int rc = open_client(cmd, &client, &err);
    bool local = rc == 0 && client_is_local(client);
    if (rc == 0 && !local)
        rc = client_call(client, "GET", "/health", NULL, &health, &err);
    bool ours = rc == 0 && !local && is_meant(cmd, health);
    if (ours)
        rc = check_stale(health, &err);
    else if (local)
        detail = cmd->local ? "not asked (--local)" : "not running: jobs run from the command line";
    else
        detail = "answers, but has read another file: what follows was found from here";
    bool coordinator =
        health ? json_is(health, "role", "coordinator") : conf->coordinator_members[0] != '\0';
    tell(checked, coordinator ? "coordinator" : "agent", rc, detail, &err);
    if (ours)
        return client;
    client_close(client);
    return NULL;
}

static int ask_agent(struct checked *checked, struct client *client, struct err *err)
{
    free_json json_t *answer = NULL;
    size_t i;
    json_t *row;
    int rc = client_call(client, "POST", "/checks", NULL, &answer, err);
    json_array_foreach(json_object_get(answer, "checks"), i, row)
    {
        take_row(checked, row);
    }
    return rc;
}

static int run(struct cmd *cmd, struct err *err)
{
    struct checked checked = {.cmd = cmd};
    if (!cmd->agent)
        tell(&checked, "configuration", check_file(&cmd->conf, err), cmd->conf.file, err);
    struct client *client = check_agent(&checked);
    int rc = client ? ask_agent(&checked, client, err) : 0;
    if (!client && !cmd->agent)
        check_run(&cmd->conf, take_row, &checked);
    client_close(client);
    if (rc < 0 || checked.failed_count == 0)
        return rc;
    (void)err_set(err, checked.first, "%u of the checks failed", checked.failed_count);
    return err_hint(err, "each has its own above");
}

const struct cmd_verb verb_check = {
    .name = "check",
    .args = "",
    .summary =
        "Checks configuration, repository, volumes, capture, agent, server, archiving, Patroni.",
    .notes =
        "The agent makes the checks, where one answers. To see where WAL goes one segment is "
        "ended,\n"
        "which has to arrive in the repository. With a coordinator's configuration: its "
        "certificate,\n"
        "the repository, the agent of every member, and [coordinator]. All checks are made; the "
        "exit\n"
        "status is that of the first failure, warnings do not count. With --agent that one is "
        "asked "
        "for\n"
        "its own host.\n",
    .run = run,
};
