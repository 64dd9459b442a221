/* The reservation of a node by a cluster restore: see cluster_lock.h. */
#include "agent/cluster_lock.h"
#include "agent/job.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>

/* --- the file --------------------------------------------------------------------------------- */

static int copy_id(const json_t *json, const char *key, char ret[ID_TEXT_LEN], struct err *err)
{
    const char *text = "";
    uint8_t id[ID_LEN];
    bool optional = strcmp(key, "job") != 0;
    int rc = optional ? json_opt_string(json, key, ERR_CORRUPT, &text, err)
                      : json_get_string(json, key, ERR_CORRUPT, &text, err);
    if (rc < 0 || (optional && !text[0]))
        return rc;
    if (!id_from_text(text, id))
        return err_set(err, ERR_CORRUPT, "'%.64s' in cluster.json is not an id", text);
    (void)snprintf(ret, ID_TEXT_LEN, "%s", text);
    return 0;
}

int cluster_lock_parse(const json_t *json, struct cluster_lock *ret, struct err *err)
{
    struct cluster_lock lock = {0};
    const char *state = "", *coordinator = "";
    int rc = copy_id(json, "job", lock.job, err);
    if (rc == 0)
        rc = copy_id(json, "restore", lock.restore, err);
    if (rc == 0)
        rc = copy_id(json, "token", lock.token, err);
    if (rc == 0)
        rc = json_opt_string(json, "coordinator", ERR_CORRUPT, &coordinator, err);
    if (rc == 0)
        rc = json_get_u64(json, "epoch", ERR_CORRUPT, &lock.epoch, err);
    if (rc == 0)
        rc = json_get_string(json, "state", ERR_CORRUPT, &state, err);
    if (rc < 0)
        return rc;
    lock.held = strcmp(state, "held") == 0;
    if (strlen(coordinator) > CLUSTER_COORDINATOR_MAX || (lock.held && !lock.restore[0]))
        return err_set(err, ERR_CORRUPT, "cluster.json has no restore, or a long coordinator");
    (void)snprintf(lock.coordinator, sizeof(lock.coordinator), "%s", coordinator);
    if (lock.epoch == 0 || (!lock.held && strcmp(state, "released") != 0))
        return err_set(err, ERR_CORRUPT, "cluster.json has state '%.32s' and epoch %" PRIu64, state,
                       lock.epoch);
    *ret = lock;
    return 0;
}

json_t *cluster_lock_json(const struct cluster_lock *lock)
{
    json_t *json =
        json_pack("{s:s, s:I, s:s, s:s}", "job", lock->job, "epoch", (json_int_t)lock->epoch,
                  "state", lock->held ? "held" : "released", "restore", lock->restore);
    if (lock->coordinator[0])
        (void)json_object_set_new(json, "coordinator", json_string(lock->coordinator));
    if (lock->token[0])
        (void)json_object_set_new(json, "token", json_string(lock->token));
    return json;
}

static void path_of(const struct conf *conf, const char *name, char *ret, size_t size)
{
    (void)snprintf(ret, size, "%s/%s", conf->state_dir, name);
}

/* The restore that would have to release it may be over, or was never made. */
static bool is_alive(const struct conf *conf, const char *restore)
{
    free_json json_t *status = NULL;
    struct err ignored;
    int rc = job_status(conf, restore, &status, &ignored);
    return rc < 0 ? rc != -ERR_MISSING : !job_is_over(status);
}

/* A file that cannot be read is not a free node: whoever reserved it must be asked. */
int cluster_lock_read(const struct conf *conf, struct cluster_lock *ret, struct err *err)
{
    char path[CONF_PATH_MAX + 32];
    free_json json_t *json = NULL;
    memset(ret, 0, sizeof(*ret));
    path_of(conf, "cluster.json", path, sizeof(path));
    int rc = json_load_path(path, &json, err);
    if (rc == -ERR_MISSING)
        return 0;
    if (rc == 0)
        rc = cluster_lock_parse(json, ret, err);
    if (rc < 0) {
        (void)err_prefix(err, "the reservation of this node, '%s'", path);
        return err_hint(err, "if no cluster restore is under way, remove the file");
    }
    ret->held = ret->held && is_alive(conf, ret->restore);
    return 0;
}

static int save(const struct conf *conf, const struct cluster_lock *lock, struct err *err)
{
    char path[CONF_PATH_MAX + 32];
    path_of(conf, "cluster.json", path, sizeof(path));
    free_json json_t *json = cluster_lock_json(lock);
    return json_save(path, json, true, err);
}

/* Read, decide and write are one step. The file is never removed, as node.lock. */
static int enter(const struct conf *conf, int *ret_fd, struct err *err)
{
    char path[CONF_PATH_MAX + 32];
    path_of(conf, "cluster.lock", path, sizeof(path));
    close_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || flock(fd, LOCK_EX) < 0)
        return err_sys(err, ERR_DEVICE, "lock '%s'", path);
    *ret_fd = take_fd(&fd);
    return 0;
}

/* The caller closes *ret_fd, and holds the lock until then. */
static int enter_and_read(const struct conf *conf, int *ret_fd, struct cluster_lock *ret,
                          struct err *err)
{
    int rc = enter(conf, ret_fd, err);
    return rc < 0 ? rc : cluster_lock_read(conf, ret, err);
}

/* --- who may ---------------------------------------------------------------------------------- */

static int reserved(const struct cluster_lock *have, struct err *err)
{
    (void)err_set(err, ERR_BUSY,
                  "this node is reserved by cluster restore %s (epoch %" PRIu64
                  ", restore %s here)",
                  have->job, have->epoch, have->restore);
    return err_hint(err,
                    "finish it with `tidemark cluster resume`, or give this node's part up "
                    "with `tidemark cancel %s`",
                    have->restore);
}

