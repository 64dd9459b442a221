/* The snapshot record: round trip, every field missing or of another type, ranges. */
#include "tests/tap.h"
#include "tests/unit/record_fixture.h"

static struct err err;

/* The parts of a record's JSON, as paths for part_of(). */
static const char *const parts[] = {"",
                                    "postgresql",
                                    "postgresql/control",
                                    "postgresql/config_files",
                                    "postgresql/tablespaces",
                                    "volumes"};

/* The object at path; of an array, its first item. Borrowed. */
static json_t *part_of(json_t *json, const char *path)
{
    char key[64];
    while (*path) {
        size_t len = strcspn(path, "/");
        (void)snprintf(key, sizeof(key), "%.*s", (int)len, path);
        json = json_object_get(json, key);
        path += len + (path[len] == '/');
    }
    return json_is_array(json) ? json_array_get(json, 0) : json;
}

static json_t *fresh(void)
{
    struct record record;
    fixture_record(&record, 0xaa, "before-release");
    json_t *json = record_to_json(&record);
    record_release(&record);
    return json;
}

static int parse(const json_t *json)
{
    struct record *record = calloc(1, sizeof(*record));
    err_clear(&err);
    int rc = record_from_json(json, record, &err);
    if (rc == 0)
        record_release(record);
    free(record);
    return rc;
}

/* Records of older versions lack it. */
static void test_later(void)
{
    struct record record, *again = calloc(1, sizeof(*again));
    fixture_record(&record, 0xaa, "before-release");
    free_json json_t *without = record_to_json(&record);
    ok(!json_object_get(part_of(without, "postgresql"), "stopped_us"), "a zero is not written");
    record.stopped_us = 1764000061123456;
    free_json json_t *with = record_to_json(&record);
    is_good(record_from_json(with, again, &err), &err, "a record with stopped_us");
    ok(again->stopped_us == record.stopped_us, "and its value");
    record_release(again);
    ok(!json_object_get(with, "precopy"), "of other providers there are no passes");
    record.pass_count = 2;
    record.passes[0] = 1 << 20;
    record.passes[1] = 0;
    record.freeze_sum_ns = 77;
    free_json json_t *live = record_to_json(&record);
    is_good(record_from_json(live, again, &err), &err, "a record of provider precopy");
    ok(again->pass_count == 2 && again->passes[0] == 1 << 20 && again->passes[1] == 0 &&
           again->freeze_sum_ns == 77,
       "and its passes");
    record_release(again);
    ok(!json_object_get(part_of(live, "volumes"), "track_used") &&
           !json_object_get(part_of(live, "volumes"), "track_full"),
       "without option track there is nothing of it");
    record.volumes[0].track_used = 1000;
    record.volumes[0].track_read = 3;
    record.volumes[0].chunks_rewritten = 5;
    record.volumes[0].bytes_rewritten = 70000;
    (void)snprintf(record.volumes[1].track_full, sizeof(record.volumes[1].track_full), "a reason");
    free_json json_t *tracked = record_to_json(&record);
    is_good(record_from_json(tracked, again, &err), &err, "a record of tracked volumes");
    ok(again->volumes[0].track_used == 1000 && again->volumes[0].track_read == 3, "what was read");
    ok(again->volumes[0].chunks_rewritten == 5 && again->volumes[0].bytes_rewritten == 70000,
       "what was stored again");
    is_str(again->volumes[1].track_full, "a reason", "why all of the other one was");
    record_release(again);
    record_release(&record);
    free(again);
}

static void test_round_trip(void)
{
    struct record *again = calloc(1, sizeof(*again));
    free_json json_t *json = fresh();
    is_good(record_from_json(json, again, &err), &err, "a record is read back");
    free_json json_t *second = record_to_json(again);
    ok(json_equal(json, second), "and written the same");
    ok(again->system_id == 0xf123456789abcdefULL, "a system identifier above 2^63 survives");
    is_str(again->config_files[0].path, "/etc/postgresql/p\xf6stgresql.conf",
           "a path that is not UTF-8 survives");
    ok(again->config_files[0].len == 13 && again->config_files[0].mode == 0640,
       "a file's bytes and mode survive");
    ok(again->control_extent_count == 2 && again->control[4095] == (uint8_t)(4095 * 7),
       "pg_control survives");
    ok(record_volume_by_name(again, "pgwal") == &again->volumes[1] &&
           !record_volume_by_name(again, "other"),
       "volumes are found by name");
    free_mem char *text = json_text(json);
    free_json json_t *parsed = NULL;
    is_good(json_parse(text, strlen(text), ERR_CORRUPT, &parsed, &err), &err, "it is JSON");
    ok(json_equal(parsed, json), "of the same value");
    json_object_set_new(json, "from_the_future", json_true());
    is_good(parse(json), &err, "an unknown key is ignored");
    record_release(again);
    free(again);
}

