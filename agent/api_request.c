/* One table of fields a request type: unknown fields, wrong types and wrong words are all refused
 * from it. What only the volume or the repository can tell is left to the job. */
#include "agent/api_request.h"

#include <stdio.h>

#include "agent/cluster_lock.h"
#include "agent/conf.h"
#include "agent/nearest.h"
#include "io/repo.h"

enum field_type {
    FIELD_TEXT,
    FIELD_ID,
    FIELD_BOOL,
    FIELD_NUMBER,
    FIELD_PERCENT,
    FIELD_EPOCH,
    FIELD_WORD,
    FIELD_MAP,
    FIELD_TARGET,
    FIELD_CLUSTER,
    FIELD_FORK,
    FIELD_HANDOVER,
    FIELD_SLOTS,
    FIELD_LIST,
    FIELD_NAMES,
};

struct field {
    const char *name;
    enum field_type type;
    bool required;
    const char *const *words; /* FIELD_WORD */
};

enum { FIELDS_MAX = 24, TEXT_MAX = 1023, SLOTS_MAX = 64, SLOT_NAME_MAX = 63, NAMES_MAX = 1000 };

static const char *const checkpoint_words[] = {"fast", "spread", NULL};
static const char *const action_words[] = {"promote", "pause", "shutdown", NULL};
static const char *const verify_words[] = {"none", "quick", "standard", "full", NULL};
static const char *const reindex_words[] = {"none", "auto", NULL};
static const char *const config_words[] = {"keep", "image", NULL};
static const char *const target_words[] = {"tag", "snapshot", "name",   "time",
                                           "lsn", "xid",      "latest", NULL};

static const char *const role_words[] = {"primary", "standby", NULL};
static const char *const handover_words[] = {"primary", "replica", NULL};
static const char *const until_words[] = {"fenced", "configured", "recovered", NULL};

static const struct field snapshot_fields[] = {
    {"tag", FIELD_TEXT, true, NULL},
    {"full", FIELD_BOOL, false, NULL},
    {"no_archive", FIELD_BOOL, false, NULL},
    {"with_wal", FIELD_BOOL, false, NULL},
    {"checkpoint", FIELD_WORD, false, checkpoint_words},
    {"members", FIELD_LIST, false, NULL},
    {"cluster_job", FIELD_ID, false, NULL},
};
static const struct field cluster_snapshot_fields[] = {
    {"tag", FIELD_TEXT, true, NULL},
    {"full", FIELD_BOOL, false, NULL},
    {"from", FIELD_TEXT, false, NULL},
};
static const struct field cluster_restore_fields[] = {
    {"snapshot", FIELD_TEXT, false, NULL},
    {"rejoin", FIELD_TEXT, false, NULL},
    {"target", FIELD_TARGET, false, NULL},
    {"target_timeline", FIELD_NUMBER, false, NULL},
    {"primary", FIELD_TEXT, false, NULL},
    {"verify", FIELD_WORD, false, verify_words},
    {"reindex", FIELD_WORD, false, reindex_words},
    {"map", FIELD_MAP, false, NULL},
    {"without", FIELD_MAP, false, NULL},
    {"delta", FIELD_BOOL, false, NULL},
    {"discard_unarchived_wal", FIELD_BOOL, false, NULL},
    {"dry_run", FIELD_BOOL, false, NULL},
    {"execute", FIELD_BOOL, false, NULL},
};
static const struct field restore_fields[] = {
    {"snapshot", FIELD_TEXT, true, NULL},
    {"target", FIELD_TARGET, false, NULL},
    {"target_timeline", FIELD_NUMBER, false, NULL},
    {"action", FIELD_WORD, false, action_words},
    {"verify", FIELD_WORD, false, verify_words},
    {"reindex", FIELD_WORD, false, reindex_words},
    {"overwrite", FIELD_MAP, false, NULL},
    {"devices", FIELD_MAP, false, NULL},
    {"mounts", FIELD_MAP, false, NULL},
    {"delta", FIELD_BOOL, false, NULL},
    {"config", FIELD_WORD, false, config_words},
    {"discard_unarchived_wal", FIELD_BOOL, false, NULL},
    {"dry_run", FIELD_BOOL, false, NULL},
    {"allow_second_primary", FIELD_BOOL, false, NULL},
    {"primary_is_down", FIELD_BOOL, false, NULL},
    {"execute", FIELD_BOOL, false, NULL},
    {"cluster", FIELD_CLUSTER, false, NULL},
    {"primary_conninfo", FIELD_TEXT, false, NULL},
    {"primary_slot", FIELD_TEXT, false, NULL},
    {"try_primary", FIELD_BOOL, false, NULL},
    {"handover", FIELD_HANDOVER, false, NULL},
};
static const struct field verification_fields[] = {
    {"snapshot", FIELD_TEXT, false, NULL},
    {"all", FIELD_BOOL, false, NULL},
    {"percent", FIELD_PERCENT, false, NULL},
    {"seed", FIELD_NUMBER, false, NULL},
};
static const struct field expiration_fields[] = {
    {"snapshots", FIELD_NAMES, false, NULL},
    {"dry_run", FIELD_BOOL, false, NULL},
};
static const struct field export_fields[] = {
    {"snapshot", FIELD_TEXT, true, NULL},
    {"volume", FIELD_TEXT, false, NULL},
    {"file", FIELD_TEXT, true, NULL},
    {"force", FIELD_BOOL, false, NULL},
};
static const struct field target_fields[] = {
    {"type", FIELD_WORD, true, target_words},
    {"value", FIELD_TEXT, false, NULL},
    {"exclusive", FIELD_BOOL, false, NULL},
};

