/* See cluster_copy.h. What is read is built anew from fields that were checked one by one, so that
 * nothing of a damaged or foreign copy gets into a journal. */
#include "agent/cluster_copy.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "agent/api_request.h"
#include "agent/cluster.h"
#include "agent/cluster_lock.h"
#include "agent/pg_names.h"
#include "agent/restore.h"
#include "io/format.h"

enum { COPY_FORMAT = 1, SLOT_MAX = 63 };

static const char *const states[] = {"running", "prepared",  "executed", "complete",
                                     "failed",  "cancelled", NULL};

static const char *const level_names[LEVEL_COUNT] = {
    [LEVEL_NONE] = "none",           [LEVEL_RESERVED] = "reserved",
    [LEVEL_FENCED] = "fenced",       [LEVEL_CONFIGURED] = "configured",
    [LEVEL_RECOVERED] = "recovered", [LEVEL_COMPLETE] = "complete",
};

/* --- names ------------------------------------------------------------------------------------ */

bool cluster_is_dry_run(const struct cluster_restore *all)
{
    return json_is_true(json_object_get(all->job->request, "dry_run"));
}

const char *cluster_level_name(enum cluster_level level)
{
    return level_names[level];
}

const char *cluster_wave_name(enum cluster_level slowest)
{
    static const char *const waves[LEVEL_COUNT] = {
        [LEVEL_NONE] = "none",           [LEVEL_RESERVED] = "planned",
        [LEVEL_FENCED] = "pulling",      [LEVEL_CONFIGURED] = "recovering",
        [LEVEL_RECOVERED] = "verifying", [LEVEL_COMPLETE] = "complete"};
    return waves[slowest];
}

static enum cluster_level level_of(const json_t *member)
{
    for (unsigned i = 0; i < LEVEL_COUNT; i++)
        if (json_is(member, "level", level_names[i]))
            return (enum cluster_level)i;
    return LEVEL_NONE;
}

const char *cluster_wave(const json_t *members)
{
    enum cluster_level slowest = LEVEL_COMPLETE;
    const char *name;
    json_t *member;
    size_t i;
    json_array_foreach(members, i, member)
    {
        slowest = level_of(member) < slowest ? level_of(member) : slowest;
    }
    json_object_foreach((json_t *)(uintptr_t)members, name, member)
    {
        slowest = level_of(member) < slowest ? level_of(member) : slowest;
    }
    return slowest < LEVEL_FENCED ? "fenced" : cluster_wave_name(slowest);
}

void cluster_copy_name(char *name, const char *cluster, const struct cluster_copy_id *id)
{
    (void)snprintf(name, STORE_NAME_MAX + 1, "job/%s/%s/%08" PRIx32 "-%08" PRIx32 "-%s", cluster,
                   id->job, id->epoch, id->number, id->writer);
}

/* Eight lower-case hex digits at *at, and what follows them. */
static bool take_hex(const char **at, char end, char text[CLUSTER_WRITER_LEN + 1])
{
    if (strspn(*at, "0123456789abcdef") != CLUSTER_WRITER_LEN || (*at)[CLUSTER_WRITER_LEN] != end)
        return false;
    (void)snprintf(text, CLUSTER_WRITER_LEN + 1, "%.*s", CLUSTER_WRITER_LEN, *at);
    *at += CLUSTER_WRITER_LEN + 1;
    return true;
}

bool cluster_copy_name_parse(const char *name, const char *cluster, struct cluster_copy_id *ret)
{
    char prefix[CONF_NAME_MAX + 8], epoch[CLUSTER_WRITER_LEN + 1], number[CLUSTER_WRITER_LEN + 1];
    struct cluster_copy_id id = {.epoch = 0};
    uint8_t bytes[ID_LEN];
    size_t len = (size_t)snprintf(prefix, sizeof(prefix), "job/%s/", cluster);
    if (strncmp(name, prefix, len) != 0 || strlen(name + len) < ID_TEXT_LEN ||
        name[len + ID_TEXT_LEN - 1] != '/')
        return false;
    (void)snprintf(id.job, sizeof(id.job), "%s", name + len);
    const char *at = name + len + ID_TEXT_LEN;
    if (!id_from_text(id.job, bytes) || !take_hex(&at, '-', epoch) || !take_hex(&at, '-', number) ||
        !take_hex(&at, '\0', id.writer))
        return false;
    id.epoch = (uint32_t)strtoul(epoch, NULL, 16);
    id.number = (uint32_t)strtoul(number, NULL, 16);
    if (id.epoch == 0)
        return false;
    *ret = id;
    return true;
}

/* --- writing ---------------------------------------------------------------------------------- */

