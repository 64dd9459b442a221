/* Who becomes what: the snapshot's topology laid over the members of today. See cluster.h. */
#include "agent/cluster.h"
#include "agent/catalog.h"
#include "agent/conninfo.h"
#include "agent/repository.h"

#include <stdio.h>

/* "latest" must not move between plan and execution. */
static int read_record(struct cluster_restore *all, struct err *err)
{
    struct store *store = NULL;
    struct repo repo;
    struct job *job = all->job;
    const char *what = json_string_value(json_object_get(job->journal, "snapshot"));
    if (!what)
        what = json_str(job->request, "snapshot");
    int rc = repository_open(&job->conf, &job->progress.cancel, &store, &repo, err);
    if (rc < 0)
        return rc;
    rc = catalog_find(store, &repo, job->conf.cluster, NULL, what, &all->record, NULL, err);
    store_close(store);
    if (rc < 0)
        return rc;
    char id[ID_TEXT_LEN];
    all->record_read = true;
    id_to_text(all->record.id, id);
    (void)json_object_set_new(job->journal, "snapshot", json_string(id));
    return 0;
}

static int no_topology(const struct record *record, struct err *err)
{
    (void)err_set(err, ERR_REFUSED, "snapshot '%s' knows of no other node", record->tag);
    return err_hint(err, "it was taken with `tidemark snapshot`, not with `tidemark cluster "
                         "snapshot`; restore it on its node with `tidemark restore`");
}

static const json_t *recorded_node(const struct cluster_restore *all, const char *name)
{
    size_t i;
    json_t *node;
    json_array_foreach(json_object_get(all->record.topology, "members"), i, node)
    {
        if (strcmp(json_str(node, "name"), name) == 0)
            return node;
    }
    return NULL;
}

/* A name that is not in the snapshot is a slip: the node that was meant would be overwritten. */
static int check_names(const struct cluster_restore *all, const char *field, const char *option,
                       struct err *err)
{
    char names[256] = "";
    const char *key;
    json_t *value, *node;
    size_t i;
    json_array_foreach(json_object_get(all->record.topology, "members"), i, node)
    {
        size_t at = strlen(names);
        (void)snprintf(names + at, sizeof(names) - at, " %s", json_str(node, "name"));
    }
    json_object_foreach(json_object_get(all->job->request, field), key, value)
    {
        if (recorded_node(all, key))
            continue;
        (void)err_set(err, ERR_USAGE, "%s: the snapshot has no node '%.80s'", option, key);
        return err_hint(err, "it has:%s", names);
    }
    return 0;
}

/* Onto which member the recorded node goes; NULL with rc 0 when it is left out. */
static int find_place(const struct cluster_restore *all, const char *recorded,
                      const struct cluster_member **ret, struct err *err)
{
    const json_t *request = all->job->request;
    *ret = NULL;
    if (json_object_get(json_object_get(request, "without"), recorded))
        return 0;
    const char *mapped =
        json_string_value(json_object_get(json_object_get(request, "map"), recorded));
    const char *name = mapped ? mapped : recorded;
    *ret = cluster_member(&all->cluster, name);
    if (*ret)
        return 0;
    (void)err_set(err, ERR_MISSING, "node %s of the snapshot has no place: '%s' is no member",
                  recorded, name);
    return err_hint(err, "give it one with --map=%s=MEMBER, or leave it out with --without-node=%s",
                    recorded, recorded);
}

static int add_drive(struct cluster_restore *all, const json_t *node, struct err *err)
{
    const struct cluster_member *member;
    const char *recorded = json_str(node, "name");
    int rc = find_place(all, recorded, &member, err);
    if (rc < 0 || !member)
        return rc;
    for (size_t i = 0; i < all->count; i++)
        if (all->drives[i].member == member)
            return err_set(err, ERR_USAGE, "two nodes would go onto member '%s'", member->name);
    if (all->count == CLUSTER_MEMBERS_MAX)
        return err_set(err, ERR_REFUSED, "the snapshot has more than %d nodes",
                       CLUSTER_MEMBERS_MAX);
    struct drive *drive = &all->drives[all->count++];
    drive->all = all;
    drive->member = member;
    drive->primary = strcmp(json_str(node, "role"), "primary") == 0;
    (void)snprintf(drive->recorded, sizeof(drive->recorded), "%s", recorded);
    return 0;
}

