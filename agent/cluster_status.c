/* The cluster as its agents see it: one question to each of them, see cluster.h. */
#include "agent/cluster.h"

#include <stdio.h>

#include "agent/health.h"
#include "agent/history.h"

/* From good to bad: the cluster is as well as its worst node. "down" and "unreachable" are words of
 * the coordinator's; its health calls both failed. */
static const char *const by_severity[] = {"ok",   "recovering",  "restoring", "partial", "diverged",
                                          "down", "unreachable", "failed",    NULL};

static size_t severity(const char *status)
{
    size_t i = 0;
    while (by_severity[i] && strcmp(by_severity[i], status) != 0)
        i++;
    return i;
}

/* --- whose history is the cluster's? ---------------------------------------------------------- */

static bool is_primary(const json_t *member)
{
    return json_is(member, "role", "primary");
}

/* The newest restore of the cluster that is complete: new reference, NULL = none is remembered. */
static json_t *last_restore(const struct conf *conf)
{
    free_json json_t *jobs = NULL;
    struct err ignored;
    if (job_list(conf, &jobs, &ignored) < 0)
        return NULL;
    for (size_t i = json_array_size(jobs); i-- > 0;) {
        json_t *job = json_array_get(jobs, i);
        if (json_is(job, "type", "cluster_restore") && json_is(job, "state", "complete"))
            return json_incref(job);
    }
    return NULL;
}

/* A member that has been where the last restore began a timeline. While there is one, that restore
 * decides between members; else it is history itself: another coordinator was here since. */
static const json_t *find_restored(const json_t *members, const json_t *fork)
{
    for (size_t i = 0; i < json_array_size(members); i++)
        if (history_has_fork(json_array_get(members, i), fork))
            return json_array_get(members, i);
    return NULL;
}

/* What others are compared with: of those that are not out of the question the only primary, else
 * the one that has come furthest. *ret_primaries: how many there are. */
static const json_t *find_leader(const json_t *members, const json_t *fork, size_t *ret_primaries)
{
    const json_t *restored = find_restored(members, fork), *found = NULL;
    *ret_primaries = 0;
    for (size_t i = 0; i < json_array_size(members); i++) {
        const json_t *member = json_array_get(members, i);
        json_int_t timeline = json_integer_value(json_object_get(member, "timeline"));
        bool known = json_is_array(json_object_get(member, "history"));
        bool out = restored && (history_misses_fork(member, fork) ||
                                !json_is(member, "system_id", json_str(restored, "system_id")));
        if (out || (!is_primary(member) && (!known || *ret_primaries > 0)))
            continue;
        if (is_primary(member) || !found ||
            timeline > json_integer_value(json_object_get(found, "timeline")))
            found = member;
        *ret_primaries += is_primary(member);
    }
    return found;
}

static json_int_t timeline_of(const json_t *member)
{
    return json_integer_value(json_object_get(member, "timeline"));
}

/* Of two primaries that nobody knows better the one promoted last is mostly the cluster's. */
static void hint_two(json_t *member, const json_t *other)
{
    char text[256];
    bool newer = timeline_of(member) > timeline_of(other);
    if (!is_primary(member) || !is_primary(other) || timeline_of(member) == timeline_of(other))
        return;
    (void)snprintf(text, sizeof(text),
                   newer ? "stop %s now, unless it is the cluster's: this one is on the newer "
                           "timeline, %lld"
                         : "stop it now, unless it is the cluster's: %s is on the newer timeline, "
                           "%lld; then make it a standby (pg_rewind, pg_basebackup) or restore the "
                           "cluster",
                   json_str(other, "name"), (long long)timeline_of(newer ? member : other));
    (void)json_object_set_new(member, "hint", json_string(text));
}

static void blame(json_t *member, const char *cause)
{
    (void)json_object_set_new(member, "diverged", json_string(cause));
    (void)json_object_set_new(member, "cause", json_string(cause));
    (void)json_object_set_new(
        member, "hint",
        json_string(
            is_primary(member)
                ? "stop it now: what is committed there is not in the cluster; then make it "
                  "a standby (pg_rewind, pg_basebackup) or restore the cluster"
                : "make it a standby anew (pg_rewind, pg_basebackup) or restore the cluster"));
}

