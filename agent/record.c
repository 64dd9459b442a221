/* The snapshot record as JSON. One table of fields an object feeds the writer and the reader, so
 * that they cannot drift apart; what needs more than a type and a length is checked in
 * record_check.c. Text that is not UTF-8 (paths, labels: bytes to the kernel) is written as
 * {"base64": …} instead of a string. */
#include "agent/record.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "agent/pg.h"

enum { RECORD_FORMAT = 1 };

enum field_kind {
    FIELD_TEXT,   /* char[], NUL-ended */
    FIELD_UINT,   /* uint16_t, uint32_t, uint64_t below 2^63 */
    FIELD_TIME,   /* int64_t, not negative */
    FIELD_LATER,  /* the same; records of older versions lack it: zero, which is not written */
    FIELD_BIG,    /* uint64_t of any value, a decimal string in JSON */
    FIELD_BOOL,   /* bool */
    FIELD_ID,     /* uint8_t[ID_LEN], 32 hex digits */
    FIELD_LSN,    /* uint64_t, "X/Y" */
    FIELD_SHA256, /* uint8_t[32], 64 hex digits */
};

struct field {
    const char *key;
    enum field_kind kind;
    size_t offset; /* in the struct */
    size_t size;   /* of the member */
};

#define FIELD(kind, type, member)                                                                  \
    {                                                                                              \
#member, (kind), offsetof(type, member), sizeof(((type *)0)->member)                       \
    }

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

static json_t *text_to_json(const char *text)
{
    json_t *json = json_string(text);
    return json ? json : json_pack("{s:o}", "base64", json_base64(text, strlen(text)));
}

static json_t *hex_to_json(const uint8_t *bytes, size_t len)
{
    char text[2 * FMT_SHA256_LEN + 1];
    assert(2 * len < sizeof(text));
    for (size_t i = 0; i < len; i++)
        (void)snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    return json_string(text);
}

static uint64_t load_uint(const void *from, size_t size)
{
    uint16_t half;
    if (size == sizeof(half)) {
        memcpy(&half, from, sizeof(half));
        return half;
    }
    assert(size == sizeof(uint32_t) || size == sizeof(uint64_t));
    return size == sizeof(uint32_t) ? get_le32(from) : get_le64(from);
}

static json_t *field_to_json(const struct field *field, const void *from)
{
    char text[32];
    bool flag;
    switch (field->kind) {
    case FIELD_TEXT:
        return text_to_json(from);
    case FIELD_UINT:
    case FIELD_TIME:
    case FIELD_LATER:
        return json_integer((json_int_t)load_uint(from, field->size));
    case FIELD_BIG:
        (void)snprintf(text, sizeof(text), "%" PRIu64, get_le64(from));
        return json_string(text);
    case FIELD_BOOL:
        memcpy(&flag, from, sizeof(flag));
        return json_boolean(flag);
    case FIELD_ID:
    case FIELD_SHA256:
        return hex_to_json(from, field->size);
    case FIELD_LSN:
        pg_lsn_format(get_le64(from), text);
        return json_string(text);
    }
    abort();
}

static void fields_to_json(const struct field *fields, size_t count, const void *from, json_t *to)
{
    for (size_t i = 0; i < count; i++) {
        const char *member = (const char *)from + fields[i].offset;
        if (fields[i].kind != FIELD_LATER || load_uint(member, fields[i].size) != 0)
            json_object_set_new(to, fields[i].key, field_to_json(&fields[i], member));
    }
}

