/* agent/cluster_lock: who may reserve a node, which epochs are over, and what its file may hold.
 * The restores that hold it are jobs whose journals are written here. */
#include <stdio.h>
#include <sys/stat.h>

#include "agent/cluster_lock.h"
#include "agent/job.h"
#include "tests/tap.h"

static const char job_a[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
static const char job_b[] = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

static struct conf conf;
static struct err err;

/* A part of job with this state and step; NULL: nothing done yet. */
static void make_restore(const char *state, const char *step, char id[ID_TEXT_LEN])
{
    char dir[JOB_DIR_MAX], path[JOB_DIR_MAX + 32];
    free_json json_t *request = json_pack("{s:s, s:s}", "type", "restore", "snapshot", "x");
    if (job_create(&conf, request, id, &err) < 0)
        abort();
    job_dir(&conf, id, dir);
    (void)snprintf(path, sizeof(path), "%s/journal.json", dir);
    free_json json_t *journal =
        json_pack("{s:s, s:s, s:s, s:s*, s:{s:s}}", "id", id, "type", "restore", "state", state,
                  "step", step, "cluster", "job", job_a);
    if (json_save(path, journal, false, &err) < 0)
        abort();
}

static struct cluster_lock lock_of(const char *job, uint64_t epoch, const char *restore)
{
    struct cluster_lock lock = {.epoch = epoch, .held = true};
    (void)snprintf(lock.job, sizeof(lock.job), "%s", job);
    (void)snprintf(lock.restore, sizeof(lock.restore), "%s", restore);
    return lock;
}

static int reserve(const char *job, uint64_t epoch, const char *restore)
{
    struct cluster_lock want = lock_of(job, epoch, restore);
    return cluster_lock_reserve(&conf, &want, &err);
}

static void test_reserve(void)
{
    char first[ID_TEXT_LEN], second[ID_TEXT_LEN];
    struct cluster_lock now;
    make_restore("prepared", "planned", first);
    make_restore("created", NULL, second);
    is_good(cluster_lock_check(&conf, NULL, &err), &err, "nobody holds it: anything may start");
    is_good(reserve(job_a, 2, first), &err, "reserved");
    is_good(cluster_lock_read(&conf, &now, &err), &err, "read");
    ok(now.held && now.epoch == 2, "held with its epoch");
    is_str(now.job, job_a, "for its job");
    is_err(cluster_lock_check(&conf, NULL, &err), &err, ERR_BUSY, "reserved by cluster restore",
           "another verb waits");
    is_err(reserve(job_b, 9, second), &err, ERR_BUSY, "reserved by", "so does another cluster job");
    is_err(reserve(job_a, 1, second), &err, ERR_REFUSED, "epoch 1 of cluster restore",
           "an older epoch");
    is_err(reserve(job_a, 2, second), &err, ERR_BUSY, "reserved by", "the same epoch once more");
    is_good(reserve(job_a, 2, first), &err, "the same restore again");
    is_good(reserve(job_a, 3, second), &err, "a newer epoch replaces what only planned");
    is_err(cluster_lock_renew(&conf, first, 3, &err), &err, ERR_REFUSED, "does not hold",
           "the replaced restore is out");
    is_good(cluster_lock_release(&conf, first, &err), &err, "and releases nothing");
    is_err(cluster_lock_check(&conf, NULL, &err), &err, ERR_BUSY, "reserved", "it is still held");
    is_good(cluster_lock_release(&conf, second, &err), &err, "released");
    is_good(cluster_lock_check(&conf, NULL, &err), &err, "free");
    is_err(reserve(job_a, 2, second), &err, ERR_REFUSED, "is over", "its epochs are remembered");
    is_good(reserve(job_b, 1, second), &err, "another job begins with its own");
    is_good(cluster_lock_release(&conf, second, &err), &err, "released");
}

static void test_renew(void)
{
    char fenced[ID_TEXT_LEN], other[ID_TEXT_LEN];
    make_restore("held", "fenced", fenced);
    make_restore("created", NULL, other);
    is_good(reserve(job_a, 4, fenced), &err, "reserved");
    is_good(cluster_lock_renew(&conf, fenced, 4, &err), &err, "its epoch");
    is_good(cluster_lock_renew(&conf, fenced, 6, &err), &err, "a higher one");
    is_err(cluster_lock_renew(&conf, fenced, 5, &err), &err, ERR_REFUSED, "has seen epoch 6",
           "a lower one is over");
    is_err(reserve(job_a, 7, other), &err, ERR_BUSY, "reserved by",
           "a restore that has begun is not replaced");
}

static void set_journal(const char *id, const char *state, const char *step, const char *held_at)
{
    char dir[JOB_DIR_MAX], path[JOB_DIR_MAX + 32];
    job_dir(&conf, id, dir);
    (void)snprintf(path, sizeof(path), "%s/journal.json", dir);
    free_json json_t *journal = json_pack("{s:s, s:s, s:s, s:s, s:s*}", "id", id, "type", "restore",
                                          "state", state, "step", step, "held_at", held_at);
    if (json_save(path, journal, false, &err) < 0)
        abort();
}

/* An epoch that one coordinator has, and what another hears. */
static enum cluster_claim claim(const char *job, uint64_t epoch, const char *token,
                                struct cluster_lock *ret_now)
{
    struct cluster_lock want = lock_of(job, epoch, "");
    enum cluster_claim ret = CLAIM_BUSY;
    (void)snprintf(want.token, sizeof(want.token), "%s", token);
    (void)snprintf(want.coordinator, sizeof(want.coordinator), "ops%c on host", token[0]);
    is_good(cluster_lock_claim(&conf, &want, &ret, ret_now, &err), &err, "claim epoch %d of %c",
            (int)epoch, job[0]);
    return ret;
}

static void test_claim(void)
{
    static const char first[] = "11111111111111111111111111111111";
    static const char second[] = "22222222222222222222222222222222";
    static const char job_d[] = "dddddddddddddddddddddddddddddddd";
    static const char job_c[] = "cccccccccccccccccccccccccccccccc";
    char restore[ID_TEXT_LEN], other[ID_TEXT_LEN];
    struct cluster_lock now;
    make_restore("held", "fenced", restore);
    make_restore("created", NULL, other);
    is_good(cluster_lock_read(&conf, &now, &err), &err, "read");
    is_good(cluster_lock_release(&conf, now.restore, &err), &err, "released");
    is_good(reserve(job_d, 1, restore), &err, "reserved by a coordinator that claimed nothing");
    ok(claim(job_d, 1, first, &now) == CLAIM_GRANTED && now.held, "it says so, and still holds it");
    is_str(now.restore, restore, "and hears of its part");
    ok(claim(job_d, 1, first, &now) == CLAIM_GRANTED, "as often as it likes");
    ok(claim(job_d, 1, second, &now) == CLAIM_LOST, "another is not let in with the same epoch");
    is_str(now.coordinator, "ops1 on host", "and hears by whom");
    ok(claim(job_d, 2, second, &now) == CLAIM_GRANTED && now.held, "a higher one takes it over");
    ok(claim(job_d, 1, first, &now) == CLAIM_LOST, "from the first");
    ok(claim(job_d, 2, first, &now) == CLAIM_LOST, "which is also too late with that epoch");
    is_err(cluster_lock_renew(&conf, restore, 1, &err), &err, ERR_REFUSED, "has seen epoch 2",
           "its calls are over");
    ok(strstr(err.hint, "ops2 on host") != NULL, "the hint says who has it");
    ok(claim(job_c, 9, first, &now) == CLAIM_BUSY, "another job cannot have a node that is held");
    set_journal(restore, "complete", "complete", "recovered");
    is_err(cluster_lock_renew(&conf, restore, 1, &err), &err, ERR_REFUSED, "has seen epoch 2",
           "the same when the part has ended");
    ok(claim(job_c, 9, first, &now) == CLAIM_GRANTED && !now.held && !now.restore[0],
       "another job may begin then; nothing is reserved");
    is_err(reserve(job_c, 8, other), &err, ERR_REFUSED, "is over", "below that epoch nothing is");
    is_good(reserve(job_c, 9, other), &err, "with it it is");
    is_good(cluster_lock_read(&conf, &now, &err), &err, "read");
    is_str(now.token, first, "the reservation keeps whose it is");
    set_journal(other, "complete", "complete", "recovered");
    make_restore("complete", "complete", restore);
    ok(claim(job_a, 7, first, &now) == CLAIM_LOST, "a job that was here before does not come back");
}

/* Held as long as something of its restore is left to do or to take back. */
static void test_alive(void)
{
    static const struct {
        const char *state, *step, *held_at, *what;
        bool held;
    } rows[] = {
        {"held", "configured", "configured", "held at configured", true},
        {"failed", "pulling", "fenced", "failed behind the mark", true},
        {"failed", "fenced", "fenced", "failed after its hold at fenced", true},
        {"failed", "fenced", NULL, "failed in its first fence: lifted", false},
        {"failed", "planned", NULL, "no plan", false},
        {"cancelled", "fenced", "fenced", "cancelled", false},
        {"complete", "complete", "recovered", "complete", false},
    };
    struct cluster_lock now;
    char id[ID_TEXT_LEN];
    make_restore("held", "fenced", id);
    is_good(cluster_lock_read(&conf, &now, &err), &err, "read");
    is_good(cluster_lock_release(&conf, now.restore, &err), &err, "what was held is released");
    is_good(reserve(job_a, 8, id), &err, "reserved");
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        set_journal(id, rows[i].state, rows[i].step, rows[i].held_at);
        is_good(cluster_lock_read(&conf, &now, &err), &err, "%s", rows[i].what);
        ok(now.held == rows[i].held, "%s it", rows[i].held ? "holds" : "does not hold");
    }
    job_discard(&conf, id);
    is_good(cluster_lock_check(&conf, NULL, &err), &err, "a restore that was never made");
}

