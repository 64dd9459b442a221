/* [coordinator] members: what can be one, and in which order they come. */
#include "agent/cluster.h"

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

int main(void)
{
    test_good();
    test_bad();
    test_many();
    return done();
}
