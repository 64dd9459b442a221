/* The state machine of a restore: which step comes after which, what a step that was interrupted
 * means, and what happens to the old server when it fails. See restore.h for the states. */
#include "agent/restore.h"
#include "agent/log.h"
#include "agent/pg.h"
#include "agent/repository.h"

#include <stdio.h>

void restore_state_path(const struct restore *restore, const char *name, char *ret, size_t size)
{
    (void)snprintf(ret, size, "%s/%s", restore->conf.state_dir, name);
}

int restore_enter(struct restore *restore, enum restore_step step, struct err *err)
{
    json_t *journal = restore->job->journal;
    free_json json_t *before = json_incref(json_object_get(journal, "step"));
    json_object_set_new(journal, "step", json_string(restore_step_name(step)));
    int rc = job_journal(restore->job, NULL, restore_step_name(step), err);
    if (rc < 0) { /* not entered: the end of the job must not say that it was */
        (void)json_object_set(journal, "step", before ? before : json_null());
        return rc;
    }
    log_info("restore: job=%s step=%s", restore->job->id, restore_step_name(step));
    restore_test_stop(restore_step_name(step));
    return 0;
}

/* --- steps ------------------------------------------------------------------------------------ */

/* The journal never goes back behind `marked`: from there on nothing lifts the fence. */
static int fence_again(struct restore *restore, struct err *err)
{
    int rc = restore_fence(restore, err);
    return rc < 0 ? err_prefix(err, "fence again") : 0;
}

static int step_fence(struct restore *restore, struct err *err)
{
    if (restore->past_mark)
        return fence_again(restore, err);
    int rc = restore_enter(restore, STEP_FENCED, err);
    return rc < 0 ? rc : restore_fence(restore, err);
}

static int step_mark(struct restore *restore, struct err *err)
{
    int rc = restore_enter(restore, STEP_MARKED, err);
    return rc < 0 ? rc : restore_mark(restore, err);
}

static int step_pull(struct restore *restore, struct err *err)
{
    int rc = restore_enter(restore, STEP_PULLING, err);
    return rc < 0 ? rc : restore_pull(restore, err);
}

static int step_write(struct restore *restore, struct err *err)
{
    json_object_set_new(restore->job->journal, "heads_written", json_true());
    int rc = restore_enter(restore, STEP_WRITTEN, err);
    if (rc == 0)
        rc = restore_commit(restore, err);
    restore_close_devices(restore);
    return rc;
}

static int step_configure(struct restore *restore, struct err *err)
{
    int rc = restore_enter(restore, STEP_CONFIGURED, err);
    return rc < 0 ? rc : restore_configure(restore, err);
}

static int step_recover(struct restore *restore, struct err *err)
{
    int rc = restore_enter(restore, STEP_RECOVERING, err);
    return rc < 0 ? rc : restore_recover(restore, err);
}

static int step_verify(struct restore *restore, struct err *err)
{
    int rc = restore_enter(restore, STEP_VERIFYING, err);
    return rc < 0 ? rc : restore_verify(restore, err);
}

/* What runs once the journal says the key: from the step before to the step itself. */
static const struct {
    enum restore_step step;
    int (*run)(struct restore *restore, struct err *err);
} machine[] = {
    {STEP_FENCED, step_fence},  {STEP_MARKED, step_mark},          {STEP_PULLING, step_pull},
    {STEP_WRITTEN, step_write}, {STEP_CONFIGURED, step_configure}, {STEP_RECOVERING, step_recover},
};

/* A fence that could not be lifted, because the repository is away perhaps, is lifted later: the
 * job is not over (job_is_over(), job_sweep()). Where a part was held it is not over anyhow. */
static void note_fence(struct job *job)
{
    json_t *journal = job->journal;
    if (json_is(journal, "step", "fenced") && !json_object_get(journal, "held_at"))
        (void)json_object_set_new(journal, "not_released", json_true());
}

static void add_hint(struct err *err, const char *what, const char *why)
{
    size_t len = strlen(err->hint);
    (void)snprintf(err->hint + len, sizeof(err->hint) - len, "%s%s: %s", len ? "; " : "", what,
                   why);
}

