/* One node through the waves: a thread a node, which asks its agent for one step after the other
 * and waits at the barriers for the other nodes. What an agent's job says is believed, what the
 * journal says about it is only a memory: a coordinator that was killed goes on from the agents'
 * answers. */
#include "agent/cluster.h"
#include "agent/cluster_archive.h"
#include "agent/log.h"
#include "agent/restore.h"

#include <stdio.h>

/* --- barriers --------------------------------------------------------------------------------- */

static bool have_reached(const struct cluster_restore *all, enum cluster_level level,
                         bool primary_only)
{
    for (size_t i = 0; i < all->count; i++)
        if (all->drives[i].level < level && (all->drives[i].primary || !primary_only))
            return false;
    return true;
}

static void reach(struct drive *drive, enum cluster_level level)
{
    struct cluster_restore *all = drive->all;
    struct err err;
    char point[32];
    (void)pthread_mutex_lock(&all->mutex);
    drive->level = level;
    if (cluster_journal(all, &err) < 0)
        log_warn("cluster restore: journal not written: %s", err.text);
    log_info("cluster restore: job=%s node=%s level=%s", all->job->id, drive->member->name,
             cluster_level_name(level));
    /* Before the pull and at the end there is a copy anyhow. */
    bool copy = have_reached(all, level, false) && level != LEVEL_FENCED && level < LEVEL_COMPLETE;
    copy |= drive->primary && level == LEVEL_RECOVERED; /* nodes that are left out look for that */
    (void)pthread_cond_broadcast(&all->changed);
    (void)pthread_mutex_unlock(&all->mutex);
    if (copy)
        cluster_archive_note(all, NULL, false);
    (void)snprintf(point, sizeof(point), "cluster-%s", cluster_level_name(level));
    restore_test_stop(point);
}

static void stop_all(struct cluster_restore *all)
{
    (void)pthread_mutex_lock(&all->mutex);
    all->stop = true;
    (void)pthread_cond_broadcast(&all->changed);
    (void)pthread_mutex_unlock(&all->mutex);
}

/* ERR_CANCELLED when another node failed meanwhile: this one is not at fault. */
static int await(struct drive *drive, enum cluster_level level, bool primary_only, struct err *err)
{
    struct cluster_restore *all = drive->all;
    (void)pthread_mutex_lock(&all->mutex);
    while (!all->stop && !have_reached(all, level, primary_only))
        (void)pthread_cond_wait(&all->changed, &all->mutex);
    bool stop = all->stop;
    (void)pthread_mutex_unlock(&all->mutex);
    return stop ? err_set(err, ERR_CANCELLED, "another node failed") : 0;
}

/* --- the waves -------------------------------------------------------------------------------- */

static json_t *reservation(const struct drive *drive)
{
    const struct cluster_restore *all = drive->all;
    const json_t *request = all->job->request;
    static const char *const passed[] = {"target", "target_timeline", "discard_unarchived_wal",
                                         "delta",  "dry_run",         NULL};
    static const char *const of_primary[] = {"verify", "reindex", NULL};
    char snapshot[ID_TEXT_LEN];
    id_to_text(all->record.id, snapshot); /* the journal is the other threads' as well */
    json_t *body =
        json_pack("{s:s, s:{s:s, s:I, s:s}}", "snapshot", snapshot, "cluster", "job", all->job->id,
                  "epoch", (json_int_t)all->epoch, "role", drive->primary ? "primary" : "standby");
    for (size_t i = 0; passed[i]; i++)
        if (json_object_get(request, passed[i]))
            (void)json_object_set(body, passed[i], json_object_get(request, passed[i]));
    if (!drive->primary) {
        char why[CONF_NAME_MAX + 64];
        bool can_try = !cluster_untried(all, why, sizeof(why));
        (void)json_object_set_new(body, "primary_conninfo", json_string(drive->conninfo));
        (void)json_object_set_new(body, "try_primary", json_boolean(can_try));
        (void)json_object_set_new(body, "verify", json_string("quick"));
    }
    if (!drive->primary && drive->slot[0])
        (void)json_object_set_new(body, "primary_slot", json_string(drive->slot));
    for (size_t i = 0; drive->primary && of_primary[i]; i++)
        if (json_object_get(request, of_primary[i]))
            (void)json_object_set(body, of_primary[i], json_object_get(request, of_primary[i]));
    return body;
}

