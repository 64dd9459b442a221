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

/* Keys whose numbers are bytes. */
static bool is_size(const char *key)
{
    static const char *const keys[] = {"size",       "bytes_read",     "bytes_stored",
                                       "bytes_free", "segment_size",   "block_size",
                                       "len",        "logical_sector", "physical_sector"};
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (strcmp(keys[i], key) == 0)
            return true;
    return false;
}

static json_t *size_text(const json_t *bytes)
{
    char text[24];
    cmd_format_size((uint64_t)json_integer_value(bytes), text);
    return json_string(text);
}

static void add_sizes(json_t *to, const char *key, const json_t *array)
{
    json_t *sizes = json_array(), *value;
    size_t i;
    json_array_foreach(array, i, value)
    {
        (void)json_array_append_new(sizes, size_text(value));
    }
    (void)json_object_set_new(to, key, sizes);
}

/* Nanoseconds, of a stall. */
static void add_duration(json_t *to, const char *key, const json_t *value)
{
    char name[64], text[32];
    (void)snprintf(name, sizeof(name), "%.*s", (int)(strrchr(key, '_') - key), key);
    (void)snprintf(text, sizeof(text), "%.1f ms", (double)json_integer_value(value) / 1e6);
    (void)json_object_set_new(to, name, json_string(text));
}

static void add_mode(json_t *to, const char *key, const json_t *value)
{
    char text[16];
    (void)snprintf(text, sizeof(text), "%04o", (unsigned)json_integer_value(value));
    (void)json_object_set_new(to, key, json_string(text));
}

static void add_field(json_t *to, const char *key, const json_t *value)
{
    const char *unit = strrchr(key, '_');
    if (json_is_integer(value) && is_size(key))
        (void)json_object_set_new(to, key, size_text(value));
    else if (strcmp(key, "passes") == 0)
        add_sizes(to, key, value);
    else if (json_is_integer(value) && strcmp(key, "mode") == 0)
        add_mode(to, key, value);
    else if (json_is_integer(value) && unit && strcmp(unit, "_ns") == 0)
        add_duration(to, key, value);
    else if (json_is_integer(value) && unit && strcmp(unit, "_s") == 0)
        add_time(to, key, value, 1);
    else if (json_is_integer(value) && unit && strcmp(unit, "_us") == 0)
        add_time(to, key, value, 1000000);
    else if (strcmp(key, "settings") == 0)
        add_settings(to, key, value);
    else
        (void)json_object_set_new(to, key, for_people(value));
}

/* A new reference: times and sizes as text, of the settings only those that a server which replays
 * the WAL must have, and for whom commits wait. --json has all as it is. */
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
             "that was recorded, times in seconds and sizes in bytes. passes of a live copy: the\n"
             "first, which reads what is used, then what each stop found changed; --json has\n"
             "only the latter.\n",
    .run = run,
};
