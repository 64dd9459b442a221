/* agent/cluster_gate: which restore decides, whose history has its fork, and what passed.json may
 * hold. */
#include "agent/cluster_gate.h"
#include "tests/tap.h"

static const char job[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
static struct err err;

/* Of a restore of db1 and db2 that made this timeline; 0 = none yet. */
static json_t *copy(const char *state, const char *system_id, int timeline)
{
    json_t *json =
        json_pack("{s:s, s:s, s:i, s:{s:s, s:s, s:[{s:s, s:s}, {s:s, s:s}]}}", "id", job, "state",
                  state, "epoch", timeline, "plan", "system_id", system_id, "tag", "t1", "members",
                  "name", "db1", "role", "primary", "name", "db2", "role", "standby");
    if (timeline)
        (void)json_object_set_new(
            json, "fork",
            json_pack("{s:i, s:s, s:i}", "timeline", timeline, "lsn", "0/5000028", "parent", 1));
    return json;
}

static void test_choose(void)
{
    free_json json_t *copies = json_array();
    bool left_out;
    ok(!cluster_gate_choose(copies, "db3", 7, &left_out) && !left_out, "no restore");
    (void)json_array_append_new(copies, copy("running", "7", 0));
    (void)json_array_append_new(copies, copy("complete", "8", 9));
    (void)json_array_append_new(copies, copy("cancelled", "7", 8));
    ok(!cluster_gate_choose(copies, "db3", 7, &left_out) && !left_out,
       "one that promoted nothing, of another server, or given up does not count");
    (void)json_array_append_new(copies, copy("complete", "7", 3));
    (void)json_array_append_new(copies, copy("running", "7", 5));
    (void)json_array_append_new(copies, copy("complete", "7", 4));
    const json_t *found = cluster_gate_choose(copies, "db3", 7, &left_out);
    ok(json_integer_value(json_object_get(found, "epoch")) == 5, "the newest timeline decides");
    ok(left_out, "db3 was left out");
    (void)cluster_gate_choose(copies, "db2", 7, &left_out);
    ok(!left_out, "db2 was not");
}

static void test_follows(void)
{
    static const struct {
        uint32_t timeline;
        const char *history;
        bool follows;
        const char *what;
    } rows[] = {
        {1, "", false, "the old timeline"},
        {2, "1\t0/4000000\tx\n", false, "another branch, made before"},
        {3, "1\t0/5000028\tx\n", true, "the timeline of the restore"},
        {3, "", true, "the same, its history is not there"},
        {3, "1\t0/9000000\tx\n", false, "another branch with the same number"},
        {4, "1\t0/5000028\tx\n3\t0/6000000\tx\n", true, "one that was made of it later"},
        {4, "1\t0/5000028\tx\n", false, "one that was made beside it"},
        {4, "1\t0/9000000\tx\n3\t0/9100000\tx\n", false, "one of that other branch"},
        {4, "nonsense", true, "a history that says nothing"},
    };
    const struct restore_fork fork = {.timeline = 3, .parent = 1, .lsn = 0x5000028};
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        ok(cluster_gate_follows(&fork, rows[i].timeline, rows[i].history,
                                strlen(rows[i].history)) == rows[i].follows,
           "%s %s", rows[i].what, rows[i].follows ? "follows" : "does not");
}

static void test_parse(void)
{
    static const struct {
        const char *key, *value, *like; /* value: JSON; NULL = missing */
    } rows[] = {
        {"job", "\"x\"", "names no cluster restore"},
        {"job", NULL, "job"},
        {"tag", "\"a/b\"", "names no cluster restore"},
        {"primary", "\"\"", "names no cluster restore"},
        {"system_id", "\"0\"", "names no cluster restore"},
        {"system_id", "7", "system_id"},
        {"epoch", "\"1\"", "epoch"},
        {"fork", NULL, "timeline"},
        {"fork", "[]", "timeline"},
    };
    struct cluster_gate gate;
    for (size_t i = 0; i <= ARRAY_LEN(rows); i++) {
        free_json json_t *json =
            json_pack("{s:s, s:s, s:s, s:s, s:i, s:{s:i, s:s, s:i}}", "job", job, "tag", "t1",
                      "primary", "db1", "system_id", "7123456789012345678", "epoch", 2, "fork",
                      "timeline", 3, "lsn", "0/5000028", "parent", 1);
        if (i == ARRAY_LEN(rows)) {
            is_good(cluster_gate_parse(json, &gate, &err), &err, "what is good");
            ok(gate.epoch == 2 && gate.fork.timeline == 3 &&
                   gate.system_id == 7123456789012345678ull && !gate.closed,
               "is read as it was written");
            return;
        }
        if (rows[i].value)
            (void)json_object_set_new(json, rows[i].key,
                                      json_loads(rows[i].value, JSON_DECODE_ANY, NULL));
        else
            (void)json_object_del(json, rows[i].key);
        is_err(cluster_gate_parse(json, &gate, &err), &err, ERR_CORRUPT, rows[i].like, "%s = %s",
               rows[i].key, rows[i].value ? rows[i].value : "(none)");
    }
}

int main(void)
{
    test_choose();
    test_follows();
    test_parse();
    return done();
}
