/* The snapshot record as JSON: tables of fields (record_fields.h) and what is more than a field.
 * What needs more than a type and a length is checked in record_check.c. Text that is not UTF-8
 * (paths, labels: bytes to the kernel) is written as {"base64": …} instead of a string. */
#include "agent/record.h"

#include "agent/record_fields.h"

enum { RECORD_FORMAT = 1 };

static const struct field top_fields[] = {
    FIELD(FIELD_ID, struct record, id),
    FIELD(FIELD_ID, struct record, parent),
    FIELD(FIELD_TEXT, struct record, tag),
    FIELD(FIELD_TEXT, struct record, cluster),
    FIELD(FIELD_TEXT, struct record, node),
    FIELD(FIELD_TEXT, struct record, host),
    FIELD(FIELD_TIME, struct record, started_s),
    FIELD(FIELD_TIME, struct record, captured_s),
    FIELD(FIELD_TIME, struct record, committed_s),
    FIELD(FIELD_TEXT, struct record, tidemark_version),
    FIELD(FIELD_BOOL, struct record, wal_in_image),
    FIELD(FIELD_UINT, struct record, freeze_ns),
};

static const struct field pg_fields[] = {
    FIELD(FIELD_UINT, struct record, pg_version_num),
    FIELD(FIELD_TEXT, struct record, pg_version),
    FIELD(FIELD_BIG, struct record, system_id),
    FIELD(FIELD_UINT, struct record, timeline),
    FIELD(FIELD_LSN, struct record, start_lsn),
    FIELD(FIELD_LSN, struct record, stop_lsn),
    FIELD(FIELD_LSN, struct record, tag_lsn),
    FIELD(FIELD_LATER, struct record, stopped_us),
    FIELD(FIELD_UINT, struct record, segment_size),
    FIELD(FIELD_UINT, struct record, block_size),
    FIELD(FIELD_BOOL, struct record, data_checksums),
    FIELD(FIELD_BOOL, struct record, online),
    FIELD(FIELD_BOOL, struct record, archived),
    FIELD(FIELD_TEXT, struct record, restore_point),
    FIELD(FIELD_TEXT, struct record, data_directory),
    FIELD(FIELD_TEXT, struct record, wal_directory),
    FIELD(FIELD_TEXT, struct record, bin_directory),
    FIELD(FIELD_TEXT, struct record, os_user),
    FIELD(FIELD_UINT, struct record, os_uid),
    FIELD(FIELD_UINT, struct record, os_gid),
    FIELD(FIELD_UINT, struct record, port),
    FIELD(FIELD_TEXT, struct record, socket_directory),
};

static const struct field volume_fields[] = {
    FIELD(FIELD_TEXT, struct record_volume, name),
    FIELD(FIELD_ID, struct record_volume, id),
    FIELD(FIELD_UINT, struct record_volume, size),
    FIELD(FIELD_UINT, struct record_volume, logical_sector),
    FIELD(FIELD_UINT, struct record_volume, physical_sector),
    FIELD(FIELD_TEXT, struct record_volume, fs_type),
    FIELD(FIELD_TEXT, struct record_volume, fs_uuid),
    FIELD(FIELD_TEXT, struct record_volume, fs_label),
    FIELD(FIELD_TEXT, struct record_volume, mount_point),
    FIELD(FIELD_TEXT, struct record_volume, mount_options),
    FIELD(FIELD_TEXT, struct record_volume, provider),
    FIELD(FIELD_SHA256, struct record_volume, manifest_sha256),
    FIELD(FIELD_UINT, struct record_volume, bytes_read),
    FIELD(FIELD_UINT, struct record_volume, bytes_stored),
    FIELD(FIELD_UINT, struct record_volume, bytes_free),
    FIELD(FIELD_UINT, struct record_volume, chunks_stored),
    FIELD(FIELD_UINT, struct record_volume, chunks_same),
    FIELD(FIELD_LATER, struct record_volume, chunks_rewritten),
    FIELD(FIELD_LATER, struct record_volume, bytes_rewritten),
    FIELD(FIELD_LATER, struct record_volume, track_used),
    FIELD(FIELD_LATER, struct record_volume, track_read),
    FIELD(FIELD_NOTE, struct record_volume, track_full),
};

static const struct field tablespace_fields[] = {
    FIELD(FIELD_UINT, struct record_tablespace, oid),
    FIELD(FIELD_TEXT, struct record_tablespace, name),
    FIELD(FIELD_TEXT, struct record_tablespace, location),
};

static const struct field blob_fields[] = {
    FIELD(FIELD_UINT, struct record_blob, mode),
    FIELD(FIELD_UINT, struct record_blob, uid),
    FIELD(FIELD_UINT, struct record_blob, gid),
};

