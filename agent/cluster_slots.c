/* The replication slots of a restored cluster. A restore brings none of them back by itself: where
 * a physical one stood says nothing about the new timeline, so it is made anew; a logical one is
 * lost with the changes that it had not sent, and only whoever reads it can begin anew. The plan
 * says what becomes of each. See cluster.h. */
#include "agent/cluster.h"

/* The slot's standby is restored as a standby, and will use it. */
static bool is_used(const struct cluster_restore *all, const char *slot)
{
    for (size_t i = 0; i < all->count; i++)
        if (!all->drives[i].primary && strcmp(all->drives[i].slot, slot) == 0)
            return true;
    return false;
}

/* It was the slot of a node that is left out, or that becomes the primary: nobody would ever move
 * it, and it would keep WAL for ever. */
static bool is_orphaned(const struct cluster_restore *all, const char *slot)
{
    size_t i;
    json_t *node;
    json_array_foreach(json_object_get(all->record.topology, "members"), i, node)
    {
        if (json_is(node, "primary_slot", slot))
            return !is_used(all, slot);
    }
    return false;
}

/* A slot on a standby was a cascaded node's, who follows the primary now. */
static bool is_recreated(const struct cluster_restore *all, const json_t *node, const json_t *slot)
{
    const char *name = json_str(slot, "name");
    return json_is(slot, "type", "physical") &&
           (is_used(all, name) || (json_is(node, "role", "primary") && !is_orphaned(all, name)));
}

static void add_slot(const struct cluster_restore *all, const json_t *node, const json_t *slot,
                     json_t *to)
{
    json_t *item = json_pack("{s:s, s:s, s:s, s:b}", "name", json_str(slot, "name"), "node",
                             json_str(node, "name"), "type", json_str(slot, "type"), "recreated",
                             is_recreated(all, node, slot));
    (void)json_object_set(item, "plugin", json_object_get(slot, "plugin"));
    (void)json_object_set(item, "database", json_object_get(slot, "database"));
    (void)json_array_append_new(to, item);
}

json_t *cluster_slots(const struct cluster_restore *all)
{
    json_t *array = json_array(), *node, *slot;
    size_t i, k;
    if (all->alone) /* the primary that runs has its slots */
        return array;
    json_array_foreach(json_object_get(all->record.topology, "members"), i, node)
    {
        json_array_foreach(json_object_get(node, "slots"), k, slot)
        {
            if (!json_is_true(json_object_get(slot, "temporary")))
                add_slot(all, node, slot, array);
        }
    }
    return array;
}

static bool is_named(const json_t *names, const char *name)
{
    size_t i;
    json_t *entry;
    json_array_foreach(names, i, entry)
    {
        if (strcmp(json_string_value(entry), name) == 0)
            return true;
    }
    return false;
}

json_t *cluster_used_slots(const struct cluster_restore *all)
{
    json_t *names = json_array();
    for (size_t i = 0; i < all->count; i++)
        if (!all->drives[i].primary && all->drives[i].slot[0])
            (void)json_array_append_new(names, json_string(all->drives[i].slot));
    return names;
}

json_t *cluster_idle_slots(const struct cluster_restore *all)
{
    free_json json_t *slots = cluster_slots(all);
    json_t *names = json_array(), *slot;
    size_t i;
    json_array_foreach(slots, i, slot)
    {
        const char *name = json_str(slot, "name");
        if (json_is_true(json_object_get(slot, "recreated")) && !is_used(all, name) &&
            !is_named(names, name))
            (void)json_array_append_new(names, json_string(name));
    }
    return names;
}
