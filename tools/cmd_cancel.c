/* tidemark cancel: ends a job. */
#include <stdio.h>
#include <unistd.h>

#include "agent/job.h"
#include "tools/cmd.h"

enum { POLL_US = 100000 };

/* Giving up a half-done restore leaves a server that cannot start, and lifting the fence of one
 * node of a cluster starts a server that the others no longer know: worth a question. NULL: none.
 */
static const char *question_for(const json_t *status)
{
    static const char *const safe[] = {"planned", "fenced", "complete", "-"};
    const char *step = json_string_value(json_object_get(status, "step"));
    if (!step || job_is_over(status))
        return NULL;
    if (strcmp(step, "fenced") == 0 && job_is_cluster_part(status))
        return "It is one node's part of a cluster restore: other nodes may be past their fence, "
               "and "
               "the old server of this one would start beside them.";
    for (size_t i = 0; i < ARRAY_LEN(safe); i++)
        if (strcmp(step, safe[i]) == 0)
            return NULL;
    return "The volumes hold neither the old nor the new data; without this restore the server "
           "cannot start.";
}

static int confirm(const struct cmd *cmd, const json_t *status, struct err *err)
{
    const char *question = question_for(status);
    if (!question || cmd_confirm(cmd, question))
        return 0;
    return err_set(err, ERR_CANCELLED, "not cancelled");
}

/* What does not run is given up by a run of its own: it lifts the fence, or stops the server that
 * recovers. Whoever restores next would find the node busy. */
static int wait_given_up(struct client *client, const char *id, struct err *err)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/jobs/%s", id);
    for (;;) {
        free_json json_t *status = NULL;
        int rc = client_call(client, "GET", path, NULL, &status, err);
        if (rc < 0 || job_is_over(status))
            return rc;
        const json_t *error = json_object_get(status, "error");
        if (!json_is_true(json_object_get(status, "running"))) {
            enum err_code code = err_code_from_name(cmd_text(error, "code"));
            (void)err_set(err, code == ERR_OK ? ERR_PARTIAL : code, "not given up: %s",
                          cmd_text(error, "text"));
            return err_hint(err, "%s", cmd_text(error, "hint"));
        }
        (void)usleep(POLL_US);
    }
}

static int cancel(const struct cmd *cmd, struct client *client, struct err *err)
{
    char id[ID_TEXT_LEN], path[64];
    free_json json_t *status = NULL, *answer = NULL;
    int rc = cmd_find_job(client, cmd->args[0], id, err);
    if (rc < 0)
        return rc;
    (void)snprintf(path, sizeof(path), "/jobs/%s", id);
    rc = client_call(client, "GET", path, NULL, &status, err);
    if (rc == 0)
        rc = confirm(cmd, status, err);
    if (rc == 0 && job_is_cluster_part(status)) /* of that the question tells */
        (void)snprintf(path, sizeof(path), "/jobs/%s?force=1", id);
    if (rc == 0)
        rc = client_call(client, "DELETE", path, NULL, &answer, err);
    if (rc == 0 && !json_is_true(json_object_get(status, "running")))
        rc = wait_given_up(client, id, err);
    if (rc == 0 && cmd->json)
        cmd_print_json(answer);
    else if (rc == 0)
        (void)printf("job %s: cancel requested\n", id);
    return rc;
}

static int run(struct cmd *cmd, struct err *err)
{
    struct client *client;
    int rc = cmd_open(cmd, &client, err);
    if (rc < 0)
        return rc;
    rc = cancel(cmd, client, err);
    client_close(client);
    return rc;
}

const struct cmd_verb verb_cancel = {
    .name = "cancel",
    .args = "JOB",
    .args_min = 1,
    .args_max = 1,
    .summary = "Cancels a job.",
    .notes =
        "A snapshot leaves nothing visible. A restore that has not marked its volumes yet\n"
        "leaves the old data and starts the old server again; a later one stays resumable\n"
        "when it was running, and is given up when it was not. The part of a cluster restore is\n"
        "taken back on this node alone.\n",
    .run = run,
};
