/* Which device, mounted where, each volume of the snapshot goes to; and the configuration that an
 * empty host does not have, completed from the record. */
#include "agent/restore.h"

#include <pwd.h>
#include <stdio.h>
#include <sys/stat.h>

static const char *requested_device(const struct restore *restore, const char *name)
{
    return restore->request.devices
               ? json_string_value(json_object_get(restore->request.devices, name))
               : NULL;
}

static bool was_its_device(const struct restore *restore, const struct restore_volume *volume,
                           const json_t *job, const char *device)
{
    struct device_identity identity;
    struct err ignored;
    uint8_t id[ID_LEN];
    const char *text = json_string_value(json_object_get(job, "id"));
    if (!device || !text || !id_from_text(text, id))
        return false;
    return restore_is_marked(device, id, &ignored) ||
           (device_identify(device, &identity, &ignored) == 0 && identity.fs_uuid[0] &&
            strcmp(identity.fs_uuid, restore->record.volumes[volume->index].fs_uuid) == 0);
}

/* What a restore that was given up has left cannot be mounted. Its plan names the device, and the
 * device itself has to say so: by the mark of that restore, or the snapshot's filesystem. */
static bool given_up_device(const struct restore *restore, struct restore_volume *volume)
{
    free_json json_t *jobs = NULL;
    struct err ignored;
    if (job_list(&restore->job->conf, &jobs, &ignored) < 0)
        return false;
    for (size_t i = json_array_size(jobs); i-- > 0;) {
        const json_t *job = json_array_get(jobs, i), *entry;
        const json_t *planned = json_object_get(json_object_get(job, "plan"), "volumes");
        size_t k;
        if (!json_is_true(json_object_get(job, "given_up")))
            continue;
        json_array_foreach(planned, k, entry)
        {
            const char *name = json_string_value(json_object_get(entry, "name"));
            const char *device = json_string_value(json_object_get(entry, "device"));
            if (!name || strcmp(name, volume->name) != 0 ||
                !was_its_device(restore, volume, job, device))
                continue;
            (void)snprintf(volume->given, sizeof(volume->given), "%s", device);
            return true;
        }
    }
    return false;
}

static int find_device(struct restore *restore, struct restore_volume *volume, struct err *err)
{
    const struct conf_volume *conf = conf_volume_by_name(&restore->conf, volume->name);
    const char *asked = requested_device(restore, volume->name);
    struct mount_entry entry;
    if (asked && asked[0])
        (void)snprintf(volume->given, sizeof(volume->given), "%s", asked);
    else if (conf && conf->device[0])
        (void)snprintf(volume->given, sizeof(volume->given), "%s", conf->device);
    else if (restore_find_mount(volume->mount_point, &entry))
        (void)snprintf(volume->given, sizeof(volume->given), "%s", entry.source);
    else if (!given_up_device(restore, volume)) {
        (void)err_set(err, ERR_USAGE, "volume '%s' of the snapshot has no device here",
                      volume->name);
        return err_hint(err, "name it with --device=%s:/dev/…, or as [volume %s] device = …",
                        volume->name, volume->name);
    }
    return 0;
}

/* --device for a volume that the snapshot does not have is a typing error, not a wish. */
static int check_names(const json_t *map, const char *what, const struct record *record,
                       struct err *err)
{
    json_t *object = (json_t *)(uintptr_t)map;
    for (void *at = json_object_iter(object); at; at = json_object_iter_next(object, at)) {
        const char *name = json_object_iter_key(at);
        size_t i = 0;
        while (i < record->volume_count && strcmp(record->volumes[i].name, name) != 0)
            i++;
        if (i == record->volume_count) {
            (void)err_set(err, ERR_USAGE, "%s: the snapshot has no volume '%s'", what, name);
            return err_hint(err, "its first volume is '%s'", record->volumes[0].name);
        }
    }
    return 0;
}

/* --mount, else as configured, else where it was. */
static int set_mount(const struct restore *restore, const struct record_volume *record,
                     struct restore_volume *volume, struct err *err)
{
    const struct conf_volume *conf = conf_volume_by_name(&restore->conf, volume->name);
    const char *asked = json_string_value(json_object_get(restore->request.mounts, volume->name));
    bool here = conf && conf->mount[0];
    if (asked && !path_is_plain(asked)) {
        (void)err_set(err, ERR_USAGE, "--mount: '%.200s' cannot be the mount point of volume '%s'",
                      asked, volume->name);
        return err_hint(err, "an absolute path below /, without '.', '..' and a '/' at its end");
    }
    (void)snprintf(volume->mount_point, sizeof(volume->mount_point), "%s",
                   asked  ? asked
                   : here ? conf->mount
                          : record->mount_point);
    restore_mount_options(record->mount_options, volume->mount_options,
                          sizeof(volume->mount_options));
    return 0;
}

