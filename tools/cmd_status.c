/* tidemark status: the health of the node and what runs; the exit status is fit for probes. */
#include <stdio.h>

#include "tools/cmd.h"

static void print_running(const json_t *jobs)
{
    size_t i;
    json_t *job;
    json_array_foreach(jobs, i, job)
    {
        if (json_is_true(json_object_get(job, "running")))
            (void)printf("running: %s %s (%s)\n", cmd_text(job, "type"), cmd_text(job, "id"),
                         cmd_text(job, "phase"));
    }
}

int cmd_health_error(const json_t *health, struct err *err)
{
    const char *status = cmd_text(health, "status"), *job = cmd_text(health, "job");
    if (strcmp(status, "ok") == 0)
        return 0;
    const char *cluster = cmd_text(health, "cluster_job");
    if (strcmp(status, "restoring") == 0 || strcmp(status, "recovering") == 0)
        return err_set(err, ERR_BUSY, "restore %s is at step %s%s%s", job, cmd_text(health, "step"),
                       cluster[0] ? ", as a part of cluster restore " : "", cluster);
    if (json_is_true(json_object_get(health, "given_up"))) {
        (void)err_set(
            err, ERR_PARTIAL,
            "restore %s was given up at step %s: the volumes hold neither the old nor the "
            "new data",
            job, cmd_text(health, "step"));
        return err_hint(err, "restore any snapshot: `tidemark list` shows them, `tidemark restore "
                             "TAG` makes the volumes usable again");
    }
    (void)err_set(err, ERR_PARTIAL, "restore %s stopped at step %s", job, cmd_text(health, "step"));
    if (cluster[0])
        return err_hint(err, "it is a part of cluster restore %s: `tidemark cluster resume`",
                        cluster);
    return err_hint(err, "`tidemark restore --resume %s` goes on", job);
}

/* The error and hint of a restore that failed say whether resuming it helps. */
static int add_cause(const json_t *health, const json_t *jobs, struct err *err)
{
    const char *id = cmd_text(health, "job");
    size_t i;
    json_t *job;
    json_array_foreach(jobs, i, job)
    {
        const json_t *error = json_object_get(job, "error");
        if (strcmp(cmd_text(job, "id"), id) != 0 || !cmd_text(error, "hint")[0])
            continue;
        (void)err_set(err, ERR_PARTIAL, "restore %s stopped at step %s: %s", id,
                      cmd_text(health, "step"), cmd_text(error, "text"));
        return err_hint(err, "%s", cmd_text(error, "hint"));
    }
    return -ERR_PARTIAL;
}

static int run(struct cmd *cmd, struct err *err)
{
    struct client *client;
    free_json json_t *health = NULL, *answer = NULL;
    int rc = cmd_open(cmd, &client, err);
    if (rc < 0)
        return rc;
    rc = client_call(client, "GET", "/health", NULL, &health, err);
    if (rc == 0)
        rc = client_call(client, "GET", "/jobs", NULL, &answer, err);
    bool local = client_is_local(client);
    client_close(client);
    if (rc < 0)
        return rc;
    (void)json_object_set_new(health, "agent", json_boolean(!local));
    if (cmd->json) {
        cmd_print_json(health);
    } else {
        (void)printf("%s/%s: %s\nagent: %s\n", cmd_text(health, "cluster"),
                     cmd_text(health, "node"), cmd_text(health, "status"),
                     local ? "not running" : cmd_text(health, "version"));
        if (json_is_true(json_object_get(health, "stale_configuration")))
            (void)printf("configuration: '%s' was changed after the agent read it: "
                         "systemctl restart tidemark-agent\n",
                         cmd->agent ? "its file" : cmd->conf.file);
        print_running(json_object_get(answer, "jobs"));
    }
    rc = cmd_health_error(health, err);
    return rc == -ERR_PARTIAL && !json_is_true(json_object_get(health, "given_up"))
               ? add_cause(health, json_object_get(answer, "jobs"), err)
               : rc;
}

const struct cmd_verb verb_status = {
    .name = "status",
    .args = "",
    .summary = "Shows whether the node is ok, and what runs.",
    .notes = "Exit status: 0 ok, 17 a restore is at work, 20 a restore stopped half way.\n",
    .run = run,
};