static void test_public(void)
{
    struct record record;
    fixture_record(&record, 0xaa, "t");
    free_json json_t *json = record_to_public_json(&record);
    free_mem char *text = json_text(json);
    ok(!strstr(text, "secret") && !strstr(text, "c2VjcmV0"), "show has no config file contents");
    ok(!json_object_get(part_of(json, "postgresql/control"), "bytes"), "and no pg_control");
    is_u64(json_integer_value(json_object_get(part_of(json, "postgresql/config_files"), "len")), 13,
           "but the length of the files");
    ok(strstr(text, "START WAL LOCATION") != NULL, "and the label as text");
    record_release(&record);
}

/* Every key of every part: absent, and of a type that none of them has. */
static void test_every_field(void)
{
    size_t count = 0;
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        free_json json_t *template = fresh();
        const char *key;
        json_t *value;
        json_object_foreach(part_of(template, parts[i]), key, value)
        {
            free_json json_t *without = fresh(), *wrong = fresh();
            json_object_del(part_of(without, parts[i]), key);
            json_object_set_new(part_of(wrong, parts[i]), key, json_real(3.5));
            bool good = parse(without) == -ERR_CORRUPT && strstr(err.text, key);
            good = good && parse(wrong) == -ERR_CORRUPT && strstr(err.text, key);
            ok(good, "%s/%s missing or a real number: %s", parts[i], key, err.text);
            count++;
        }
    }
    ok(count > 60, "%zu fields were tried", count);
}

