/* tidemark verify: reads snapshots back from the repository and checks every chunk; no device. */
#include <inttypes.h>
#include <stdio.h>

#include "tools/cmd.h"

static const struct cmd_option options[] = {
    {"all", 0, NULL, "every snapshot of the cluster; what they share is read once"},
    {"percent", 0, "N", "read a random part of the regions and packs, at least one"},
    {"seed", 0, "N", "choose the same part as the run that printed it"},
    {"resume", 0, "[=JOB]", "go on with a verification that was cut off (default: the newest)"},
    {NULL, 0, NULL, NULL},
};

static int add_number(const struct cmd *cmd, const char *name, uint32_t max, json_t *body,
                      struct err *err)
{
    const char *text = cmd_option(cmd, name);
    char *rest;
    if (!text)
        return 0;
    unsigned long long number = strtoull(text, &rest, 10);
    if (text[0] < '0' || text[0] > '9' || *rest || number < 1 || number > max)
        return err_set(err, ERR_USAGE, "--%s: '%.80s' is not a number from 1 to %" PRIu32, name,
                       text, max);
    (void)json_object_set_new(body, name, json_integer((json_int_t)number));
    return 0;
}

static int make_body(const struct cmd *cmd, json_t *body, struct err *err)
{
    bool all = cmd_option(cmd, "all") != NULL;
    if ((cmd->arg_count == 0) != all)
        return err_set(err, ERR_USAGE, "expected: tidemark verify TAG|ID|latest, or --all");
    if (cmd_option(cmd, "seed") && !cmd_option(cmd, "percent"))
        return err_set(err, ERR_USAGE, "--seed chooses the sample of --percent: give that, too");
    int rc = all ? 0 : cmd_check_name("snapshot", cmd->args[0], err);
    if (rc == 0)
        rc = add_number(cmd, "percent", 100, body, err);
    if (rc == 0)
        rc = add_number(cmd, "seed", UINT32_MAX, body, err);
    if (all)
        (void)json_object_set_new(body, "all", json_true());
    else
        (void)json_object_set_new(body, "snapshot", json_string(cmd->args[0]));
    return rc;
}

/* The newest that can be resumed. */
static int find_newest(struct client *client, char ret[ID_TEXT_LEN], struct err *err)
{
    free_json json_t *answer = NULL;
    size_t i;
    json_t *job;
    int rc = client_call(client, "GET", "/jobs", NULL, &answer, err);
    if (rc < 0)
        return rc;
    ret[0] = '\0';
    json_array_foreach(json_object_get(answer, "jobs"), i, job)
    {
        if (strcmp(cmd_text(job, "type"), "verification") == 0 && json_object_get(job, "position"))
            (void)snprintf(ret, ID_TEXT_LEN, "%s", cmd_text(job, "id"));
    }
    if (ret[0])
        return 0;
    (void)err_set(err, ERR_MISSING, "there is no verification to resume");
    return err_hint(err, "one that came to its end is not resumed: start another one, `tidemark "
                         "verify TAG` or --all");
}

static int resume(struct cmd *cmd, json_t **status, struct err *err)
{
    char id[ID_TEXT_LEN], path[96];
    struct client *client;
    const char *given = cmd_option(cmd, "resume");
    if (!given[0] && cmd->arg_count)
        given = cmd->args[0];
    int rc = cmd_open(cmd, &client, err);
    if (rc < 0)
        return rc;
    rc = given[0] ? cmd_find_job(client, given, id, err) : find_newest(client, id, err);
    if (rc == 0) {
        (void)snprintf(path, sizeof(path), "/verifications/%s/resume", id);
        rc = cmd_run_job(cmd, client, path, NULL, status, err);
    }
    client_close(client);
    return rc;
}

static void print_result(const struct cmd *cmd, const json_t *status)
{
    char done[24];
    const json_t *result = json_object_get(status, "result");
    cmd_format_size((uint64_t)json_integer_value(json_object_get(result, "bytes_read")), done);
    const char *tag = cmd->arg_count ? cmd->args[0] : cmd_text(result, "tag");
    json_int_t count = json_integer_value(json_object_get(result, "snapshots"));
    if (json_object_get(result, "tag"))
        (void)printf("snapshot %s is good: %s checked", tag, done);
    else
        (void)printf("%lld snapshots are good: %s checked", (long long)count, done);
    if (json_object_get(result, "percent"))
        (void)printf(" (a sample: --percent=%lld --seed=%lld)",
                     (long long)json_integer_value(json_object_get(result, "percent")),
                     (long long)json_integer_value(json_object_get(result, "seed")));
    const json_t *gone = json_object_get(result, "gone");
    if (json_array_size(gone) > 0)
        (void)printf("; %zu more, the first of them %s, went before they were read",
                     json_array_size(gone), cmd_text(json_array_get(gone, 0), "tag"));
    (void)putchar('\n');
}

static int run(struct cmd *cmd, struct err *err)
{
    free_json json_t *status = NULL;
    free_json json_t *body = json_object();
    bool goes_on = cmd_option(cmd, "resume") != NULL;
    int rc = goes_on ? 0 : make_body(cmd, body, err);
    if (rc == 0)
        rc = cmd_use_own_state(cmd, err);
    if (rc == 0)
        rc = goes_on ? resume(cmd, &status, err)
                     : cmd_run_one_job(cmd, "/verifications", body, &status, err);
    if (rc < 0)
        return rc;
    if (cmd->json)
        cmd_print_json(status);
    else
        print_result(cmd, status);
    return 0;
}

const struct cmd_verb verb_verify = {
    .name = "verify",
    .args = "TAG|ID|latest",
    .args_max = 1,
    .summary = "Reads snapshots back from the repository and checks every chunk.",
    .options = options,
    .tells_failed = true,
    .notes = "Damage ends nothing: --json (and `tidemark jobs JOB --json`) lists it, up to 100 "
             "objects,\n"
             "and which snapshots cannot be restored; the first is the error. Needs no device, no\n"
             "PostgreSQL, and with --repository no root.\n",
    .run = run,
};
