/* See conf_report.h. Not the whole configuration: what an agent's unit sets in its environment, the
 * paths that follow from what a user may read, and how fast it works make no other target. */
#include "agent/conf_report.h"

#include <string.h>

#include "agent/conf_table.h"
#include "agent/conninfo.h"

enum { VALUE_MAX = 4096, KEY_MAX = 2 * CONF_NAME_MAX };

static const struct {
    const char *section, *key;
} reported[] = {
    {"tidemark", "cluster"},      {"tidemark", "node"},       {"tidemark", "state_dir"},
    {"repository", "url"},        {"repository", "endpoint"}, {"repository", "lock_days"},
    {"repository", "lock_mode"},  {"retention", "count"},     {"retention", "days"},
    {"retention", "grace"},       {"coordinator", "members"}, {"postgresql", "data_directory"},
    {"postgresql", "connection"},
};

static const char *const reported_of_volumes[] = {"mount", "device", "provider"};

static void add(json_t *report, const char *section, const char *name, const char *key,
                const void *base)
{
    char value[VALUE_MAX], full[KEY_MAX];
    option_format(option_find(section, key), base, value, sizeof(value));
    if (strcmp(key, "connection") == 0 &&
        value[0]) { /* passwords do not belong there, but may be */
        char raw[VALUE_MAX];
        memcpy(raw, value, sizeof(raw));
        if (!conninfo_public(raw, value, sizeof(value)))
            (void)snprintf(value, sizeof(value), "(cannot be read)");
    }
    (void)snprintf(full, sizeof(full), "%s%s%s.%s", section, name[0] ? " " : "", name, key);
    (void)json_object_set_new(report, full, json_string(value));
}

json_t *conf_report(const struct conf *conf)
{
    json_t *report = json_object();
    for (size_t i = 0; i < ARRAY_LEN(reported); i++)
        add(report, reported[i].section, "", reported[i].key, conf);
    for (size_t i = 0; i < conf->volume_count; i++)
        for (size_t j = 0; j < ARRAY_LEN(reported_of_volumes); j++)
            add(report, "volume", conf->volumes[i].name, reported_of_volumes[j], &conf->volumes[i]);
    return report;
}

static const char *value_of(const json_t *report, const char *key)
{
    const char *value = json_str(report, key);
    return value[0] ? value : "not set";
}

static bool find(const json_t *in, const json_t *ours, const json_t *theirs,
                 char text[CONF_DIFFERENCE_LEN])
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)in, key, value)
    {
        if (strcmp(json_str(ours, key), json_str(theirs, key)) == 0)
            continue;
        (void)snprintf(text, CONF_DIFFERENCE_LEN, "%s is %.160s there and %.160s with the agent",
                       key, value_of(ours, key), value_of(theirs, key));
        return true;
    }
    return false;
}

bool conf_report_differs(const json_t *ours, const json_t *theirs, char text[CONF_DIFFERENCE_LEN])
{
    return find(ours, ours, theirs, text) || find(theirs, ours, theirs, text);
}