/* Whoever looks at the end of the job must see it there. */
static void add_kept_down(const struct restore *restore, struct err *err)
{
    if (restore->kept_down.code)
        add_hint(err, "the old server stays down, start it only if no other primary runs",
                 restore->kept_down.text);
}

/* err stays what it is; that the old server does not run again is added to its hint. */
static void lift_after_failure(struct restore *restore, struct err *err)
{
    struct err cause = *err;
    if (restore_fence_lift(restore, err) < 0) {
        log_error("the fence could not be lifted: %s", err->text);
        note_fence(restore->job);
        add_hint(&cause, "the old server is not running again", err->text);
    }
    add_kept_down(restore, &cause);
    *err = cause;
}

static int explain_part(const struct restore *restore, struct err *err)
{
    size_t len = strlen(err->hint);
    (void)snprintf(err->hint + len, sizeof(err->hint) - len,
                   "%sthe old data of this node is gone; go on with `tidemark cluster resume`, or "
                   "give this node up with `tidemark cancel %s`",
                   len ? "; " : "", restore->job->id);
    return -(int)err->code;
}

/* Patroni goes on with its next method, or gives up; what it finds is an empty data directory. */
static int explain_handover(struct restore *restore, struct err *err)
{
    struct err cause = *err;
    restore_close_devices(restore);
    if (restore_unmount(restore, err) < 0)
        log_warn("the unfinished volumes stay mounted: %s", err->text);
    *err = cause;
    size_t len = strlen(err->hint);
    (void)snprintf(err->hint + len, sizeof(err->hint) - len,
                   "%sthe volumes are not finished and not mounted: Patroni's next call begins "
                   "anew, and `tidemark restore --resume %s` goes on without it",
                   len ? "; " : "", restore->job->id);
    return -(int)err->code;
}

/* Of the repository: what is pulled is damaged or gone for the next try as well. */
static bool is_damage(const struct err *err, enum restore_step step)
{
    return (err->code == ERR_CORRUPT || err->code == ERR_MISSING) && step < STEP_WRITTEN;
}

static int explain_damage(const struct restore *restore, struct err *err)
{
    bool part = restore->request.cluster_job != NULL;
    return err_hint(err,
                    "the old data is gone, and `tidemark %s%s` would find the same damage: "
                    "`tidemark verify --all` says which snapshots are whole, then `tidemark %s%s` "
                    "and restore another one",
                    part ? "cluster resume" : "restore --resume ", part ? "" : restore->job->id,
                    part ? "cluster abort" : "cancel ", part ? "" : restore->job->id);
}

/* Before `marked` everything goes back. Cancelled after it: the volume is neither old nor new,
 * which has a status of its own. */
static int explain(struct restore *restore, struct err *err)
{
    enum restore_step step =
        restore_step_from_name(json_string_value(json_object_get(restore->job->journal, "step")));
    if (step == STEP_FENCED && restore_keeps_fence(restore)) {
        if (err->code == ERR_CANCELLED)
            (void)err_set(err, ERR_PARTIAL, "cancelled in the fence: nothing was touched");
        return err_hint(err,
                        "the fence stays, because other nodes may be past theirs: `tidemark "
                        "cluster resume` goes on, `tidemark cancel %s` starts the old server",
                        restore->job->id);
    }
    if (step < STEP_MARKED && err->code == ERR_CANCELLED)
        (void)err_set(err, ERR_CANCELLED, "cancelled by request: nothing was touched");
    if (step == STEP_FENCED)
        lift_after_failure(restore, err);
    if (step < STEP_MARKED)
        return -(int)err->code;
    if (err->code == ERR_CANCELLED)
        (void)err_set(err, ERR_PARTIAL, "cancelled in step %s: the volumes are not finished",
                      restore_step_name(step));
    if (is_damage(err, step) && !restore_is_handover(restore))
        return explain_damage(restore, err);
    if (restore->request.cluster_job)
        return explain_part(restore, err);
    if (restore_is_handover(restore))
        return explain_handover(restore, err);
    bool same = err->code == ERR_POSTGRES && step == STEP_RECOVERING;
    size_t len = strlen(err->hint);
    (void)snprintf(err->hint + len, sizeof(err->hint) - len,
                   "%sthe old data is gone; go on with `tidemark restore --resume %s`%s, or give "
                   "up with `tidemark cancel %s` and restore anew%s",
                   len ? "; " : "", restore->job->id,
                   same ? " when the cause is gone (else it fails the same way)" : "",
                   restore->job->id, same ? " to another target" : "");
    return -(int)err->code;
}

