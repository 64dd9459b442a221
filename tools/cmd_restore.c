/* tidemark restore: plan, question, execute, verify, as one command. */
#include <stdio.h>

#include "tools/cmd_restore.h"

/* --- the three steps ---------------------------------------------------------------------------*/
static const char *id_of(const json_t *status)
{
    const char *id = json_string_value(json_object_get(status, "id"));
    return id ? id : "";
}

static bool in_state(const json_t *status, const char *state)
{
    const char *text = json_string_value(json_object_get(status, "state"));
    return text && strcmp(text, state) == 0;
}

static int next_step(struct cmd *cmd, struct client *client, const char *verb, const json_t *body,
                     json_t **status, struct err *err)
{
    char path[96];
    json_t *next = NULL;
    (void)snprintf(path, sizeof(path), "/restores/%s/%s", id_of(*status), verb);
    int rc = cmd_run_job(cmd, client, path, body, &next, err);
    if (rc < 0)
        return rc;
    json_decref(*status);
    *status = next;
    return 0;
}

static void give_up_plan(struct client *client, const char *id)
{
    char path[64];
    free_json json_t *answer = NULL;
    struct err ignored;
    (void)snprintf(path, sizeof(path), "/jobs/%s", id);
    (void)client_call(client, "DELETE", path, NULL, &answer, &ignored);
}

/* What a plan cannot find out, somebody has to have looked at: --yes is no answer to it. */
static bool confirm_primary(const struct cmd *cmd, const json_t *plan)
{
    const json_t *other = json_object_get(plan, "other_primary");
    char question[1024];
    if (!json_is_true(json_object_get(other, "needs_word")))
        return true;
    (void)snprintf(question, sizeof(question),
                   "Whether %s is not known: %s.\n"
                   "A second one would lose what clients commit on either. Make sure that it is "
                   "down.",
                   json_is_true(json_object_get(other, "runs_here")) ? "another primary runs"
                                                                     : "the primary still runs",
                   cmd_text(other, "text"));
    return cmd_confirm_words(cmd, question, "it is down");
}

/* From a prepared job to its end; a job that ended at once (dry run, none to verify) stays. */
static int carry_on(struct cmd *cmd, struct client *client, json_t **status, struct err *err)
{
    int rc = 0;
    if (in_state(*status, "prepared")) {
        const json_t *plan = json_object_get(*status, "plan");
        if (!confirm_primary(cmd, plan) ||
            !cmd_confirm(cmd, "The volumes above will be overwritten.")) {
            give_up_plan(client, id_of(*status));
            return err_set(err, ERR_CANCELLED, "nothing was touched");
        }
        /* In one run, so that a restore that nobody watches any more comes to its end by itself. */
        free_json json_t *body = json_pack("{s:b}", "verify", true);
        if (json_is_true(json_object_get(json_object_get(plan, "other_primary"), "needs_word")))
            (void)json_object_set_new(body, "primary_is_down", json_true());
        rc = next_step(cmd, client, "execute", body, status, err);
    }
    if (rc == 0 && in_state(*status, "executed"))
        rc = next_step(cmd, client, "verify", NULL, status, err);
    return rc;
}

/* As soon as the job has made it, once. */
static void print_plan(struct cmd *cmd, const json_t *status)
{
    const json_t *plan = json_object_get(status, "plan");
    if (cmd->plan_shown || !plan)
        return;
    cmd->plan_shown = true;
    if (!cmd->json) /* else it is in the job, which is printed at its end */
        restore_print_plan(plan);
    (void)fflush(stdout);
    cmd_warn_stale(cmd);
}

/* Where nobody is asked the job does everything in one run, and makes its plan once. */
static int restore(struct cmd *cmd, struct client *client, json_t **status, struct err *err)
{
    free_json json_t *body = json_object();
    bool dry_run = cmd_option(cmd, "dry-run");
    int rc = restore_make_body(cmd, body, err);
    if (rc < 0)
        return rc;
    if (!dry_run && !cmd_asks(cmd))
        (void)json_object_set_new(body, "execute", json_true());
    cmd->on_status = print_plan;
    rc = cmd_run_job(cmd, client, "/restores", body, status, err);
    return rc < 0 || dry_run ? rc : carry_on(cmd, client, status, err);
}

