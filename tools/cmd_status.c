/* tidemark status: the health of the node and what runs; the exit status is fit for probes. */
#include <stdio.h>
#include <time.h>

#include "agent/archive_lag.h"
#include "agent/text.h"
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

const char *cmd_daemon(const json_t *health)
{
    return json_is(health, "role", "coordinator") ? "tidemark-coordinator" : "tidemark-agent";
}

void cmd_print_stale(const struct cmd *cmd, const char *daemon)
{
    (void)printf("configuration: '%s' was changed after %s read it: systemctl restart %s\n",
                 cmd->agent ? "its file" : cmd->conf.file, daemon, daemon);
}

int cmd_health_error(const json_t *health, struct err *err)
{
    enum err_code code = err_code_from_name(cmd_text(health, "code"));
    if (strcmp(cmd_text(health, "status"), "ok") == 0)
        return 0;
    (void)err_set(err, code == ERR_OK ? ERR_PARTIAL : code, "%s", cmd_text(health, "cause"));
    return err_hint(err, "%s", cmd_text(health, "hint"));
}

/* Of the jobs, so that a repository which does not answer keeps nobody waiting: the newest snapshot
 * that this agent took, with its id, tag and time, or null. New reference. */
static json_t *last_snapshot(const json_t *jobs)
{
    for (size_t i = json_array_size(jobs); i-- > 0;) {
        const json_t *job = json_array_get(jobs, i);
        const json_t *result = json_object_get(job, "result");
        bool took = json_is(job, "type", "snapshot") || json_is(job, "type", "cluster_snapshot");
        if (took && json_is(job, "state", "complete") && json_str(result, "snapshot")[0])
            return json_pack("{s:O, s:O, s:O}", "id", json_object_get(result, "snapshot"), "tag",
                             json_object_get(result, "tag"), "ended_s",
                             json_object_get(job, "ended_s"));
    }
    return json_null();
}

static void print_archiving(const json_t *archiving)
{
    char text[ARCHIVE_LAG_TEXT], when[TEXT_TIME_LEN];
    if (!json_is_object(archiving))
        return;
    archive_lag_text(archiving, (int64_t)time(NULL), text);
    (void)printf("archiving: %s\n", text);
    if (json_str(archiving, "failing")[0]) {
        cmd_format_time(json_integer_value(json_object_get(archiving, "failing_s")), when);
        (void)printf("warning: archiving fails, last at %s: pg_wal fills up, and no restore gets "
                     "past what was archived; `tidemark check` says why\n",
                     when);
    }
}

static void print_health(const struct cmd *cmd, const json_t *health)
{
    const json_t *last = json_object_get(health, "last_snapshot");
    json_int_t timeline = json_integer_value(json_object_get(health, "timeline"));
    char age[TEXT_AGE_LEN];
    (void)printf("%s/%s: %s\nagent: %s\n", cmd_text(health, "cluster"), cmd_text(health, "node"),
                 cmd_text(health, "status"),
                 json_is_true(json_object_get(health, "agent")) ? cmd_text(health, "version")
                                                                : "not running");
    if (json_is_true(json_object_get(health, "stale_configuration")))
        cmd_print_stale(cmd, cmd_daemon(health));
    if (timeline > 0 && !json_is(health, "role", "coordinator"))
        (void)printf("server: %s on timeline %lld\n", cmd_text(health, "role"),
                     (long long)timeline);
    print_archiving(json_object_get(health, "archiving"));
    if (!last || json_is_null(last))
        return;
    text_age((int64_t)time(NULL) - json_integer_value(json_object_get(last, "ended_s")), age);
    (void)printf("last snapshot: %s, %s ago\n", cmd_text(last, "tag"), age);
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
    const json_t *jobs = json_object_get(answer, "jobs");
    (void)json_object_set_new(health, "agent", json_boolean(!local));
    (void)json_object_set_new(health, "last_snapshot", last_snapshot(jobs));
    if (cmd->json) {
        cmd_print_json(health);
    } else {
        print_health(cmd, health);
        print_running(jobs);
    }
    return cmd_health_error(health, err);
}

const struct cmd_verb verb_status = {
    .name = "status",
    .args = "",
    .summary = "Shows whether the node is ok, and what runs.",
    .notes = "Exit status: 0 ok, 17 a restore is at work or the server starts, 20 a restore "
             "stopped half "
             "way, 16 the server does not run or cannot be asked, 19 its history is not the "
             "cluster's.\n",
    .run = run,
};