static json_t *config_files_to_json(const struct record *record, bool contents)
{
    json_t *array = json_array();
    for (size_t i = 0; i < record->config_file_count; i++) {
        const struct record_blob *blob = &record->config_files[i];
        json_t *item = json_pack("{s:o}", "path", text_to_json(blob->path));
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
    json_t *control =
        json_pack("{s:o,s:o}", "volume", text_to_json(record->control_volume), "extents", extents);
    if (contents)
        json_object_set_new(control, "bytes",
                            json_base64(record->control, sizeof(record->control)));
    return control;
}

static json_t *label_to_json(const char *text, bool binary)
{
    if (!text)
        return json_null();
    return binary ? json_base64(text, strlen(text)) : text_to_json(text);
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

static int wrong(const char *key, struct err *err)
{
    return err_set(err, ERR_CORRUPT, "snapshot record: missing or wrong '%s'", key);
}

static bool text_from_json(const json_t *json, char *to, size_t size)
{
    free_mem void *bytes = NULL;
    const char *text = json_string_value(json);
    size_t len = json_string_length(json);
    struct err ignored;
    if (json_is_object(json)) {
        if (json_get_base64(json, "base64", ERR_CORRUPT, &bytes, &len, &ignored) < 0)
            return false;
        text = bytes;
    }
    if (!text || len >= size || memchr(text, '\0', len))
        return false;
    memcpy(to, text, len);
    to[len] = '\0';
    return true;
}

static bool hex_from_json(const json_t *json, uint8_t *to, size_t len)
{
    const char *text = json_string_value(json);
    if (!text || strlen(text) != 2 * len || strspn(text, "0123456789abcdef") != 2 * len)
        return false;
    for (size_t i = 0; i < len; i++) {
        char digits[3] = {text[2 * i], text[2 * i + 1], '\0'};
        to[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    return true;
}

static bool uint_from_json(const json_t *json, size_t size, void *to)
{
    if (!json_is_integer(json) || json_integer_value(json) < 0)
        return false;
    uint64_t value = (uint64_t)json_integer_value(json);
    if (size < sizeof(value) && value >> (8 * size))
        return false;
    memcpy(to, &value, size); /* little-endian: the low bytes */
    return true;
}

static bool big_from_json(const json_t *json, void *to)
{
    const char *text = json_string_value(json);
    if (!text || !*text || strlen(text) > 20 || strspn(text, "0123456789") != strlen(text))
        return false;
    errno = 0;
    put_le64(to, strtoull(text, NULL, 10));
    return errno == 0;
}

static bool field_from_json(const struct field *field, const json_t *json, void *to)
{
    bool flag = json_is_true(json);
    uint64_t lsn;
    switch (field->kind) {
    case FIELD_TEXT:
        return text_from_json(json, to, field->size);
    case FIELD_UINT:
    case FIELD_TIME:
        return uint_from_json(json, field->size, to);
    case FIELD_LATER:
        return !json || uint_from_json(json, field->size, to);
    case FIELD_BIG:
        return big_from_json(json, to);
    case FIELD_BOOL:
        memcpy(to, &flag, sizeof(flag));
        return json_is_boolean(json);
    case FIELD_ID:
    case FIELD_SHA256:
        return hex_from_json(json, to, field->size);
    case FIELD_LSN:
        if (!json_is_string(json) || !pg_lsn_parse(json_string_value(json), &lsn))
            return false;
        put_le64(to, lsn);
        return true;
    }
    abort();
}

static int fields_from_json(const struct field *fields, size_t count, const json_t *json, void *to,
                            struct err *err)
{
    for (size_t i = 0; i < count; i++)
        if (!field_from_json(&fields[i], json_object_get(json, fields[i].key),
                             (char *)to + fields[i].offset))
            return wrong(fields[i].key, err);
    return 0;
}

/* The array obj[key] with at most count_max items, all objects. */
static int get_array(const json_t *obj, const char *key, size_t count_max, const json_t **ret,
                     struct err *err)
{
    const json_t *array = json_object_get(obj, key);
    if (!json_is_array(array) || json_array_size(array) > count_max)
        return wrong(key, err);
    for (size_t i = 0; i < json_array_size(array); i++)
        if (!json_is_object(json_array_get(array, i)))
            return wrong(key, err);
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
        return wrong(key, err);
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
        if (!text_from_json(json_object_get(item, "path"), path, sizeof(path)))
            return wrong("config_files.path", err);
        blob->path = strdup(path);
        if (!blob->path)
            return err_set(err, ERR_INTERNAL, "out of memory for a snapshot record");
        rc = fields_from_json(blob_fields, ARRAY_LEN(blob_fields), item, blob, err);
        if (rc < 0)
            return rc;
        if (json_get_base64(item, "bytes", ERR_CORRUPT, &blob->bytes, &blob->len, err) < 0)
            return wrong("config_files.bytes", err);
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
    if (!text_from_json(json_object_get(control, "volume"), ret->control_volume,
                        sizeof(ret->control_volume)))
        return wrong("control.volume", err);
    const json_t *extents = json_object_get(control, "extents");
    if (!json_is_array(extents) || json_array_size(extents) > RECORD_EXTENTS_MAX)
        return wrong("control.extents", err);
    ret->control_extent_count = json_array_size(extents);
    for (size_t i = 0; i < ret->control_extent_count; i++) {
        const json_t *pair = json_array_get(extents, i);
        struct extent *extent = &ret->control_extents[i];
        if (json_array_size(pair) != 2 ||
            !uint_from_json(json_array_get(pair, 0), sizeof(uint64_t), &extent->offset) ||
            !uint_from_json(json_array_get(pair, 1), sizeof(uint64_t), &extent->len))
            return wrong("control.extents", err);
    }
    free_mem void *bytes = NULL;
    size_t len;
    if (json_get_base64(control, "bytes", ERR_CORRUPT, &bytes, &len, err) < 0 ||
        len != sizeof(ret->control))
        return wrong("control.bytes", err);
    memcpy(ret->control, bytes, len);
    return 0;
}

static int object_from_json(const json_t *json, const char *key, json_t **ret, struct err *err)
{
    const json_t *object = json_object_get(json, key);
    if (!json_is_object(object))
        return wrong(key, err);
    *ret = json_deep_copy(object);
    return *ret ? 0 : err_set(err, ERR_INTERNAL, "out of memory for a snapshot record");
}

static int pg_from_json(const json_t *pg, struct record *ret, struct err *err)
{
    if (!json_is_object(pg))
        return wrong("postgresql", err);
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
        !uint_from_json(json_object_get(precopy, "freeze_sum_ns"), sizeof(uint64_t),
                        &ret->freeze_sum_ns))
        return wrong("precopy", err);
    for (size_t i = 0; i < ret->pass_count; i++)
        if (!uint_from_json(json_array_get(passes, i), sizeof(uint64_t), &ret->passes[i]))
            return wrong("precopy.passes", err);
    return 0;
}

static int from_json(const json_t *json, struct record *ret, struct err *err)
{
    const json_t *format = json_object_get(json, "format");
    if (!json_is_integer(format) || json_integer_value(format) < 1)
        return wrong("format", err);
    if (json_integer_value(format) != RECORD_FORMAT)
        return err_set(err, ERR_REFUSED, "snapshot record: format %lld is newer than this program",
                       (long long)json_integer_value(format));
    int rc = fields_from_json(top_fields, ARRAY_LEN(top_fields), json, ret, err);
    if (rc == 0)
        rc = precopy_from_json(json, ret, err);
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
