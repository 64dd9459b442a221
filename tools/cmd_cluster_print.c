/* A cluster restore for people: its plan before, its end after. */
#include <stdio.h>

#include "tools/cmd_cluster.h"
#include "tools/cmd_restore.h"

/* "sub1 (logical, pgoutput, database app)" */
static void print_slot(const json_t *slot)
{
    const char *plugin = cmd_text(slot, "plugin"), *database = cmd_text(slot, "database");
    (void)printf("%s (%s%s%s%s%s, on %s)", cmd_text(slot, "name"), cmd_text(slot, "type"),
                 plugin[0] ? ", " : "", plugin, database[0] ? ", database " : "", database,
                 cmd_text(slot, "node"));
}

static bool is_recreated(const json_t *slot)
{
    return json_is_true(json_object_get(slot, "recreated"));
}

static void print_head(const json_t *plan)
{
    char when[32];
    const char *rejoin = cmd_text(plan, "rejoin");
    cmd_format_time(json_integer_value(json_object_get(plan, "captured_s")), when);
    if (rejoin[0])
        (void)printf("plan: make %s of cluster %s a standby of %s again, on timeline %lld\n"
                     "  from     %s (%.12s), captured %s on %s: no other node is touched\n",
                     rejoin, cmd_text(plan, "cluster"), cmd_text(plan, "primary"),
                     (long long)json_integer_value(json_object_get(plan, "timeline")),
                     cmd_text(plan, "tag"), cmd_text(plan, "snapshot"), when,
                     cmd_text(plan, "node"));
    else
        (void)printf("plan: restore cluster %s to %s (%.12s), captured %s on %s\n",
                     cmd_text(plan, "cluster"), cmd_text(plan, "tag"), cmd_text(plan, "snapshot"),
                     when, cmd_text(plan, "node"));
    if (json_object_get(plan, "target"))
        restore_print_target(json_object_get(plan, "target"), "promote");
}

/* How a standby reaches its primary, and whether that was tried. */
static void print_connection(const json_t *member)
{
    const json_t *connection = json_object_get(member, "connection");
    const char *tried = cmd_text(connection, "tried"), *slot = cmd_text(member, "primary_slot");
    if (!cmd_text(member, "primary_conninfo")[0])
        return;
    (void)printf("  follows  ");
    cmd_print_text(cmd_text(member, "primary_conninfo"), 0, stdout);
    (void)printf("%s%s\n           ", slot[0] ? ", slot " : ", no slot", slot);
    if (strcmp(tried, "no") == 0)
        (void)printf("not tried: ");
    else if (strcmp(tried, "unclear") == 0)
        (void)printf("tried, not clear: ");
    else
        (void)printf("tried: ");
    cmd_print_text(cmd_text(connection, "text"), 0, stdout);
    (void)putchar('\n');
}

static void print_member(const json_t *member)
{
    bool moved = strcmp(cmd_text(member, "recorded"), cmd_text(member, "name")) != 0;
    size_t i;
    json_t *volume;
    (void)printf("  %-8s %s%s%s%s: PostgreSQL in %s %s\n", cmd_text(member, "role"),
                 cmd_text(member, "name"), moved ? " (in the place of " : "",
                 moved ? cmd_text(member, "recorded") : "", moved ? ")" : "",
                 cmd_text(member, "data_directory"),
                 json_is_true(json_object_get(member, "server_running"))
                     ? "runs and will be stopped"
                     : "is not running");
    json_array_foreach(json_object_get(member, "volumes"), i, volume)
    {
        restore_print_volume(volume);
    }
    print_connection(member);
}

void cluster_print_plan(const json_t *plan)
{
    size_t i;
    json_t *item;
    print_head(plan);
    json_array_foreach(json_object_get(plan, "members"), i, item)
    {
        print_member(item);
    }
    restore_print_delta(plan);
    json_array_foreach(json_object_get(plan, "slots"), i, item)
    {
        (void)printf("  slot     ");
        print_slot(item);
        (void)printf(": %s\n", is_recreated(item) ? "made again" : "lost");
    }
    json_array_foreach(json_object_get(plan, "warnings"), i, item)
    {
        (void)printf("  warning: %s\n", json_string_value(item));
    }
}

static void print_verification(const char *node, const json_t *verification)
{
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(verification, "indexes"), i, item)
    {
        bool rebuilt = json_is_true(json_object_get(item, "rebuilt"));
        (void)printf("%s: index %s in database '%s' was %s (%s)\n", node, cmd_text(item, "index"),
                     cmd_text(item, "database"), rebuilt ? "rebuilt" : "not rebuilt",
                     cmd_text(item, "why"));
    }
    json_array_foreach(json_object_get(verification, "warnings"), i, item)
    {
        (void)printf("warning: %s: %s\n", node, json_string_value(item));
    }
}

void cluster_print_end(const json_t *status)
{
    const json_t *plan = json_object_get(status, "plan");
    json_t *members = json_object_get(status, "members");
    json_t *fork = json_object_get(status, "fork"), *item;
    const char *name;
    size_t i;
    (void)printf("cluster restore %s is complete: timeline %lld, %zu nodes\n",
                 cmd_text(status, "id"),
                 (long long)json_integer_value(json_object_get(fork, "timeline")),
                 json_object_size(members));
    json_object_foreach(members, name, item)
    {
        print_verification(name, json_object_get(item, "verification"));
    }
    json_array_foreach(json_object_get(plan, "slots"), i, item)
    {
        if (is_recreated(item))
            continue;
        (void)printf("lost: slot ");
        print_slot(item);
        (void)printf("\n");
    }
}
