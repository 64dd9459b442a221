/* The plan as JSON, and back: one file, so that what is written is what is read. */
#include "agent/restore.h"
#include "agent/pg.h"

#include <stdio.h>

static const char *const content_names[] = {"blank", "own", "marked", "foreign"};

/* --- struct → JSON ---------------------------------------------------------------------------- */

static json_t *identity_json(const struct device_identity *identity)
{
    json_t *object = json_object();
    json_object_set_new(object, "path", json_string(identity->path));
    json_object_set_new(object, "size", json_integer((json_int_t)identity->size));
    json_object_set_new(object, "sector", json_integer(identity->logical_sector));
    json_object_set_new(object, "diskseq", json_integer((json_int_t)identity->diskseq));
    json_object_set_new(object, "wwn", json_string(identity->wwn));
    json_object_set_new(object, "serial", json_string(identity->serial));
    json_object_set_new(object, "fs_uuid", json_string(identity->fs_uuid));
    json_object_set_new(object, "fs_type", json_string(identity->fs_type));
    return object;
}

static json_t *mounted_json(const struct restore_volume *volume)
{
    if (!volume->was_mounted)
        return json_null();
    json_t *object = json_object();
    json_object_set_new(object, "device", json_string(volume->was_device));
    json_object_set_new(object, "fs_type", json_string(volume->was_type));
    json_object_set_new(object, "options", json_string(volume->was_options));
    return object;
}

static json_t *volume_json(const struct restore *restore, const struct restore_volume *volume)
{
    const struct record_volume *record = &restore->record.volumes[volume->index];
    json_t *object = json_object();
    json_object_set_new(object, "name", json_string(volume->name));
    json_object_set_new(object, "device", json_string(volume->given));
    json_object_set_new(object, "identity", identity_json(&volume->identity));
    json_object_set_new(object, "holds", json_string(content_names[volume->content]));
    json_object_set_new(object, "bytes", json_integer((json_int_t)volume->manifest.size));
    json_object_set_new(object, "fs_type", json_string(record->fs_type));
    json_object_set_new(object, "mount_point", json_string(volume->mount_point));
    json_object_set_new(object, "mount_options", json_string(volume->mount_options));
    json_object_set_new(object, "mounted", mounted_json(volume));
    return object;
}

static json_t *target_json(const struct restore *restore)
{
    char lsn[24];
    json_t *object = json_object();
    json_object_set_new(object, "type", json_string(target_type_name(restore->target)));
    json_object_set_new(object, "value", json_string(restore->target_value));
    json_object_set_new(object, "exclusive", json_boolean(restore->request.exclusive));
    json_object_set_new(object, "timeline", json_integer(restore->target_timeline));
    pg_lsn_format(restore->target_lsn, lsn);
    json_object_set_new(object, "lsn", restore->target_lsn ? json_string(lsn) : json_null());
    return object;
}

static json_t *conf_json(const struct restore *restore)
{
    json_t *object = json_object();
    json_object_set_new(object, "connection", json_string(restore->conf.connection));
    json_object_set_new(object, "bin_directory", json_string(restore->conf.bin_directory));
    json_object_set_new(object, "os_user", json_string(restore->conf.os_user));
    return object;
}

json_t *restore_plan_json(const struct restore *restore, json_t *warnings)
{
    const struct record *record = &restore->record;
    char id[ID_TEXT_LEN];
    id_to_text(record->id, id);
    json_t *plan = json_object(), *volumes = json_array();
    json_object_set_new(plan, "snapshot", json_string(id));
    json_object_set_new(plan, "tag", json_string(record->tag));
    json_object_set_new(plan, "cluster", json_string(record->cluster));
    json_object_set_new(plan, "node", json_string(record->node));
    json_object_set_new(plan, "captured_s", json_integer((json_int_t)record->captured_s));
    json_object_set_new(plan, "pg_version", json_string(record->pg_version));
    json_object_set_new(plan, "target", target_json(restore));
    json_object_set_new(plan, "action", json_string(restore_action_name(restore->request.action)));
    json_object_set_new(plan, "verify", json_string(verify_level_name(restore->request.verify)));
    json_object_set_new(plan, "reindex", json_string(restore->request.reindex ? "auto" : "none"));
    json_object_set_new(plan, "config",
                        json_string(restore->request.config_image ? "image" : "keep"));
    json_object_set_new(plan, "delta", json_boolean(restore->request.delta));
    json_object_set_new(plan, "data_directory", json_string(restore->data_directory));
    json_object_set_new(plan, "wal_directory", json_string(restore->wal_directory));
    json_object_set_new(plan, "server_running", json_boolean(restore->server_was_running));
    json_object_set_new(plan, "postgresql", conf_json(restore));
    for (size_t i = 0; i < restore->volume_count; i++)
        json_array_append_new(volumes, volume_json(restore, &restore->volumes[i]));
    json_object_set_new(plan, "volumes", volumes);
    json_object_set(plan, "warnings", warnings);
    return plan;
}

/* --- JSON → struct ---------------------------------------------------------------------------- */

static int copy_field(const json_t *object, const char *key, char *ret, size_t size,
                      struct err *err)
{
    const char *text;
    int rc = json_get_string(object, key, ERR_CORRUPT, &text, err);
    if (rc < 0)
        return rc;
    if ((size_t)snprintf(ret, size, "%s", text) >= size)
        return err_set(err, ERR_CORRUPT, "'%s' in the plan is too long", key);
    return 0;
}

