/* tidemark cluster status: the nodes, the restores that are not over, and an exit status that says
 * whether all is well, as that of `tidemark status`. */
#include <stdio.h>

#include "tools/cmd_cluster.h"

enum { SILENT_S = 30 }; /* who is at work asks the agents every second */

/* What the job of this coordinator does, in a word. */
static const char *state_of(const json_t *restore)
{
    const json_t *running = json_object_get(restore, "running");
    bool over = json_is(restore, "state", "prepared") || json_is(restore, "state", "executed");
    return running && !json_is_true(running) && !over ? "stopped" : cmd_text(restore, "state");
}

/* Another coordinator's: the agents know whether it is at work. */
static void print_heard(const json_t *restore)
{
    const json_t *ago = json_object_get(restore, "heard_ago_ms");
    long long ago_s = (long long)json_integer_value(ago) / 1000;
    if (!json_is(restore, "state", "running"))
        return;
    if (ago && ago_s < SILENT_S) {
        (void)printf("; its nodes heard from it %lld s ago", ago_s);
        return;
    }
    if (ago)
        (void)printf("; its nodes have not heard from it for %lld s", ago_s);
    else
        (void)printf("; no node knows whether it is still at work");
    (void)printf(": if it is lost, `tidemark cluster resume %s` takes it over",
                 cmd_text(restore, "id"));
}

/* What waits for somebody. */
static void print_next(const json_t *restore)
{
    const char *id = cmd_text(restore, "id");
    if (strcmp(state_of(restore), "stopped") == 0)
        (void)printf("; `tidemark cluster resume %s` goes on", id);
    else if (json_is(restore, "state", "executed"))
        (void)printf("; not verified yet: `tidemark cluster resume %s` verifies it", id);
}

static void print_restore(const json_t *restore)
{
    char written[32];
    cmd_format_time(json_integer_value(json_object_get(restore, "written_s")), written);
    (void)printf("restore %s to %s: %s, in step %s, epoch %lld, by %s at %s",
                 cmd_text(restore, "id"), cmd_text(json_object_get(restore, "plan"), "tag"),
                 state_of(restore), cmd_text(restore, "wave"),
                 (long long)json_integer_value(json_object_get(restore, "epoch")),
                 cmd_text(restore, "coordinator"), written);
    if (json_object_get(restore, "running"))
        print_next(restore);
    else
        print_heard(restore);
    (void)putchar('\n');
}

/* Of any coordinator, as the repository has it. */
static void print_restores(const json_t *status)
{
    size_t i;
    json_t *restore;
    json_array_foreach(json_object_get(status, "restores"), i, restore)
    {
        print_restore(restore);
    }
    if (json_object_get(status, "restores_error"))
        (void)printf("restores under way are not known: %s\n", cmd_text(status, "restores_error"));
}

static void print_cause(const json_t *member)
{
    if (!cmd_text(member, "cause")[0])
        return;
    (void)printf("\n%s: ", cmd_text(member, "name"));
    cmd_print_text(cmd_text(member, "cause"), 0, stdout);
    if (cmd_text(member, "hint")[0]) {
        (void)fputs("\nhint: ", stdout);
        cmd_print_text(cmd_text(member, "hint"), 0, stdout);
    }
    (void)putchar('\n');
}

static void print_status(const struct cmd *cmd, const json_t *status, const json_t *health)
{
    size_t i;
    json_t *member;
    (void)printf("cluster %s: %s\n%-12s %-12s %-8s %8s  %-17s %s\n", cmd_text(status, "cluster"),
                 cmd_text(health, "status"), "NODE", "STATUS", "ROLE", "TIMELINE", "LSN",
                 "ADDRESS");
    json_array_foreach(json_object_get(status, "members"), i, member)
    {
        (void)printf("%-12s %-12s %-8s %8lld  %-17s %s\n", cmd_text(member, "name"),
                     cmd_text(member, "status"), cmd_text_or_dash(member, "role"),
                     (long long)json_integer_value(json_object_get(member, "timeline")),
                     cmd_text_or_dash(member, "lsn"), cmd_text(member, "address"));
    }
    if (json_is_true(json_object_get(health, "stale_configuration")))
        cmd_print_stale(cmd, cmd_daemon(health));
    print_restores(status);
    json_array_foreach(json_object_get(status, "members"), i, member)
    {
        print_cause(member);
    }
    (void)fflush(stdout); /* before the error, which comes last */
}

int cluster_run_status(struct cmd *cmd, struct client *client, struct err *err)
{
    free_json json_t *status = NULL;
    int rc = client_call(client, "GET", "/cluster", NULL, &status, err);
    if (rc < 0)
        return rc;
    const json_t *health = json_object_get(status, "health");
    if (cmd->json)
        cmd_print_json(status);
    else
        print_status(cmd, status, health);
    return cmd_health_error(health, err);
}
