/* agent/cluster_copy: names and bytes of journals in the repository. What is good is read as it was
 * written; everything else is refused, whatever it pretends to be. */
#include <stdio.h>

#include "agent/cluster_copy.h"
#include "io/format.h"
#include "tests/tap.h"

static const char job[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
static const struct cluster_copy_id good_id = {
    .job = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", .epoch = 2, .number = 7, .writer = "0123abcd"};
static struct err err;

static json_t *request(void)
{
    return json_pack("{s:s, s:s, s:{s:s}}", "type", "cluster_restore", "snapshot", "t1", "without",
                     "db9", "left out");
}

static json_t *journal(void)
{
    return json_pack(
        "{s:s, s:s, s:I, s:b, s:s, s:{s:s, s:s, s:I, s:s, s:[{s:s, s:s, s:s, s:s, s:s},"
        "{s:s, s:s, s:s, s:s, s:s}]}, s:{s:{s:s, s:s, s:s}}, s:{s:i, s:s, s:i}}",
        "state", "running", "step", "pulling", "created_ms", (json_int_t)1234, "touched", 1,
        "token", "hush", "plan", "snapshot", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "tag", "t1",
        "captured_s", (json_int_t)99, "system_id", "7123456789012345678", "members", "name", "db1",
        "recorded", "db1", "role", "primary", "primary_slot", "", "primary_conninfo", "", "name",
        "db2", "recorded", "old2", "role", "standby", "primary_slot", "db2", "primary_conninfo",
        "host=db1 password=hush", "members", "db1", "role", "primary", "job", job, "level",
        "fenced", "fork", "timeline", 3, "lsn", "0/5000028", "parent", 1);
}

static json_t *copy(void)
{
    free_json json_t *asked = request();
    free_json json_t *written = journal();
    json_t *json = cluster_copy_make(&good_id, "main", "ops on host", asked, written);
    if (!asked || !written || !json)
        abort();
    return json;
}

static void test_names(void)
{
    static const char *const bad[] = {
        "job/main/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/00000002-00000007-0123abcd.json",
        "job/main/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/00000000-00000007-0123abcd",
        "job/main/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/0000002-00000007-0123abcd",
        "job/main/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/00000002-00000007-0123ABCD",
        "job/main/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "job/main/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/00000002-00000007-0123abcd",
        "job/main/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaz/00000002-00000007-0123abcd",
        "job/other/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/00000002-00000007-0123abcd",
        "job/main/",
        "",
    };
    char name[STORE_NAME_MAX + 1];
    struct cluster_copy_id id;
    cluster_copy_name(name, "main", &good_id);
    is_str(name, "job/main/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/00000002-00000007-0123abcd", "a name");
    ok(cluster_copy_name_parse(name, "main", &id), "is read");
    ok(id.epoch == 2 && id.number == 7 && strcmp(id.job, job) == 0 &&
           strcmp(id.writer, "0123abcd") == 0,
       "as it was");
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        ok(!cluster_copy_name_parse(bad[i], "main", &id), "'%s' is none", bad[i]);
}

static void test_good(void)
{
    free_json json_t *json = copy(), *read = NULL;
    free_mem char *text = json_text(json);
    ok(!strstr(text, "hush"), "neither a password nor the token is in a copy");
    (void)json_object_set_new(json, "later", json_string("unknown keys are ignored"));
    is_good(cluster_copy_check(json, "main", &good_id, &read, &err), &err, "a copy is read");
    const json_t *plan = json_object_get(read, "plan");
    is_str(json_str(json_object_get(read, "request"), "type"), "cluster_restore", "its request");
    is_str(json_str(json_array_get(json_object_get(plan, "members"), 0), "level"), "fenced",
           "how far a node was");
    is_str(json_str(json_array_get(json_object_get(plan, "members"), 1), "recorded"), "old2",
           "whose place it takes");
    is_str(json_str(json_object_get(read, "fork"), "lsn"), "0/5000028", "the fork");
    ok(json_is_true(json_object_get(read, "touched")), "that old data may be gone");
    ok(!json_object_get(read, "later"), "and nothing unknown");
}

/* One value replaced: path is "key", "plan/key" or "member/key" (of the second one). */
static void set(json_t *json, const char *path, json_t *value)
{
    json_t *plan = json_object_get(json, "plan"), *at = json;
    if (strncmp(path, "plan/", 5) == 0)
        at = plan;
    if (strncmp(path, "member/", 7) == 0)
        at = json_array_get(json_object_get(plan, "members"), 1);
    const char *slash = strchr(path, '/');
    const char *key = slash ? slash + 1 : path;
    if (value)
        (void)json_object_set_new(at, key, value);
    else
        (void)json_object_del(at, key);
}

static void test_bad(void)
{
    static const struct {
        const char *path, *value, *like; /* value: JSON; NULL = missing */
    } rows[] = {
        {"format", NULL, "format"},
        {"format", "\"1\"", "format"},
        {"id", "\"cccccccccccccccccccccccccccccccc\"", "another job"},
        {"id", "7", "'id'"},
        {"cluster", "\"other\"", "another job, cluster"},
        {"epoch", "3", "epoch"},
        {"epoch", "-1", "epoch"},
        {"coordinator", "\"a\\nb\"", "control characters"},
        {"state", "\"odd\"", "'state'"},
        {"state", "\"interrupted\"", "'state'"},
        {"step", "\"odd\"", "'step'"},
        {"step", "null", "'step'"},
        {"touched", "1", "'touched'"},
        {"over", "true", "its name ends"},
        {"over", NULL, "'over'"},
        {"written_s", "\"now\"", "written_s"},
        {"request", NULL, "'request'"},
        {"request", "[]", "'request'"},
        {"request", "{}", "'snapshot' is missing"},
        {"request", "{\"snapshot\":\"t1\",\"evil\":1}", "request"},
        {"request", "{\"snapshot\":\"t1\",\"verify\":\"odd\"}", "request"},
        {"plan", NULL, "plan"},
        {"plan", "[]", "plan"},
        {"plan/snapshot", "\"t1\"", "'snapshot'"},
        {"plan/tag", "\"a/b\"", "'tag'"},
        {"plan/system_id", "\"7x\"", "'system_id'"},
        {"plan/members", "[]", "0 members"},
        {"plan/members", "{}", "0 members"},
        {"plan/members", "[1]", "member 0"},
        {"member/name", "\"db1\"", "out of order"},
        {"member/name", "\"../x\"", "'name'"},
        {"member/name", "\"db0\"", "out of order"},
        {"member/recorded", "\"\"", "'recorded'"},
        {"member/role", "\"primary\"", "2 primaries"},
        {"member/role", "\"king\"", "'role'"},
        {"member/primary_slot", "\"a'b\"", "'primary_slot'"},
        {"member/job", "\"x\"", "'job'"},
        {"member/level", "\"high\"", "'level'"},
        {"fork", "{}", "timeline"},
        {"fork", "{\"timeline\":1,\"lsn\":\"0/1\",\"parent\":1}", "fork"},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        free_json json_t *json = copy(), *read = NULL;
        json_t *value = NULL;
        if (rows[i].value)
            value = json_loads(rows[i].value, JSON_DECODE_ANY, NULL);
        set(json, rows[i].path, value);
        is_err(cluster_copy_check(json, "main", &good_id, &read, &err), &err, ERR_CORRUPT,
               rows[i].like, "%s = %s", rows[i].path, rows[i].value ? rows[i].value : "(none)");
    }
    free_json json_t *json = copy(), *read = NULL;
    (void)json_object_set_new(json, "format", json_integer(2));
    is_err(cluster_copy_check(json, "main", &good_id, &read, &err), &err, ERR_REFUSED, "format 2",
           "a later format");
}

/* The whole object: envelope, repository, snapshot; cut everywhere. */
static void test_object(void)
{
    static const uint8_t repository[ID_LEN] = "repository-no-1";
    struct repo repo = {.chunk_size = 32768};
    uint8_t snapshot[ID_LEN];
    free_json json_t *json = copy(), *read = NULL;
    free_mem char *text = json_text(json);
    size_t len = FMT_HEADER_LEN + strlen(text), good = 0;
    free_mem uint8_t *object = malloc(len);
    if (!object || !id_from_text("bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", snapshot))
        abort();
    memcpy(repo.id, repository, ID_LEN);
    fmt_json_encode(FMT_JSON_JOB, repo.id, snapshot, text, strlen(text), object);
    is_good(cluster_copy_parse(object, len, &repo, "main", &good_id, &read, &err), &err, "whole");
    for (size_t cut = 0; cut < len; cut++) {
        free_json json_t *part = NULL;
        good += cluster_copy_parse(object, cut, &repo, "main", &good_id, &part, &err) == 0;
    }
    ok(good == 0, "cut anywhere it is refused");
    repo.id[0] ^= 1;
    is_err(cluster_copy_parse(object, len, &repo, "main", &good_id, &read, &err), &err, ERR_CORRUPT,
           "repository", "another repository's");
    repo.id[0] ^= 1;
    snapshot[0] ^= 1;
    fmt_json_encode(FMT_JSON_JOB, repo.id, snapshot, text, strlen(text), object);
    is_err(cluster_copy_parse(object, len, &repo, "main", &good_id, &read, &err), &err, ERR_CORRUPT,
           "another snapshot", "another snapshot's");
    fmt_json_encode(FMT_JSON_RECORD, repo.id, snapshot, text, strlen(text), object);
    is_err(cluster_copy_parse(object, len, &repo, "main", &good_id, &read, &err), &err, ERR_CORRUPT,
           "kind", "a snapshot record");
}

int main(void)
{
    test_names();
    test_good();
    test_bad();
    test_object();
    return done();
}