static int choose_primary(struct cluster_restore *all, struct err *err)
{
    const char *wanted = json_string_value(json_object_get(all->job->request, "primary"));
    size_t primaries = 0;
    bool found = false;
    for (size_t i = 0; i < all->count; i++)
        found |= wanted && strcmp(all->drives[i].member->name, wanted) == 0;
    if (wanted && !found)
        return err_set(err, ERR_USAGE, "'%.80s' cannot be the primary: it is not restored", wanted);
    for (size_t i = 0; i < all->count; i++) {
        struct drive *drive = &all->drives[i];
        if (wanted)
            drive->primary = strcmp(drive->member->name, wanted) == 0;
        primaries += drive->primary;
    }
    if (primaries == 1)
        return 0;
    (void)err_set(err, ERR_REFUSED, "the restored nodes had %zu primaries", primaries);
    return err_hint(err, "say which becomes the primary with --primary=MEMBER");
}

/* --- how a standby reaches its primary -------------------------------------------------------- */

static const struct drive *primary_of(const struct cluster_restore *all)
{
    for (size_t i = 0; i < all->count; i++)
        if (all->drives[i].primary)
            return &all->drives[i];
    return NULL;
}

/* What was recorded leads to the host of the recorded primary. primary_node: whose place the
 * primary has. */
static int conninfo_to(struct cluster_restore *all, const struct cluster_member *primary,
                       const char *primary_node, struct drive *drive, struct err *err)
{
    const json_t *node = recorded_node(all, drive->recorded);
    const json_t *to = recorded_node(all, primary_node);
    const char *recorded = json_str(node, "primary_conninfo");
    if (all->job->conf.coordinator_primary_conninfo[0])
        return cluster_fill_conninfo(&all->job->conf, primary, drive->member->name, drive->conninfo,
                                     sizeof(drive->conninfo), err);
    const char *upstream = cluster_upstream(json_object_get(all->record.topology, "members"), node);
    if (upstream) {
        (void)err_set(err, ERR_REFUSED,
                      "standby %s followed standby %s, and a restore attaches every standby to the "
                      "primary: how it reaches %s is not known",
                      drive->recorded, upstream, primary->name);
        return err_hint(err, "set [coordinator] primary_conninfo, as host=%%h user=… "
                             "application_name=%%n; it can be cascaded again afterwards");
    }
    bool same =
        strcmp(primary_node, primary->name) == 0 && strcmp(json_str(to, "role"), "primary") == 0;
    if (same && recorded[0]) {
        (void)snprintf(drive->conninfo, sizeof(drive->conninfo), "%s", recorded);
        return 0;
    }
    (void)err_set(err, ERR_REFUSED, "how standby %s reaches primary %s is not known",
                  drive->member->name, primary->name);
    return err_hint(err, "set [coordinator] primary_conninfo, as host=%%h user=… "
                         "application_name=%%n");
}

static int find_conninfo(struct cluster_restore *all, struct drive *drive, struct err *err)
{
    const struct drive *primary = primary_of(all);
    const json_t *node = recorded_node(all, drive->recorded);
    if (!primary) /* choose_primary() found one */
        return err_set(err, ERR_INTERNAL, "no primary");
    (void)snprintf(drive->slot, sizeof(drive->slot), "%.63s", json_str(node, "primary_slot"));
    return conninfo_to(all, primary->member, primary->recorded, drive, err);
}

static int compare_drives(const void *a, const void *b)
{
    const struct drive *left = a, *right = b;
    return strcmp(left->member->name, right->member->name);
}