const char *const record_replay_settings[] = {
    "max_connections",           "max_worker_processes",      "max_wal_senders",
    "max_prepared_transactions", "max_locks_per_transaction", NULL,
};

void record_release(struct record *record)
{
    if (!record)
        return;
    free(record->backup_label);
    free(record->tablespace_map);
    for (size_t i = 0; i < record->config_file_count; i++) {
        free(record->config_files[i].path);
        free(record->config_files[i].bytes);
    }
    free(record->config_files);
    free(record->tablespaces);
    json_decref(record->settings);
    json_decref(record->topology);
    memset(record, 0, sizeof(*record));
}

/* --- writing ---------------------------------------------------------------------------------- */

static json_t *config_files_to_json(const struct record *record, bool contents)
{
    json_t *array = json_array();
    for (size_t i = 0; i < record->config_file_count; i++) {
        const struct record_blob *blob = &record->config_files[i];
        json_t *item = json_pack("{s:o}", "path", field_text_to_json(blob->path));
        fields_to_json(blob_fields, ARRAY_LEN(blob_fields), blob, item);
        if (contents)
            json_object_set_new(item, "bytes", json_base64(blob->bytes, blob->len));
        else
            json_object_set_new(item, "len", json_integer((json_int_t)blob->len));
        json_array_append_new(array, item);
    }
    return array;
}

static json_t *control_to_json(const struct record *record, bool contents)
{
    json_t *extents = json_array();
    for (size_t i = 0; i < record->control_extent_count; i++)
        json_array_append_new(extents,
                              json_pack("[I,I]", (json_int_t)record->control_extents[i].offset,
                                        (json_int_t)record->control_extents[i].len));
    json_t *control = json_pack("{s:o,s:o}", "volume", field_text_to_json(record->control_volume),
                                "extents", extents);
    if (contents)
        json_object_set_new(control, "bytes",
                            json_base64(record->control, sizeof(record->control)));
    return control;
}

static json_t *label_to_json(const char *text, bool binary)
{
    if (!text)
        return json_null();
    return binary ? json_base64(text, strlen(text)) : field_text_to_json(text);
}

static json_t *pg_to_json(const struct record *record, bool contents)
{
    json_t *pg = json_object();
    fields_to_json(pg_fields, ARRAY_LEN(pg_fields), record, pg);
    json_object_set_new(pg, "backup_label", label_to_json(record->backup_label, contents));
    json_object_set_new(pg, "tablespace_map", label_to_json(record->tablespace_map, contents));
    json_object_set_new(pg, "config_files", config_files_to_json(record, contents));
    json_t *tablespaces = json_array();
    for (size_t i = 0; i < record->tablespace_count; i++) {
        json_t *item = json_object();
        fields_to_json(tablespace_fields, ARRAY_LEN(tablespace_fields), &record->tablespaces[i],
                       item);
        json_array_append_new(tablespaces, item);
    }
    json_object_set_new(pg, "tablespaces", tablespaces);
    json_object_set_new(pg, "control", control_to_json(record, contents));
    json_object_set_new(pg, "settings",
                        record->settings ? json_deep_copy(record->settings) : json_object());
    return pg;
}

static json_t *precopy_to_json(const struct record *record)
{
    json_t *passes = json_array();
    for (size_t i = 0; i < record->pass_count; i++)
        json_array_append_new(passes, json_integer((json_int_t)record->passes[i]));
    return json_pack("{s:o,s:I}", "passes", passes, "freeze_sum_ns",
                     (json_int_t)record->freeze_sum_ns);
}

static json_t *to_json(const struct record *record, bool contents)
{
    json_t *json = json_pack("{s:i}", "format", RECORD_FORMAT);
    fields_to_json(top_fields, ARRAY_LEN(top_fields), record, json);
    if (record->locked_until_s > 0)
        json_object_set_new(json, "locked_until_s", json_integer(record->locked_until_s));
    if (record->pass_count > 0)
        json_object_set_new(json, "precopy", precopy_to_json(record));
    json_object_set_new(json, "postgresql", pg_to_json(record, contents));
    json_object_set_new(json, "topology",
                        record->topology ? json_deep_copy(record->topology) : json_object());
    json_t *volumes = json_array();
    for (size_t i = 0; i < record->volume_count; i++) {
        json_t *item = json_object();
        fields_to_json(volume_fields, ARRAY_LEN(volume_fields), &record->volumes[i], item);
        json_array_append_new(volumes, item);
    }
    json_object_set_new(json, "volumes", volumes);
    return json;
}

json_t *record_to_json(const struct record *record)
{
    return to_json(record, true);
}

json_t *record_to_public_json(const struct record *record)
{
    return to_json(record, false);
}