static void compare(json_t *member, const json_t *to, size_t primaries)
{
    char text[512];
    const char *own = json_str(member, "system_id"), *other = json_str(to, "system_id");
    const char *name = json_str(to, "name");
    if (own[0] && other[0] && strcmp(own, other) != 0)
        (void)snprintf(text, sizeof(text), "its system identifier is %s, that of %s is %s", own,
                       name, other);
    else if (history_have_parted(member, to))
        (void)snprintf(text, sizeof(text),
                       "its history is not that of %s: it is on timeline %lld at %s", name,
                       (long long)json_integer_value(json_object_get(member, "timeline")),
                       json_str(member, "lsn"));
    else if (is_primary(member) && is_primary(to))
        (void)snprintf(text, sizeof(text), "it is a primary as well as %s%s", name,
                       primaries > 1 ? ", and which of them is the cluster's is not known" : "");
    else
        return;
    blame(member, text);
    if (primaries > 1)
        hint_two(member, to);
}

void cluster_find_diverged(json_t *members, const json_t *restored)
{
    size_t primaries, i;
    json_t *member;
    const json_t *to = find_leader(members, json_object_get(restored, "fork"), &primaries);
    if (!to)
        return;
    json_array_foreach(members, i, member)
    {
        if (member != to && !json_is(member, "role", "down"))
            compare(member, to, primaries);
    }
    if (primaries > 1) /* none of them is to be believed */
        json_array_foreach(members, i, member)
        {
            if (member != to && is_primary(member))
                compare((json_t *)(uintptr_t)to, member, primaries);
        }
}

/* Its agent, which knows no other node, says "start it". */
static void warn_down(json_t *members)
{
    const json_t *primary = NULL;
    char text[256];
    size_t i;
    json_t *member;
    json_array_foreach(members, i, member)
    {
        if (is_primary(member))
            primary = member;
    }
    json_array_foreach(members, i, member)
    {
        if (!primary || !json_is(member, "status", "down"))
            continue;
        (void)snprintf(text, sizeof(text),
                       "start it only as a standby of %s, which is the primary: an old primary has "
                       "to be made one first (pg_rewind, pg_basebackup)",
                       json_str(primary, "name"));
        (void)json_object_set_new(member, "hint", json_string(text));
    }
}

/* --- status ----------------------------------------------------------------------------------- */

static json_t *member_json(const struct cluster_member *member, json_t *node, const struct err *err)
{
    json_t *json = node ? json_deep_copy(node) : json_object();
    const json_t *health = json_object_get(json, "health");
    (void)json_object_set_new(json, "name", json_string(member->name));
    (void)json_object_set_new(json, "address", json_string(member->address));
    if (!node) {
        (void)json_object_set_new(json, "status", json_string("unreachable"));
        (void)json_object_set_new(json, "code", json_string(err_code_name(err->code)));
        (void)json_object_set_new(json, "error", json_string(err->text));
        (void)json_object_set_new(json, "cause", json_string(err->text));
        (void)json_object_set_new(json, "hint", json_string(err->hint));
        return json;
    }
    (void)json_object_set(json, "status", json_object_get(health, "status"));
    (void)json_object_set(json, "code", json_object_get(health, "code"));
    (void)json_object_set(json, "cause", json_object_get(health, "cause"));
    (void)json_object_set(json, "hint", json_object_get(health, "hint"));
    if (json_is(json, "role", "down") && json_is(json, "status", "failed") &&
        !json_str(health, "job")[0])
        (void)json_object_set_new(json, "status", json_string("down")); /* no restore is to blame */
    return json;
}

json_t *cluster_status(const struct cluster *cluster)
{
    json_t *answers[CLUSTER_MEMBERS_MAX], *members = json_array(), *member;
    struct err errs[CLUSTER_MEMBERS_MAX];
    const char *worst = "ok";
    size_t i;
    cluster_call_all(cluster, "GET", "/node", answers, errs);
    for (i = 0; i < cluster->count; i++) {
        (void)json_array_append_new(members,
                                    member_json(&cluster->members[i], answers[i], &errs[i]));
        json_decref(answers[i]);
    }
    free_json json_t *restored = last_restore(cluster->conf);
    cluster_find_diverged(members, restored);
    warn_down(members);
    json_array_foreach(members, i, member)
    {
        if (json_object_get(member, "diverged") &&
            severity("diverged") > severity(json_str(member, "status"))) {
            (void)json_object_set_new(member, "status", json_string("diverged"));
            (void)json_object_set_new(member, "code", json_string(err_code_name(ERR_REFUSED)));
        }
        if (severity(json_str(member, "status")) > severity(worst))
            worst = json_str(member, "status");
    }
    return json_pack("{s:s, s:s, s:o}", "cluster", cluster->conf->cluster, "status", worst,
                     "members", members);
}