static const struct field cluster_fields[] = {
    {"job", FIELD_ID, true, NULL},
    {"epoch", FIELD_EPOCH, true, NULL},
    {"role", FIELD_WORD, true, role_words},
};
static const struct field claim_fields[] = {
    {"job", FIELD_ID, true, NULL},
    {"epoch", FIELD_EPOCH, true, NULL},
    {"token", FIELD_ID, true, NULL},
    {"coordinator", FIELD_TEXT, true, NULL},
};
static const struct field fork_fields[] = {
    {"timeline", FIELD_NUMBER, true, NULL},
    {"lsn", FIELD_TEXT, true, NULL},
    {"parent", FIELD_NUMBER, true, NULL},
};

static const struct field handover_fields[] = {
    {"role", FIELD_WORD, true, handover_words},
    {"data_directory", FIELD_TEXT, true, NULL},
    {"system_id", FIELD_TEXT, false, NULL},
    {"timeline", FIELD_NUMBER, false, NULL},
};

static const struct field execute_fields[] = {
    {"verify", FIELD_BOOL, false, NULL},           {"epoch", FIELD_EPOCH, false, NULL},
    {"until", FIELD_WORD, false, until_words},     {"fork", FIELD_FORK, false, NULL},
    {"slots", FIELD_SLOTS, false, NULL},           {"idle_slots", FIELD_SLOTS, false, NULL},
    {"primary_conninfo", FIELD_TEXT, false, NULL}, {"primary_is_down", FIELD_BOOL, false, NULL},
};
static const struct field verify_fields[] = {{"epoch", FIELD_EPOCH, false, NULL}};
static const struct field resume_fields[] = {
    {"take_over", FIELD_BOOL, false, NULL},
    {"allow_second_primary", FIELD_BOOL, false, NULL},
    {"primary_is_down", FIELD_BOOL, false, NULL},
};