/* The volumes that the agent's own configuration names are meant, whatever they hold: a standby's
 * filesystem is another than the snapshot's. Not mounted, they have to be blank or known. */
static int name_volumes(struct drive *drive, json_t *body, struct err *err)
{
    free_json json_t *node = json_incref(drive->node);
    size_t i;
    json_t *volume;
    int rc = node ? 0 : cluster_ask(drive, ASK_UNLESS_CANCELLED, "GET", "/node", NULL, &node, err);
    if (rc < 0)
        return rc;
    json_t *overwrite = json_object();
    json_array_foreach(json_object_get(node, "volumes"), i, volume)
    {
        json_t *identity = json_object_get(volume, "identity");
        if (json_is_true(json_object_get(volume, "mounted")) && identity)
            (void)json_object_set(overwrite, json_str(volume, "name"), identity);
    }
    (void)json_object_set_new(body, "overwrite", overwrite);
    return 0;
}

static int reserve(struct drive *drive, struct err *err)
{
    free_json json_t *body = reservation(drive);
    free_json json_t *status = NULL;
    int rc = name_volumes(drive, body, err);
    if (rc == 0)
        rc = cluster_ask_reserve(drive, body, err);
    if (rc == 0)
        rc = cluster_ask_job(drive, ASK_UNLESS_CANCELLED, &status, err);
    if (rc == 0 && cluster_level_of(status) < LEVEL_RESERVED)
        rc = cluster_job_error(drive, status, err);
    return rc;
}

static int execute(struct drive *drive, enum cluster_level until, json_t **ret, struct err *err)
{
    free_json json_t *body = json_pack("{s:s}", "until", cluster_level_name(until));
    if (!drive->primary && until == LEVEL_RECOVERED) {
        (void)json_object_set(body, "fork", drive->all->fork);
        if (drive->conninfo[0])
            (void)json_object_set_new(body, "primary_conninfo", json_string(drive->conninfo));
    }
    if (drive->primary && until == LEVEL_RECOVERED) {
        (void)json_object_set_new(body, "slots", cluster_used_slots(drive->all));
        (void)json_object_set_new(body, "idle_slots", cluster_idle_slots(drive->all));
    }
    return cluster_ask_step(drive, "execute", body, until, ret, err);
}

/* Where the new timeline begins, for the standbys. */
static int publish_fork(struct drive *drive, const json_t *status, struct err *err)
{
    struct cluster_restore *all = drive->all;
    json_t *fork = json_object_get(status, "fork");
    if (!json_is_object(fork))
        return err_set(err, ERR_INTERNAL, "node %s does not say where its timeline begins",
                       drive->member->name);
    (void)pthread_mutex_lock(&all->mutex);
    json_decref(all->fork);
    all->fork = json_incref(fork);
    (void)json_object_set(all->job->journal, "fork", all->fork);
    (void)pthread_mutex_unlock(&all->mutex);
    return 0;
}

/* Where the agent says that the node is; a job that stopped on the way is asked to go on. */
static int look(struct drive *drive, struct err *err)
{
    free_json json_t *status = NULL;
    if (!drive->job[0])
        return 0;
    int rc = cluster_ask_job(drive, ASK_UNLESS_CANCELLED, &status, err);
    if (rc < 0)
        return rc;
    enum cluster_level level = cluster_level_of(status);
    if (drive->primary && level < LEVEL_RECOVERED && drive->all->fork)
        rc = cluster_forget_fork(drive->all, err); /* somebody gave the promoted server up */
    if (rc < 0)
        return rc;
    /* Before the level: nobody waits for a fork that is not there yet. */
    if (drive->primary && level >= LEVEL_RECOVERED && !drive->all->fork)
        rc = publish_fork(drive, status, err);
    (void)pthread_mutex_lock(&drive->all->mutex);
    drive->level = level;
    (void)pthread_cond_broadcast(&drive->all->changed);
    (void)pthread_mutex_unlock(&drive->all->mutex);
    return rc;
}