/* --- reading ---------------------------------------------------------------------------------- */

/* The array obj[key] with at most count_max items, all objects. */
static int get_array(const json_t *obj, const char *key, size_t count_max, const json_t **ret,
                     struct err *err)
{
    const json_t *array = json_object_get(obj, key);
    if (!json_is_array(array) || json_array_size(array) > count_max)
        return field_wrong(key, err);
    for (size_t i = 0; i < json_array_size(array); i++)
        if (!json_is_object(json_array_get(array, i)))
            return field_wrong(key, err);
    *ret = array;
    return 0;
}

static int label_from_json(const json_t *pg, const char *key, char **ret, struct err *err)
{
    if (json_is_null(json_object_get(pg, key)))
        return 0;
    free_mem void *bytes = NULL;
    size_t len;
    if (json_get_base64(pg, key, ERR_CORRUPT, &bytes, &len, err) < 0 || len > RECORD_LABEL_MAX ||
        memchr(bytes, '\0', len))
        return field_wrong(key, err);
    char *text = calloc(1, len + 1);
    if (!text)
        return err_set(err, ERR_INTERNAL, "out of memory for a snapshot record");
    memcpy(text, bytes, len);
    *ret = text;
    return 0;
}

static int config_files_from_json(const json_t *pg, struct record *ret, struct err *err)
{
    const json_t *array;
    int rc = get_array(pg, "config_files", RECORD_CONFIG_FILES_MAX, &array, err);
    if (rc < 0)
        return rc;
    ret->config_files = calloc(json_array_size(array) + 1, sizeof(*ret->config_files));
    if (!ret->config_files)
        return err_set(err, ERR_INTERNAL, "out of memory for a snapshot record");
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *item = json_array_get(array, i);
        struct record_blob *blob = &ret->config_files[ret->config_file_count++];
        char path[4096];
        if (!field_text_from_json(json_object_get(item, "path"), path, sizeof(path)))
            return field_wrong("config_files.path", err);
        blob->path = strdup(path);
        if (!blob->path)
            return err_set(err, ERR_INTERNAL, "out of memory for a snapshot record");
        rc = fields_from_json(blob_fields, ARRAY_LEN(blob_fields), item, blob, err);
        if (rc < 0)
            return rc;
        if (json_get_base64(item, "bytes", ERR_CORRUPT, &blob->bytes, &blob->len, err) < 0)
            return field_wrong("config_files.bytes", err);
    }
    return 0;
}

