/* The rules of jobs, see job_rules.h. They read the journals afresh every time: a job started by
 * somebody else counts as much as our own. */
#include "agent/job_rules.h"

#include <stdio.h>
#include <time.h>

#include "agent/cluster.h"
#include "agent/log.h"
#include "agent/restore.h"

enum { CREATED_MAX_S = 60 };   /* a job that was made but never started is forgotten after this */
enum { RELEASE_AGAIN_S = 60 }; /* between two tries to give a node back */

static const char interrupted_text[] =
    "interrupted: the job's process was killed or the host went down";

static bool is_running(const json_t *status)
{
    return json_is_true(json_object_get(status, "running"));
}

/* One node's or, on a coordinator, the cluster's: they have the same steps and states. */
static bool is_restore(const json_t *status)
{
    return json_is(status, "type", "restore") || json_is(status, "type", "cluster_restore");
}

/* Its reservations on the nodes have to be given back, whatever its step. */
static bool is_cluster(const json_t *status)
{
    return json_is(status, "type", "cluster_restore");
}

/* It failed and could not give a node back. */
static bool keeps_nodes(const json_t *status)
{
    return json_is(status, "state", "failed") &&
           json_is_true(json_object_get(status, "not_released"));
}

static bool is_at_work(const json_t *status)
{
    return is_running(status) || json_is(status, "state", "held") ||
           json_is(status, "state", "executed");
}

/* The step of a cluster restore says what may be lost. Where the nodes are is its wave, and before
 * any was touched its phase. */
static const char *step_of(const json_t *status)
{
    if (is_cluster(status) && json_is_true(json_object_get(status, "touched")))
        return cluster_wave(json_object_get(status, "members"));
    return json_str(status, is_cluster(status) && is_at_work(status) ? "phase" : "step");
}

static int start(const struct conf *conf, const char *id, const char *goal, const json_t *options,
                 int *ret_pid, struct err *err)
{
    char dir[JOB_DIR_MAX];
    job_dir(conf, id, dir);
    int rc = job_set_goal(conf, id, goal, options, err);
    return rc < 0 ? rc : job_start(dir, ret_pid, err);
}

static int wrong_state(const json_t *status, const char *id, const char *verb, struct err *err)
{
    (void)err_set(err, ERR_REFUSED, "restore %s is %s: it cannot be asked to %s", id,
                  json_str(status, "state"), verb);
    if (json_is(status, "state", "prepared"))
        return err_hint(err,
                        "it has touched nothing: make a new plan with `tidemark %s`, and "
                        "end this one with `tidemark cancel %s`",
                        is_cluster(status) ? "cluster restore" : "restore", id);
    if (json_is(status, "state", "executed"))
        return err_hint(err, "verify it");
    if (job_is_cluster_part(status) && !job_is_over(status))
        return err_hint(err,
                        "it is one node's part of a cluster restore: `tidemark cluster resume` "
                        "goes on with all of them");
    if (json_is_true(json_object_get(status, "given_up")))
        return err_hint(err,
                        "it was given up: restore a snapshot onto its volumes with `tidemark "
                        "%s TAG`",
                        is_cluster(status) ? "cluster restore" : "restore");
    char command[JOB_COMMAND_MAX];
    job_resume_command(status, command);
    return job_is_partial(status) ? err_hint(err, "resume it with `%s`", command) : -(int)err->code;
}

/* Which goal the next run gets, NULL when the state does not allow the verb. */
static const char *goal_for(const json_t *status, const char *verb)
{
    if (job_is_cluster_part(status))
        return job_cluster_goal(status, verb);
    if (strcmp(verb, "execute") == 0)
        return json_is(status, "state", "prepared") ? "execute" : NULL;
    if (strcmp(verb, "execute and verify") == 0)
        return json_is(status, "state", "prepared") ? "all" : NULL;
    if (strcmp(verb, "verify") == 0)
        return json_is(status, "state", "executed") ? "verify" : NULL;
    if (job_is_partial(status))
        return "all";
    return json_is(status, "state", "interrupted") || keeps_nodes(status) ? "abort" : NULL;
}

/* What of the call the job itself has to know. */
static json_t *goal_options(const json_t *call)
{
    static const char *const keys[] = {"epoch",
                                       "until",
                                       "fork",
                                       "slots",
                                       "idle_slots",
                                       "primary_conninfo",
                                       "primary_is_down",
                                       "allow_second_primary"};
    json_t *options = json_object();
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (json_object_get(call, keys[i]))
            (void)json_object_set(options, keys[i], json_object_get(call, keys[i]));
    return options;
}