static int stale(const struct cluster_lock *have, uint64_t epoch, struct err *err)
{
    (void)err_set(err, ERR_REFUSED,
                  "epoch %" PRIu64
                  " of cluster restore %s is over: this node has seen epoch %" PRIu64,
                  epoch, have->job, have->epoch);
    return err_hint(err, "%s has taken it over; `tidemark cluster status` there says how it goes",
                    have->coordinator[0] ? have->coordinator : "another coordinator");
}

/* Whether the restore that holds it has done more than plan. */
static bool has_begun(const struct conf *conf, const char *restore)
{
    free_json json_t *status = NULL;
    struct err ignored;
    if (job_status(conf, restore, &status, &ignored) < 0)
        return true;
    const char *step = json_string_value(json_object_get(status, "step"));
    return json_is_true(json_object_get(status, "running")) ||
           (step && strcmp(step, "planned") != 0);
}

static int decide(const struct conf *conf, const struct cluster_lock *have,
                  const struct cluster_lock *want, struct err *err)
{
    bool same = want && strcmp(have->job, want->job) == 0;
    if (same && want->epoch < have->epoch)
        return stale(have, want->epoch, err);
    if (!have->held || (same && strcmp(have->restore, want->restore) == 0))
        return 0;
    if (same && want->epoch > have->epoch && !has_begun(conf, have->restore))
        return 0;
    return reserved(have, err);
}

int cluster_lock_check(const struct conf *conf, const struct cluster_lock *want, struct err *err)
{
    struct cluster_lock have;
    int rc = cluster_lock_read(conf, &have, err);
    return rc < 0 ? rc : decide(conf, &have, want, err);
}

int cluster_lock_reserve(const struct conf *conf, const struct cluster_lock *want, struct err *err)
{
    struct cluster_lock have;
    close_fd int fd = -1;
    int rc = enter_and_read(conf, &fd, &have, err);
    if (rc == 0)
        rc = decide(conf, &have, want, err);
    if (rc < 0)
        return rc;
    struct cluster_lock lock = *want;
    lock.held = true;
    if (strcmp(have.job, want->job) == 0 && have.epoch == want->epoch) { /* claimed before */
        memcpy(lock.coordinator, have.coordinator, sizeof(lock.coordinator));
        memcpy(lock.token, have.token, sizeof(lock.token));
    }
    return save(conf, &lock, err);
}

/* --- epochs ----------------------------------------------------------------------------------- */

/* Whether this node ever had a part of the cluster job. */
static bool knows_part(const struct conf *conf, const char *job)
{
    free_json json_t *jobs = NULL;
    struct err ignored;
    if (job_list(conf, &jobs, &ignored) < 0)
        return true;
    for (size_t i = 0; i < json_array_size(jobs); i++)
        if (json_is(json_object_get(json_array_get(jobs, i), "cluster"), "job", job))
            return true;
    return false;
}

static enum cluster_claim judge(const struct conf *conf, const struct cluster_lock *have,
                                const struct cluster_lock *want)
{
    if (strcmp(have->job, want->job) == 0) {
        bool mine = want->epoch == have->epoch &&
                    (!have->token[0] || strcmp(have->token, want->token) == 0);
        return mine || want->epoch > have->epoch ? CLAIM_GRANTED : CLAIM_LOST;
    }
    /* Its part ended and a later cluster job came: to begin anew here would be to go back. */
    if (knows_part(conf, want->job))
        return CLAIM_LOST;
    return have->held ? CLAIM_BUSY : CLAIM_GRANTED;
}

int cluster_lock_claim(const struct conf *conf, const struct cluster_lock *want,
                       enum cluster_claim *ret, struct cluster_lock *ret_now, struct err *err)
{
    struct cluster_lock have, lock = *want;
    close_fd int fd = -1;
    int rc = enter_and_read(conf, &fd, &have, err);
    if (rc < 0)
        return rc;
    *ret = judge(conf, &have, want);
    *ret_now = have;
    if (*ret != CLAIM_GRANTED)
        return 0;
    lock.held = false;
    lock.restore[0] = '\0';
    if (strcmp(have.job, want->job) == 0) {
        lock.held = have.held;
        memcpy(lock.restore, have.restore, sizeof(lock.restore));
    }
    *ret_now = lock;
    return save(conf, &lock, err);
}

int cluster_lock_renew(const struct conf *conf, const char *restore, uint64_t epoch,
                       struct err *err)
{
    struct cluster_lock have;
    close_fd int fd = -1;
    int rc = enter_and_read(conf, &fd, &have, err);
    if (rc < 0)
        return rc;
    bool same = strcmp(have.restore, restore) == 0;
    if (same && epoch < have.epoch) /* also when it has ended meanwhile */
        return stale(&have, epoch, err);
    if (!have.held || !same) {
        (void)err_set(err, ERR_REFUSED, "restore %s does not hold the reservation of this node",
                      restore);
        return err_hint(err, "it has ended, or another coordinator has planned anew: %s",
                        have.held ? have.restore : "nothing holds the node");
    }
    if (epoch == have.epoch)
        return 0;
    have.epoch = epoch;
    have.coordinator[0] = have.token[0] = '\0';
    return save(conf, &have, err);
}

int cluster_lock_release(const struct conf *conf, const char *restore, struct err *err)
{
    struct cluster_lock have;
    close_fd int fd = -1;
    int rc = enter_and_read(conf, &fd, &have, err);
    if (rc < 0 || !have.job[0] || strcmp(have.restore, restore) != 0)
        return rc;
    have.held = false;
    return save(conf, &have, err);
}