static int go_to(struct drive *drive, enum cluster_level level, struct err *err)
{
    free_json json_t *status = NULL;
    free_json json_t *none = json_object();
    int rc = 0;
    if (level == LEVEL_RESERVED)
        rc = reserve(drive, err);
    else if (level == LEVEL_COMPLETE)
        rc = cluster_ask_step(drive, "verify", none, level, NULL, err);
    else
        rc = execute(drive, level, &status, err);
    if (rc == 0 && level == LEVEL_RECOVERED && drive->primary)
        rc = publish_fork(drive, status, err);
    if (rc == 0)
        reach(drive, level);
    return rc;
}

/* The first node, by name, alone: of two coordinators one fails there, before it holds anything. */
static int barrier(struct drive *drive, enum cluster_level next, struct err *err)
{
    struct cluster_restore *all = drive->all;
    if (next == LEVEL_RESERVED) {
        int rc = 0;
        (void)pthread_mutex_lock(&all->mutex);
        while (!all->stop && drive != all->drives && all->drives[0].level < LEVEL_RESERVED)
            (void)pthread_cond_wait(&all->changed, &all->mutex);
        if (all->stop)
            rc = err_set(err, ERR_CANCELLED, "another node failed");
        (void)pthread_mutex_unlock(&all->mutex);
        return rc;
    }
    if (next == LEVEL_CONFIGURED) /* from here on the old data goes */
        return await(drive, LEVEL_FENCED, false, err);
    if (next == LEVEL_RECOVERED)
        return drive->primary ? await(drive, LEVEL_FENCED, false, err)
                              : await(drive, LEVEL_RECOVERED, true, err);
    /* The primary's verdict first: until then the standbys are nobody else's. */
    if (next == LEVEL_COMPLETE && !drive->primary)
        return await(drive, LEVEL_COMPLETE, true, err);
    return await(drive, (enum cluster_level)(next - 1), false, err);
}

struct run {
    struct drive *drive;
    enum cluster_level until;
};

static void *drive_main(void *ctx)
{
    struct run *run = ctx;
    struct drive *drive = run->drive;
    int rc = look(drive, &drive->err);
    /* Its server may have ended since, or get another primary_conninfo: the same step again sees to
     * that, before a standby has to follow it, or the history is looked at. */
    if (rc == 0 && drive->level == LEVEL_RECOVERED && run->until >= LEVEL_RECOVERED)
        rc = go_to(drive, LEVEL_RECOVERED, &drive->err);
    while (rc == 0 && drive->level < run->until) {
        enum cluster_level next = (enum cluster_level)(drive->level + 1);
        rc = barrier(drive, next, &drive->err);
        if (rc == 0)
            rc = go_to(drive, next, &drive->err);
    }
    drive->failed = rc < 0;
    if (rc < 0)
        stop_all(drive->all);
    return NULL;
}

/* The cause, not its echo in the nodes that waited. */
static int first_error(const struct cluster_restore *all, struct err *err)
{
    const struct drive *found = NULL;
    for (size_t i = 0; i < all->count; i++) {
        const struct drive *drive = &all->drives[i];
        if (drive->failed &&
            (!found || (found->err.code == ERR_CANCELLED && drive->err.code != ERR_CANCELLED)))
            found = drive;
    }
    if (!found)
        return 0;
    *err = found->err;
    return -(int)err->code;
}

