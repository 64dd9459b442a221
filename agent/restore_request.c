/* The body of POST /restores, checked field by field before anything else happens. */
#include "agent/restore.h"
#include "agent/pg_names.h"

#include <stdio.h>

static const char *const target_names[TARGET_TYPE_COUNT + 1] = {
    [TARGET_TAG] = "tag",       [TARGET_SNAPSHOT] = "snapshot", [TARGET_NAME] = "name",
    [TARGET_TIME] = "time",     [TARGET_LSN] = "lsn",           [TARGET_XID] = "xid",
    [TARGET_LATEST] = "latest",
};
static const char *const action_names[] = {"promote", "pause", "shutdown", NULL};
static const char *const verify_names[] = {"none", "quick", "standard", "full", NULL};
static const char *const reindex_names[] = {"none", "auto", NULL};
static const char *const config_names[] = {"keep", "image", NULL};

static const char *const step_names[STEP_COUNT] = {
    [STEP_NONE] = "none",
    [STEP_PLANNED] = "planned",
    [STEP_FENCED] = "fenced",
    [STEP_MARKED] = "marked",
    [STEP_PULLING] = "pulling",
    [STEP_WRITTEN] = "written",
    [STEP_CONFIGURED] = "configured",
    [STEP_RECOVERING] = "recovering",
    [STEP_VERIFYING] = "verifying",
    [STEP_COMPLETE] = "complete",
};

const char *restore_step_name(enum restore_step step)
{
    return step_names[step];
}

enum restore_step restore_step_from_name(const char *name)
{
    for (unsigned i = 0; name && i < STEP_COUNT; i++)
        if (strcmp(step_names[i], name) == 0)
            return (enum restore_step)i;
    return STEP_NONE;
}

const char *target_type_name(enum target_type type)
{
    return target_names[type];
}

const char *restore_action_name(enum restore_action action)
{
    return action_names[action];
}

const char *verify_level_name(enum verify_level level)
{
    return verify_names[level];
}

enum restore_step restore_hold_step(const char *until)
{
    static const struct {
        const char *name;
        enum restore_step last;
    } holds[] = {
        {"fenced", STEP_FENCED}, {"configured", STEP_CONFIGURED}, {"recovered", STEP_RECOVERING}};
    for (size_t i = 0; until && i < ARRAY_LEN(holds); i++)
        if (strcmp(holds[i].name, until) == 0)
            return holds[i].last;
    return STEP_COMPLETE;
}

/* An optional field with one of a few words; *ret keeps its default when the field is absent. */
static int parse_word(const json_t *body, const char *key, const char *const *words, unsigned *ret,
                      struct err *err)
{
    const char *text = NULL;
    int rc = json_opt_string(body, key, ERR_USAGE, &text, err);
    if (rc < 0 || !text)
        return rc;
    for (unsigned i = 0; words[i]; i++)
        if (strcmp(words[i], text) == 0) {
            *ret = i;
            return 0;
        }
    (void)err_set(err, ERR_USAGE, "%s '%s' is not known", key, text);
    char list[256] = "";
    for (unsigned i = 0; words[i]; i++) {
        size_t len = strlen(list);
        (void)snprintf(list + len, sizeof(list) - len, "%s%s", i ? ", " : "", words[i]);
    }
    return err_hint(err, "use one of: %s", list);
}

static bool target_has_value(enum target_type type)
{
    return type == TARGET_NAME || type == TARGET_TIME || type == TARGET_LSN || type == TARGET_XID;
}

static int parse_target(const json_t *body, struct restore_request *request, struct err *err)
{
    const json_t *target = json_object_get(body, "target");
    if (!target || json_is_null(target))
        return 0;
    if (!json_is_object(target))
        return err_set(err, ERR_USAGE, "target must be an object {\"type\", \"value\"}");
    static const char *const known[] = {"type", "value", "exclusive", NULL};
    int rc = json_check_keys(target, known, err);
    if (rc < 0)
        return rc;
    if (!json_object_get(target, "type"))
        return err_set(err, ERR_USAGE, "target has no type");
    unsigned type = TARGET_TAG;
    rc = parse_word(target, "type", target_names, &type, err);
    if (rc == 0)
        rc = json_opt_string(target, "value", ERR_USAGE, &request->target_value, err);
    if (rc == 0)
        rc = json_opt_bool(target, "exclusive", ERR_USAGE, &request->exclusive, err);
    if (rc < 0)
        return rc;
    request->target = (enum target_type)type;
    request->target_given = true;
    if (target_has_value(request->target) && !request->target_value[0])
        return err_set(err, ERR_USAGE, "target %s needs a value", target_names[type]);
    if (!target_has_value(request->target) && request->target != TARGET_TAG &&
        request->target_value[0])
        return err_set(err, ERR_USAGE, "target %s takes no value", target_names[type]);
    bool may_exclude = type == TARGET_TIME || type == TARGET_LSN || type == TARGET_XID;
    if (!request->exclusive || may_exclude)
        return 0;
    (void)err_set(err, ERR_USAGE, "target %s cannot be exclusive", target_names[type]);
    return err_hint(err, "a name is the end of a restore point; time, lsn and xid can be excluded");
}