static const struct {
    const char *type;
    const struct field *fields;
    size_t count;
} request_types[] = {
    {"snapshot", snapshot_fields, ARRAY_LEN(snapshot_fields)},
    {"restore", restore_fields, ARRAY_LEN(restore_fields)},
    {"verification", verification_fields, ARRAY_LEN(verification_fields)},
    {"expiration", expiration_fields, ARRAY_LEN(expiration_fields)},
    {"export", export_fields, ARRAY_LEN(export_fields)},
    {"execute", execute_fields, ARRAY_LEN(execute_fields)},
    {"verify", verify_fields, ARRAY_LEN(verify_fields)},
    {"cluster_snapshot", cluster_snapshot_fields, ARRAY_LEN(cluster_snapshot_fields)},
    {"cluster_restore", cluster_restore_fields, ARRAY_LEN(cluster_restore_fields)},
    {"claim", claim_fields, ARRAY_LEN(claim_fields)},
    {"resume", resume_fields, ARRAY_LEN(resume_fields)},
};

static int check_fields(const json_t *obj, const struct field *fields, size_t count,
                        struct err *err);

static int check_text(const char *name, const json_t *value, struct err *err)
{
    const char *text = json_string_value(value);
    if (!text || strlen(text) != json_string_length(value))
        return err_set(err, ERR_USAGE, "field '%s' must be a string", name);
    if (!text[0] || strlen(text) > TEXT_MAX)
        return err_set(err, ERR_USAGE, "field '%s' must have 1 to %d bytes", name, TEXT_MAX);
    for (const char *at = text; *at; at++)
        if ((unsigned char)*at < 0x20 || *at == 0x7f)
            return err_set(err, ERR_USAGE, "field '%s' contains a control character", name);
    return 0;
}

static int check_id(const char *name, const json_t *value, struct err *err)
{
    uint8_t id[ID_LEN];
    int rc = check_text(name, value, err);
    if (rc < 0 || id_from_text(json_string_value(value), id))
        return rc;
    return err_set(err, ERR_USAGE, "field '%s' is not an id of 32 hexadecimal digits", name);
}

static int check_word(const struct field *field, const json_t *value, struct err *err)
{
    int rc = check_text(field->name, value, err);
    if (rc < 0)
        return rc;
    char list[128] = "";
    for (size_t i = 0; field->words[i]; i++) {
        if (strcmp(field->words[i], json_string_value(value)) == 0)
            return 0;
        size_t len = strlen(list);
        (void)snprintf(list + len, sizeof(list) - len, "%s%s", i ? ", " : "", field->words[i]);
    }
    return err_set(err, ERR_USAGE, "field '%s' is '%.80s', expected one of: %s", field->name,
                   json_string_value(value), list);
}