/* --resume, --resume=JOB and `--resume JOB`. A prepared job is refused like one that has ended: its
 * plan was shown to somebody else, who did not say yes to it. */
static int resume(struct cmd *cmd, struct client *client, json_t **status, struct err *err)
{
    char id[ID_TEXT_LEN], path[96];
    const char *given = cmd_option(cmd, "resume");
    if (!given[0])
        given = cmd->arg_count ? cmd->args[0] : NULL;
    int rc = cmd_find_job(client, given, id, err);
    if (rc < 0)
        return rc;
    (void)snprintf(path, sizeof(path), "/jobs/%s", id);
    rc = client_call(client, "GET", path, NULL, status, err);
    if (rc < 0)
        return rc;
    if (in_state(*status, "executed"))
        return carry_on(cmd, client, status, err);
    free_json json_t *body = json_object();
    cmd_add_option(cmd, "allow-second-primary", "allow_second_primary", body);
    cmd_add_option(cmd, "primary-is-down", "primary_is_down", body);
    rc = next_step(cmd, client, "resume", body, status, err);
    return rc < 0 ? rc : carry_on(cmd, client, status, err);
}

static void print_copied(const json_t *copied)
{
    char bytes[24], same[24], fetched[24];
    if (!json_is_true(json_object_get(copied, "delta")))
        return;
    cmd_format_size((uint64_t)json_integer_value(json_object_get(copied, "bytes")), bytes);
    cmd_format_size((uint64_t)json_integer_value(json_object_get(copied, "bytes_same")), same);
    cmd_format_size((uint64_t)json_integer_value(json_object_get(copied, "bytes_fetched")),
                    fetched);
    (void)printf("delta: %s of %s were right already, %s fetched\n", same, bytes, fetched);
}

/* What there is now: the first thing that whoever was woken up wants to know. */
static void print_end(const json_t *status)
{
    const char *action = cmd_text(json_object_get(status, "plan"), "action");
    const char *lsn = cmd_text_or_dash(status, "replay_lsn");
    const char *warning = cmd_text(status, "warning");
    const char *id = id_of(status);
    if (strcmp(action, "pause") == 0)
        (void)printf("restore %s is complete: the server is paused at %s, read-only\n", id, lsn);
    else if (strcmp(action, "shutdown") == 0)
        (void)printf("restore %s is complete: the server is shut down at its target\n", id);
    else
        (void)printf("restore %s is complete: the server runs on timeline %lld, restored to %s\n",
                     id, (long long)json_integer_value(json_object_get(status, "timeline")), lsn);
    print_copied(json_object_get(status, "copied"));
    if (json_is_true(json_object_get(status, "archived")))
        (void)printf("the server archives: its new timeline is in the repository\n");
    else if (warning[0])
        (void)printf("warning: %s\n", warning);
}

static int run(struct cmd *cmd, struct err *err)
{
    struct client *client;
    json_t *status = NULL;
    int rc = cmd_open(cmd, &client, err);
    if (rc < 0)
        return rc;
    if (cmd_option(cmd, "resume"))
        rc = resume(cmd, client, &status, err);
    else
        rc = restore(cmd, client, &status, err);
    client_close(client);
    if (rc == 0 && cmd->json)
        cmd_print_json(status);
    else if (rc == 0 && !cmd_option(cmd, "dry-run"))
        print_end(status);
    json_decref(status);
    return rc;
}

const struct cmd_verb verb_restore = {
    .name = "restore",
    .args = "TAG|ID|latest",
    .args_max = 1,
    .summary = "Brings the server back to a snapshot: blocks, then WAL, then verification.",
    .options = restore_options,
    .notes = "Prints the plan and asks before it overwrites (not on a pipe, not with --yes).\n"
             "Ctrl-C cancels while the old data is still there; from then on it only stops\n"
             "watching, and `tidemark jobs --follow JOB` watches again. On an empty host:\n"
             "  tidemark restore --repository=URL --device=pgdata:/dev/X TAG\n",
    .run = run,
};
