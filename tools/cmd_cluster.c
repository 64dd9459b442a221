/* tidemark cluster: snapshots and restores of a whole cluster, through its coordinator. */
#include <stdio.h>

#include <unistd.h>

#include "agent/job.h"
#include "tools/cmd_cluster.h"

static const struct cmd_option options[] = {
    {"tag", 't', "TAG", "snapshot: its name"},
    {"full", 0, NULL, "snapshot: read and store everything again"},
    {"from", 0, "standby|MEMBER",
     "snapshot: read from a standby, or from this member (default: the primary)"},
    {"dry-run", 0, NULL, "restore: print the plan and touch nothing"},
    {"primary", 0, "MEMBER", "restore: the node that becomes the primary (default: as recorded)"},
    {"map", 0, "NODE=MEMBER", "restore: the member that takes the place of a recorded node"},
    {"without-node", 0, "NODE", "restore: leave this recorded node out"},
    {"verify", 0, "LEVEL", "restore: none, quick, standard (default) or full, on the primary"},
    {"reindex", 0, "none|auto", "restore: rebuild indexes that fail verification"},
    {"delta", 0, NULL,
     "restore, rejoin: each node reads its devices first, and fetches only what differs"},
    {"discard-unarchived-wal", 0, NULL,
     "restore: lose WAL that the repository lacks and cannot get"},
    {"take-over", 0, NULL, "resume: also from another coordinator that is at work on it"},
    {NULL, 0, NULL, NULL},
};

/* --- bodies ------------------------------------------------------------------------------------*/
static int add_map(json_t *body, const char *text, struct err *err)
{
    char node[CONF_NAME_MAX + 1];
    size_t len = strcspn(text, "=");
    if (!text[len] || len == 0 || len > CONF_NAME_MAX)
        return err_set(err, ERR_USAGE, "'%.80s' is not NODE=MEMBER", text);
    (void)snprintf(node, sizeof(node), "%.*s", (int)len, text);
    if (!json_object_get(body, "map"))
        (void)json_object_set_new(body, "map", json_object());
    (void)json_object_set_new(json_object_get(body, "map"), node, json_string(text + len + 1));
    return 0;
}

static int restore_body(const struct cmd *cmd, json_t *body, struct err *err)
{
    int rc = cmd_check_name("snapshot", cmd->args[1], err);
    (void)json_object_set_new(body, "snapshot", json_string(cmd->args[1]));
    for (size_t i = 0; rc == 0 && i < cmd->given_count; i++) {
        const char *name = cmd->given[i].name, *value = cmd->given[i].value;
        if (strcmp(name, "map") == 0)
            rc = add_map(body, value, err);
        if (strcmp(name, "without-node") != 0)
            continue;
        if (!json_object_get(body, "without"))
            (void)json_object_set_new(body, "without", json_object());
        (void)json_object_set_new(json_object_get(body, "without"), value, json_string("left out"));
    }
    cmd_add_option(cmd, "primary", "primary", body);
    cmd_add_option(cmd, "verify", "verify", body);
    cmd_add_option(cmd, "reindex", "reindex", body);
    return rc;
}

/* --- snapshot ----------------------------------------------------------------------------------*/
static int run_snapshot(struct cmd *cmd, struct client *client, struct err *err)
{
    free_json json_t *body = json_object();
    free_json json_t *status = NULL;
    cmd_add_option(cmd, "tag", "tag", body);
    cmd_add_option(cmd, "full", "full", body);
    cmd_add_option(cmd, "from", "from", body);
    int rc = cmd_run_job(cmd, client, "/cluster/snapshots", body, &status, err);
    if (rc < 0)
        return rc;
    cmd_note_tag(cmd_text(body, "tag"));
    const json_t *result = json_object_get(status, "result");
    if (cmd->json)
        cmd_print_json(status);
    else
        (void)printf("snapshot %s of the cluster is complete: tag %s, read from %s\n",
                     cmd_text(result, "snapshot"), cmd_option(cmd, "tag"),
                     cmd_text(status, "source"));
    return 0;
}

/* --- restore -----------------------------------------------------------------------------------*/
/* Once the nodes have said what they think of it: then it has warnings. */
static void print_plan(struct cmd *cmd, const json_t *status)
{
    const json_t *plan = json_object_get(status, "plan");
    if (cmd->plan_shown || cmd->json || !json_object_get(plan, "warnings"))
        return;
    cmd->plan_shown = true;
    cluster_print_plan(plan);
    (void)fflush(stdout);
}

