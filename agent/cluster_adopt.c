/* Taking a cluster restore over from another coordinator: its newest copy in the repository becomes
 * a job of ours, with the same id and the next epoch. The job's process does the rest, see
 * cluster_claim.c. */
#include <stdio.h>

#include "agent/clock.h"
#include "agent/cluster.h"
#include "agent/cluster_archive.h"
#include "agent/log.h"

enum { SILENT_MS = 5000, LOOK_MS = 500 }; /* a coordinator asks every second, at least */

/* What cannot be taken over, whoever asks. */
static int check(const json_t *copy, const struct cluster_copy_id *id, const char *goal,
                 struct err *err)
{
    const char *state = json_str(copy, "state");
    bool over = id->number == CLUSTER_COPY_OVER;
    if (over) {
        (void)err_set(err, ERR_REFUSED, "cluster restore %s is over: %s, by coordinator %s",
                      id->job, state, json_str(copy, "coordinator"));
        return err_hint(err, "`tidemark cluster status` shows how the nodes are");
    }
    if (strcmp(state, "prepared") == 0 && strcmp(goal, "abort") != 0) {
        (void)err_set(err, ERR_REFUSED,
                      "nobody has agreed to the plan of cluster restore %s yet: coordinator %s "
                      "waits for an answer",
                      id->job, json_str(copy, "coordinator"));
        return err_hint(err,
                        "give it back with `tidemark cluster abort %s`, then begin anew with "
                        "`tidemark cluster restore`",
                        id->job);
    }
    if (id->epoch == UINT32_MAX)
        return err_set(err, ERR_REFUSED, "cluster restore %s has the last epoch there is", id->job);
    return 0;
}

/* Who runs it asks its agents again and again, and has not asked for SILENT_MS when it is gone. Not
 * every moment of it: epochs keep two apart, this keeps a person from doing so by accident. */
static int check_silence(const struct conf *conf, const json_t *copy,
                         const struct cluster_copy_id *id, struct err *err)
{
    struct cluster cluster;
    uint64_t begun_ms = now_ms();
    int rc = cluster_members(conf, &cluster, err);
    while (rc == 0) {
        uint64_t asked_ms = now_ms();
        free_json json_t *status = cluster_status(&cluster);
        const json_t *by =
            cluster_last_heard(json_object_get(status, "members"), id->job, id->epoch);
        const json_t *ago = json_object_get(json_object_get(by, "reservation"), "heard_ago_ms");
        uint64_t ago_ms = (uint64_t)json_integer_value(ago);
        if (!by || ago_ms >= SILENT_MS)
            return 0;
        if (asked_ms > begun_ms + ago_ms) {
            (void)err_set(err, ERR_REFUSED,
                          "coordinator %s is at work on cluster restore %s: it has just asked "
                          "node %s",
                          json_str(copy, "coordinator"), id->job, json_str(by, "name"));
            return err_hint(err,
                            "let it go on; if it has to go on from here, `tidemark cluster resume "
                            "--take-over %s`",
                            id->job);
        }
        pause_ms(LOOK_MS);
    }
    return rc;
}

/* The journal as if our own process had been killed. */
static json_t *journal_of(const json_t *copy, const struct cluster_copy_id *id)
{
    const json_t *plan = json_object_get(copy, "plan");
    json_t *members = json_object(), *journal;
    size_t i;
    json_t *member;
    json_array_foreach(json_object_get(plan, "members"), i, member)
    {
        (void)json_object_set_new(
            members, json_str(member, "name"),
            json_pack("{s:s, s:s, s:s, s:b}", "role", json_str(member, "role"), "job",
                      json_str(member, "job"), "level", json_str(member, "level"), "asked",
                      json_str(member, "job")[0] != '\0'));
    }
    journal = json_pack("{s:s, s:s, s:s, s:I, s:b, s:O, s:O, s:o, s:{s:s, s:I, s:O}}", "state",
                        "running", "phase", "taking over", "step", json_str(copy, "step"), "epoch",
                        (json_int_t)id->epoch + 1, "taking", 1, "snapshot",
                        json_object_get(plan, "snapshot"), "plan", plan, "members", members,
                        "taken_from", "coordinator", json_str(copy, "coordinator"), "epoch",
                        (json_int_t)id->epoch, "written_s", json_object_get(copy, "written_s"));
    if (json_is_true(json_object_get(copy, "touched")))
        (void)json_object_set_new(journal, "touched", json_true());
    if (json_object_get(copy, "fork"))
        (void)json_object_set(journal, "fork", json_object_get(copy, "fork"));
    return journal;
}

static int start(const struct conf *conf, const char *id, const json_t *copy, json_t *journal,
                 const char *goal, struct err *err)
{
    char dir[JOB_DIR_MAX];
    int pid;
    job_dir(conf, id, dir);
    if (job_is_running(dir, NULL))
        return job_is_busy(id, err);
    job_discard(conf, id); /* what we had of it before it was taken over */
    int rc = job_create_as(conf, id, json_object_get(copy, "request"), journal, err);
    if (rc < 0)
        return rc;
    if (strcmp(goal, "abort") != 0)
        rc = job_renew_conf(conf, id, err);
    if (rc == 0)
        rc = job_set_goal(conf, id, goal, NULL, err);
    if (rc == 0)
        rc = job_start(dir, &pid, err);
    if (rc < 0)
        job_discard(conf, id);
    return rc;
}

int cluster_adopt(const struct conf *conf, const char *job, const struct cluster_adoption *how,
                  pthread_mutex_t *mutex, char ret_id[ID_TEXT_LEN], struct err *err)
{
    struct cluster_copy_id id;
    free_json json_t *copy = NULL;
    int rc = cluster_archive_find(conf, job, &id, &copy, err);
    if (rc == 0)
        rc = check(copy, &id, how->goal, err);
    if (rc == 0 && json_is(copy, "state", "running") && strcmp(how->goal, "abort") != 0 &&
        !how->insist)
        rc = check_silence(conf, copy, &id, err);
    if (rc < 0)
        return rc;
    free_json json_t *journal = journal_of(copy, &id);
    if (!journal)
        return err_set(err, ERR_INTERNAL, "the journal of job %s", id.job);
    if (mutex)
        (void)pthread_mutex_lock(mutex);
    rc = start(conf, id.job, copy, journal, how->goal, err);
    if (mutex)
        (void)pthread_mutex_unlock(mutex);
    if (rc < 0)
        return rc;
    log_info("cluster restore is taken over: job=%s epoch=%u from=\"%s\" goal=%s", id.job,
             id.epoch + 1, json_str(copy, "coordinator"), how->goal);
    (void)snprintf(ret_id, ID_TEXT_LEN, "%s", id.job);
    return 0;
}
