/* Questions to one agent from the thread that drives its node. An agent that restarts, a host that
 * boots and a network that is cut look the same: silence. It is waited for, [coordinator]
 * agent_timeout long.
 *
 * A request whose answer is lost may have been heard, and one that was given up may still arrive,
 * behind the next: TCP goes on to deliver what a closed socket has sent. So everything that is
 * asked for can be asked for twice, and what came of it is what the agent's job says, never the
 * answer to the second request. */
#include "agent/cluster.h"
#include "agent/clock.h"
#include "agent/log.h"
#include "agent/restore.h"

#include <stdio.h>

/* A pull takes hours, and every look is a handshake. */
enum { POLL_MS = 200, POLL_LATER_MS = 1000, POLL_OFTEN_MS = 10000, LATE_REQUEST_MS = 3000 };

static int call(struct drive *drive, const char *method, const char *path, const json_t *body,
                json_t **ret, struct err *err)
{
    return cluster_call(&drive->all->cluster, drive->member, method, path, body, ret, err);
}

/* --- silence ---------------------------------------------------------------------------------- */

static bool is_silence(int rc)
{
    return rc == -ERR_DEVICE || rc == -ERR_STORE;
}

/* journal["silent"], and the phase, which whoever follows the job is shown. */
static void journal_silence(struct cluster_restore *all)
{
    json_t *journal = all->job->journal, *names = json_array();
    char phase[128] = "waiting for";
    size_t len = strlen(phase);
    struct err err;
    for (size_t i = 0; i < all->count; i++) {
        if (!all->drives[i].silent)
            continue;
        (void)json_array_append_new(names, json_string(all->drives[i].member->name));
        if (len < sizeof(phase))
            len += (size_t)snprintf(phase + len, sizeof(phase) - len, " %s",
                                    all->drives[i].member->name);
    }
    const char *step = json_str(journal, "step");
    bool none = json_array_size(names) == 0;
    (void)json_object_set_new(journal, "silent", names);
    if (none)
        (void)json_object_del(journal, "silent");
    if (job_journal(all->job, NULL, !none ? phase : step[0] ? step : "reserving", &err) < 0)
        log_warn("cluster restore: journal not written: %s", err.text);
}

static void note_silence(struct drive *drive, bool silent, const struct err *err)
{
    struct cluster_restore *all = drive->all;
    (void)pthread_mutex_lock(&all->mutex);
    bool news = drive->silent != silent;
    drive->silent = silent;
    if (news)
        journal_silence(all);
    (void)pthread_mutex_unlock(&all->mutex);
    if (news && silent)
        log_warn("an agent does not answer, it is waited for: node=%s timeout=%u s err=\"%s\"",
                 drive->member->name, all->job->conf.coordinator_agent_timeout_s, err->text);
    else if (news)
        log_info("the agent answers again: node=%s", drive->member->name);
}

/* True when rc is silence and has not lasted too long: ask again. */
static bool may_wait(struct drive *drive, uint64_t since_ms, int rc, const struct err *err)
{
    uint64_t timeout_ms = drive->all->job->conf.coordinator_agent_timeout_s * 1000ull;
    note_silence(drive, is_silence(rc), err);
    bool in_time = now_ms() - since_ms <= timeout_ms;
    drive->waited = is_silence(rc) && (drive->waited || !in_time);
    return is_silence(rc) && in_time;
}

/* --- what there is ---------------------------------------------------------------------------- */

int cluster_ask(struct drive *drive, enum cluster_patience patience, const char *method,
                const char *path, const json_t *body, json_t **ret, struct err *err)
{
    uint64_t since_ms = now_ms();
    for (;;) {
        int rc = call(drive, method, path, body, ret, err);
        if (!may_wait(drive, since_ms, rc, err) || patience == ASK_ONCE)
            return rc;
        rc = patience == ASK_UNLESS_CANCELLED ? job_check_cancel(drive->all->job, err) : 0;
        if (rc < 0)
            return rc;
        pause_ms(POLL_MS);
    }
}

/* What later steps and the journal need of it. */
static void note_status(struct drive *drive, const json_t *status)
{
    json_t *plan = json_object_get(status, "plan");
    json_t *verification = json_object_get(status, "verification");
    (void)pthread_mutex_lock(&drive->all->mutex);
    if (plan) {
        json_decref(drive->plan);
        drive->plan = json_incref(plan);
    }
    if (verification) {
        json_decref(drive->verification);
        drive->verification = json_incref(verification);
    }
    (void)pthread_mutex_unlock(&drive->all->mutex);
}

