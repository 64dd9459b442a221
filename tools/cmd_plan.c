/* The plan of a restore for people: what will be written where, what happens to the server, what is
 * lost. --json has every field. */
#include <stdio.h>

#include "tools/cmd_restore.h"

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text ? text : "";
}

static const char *content_of(const char *holds)
{
    if (strcmp(holds, "blank") == 0)
        return "blank";
    if (strcmp(holds, "own") == 0)
        return "holds an older or newer state of itself";
    if (strcmp(holds, "marked") == 0)
        return "marked by a restore that was not finished";
    return "FOREIGN";
}

static void print_volume(const json_t *volume)
{
    char size[24];
    cmd_format_size((uint64_t)json_integer_value(json_object_get(volume, "bytes")), size);
    (void)printf("  write    %s: %s of %s to %s (%s), mounted at %s\n", text_of(volume, "name"),
                 size, text_of(volume, "fs_type"), text_of(volume, "device"),
                 content_of(text_of(volume, "holds")), text_of(volume, "mount_point"));
}

static void print_target(const json_t *plan)
{
    const json_t *target = json_object_get(plan, "target");
    json_int_t timeline = json_integer_value(json_object_get(target, "timeline"));
    const char *value = text_of(target, "value");
    (void)printf("  recover  to %s%s%s", text_of(target, "type"), value[0] ? " " : "", value);
    if (timeline > 0)
        (void)printf(" on timeline %lld", (long long)timeline);
    (void)printf(", then %s\n", text_of(plan, "action"));
}

void restore_print_plan(const json_t *plan)
{
    char when[32];
    size_t i;
    json_t *item;
    cmd_format_time(json_integer_value(json_object_get(plan, "captured_s")), when);
    (void)printf("plan: restore %s (%.12s) of %s/%s, captured %s\n", text_of(plan, "tag"),
                 text_of(plan, "snapshot"), text_of(plan, "cluster"), text_of(plan, "node"), when);
    (void)printf("  server   PostgreSQL %s in %s%s\n", text_of(plan, "pg_version"),
                 text_of(plan, "data_directory"),
                 json_is_true(json_object_get(plan, "server_running"))
                     ? ": it runs and will be stopped"
                     : ": it is not running");
    json_array_foreach(json_object_get(plan, "volumes"), i, item)
    {
        print_volume(item);
    }
    print_target(plan);
    (void)printf("  verify   %s; reindex %s; server configuration: %s\n", text_of(plan, "verify"),
                 text_of(plan, "reindex"), text_of(plan, "config"));
    json_array_foreach(json_object_get(plan, "warnings"), i, item)
    {
        (void)printf("  warning  %s\n", json_string_value(item));
    }
}