/* The plan is shown, and kept: of primary_conninfo it says what is no secret. Without
 * "warnings": cluster_check_plan(). */
static json_t *plan_json(const struct cluster_restore *all)
{
    const struct record *record = &all->record;
    char conninfo[CONF_PATH_MAX + 64]; /* blanks may come */
    json_t *members = json_array();
    for (size_t i = 0; i < all->count; i++) {
        const struct drive *drive = &all->drives[i];
        (void)conninfo_masked(drive->conninfo, conninfo, sizeof(conninfo));
        (void)json_array_append_new(
            members, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "name", drive->member->name,
                               "address", drive->member->address, "recorded", drive->recorded,
                               "role", drive->primary ? "primary" : "standby", "primary_conninfo",
                               conninfo, "primary_slot", drive->slot));
    }
    char system_id[24];
    (void)snprintf(system_id, sizeof(system_id), "%llu", (unsigned long long)record->system_id);
    bool delta = json_is_true(json_object_get(all->job->request, "delta"));
    return json_pack("{s:O, s:s, s:s, s:s, s:I, s:s, s:o, s:o, s:b}", "snapshot",
                     json_object_get(all->job->journal, "snapshot"), "tag", record->tag, "cluster",
                     record->cluster, "node", record->node, "captured_s",
                     (json_int_t)record->captured_s, "system_id", system_id, "members", members,
                     "slots", cluster_slots(all), "delta", delta);
}

int cluster_plan(struct cluster_restore *all, struct err *err)
{
    int rc = read_record(all, err);
    if (rc < 0)
        return rc;
    const json_t *nodes = json_object_get(all->record.topology, "members");
    if (json_array_size(nodes) == 0)
        return no_topology(&all->record, err);
    rc = check_names(all, "without", "--without-node", err);
    if (rc == 0)
        rc = check_names(all, "map", "--map", err);
    size_t i;
    json_t *node;
    json_array_foreach(nodes, i, node)
    {
        rc = rc == 0 ? add_drive(all, node, err) : rc;
    }
    if (rc == 0)
        rc = choose_primary(all, err);
    if (rc < 0)
        return rc;
    qsort(all->drives, all->count, sizeof(all->drives[0]), compare_drives);
    for (i = 0; rc == 0 && i < all->count; i++)
        rc = all->drives[i].primary ? 0 : find_conninfo(all, &all->drives[i], err);
    if (rc < 0)
        return rc;
    (void)json_object_set_new(all->job->journal, "plan", plan_json(all));
    return 0;
}

/* Without a slot: the primary that runs has none for it, and the archive has all its WAL. */
int cluster_plan_rejoin(struct cluster_restore *all, const struct cluster_member *primary,
                        struct err *err)
{
    int rc = read_record(all, err);
    if (rc == 0)
        rc = conninfo_to(all, primary, primary->name, &all->drives[0], err);
    if (rc < 0)
        return rc;
    json_t *plan = plan_json(all);
    (void)json_object_set_new(plan, "rejoin", json_string(all->drives[0].member->name));
    (void)json_object_set_new(plan, "primary", json_string(primary->name));
    (void)json_object_set(plan, "timeline", json_object_get(all->fork, "timeline"));
    (void)json_object_set_new(all->job->journal, "plan", plan);
    return 0;
}

/* --- read back -------------------------------------------------------------------------------- */

static int load_drive(struct cluster_restore *all, const json_t *member, struct err *err)
{
    const json_t *state =
        json_object_get(json_object_get(all->job->journal, "members"), json_str(member, "name"));
    struct drive *drive = &all->drives[all->count];
    drive->all = all;
    drive->member = cluster_member(&all->cluster, json_str(member, "name"));
    if (!drive->member)
        return err_set(err, ERR_CONFIG, "'%.80s' is no member any more", json_str(member, "name"));
    drive->primary = strcmp(json_str(member, "role"), "primary") == 0;
    (void)snprintf(drive->recorded, sizeof(drive->recorded), "%.63s", json_str(member, "recorded"));
    (void)snprintf(drive->job, sizeof(drive->job), "%.32s", json_str(state, "job"));
    drive->asked = json_is_true(json_object_get(state, "asked"));
    drive->followed = !drive->primary &&
                      (json_is(state, "level", "recovered") || json_is(state, "level", "complete"));
    drive->verification = json_incref(json_object_get(state, "verification"));
    (void)snprintf(drive->slot, sizeof(drive->slot), "%.63s", json_str(member, "primary_slot"));
    all->count++;
    return 0;
}

