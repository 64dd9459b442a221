/* The restore of a cluster: its goals, its journal, what a failure leaves. See cluster.h. */
#include "agent/cluster.h"
#include "agent/cluster_archive.h"
#include "agent/restore.h"

#include <stdio.h>

/* --- journal ---------------------------------------------------------------------------------- */

static bool was_touched(const struct cluster_restore *all)
{
    return json_is_true(json_object_get(all->job->journal, "touched"));
}

/* The slowest node's wave. From `pulling` on old data may be gone somewhere. */
static const char *step_of(const struct cluster_restore *all)
{
    enum cluster_level least = LEVEL_COMPLETE, most = LEVEL_NONE;
    for (size_t i = 0; i < all->count; i++) {
        least = all->drives[i].level < least ? all->drives[i].level : least;
        most = all->drives[i].level > most ? all->drives[i].level : most;
    }
    if (most > LEVEL_RESERVED && (least == LEVEL_RESERVED || !was_touched(all)))
        return "fenced";
    return cluster_wave_name(least);
}

/* What is known of the nodes; whoever writes the journal next writes it. */
static void note_members(struct cluster_restore *all)
{
    json_t *members = json_object();
    json_t *journal = all->job->journal;
    for (size_t i = 0; i < all->count; i++) {
        const struct drive *drive = &all->drives[i];
        (void)json_object_set_new(
            members, drive->member->name,
            json_pack("{s:s, s:s, s:s, s:b, s:O*}", "role", drive->primary ? "primary" : "standby",
                      "job", drive->job, "level", cluster_level_name(drive->level), "asked",
                      drive->asked, "verification", drive->verification));
        if (drive->primary && drive->verification)
            (void)json_object_set(journal, "verification", drive->verification);
    }
    (void)json_object_set_new(journal, "members", members);
}

int cluster_journal(struct cluster_restore *all, struct err *err)
{
    json_t *journal = all->job->journal;
    note_members(all);
    (void)json_object_set_new(journal, "epoch", json_integer((json_int_t)all->epoch));
    const char *step = step_of(all);
    if (!was_touched(all))
        (void)json_object_set_new(journal, "step", json_string(step));
    if (json_object_get(journal, "silent")) /* the phase says for whom everybody waits */
        return job_journal(all->job, NULL, NULL, err);
    return job_journal(all->job, NULL, strcmp(step, "none") == 0 ? "reserving" : step, err);
}

static void end_as(struct cluster_restore *all, const char *state)
{
    (void)json_object_set_new(all->job->journal, "state", json_string(state));
}

/* --- goals ------------------------------------------------------------------------------------ */

/* A node that could not be asked keeps its reservation, and with it this job is not over. */
static int release(struct cluster_restore *all, struct err *err)
{
    int rc = cluster_release(all, err);
    if (rc < 0 && !was_touched(all))
        (void)json_object_set_new(all->job->journal, "not_released", json_true());
    else
        (void)json_object_del(all->job->journal, "not_released");
    return rc;
}

/* Before anything was touched everything is given back; after it every node keeps its state, and
 * the job can be resumed. */
static int after_failure(struct cluster_restore *all, struct err *err)
{
    struct err ignored;
    /* What is being taken over stays as it is: the next try finds it so. */
    if (cluster_is_lost(all, err) || all->taking)
        return -(int)err->code;
    if (!was_touched(all)) {
        if (release(all, &ignored) < 0)
            return err_hint(
                err, "a node could not be given back and is asked again every minute: %.120s",
                ignored.text);
        return -(int)err->code;
    }
    size_t len = strlen(err->hint);
    note_members(all); /* with what the verification found */
    if (err->code == ERR_CANCELLED)
        (void)err_set(err, ERR_PARTIAL, "cancelled: the nodes are not finished");
    if (!strstr(err->hint, "tidemark cluster resume"))
        (void)snprintf(err->hint + len, sizeof(err->hint) - len,
                       "%sgo on with `tidemark cluster resume %s`", len ? "; " : "", all->job->id);
    return -(int)err->code;
}

