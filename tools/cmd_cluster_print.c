/* A cluster restore for people: its plan before, its end after. */
#include <stdio.h>

#include "tools/cmd_cluster.h"

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

void cluster_print_plan(const json_t *plan)
{
    size_t i;
    json_t *item;
    (void)printf("restore cluster %s to %s, snapshot %s\n", cmd_text(plan, "cluster"),
                 cmd_text(plan, "tag"), cmd_text(plan, "snapshot"));
    json_array_foreach(json_object_get(plan, "members"), i, item)
    {
        bool moved = strcmp(cmd_text(item, "recorded"), cmd_text(item, "name")) != 0;
        (void)printf("  %-8s %s%s%s%s\n", cmd_text(item, "role"), cmd_text(item, "name"),
                     moved ? " (in the place of " : "", moved ? cmd_text(item, "recorded") : "",
                     moved ? ")" : "");
    }
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
