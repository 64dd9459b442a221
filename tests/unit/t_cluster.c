/* [coordinator] members: what can be one, and in which order they come. Which of them has another
 * history than the cluster. */
#include "agent/cluster.h"
#include "agent/history.h"

#include "tests/tap.h"

static struct conf conf;
static struct cluster cluster;
static struct err err;

static int parse(const char *text)
{
    (void)snprintf(conf.coordinator_members, sizeof(conf.coordinator_members), "%s", text);
    return cluster_members(&conf, &cluster, &err);
}

static void test_good(void)
{
    is_good(parse("db2=https://10.0.0.2:7411  db1=unix:/run/tidemark/agent.sock,db3=https://db3:1"),
            &err, "three members");
    ok(cluster.count == 3, "are three");
    is_str(cluster.members[0].name, "db1", "ascending by name");
    is_str(cluster.members[0].address, "unix:/run/tidemark/agent.sock", "with its address");
    is_str(cluster.members[2].name, "db3", "commas separate as well");
    ok(cluster_member(&cluster, "db2") == &cluster.members[1], "found by name");
    ok(cluster_member(&cluster, "db4") == NULL, "or not");
}

static void test_bad(void)
{
    static const struct {
        const char *text, *like;
    } cases[] = {
        {"", "this is no coordinator"},
        {"  ", "this is no coordinator"},
        {"db1", "'db1' is not NAME=ADDRESS"},
        {"=https://x", "is not the name of a node"},
        {"a/b=https://x", "'a/b' is not the name of a node"},
        {"db1=", "'' is not the address"},
        {"db1=http://x:1", "'http://x:1' is not the address"},
        {"db1=https://", "is not the address"},
        {"db1=unix:sock", "is not the address"},
        {"db1=https://a:1 db1=https://b:1", "member 'db1' is there twice"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        is_err(parse(cases[i].text), &err, ERR_CONFIG, cases[i].like, "'%s'", cases[i].text);
}

static void test_many(void)
{
    char text[4096] = "";
    for (int i = 0; i < CLUSTER_MEMBERS_MAX; i++)
        (void)snprintf(text + strlen(text), sizeof(text) - strlen(text), "n%d=https://n%d:1 ", i,
                       i);
    is_good(parse(text), &err, "as many as there can be");
    (void)snprintf(text + strlen(text), sizeof(text) - strlen(text), "more=https://m:1");
    is_err(parse(text), &err, ERR_CONFIG, "more than 16 members", "one more");
    memset(text, 'n', 70);
    (void)snprintf(text + 70, sizeof(text) - 70, "=https://x:1");
    is_err(parse(text), &err, ERR_CONFIG, "is not NAME=ADDRESS", "a name that is too long");
}

/* --- where they are --------------------------------------------------------------------------- */

static json_t *parse_json(const char *text);

static void test_wave(void)
{
    static const struct {
        const char *members, *wave;
    } rows[] = {
        {"{\"a\":{\"level\":\"fenced\"},\"b\":{\"level\":\"recovered\"}}", "pulling"},
        {"{\"a\":{\"level\":\"recovered\"},\"b\":{\"level\":\"configured\"}}", "recovering"},
        {"[{\"level\":\"recovered\"},{\"level\":\"complete\"}]", "verifying"},
        {"[{\"level\":\"complete\"},{\"level\":\"complete\"}]", "complete"},
        {"[{\"level\":\"configured\"},{\"level\":\"reserved\"}]", "fenced"},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        free_json json_t *members = parse_json(rows[i].members);
        is_str(cluster_wave(members), rows[i].wave, "%s", rows[i].members);
    }
}

/* Who has heard last, of this job and epoch. */
static void test_heard(void)
{
    free_json json_t *members = parse_json(
        "[{\"name\":\"a\",\"reservation\":{\"job\":\"j\",\"epoch\":2,\"heard_ago_ms\":900}},"
        "{\"name\":\"b\",\"reservation\":{\"job\":\"j\",\"epoch\":2,\"heard_ago_ms\":70}},"
        "{\"name\":\"c\",\"reservation\":{\"job\":\"j\",\"epoch\":1,\"heard_ago_ms\":5}},"
        "{\"name\":\"d\",\"reservation\":{\"job\":\"k\",\"epoch\":2,\"heard_ago_ms\":6}},"
        "{\"name\":\"e\",\"reservation\":{\"job\":\"j\",\"epoch\":2}},"
        "{\"name\":\"f\",\"reservation\":null},{\"name\":\"g\"}]");
    is_str(json_str(cluster_last_heard(members, "j", 2), "name"), "b", "the last that heard");
    ok(cluster_last_heard(members, "j", 3) == NULL, "nobody has heard of another epoch");
}

/* --- histories -------------------------------------------------------------------------------- */

static json_t *parse_json(const char *text)
{
    json_t *json = NULL;
    if (json_parse(text, strlen(text), ERR_USAGE, &json, &err) < 0)
        printf("# %s: %s\n", text, err.text);
    return json;
}

/* "timeline lsn left-at-lsn…": "3 0/9 0/2 0/5" has left 1 at 0/2 and 2 at 0/5; "?" = not known. */
static json_t *node(const char *name, const char *role, const char *system_id, const char *way)
{
    char copy[128], *rest = NULL;
    (void)snprintf(copy, sizeof(copy), "%s", way);
    json_t *json = json_pack("{s:s, s:s, s:s, s:n}", "name", name, "role", role, "system_id",
                             system_id, "history");
    if (way[0] == '?')
        return json;
    const char *timeline = strtok_r(copy, " ", &rest), *lsn = strtok_r(NULL, " ", &rest);
    json_t *history = json_array();
    (void)json_object_set_new(json, "timeline", json_integer(strtol(timeline, NULL, 10)));
    (void)json_object_set_new(json, "lsn", json_string(lsn));
    json_int_t i = 1;
    for (const char *at; (at = strtok_r(NULL, " ", &rest)); i++)
        (void)json_array_append_new(history, json_pack("{s:I, s:s}", "timeline", i, "lsn", at));
    (void)json_object_set_new(json, "history", history);
    return json;
}

static void test_parted(void)
{
    static const struct {
        const char *one, *other;
        bool parted;
    } rows[] = {
        {"1 0/9", "1 0/4", false},             /* the one is behind */
        {"2 0/9 0/5", "1 0/5", false},         /* it has not left timeline 1 yet */
        {"2 0/9 0/5", "1 0/6", true},          /* it went past the fork */
        {"2 0/9 0/5", "2 0/8 0/5", false},     /* the same fork */
        {"2 0/9 0/5", "2 0/9 0/6", true},      /* the same number, another fork */
        {"3 0/9 0/5 0/7", "2 0/7 0/5", false}, /* behind the second fork */
        {"3 0/9 0/5 0/7", "2 0/8 0/5", true},  /* past it */
        {"3 0/9 0/5 0/7", "1 0/4", false},     /* far behind */
        {"3 0/9 0/5 0/7", "1 0/6", true},
        {"3 0/9 0/5 0/7", "3 0/9 0/5 0/8", true},
        {"?", "1 0/9", false}, /* nothing is known, nothing is said */
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        free_json json_t *one = node("a", "primary", "7", rows[i].one);
        free_json json_t *other = node("b", "standby", "7", rows[i].other);
        ok(history_have_parted(one, other) == rows[i].parted, "'%s' and '%s'", rows[i].one,
           rows[i].other);
        ok(history_have_parted(other, one) == rows[i].parted, "and the other way round");
    }
}

static void test_fork(void)
{
    static const struct {
        const char *way;
        bool has, misses;
    } rows[] = {
        {"2 0/9 0/5", true, false},     {"3 0/9 0/5 0/7", true, false},
        {"2 0/9 0/6", false, true},     {"1 0/9", false, true},
        {"1 0/5", false, false}, /* it may still go there */
        {"3 0/9 0/4 0/6", false, true}, {"?", false, false},
    };
    free_json json_t *fork = parse_json("{\"timeline\":2,\"lsn\":\"0/5\",\"parent\":1}");
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        free_json json_t *one = node("a", "primary", "7", rows[i].way);
        ok(history_has_fork(one, fork) == rows[i].has, "'%s' has the fork", rows[i].way);
        ok(history_misses_fork(one, fork) == rows[i].misses, "'%s' misses it", rows[i].way);
    }
}

static bool has_hint(const json_t *members, size_t index, const char *text)
{
    return strstr(json_str(json_array_get(members, index), "hint"), text) != NULL;
}

/* want: the names of those that have diverged. */
static void test_diverged(void)
{
    static const struct {
        const char *what, *want;
        bool restored;           /* the last restore began timeline 2 at 0/5 */
        const char *nodes[3][3]; /* role, system, way */
    } rows[] = {
        {"all is well", "", false, {{"primary", "7", "2 0/9 0/5"}, {"standby", "7", "2 0/8 0/5"}}},
        {"a standby is past the fork",
         "b",
         false,
         {{"primary", "7", "2 0/9 0/5"}, {"standby", "7", "1 0/8"}}},
        {"two primaries, and nobody knows",
         "ab",
         false,
         {{"primary", "7", "2 0/9 0/5"}, {"primary", "7", "1 0/8"}}},
        {"the last restore knows",
         "a",
         true,
         {{"primary", "7", "1 0/8"}, {"primary", "7", "2 0/9 0/5"}}},
        {"a restore that nobody has any more says nothing",
         "",
         true,
         {{"primary", "7", "3 0/9 0/2 0/4"}, {"standby", "7", "3 0/9 0/2 0/4"}}},
        {"another system", "b", true, {{"primary", "7", "2 0/9 0/5"}, {"primary", "8", "1 0/3"}}},
        {"standbys alone",
         "a",
         false,
         {{"standby", "7", "1 0/8"}, {"standby", "7", "2 0/9 0/5"}, {"down", "7", "?"}}},
    };
    static const char *const names[] = {"a", "b", "c"};
    free_json json_t *restored =
        parse_json("{\"fork\":{\"timeline\":2,\"lsn\":\"0/5\",\"parent\":1}}");
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        free_json json_t *members = json_array();
        char found[8] = "";
        for (size_t k = 0; k < 3 && rows[i].nodes[k][0]; k++)
            (void)json_array_append_new(members, node(names[k], rows[i].nodes[k][0],
                                                      rows[i].nodes[k][1], rows[i].nodes[k][2]));
        cluster_find_diverged(members, rows[i].restored ? restored : NULL);
        for (size_t k = 0; k < json_array_size(members); k++)
            if (json_object_get(json_array_get(members, k), "diverged"))
                (void)strncat(found, names[k], 1);
        if (strcmp(rows[i].want, "ab") == 0) {
            ok(has_hint(members, 0, "stop b now") && has_hint(members, 0, "this one is on the new"),
               "the one on the newer timeline says which to stop");
            ok(has_hint(members, 1, "stop it now") && has_hint(members, 1, "a is on the newer"),
               "and so does the other");
        }
        is_str(found, rows[i].want, "%s", rows[i].what);
    }
}

int main(void)
{
    test_wave();
    test_heard();
    test_parted();
    test_fork();
    test_diverged();
    test_good();
    test_bad();
    test_many();
    return done();
}