/* With the epoch: the agent tells others that we are at work. */
int cluster_ask_job(struct drive *drive, enum cluster_patience patience, json_t **ret,
                    struct err *err)
{
    char path[96];
    uint64_t since_ms = now_ms();
    (void)snprintf(path, sizeof(path), "/jobs/%s?epoch=%llu", drive->job,
                   (unsigned long long)drive->all->epoch);
    for (;;) {
        free_json json_t *status = NULL;
        int rc = cluster_ask(drive, patience, "GET", path, NULL, &status, err);
        if (rc < 0)
            return rc;
        if (!json_is_true(json_object_get(status, "running"))) {
            note_status(drive, status);
            *ret = json_incref(status);
            return 0;
        }
        rc = patience == ASK_UNLESS_CANCELLED ? job_check_cancel(drive->all->job, err) : 0;
        if (rc < 0)
            return rc;
        pause_ms(now_ms() - since_ms < POLL_OFTEN_MS ? POLL_MS : POLL_LATER_MS);
    }
}

int cluster_job_error(const struct drive *drive, const json_t *status, struct err *err)
{
    const json_t *error = json_object_get(status, "error");
    enum err_code code = err_code_from_name(json_str(error, "code"));
    if (!json_is_object(error))
        return err_set(err, ERR_PARTIAL, "node %s: job %s is %s, in step %s", drive->member->name,
                       drive->job, json_str(status, "state"), json_str(status, "step"));
    (void)err_set(err, code == ERR_OK ? ERR_INTERNAL : code, "node %s: %s", drive->member->name,
                  json_str(error, "text"));
    return json_str(error, "hint")[0] ? err_hint(err, "%s", json_str(error, "hint"))
                                      : -(int)err->code;
}

/* One that failed or was killed goes on from its last hold. */
enum cluster_level cluster_level_of(const json_t *status)
{
    bool dry_run = json_is_true(json_object_get(status, "dry_run"));
    if (json_is(status, "state", "prepared") || (dry_run && json_is(status, "state", "complete")))
        return LEVEL_RESERVED;
    if (json_is(status, "state", "executed"))
        return LEVEL_RECOVERED;
    if (json_is(status, "state", "complete"))
        return LEVEL_COMPLETE;
    if (json_is(status, "state", "cancelled") || json_is_true(json_object_get(status, "given_up")))
        return LEVEL_NONE;
    for (unsigned i = LEVEL_FENCED; i <= LEVEL_RECOVERED; i++)
        if (json_is(status, "held_at", cluster_level_name(i)))
            return (enum cluster_level)i;
    return job_is_partial(status) || json_is(status, "step", "fenced") ? LEVEL_RESERVED
                                                                       : LEVEL_NONE;
}

/* --- a step ----------------------------------------------------------------------------------- */

struct step {
    const char *path;
    const json_t *body;
    enum cluster_level wanted;
    bool again; /* an earlier request for it may have been heard */
};

/* *ret_lost: whether the agent has heard is not known, or it is busy with what it has heard. */
static int step_once(struct drive *drive, const struct step *step, json_t **ret, bool *ret_lost,
                     struct err *err)
{
    free_json json_t *answer = NULL;
    free_json json_t *status = NULL;
    struct err why;
    int asked = call(drive, "POST", step->path, step->body, &answer, &why);
    bool lost = is_silence(asked) || (step->again && asked == -ERR_BUSY);
    bool perhaps = lost || (step->again && asked == -ERR_REFUSED);
    *ret_lost = false;
    if (asked < 0)
        *err = why;
    if (asked < 0 && !perhaps)
        return asked;
    if (lost)
        note_silence(drive, is_silence(asked), err);
    int rc = cluster_ask_job(drive, ASK_UNLESS_CANCELLED, &status, err);
    if (rc < 0)
        return rc;
    if (cluster_level_of(status) < step->wanted && asked < 0) {
        *ret_lost = lost;
        *err = why;
        return asked;
    }
    if (cluster_level_of(status) < step->wanted)
        return cluster_job_error(drive, status, err);
    if (ret)
        *ret = json_incref(status);
    return 0;
}

