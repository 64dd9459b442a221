/* tidemark status: the health of the node and what runs; the exit status is fit for probes. */
#include <stdio.h>

#include "tools/cmd.h"

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text ? text : "";
}

static void print_running(const json_t *jobs)
{
    size_t i;
    json_t *job;
    json_array_foreach(jobs, i, job)
    {
        if (json_is_true(json_object_get(job, "running")))
            (void)printf("running: %s %s (%s)\n", text_of(job, "type"), text_of(job, "id"),
                         text_of(job, "phase"));
    }
}

static int verdict(const json_t *health, struct err *err)
{
    const char *status = text_of(health, "status"), *job = text_of(health, "job");
    if (strcmp(status, "ok") == 0)
        return 0;
    if (strcmp(status, "restoring") == 0 || strcmp(status, "recovering") == 0)
        return err_set(err, ERR_BUSY, "restore %s is at step %s", job, text_of(health, "step"));
    (void)err_set(err, ERR_PARTIAL, "restore %s stopped at step %s", job, text_of(health, "step"));
    return err_hint(err, "`tidemark restore --resume %s` goes on", job);
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
        (void)printf("%s/%s: %s\nagent: %s\n", text_of(health, "cluster"), text_of(health, "node"),
                     text_of(health, "status"), local ? "not running" : text_of(health, "version"));
        print_running(json_object_get(answer, "jobs"));
    }
    return verdict(health, err);
}

const struct cmd_verb verb_status = {
    .name = "status",
    .args = "",
    .summary = "Shows whether the node is ok, and what runs.",
    .notes = "Exit status: 0 ok, 17 a restore is at work, 20 a restore stopped half way.\n",
    .run = run,
};