int job_continue(const struct conf *conf, const char *id, const char *verb, const json_t *call,
                 int *ret_pid, struct err *err)
{
    free_json json_t *status = NULL;
    int rc = job_status(conf, id, &status, err);
    if (rc < 0)
        return rc;
    if (!is_restore(status))
        return err_set(err, ERR_REFUSED, "job %s is a %s, not a restore", id,
                       json_str(status, "type"));
    rc = job_cluster_admit(conf, status, verb, call, err);
    if (rc < 0)
        return rc;
    if (is_running(status))
        return job_is_busy(id, err);
    const char *goal = goal_for(status, verb);
    if (!goal)
        return wrong_state(status, id, verb, err);
    rc = job_cluster_check_until(status, call, err);
    if (rc == 0 && is_cluster(status) && strcmp(verb, "resume") == 0 && strcmp(goal, "all") == 0)
        rc = job_renew_conf(conf, id, err);
    free_json json_t *options = goal_options(call);
    return rc < 0 ? rc : start(conf, id, goal, options, ret_pid, err);
}

int job_resume_verification(const struct conf *conf, const char *id, struct err *err)
{
    free_json json_t *status = NULL;
    int pid, rc = job_status(conf, id, &status, err);
    if (rc < 0)
        return rc;
    if (!json_is(status, "type", "verification"))
        return err_set(err, ERR_REFUSED, "job %s is a %s, not a verification", id,
                       json_str(status, "type"));
    if (is_running(status))
        return job_is_busy(id, err);
    if (json_object_get(status, "position"))
        return start(conf, id, "all", NULL, &pid, err);
    (void)err_set(err, ERR_REFUSED, "verification %s came to its end: %s", id,
                  json_str(status, "state"));
    return err_hint(err, "start another one");
}

int job_goal_parse(const json_t *json, char ret[JOB_GOAL_MAX], struct err *err)
{
    static const char *const goals[] = {"prepare", "execute", "verify", "all", "abort"};
    const char *goal;
    int rc = json_get_string(json, "goal", ERR_CORRUPT, &goal, err);
    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(goals); i++)
        if (strcmp(goals[i], goal) == 0) {
            (void)snprintf(ret, JOB_GOAL_MAX, "%s", goal);
            return 0;
        }
    return rc < 0 ? rc : err_set(err, ERR_CORRUPT, "'%.64s' is not the goal of a restore", goal);
}

/* --- cancelling --------------------------------------------------------------------------------*/
static bool has_fence(const json_t *status)
{
    return is_restore(status) && json_is(status, "step", "fenced");
}

int job_request_cancel(const struct conf *conf, const char *id, const struct job_asker *asker,
                       bool *ret_done, struct err *err)
{
    free_json json_t *status = NULL;
    struct err why;
    int rc = job_status(conf, id, &status, err);
    if (rc == 0)
        rc = job_cluster_admit_cancel(conf, status, asker, err);
    if (rc < 0)
        return rc;
    bool partial = job_is_partial(status), ended = job_is_over(status);
    bool up = json_is(status, "step", "verifying"); /* the server runs, at its target */
    *ret_done = false;
    if (is_running(status))
        return job_cancel(conf, id, err);
    /* At `recovering` a server may run, and go on to its promotion. */
    if (!ended &&
        (has_fence(status) || is_cluster(status) || json_is(status, "step", "recovering"))) {
        int pid;
        free_json json_t *options = json_pack("{s:b}", "keep_fence", asker->keep_fence);
        return start(conf, id, "abort", options, &pid, err);
    }
    (void)err_set(&why, ERR_CANCELLED, "%s",
                  partial && up
                      ? "given up before it was verified: the restored server stays as it is"
                  : partial ? "given up: the volumes hold neither the old nor the new data"
                            : "cancelled by request");
    if (partial && !up)
        (void)err_hint(&why, "restore any snapshot to make them usable again");
    rc = job_end(conf, id, "cancelled", &why, err);
    if (rc == 0 && is_restore(status))
        restore_permit_forget(id);
    *ret_done = rc == 0;
    return rc;
}

