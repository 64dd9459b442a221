/* The plan of a restore for people: what will be written where, what happens to the server, what is
 * lost. --json has every field. */
#include <stdio.h>

#include "tools/cmd_restore.h"

/* mounted: of a part of a cluster, where what is mounted is meant. */
static const char *content_of(const char *holds, bool mounted)
{
    if (strcmp(holds, "foreign") == 0 && mounted)
        return "the filesystem that is mounted there now";
    if (strcmp(holds, "blank") == 0)
        return "blank";
    if (strcmp(holds, "own") == 0)
        return "holds an older or newer state of itself";
    if (strcmp(holds, "marked") == 0)
        return "marked by a restore that was not finished";
    return "FOREIGN";
}

void restore_print_volume(const json_t *volume)
{
    char size[24];
    cmd_format_size((uint64_t)json_integer_value(json_object_get(volume, "bytes")), size);
    (void)printf(
        "  write    %s: %s of %s to %s (%s), mounted at %s\n", cmd_text(volume, "name"), size,
        cmd_text(volume, "fs_type"), cmd_text(volume, "device"),
        content_of(cmd_text(volume, "holds"), json_is_true(json_object_get(volume, "mounted"))),
        cmd_text(volume, "mount_point"));
}

void restore_print_target(const json_t *target, const char *action)
{
    json_int_t timeline = json_integer_value(json_object_get(target, "timeline"));
    const char *value = cmd_text(target, "value");
    (void)printf("  recover  to %s%s%s%s",
                 json_is_true(json_object_get(target, "exclusive")) ? "just before " : "",
                 cmd_text(target, "type"), value[0] ? " " : "", value);
    if (timeline > 0)
        (void)printf(" on timeline %lld", (long long)timeline);
    (void)printf(", then %s\n", action);
}

void restore_print_delta(const json_t *plan)
{
    if (json_is_true(json_object_get(plan, "delta")))
        (void)printf("  delta    the devices are read first: what is right on them stays\n");
}

void restore_print_plan(const json_t *plan)
{
    char when[32];
    size_t i;
    json_t *item;
    cmd_format_time(json_integer_value(json_object_get(plan, "captured_s")), when);
    (void)printf("plan: restore %s (%.12s) of %s/%s, captured %s\n", cmd_text(plan, "tag"),
                 cmd_text(plan, "snapshot"), cmd_text(plan, "cluster"), cmd_text(plan, "node"),
                 when);
    (void)printf("  server   PostgreSQL %s in %s%s\n", cmd_text(plan, "pg_version"),
                 cmd_text(plan, "data_directory"),
                 json_is_true(json_object_get(plan, "server_running"))
                     ? ": it runs and will be stopped"
                     : ": it is not running");
    json_array_foreach(json_object_get(plan, "volumes"), i, item)
    {
        restore_print_volume(item);
    }
    restore_print_delta(plan);
    restore_print_target(json_object_get(plan, "target"), cmd_text(plan, "action"));
    (void)printf("  verify   %s; reindex %s; server configuration: %s\n", cmd_text(plan, "verify"),
                 cmd_text(plan, "reindex"), cmd_text(plan, "config"));
    item = json_object_get(plan, "other_primary");
    if (item)
        (void)printf("  primary  %s: %s\n", cmd_text(item, "state"), cmd_text(item, "text"));
    json_array_foreach(json_object_get(plan, "warnings"), i, item)
    {
        (void)printf("  warning  %s\n", json_string_value(item));
    }
}