static json_t *picked(const json_t *from, const char *const *keys)
{
    json_t *json = json_object();
    for (size_t i = 0; keys[i]; i++)
        if (json_object_get(from, keys[i]))
            (void)json_object_set(json, keys[i], json_object_get(from, keys[i]));
    return json;
}

static json_t *plan_of(const json_t *journal)
{
    static const char *const plan_keys[] = {"snapshot", "tag", "captured_s", "system_id", NULL};
    static const char *const member_keys[] = {"name", "recorded", "role", "primary_slot", NULL};
    const json_t *plan = json_object_get(journal, "plan");
    const json_t *nodes = json_object_get(journal, "members");
    json_t *ret = picked(plan, plan_keys), *members = json_array();
    size_t i;
    json_t *member;
    json_array_foreach(json_object_get(plan, "members"), i, member)
    {
        json_t *one = picked(member, member_keys);
        const json_t *node = json_object_get(nodes, json_str(member, "name"));
        (void)json_object_set_new(one, "job", json_string(json_str(node, "job")));
        (void)json_object_set_new(
            one, "level",
            json_string(node ? json_str(node, "level") : cluster_level_name(LEVEL_NONE)));
        (void)json_array_append_new(members, one);
    }
    (void)json_object_set_new(ret, "members", members);
    return ret;
}

json_t *cluster_copy_make(const struct cluster_copy_id *id, const char *cluster,
                          const char *coordinator, const json_t *request, const json_t *journal)
{
    static const char *const keys[] = {"state", "step", "created_ms", "fork", NULL};
    json_t *json = picked(journal, keys);
    json_t *asked = json_deep_copy(request);
    (void)json_object_del(asked, "type");
    (void)json_object_set_new(json, "format", json_integer(COPY_FORMAT));
    (void)json_object_set_new(json, "id", json_string(id->job));
    (void)json_object_set_new(json, "cluster", json_string(cluster));
    (void)json_object_set_new(json, "epoch", json_integer(id->epoch));
    (void)json_object_set_new(json, "coordinator", json_string(coordinator));
    (void)json_object_set_new(json, "written_s", json_integer(time(NULL)));
    (void)json_object_set_new(json, "touched",
                              json_boolean(json_is_true(json_object_get(journal, "touched"))));
    (void)json_object_set_new(json, "over", json_boolean(id->number == CLUSTER_COPY_OVER));
    (void)json_object_set_new(json, "request", asked);
    (void)json_object_set_new(json, "plan", plan_of(journal));
    return json;
}

/* --- reading ---------------------------------------------------------------------------------- */

static bool is_word(const char *text, const char *const *words)
{
    for (size_t i = 0; words[i]; i++)
        if (strcmp(words[i], text) == 0)
            return true;
    return false;
}

/* Copies a text, which must be there; *ret_text is borrowed from json. */
static int take_text(const json_t *json, const char *key, size_t len_max, json_t *to,
                     const char **ret_text, struct err *err)
{
    const char *text;
    int rc = json_get_string(json, key, ERR_CORRUPT, &text, err);
    if (rc < 0)
        return rc;
    for (const char *at = text; *at; at++)
        if ((unsigned char)*at < 0x20 || *at == 0x7f)
            return err_set(err, ERR_CORRUPT, "'%s' holds control characters", key);
    if (strlen(text) > len_max)
        return err_set(err, ERR_CORRUPT, "'%s' is longer than %zu bytes", key, len_max);
    (void)json_object_set_new(to, key, json_string(text));
    *ret_text = text;
    return 0;
}

static int take_number(const json_t *json, const char *key, json_t *to, struct err *err)
{
    uint64_t number;
    int rc = json_get_u64(json, key, ERR_CORRUPT, &number, err);
    if (rc == 0)
        (void)json_object_set_new(to, key, json_integer((json_int_t)number));
    return rc;
}

static int take_bool(const json_t *json, const char *key, json_t *to, struct err *err)
{
    const json_t *value = json_object_get(json, key);
    if (!json_is_boolean(value))
        return err_set(err, ERR_CORRUPT, "missing or wrong '%s'", key);
    (void)json_object_set_new(to, key, json_boolean(json_is_true(value)));
    return 0;
}

static int wrong(const char *key, const char *text, struct err *err)
{
    return err_set(err, ERR_CORRUPT, "'%.64s' cannot be its '%s'", text, key);
}

static bool is_level(const char *text)
{
    for (unsigned i = 0; i < LEVEL_COUNT; i++)
        if (strcmp(cluster_level_name((enum cluster_level)i), text) == 0)
            return true;
    return false;
}