static int load_identity(const json_t *object, struct device_identity *ret, struct err *err)
{
    uint64_t sector = 0;
    int rc = copy_field(object, "path", ret->path, sizeof(ret->path), err);
    if (rc == 0)
        rc = copy_field(object, "wwn", ret->wwn, sizeof(ret->wwn), err);
    if (rc == 0)
        rc = copy_field(object, "serial", ret->serial, sizeof(ret->serial), err);
    if (rc == 0)
        rc = copy_field(object, "fs_uuid", ret->fs_uuid, sizeof(ret->fs_uuid), err);
    if (rc == 0)
        rc = json_get_u64(object, "size", ERR_CORRUPT, &ret->size, err);
    if (rc == 0)
        rc = json_get_u64(object, "diskseq", ERR_CORRUPT, &ret->diskseq, err);
    if (rc == 0)
        rc = json_get_u64(object, "sector", ERR_CORRUPT, &sector, err);
    ret->logical_sector = (uint32_t)sector;
    return rc;
}

static int load_mounted(const json_t *object, struct restore_volume *volume, struct err *err)
{
    volume->was_mounted = json_is_object(object);
    if (!volume->was_mounted)
        return 0;
    int rc = copy_field(object, "device", volume->was_device, sizeof(volume->was_device), err);
    if (rc == 0)
        rc = copy_field(object, "fs_type", volume->was_type, sizeof(volume->was_type), err);
    if (rc == 0)
        rc = copy_field(object, "options", volume->was_options, sizeof(volume->was_options), err);
    return rc;
}

static int load_content(const json_t *object, struct restore_volume *volume, struct err *err)
{
    const char *text;
    int rc = json_get_string(object, "holds", ERR_CORRUPT, &text, err);
    if (rc < 0)
        return rc;
    for (unsigned i = 0; i < ARRAY_LEN(content_names); i++)
        if (strcmp(content_names[i], text) == 0) {
            volume->content = (enum device_content)i;
            return 0;
        }
    return err_set(err, ERR_CORRUPT, "the plan's volume holds '%s'", text);
}

static int load_volume(struct restore *restore, size_t index, const json_t *object, struct err *err)
{
    struct restore_volume *volume = &restore->volumes[index];
    const struct record *record = &restore->record;
    volume->index = index;
    int rc = copy_field(object, "name", volume->name, sizeof(volume->name), err);
    if (rc == 0 && strcmp(volume->name, record->volumes[index].name) != 0)
        rc = err_set(err, ERR_CORRUPT, "the plan's volume '%s' is '%s' in the record", volume->name,
                     record->volumes[index].name);
    if (rc == 0)
        rc = copy_field(object, "device", volume->given, sizeof(volume->given), err);
    if (rc == 0)
        rc = copy_field(object, "mount_point", volume->mount_point, sizeof(volume->mount_point),
                        err);
    if (rc == 0)
        rc = copy_field(object, "mount_options", volume->mount_options,
                        sizeof(volume->mount_options), err);
    if (rc == 0)
        rc = load_content(object, volume, err);
    if (rc == 0)
        rc = load_identity(json_object_get(object, "identity"), &volume->identity, err);
    if (rc == 0)
        rc = load_mounted(json_object_get(object, "mounted"), volume, err);
    volume->holds_control = strcmp(volume->name, record->control_volume) == 0;
    return rc;
}

static int load_target(struct restore *restore, const json_t *object, struct err *err)
{
    const char *type, *lsn = NULL;
    uint64_t timeline = 0;
    int rc = json_get_string(object, "type", ERR_CORRUPT, &type, err);
    if (rc == 0)
        rc = copy_field(object, "value", restore->target_value, sizeof(restore->target_value), err);
    if (rc == 0)
        rc = json_get_u64(object, "timeline", ERR_CORRUPT, &timeline, err);
    if (rc == 0)
        rc = json_opt_string(object, "lsn", ERR_CORRUPT, &lsn, err);
    if (rc < 0)
        return rc;
    restore->target_timeline = (uint32_t)timeline;
    if (lsn && !pg_lsn_parse(lsn, &restore->target_lsn))
        return err_set(err, ERR_CORRUPT, "the plan's LSN '%s' is not one", lsn);
    for (unsigned i = 0; i < TARGET_TYPE_COUNT; i++)
        if (strcmp(target_type_name((enum target_type)i), type) == 0) {
            restore->target = (enum target_type)i;
            return 0;
        }
    return err_set(err, ERR_CORRUPT, "the plan's target type '%s' is not known", type);
}

static int load_conf(struct restore *restore, const json_t *object, struct err *err)
{
    struct conf *conf = &restore->conf;
    int rc = copy_field(object, "connection", conf->connection, sizeof(conf->connection), err);
    if (rc == 0)
        rc = copy_field(object, "bin_directory", conf->bin_directory, sizeof(conf->bin_directory),
                        err);
    if (rc == 0)
        rc = copy_field(object, "os_user", conf->os_user, sizeof(conf->os_user), err);
    return rc;
}

int restore_load_plan(struct restore *restore, const json_t *plan, struct err *err)
{
    const json_t *volumes = json_object_get(plan, "volumes");
    if (json_array_size(volumes) != restore->record.volume_count)
        return err_set(err, ERR_CORRUPT, "the plan and the record have different volumes");
    restore->volume_count = restore->record.volume_count;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < restore->volume_count; i++)
        rc = load_volume(restore, i, json_array_get(volumes, i), err);
    if (rc == 0)
        rc = load_target(restore, json_object_get(plan, "target"), err);
    if (rc == 0)
        rc = load_conf(restore, json_object_get(plan, "postgresql"), err);
    restore->server_was_running = json_is_true(json_object_get(plan, "server_running"));
    return rc;
}