static int prepare(struct cluster_restore *all, struct err *err)
{
    int rc = job_journal(all->job, NULL, "planning", err);
    if (rc == 0)
        rc = json_object_get(all->job->journal, "plan") ? cluster_load(all, err)
             : all->alone                               ? cluster_rejoin_plan(all, err)
                                                        : cluster_plan(all, err);
    if (rc == 0)
        rc = cluster_claim(all, err);
    bool checked = json_object_get(json_object_get(all->job->journal, "plan"), "warnings");
    if (rc == 0 && !checked && !was_touched(all))
        rc = cluster_look(all, err);
    if (rc == 0)
        cluster_archive_note(all, NULL, false);
    if (rc == 0)
        rc = cluster_drive(all, LEVEL_RESERVED, err);
    if (rc == 0 && !checked && !was_touched(all))
        rc = cluster_check_plan(all, err);
    return rc < 0 ? after_failure(all, err) : 0;
}

/* The journal says that old data may be gone before any is, in the repository first: what is lost
 * with this host's disk then is no more than this host. */
static int touch(struct cluster_restore *all, struct err *err)
{
    json_t *journal = all->job->journal;
    (void)json_object_set_new(journal, "step", json_string("pulling"));
    (void)json_object_set_new(journal, "touched", json_true());
    restore_test_stop("cluster-touching");
    int rc = cluster_archive_write(all, NULL, false, err);
    restore_test_stop("cluster-copied");
    if (rc < 0) {
        (void)err_prefix(err, "nothing was touched: before old data goes the journal has to be in "
                              "the repository, and could not be copied there");
        (void)err_hint(err, "make the repository reachable, then begin anew");
    }
    if (rc == 0)
        rc = job_journal(all->job, NULL, "pulling", err);
    if (rc < 0) {
        (void)json_object_set_new(journal, "step", json_string("fenced"));
        (void)json_object_del(journal, "touched");
    }
    return rc;
}

/* All are fenced before. */
static int execute(struct cluster_restore *all, enum cluster_level until, struct err *err)
{
    int rc = cluster_drive(all, LEVEL_FENCED, err);
    if (rc == 0 && !was_touched(all))
        rc = touch(all, err);
    else if (rc == 0) /* where the nodes are, of which a run that resumes has only heard now */
        rc = cluster_journal(all, err);
    if (rc == 0)
        rc = cluster_drive(all, LEVEL_RECOVERED, err);
    if (rc == 0 && until == LEVEL_COMPLETE)
        rc = cluster_check_history(all, err);
    if (rc == 0)
        rc = cluster_drive(all, until, err);
    if (rc < 0)
        return after_failure(all, err);
    all->complete = until == LEVEL_COMPLETE;
    return cluster_is_lost(all, err) ? -(int)err->code : 0; /* then another made it complete */
}

/* The server may be on its way to its target, or there. */
static bool may_write(const json_t *status)
{
    enum restore_step step = restore_step_from_name(json_str(status, "step"));
    bool asked = step == STEP_CONFIGURED && json_is_true(json_object_get(status, "running"));
    return asked || step >= STEP_RECOVERING;
}

/* Who does not answer is not given back either; what has no part any more stays as it is. Beside a
 * new primary no old server may start: the way on is to resume, and when that primary was given up,
 * so that there is none, a fence stays when its node is given up. */
static int check_release(struct cluster_restore *all, struct err *err)
{
    const char *writer = NULL, *fenced = NULL;
    bool given_up = false;
    for (size_t i = 0; i < all->count; i++) {
        const struct drive *drive = &all->drives[i];
        free_json json_t *status = NULL;
        char path[64];
        (void)snprintf(path, sizeof(path), "/jobs/%s", drive->job);
        int rc = drive->job[0]
                     ? cluster_call(&all->cluster, drive->member, "GET", path, NULL, &status, err)
                     : 0;
        if (rc < 0 && rc != -ERR_MISSING)
            return rc;
        if (drive->primary && may_write(status))
            writer = drive->member->name;
        given_up |= drive->primary && status && job_is_over(status);
        if (json_is(status, "step", "fenced") && !job_is_over(status))
            fenced = drive->member->name;
    }
    all->keep_fences = writer && given_up;
    if (!writer || !fenced || given_up)
        return 0;
    (void)err_set(err, ERR_REFUSED,
                  "node %s may accept writes already, and to give node %s back would start its old "
                  "server beside it",
                  writer, fenced);
    return err_hint(err, "go on with `tidemark cluster resume %s`", all->job->id);
}