int cluster_ask_step(struct drive *drive, const char *verb, json_t *body, enum cluster_level wanted,
                     json_t **ret, struct err *err)
{
    char path[96];
    struct step step = {.path = path, .body = body, .wanted = wanted};
    uint64_t since_ms = now_ms();
    uint64_t timeout_ms = drive->all->job->conf.coordinator_agent_timeout_s * 1000ull;
    (void)snprintf(path, sizeof(path), "/restores/%s/%s", drive->job, verb);
    (void)json_object_set_new(body, "epoch", json_integer((json_int_t)drive->all->epoch));
    for (;; step.again = true) {
        bool lost;
        int rc = step_once(drive, &step, ret, &lost, err);
        if (!lost || now_ms() - since_ms > timeout_ms)
            return rc;
        pause_ms(POLL_MS);
    }
}

/* --- the reservation -------------------------------------------------------------------------- */

/* It becomes a part of paths. */
static int check_id(const struct drive *drive, const char *id, struct err *err)
{
    uint8_t bytes[ID_LEN];
    return id_from_text(id, bytes)
               ? 0
               : err_set(err, ERR_INTERNAL, "node %s calls its job '%.64s', which is no id",
                         drive->member->name, id);
}

/* id NULL: not known yet, or noted already. */
static int note_asked(struct drive *drive, const char *id, struct err *err)
{
    if (id && check_id(drive, id, err) < 0)
        return -(int)err->code;
    (void)pthread_mutex_lock(&drive->all->mutex);
    drive->asked = true;
    if (id)
        (void)snprintf(drive->job, sizeof(drive->job), "%.32s", id);
    int rc = cluster_journal(drive->all, err);
    (void)pthread_mutex_unlock(&drive->all->mutex);
    return rc;
}

int cluster_ask_for(struct drive *drive, enum cluster_patience patience, struct err *err)
{
    free_json json_t *answer = NULL;
    size_t i;
    json_t *job;
    if (drive->job[0] || !drive->asked)
        return 0;
    int rc = cluster_ask(drive, patience, "GET", "/jobs", NULL, &answer, err);
    if (rc < 0)
        return rc;
    json_array_foreach(json_object_get(answer, "jobs"), i, job)
    {
        if (json_is(json_object_get(job, "cluster"), "job", drive->all->job->id) &&
            !job_is_over(job) && check_id(drive, json_str(job, "id"), err) == 0)
            (void)snprintf(drive->job, sizeof(drive->job), "%.32s", json_str(job, "id"));
    }
    return 0;
}

int cluster_ask_late(struct drive *drive, enum cluster_patience patience, struct err *err)
{
    int rc = cluster_ask_for(drive, patience, err);
    if (rc < 0 || drive->job[0] || !drive->asked || drive->refused)
        return rc;
    pause_ms(LATE_REQUEST_MS);
    return cluster_ask_for(drive, patience, err);
}

/* A node that is busy may be so with what was asked for before. */
static int reserve_once(struct drive *drive, const json_t *body, bool again, bool *ret_lost,
                        struct err *err)
{
    free_json json_t *answer = NULL;
    const char *id = NULL;
    int rc = again ? cluster_ask_for(drive, ASK_ONCE, err) : 0;
    *ret_lost = is_silence(rc);
    if (rc < 0)
        return rc;
    if (drive->job[0])
        return note_asked(drive, NULL, err);
    rc = call(drive, "POST", "/restores", body, &answer, err);
    restore_test_stop("cluster-asked");
    *ret_lost = is_silence(rc) || (again && rc == -ERR_BUSY);
    if (rc == 0)
        rc = json_get_string(answer, "id", ERR_INTERNAL, &id, err);
    if (rc == 0)
        return note_asked(drive, id, err);
    drive->refused = !again && !*ret_lost && rc != -ERR_INTERNAL;
    return rc;
}

int cluster_ask_reserve(struct drive *drive, const json_t *body, struct err *err)
{
    uint64_t since_ms = now_ms();
    int rc = note_asked(drive, NULL, err); /* whoever dies before the answer has to look for it */
    for (bool again = false; rc == 0; again = true) {
        bool lost;
        rc = reserve_once(drive, body, again, &lost, err);
        if (!may_wait(drive, since_ms, lost ? -ERR_DEVICE : 0, err))
            return rc;
        pause_ms(POLL_MS);
        rc = job_check_cancel(drive->all->job, err);
    }
    return rc;
}