/* --- after a death -----------------------------------------------------------------------------*/
static void sweep_failed(const struct conf *conf, const json_t *status, const char *state,
                         const char *text)
{
    const char *id = json_str(status, "id");
    bool committing = json_is(status, "phase", "committing");
    struct err why, err;
    const char *hint = json_str(status, "interrupted_hint");
    (void)err_set(&why, strcmp(state, "cancelled") == 0 ? ERR_CANCELLED : ERR_INTERNAL, "%s", text);
    if (hint[0])
        (void)err_hint(&why, "%s", hint);
    else if (strcmp(state, "failed") == 0)
        (void)err_hint(&why, "%s; its log is %s/jobs/%s/log, and dmesg says whether memory ran out",
                       committing ? "it was becoming visible: `tidemark list` says whether it did"
                                  : "start it again: nothing of it is visible",
                       conf->state_dir, id);
    if (job_end(conf, id, state, &why, &err) < 0)
        log_warn("interrupted job stays as it is: job=%s err=\"%s\"", id, err.text);
    else
        log_warn("interrupted job ended: job=%s state=%s", id, state);
}

static void sweep_run(const struct conf *conf, const char *id, const char *goal)
{
    struct err err;
    int pid = 0;
    if (strcmp(goal, "all") == 0 && job_renew_conf(conf, id, &err) < 0)
        log_warn("the job keeps [coordinator] as it was: job=%s err=\"%s\"", id, err.text);
    if (start(conf, id, goal, NULL, &pid, &err) < 0)
        log_error("interrupted restore not restarted: job=%s goal=%s err=\"%s\"", id, goal,
                  err.text);
    else
        log_info("interrupted restore goes on: job=%s goal=%s pid=%d", id, goal, pid);
}

/* It waits for somebody to go on with it, and health says so until then. Told and logged once. */
static void sweep_waiting(const struct conf *conf, const json_t *status)
{
    const char *id = json_str(status, "id");
    char command[JOB_COMMAND_MAX];
    struct err why, err;
    if (json_object_get(status, "interrupted_s"))
        return;
    job_resume_command(status, command);
    (void)err_set(&why, ERR_PARTIAL, "%s", interrupted_text);
    (void)err_hint(&why, "`%s` goes on", command);
    if (job_note_interrupted(conf, id, &why, &err) < 0)
        log_warn("interrupted restore stays as it is, and nobody is told: job=%s err=\"%s\"", id,
                 err.text);
    else
        log_warn("interrupted restore stays as it is: job=%s type=%s step=%s hint=\"%s\"", id,
                 json_str(status, "type"), step_of(status), why.hint);
}

static void sweep_interrupted(const struct conf *conf, const json_t *status, bool resume)
{
    const char *id = json_str(status, "id");
    bool partial = job_is_partial(status);
    bool part = job_is_cluster_part(status) && (partial || has_fence(status));
    if (!is_restore(status))
        sweep_failed(conf, status, "failed", interrupted_text);
    else if (partial && resume && !part && !job_is_handover(status))
        sweep_run(conf, id, "all"); /* of a handover: Patroni has gone on, and calls again */
    else if (partial || part)
        sweep_waiting(conf, status);
    else if (has_fence(status) || is_cluster(status))
        sweep_run(conf, id, "abort");
    else
        sweep_failed(conf, status, "cancelled", "interrupted before anything was touched");
}

static void sweep_one(const struct conf *conf, const json_t *status, bool resume)
{
    if (is_running(status))
        return;
    if (json_is(status, "state", "interrupted"))
        sweep_interrupted(conf, status, resume);
    const char *last = json_object_get(status, "tried_s") ? "tried_s" : "ended_s";
    json_int_t tried_s = json_integer_value(json_object_get(status, last));
    if (keeps_nodes(status) && time(NULL) - tried_s > RELEASE_AGAIN_S)
        sweep_run(conf, json_str(status, "id"), "abort");
    json_int_t created_s = json_integer_value(json_object_get(status, "created_ms")) / 1000;
    if (json_is(status, "state", "created") && time(NULL) - created_s > CREATED_MAX_S)
        sweep_failed(conf, status, "cancelled", "never started");
}

void job_sweep(const struct conf *conf, bool resume)
{
    free_json json_t *jobs = NULL;
    struct err err;
    size_t i;
    json_t *status;
    if (job_list(conf, &jobs, &err) < 0) {
        log_error("jobs not readable: err=\"%s\"", err.text);
        return;
    }
    json_array_foreach(jobs, i, status)
    {
        sweep_one(conf, status, resume);
    }
    restore_permit_sweep(conf);
}

/* --- health ------------------------------------------------------------------------------------*/
static const char *restore_health(const json_t *status)
{
    const char *step = step_of(status);
    bool late = strcmp(step, "recovering") == 0 || strcmp(step, "verifying") == 0 ||
                strcmp(step, "complete") == 0; /* of a cluster restore that is about to be */
    if (is_at_work(status))                    /* held: it waits for the other nodes */
        return late ? "recovering" : "restoring";
    /* The data is back but did not pass: recovery or verification said no. Of a cluster the node
     * itself says so. */
    if (late && json_is(status, "state", "failed") && !is_cluster(status))
        return "failed";
    return "partial";
}