int cluster_drive(struct cluster_restore *all, enum cluster_level level, struct err *err)
{
    struct run runs[CLUSTER_MEMBERS_MAX];
    bool started[CLUSTER_MEMBERS_MAX];
    all->stop = false;
    for (size_t i = 0; i < all->count; i++) {
        runs[i] = (struct run){.drive = &all->drives[i], .until = level};
        all->drives[i].failed = false;
        err_clear(&all->drives[i].err);
        started[i] = pthread_create(&all->drives[i].thread, NULL, drive_main, &runs[i]) == 0;
        if (!started[i]) {
            all->drives[i].failed = true;
            (void)err_set(&all->drives[i].err, ERR_INTERNAL, "start a thread");
            stop_all(all);
        }
    }
    for (size_t i = 0; i < all->count; i++)
        if (started[i])
            (void)pthread_join(all->drives[i].thread, NULL);
    return first_error(all, err);
}

/* --- giving back ------------------------------------------------------------------------------ */

/* A job that runs is only stopped by the first request: what it keeps is given up by the second. */
static int release_one(struct drive *drive, enum cluster_patience patience, struct err *err)
{
    char path[96];
    int rc = cluster_ask_late(drive, patience, err);
    (void)snprintf(path, sizeof(path), "/jobs/%s?epoch=%llu%s", drive->job,
                   (unsigned long long)drive->all->epoch,
                   drive->all->keep_fences ? "&keep_fence=1" : "");
    for (unsigned tries = 0; rc == 0 && drive->job[0] && tries < 2; tries++) {
        free_json json_t *answer = NULL;
        free_json json_t *status = NULL;
        rc = cluster_ask(drive, patience, "DELETE", path, NULL, &answer, err);
        if (rc == -ERR_REFUSED) /* it has ended by itself, or is another coordinator's */
            return 0;
        if (rc == 0 || rc == -ERR_MISSING) /* no such job, or it ends at this moment */
            rc = cluster_ask_job(drive, ASK_ALWAYS, &status, err);
        if (rc == -ERR_MISSING || (rc == 0 && job_is_over(status)))
            return 0;
        if (rc == 0 && tries > 0)
            rc = cluster_job_error(drive, status, err);
    }
    return rc;
}

struct giving {
    struct drive *drive;
    bool again; /* it did not answer, and was not waited for before */
    bool started;
    int rc;
};

static void *give_back_main(void *ctx)
{
    struct giving *giving = ctx;
    giving->rc = release_one(giving->drive, ASK_ALWAYS, &giving->drive->err);
    return NULL;
}

/* All at the same time: one that stays away delays none that comes back. */
static void wait_for_silent(struct giving *givings, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct giving *giving = &givings[i];
        if (!giving->again)
            continue;
        giving->started = pthread_create(&giving->drive->thread, NULL, give_back_main, giving) == 0;
        if (!giving->started)
            (void)give_back_main(giving);
    }
    for (size_t i = 0; i < count; i++)
        if (givings[i].started)
            (void)pthread_join(givings[i].drive->thread, NULL);
}

/* All are asked before any is waited for, and one that was waited for in vain not once more. */
int cluster_release(struct cluster_restore *all, struct err *err)
{
    struct giving givings[CLUSTER_MEMBERS_MAX] = {0};
    struct err why;
    int rc = 0;
    for (size_t i = all->count; i-- > 0;) {
        struct drive *drive = &all->drives[i];
        bool waited = drive->waited;
        givings[i].drive = drive;
        givings[i].rc = release_one(drive, ASK_ONCE, &why);
        if (givings[i].rc == 0)
            continue;
        drive->err = why;
        givings[i].again = drive->silent && !waited;
    }
    wait_for_silent(givings, all->count);
    for (size_t i = all->count; i-- > 0;) {
        if (givings[i].rc == 0)
            continue;
        log_warn("cluster restore: not given back: %s", all->drives[i].err.text);
        *err = all->drives[i].err;
        rc = givings[i].rc;
    }
    return rc;
}