static bool is_slot(const char *text)
{
    return strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_") == strlen(text);
}

static int take_member(const json_t *json, json_t *to, struct err *err)
{
    static const char *const roles[] = {"primary", "standby", NULL};
    const char *name = "", *recorded = "", *role = "", *slot = "", *job = "", *level = "";
    uint8_t id[ID_LEN];
    int rc = take_text(json, "name", CONF_NAME_MAX, to, &name, err);
    if (rc == 0)
        rc = take_text(json, "recorded", CONF_NAME_MAX, to, &recorded, err);
    if (rc == 0)
        rc = take_text(json, "role", SLOT_MAX, to, &role, err);
    if (rc == 0)
        rc = take_text(json, "primary_slot", SLOT_MAX, to, &slot, err);
    if (rc == 0)
        rc = take_text(json, "job", ID_TEXT_LEN - 1, to, &job, err);
    if (rc == 0)
        rc = take_text(json, "level", SLOT_MAX, to, &level, err);
    if (rc < 0)
        return rc;
    if (!repo_name_valid(name, CONF_NAME_MAX))
        return wrong("name", name, err);
    if (!repo_name_valid(recorded, CONF_NAME_MAX))
        return wrong("recorded", recorded, err);
    if (!is_word(role, roles))
        return wrong("role", role, err);
    if (!is_slot(slot))
        return wrong("primary_slot", slot, err);
    if (job[0] && !id_from_text(job, id))
        return wrong("job", job, err);
    return is_level(level) ? 0 : wrong("level", level, err);
}

/* Ascending by name, none twice, one primary: as it was planned. */
static int take_members(const json_t *plan, json_t *to, struct err *err)
{
    const json_t *from = json_object_get(plan, "members");
    json_t *members = json_array();
    size_t primaries = 0, count = json_array_size(from);
    (void)json_object_set_new(to, "members", members);
    if (count == 0 || count > CLUSTER_MEMBERS_MAX)
        return err_set(err, ERR_CORRUPT, "%zu members", count);
    for (size_t i = 0; i < count; i++) {
        const json_t *before = i ? json_array_get(members, i - 1) : NULL;
        json_t *member = json_object();
        (void)json_array_append_new(members, member);
        int rc = take_member(json_array_get(from, i), member, err);
        if (rc < 0)
            return err_prefix(err, "member %zu", i);
        if (before && strcmp(json_str(before, "name"), json_str(member, "name")) >= 0)
            return err_set(err, ERR_CORRUPT, "members out of order");
        primaries += json_is(member, "role", "primary");
    }
    return primaries == 1 ? 0 : err_set(err, ERR_CORRUPT, "%zu primaries", primaries);
}

static int take_plan(const json_t *json, json_t *to, struct err *err)
{
    const json_t *from = json_object_get(json, "plan");
    const char *snapshot, *tag, *system_id;
    uint8_t id[ID_LEN];
    json_t *plan = json_object();
    (void)json_object_set_new(to, "plan", plan);
    int rc = take_text(from, "snapshot", ID_TEXT_LEN - 1, plan, &snapshot, err);
    if (rc == 0)
        rc = take_text(from, "tag", RECORD_TAG_MAX, plan, &tag, err);
    if (rc == 0)
        rc = take_text(from, "system_id", 20, plan, &system_id, err);
    if (rc == 0)
        rc = take_number(from, "captured_s", plan, err);
    if (rc == 0 && !id_from_text(snapshot, id))
        rc = wrong("snapshot", snapshot, err);
    if (rc == 0 && !repo_tag_valid(tag))
        rc = wrong("tag", tag, err);
    if (rc == 0 && (!system_id[0] || strspn(system_id, "0123456789") != strlen(system_id)))
        rc = wrong("system_id", system_id, err);
    if (rc == 0)
        rc = take_members(from, plan, err);
    return rc < 0 ? err_prefix(err, "plan") : 0;
}

/* By the rules for the body of POST /cluster/restores. */
static int take_request(const json_t *json, json_t *to, struct err *err)
{
    const json_t *from = json_object_get(json, "request");
    json_t *request = NULL;
    if (!json_is_object(from) || json_object_get(from, "rejoin"))
        return err_set(err, ERR_CORRUPT, "missing or wrong 'request'");
    free_mem char *text = json_text(from);
    int rc = api_request_parse("cluster_restore", text, strlen(text), &request, err);
    if (rc < 0) {
        (void)err_prefix(err, "request");
        err->code = ERR_CORRUPT;
        return -ERR_CORRUPT;
    }
    (void)json_object_set_new(to, "request", request);
    return 0;
}