/* A server that died in the middle of its promotion comes back in crash recovery, on the old
 * timeline and perhaps behind the target; recovery.signal is gone. Only the image helps: the whole
 * way once more. Nothing is lost, what was acknowledged on the volumes is compared, not trusted. */
static bool goes_back(struct restore *restore, struct err *err)
{
    if (!restore->astray || restore->went_back)
        return false;
    log_warn("the server did not recover to the target, it is restored again: %s", err->text);
    restore->astray = false;
    restore->went_back = true;
    restore->past_mark = true;
    restore->old_gone = true;
    return true;
}

static int run_steps(struct restore *restore, enum restore_step first, struct err *err)
{
    for (size_t i = 0; i < ARRAY_LEN(machine); i++) {
        if (machine[i].step < first)
            continue;
        if (machine[i].step > restore->hold)
            break;
        int rc = job_check_cancel(restore->job, err);
        if (rc == 0)
            rc = machine[i].run(restore, err);
        if (rc < 0 && goes_back(restore, err))
            return run_steps(restore, STEP_FENCED, err);
        if (rc < 0)
            return explain(restore, err);
    }
    return 0;
}

/* Only noted: job_close() writes it when the process is about to be gone, because whoever reads it
 * asks for the next goal at once. */
static void end_as(struct restore *restore, const char *state)
{
    json_object_set_new(restore->job->journal, "state", json_string(state));
}

static int finish_verify(struct restore *restore, struct err *err)
{
    int rc = step_verify(restore, err);
    if (rc < 0)
        return rc;
    /* With its state in one write: what is complete must not look interrupted. */
    end_as(restore, "complete");
    return restore_enter(restore, STEP_COMPLETE, err);
}

/* --- where to begin --------------------------------------------------------------------------- */

/* Where a job that already did `step` begins again. The volumes of a pull that was interrupted may
 * have been mounted, checked or written by others since: mark, and compare what was acknowledged.
 * Once the heads are committed the filesystems are whole, and configuring can be done twice. */
static enum restore_step begin_at(enum restore_step step)
{
    switch (step) {
    case STEP_NONE:
    case STEP_PLANNED:
    case STEP_FENCED:
    case STEP_MARKED:
    case STEP_PULLING:
    case STEP_WRITTEN:
        return STEP_FENCED;
    case STEP_CONFIGURED:
    case STEP_RECOVERING:
    case STEP_VERIFYING:
    case STEP_COMPLETE:
    case STEP_COUNT:
        break;
    }
    return step;
}

/* Interrupted in the fence: a person may have started the old server since, so go back. */
static int give_back(struct restore *restore, struct err *err)
{
    int rc = restore_fence_lift(restore, err);
    if (rc < 0)
        return rc;
    (void)err_set(err, ERR_CANCELLED,
                  "the restore was interrupted before it touched a volume: the fence is lifted, "
                  "nothing has changed");
    (void)err_hint(err, "start it again with `tidemark restore`");
    add_kept_down(restore, err);
    return -(int)err->code;
}

static int run_plan(struct restore *restore, struct err *err)
{
    int rc = job_journal(restore->job, NULL, "planning", err);
    if (rc == 0)
        rc = restore_plan(restore, err);
    return rc < 0 ? rc : restore_enter(restore, STEP_PLANNED, err);
}

/* execute, resume: from the journalled step until the server is up at its target, or to the hold. A
 * part of a cluster restore does its fence again, from its beginning: what a person may have done
 * since with the old server is seen then as it was the first time. */
