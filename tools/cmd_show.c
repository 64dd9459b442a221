/* tidemark show: everything about one snapshot, except contents of configuration files. */
#include <stdio.h>

#include "agent/record.h"
#include "tools/cmd.h"

static json_t *for_people(const json_t *json);

/* Seconds since 1970 (by) become a time, and the key loses its unit. */
static void add_time(json_t *to, const char *key, const json_t *value, json_int_t by)
{
    char name[64], text[32];
    (void)snprintf(name, sizeof(name), "%.*s", (int)(strrchr(key, '_') - key), key);
    cmd_format_time(json_integer_value(value) / by, text);
    (void)json_object_set_new(to, name, json_string(text));
}

static void add_settings(json_t *to, const char *key, const json_t *settings)
{
    static const char names[] = "synchronous_standby_names";
    json_t *needed = json_object();
    json_t *sync = json_object_get(settings, names);
    if (sync)
        (void)json_object_set(needed, names, sync);
    for (size_t i = 0; record_replay_settings[i]; i++) {
        json_t *value = json_object_get(settings, record_replay_settings[i]);
        if (value)
            (void)json_object_set(needed, record_replay_settings[i], value);
    }
    (void)json_object_set_new(to, key, needed);
}

static void add_field(json_t *to, const char *key, const json_t *value)
{
    const char *unit = strrchr(key, '_');
    if (json_is_integer(value) && unit && strcmp(unit, "_s") == 0)
        add_time(to, key, value, 1);
    else if (json_is_integer(value) && unit && strcmp(unit, "_us") == 0)
        add_time(to, key, value, 1000000);
    else if (strcmp(key, "settings") == 0)
        add_settings(to, key, value);
    else
        (void)json_object_set_new(to, key, for_people(value));
}

/* A new reference: times as text, of the settings only those that a server which replays the WAL
 * must have, and for whom commits wait. --json has all as it is. */
static json_t *for_people(const json_t *json)
{
    const char *key;
    json_t *value;
    size_t i;
    if (json_is_array(json)) {
        json_t *array = json_array();
        json_array_foreach(json, i, value)
        {
            (void)json_array_append_new(array, for_people(value));
        }
        return array;
    }
    if (!json_is_object(json))
        return json_deep_copy(json);
    json_t *object = json_object();
    json_object_foreach((json_t *)(uintptr_t)json, key, value)
    {
        add_field(object, key, value);
    }
    return object;
}

/* One sentence instead of three keys. */
static void add_tracks(json_t *record)
{
    size_t i;
    json_t *volume;
    json_array_foreach(json_object_get(record, "volumes"), i, volume)
    {
        char text[CMD_TRACK_LEN];
        if (cmd_format_track(volume, cmd_text(record, "parent"), text))
            (void)json_object_set_new(volume, "track", json_string(text));
        (void)json_object_del(volume, "track_used");
        (void)json_object_del(volume, "track_read");
        (void)json_object_del(volume, "track_full");
    }
}

/* The record has what each barrier found changed; here the first pass comes before them: all that
 * was read of the volumes, less those. */
static void add_first_pass(json_t *record)
{
    size_t i;
    json_t *value;
    json_t *passes = json_object_get(json_object_get(record, "precopy"), "passes");
    json_int_t first = 0;
    if (!passes)
        return;
    json_array_foreach(json_object_get(record, "volumes"), i, value)
    {
        first += json_integer_value(json_object_get(value, "bytes_read"));
    }
    json_array_foreach(passes, i, value)
    {
        first -= json_integer_value(value);
    }
    (void)json_array_insert_new(passes, 0, json_integer(first));
}

static int run(struct cmd *cmd, struct err *err)
{
    free_json json_t *record = NULL;
    char path[96];
    int rc = cmd_check_name("snapshot", cmd->args[0], err);
    (void)snprintf(path, sizeof(path), "/snapshots/%s", cmd->args[0]);
    if (rc == 0)
        rc = cmd_call(cmd, "GET", path, &record, err);
    if (rc < 0)
        return rc;
    if (cmd->json) {
        cmd_print_json(record);
        return 0;
    }
    add_tracks(record);
    add_first_pass(record);
    free_json json_t *shown = for_people(record);
    cmd_print_tree(shown, 0, stdout);
    return 0;
}

const struct cmd_verb verb_show = {
    .name = "show",
    .args = "TAG|ID|latest",
    .args_min = 1,
    .args_max = 1,
    .summary = "Shows one snapshot.",
    .notes = "This node's own, else one of another node of the cluster. An ID may be cut to its "
             "first 6\n"
             "digits or more. Times are UTC; --json has every setting\n"
             "that was recorded, and times in seconds. passes of a live copy: bytes of the\n"
             "first, which reads what is used, then what each stop found changed; --json has\n"
             "only the latter.\n",
    .run = run,
};