static int refuse_twice(const struct restore_volume *a, const struct restore_volume *b,
                        struct err *err)
{
    return err_set(err, ERR_REFUSED, "volumes '%s' and '%s' would share %s '%s'", a->name, b->name,
                   strcmp(a->mount_point, b->mount_point) == 0 ? "mount point" : "device",
                   strcmp(a->mount_point, b->mount_point) == 0 ? a->mount_point : a->given);
}

int restore_choose_volumes(struct restore *restore, struct err *err)
{
    const struct record *record = &restore->record;
    int rc = check_names(restore->request.devices, "--device", record, err);
    if (rc == 0)
        rc = check_names(restore->request.overwrite, "--overwrite", record, err);
    if (rc == 0)
        rc = check_names(restore->request.mounts, "--mount", record, err);
    restore->volume_count = record->volume_count;
    for (size_t i = 0; rc == 0 && i < record->volume_count; i++) {
        struct restore_volume *volume = &restore->volumes[i];
        volume->index = i;
        (void)snprintf(volume->name, sizeof(volume->name), "%s", record->volumes[i].name);
        volume->holds_control = strcmp(volume->name, record->control_volume) == 0;
        rc = set_mount(restore, &record->volumes[i], volume, err);
        if (rc == 0)
            rc = find_device(restore, volume, err);
    }
    for (size_t i = 0; rc == 0 && i < restore->volume_count; i++)
        for (size_t k = 0; rc == 0 && k < i; k++)
            if (strcmp(restore->volumes[i].mount_point, restore->volumes[k].mount_point) == 0 ||
                strcmp(restore->volumes[i].given, restore->volumes[k].given) == 0)
                rc = refuse_twice(&restore->volumes[i], &restore->volumes[k], err);
    return rc;
}

int restore_read_manifests(struct restore *restore, struct err *err)
{
    for (size_t i = 0; i < restore->volume_count; i++) {
        struct restore_volume *volume = &restore->volumes[i];
        int rc = catalog_manifest(restore->store, &restore->repo, &restore->record, volume->index,
                                  &volume->manifest_buf, &volume->manifest, err);
        if (rc < 0)
            return err_prefix(err, "volume '%s'", volume->name);
    }
    return 0;
}

/* The volume under the recorded WAL directory: the deepest mount point wins. */
static void find_wal_volume(struct restore *restore)
{
    struct restore_volume *best = NULL;
    for (size_t i = 0; i < restore->volume_count; i++) {
        struct restore_volume *volume = &restore->volumes[i];
        if (path_inside(restore->wal_directory, volume->mount_point) &&
            (!best || strlen(volume->mount_point) > strlen(best->mount_point)))
            best = volume;
    }
    if (best)
        best->holds_wal = true;
}

static void set_bin_directory(struct restore *restore)
{
    const struct record *record = &restore->record;
    struct conf *conf = &restore->conf;
    char path[CONF_PATH_MAX + 16];
    if (conf->bin_directory[0])
        return;
    (void)snprintf(conf->bin_directory, sizeof(conf->bin_directory), "%s", record->bin_directory);
    (void)snprintf(path, sizeof(path), "%s/postgres", record->bin_directory);
    if (!record->bin_directory[0] || access(path, X_OK) < 0)
        (void)snprintf(conf->bin_directory, sizeof(conf->bin_directory),
                       "/usr/lib/postgresql/%u/bin", record->pg_version_num / 10000);
}

/* os_user has a default, so on an empty host the record's own account is preferred if it exists. */
static void set_user(struct restore *restore)
{
    struct conf *conf = &restore->conf;
    if (!restore->job->conf.data_directory[0] && getpwnam(restore->record.os_user))
        (void)snprintf(conf->os_user, sizeof(conf->os_user), "%s", restore->record.os_user);
}

int restore_complete_conf(struct restore *restore, struct err *err)
{
    const struct record *record = &restore->record;
    struct conf *conf = &restore->conf;
    int rc = restore_map_paths(restore, err);
    if (rc < 0)
        return rc;
    find_wal_volume(restore);
    (void)snprintf(conf->data_directory, sizeof(conf->data_directory), "%s",
                   restore->data_directory);
    set_bin_directory(restore);
    set_user(restore);
    if (!conf->connection[0])
        (void)snprintf(conf->connection, sizeof(conf->connection), "host=%s port=%u",
                       record->socket_directory, record->port);
    return 0;
}
