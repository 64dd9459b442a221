/* tidemark jobs: lists jobs, shows one, follows one. */
#include <stdio.h>

#include "tools/cmd.h"

static const struct cmd_option options[] = {
    {"follow", 'f', NULL, "wait for the job and show its progress"},
    {NULL, 0, NULL, NULL},
};

/* On a terminal the error takes what is left of its job's line, or the next one where that is not
 * enough to say anything; it is whole in `tidemark jobs JOB`, and on a pipe. */
static void print_error(const char *text, unsigned used)
{
    enum { ROOM_MIN = 40, INDENT = 4 };
    unsigned columns = cmd_columns(STDOUT_FILENO);
    if (columns > 0 && columns < used + ROOM_MIN) {
        (void)printf("\n%*s", INDENT, "");
        used = INDENT;
    }
    cmd_print_text(text, columns > used ? columns - used : 0, stdout);
}

static void print_row(const json_t *job)
{
    char when[32];
    const json_t *error = json_object_get(job, "error");
    cmd_format_time(json_integer_value(json_object_get(job, "created_ms")) / 1000, when);
    const char *type =
        json_is_true(json_object_get(job, "dry_run")) ? "dry run" : cmd_text_or_dash(job, "type");
    int used = printf("%-12.12s  %-12s  %-11s  %-14s  %-23s  ", cmd_text_or_dash(job, "id"), type,
                      cmd_text_or_dash(job, "state"), cmd_text_or_dash(job, "phase"), when);
    if (json_is_object(error))
        print_error(cmd_text_or_dash(error, "text"), used > 0 ? (unsigned)used : 0);
    (void)putchar('\n');
}

static int list(const struct cmd *cmd, struct client *client, struct err *err)
{
    free_json json_t *answer = NULL;
    int rc = client_call(client, "GET", "/jobs", NULL, &answer, err);
    if (rc < 0)
        return rc;
    size_t i;
    json_t *job;
    if (!cmd->json)
        (void)printf("%-12s  %-12s  %-11s  %-14s  %-23s  %s\n", "JOB", "TYPE", "STATE", "PHASE",
                     "CREATED", "ERROR");
    json_array_foreach(json_object_get(answer, "jobs"), i, job)
    {
        if (cmd->json)
            cmd_print_json(job);
        else
            print_row(job);
    }
    return 0;
}

static int one(struct cmd *cmd, struct client *client, struct err *err)
{
    free_json json_t *status = NULL;
    char id[ID_TEXT_LEN], path[64];
    int rc = cmd_find_job(client, cmd->args[0], id, err);
    if (rc < 0)
        return rc;
    (void)snprintf(path, sizeof(path), "/jobs/%s", id);
    if (cmd_option(cmd, "follow"))
        rc = cmd_follow_job(cmd, client, id, &status, err);
    else
        rc = client_call(client, "GET", path, NULL, &status, err);
    if (rc < 0)
        return rc;
    if (cmd->json)
        cmd_print_json(status);
    else
        cmd_print_tree(status, 0, stdout);
    return 0;
}

static int run(struct cmd *cmd, struct err *err)
{
    struct client *client;
    if (cmd_option(cmd, "follow") && cmd->arg_count == 0)
        return err_set(err, ERR_USAGE, "--follow needs a job");
    int rc = cmd_open(cmd, &client, err);
    if (rc < 0)
        return rc;
    rc = cmd->arg_count ? one(cmd, client, err) : list(cmd, client, err);
    client_close(client);
    return rc;
}

const struct cmd_verb verb_jobs = {
    .name = "jobs",
    .args = "[JOB]",
    .args_max = 1,
    .summary = "Lists jobs, shows one, or follows one.",
    .options = options,
    .notes = "The log of a job is <state_dir>/jobs/<id>/log.\n",
    .run = run,
};