/* Of one that was killed its last sign of life. */
static int64_t since_of(const json_t *status)
{
    static const char *const keys[] = {"ended_s", "phase_s", "started_s"};
    const json_t *progress = json_object_get(status, "progress");
    if (json_is(status, "state", "interrupted") && json_object_get(progress, "updated_s"))
        return json_integer_value(json_object_get(progress, "updated_s"));
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (json_object_get(status, keys[i]))
            return json_integer_value(json_object_get(status, keys[i]));
    return 0;
}

/* What does not run by itself, but is no failure: who goes on with it. */
static void explain_wait(const json_t *status, struct err *why)
{
    char command[JOB_COMMAND_MAX];
    job_resume_command(status, command);
    if (json_is(status, "state", "executed"))
        (void)err_hint(why, "it is executed and not verified yet: `%s` verifies it", command);
    else if (json_is(status, "state", "held"))
        (void)err_hint(why, "it waits for its coordinator; when that does not go on: `%s` there",
                       command);
}

/* The cause and what to do, as the job says it where it could say anything. */
static void explain(const json_t *status, struct health *ret)
{
    const json_t *error = json_object_get(status, "error");
    const char *what = is_cluster(status) ? "cluster restore" : "restore";
    bool part = job_is_cluster_part(status);
    const char *text = json_str(error, "text");
    char command[JOB_COMMAND_MAX];
    if (ret->given_up) {
        (void)err_set(&ret->why, ERR_PARTIAL,
                      "%s %s was given up at step %s: the volumes hold neither the old nor the new "
                      "data",
                      what, ret->job, ret->step);
        (void)err_hint(&ret->why,
                       "restore any snapshot: `tidemark list` shows them, `tidemark %s TAG` makes "
                       "the volumes usable again",
                       part ? "cluster restore" : what);
    } else if (is_at_work(status)) {
        (void)err_set(&ret->why, ERR_BUSY, "%s %s is at step %s%s%s", what, ret->job, ret->step,
                      ret->cluster_job[0] ? ", as a part of cluster restore " : "",
                      ret->cluster_job);
        explain_wait(status, &ret->why);
    } else {
        if (!text[0] && json_is(status, "state", "interrupted")) /* nobody has looked yet */
            text = interrupted_text;
        enum err_code code = strcmp(ret->status, "failed") == 0 ? ERR_POSTGRES : ERR_PARTIAL;
        (void)err_set(&ret->why, code, "%s %s stopped at step %s%s%s", what, ret->job, ret->step,
                      text[0] ? ": " : "", text);
        job_resume_command(status, command);
        (void)(json_str(error, "hint")[0] ? err_hint(&ret->why, "%s", json_str(error, "hint"))
                                          : err_hint(&ret->why, "`%s` goes on", command));
    }
}

static void take_restore(const json_t *status, bool given_up, struct health *ret)
{
    ret->given_up = given_up;
    ret->status = given_up ? "partial" : restore_health(status);
    ret->since_s = since_of(status);
    (void)snprintf(ret->job, sizeof(ret->job), "%s", json_str(status, "id"));
    (void)snprintf(ret->step, sizeof(ret->step), "%s", step_of(status));
    (void)snprintf(ret->cluster_job, sizeof(ret->cluster_job), "%s",
                   json_str(json_object_get(status, "cluster"), "job"));
    explain(status, ret);
}

/* The newest restore that touched the volumes decides; one that is given up stays partial until a
 * later restore is complete. */
void job_health(const struct conf *conf, struct health *ret)
{
    free_json json_t *jobs = NULL;
    memset(ret, 0, sizeof(*ret));
    err_clear(&ret->why);
    ret->status = "failed";
    if (job_list(conf, &jobs, &ret->why) < 0) {
        log_error("jobs not readable: err=\"%s\"", ret->why.text);
        return;
    }
    ret->status = "ok";
    for (size_t i = json_array_size(jobs); i-- > 0;) {
        const json_t *status = json_array_get(jobs, i);
        bool given_up = json_is_true(json_object_get(status, "given_up"));
        bool fenced = (has_fence(status) && !job_is_over(status)) || keeps_nodes(status);
        if (!is_restore(status))
            continue;
        if (json_is(status, "step", "complete")) {
            (void)snprintf(ret->last, sizeof(ret->last), "%s", json_str(status, "id"));
            ret->since_s = since_of(status);
            return;
        }
        if (job_is_partial(status) || given_up || fenced) {
            take_restore(status, given_up, ret);
            return;
        }
    }
}