static int run_abort(struct cluster_restore *all, struct err *err)
{
    /* What gives back needs no repository. */
    int rc = all->taking ? cluster_load(all, err) : cluster_load_drives(all, err);
    if (rc == 0 && all->taking)
        rc = cluster_claim(all, err);
    if (cluster_is_lost(all, err) || (rc < 0 && all->taking))
        return -(int)err->code;
    if (rc == 0 && was_touched(all))
        rc = check_release(all, err);
    if (rc == -ERR_REFUSED)
        return rc;
    if (rc == 0)
        rc = release(all, err);
    if (cluster_is_lost(all, err)) /* meanwhile */
        return -(int)err->code;
    if (rc < 0)
        return err_hint(err, "try again with `tidemark cluster abort %s`", all->job->id);
    if (!was_touched(all))
        return err_set(err, ERR_CANCELLED, "given up; nothing has changed");
    (void)json_object_set_new(all->job->journal, "given_up", json_true());
    (void)err_set(err, ERR_CANCELLED, "given up: the nodes' volumes are not usable");
    return err_hint(err, "restore a tag onto them with `tidemark cluster restore`");
}

static int run_goal(struct cluster_restore *all, struct err *err)
{
    const char *goal = all->job->goal;
    if (strcmp(goal, "abort") == 0)
        return run_abort(all, err);
    int rc = prepare(all, err);
    bool dry_run = cluster_is_dry_run(all);
    if (rc == 0 && dry_run) /* for lists: it is complete, but restored nothing */
        (void)json_object_set_new(all->job->journal, "dry_run", json_true());
    if (rc == 0 && (dry_run || strcmp(goal, "prepare") == 0)) {
        end_as(all, dry_run ? "complete" : "prepared");
        return 0;
    }
    bool to_the_end = strcmp(goal, "execute") != 0;
    if (rc == 0)
        rc = execute(all, to_the_end ? LEVEL_COMPLETE : LEVEL_RECOVERED, err);
    if (rc < 0)
        return rc;
    (void)json_object_set_new(all->job->journal, "step",
                              json_string(to_the_end ? "complete" : "verifying"));
    end_as(all, to_the_end ? "complete" : "executed");
    return 0;
}

/* The state that job_close() will write, for the last copy of this run. */
static const char *end_state(struct cluster_restore *all, int rc)
{
    const char *state = json_str(all->job->journal, "state");
    if (rc < 0)
        return rc == -ERR_CANCELLED ? "cancelled" : "failed";
    return strcmp(state, "running") == 0 ? "complete" : state;
}

static void tell_end(struct cluster_restore *all, int rc)
{
    if (!json_object_get(all->job->journal, "plan"))
        return;
    const char *state = end_state(all, rc);
    free_json json_t *ended = json_copy(all->job->journal);
    (void)json_object_set_new(ended, "state", json_string(state));
    cluster_archive_note(all, state, job_is_over(ended));
}

/* job_close() makes it the state "taken_over": nobody is told that a restore has failed which
 * another coordinator goes on with. */
static void note_lost(struct cluster_restore *all)
{
    json_t *journal = all->job->journal;
    (void)json_object_del(journal, "not_released");
    (void)json_object_set_new(journal, "taken_over", json_true());
}

static int run(struct cluster_restore *all, struct err *err)
{
    int rc = cluster_members(&all->job->conf, &all->cluster, err);
    if (rc == 0)
        rc = cluster_identify(all, err);
    if (rc == 0)
        rc = run_goal(all, err);
    if (all->lost)
        note_lost(all);
    else if (!all->taking)
        tell_end(all, rc);
    return rc;
}

int cluster_restore_run(struct job *job, struct err *err)
{
    static struct cluster_restore all; /* large; one a process */
    memset(&all, 0, sizeof(all));
    all.job = job;
    (void)json_object_del(job->journal, "silent");
    json_int_t epoch = json_integer_value(json_object_get(job->journal, "epoch"));
    all.epoch = epoch > 0 ? (uint64_t)epoch : 1;
    all.taking = json_is_true(json_object_get(job->journal, "taking"));
    all.alone = json_object_get(job->request, "rejoin") != NULL;
    (void)pthread_mutex_init(&all.copying, NULL);
    (void)pthread_mutex_init(&all.mutex, NULL);
    (void)pthread_cond_init(&all.changed, NULL);
    int rc = run(&all, err);
    json_decref(all.fork);
    for (size_t i = 0; i < all.count; i++) {
        json_decref(all.drives[i].node);
        json_decref(all.drives[i].plan);
        json_decref(all.drives[i].verification);
    }
    if (all.record_read)
        record_release(&all.record);
    (void)pthread_cond_destroy(&all.changed);
    (void)pthread_mutex_destroy(&all.mutex);
    (void)pthread_mutex_destroy(&all.copying);
    return rc;
}