static int take_fork(const json_t *json, json_t *to, struct err *err)
{
    struct restore_fork fork;
    char lsn[PG_LSN_TEXT];
    const json_t *from = json_object_get(json, "fork");
    if (!from)
        return 0;
    int rc = restore_fork_parse(from, ERR_CORRUPT, &fork, err);
    if (rc < 0)
        return rc;
    pg_lsn_format(fork.lsn, lsn);
    (void)json_object_set_new(to, "fork",
                              json_pack("{s:I, s:s, s:I}", "timeline", (json_int_t)fork.timeline,
                                        "lsn", lsn, "parent", (json_int_t)fork.parent));
    return 0;
}

/* What the name says, the bytes have to say, too. */
static int take_head(const json_t *json, const char *cluster, const struct cluster_copy_id *id,
                     json_t *to, struct err *err)
{
    uint64_t format = 0, epoch = 0;
    const char *job, *of, *coordinator;
    int rc = json_get_u64(json, "format", ERR_CORRUPT, &format, err);
    if (rc == 0 && format != COPY_FORMAT)
        rc = err_set(err, ERR_REFUSED, "unknown format %" PRIu64, format);
    if (rc == 0)
        rc = take_text(json, "id", ID_TEXT_LEN - 1, to, &job, err);
    if (rc == 0)
        rc = take_text(json, "cluster", CONF_NAME_MAX, to, &of, err);
    if (rc == 0)
        rc = take_text(json, "coordinator", CLUSTER_COORDINATOR_MAX, to, &coordinator, err);
    if (rc == 0)
        rc = json_get_u64(json, "epoch", ERR_CORRUPT, &epoch, err);
    if (rc < 0)
        return rc;
    if (strcmp(job, id->job) != 0 || strcmp(of, cluster) != 0 || epoch != id->epoch)
        return err_set(err, ERR_CORRUPT, "it is the copy of another job, cluster or epoch");
    (void)json_object_set_new(to, "epoch", json_integer((json_int_t)epoch));
    return 0;
}

static int take_state(const json_t *json, const struct cluster_copy_id *id, json_t *to,
                      struct err *err)
{
    const char *state, *step;
    int rc = take_text(json, "state", SLOT_MAX, to, &state, err);
    if (rc == 0)
        rc = take_text(json, "step", SLOT_MAX, to, &step, err);
    if (rc == 0)
        rc = take_bool(json, "touched", to, err);
    if (rc == 0)
        rc = take_bool(json, "over", to, err);
    if (rc == 0)
        rc = take_number(json, "written_s", to, err);
    if (rc == 0)
        rc = take_number(json, "created_ms", to, err);
    if (rc < 0)
        return rc;
    if (!is_word(state, states))
        return wrong("state", state, err);
    if (strcmp(restore_step_name(restore_step_from_name(step)), step) != 0)
        return wrong("step", step, err);
    if (json_is_true(json_object_get(to, "over")) != (id->number == CLUSTER_COPY_OVER))
        return err_set(err, ERR_CORRUPT, "it does not end what its name ends");
    return 0;
}

int cluster_copy_check(const json_t *json, const char *cluster, const struct cluster_copy_id *id,
                       json_t **ret, struct err *err)
{
    free_json json_t *copy = json_object();
    int rc = take_head(json, cluster, id, copy, err);
    if (rc == 0)
        rc = take_state(json, id, copy, err);
    if (rc == 0)
        rc = take_request(json, copy, err);
    if (rc == 0)
        rc = take_plan(json, copy, err);
    if (rc == 0)
        rc = take_fork(json, copy, err);
    if (rc == 0)
        *ret = json_incref(copy);
    return rc;
}

int cluster_copy_parse(const void *buf, size_t len, const struct repo *repo, const char *cluster,
                       const struct cluster_copy_id *id, json_t **ret, struct err *err)
{
    struct fmt_header header;
    const char *text;
    size_t text_len;
    uint8_t snapshot[ID_LEN];
    free_json json_t *json = NULL;
    free_json json_t *copy = NULL;
    int rc = fmt_json_decode(buf, len, FMT_JSON_JOB, repo->id, &header, &text, &text_len, err);
    if (rc == 0)
        rc = json_parse(text, text_len, ERR_CORRUPT, &json, err);
    if (rc == 0)
        rc = cluster_copy_check(json, cluster, id, &copy, err);
    if (rc < 0)
        return rc;
    if (!id_from_text(json_str(json_object_get(copy, "plan"), "snapshot"), snapshot) ||
        memcmp(snapshot, header.snapshot, ID_LEN) != 0)
        return err_set(err, ERR_CORRUPT, "it belongs to another snapshot");
    *ret = json_incref(copy);
    return 0;
}