/* An optional object of strings: volume → text. */
static int parse_map(const json_t *body, const char *key, const json_t **ret, struct err *err)
{
    const json_t *map = json_object_get(body, key);
    if (!map || json_is_null(map))
        return 0;
    if (!json_is_object(map))
        return err_set(err, ERR_USAGE, "%s must be an object: volume name to text", key);
    for (void *at = json_object_iter((json_t *)(uintptr_t)map); at;
         at = json_object_iter_next((json_t *)(uintptr_t)map, at))
        if (!json_is_string(json_object_iter_value(at)))
            return err_set(err, ERR_USAGE, "%s '%s' is not a text", key, json_object_iter_key(at));
    *ret = map;
    return 0;
}

static int parse_words(const json_t *body, struct restore_request *ret, struct err *err)
{
    unsigned action = ACTION_PROMOTE, verify = VERIFY_STANDARD, reindex = 0, config = 0;
    int rc = parse_word(body, "action", action_names, &action, err);
    if (rc == 0)
        rc = parse_word(body, "verify", verify_names, &verify, err);
    if (rc == 0)
        rc = parse_word(body, "reindex", reindex_names, &reindex, err);
    if (rc == 0)
        rc = parse_word(body, "config", config_names, &config, err);
    if (rc < 0)
        return rc;
    ret->action = (enum restore_action)action;
    ret->verify = (enum verify_level)verify;
    ret->reindex = reindex == 1;
    ret->config_image = config == 1;
    return 0;
}

/* --- cluster ---------------------------------------------------------------------------------- */

int restore_fork_parse(const json_t *json, enum err_code code, struct restore_fork *ret,
                       struct err *err)
{
    struct restore_fork fork;
    uint64_t timeline = 0, parent = 0;
    const char *lsn = NULL;
    int rc = json_get_u64(json, "timeline", code, &timeline, err);
    if (rc == 0)
        rc = json_get_u64(json, "parent", code, &parent, err);
    if (rc == 0)
        rc = json_get_string(json, "lsn", code, &lsn, err);
    if (rc < 0)
        return rc;
    if (parent == 0 || timeline <= parent || timeline > UINT32_MAX)
        return err_set(err, code, "fork: timeline %llu cannot begin on timeline %llu",
                       (unsigned long long)timeline, (unsigned long long)parent);
    if (!pg_lsn_parse(lsn, &fork.lsn) || fork.lsn == 0)
        return err_set(err, code, "fork: '%.32s' is not the LSN of a fork", lsn);
    fork.timeline = (uint32_t)timeline;
    fork.parent = (uint32_t)parent;
    *ret = fork;
    return 0;
}

static int parse_standby(const json_t *body, struct restore_request *ret, struct err *err)
{
    ret->primary_conninfo = NULL;
    ret->primary_slot = "";
    int rc = json_opt_string(body, "primary_conninfo", ERR_USAGE, &ret->primary_conninfo, err);
    if (rc == 0)
        rc = json_opt_string(body, "primary_slot", ERR_USAGE, &ret->primary_slot, err);
    if (rc == 0)
        rc = json_opt_bool(body, "try_primary", ERR_USAGE, &ret->try_primary, err);
    if (rc < 0)
        return rc;
    bool given = ret->primary_conninfo || ret->primary_slot[0] || ret->try_primary;
    if (given && !ret->standby)
        return err_set(err, ERR_USAGE,
                       "primary_conninfo, primary_slot and try_primary are for the standbys of a "
                       "cluster");
    if (ret->standby && !(ret->primary_conninfo && ret->primary_conninfo[0]))
        return err_set(err, ERR_USAGE, "a standby needs primary_conninfo");
    return 0;
}

static int parse_cluster(const json_t *body, struct restore_request *ret, struct err *err)
{
    static const char *const roles[] = {"primary", "standby", NULL};
    const json_t *cluster = json_object_get(body, "cluster");
    unsigned role = 0;
    if (cluster) {
        int rc = json_get_string(cluster, "job", ERR_USAGE, &ret->cluster_job, err);
        if (rc == 0)
            rc = parse_word(cluster, "role", roles, &role, err);
        if (rc < 0)
            return rc;
    }
    ret->standby = role == 1;
    if (cluster && ret->action != ACTION_PROMOTE)
        return err_set(err, ERR_USAGE, "a cluster restore promotes: no other action is possible");
    if (cluster && ret->target == TARGET_SNAPSHOT) {
        (void)err_set(err, ERR_USAGE, "target snapshot is not possible for a cluster restore");
        return err_hint(err, "its standbys need the archive: use the tag");
    }
    return parse_standby(body, ret, err);
}

