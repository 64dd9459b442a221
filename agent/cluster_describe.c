/* What people decide by: the plan of the whole with what each agent found out for its node. See
 * cluster.h. */
#include "agent/cluster.h"
#include "agent/sync_names.h"

#include <stdio.h>

static json_t *volumes_of(const json_t *plan)
{
    static const char *const keys[] = {"name",    "device", "bytes",
                                       "fs_type", "holds",  "mount_point"};
    json_t *array = json_array(), *volume;
    size_t i;
    json_array_foreach(json_object_get(plan, "volumes"), i, volume)
    {
        json_t *item = json_object();
        for (size_t k = 0; k < ARRAY_LEN(keys); k++)
            (void)json_object_set(item, keys[k], json_object_get(volume, keys[k]));
        (void)json_object_set_new(item, "mounted",
                                  json_boolean(json_is_object(json_object_get(volume, "mounted"))));
        (void)json_array_append_new(array, item);
    }
    return array;
}

/* Its agent says whether it tried, we know why it was not to. */
static json_t *connection_of(const struct cluster_restore *all, const struct drive *drive)
{
    char text[CONF_NAME_MAX + 64];
    json_t *connection = json_deep_copy(json_object_get(drive->plan, "primary"));
    const char *why = cluster_untried(all, text, sizeof(text));
    if (json_is(connection, "tried", "no") && why)
        (void)json_object_set_new(connection, "text", json_string(why));
    return connection;
}

static void describe(const struct cluster_restore *all, const struct drive *drive, json_t *member,
                     json_t *warnings)
{
    (void)json_object_set(member, "data_directory", json_object_get(drive->plan, "data_directory"));
    (void)json_object_set(member, "server_running", json_object_get(drive->plan, "server_running"));
    (void)json_object_set_new(member, "volumes", volumes_of(drive->plan));
    if (drive->primary)
        return;
    json_t *connection = connection_of(all, drive);
    if (json_is(connection, "tried", "unclear"))
        json_append_text(warnings,
                         "%s: whether primary_conninfo leads to the primary is not clear: %s",
                         drive->member->name, json_str(connection, "text"));
    if (connection)
        (void)json_object_set_new(member, "connection", connection);
}

/* The setting is the new primary's own, which it keeps; whom it names may not come back, or under
 * another name. */
static void warn_of_waits(const struct cluster_restore *all, const struct drive *primary,
                          json_t *warnings)
{
    const char *names =
        json_str(json_object_get(primary->plan, "settings"), "synchronous_standby_names");
    const char *applications[CLUSTER_MEMBERS_MAX];
    char list[512] = "";
    unsigned wanted, found;
    size_t count = 0;
    for (size_t i = 0; i < all->count; i++) {
        const struct drive *drive = &all->drives[i];
        size_t len = strlen(list);
        if (drive->primary)
            continue;
        applications[count] = json_str(json_object_get(drive->plan, "primary"), "application_name");
        (void)snprintf(list + len, sizeof(list) - len, "%s%s as %s", count ? ", " : "",
                       drive->member->name, applications[count]);
        count++;
    }
    if (!names[0] || !sync_names_count(names, applications, count, &wanted, &found) ||
        found >= wanted)
        return;
    json_append_text(warnings,
                     "commits on the new primary %s will wait: its synchronous_standby_names = "
                     "'%s' wants %u standby%s, and of this restore %u of them attach%s (%s); "
                     "correct it there, before or after",
                     primary->member->name, names, wanted, wanted == 1 ? "" : "s", found,
                     found == 1 ? "es" : "", count ? list : "no standby is restored");
}

void cluster_describe(struct cluster_restore *all, json_t *warnings)
{
    json_t *plan = json_object_get(all->job->journal, "plan");
    json_t *members = json_object_get(plan, "members");
    for (size_t i = 0; i < all->count; i++) {
        const struct drive *drive = &all->drives[i];
        describe(all, drive, json_array_get(members, i), warnings);
        if (!drive->primary)
            continue;
        (void)json_object_set(plan, "target", json_object_get(drive->plan, "target"));
        warn_of_waits(all, drive, warnings);
    }
}