static int print_end(const struct cmd *cmd, const json_t *status)
{
    if (cmd->json)
        cmd_print_json(status);
    else
        cluster_print_end(status);
    return 0;
}

static int next_step(struct cmd *cmd, struct client *client, const char *id, const char *verb,
                     const json_t *body, json_t **ret, struct err *err)
{
    char path[96];
    (void)snprintf(path, sizeof(path), "/restores/%s/%s", id, verb);
    return cmd_run_job(cmd, client, path, body, ret, err);
}

static int restore(struct cmd *cmd, struct client *client, json_t *body, struct err *err)
{
    free_json json_t *status = NULL, *done = NULL;
    cmd->on_status = print_plan;
    bool dry_run = cmd_option(cmd, "dry-run");
    cmd_add_option(cmd, "dry-run", "dry_run", body);
    cmd_add_option(cmd, "delta", "delta", body);
    cmd_add_option(cmd, "discard-unarchived-wal", "discard_unarchived_wal", body);
    if (!dry_run && !cmd_asks(cmd))
        (void)json_object_set_new(body, "execute", json_true());
    int rc = cmd_run_job(cmd, client, "/cluster/restores", body, &status, err);
    if (rc < 0)
        return rc;
    if (dry_run && !cmd->json)
        return 0; /* the plan was all */
    if (strcmp(cmd_text(status, "state"), "prepared") != 0)
        return print_end(cmd, status);
    if (!cmd_confirm(cmd, "The volumes of these nodes will be overwritten.")) {
        char path[64];
        struct err ignored;
        (void)snprintf(path, sizeof(path), "/jobs/%s", cmd_text(status, "id"));
        (void)client_call(client, "DELETE", path, NULL, &done, &ignored);
        return err_set(err, ERR_CANCELLED, "nothing was touched");
    }
    free_json json_t *both = json_pack("{s:b}", "verify", true);
    rc = next_step(cmd, client, cmd_text(status, "id"), "execute", both, &done, err);
    return rc < 0 ? rc : print_end(cmd, done);
}

static int run_restore(struct cmd *cmd, struct client *client, struct err *err)
{
    free_json json_t *body = json_object();
    if (cmd->arg_count != 2)
        return err_set(err, ERR_USAGE, "expected: tidemark cluster restore TAG|ID|latest");
    int rc = restore_body(cmd, body, err);
    return rc < 0 ? rc : restore(cmd, client, body, err);
}

/* One node that the last restore left out. */
static int run_rejoin(struct cmd *cmd, struct client *client, struct err *err)
{
    if (cmd->arg_count != 2)
        return err_set(err, ERR_USAGE, "expected: tidemark cluster rejoin NODE");
    int rc = cmd_check_name("node", cmd->args[1], err);
    free_json json_t *body = json_pack("{s:s}", "rejoin", cmd->args[1]);
    return rc < 0 ? rc : restore(cmd, client, body, err);
}

/* --- going on, giving up -------------------------------------------------------------------- */
/* A job that this coordinator has, or the text as it is: another's may begin so. */
static int find_job(const struct cmd *cmd, struct client *client, char ret[ID_TEXT_LEN],
                    struct err *err)
{
    const char *given = cmd->arg_count == 2 ? cmd->args[1] : NULL;
    free_json json_t *status = NULL;
    struct err ignored;
    int rc = cmd_find_job(client, given, ret, err);
    if (rc != -ERR_MISSING)
        return rc;
    if (given) {
        (void)snprintf(ret, ID_TEXT_LEN, "%s", given);
        return 0;
    }
    if (client_call(client, "GET", "/cluster", NULL, &status, &ignored) < 0)
        return rc;
    const json_t *other = json_array_get(json_object_get(status, "restores"), 0);
    return other ? err_hint(err,
                            "coordinator %s had cluster restore %s: if that is lost, take it over "
                            "with `tidemark cluster resume %s`",
                            cmd_text(other, "coordinator"), cmd_text(other, "id"),
                            cmd_text(other, "id"))
                 : rc;
}

static bool is_foreign(const json_t *status)
{
    return json_object_get(status, "coordinator") != NULL; /* of a copy in the repository */
}