static int check_map(const struct field *field, const json_t *value, struct err *err)
{
    const char *key;
    json_t *entry;
    if (!json_is_object(value))
        return err_set(err, ERR_USAGE, "field '%s' must be an object of volume: text", field->name);
    if (json_object_size(value) > CONF_VOLUMES_MAX)
        return err_set(err, ERR_USAGE, "field '%s' has more than %d entries", field->name,
                       CONF_VOLUMES_MAX);
    json_object_foreach((json_t *)(uintptr_t)value, key, entry)
    {
        char name[160];
        (void)snprintf(name, sizeof(name), "%s.%.100s", field->name, key);
        if (!repo_name_valid(key, CONF_NAME_MAX))
            return err_set(err, ERR_USAGE, "'%.100s' in '%s' is not a volume name", key,
                           field->name);
        int rc = check_text(name, entry, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int check_target(const json_t *value, struct err *err)
{
    int rc = check_fields(value, target_fields, ARRAY_LEN(target_fields), err);
    if (rc < 0)
        return err_prefix(err, "target");
    const char *type = json_string_value(json_object_get(value, "type"));
    bool has_value = !!json_object_get(value, "value");
    bool takes_none =
        strcmp(type, "latest") == 0 || strcmp(type, "snapshot") == 0 || strcmp(type, "tag") == 0;
    if (takes_none && has_value)
        return err_set(err, ERR_USAGE, "target %s takes no value", type);
    if (!takes_none && !has_value)
        return err_set(err, ERR_USAGE, "target %s needs a value", type);
    return 0;
}

/* PostgreSQL's own rule: ReplicationSlotValidateName() in slot.c. */
static bool slot_name_valid(const json_t *value)
{
    const char *name = json_string_value(value);
    size_t len = name ? strlen(name) : 0;
    return len > 0 && len <= SLOT_NAME_MAX && len == json_string_length(value) &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == len;
}

static int check_slots(const char *name, const json_t *value, struct err *err)
{
    if (!json_is_array(value) || json_array_size(value) > SLOTS_MAX)
        return err_set(err, ERR_USAGE, "field '%s' must be a list of at most %d names", name,
                       SLOTS_MAX);
    for (size_t i = 0; i < json_array_size(value); i++)
        if (!slot_name_valid(json_array_get(value, i)))
            return err_set(err, ERR_USAGE, "entry %zu of field '%s' is not the name of a slot", i,
                           name);
    return 0;
}

static int check_names(const char *name, const json_t *value, struct err *err)
{
    int rc = 0;
    if (!json_is_array(value) || json_array_size(value) < 1 || json_array_size(value) > NAMES_MAX)
        return err_set(err, ERR_USAGE, "field '%s' must be a list of 1 to %d names", name,
                       NAMES_MAX);
    for (size_t i = 0; rc == 0 && i < json_array_size(value); i++)
        rc = check_text(name, json_array_get(value, i), err);
    return rc;
}

static int check_number(const char *name, const json_t *value, json_int_t max, struct err *err)
{
    json_int_t number = json_integer_value(value); /* 0 of what is none */
    if (number >= 1 && number <= max)
        return 0;
    return err_set(err, ERR_USAGE, "field '%s' must be a number from 1 to %lld", name,
                   (long long)max);
}

static int check_field(const struct field *field, const json_t *value, struct err *err)
{
    int rc;
    switch (field->type) {
    case FIELD_TEXT:
        return check_text(field->name, value, err);
    case FIELD_ID:
        return check_id(field->name, value, err);
    case FIELD_BOOL:
        if (!json_is_boolean(value))
            return err_set(err, ERR_USAGE, "field '%s' must be true or false", field->name);
        return 0;
    case FIELD_NUMBER:
        return check_number(field->name, value, UINT32_MAX, err);
    case FIELD_PERCENT:
        return check_number(field->name, value, 100, err);
    case FIELD_EPOCH:
        if (!json_is_integer(value) || json_integer_value(value) < 1 ||
            json_integer_value(value) > CLUSTER_EPOCH_MAX)
            return err_set(err, ERR_USAGE, "field '%s' must be a number from 1 to %lld",
                           field->name, CLUSTER_EPOCH_MAX);
        return 0;
    case FIELD_WORD:
        return check_word(field, value, err);
    case FIELD_MAP:
        return check_map(field, value, err);
    case FIELD_TARGET:
        return check_target(value, err);
    case FIELD_CLUSTER:
        rc = check_fields(value, cluster_fields, ARRAY_LEN(cluster_fields), err);
        return rc < 0 ? err_prefix(err, "cluster") : 0;
    case FIELD_FORK:
        rc = check_fields(value, fork_fields, ARRAY_LEN(fork_fields), err);
        return rc < 0 ? err_prefix(err, "fork") : 0;
    case FIELD_HANDOVER:
        rc = check_fields(value, handover_fields, ARRAY_LEN(handover_fields), err);
        return rc < 0 ? err_prefix(err, "handover") : 0;
    case FIELD_SLOTS:
        return check_slots(field->name, value, err);
    case FIELD_LIST:
        if (!json_is_array(value))
            return err_set(err, ERR_USAGE, "field '%s' must be an array", field->name);
        return 0;
    case FIELD_NAMES:
        return check_names(field->name, value, err);
    }
    return err_set(err, ERR_INTERNAL, "field of unknown type");
}

static int check_fields(const json_t *obj, const struct field *fields, size_t count,
                        struct err *err)
{
    const char *names[FIELDS_MAX + 1] = {NULL};
    for (size_t i = 0; i < count; i++)
        names[i] = fields[i].name;
    int rc = json_check_keys(obj, names, err);
    for (size_t i = 0; rc == 0 && i < count; i++) {
        const json_t *value = json_object_get(obj, fields[i].name);
        if (value)
            rc = check_field(&fields[i], value, err);
        else if (fields[i].required)
            rc = err_set(err, ERR_USAGE, "field '%s' is missing", fields[i].name);
    }
    return rc;
}

int api_request_check_tag(const char *tag, struct err *err)
{
    if (repo_tag_valid(tag) && tag[0] != '-')
        return 0;
    (void)err_set(err, ERR_USAGE, "'%.64s' cannot be a tag", tag);
    return err_hint(err, "1 to 30 of A-Z a-z 0-9 . _ -, not - first, and not 'latest' or an id");
}

static int check_dry_run(const json_t *obj, struct err *err)
{
    if (json_is_true(json_object_get(obj, "dry_run")) &&
        json_is_true(json_object_get(obj, "execute")))
        return err_set(err, ERR_USAGE, "fields 'dry_run' and 'execute' contradict each other");
    if (json_object_get(obj, "cluster") && json_is_true(json_object_get(obj, "execute")))
        return err_set(err, ERR_USAGE,
                       "a part of a cluster restore is reserved first: no 'execute'");
    return 0;
}

/* One node is brought back to what the last restore made of the cluster: nothing is chosen anew. */
static int check_rejoin(const json_t *obj, struct err *err)
{
    static const char *const alone[] = {"snapshot", "target", "target_timeline",
                                        "primary",  "map",    "without"};
    if (!json_object_get(obj, "rejoin"))
        return json_object_get(obj, "snapshot")
                   ? 0
                   : err_set(err, ERR_USAGE, "field 'snapshot' is missing");
    for (size_t i = 0; i < ARRAY_LEN(alone); i++)
        if (json_object_get(obj, alone[i]))
            return err_set(err, ERR_USAGE, "fields 'rejoin' and '%s' contradict each other",
                           alone[i]);
    return 0;
}

static int check_verification(const json_t *obj, struct err *err)
{
    bool all = json_is_true(json_object_get(obj, "all"));
    if (!json_object_get(obj, "snapshot") != all)
        return err_set(err, ERR_USAGE, "a snapshot, or all of them: one of 'snapshot' and 'all'");
    if (json_object_get(obj, "seed") && !json_object_get(obj, "percent"))
        return err_set(err, ERR_USAGE, "a 'seed' chooses the sample: give 'percent', too");
    return 0;
}

int api_request_parse(const char *type, const char *body, size_t len, json_t **ret, struct err *err)
{
    size_t len_max = strcmp(type, "snapshot") == 0 ? API_TOPOLOGY_MAX : API_BODY_MAX;
    if (len > len_max)
        return err_set(err, ERR_USAGE, "the body is longer than %zu KiB", len_max >> 10);
    free_json json_t *obj = NULL;
    int rc = len ? json_parse(body, len, ERR_USAGE, &obj, err) : 0;
    if (rc < 0)
        return rc;
    if (!obj)
        obj = json_object();
    for (size_t i = 0; i < ARRAY_LEN(request_types); i++)
        if (strcmp(request_types[i].type, type) == 0)
            rc = check_fields(obj, request_types[i].fields, request_types[i].count, err);
    if (rc == 0 && json_object_get(obj, "tag"))
        rc = api_request_check_tag(json_str(obj, "tag"), err);
    if (rc == 0)
        rc = check_dry_run(obj, err);
    if (rc == 0 && strcmp(type, "verification") == 0)
        rc = check_verification(obj, err);
    if (rc == 0 && strcmp(type, "cluster_restore") == 0)
        rc = check_rejoin(obj, err);
    if (rc < 0)
        return rc;
    (void)json_object_set_new(obj, "type", json_string(type));
    *ret = json_incref(obj);
    return 0;
}