static json_int_t heard_ago_ms(const json_t *member)
{
    return json_integer_value(
        json_object_get(json_object_get(member, "reservation"), "heard_ago_ms"));
}

const json_t *cluster_last_heard(const json_t *members, const char *job, uint64_t epoch)
{
    const json_t *found = NULL;
    for (size_t i = 0; i < json_array_size(members); i++) {
        const json_t *member = json_array_get(members, i);
        const json_t *held = json_object_get(member, "reservation");
        json_int_t of = json_integer_value(json_object_get(held, "epoch"));
        if (!json_object_get(held, "heard_ago_ms") || !json_is(held, "job", job) ||
            of != (json_int_t)epoch)
            continue;
        if (!found || heard_ago_ms(member) < heard_ago_ms(found))
            found = member;
    }
    return found;
}

/* --- health ----------------------------------------------------------------------------------- */

/* One of the six states of a node. */
static const char *plain(const char *status)
{
    bool ours = strcmp(status, "down") == 0 || strcmp(status, "unreachable") == 0;
    return ours ? "failed" : status;
}

static json_t *member_health(const json_t *member)
{
    static const char *const keys[] = {"status", "role", "timeline", "lsn", "cause", "hint"};
    json_t *json = json_object();
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        json_t *value = json_object_get(member, keys[i]);
        (void)json_object_set(json, keys[i], value ? value : json_null());
    }
    return json;
}

/* The node is worse than the restores of the coordinator say. */
static void take_node(const json_t *member, struct health *health)
{
    health->status = plain(json_str(member, "status"));
    if (health->job[0]) /* what it says is the way out */
        return;
    enum err_code code = err_code_from_name(json_str(member, "code"));
    (void)err_set(&health->why, code == ERR_OK ? ERR_POSTGRES : code, "node %s is %s%s%s",
                  json_str(member, "name"), json_str(member, "status"),
                  json_str(member, "cause")[0] ? ": " : "", json_str(member, "cause"));
    (void)err_hint(&health->why, "%s", json_str(member, "hint"));
}

static void take_members(const json_t *status, struct health *health)
{
    const json_t *worst = NULL;
    size_t i;
    json_t *member;
    json_array_foreach(json_object_get(status, "members"), i, member)
    {
        if (severity(json_str(member, "status")) >
            severity(worst ? json_str(worst, "status") : health->status))
            worst = member;
    }
    if (worst)
        take_node(worst, health);
}

json_t *cluster_health(const struct conf *conf)
{
    struct cluster cluster;
    struct health none = {.status = "failed"};
    if (cluster_members(conf, &cluster, &none.why) < 0) /* main.c has looked */
        return health_json(&none);
    free_json json_t *status = cluster_status(&cluster);
    return cluster_health_of(conf, status);
}

json_t *cluster_health_of(const struct conf *conf, const json_t *status)
{
    struct health health;
    job_health(conf, &health);
    /* It says what it left on the nodes; when they are well somebody has restored them since. */
    if (health.given_up && json_is(status, "status", "ok"))
        health = (struct health){.status = "ok"};
    json_t *members = json_object(), *timeline = NULL, *member;
    size_t i;
    take_members(status, &health);
    json_array_foreach(json_object_get(status, "members"), i, member)
    {
        (void)json_object_set_new(members, json_str(member, "name"), member_health(member));
        if (is_primary(member) && !json_object_get(member, "diverged"))
            timeline = json_object_get(member, "timeline");
    }
    json_t *json = health_json(&health);
    (void)json_object_set_new(json, "role", json_string("coordinator"));
    (void)json_object_set(json, "timeline", timeline ? timeline : json_null());
    (void)json_object_set_new(json, "members", members);
    return json;
}
