/* What a cluster's snapshot keeps of its nodes: it fits into a request, whatever slots they have;
 * and who followed whom. */
#include "agent/api_request.h"
#include "agent/cluster.h"

#include "tests/tap.h"

static json_t *slot(const char *name, const char *type, bool active, bool temporary)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:b, s:b, s:s}", "name", name, "type", type, "plugin",
                     "pgoutput", "database", "a_database_with_a_long_name", "active", active,
                     "temporary", temporary, "restart_lsn", "0/12345678");
}

static json_t *node(const char *name, const char *role, const char *conninfo, const char *slot_name)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:[], s:[]}", "name", name, "role", role,
                     "primary_conninfo", conninfo, "primary_slot", slot_name, "slots",
                     "replication");
}

static void add_slot(json_t *to, const char *name, bool active)
{
    (void)json_array_append_new(json_object_get(to, "slots"),
                                slot(name, "physical", active, false));
}

static void add_sender(json_t *to, const char *application)
{
    (void)json_array_append_new(json_object_get(to, "replication"),
                                json_pack("{s:s}", "application_name", application));
}

static void test_large(void)
{
    json_t *members = json_array(), *parsed = NULL;
    struct err err;
    for (int i = 0; i < CLUSTER_MEMBERS_MAX; i++) {
        char name[80];
        (void)snprintf(name, sizeof(name), "node-%d", i);
        json_t *one = node(name, i ? "standby" : "primary", "", "");
        for (int k = 0; k < 300; k++) {
            (void)snprintf(name, sizeof(name), "a_subscription_with_a_name_of_63_%030d", k);
            (void)json_array_append_new(json_object_get(one, "slots"),
                                        slot(name, "logical", true, k == 0));
        }
        (void)json_array_append_new(members, one);
    }
    json_t *kept = cluster_topology(members);
    json_t *body = json_pack("{s:s, s:o}", "tag", "t1", "members", kept);
    char *text = json_text(body);
    is_good(api_request_parse("snapshot", text, strlen(text), &parsed, &err), &err,
            "16 nodes with 300 slots each fit");
    json_t *slots = json_object_get(json_array_get(kept, 3), "slots");
    ok(json_array_size(slots) == 299, "a temporary slot is not kept");
    const json_t *first = json_array_get(slots, 0);
    is_str(json_str(first, "database"), "a_database_with_a_long_name", "of others their database");
    is_str(json_str(first, "plugin"), "pgoutput", "and plugin");
    ok(!json_object_get(first, "restart_lsn"), "but not their position");
    is_err(api_request_parse("restore", text, strlen(text), &parsed, &err), &err, ERR_USAGE,
           "longer than 64 KiB", "another request may not be as long");
    free(text);
    json_decref(parsed);
    json_decref(body);
    json_decref(members);
}

static const char *upstream(json_t *members, size_t index)
{
    const char *found = cluster_upstream(members, json_array_get(members, index));
    return found ? found : "primary";
}

static void test_upstream(void)
{
    json_t *db1 = node("db1", "primary", "", "");
    json_t *db2 = node("db2", "standby", "host=db1 application_name=db2", "s2");
    json_t *db3 = node("db3", "standby", "host=db2 application_name='db3'", "");
    json_t *db4 = node("db4", "standby", "host=db2", "s4");
    json_t *db5 = node("db5", "standby", "host=db9", "");
    json_t *db6 = node("db6", "standby", "host=db9 fallback_application_name=db3", "");
    json_t *db7 = node("db7", "standby", "host=db9 application_name = 'db 7'", "");
    json_t *db8 = node("db8", "standby", "postgresql://db9/x?application_name=db%208", "");
    json_t *members = json_pack("[o, o, o, o, o, o, o, o]", db1, db2, db3, db4, db5, db6, db7, db8);
    add_slot(db1, "s2", true);
    is_str(upstream(members, 1), "primary", "its slot is the primary's");
    add_sender(db2, "db3");
    is_str(upstream(members, 2), "db2", "a standby sends to it, by its name");
    is_str(upstream(members, 5), "primary", "a fallback_application_name is no name of its own");
    add_sender(db2, "db 7");
    is_str(upstream(members, 6), "db2", "a name with a blank");
    add_sender(db2, "db 8");
    is_str(upstream(members, 7), "db2", "in a URI");
    add_slot(db2, "s4", false);
    is_str(upstream(members, 3), "db2", "its slot is a standby's, though it is away");
    add_slot(db1, "s4", false);
    is_str(upstream(members, 3), "primary", "or of both: the primary is meant");
    (void)json_array_clear(json_object_get(db2, "slots"));
    add_slot(db2, "s4", true);
    is_str(upstream(members, 3), "db2", "but the one that it uses counts");
    add_slot(db2, "s2", true);
    is_str(upstream(members, 1), "primary", "nobody follows itself");
    is_str(upstream(members, 4), "primary", "nothing is known of it");
    is_str(upstream(members, 0), "primary", "the primary follows nobody");
    json_decref(members);
}

int main(void)
{
    test_large();
    test_upstream();
    return done();
}
