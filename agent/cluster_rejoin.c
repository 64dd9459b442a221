/* A node that the last restore left out becomes a standby of the cluster again: the same snapshot
 * onto that node alone, which then follows the primary that runs. No other node is touched, so no
 * journal goes to the repository: whoever does it again loses nothing. See cluster.h. */
#include <stdio.h>

#include "agent/cluster.h"
#include "agent/cluster_archive.h"

/* The last restore of this cluster that is complete. */
static int find_last(const struct conf *conf, json_t **ret, struct err *err)
{
    free_json json_t *copies = NULL;
    json_t *found = NULL;
    json_int_t newest = 0;
    int rc = cluster_archive_list(conf, true, &copies, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < json_array_size(copies); i++) {
        json_t *copy = json_array_get(copies, i);
        json_int_t timeline =
            json_integer_value(json_object_get(json_object_get(copy, "fork"), "timeline"));
        if (timeline <= newest || !json_is(copy, "state", "complete"))
            continue;
        found = copy;
        newest = timeline;
    }
    if (!found) {
        (void)err_set(err, ERR_MISSING, "no restore of cluster '%s' is complete", conf->cluster);
        return err_hint(err, "a node that never was in it is made a standby with pg_basebackup");
    }
    *ret = json_incref(found);
    return 0;
}

static const char *primary_name(const json_t *last)
{
    const json_t *members = json_object_get(json_object_get(last, "plan"), "members");
    for (size_t i = 0; i < json_array_size(members); i++)
        if (json_is(json_array_get(members, i), "role", "primary"))
            return json_str(json_array_get(members, i), "name");
    return "";
}

/* Its snapshot leads to the timeline that this restore made, and to no other. */
static int check_primary(const struct cluster_restore *all, const struct cluster_member *primary,
                         const json_t *fork, struct err *err)
{
    free_json json_t *node = NULL;
    json_int_t wanted = json_integer_value(json_object_get(fork, "timeline"));
    int rc = cluster_call(&all->cluster, primary, "GET", "/node", NULL, &node, err);
    if (rc < 0)
        return rc;
    json_int_t timeline = json_integer_value(json_object_get(node, "timeline"));
    if (json_is(node, "role", "primary") && timeline == wanted)
        return 0;
    (void)err_set(err, ERR_REFUSED,
                  "node %s is %s on timeline %lld now, and not the primary on timeline %lld that "
                  "the last restore made",
                  primary->name, json_str(node, "role"), (long long)timeline, (long long)wanted);
    return err_hint(err, "make the node a standby of today's primary with pg_basebackup");
}

static int add_node(struct cluster_restore *all, const char *name, struct err *err)
{
    struct drive *drive = &all->drives[all->count++];
    drive->all = all;
    drive->member = cluster_member(&all->cluster, name);
    (void)snprintf(drive->recorded, sizeof(drive->recorded), "%s", name);
    if (drive->member)
        return 0;
    all->count--;
    return err_set(err, ERR_MISSING, "'%.80s' is no member of the cluster", name);
}

int cluster_rejoin_plan(struct cluster_restore *all, struct err *err)
{
    const char *name = json_str(all->job->request, "rejoin");
    json_t *journal = all->job->journal;
    free_json json_t *last = NULL;
    int rc = add_node(all, name, err);
    if (rc == 0)
        rc = find_last(&all->job->conf, &last, err);
    if (rc < 0)
        return rc;
    const char *to = primary_name(last);
    const struct cluster_member *primary = cluster_member(&all->cluster, to);
    if (!primary)
        return err_set(err, ERR_MISSING, "primary '%s' is no member of the cluster", to);
    if (strcmp(to, name) == 0)
        return err_set(err, ERR_USAGE, "'%s' is the primary", name);
    const json_t *plan = json_object_get(last, "plan");
    (void)json_object_set(journal, "snapshot", json_object_get(plan, "snapshot"));
    (void)json_object_set(journal, "fork", json_object_get(last, "fork"));
    all->fork = json_incref(json_object_get(last, "fork"));
    rc = check_primary(all, primary, all->fork, err);
    return rc < 0 ? rc : cluster_plan_rejoin(all, primary, err);
}