static int run_execute(struct restore *restore, enum restore_step step, struct err *err)
{
    if (step == STEP_FENCED && !restore->request.cluster_job) {
        int rc = restore_load(restore, err);
        return rc < 0 ? rc : give_back(restore, err);
    }
    restore->past_mark = step >= STEP_MARKED;
    restore->old_gone = json_is_true(json_object_get(restore->job->journal, "old_gone"));
    int rc = step <= STEP_PLANNED ? run_plan(restore, err) : 0;
    if (rc == 0 && step > STEP_PLANNED)
        rc = restore_load(restore, err);
    return rc < 0 ? rc : run_steps(restore, begin_at(step), err);
}

/* A server that was started would go on to its target and be promoted after the job is given up.
 * Stopping it needs no repository when the configuration says where it is. */
static int stop_recovery(struct restore *restore, int loaded, struct err *err)
{
    restore_permit_revoke(restore); /* nobody starts it again meanwhile */
    if (loaded < 0 && !restore->conf.data_directory[0])
        return loaded;
    if (loaded < 0)
        log_warn("the server is stopped as the configuration says: %s", err->text);
    int rc = restore_gate_close(restore, err);
    return rc < 0 ? rc : pg_server_stop(&restore->conf, err);
}

/* What is fenced goes back, or stays fenced when its old server would be a second primary. */
static int give_fence_up(struct restore *restore, struct err *err)
{
    if (!json_is_true(json_object_get(restore->job->goal_file, "keep_fence")))
        return restore_fence_lift(restore, err);
    int rc = restore_fence_keep(restore, err);
    if (rc == 0)
        json_object_set_new(restore->job->journal, "given_up", json_true());
    return rc;
}

static int tell_given_up(const struct restore *restore, enum restore_step step, struct err *err)
{
    bool kept = json_is_true(json_object_get(restore->job->journal, "given_up"));
    if (step < STEP_MARKED && !kept) {
        (void)err_set(err, ERR_CANCELLED, "given up; nothing has changed");
        add_kept_down(restore, err);
        return -(int)err->code;
    }
    if (step < STEP_MARKED)
        (void)err_set(err, ERR_CANCELLED,
                      "given up in its fence: the old server stays down, because the cluster went "
                      "on without it");
    else
        (void)err_set(err, ERR_CANCELLED, "given up in step %s: the volumes are not usable%s",
                      restore_step_name(step),
                      step == STEP_RECOVERING ? ", and the server is stopped" : "");
    return err_hint(err, "restore a tag onto them");
}

/* abort: before `marked` everything goes back (or keeps its fence); after it, the journal says that
 * nobody will go on and that the volumes hold nothing. */
static int run_abort(struct restore *restore, enum restore_step step, struct err *err)
{
    bool touched = step >= STEP_MARKED && step < STEP_COMPLETE;
    int rc = 0;
    if (step == STEP_FENCED || step >= STEP_MARKED)
        rc = restore_load(restore, err);
    if (rc == 0 && step == STEP_FENCED)
        rc = give_fence_up(restore, err);
    if (step == STEP_RECOVERING)
        rc = stop_recovery(restore, rc, err);
    else if (rc == 0 && touched)
        rc = restore_gate_open(restore, err);
    if (rc < 0)
        return rc;
    if (touched) {
        restore_permit_revoke(restore);
        json_object_set_new(restore->job->journal, "given_up", json_true());
    }
    return tell_given_up(restore, step, err);
}

