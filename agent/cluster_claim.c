/* Who has a cluster restore: the coordinator whose epoch every agent knows. One that takes it over
 * chooses the next epoch, says so in the repository, and then has every agent make it durable, in
 * the order of the nodes' names: of two that take it over at once, one finds the first agent taken.
 * From then on the agents refuse whoever had it before. See cluster.h. */
#include <stdio.h>
#include <unistd.h>

#include "agent/cluster.h"
#include "agent/cluster_archive.h"
#include "agent/log.h"
#include "agent/restore.h"

int cluster_identify(struct cluster_restore *all, struct err *err)
{
    char host[64] = "";
    uint8_t id[ID_LEN];
    json_t *journal = all->job->journal;
    (void)gethostname(host, sizeof(host) - 1);
    (void)snprintf(all->coordinator, sizeof(all->coordinator), "%s on %s", all->job->conf.node,
                   host[0] ? host : "an unnamed host");
    (void)snprintf(all->token, sizeof(all->token), "%.32s", json_str(journal, "token"));
    if (id_from_text(all->token, id))
        return 0;
    int rc = id_random(id, err);
    if (rc < 0)
        return rc;
    id_to_text(id, all->token);
    (void)json_object_set_new(journal, "token", json_string(all->token));
    return 0;
}

/* The agent's answer in the words of our job. */
static int judge(struct cluster_restore *all, struct drive *drive, const json_t *answer,
                 struct err *err)
{
    const char *who = json_str(answer, "coordinator"), *job = json_str(answer, "job");
    bool same = strcmp(job, all->job->id) == 0;
    if (json_is(answer, "claim", "granted")) {
        if (all->taking) { /* the copy may be from before it was reserved */
            (void)snprintf(drive->job, sizeof(drive->job), "%.32s", json_str(answer, "restore"));
            drive->asked = drive->job[0] != '\0';
        }
        return 0;
    }
    if (json_is(answer, "claim", "busy")) {
        (void)err_set(err, ERR_BUSY, "node %s is reserved by cluster restore %.32s",
                      drive->member->name, job);
        return err_hint(err, "finish that one first, or give it up with `tidemark cluster abort`");
    }
    if (all->complete && !same)
        return 0;
    all->lost = true;
    if (!same) {
        (void)err_set(err, ERR_REFUSED,
                      "cluster restore %s is over on node %s: cluster restore %.32s came after it",
                      all->job->id, drive->member->name, job);
        return err_hint(err, "`tidemark cluster status` shows how the nodes are");
    }
    (void)err_set(err, ERR_REFUSED,
                  "cluster restore %s was taken over by coordinator %s: node %s has epoch %lld, "
                  "ours is %llu",
                  all->job->id, who[0] ? who : "(not known)", drive->member->name,
                  (long long)json_integer_value(json_object_get(answer, "epoch")),
                  (unsigned long long)all->epoch);
    return err_hint(err, "%s%s has it now; `tidemark cluster resume %s` here would take it (back)",
                    who[0] ? "coordinator " : "another coordinator", who, all->job->id);
}

static int claim_one(struct cluster_restore *all, struct drive *drive,
                     enum cluster_patience patience, struct err *err)
{
    free_json json_t *body =
        json_pack("{s:s, s:I, s:s, s:s}", "job", all->job->id, "epoch", (json_int_t)all->epoch,
                  "token", all->token, "coordinator", all->coordinator);
    free_json json_t *answer = NULL;
    int rc = cluster_ask(drive, patience, "POST", "/node/claim", body, &answer, err);
    return rc < 0 ? rc : judge(all, drive, answer, err);
}

/* Its agent may have a part of ours, of which the answer never came. */
static bool is_asked(const struct drive *drive)
{
    return drive->job[0] || drive->asked;
}

static int claim_all(struct cluster_restore *all, struct err *err)
{
    for (size_t i = 0; i < all->count; i++) {
        struct drive *drive = &all->drives[i];
        if (!is_asked(drive) && !all->taking)
            continue;
        int rc = claim_one(all, drive, ASK_UNLESS_CANCELLED, err);
        if (rc < 0)
            return rc;
        restore_test_stop("cluster-claimed");
    }
    return 0;
}

/* Whoever had it may have gone on while we began, but not without a copy that says so, and no
 * longer, now that all agents know our epoch. */
static int look_touched(struct cluster_restore *all, struct err *err)
{
    bool touched = false;
    int rc = cluster_archive_touched(all, &touched, err);
    if (rc == 0 && touched) {
        (void)json_object_set_new(all->job->journal, "step", json_string("pulling"));
        (void)json_object_set_new(all->job->journal, "touched", json_true());
    }
    return rc;
}

/* The copy comes first: no agent knows an epoch that the repository does not, so whoever comes next
 * chooses a higher one. */
static int take_over(struct cluster_restore *all, struct err *err)
{
    int rc = job_journal(all->job, NULL, "taking over", err);
    if (rc == 0)
        rc = cluster_archive_write(all, NULL, false, err);
    restore_test_stop("cluster-taking");
    if (rc == 0)
        rc = claim_all(all, err);
    if (rc == 0)
        rc = look_touched(all, err);
    if (rc < 0 && !all->lost)
        return err_hint(err,
                        "the takeover needs an answer of every node and the repository; try again "
                        "with `tidemark cluster resume %s`",
                        all->job->id);
    if (rc < 0)
        return rc;
    log_info("cluster restore taken over: job=%s epoch=%llu", all->job->id,
             (unsigned long long)all->epoch);
    (void)json_object_del(all->job->journal, "taking");
    all->taking = false;
    (void)pthread_mutex_lock(&all->mutex);
    rc = cluster_journal(all, err);
    (void)pthread_mutex_unlock(&all->mutex);
    return rc;
}

int cluster_claim(struct cluster_restore *all, struct err *err)
{
    return all->taking ? take_over(all, err) : claim_all(all, err);
}

bool cluster_is_lost(struct cluster_restore *all, struct err *err)
{
    struct err why;
    if (cluster_is_dry_run(all))
        return false;
    for (size_t i = 0; !all->lost && i < all->count; i++) {
        struct drive *drive = &all->drives[i];
        if (!is_asked(drive) || drive->waited) /* once more in vain: ten seconds a node */
            continue;
        if (claim_one(all, drive, ASK_ONCE, &why) < 0 && all->lost)
            *err = why;
    }
    return all->lost;
}
