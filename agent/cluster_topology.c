/* What a cluster's snapshot keeps of its nodes, and who followed whom. Pure. See cluster.h. */
#include "agent/cluster.h"
#include "agent/conninfo.h"

#include <stdio.h>

/* --- what is kept ----------------------------------------------------------------------------- */

/* A slot's position is of a server that will be gone; a temporary one is gone with its session. */
static json_t *slots_kept(const json_t *slots)
{
    static const char *const keys[] = {"name", "type", "plugin", "database", "active", "temporary"};
    json_t *kept = json_array(), *slot;
    size_t i;
    json_array_foreach(slots, i, slot)
    {
        json_t *item = json_object();
        for (size_t k = 0; k < ARRAY_LEN(keys); k++)
            if (json_object_get(slot, keys[k]) && !json_is_null(json_object_get(slot, keys[k])))
                (void)json_object_set(item, keys[k], json_object_get(slot, keys[k]));
        if (json_is_true(json_object_get(slot, "temporary")))
            json_decref(item);
        else
            (void)json_array_append_new(kept, item);
    }
    return kept;
}

json_t *cluster_topology(const json_t *members)
{
    static const char *const passing[] = {"health", "status",  "cause",
                                          "hint",   "history", "archiving"};
    json_t *topology = json_deep_copy(members), *member;
    size_t i;
    json_array_foreach(topology, i, member)
    {
        for (size_t k = 0; k < ARRAY_LEN(passing); k++) /* of today */
            (void)json_object_del(member, passing[k]);
        (void)json_object_set_new(member, "slots", slots_kept(json_object_get(member, "slots")));
    }
    return topology;
}

/* --- who followed whom ------------------------------------------------------------------------ */

/* 2: it streamed from there; 1: its slot is there. A conninfo that names no application_name has
 * libpq say cluster_name or walreceiver, which tells no standby from another. */
static int follows(const json_t *standby, const json_t *upstream)
{
    const char *slot_name = json_str(standby, "primary_slot");
    char application[64];
    json_t *item;
    size_t i;
    int found = 0;
    (void)conninfo_value(json_str(standby, "primary_conninfo"), "application_name", application,
                         sizeof(application));
    json_array_foreach(json_object_get(upstream, "slots"), i, item)
    {
        if (!slot_name[0] || !json_is(item, "name", slot_name) ||
            !json_is(item, "type", "physical"))
            continue;
        found = json_is_true(json_object_get(item, "active")) ? 2 : found ? found : 1;
    }
    json_array_foreach(json_object_get(upstream, "replication"), i, item)
    {
        if (application[0] && json_is(item, "application_name", application))
            found = 2;
    }
    return found;
}

const char *cluster_upstream(const json_t *members, const json_t *standby)
{
    const json_t *best = NULL;
    json_t *node;
    size_t i;
    int most = 0;
    json_array_foreach(members, i, node)
    {
        int found = node == standby ? 0 : follows(standby, node);
        bool primary = json_is(node, "role", "primary");
        if (found > most || (found == most && found > 0 && primary)) {
            most = found;
            best = node;
        }
    }
    return best && !json_is(best, "role", "primary") ? json_str(best, "name") : NULL;
}