/* What is known of the job: its status here or, when another coordinator has it, its copy in the
 * repository. NULL: nothing, and whoever is asked for it will say so. */
static json_t *find_known(struct client *client, const char *id)
{
    free_json json_t *status = NULL, *cluster = NULL;
    struct err ignored;
    char path[ID_TEXT_LEN + 16];
    size_t i;
    json_t *restore;
    (void)snprintf(path, sizeof(path), "/jobs/%s", id);
    if (client_call(client, "GET", path, NULL, &status, &ignored) == 0 &&
        !json_is(status, "state", "taken_over"))
        return json_incref(status);
    if (client_call(client, "GET", "/cluster", NULL, &cluster, &ignored) == 0)
        json_array_foreach(json_object_get(cluster, "restores"), i, restore)
        {
            if (strncmp(cmd_text(restore, "id"), id, strlen(id)) == 0)
                return json_incref(restore);
        }
    return NULL;
}

/* A job of our own stopped, which is no question; another's may be at work. */
static int confirm_resume(const struct cmd *cmd, struct client *client, const char *id,
                          struct err *err)
{
    char question[512], written[32];
    if (!cmd_asks(cmd) || cmd_option(cmd, "take-over"))
        return 0;
    free_json json_t *known = find_known(client, id);
    if (!known || !is_foreign(known))
        return 0;
    cmd_format_time(json_integer_value(json_object_get(known, "written_s")), written);
    (void)snprintf(question, sizeof(question),
                   "Cluster restore %.32s is coordinator %.160s's (%.20s, in step %.20s at %s). It "
                   "is taken over, and goes on from here.",
                   cmd_text(known, "id"), cmd_text(known, "coordinator"), cmd_text(known, "state"),
                   cmd_text(known, "wave"), written);
    return cmd_confirm(cmd, question) ? 0 : err_set(err, ERR_CANCELLED, "not taken over");
}

static int run_resume(struct cmd *cmd, struct client *client, struct err *err)
{
    char id[ID_TEXT_LEN];
    free_json json_t *status = NULL, *body = json_object();
    cmd_add_option(cmd, "take-over", "take_over", body);
    int rc = find_job(cmd, client, id, err);
    if (rc == 0)
        rc = confirm_resume(cmd, client, id, err);
    if (rc == 0)
        rc = next_step(cmd, client, id, "resume", body, &status, err);
    return rc < 0 ? rc : print_end(cmd, status);
}

/* --- abort -------------------------------------------------------------------------------------*/
/* The newest that is not over: also one that waits for an answer to its plan. */
static int find_unfinished(struct cmd *cmd, struct client *client, char ret[ID_TEXT_LEN],
                           struct err *err)
{
    free_json json_t *answer = NULL;
    size_t i;
    json_t *job;
    if (cmd->arg_count == 2)
        return find_job(cmd, client, ret, err);
    int rc = client_call(client, "GET", "/jobs", NULL, &answer, err);
    if (rc < 0)
        return rc;
    ret[0] = '\0';
    json_array_foreach(json_object_get(answer, "jobs"), i, job)
    {
        if (strcmp(cmd_text(job, "type"), "cluster_restore") == 0 && !job_is_over(job))
            (void)snprintf(ret, ID_TEXT_LEN, "%s", cmd_text(job, "id"));
    }
    return ret[0] ? 0 : err_set(err, ERR_MISSING, "there is no cluster restore to give up");
}

/* Asks once, and waits until the job runs no more; *ret: its status. id: completed by the answer.
 */
static int cancel_once(struct client *client, char id[ID_TEXT_LEN], json_t **ret, struct err *err)
{
    char path[64];
    free_json json_t *answer = NULL;
    (void)snprintf(path, sizeof(path), "/jobs/%s", id);
    int rc = client_call(client, "DELETE", path, NULL, &answer, err);
    if (rc == 0 && cmd_text(answer, "id")[0])
        (void)snprintf(id, ID_TEXT_LEN, "%s", cmd_text(answer, "id"));
    (void)snprintf(path, sizeof(path), "/jobs/%s", id);
    while (rc == 0) {
        free_json json_t *status = NULL;
        rc = client_call(client, "GET", path, NULL, &status, err);
        if (rc == 0 && !json_is_true(json_object_get(status, "running"))) {
            *ret = json_incref(status);
            return 0;
        }
        (void)usleep(100 * 1000);
    }
    return rc;
}

