/* The cluster as its agents see it: one question to each of them, see cluster.h. */
#include "agent/cluster.h"

#include <stdio.h>

/* From good to bad: the cluster is as well as its worst node. */
static const char *const by_severity[] = {"ok",   "recovering",  "restoring", "partial", "diverged",
                                          "down", "unreachable", "failed",    NULL};

static size_t severity(const char *status)
{
    size_t i = 0;
    while (by_severity[i] && strcmp(by_severity[i], status) != 0)
        i++;
    return i;
}

/* A primary on each of two timelines, or two primaries at all: somebody has to decide. */
static bool is_split(json_t *members)
{
    size_t i, primaries = 0;
    json_t *member;
    json_array_foreach(members, i, member)
    {
        primaries += strcmp(json_str(member, "role"), "primary") == 0;
    }
    return primaries > 1;
}

static json_t *member_json(const struct cluster_member *member, json_t *node, const struct err *err)
{
    json_t *json = node ? json_deep_copy(node) : json_object();
    const char *status = json_str(json_object_get(json, "health"), "status");
    (void)json_object_set_new(json, "name", json_string(member->name));
    (void)json_object_set_new(json, "address", json_string(member->address));
    if (node && strcmp(status, "ok") == 0 && strcmp(json_str(json, "role"), "down") == 0)
        status = "down"; /* no restore is to blame: it was stopped, or it fell */
    if (node) {
        (void)json_object_set_new(json, "status", json_string(status));
        return json;
    }
    (void)json_object_set_new(json, "status", json_string("unreachable"));
    (void)json_object_set_new(json, "error", json_string(err->text));
    return json;
}

json_t *cluster_status(const struct cluster *cluster)
{
    json_t *answers[CLUSTER_MEMBERS_MAX], *members = json_array();
    struct err errs[CLUSTER_MEMBERS_MAX];
    const char *worst = "ok";
    cluster_call_all(cluster, "GET", "/node", answers, errs);
    for (size_t i = 0; i < cluster->count; i++) {
        json_t *member = member_json(&cluster->members[i], answers[i], &errs[i]);
        if (severity(json_str(member, "status")) > severity(worst))
            worst = json_str(member, "status");
        (void)json_array_append_new(members, member);
        json_decref(answers[i]);
    }
    if (is_split(members) && severity("diverged") > severity(worst))
        worst = "diverged";
    return json_pack("{s:s, s:s, s:o}", "cluster", cluster->conf->cluster, "status", worst,
                     "members", members);
}