static int run_goal(struct restore *restore, struct err *err)
{
    const char *goal = restore->job->goal;
    json_t *journal = restore->job->journal;
    enum restore_step step =
        restore_step_from_name(json_string_value(json_object_get(journal, "step")));
    if (strcmp(goal, "abort") == 0)
        return run_abort(restore, step, err);
    if (restore->request.dry_run || strcmp(goal, "prepare") == 0) {
        if (step > STEP_PLANNED)
            return err_set(err, ERR_REFUSED, "the restore is past its plan");
        int rc = run_plan(restore, err);
        if (restore->request.dry_run) /* for lists: it is complete, but restored nothing */
            json_object_set_new(journal, "dry_run", json_true());
        if (rc == 0)
            end_as(restore, restore->request.dry_run ? "complete" : "prepared");
        return rc;
    }
    if (step < STEP_VERIFYING) {
        int rc = run_execute(restore, step, err);
        if (rc == 0 && restore->hold >= STEP_RECOVERING)
            rc = restore_enter(restore, STEP_VERIFYING, err);
        if (rc == 0 && restore->hold != STEP_COMPLETE && !restore_is_handover(restore))
            restore_cluster_hold(restore);
        if (rc == 0 && restore_is_handover(restore))
            return restore_handover_finish(restore, err);
        if (rc < 0 || restore->hold != STEP_COMPLETE)
            return rc;
    } else {
        int rc = restore_load(restore, err);
        if (rc == 0 && step == STEP_VERIFYING)
            rc = restore_cluster_server(restore, err);
        if (rc == 0 && restore->hold != STEP_COMPLETE) /* it died on its way into the hold */
            restore_cluster_hold(restore);
        if (rc < 0 || restore->hold != STEP_COMPLETE)
            return rc;
    }
    if (strcmp(goal, "execute") == 0) {
        end_as(restore, "executed");
        return 0;
    }
    return step == STEP_COMPLETE ? 0 : finish_verify(restore, err);
}

/* --- beginning and end ------------------------------------------------------------------------ */

static int open_restore(struct restore *restore, struct err *err)
{
    struct job *job = restore->job;
    if (!id_from_text(job->id, restore->job_id))
        return err_set(err, ERR_INTERNAL, "job id '%s' is not one", job->id);
    int rc = restore_request_parse(job->request, &restore->request, err);
    if (rc == 0)
        rc = restore_cluster_load(restore, err);
    restore_second_load(restore);
    if (rc == 0)
        rc = restore_handover_watch(restore, err);
    if (rc == 0)
        rc = repository_open(&restore->conf, &job->progress.cancel, &restore->store, &restore->repo,
                             err);
    if (rc == 0)
        job_note_repository(job, &restore->repo);
    return rc;
}

/* Nobody goes on with it: what it read may go. Of a handover Patroni's server recovers yet, and one
 * that is left paused or shut down at its target may be started again: from the WAL that the mark
 * keeps, and the mark ages out. */
static void end_reading(struct restore *restore, int rc)
{
    const json_t *journal = restore->job->journal;
    const char *planned = json_str(json_object_get(journal, "plan"), "snapshot");
    enum restore_step step = restore_step_from_name(json_str(journal, "step"));
    bool over =
        rc == 0 ? json_is(journal, "state", "complete") && restore->request.action == ACTION_PROMOTE
                : (step < STEP_MARKED && !restore_keeps_fence(restore)) ||
                      json_is_true(json_object_get(journal, "given_up"));
    uint8_t id[ID_LEN];
    if (!restore->store || restore->request.dry_run || !over || restore_is_handover(restore))
        reading_pause(&restore->reading);
    else if (restore->record_read)
        reading_end(&restore->reading, restore->store, restore->job, restore->record.id);
    else if (id_from_text(planned, id))
        reading_end(&restore->reading, restore->store, restore->job, id);
}

static void release_restore(struct restore *restore)
{
    restore_close_devices(restore);
    for (size_t i = 0; i < RECORD_VOLUMES_MAX; i++)
        free(restore->volumes[i].manifest_buf);
    restore_forget_settings(restore);
    json_decref(restore->second_ways);
    json_decref(restore->second_before);
    if (restore->record_read)
        record_release(&restore->record);
    store_close(restore->store);
}

int restore_run(struct job *job, struct err *err)
{
    static struct restore restore; /* large; one a process */
    memset(&restore, 0, sizeof(restore));
    restore.job = job;
    restore.conf = job->conf;
    int rc = open_restore(&restore, err);
    if (rc == 0)
        rc = run_goal(&restore, err);
    if (strcmp(job->goal, "abort") == 0 && rc != -ERR_CANCELLED)
        note_fence(job);
    end_reading(&restore, rc);
    release_restore(&restore);
    return rc;
}
