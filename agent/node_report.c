/* The report of a node: see node_report.h. */
#include "agent/node_report.h"

#include <stdio.h>

#include "agent/cluster_lock.h"
#include "agent/health.h"
#include "agent/restore.h"
#include "agent/volume.h"

static json_t *volume_json(const struct volume *volume)
{
    char name[512];
    const struct device_identity *device = &volume->device;
    restore_device_name(device, name, sizeof(name));
    return json_pack("{s:s, s:s, s:b, s:s, s:s, s:I, s:s, s:s}", "name", volume->conf->name,
                     "mount", volume->mounted ? volume->mount_point : volume->conf->mount,
                     "mounted", volume->mounted, "device", device->path, "identity", name, "size",
                     (json_int_t)device->size, "fs_type", device->fs_type, "fs_uuid",
                     device->fs_uuid);
}

/* A volume that could not be captured as it is makes the whole group an error: the others are still
 * named, as configured. */
static void add_volumes(const struct conf *conf, json_t *report)
{
    struct volume_group *group = calloc(1, sizeof(*group)); /* large */
    json_t *volumes = json_array();
    struct err err;
    if (!group)
        abort();
    if (volume_group_open(conf, group, &err) == 0) {
        for (size_t i = 0; i < group->count; i++)
            (void)json_array_append_new(volumes, volume_json(&group->volumes[i]));
        volume_group_close(group);
    } else {
        for (size_t i = 0; i < conf->volume_count; i++)
            (void)json_array_append_new(
                volumes, json_pack("{s:s, s:s, s:s}", "name", conf->volumes[i].name, "mount",
                                   conf->volumes[i].mount, "device", conf->volumes[i].device));
        (void)json_object_set_new(report, "volumes_error", json_string(err.text));
    }
    free(group);
    (void)json_object_set_new(report, "volumes", volumes);
}

json_t *node_report(const struct conf *conf)
{
    struct cluster_lock lock;
    struct err err;
    json_t *report = node_server(conf);
    (void)json_object_set_new(report, "node", json_string(conf->node));
    (void)json_object_set_new(report, "cluster", json_string(conf->cluster));
    (void)json_object_set_new(report, "version", json_string(TIDEMARK_VERSION));
    (void)json_object_set_new(report, "health", health_report(conf, report));
    bool known = cluster_lock_read(conf, &lock, &err) == 0 && lock.job[0];
    json_t *reservation = known ? cluster_lock_json(&lock) : json_null();
    (void)json_object_del(reservation, "token"); /* the holder's own */
    (void)json_object_set_new(report, "reservation", reservation);
    add_volumes(conf, report);
    return report;
}