/* --- handover --------------------------------------------------------------------------------- */

static int parse_handover(const json_t *body, struct restore_request *ret, struct err *err)
{
    static const char *const roles[] = {"primary", "replica", NULL};
    const json_t *handover = json_object_get(body, "handover");
    const char *system = NULL;
    uint64_t timeline = 0;
    unsigned role = 0;
    if (!handover)
        return 0;
    int rc = json_get_string(handover, "data_directory", ERR_USAGE, &ret->handover_directory, err);
    if (rc == 0)
        rc = parse_word(handover, "role", roles, &role, err);
    if (rc == 0)
        rc = json_opt_string(handover, "system_id", ERR_USAGE, &system, err);
    if (rc == 0)
        rc = json_opt_u64(handover, "timeline", ERR_USAGE, &timeline, err);
    if (rc < 0)
        return rc;
    ret->replica = role == 1;
    ret->leader_system = system ? strtoull(system, NULL, 10) : 0;
    ret->leader_timeline = timeline <= UINT32_MAX ? (uint32_t)timeline : 0;
    if ((system && ret->leader_system == 0) || (timeline && ret->leader_timeline == 0))
        return err_set(err, ERR_USAGE, "handover: the leader's system_id or timeline is not one");
    if (ret->cluster_job || ret->overwrite || ret->devices || ret->mounts ||
        ret->action != ACTION_PROMOTE)
        return err_set(err, ERR_USAGE,
                       "a handover promotes, on the volumes that are configured: no cluster, "
                       "overwrite, devices, mounts or action");
    if (ret->replica && (ret->target_given || ret->target_timeline))
        return err_set(err, ERR_USAGE, "a replica follows its leader: no target");
    return 0;
}

/* --- all of it -------------------------------------------------------------------------------- */

int restore_request_parse(const json_t *body, struct restore_request *ret, struct err *err)
{
    static const char *const known[] = {"type",
                                        "snapshot",
                                        "target",
                                        "target_timeline",
                                        "action",
                                        "verify",
                                        "reindex",
                                        "config",
                                        "devices",
                                        "mounts",
                                        "overwrite",
                                        "delta",
                                        "discard_unarchived_wal",
                                        "allow_second_primary",
                                        "primary_is_down",
                                        "dry_run",
                                        "execute",
                                        "cluster",
                                        "primary_conninfo",
                                        "primary_slot",
                                        "try_primary",
                                        "handover",
                                        NULL};
    struct restore_request request = {.target = TARGET_TAG, .target_value = ""};
    uint64_t timeline = 0;
    int rc = json_check_keys(body, known, err);
    if (rc == 0)
        rc = json_get_string(body, "snapshot", ERR_USAGE, &request.snapshot, err);
    if (rc == 0)
        rc = parse_target(body, &request, err);
    if (rc == 0)
        rc = json_opt_u64(body, "target_timeline", ERR_USAGE, &timeline, err);
    if (rc == 0)
        rc = parse_words(body, &request, err);
    if (rc == 0)
        rc = parse_map(body, "devices", &request.devices, err);
    if (rc == 0)
        rc = parse_map(body, "mounts", &request.mounts, err);
    if (rc == 0)
        rc = parse_map(body, "overwrite", &request.overwrite, err);
    if (rc == 0)
        rc = json_opt_bool(body, "delta", ERR_USAGE, &request.delta, err);
    if (rc == 0)
        rc = json_opt_bool(body, "discard_unarchived_wal", ERR_USAGE,
                           &request.discard_unarchived_wal, err);
    if (rc == 0)
        rc = json_opt_bool(body, "allow_second_primary", ERR_USAGE, &request.allow_second_primary,
                           err);
    if (rc == 0)
        rc = json_opt_bool(body, "primary_is_down", ERR_USAGE, &request.primary_is_down, err);
    if (rc == 0)
        rc = json_opt_bool(body, "dry_run", ERR_USAGE, &request.dry_run, err);
    if (rc == 0)
        rc = parse_cluster(body, &request, err);
    if (rc < 0)
        return rc;
    if (timeline > UINT32_MAX)
        return err_set(err, ERR_USAGE, "target_timeline is out of range");
    request.target_timeline = (uint32_t)timeline;
    rc = parse_handover(body, &request, err);
    if (rc == 0)
        *ret = request;
    return rc;
}