static int tablespaces_from_json(const json_t *pg, struct record *ret, struct err *err)
{
    const json_t *array;
    int rc = get_array(pg, "tablespaces", RECORD_TABLESPACES_MAX, &array, err);
    if (rc < 0)
        return rc;
    ret->tablespaces = calloc(json_array_size(array) + 1, sizeof(*ret->tablespaces));
    if (!ret->tablespaces)
        return err_set(err, ERR_INTERNAL, "out of memory for a snapshot record");
    ret->tablespace_count = json_array_size(array);
    for (size_t i = 0; i < ret->tablespace_count; i++) {
        rc = fields_from_json(tablespace_fields, ARRAY_LEN(tablespace_fields),
                              json_array_get(array, i), &ret->tablespaces[i], err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int control_from_json(const json_t *pg, struct record *ret, struct err *err)
{
    const json_t *control = json_object_get(pg, "control");
    if (!field_text_from_json(json_object_get(control, "volume"), ret->control_volume,
                              sizeof(ret->control_volume)))
        return field_wrong("control.volume", err);
    const json_t *extents = json_object_get(control, "extents");
    if (!json_is_array(extents) || json_array_size(extents) > RECORD_EXTENTS_MAX)
        return field_wrong("control.extents", err);
    ret->control_extent_count = json_array_size(extents);
    for (size_t i = 0; i < ret->control_extent_count; i++) {
        const json_t *pair = json_array_get(extents, i);
        struct extent *extent = &ret->control_extents[i];
        if (json_array_size(pair) != 2 ||
            !field_uint_from_json(json_array_get(pair, 0), sizeof(uint64_t), &extent->offset) ||
            !field_uint_from_json(json_array_get(pair, 1), sizeof(uint64_t), &extent->len))
            return field_wrong("control.extents", err);
    }
    free_mem void *bytes = NULL;
    size_t len;
    if (json_get_base64(control, "bytes", ERR_CORRUPT, &bytes, &len, err) < 0 ||
        len != sizeof(ret->control))
        return field_wrong("control.bytes", err);
    memcpy(ret->control, bytes, len);
    return 0;
}

static int object_from_json(const json_t *json, const char *key, json_t **ret, struct err *err)
{
    const json_t *object = json_object_get(json, key);
    if (!json_is_object(object))
        return field_wrong(key, err);
    *ret = json_deep_copy(object);
    return *ret ? 0 : err_set(err, ERR_INTERNAL, "out of memory for a snapshot record");
}

static int pg_from_json(const json_t *pg, struct record *ret, struct err *err)
{
    if (!json_is_object(pg))
        return field_wrong("postgresql", err);
    int rc = fields_from_json(pg_fields, ARRAY_LEN(pg_fields), pg, ret, err);
    if (rc == 0)
        rc = label_from_json(pg, "backup_label", &ret->backup_label, err);
    if (rc == 0)
        rc = label_from_json(pg, "tablespace_map", &ret->tablespace_map, err);
    if (rc == 0)
        rc = config_files_from_json(pg, ret, err);
    if (rc == 0)
        rc = tablespaces_from_json(pg, ret, err);
    if (rc == 0)
        rc = control_from_json(pg, ret, err);
    if (rc == 0)
        rc = object_from_json(pg, "settings", &ret->settings, err);
    return rc;
}

static int volumes_from_json(const json_t *json, struct record *ret, struct err *err)
{
    const json_t *array;
    int rc = get_array(json, "volumes", RECORD_VOLUMES_MAX, &array, err);
    if (rc < 0)
        return rc;
    ret->volume_count = json_array_size(array);
    for (size_t i = 0; i < ret->volume_count; i++) {
        rc = fields_from_json(volume_fields, ARRAY_LEN(volume_fields), json_array_get(array, i),
                              &ret->volumes[i], err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int precopy_from_json(const json_t *json, struct record *ret, struct err *err)
{
    const json_t *precopy = json_object_get(json, "precopy");
    const json_t *passes = json_object_get(precopy, "passes");
    if (!precopy)
        return 0;
    ret->pass_count = json_array_size(passes);
    if (ret->pass_count < 1 || ret->pass_count > RECORD_PASSES_MAX ||
        !field_uint_from_json(json_object_get(precopy, "freeze_sum_ns"), sizeof(uint64_t),
                              &ret->freeze_sum_ns))
        return field_wrong("precopy", err);
    for (size_t i = 0; i < ret->pass_count; i++)
        if (!field_uint_from_json(json_array_get(passes, i), sizeof(uint64_t), &ret->passes[i]))
            return field_wrong("precopy.passes", err);
    return 0;
}

static int lock_from_json(const json_t *json, struct record *ret, struct err *err)
{
    const json_t *until = json_object_get(json, "locked_until_s");
    if (until && (!json_is_integer(until) || json_integer_value(until) <= 0))
        return field_wrong("locked_until_s", err);
    ret->locked_until_s = json_integer_value(until);
    return 0;
}

static int from_json(const json_t *json, struct record *ret, struct err *err)
{
    const json_t *format = json_object_get(json, "format");
    if (!json_is_integer(format) || json_integer_value(format) < 1)
        return field_wrong("format", err);
    if (json_integer_value(format) != RECORD_FORMAT)
        return err_set(err, ERR_REFUSED, "snapshot record: format %lld is newer than this program",
                       (long long)json_integer_value(format));
    int rc = fields_from_json(top_fields, ARRAY_LEN(top_fields), json, ret, err);
    if (rc == 0)
        rc = precopy_from_json(json, ret, err);
    if (rc == 0)
        rc = lock_from_json(json, ret, err);
    if (rc == 0)
        rc = pg_from_json(json_object_get(json, "postgresql"), ret, err);
    if (rc == 0)
        rc = object_from_json(json, "topology", &ret->topology, err);
    if (rc == 0)
        rc = volumes_from_json(json, ret, err);
    if (rc == 0)
        rc = record_check(ret, err);
    return rc;
}

int record_from_json(const json_t *json, struct record *ret, struct err *err)
{
    struct record *record = calloc(1, sizeof(*record)); /* 60 KiB: not on the stack */
    if (!record)
        return err_set(err, ERR_INTERNAL, "out of memory for a snapshot record");
    int rc = from_json(json, record, err);
    if (rc == 0)
        *ret = *record;
    else
        record_release(record);
    free(record);
    return rc;
}

int record_age_compare(const struct record_age *left, const struct record_age *right)
{
    if (left->captured_s != right->captured_s)
        return left->captured_s < right->captured_s ? -1 : 1;
    if (left->timeline != right->timeline)
        return left->timeline < right->timeline ? -1 : 1;
    if (left->tag_lsn != right->tag_lsn)
        return left->tag_lsn < right->tag_lsn ? -1 : 1;
    return (left->committed_s > right->committed_s) - (left->committed_s < right->committed_s);
}
