/* agent/job_cluster: which call is possible in which state of a part. */
#include "agent/job_rules.h"
#include "tests/tap.h"

static struct err err;

static json_t *status_of(const char *state, const char *step, const char *held_at, const char *role)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:s*, s:{s:s, s:i, s:s}}", "id",
                     "0123456789abcdef0123456789abcdef", "type", "restore", "state", state, "step",
                     step, "held_at", held_at, "cluster", "job", "f", "epoch", 1, "role", role);
}

/* Goals: of execute, of execute with verify, of verify; NULL = refused. */
static void test_goals(void)
{
    static const struct {
        const char *state, *step, *held_at;
        const char *execute, *verify;
    } rows[] = {
        {"prepared", "planned", NULL, "execute", NULL},
        {"interrupted", "planned", NULL, NULL, NULL},
        {"interrupted", "fenced", NULL, "execute", NULL},
        {"interrupted", "pulling", "fenced", "execute", NULL},
        {"held", "fenced", "fenced", "execute", NULL},
        {"held", "configured", "configured", "execute", NULL},
        {"held", "verifying", "recovered", "execute", "verify"},
        {"executed", "verifying", "recovered", NULL, "verify"},
        {"failed", "verifying", "recovered", "execute", "verify"},
        {"failed", "recovering", "configured", "execute", NULL},
        {"failed", "fenced", "fenced", "execute", NULL}, /* the fence stayed */
        {"failed", "fenced", NULL, NULL, NULL},          /* it was lifted */
        {"failed", "planned", NULL, NULL, NULL},
        {"cancelled", "fenced", "fenced", NULL, NULL},
        {"complete", "complete", "recovered", NULL, NULL},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        free_json json_t *status =
            status_of(rows[i].state, rows[i].step, rows[i].held_at, "primary");
        const char *execute = job_cluster_goal(status, "execute");
        const char *both = job_cluster_goal(status, "execute and verify");
        const char *verify = job_cluster_goal(status, "verify");
        const char *what = rows[i].state;
        ok((execute != NULL) == (rows[i].execute != NULL), "%s at %s: execute", what, rows[i].step);
        ok((both != NULL) == (execute != NULL) && (!both || strcmp(both, "all") == 0),
           "%s at %s: with verify all of it", what, rows[i].step);
        ok((verify != NULL) == (rows[i].verify != NULL), "%s at %s: verify", what, rows[i].step);
        ok(!job_cluster_goal(status, "resume"), "%s at %s: never resume", what, rows[i].step);
    }
}

static int until(const char *step, const char *role, const char *text)
{
    json_error_t error;
    free_json json_t *status = status_of("held", step, "fenced", role);
    free_json json_t *call = json_loads(text, 0, &error);
    err_clear(&err);
    return job_cluster_check_until(status, call, &err);
}

static void test_until(void)
{
    static const char fork[] =
        "{\"until\":\"recovered\",\"fork\":{\"timeline\":2,\"lsn\":\"0/1\",\"parent\":1}}";
    is_good(until("planned", "primary", "{\"until\":\"fenced\"}"), &err, "to the fence");
    is_good(until("fenced", "primary", "{\"until\":\"fenced\"}"), &err, "the same again");
    is_err(until("marked", "primary", "{\"until\":\"fenced\"}"), &err, ERR_REFUSED,
           "is past 'fenced' already", "not back");
    is_err(until("recovering", "standby", "{\"until\":\"configured\"}"), &err, ERR_REFUSED,
           "is past 'configured'", "nor from recovery");
    is_good(until("verifying", "primary", "{\"until\":\"recovered\"}"), &err,
            "what died on its way into the hold");
    is_good(until("configured", "primary", "{}"), &err, "a primary needs no fork");
    is_err(until("configured", "standby", "{}"), &err, ERR_USAGE, "'fork' is missing",
           "a standby does");
    is_good(until("configured", "standby", fork), &err, "with it");
    is_good(until("fenced", "standby", "{\"until\":\"configured\"}"), &err, "not before recovery");
    is_good(until("verifying", "standby", "{}"), &err, "nor behind it");
    is_err(until("configured", "standby", "{\"until\":\"recovered\",\"fork\":{}}"), &err, ERR_USAGE,
           "timeline", "a fork that is none");
}

static void test_strangers(void)
{
    static const struct conf conf;
    free_json json_t *status = json_pack("{s:s, s:s}", "id", "x", "state", "prepared");
    free_json json_t *plain = json_pack("{s:b}", "verify", 1);
    free_json json_t *epoch = json_pack("{s:i}", "epoch", 1);
    free_json json_t *part = status_of("prepared", "planned", NULL, "primary");
    is_good(job_cluster_admit(&conf, status, "execute", plain, &err), &err, "an ordinary restore");
    is_err(job_cluster_admit(&conf, status, "execute", epoch, &err), &err, ERR_USAGE, "'epoch'",
           "has no epoch");
    is_err(job_cluster_admit(&conf, part, "execute", plain, &err), &err, ERR_REFUSED,
           "part of cluster restore", "a part needs one");
}

static int end(const char *state, const char *step, struct job_asker asker)
{
    static const struct conf conf;
    free_json json_t *part = status_of(state, step, NULL, "primary");
    return job_cluster_admit_cancel(&conf, part, &asker, &err);
}

static void test_ends(void)
{
    const struct job_asker person = {0}, sure = {.force = true};
    is_good(end("prepared", "planned", person), &err, "a plan ends for anybody here");
    is_err(end("held", "fenced", person), &err, ERR_REFUSED, "may be past their fence",
           "a fence does not");
    is_err(end("failed", "pulling", person), &err, ERR_REFUSED, "may be past their fence",
           "nor what was touched");
    is_good(end("held", "fenced", sure), &err, "who was told may");
    is_good(end("cancelled", "fenced", person), &err, "what is over stays so");
    is_err(end("held", "fenced", (struct job_asker){.remote = true, .force = true}), &err,
           ERR_REFUSED, "may be past their fence", "from elsewhere nobody without an epoch");
    is_err(end("prepared", "planned", (struct job_asker){.remote = true}), &err, ERR_REFUSED,
           "may be past their fence", "not even a plan");
}

int main(void)
{
    test_ends();
    test_goals();
    test_until();
    test_strangers();
    return done();
}