/* Whom a node that rejoins follows is no drive. */
static int find_conninfo_again(struct cluster_restore *all, struct drive *drive, struct err *err)
{
    const char *name = json_str(json_object_get(all->job->journal, "plan"), "primary");
    if (!all->alone)
        return find_conninfo(all, drive, err);
    const struct cluster_member *primary = cluster_member(&all->cluster, name);
    if (!primary)
        return err_set(err, ERR_CONFIG, "primary '%.80s' is no member any more", name);
    return conninfo_to(all, primary, name, drive, err);
}

/* Made anew: the journal does not say its password, and whoever resumes may have corrected it.
 * Where it is not known here (another coordinator's configuration says it) a standby that is
 * reserved has it. What gives the nodes back needs none. */
static int load_conninfo(struct cluster_restore *all, struct drive *drive, json_t *member,
                         struct err *err)
{
    struct err why;
    char shown[CONF_PATH_MAX + 64];
    if (drive->primary)
        return 0;
    bool aborts = strcmp(all->job->goal, "abort") == 0;
    int rc = find_conninfo_again(all, drive, &why);
    if (rc < 0 && (aborts || (rc == -ERR_REFUSED && drive->job[0])))
        return 0;
    if (rc < 0) {
        *err = why;
        return rc;
    }
    (void)conninfo_masked(drive->conninfo, shown, sizeof(shown));
    (void)json_object_set_new(member, "primary_conninfo", json_string(shown));
    return 0;
}

int cluster_load_drives(struct cluster_restore *all, struct err *err)
{
    const json_t *members = json_object_get(json_object_get(all->job->journal, "plan"), "members");
    size_t i, count = json_array_size(members);
    int rc = 0;
    if (count == 0 || count > CLUSTER_MEMBERS_MAX)
        return err_set(err, ERR_CORRUPT, "the journal of job %s has no plan", all->job->id);
    for (i = 0; rc == 0 && i < count; i++)
        rc = load_drive(all, json_array_get(members, i), err);
    all->fork = json_incref(json_object_get(all->job->journal, "fork"));
    return rc;
}

/* The drives first: whatever fails then, they can be given back. */
int cluster_load(struct cluster_restore *all, struct err *err)
{
    json_t *plan = json_object_get(all->job->journal, "plan");
    int rc = cluster_load_drives(all, err);
    if (rc == 0)
        rc = read_record(all, err);
    json_t *members = json_object_get(plan, "members");
    for (size_t i = 0; rc == 0 && i < all->count; i++)
        rc = load_conninfo(all, &all->drives[i], json_array_get(members, i), err);
    if (rc == 0 && !json_object_get(plan, "slots")) /* from another coordinator */
        (void)json_object_set_new(plan, "slots", cluster_slots(all));
    return rc;
}

int cluster_forget_fork(struct cluster_restore *all, struct err *err)
{
    for (size_t i = 0; i < all->count; i++) {
        if (!all->drives[i].followed)
            continue;
        (void)err_set(err, ERR_REFUSED,
                      "the primary's part was given up, and node %s has followed it already",
                      all->drives[i].member->name);
        return err_hint(err,
                        "give all of them up with `tidemark cluster abort %s`, then restore "
                        "anew",
                        all->job->id);
    }
    (void)pthread_mutex_lock(&all->mutex);
    json_decref(take_ptr(&all->fork));
    (void)json_object_del(all->job->journal, "fork");
    (void)pthread_mutex_unlock(&all->mutex);
    return 0;
}