static void test_parse(void)
{
    static const struct {
        const char *text, *error;
    } bad[] = {
        {"{}", "job"},
        {"[]", "job"},
        {"{\"job\":\"x\",\"epoch\":1,\"state\":\"held\",\"restore\":\"y\"}", "is not an id"},
        {"{\"job\":\"%s\",\"epoch\":0,\"state\":\"held\",\"restore\":\"%s\"}", "epoch 0"},
        {"{\"job\":\"%s\",\"epoch\":-1,\"state\":\"held\",\"restore\":\"%s\"}", "epoch"},
        {"{\"job\":\"%s\",\"epoch\":1,\"state\":\"odd\",\"restore\":\"%s\"}", "state 'odd'"},
        {"{\"job\":\"%s\",\"epoch\":1,\"restore\":\"%s\"}", "state"},
    };
    struct cluster_lock lock = lock_of(job_a, 5, job_b), again;
    free_json json_t *json = cluster_lock_json(&lock);
    is_good(cluster_lock_parse(json, &again, &err), &err, "what is written is read");
    ok(again.held && again.epoch == 5, "as it was");
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        char text[512];
        const char *at = strstr(bad[i].text, "%s");
        if (at)
            (void)snprintf(text, sizeof(text), "%.*s%s%.*s%s%s", (int)(at - bad[i].text),
                           bad[i].text, job_a, (int)(strstr(at + 2, "%s") - at - 2), at + 2, job_b,
                           strstr(at + 2, "%s") + 2);
        else
            (void)snprintf(text, sizeof(text), "%s", bad[i].text);
        free_json json_t *wrong = NULL;
        if (json_parse(text, strlen(text), ERR_CORRUPT, &wrong, &err) < 0)
            abort();
        is_err(cluster_lock_parse(wrong, &again, &err), &err, ERR_CORRUPT, bad[i].error, "%s",
               text);
    }
}

/* A file that cannot be understood does not make the node free. */
static void test_damaged(void)
{
    char path[CONF_PATH_MAX + 32];
    (void)snprintf(path, sizeof(path), "%s/cluster.json", conf.state_dir);
    FILE *file = fopen(path, "we");
    if (!file || fputs("{", file) < 0 || fclose(file) != 0)
        abort();
    is_err(cluster_lock_check(&conf, NULL, &err), &err, ERR_CORRUPT, "cluster.json", "damaged");
}

int main(void)
{
    char base[] = "/tmp/tidemark-cluster-lock-XXXXXX", command[64];
    if (!mkdtemp(base))
        abort();
    (void)snprintf(conf.state_dir, sizeof(conf.state_dir), "%s", base);
    test_reserve();
    test_renew();
    test_alive();
    test_parse();
    test_claim();
    test_damaged();
    (void)snprintf(command, sizeof(command), "rm -rf %s", base);
    return system(command) != 0 || done();
}