static int confirm_abort(const struct cmd *cmd, struct client *client, const char *id,
                         struct err *err)
{
    char question[512];
    if (!cmd_asks(cmd))
        return 0;
    free_json json_t *known = find_known(client, id);
    bool foreign = known && is_foreign(known);
    bool touched = json_is_true(json_object_get(known, "touched"));
    if (!known || (!foreign && job_is_over(known)))
        return 0;
    (void)snprintf(
        question, sizeof(question), "Cluster restore %.32s to %.30s%s%.160s is given up: %s",
        cmd_text(known, "id"), cmd_text(json_object_get(known, "plan"), "tag"),
        foreign ? ", of coordinator " : "", foreign ? cmd_text(known, "coordinator") : "",
        touched ? "its nodes' volumes hold neither the old nor the new data, and no "
                  "server starts on them until another restore."
                : "no old data was touched, and the old servers run again.");
    return cmd_confirm(cmd, question) ? 0 : err_set(err, ERR_CANCELLED, "not given up");
}

/* One that runs is stopped first. Where it had touched something it can still be resumed then: the
 * second request gives it up. */
static int run_abort(struct cmd *cmd, struct client *client, struct err *err)
{
    char id[ID_TEXT_LEN];
    free_json json_t *status = NULL;
    int rc = find_unfinished(cmd, client, id, err);
    if (rc == 0)
        rc = confirm_abort(cmd, client, id, err);
    if (rc == 0)
        rc = cancel_once(client, id, &status, err);
    if (rc == 0 && !job_is_over(status)) {
        json_decref(take_ptr(&status));
        rc = cancel_once(client, id, &status, err);
    }
    if (rc < 0)
        return rc;
    const json_t *error = json_object_get(status, "error");
    if (!job_is_over(status) || json_is(status, "state", "taken_over")) {
        enum err_code code = err_code_from_name(cmd_text(error, "code"));
        (void)err_set(err, code == ERR_OK ? ERR_INTERNAL : code, "%s", cmd_text(error, "text"));
        return err_hint(err, "%s", cmd_text(error, "hint"));
    }
    if (cmd->json)
        cmd_print_json(status);
    else
        (void)printf("cluster restore %s: %s\n", id, cmd_text(error, "text"));
    return 0;
}

static int run(struct cmd *cmd, struct err *err)
{
    const char *verb = cmd->args[0];
    struct client *client;
    int rc = cmd_open(cmd, &client, err);
    if (rc < 0)
        return rc;
    if (strcmp(verb, "snapshot") == 0)
        rc = run_snapshot(cmd, client, err);
    else if (strcmp(verb, "restore") == 0)
        rc = run_restore(cmd, client, err);
    else if (strcmp(verb, "rejoin") == 0)
        rc = run_rejoin(cmd, client, err);
    else if (strcmp(verb, "status") == 0)
        rc = cluster_run_status(cmd, client, err);
    else if (strcmp(verb, "resume") == 0)
        rc = run_resume(cmd, client, err);
    else if (strcmp(verb, "abort") == 0)
        rc = run_abort(cmd, client, err);
    else
        rc = err_set(err, ERR_USAGE,
                     "'%.40s' is not snapshot, restore, rejoin, status, resume or abort", verb);
    client_close(client);
    return rc;
}

const struct cmd_verb verb_cluster = {
    .name = "cluster",
    .args = "snapshot|restore|rejoin|status|resume|abort [TAG|NODE|JOB]",
    .args_min = 1,
    .args_max = 2,
    .summary = "Snapshots and restores of a primary with its standbys, through the coordinator.",
    .options = options,
    .notes =
        "  tidemark cluster snapshot --tag TAG\n"
        "  tidemark cluster restore TAG|ID|latest    prints the plan and asks\n"
        "  tidemark cluster rejoin NODE              a node that was left out: a standby again\n"
        "  tidemark cluster status                   exit status as of `tidemark status`\n"
        "  tidemark cluster resume [JOB]             goes on with one that stopped\n"
        "  tidemark cluster abort [JOB]              asks, and gives one up\n"
        "JOB may be another coordinator's, which is taken over: status shows it. One that is at\n"
        "work is refused to resume without --take-over. Questions are for terminals: elsewhere, "
        "or\n"
        "with --yes, the answer is yes.\n",
    .config = "/etc/tidemark/coordinator.conf",
    .run = run,
};