static const struct {
    const char *part, *key, *value, *text;
} bad_values[] = {
    {"", "format", "2", "newer"},
    {"", "id", "\"00000000000000000000000000000000\"", "id is zero"},
    {"", "id", "\"AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"", "'id'"},
    {"", "id", "\"aa\"", "'id'"},
    {"", "parent", "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"", "own parent"},
    {"", "tag", "\"latest\"", "tag"},
    {"", "tag", "\"\"", "tag"},
    {"", "tag", "\"a/b\"", "tag"},
    {"", "tag", "\"0123456789012345678901234567890\"", "'tag'"},
    {"", "tag", "\"a\\u0000b\"", "'tag'"},
    {"", "cluster", "\"..\"", "cluster"},
    {"", "node", "\"a b\"", "node"},
    {"", "started_s", "-1", "'started_s'"},
    {"", "captured_s", "1", "times"},
    {"", "committed_s", "1", "times"},
    {"", "wal_in_image", "1", "'wal_in_image'"},
    {"", "topology", "[]", "'topology'"},
    {"", "precopy", "[]", "'precopy'"},
    {"", "precopy", "{\"passes\":[],\"freeze_sum_ns\":1}", "'precopy'"},
    {"", "precopy", "{\"passes\":[1]}", "'precopy'"},
    {"", "precopy", "{\"passes\":[1,-1],\"freeze_sum_ns\":1}", "'precopy.passes'"},
    {"", "volumes", "[]", "no volumes"},
    {"", "volumes", "[1]", "'volumes'"},
    {"", "volumes", "{}", "'volumes'"},
    {"postgresql", "pg_version_num", "140005", "version"},
    {"postgresql", "pg_version_num", "4294967296", "'pg_version_num'"},
    {"postgresql", "system_id", "\"0\"", "zero"},
    {"postgresql", "system_id", "\"18446744073709551616\"", "'system_id'"},
    {"postgresql", "system_id", "\"-1\"", "'system_id'"},
    {"postgresql", "system_id", "\"\"", "'system_id'"},
    {"postgresql", "timeline", "0", "zero"},
    {"postgresql", "timeline", "-1", "'timeline'"},
    {"postgresql", "start_lsn", "\"0/0\"", "order"},
    {"postgresql", "start_lsn", "\"1/139\"", "order"},
    {"postgresql", "stop_lsn", "\"1/1A1\"", "order"},
    {"postgresql", "tag_lsn", "\"100\"", "'tag_lsn'"},
    {"postgresql", "stopped_us", "-1", "'stopped_us'"},
    {"postgresql", "stopped_us", "\"1\"", "'stopped_us'"},
    {"postgresql", "segment_size", "16777215", "segment size"},
    {"postgresql", "segment_size", "524288", "segment size"},
    {"postgresql", "segment_size", "2147483648", "segment size"},
    {"postgresql", "block_size", "0", "block size"},
    {"postgresql", "block_size", "65536", "block size"},
    {"postgresql", "online", "false", "label"},
    {"postgresql", "backup_label", "null", "label"},
    {"postgresql", "backup_label", "\"AA==\"", "'backup_label'"}, /* a NUL byte */
    {"postgresql", "backup_label", "\"A\"", "'backup_label'"},
    {"postgresql", "archived", "false", "restore point"},
    {"postgresql", "restore_point", "\"\"", "restore point"},
    {"postgresql", "data_directory", "\"data\"", "absolute"},
    {"postgresql", "data_directory", "\"/srv/../etc\"", "absolute"},
    {"postgresql", "wal_directory", "\"\"", "absolute"},
    {"postgresql", "bin_directory", "\"bin/..\"", "absolute"},
    {"postgresql", "os_user", "\"\"", "user"},
    {"postgresql", "port", "65536", "'port'"},
    {"postgresql", "settings", "\"x\"", "'settings'"},
    {"postgresql", "config_files", "{}", "'config_files'"},
    {"postgresql/config_files", "path", "\"/etc/..\"", "path"},
    {"postgresql/config_files", "bytes", "\"???\"", "'config_files.bytes'"},
    {"postgresql/tablespaces", "oid", "0", "tablespace"},
    {"postgresql/tablespaces", "location", "\"x\"", "tablespace"},
    {"postgresql/control", "volume", "\"other\"", "pg_control"},
    {"postgresql/control", "extents", "[]", "too short"},
    {"postgresql/control", "extents", "[[0,4096]]", "too short"},
    {"postgresql/control", "extents", "[[0,8192,1]]", "'control.extents'"},
    {"postgresql/control", "extents", "[8192]", "'control.extents'"},
    {"postgresql/control", "extents", "[[1,8192]]", "outside"},
    {"postgresql/control", "extents", "[[1073741824,8192]]", "outside"},
    {"postgresql/control", "extents", "[[9223372036854775296,9223372036854775296]]", "outside"},
    {"postgresql/control", "extents", "[[0,0],[0,8192]]", "outside"},
    {"postgresql/control", "bytes", "\"AAAA\"", "'control.bytes'"},
    {"volumes", "name", "\"\"", "name"},
    {"volumes", "name", "\"pgwal\"", "same name"},
    {"volumes", "id", "\"22222222222222222222222222222222\"", "same name or id"},
    {"volumes", "id", "\"00000000000000000000000000000000\"", "zero"},
    {"volumes", "size", "0", "size"},
    {"volumes", "size", "1073741825", "size"},
    {"volumes", "logical_sector", "0", "sector"},
    {"volumes", "logical_sector", "513", "sector"},
    {"volumes", "physical_sector", "256", "sector"},
    {"volumes", "fs_type", "\"\"", "filesystem"},
    {"volumes", "fs_type", "\"0123456789abcdef\"", "'fs_type'"},
    {"volumes", "mount_point", "\"srv\"", "mount point"},
    {"volumes", "track_used", "-1", "'track_used'"},
    {"volumes", "track_read", "1", "tracking contradicts"},
    {"volumes", "track_full", "7", "'track_full'"},
    {"volumes", "manifest_sha256", "\"11\"", "'manifest_sha256'"},
};

static void test_bad_values(void)
{
    for (size_t i = 0; i < ARRAY_LEN(bad_values); i++) {
        free_json json_t *json = fresh();
        json_t *value = json_loads(bad_values[i].value, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        json_object_set_new(part_of(json, bad_values[i].part), bad_values[i].key, value);
        enum err_code want = strcmp(bad_values[i].key, "format") ? ERR_CORRUPT : ERR_REFUSED;
        is_err(parse(json), &err, want, bad_values[i].text, "%s/%s = %s", bad_values[i].part,
               bad_values[i].key, bad_values[i].value);
    }
    free_json json_t *array = json_array();
    is_err(parse(array), &err, ERR_CORRUPT, "'format'", "an array is not a record");
}

/* Counts that no memory should be taken for. */
static void test_huge_counts(void)
{
    static const struct {
        const char *part, *key;
        size_t count;
    } lists[] = {
        {"", "volumes", RECORD_VOLUMES_MAX + 1},
        {"postgresql", "config_files", RECORD_CONFIG_FILES_MAX + 1},
        {"postgresql", "tablespaces", RECORD_TABLESPACES_MAX + 1},
        {"postgresql/control", "extents", 100000},
    };
    for (size_t i = 0; i < ARRAY_LEN(lists); i++) {
        free_json json_t *json = fresh();
        json_t *list = json_array();
        json_t *item =
            json_array_get(json_object_get(part_of(json, lists[i].part), lists[i].key), 0);
        for (size_t j = 0; j < lists[i].count; j++)
            json_array_append(list, item);
        json_object_set_new(part_of(json, lists[i].part), lists[i].key, list);
        is_err(parse(json), &err, ERR_CORRUPT, lists[i].key, "%zu of %s", lists[i].count,
               lists[i].key);
    }
}

/* The other legal shapes. */
static void test_shapes(void)
{
    struct record record;
    fixture_record(&record, 0xaa, "cold");
    record.online = record.archived = false;
    record.wal_in_image = true;
    record.restore_point[0] = '\0';
    free(take_ptr(&record.backup_label));
    free(take_ptr(&record.tablespace_map));
    memset(record.parent, 0, sizeof(record.parent));
    free_json json_t *offline = record_to_json(&record);
    is_good(parse(offline), &err, "an offline snapshot: no label, WAL in the image");
    record.wal_in_image = false;
    is_err(record_check(&record, &err), &err, ERR_CORRUPT, "neither",
           "WAL neither archived nor in the image");
    record_release(&record);
    ok(record.volume_count == 0, "release clears");
    record_release(&record);
    record_release(NULL);
}

int main(void)
{
    test_round_trip();
    test_later();
    test_public();
    test_every_field();
    test_bad_values();
    test_huge_counts();
    test_shapes();
    return done();
}
