/* Before anything is reserved: what the nodes say of themselves. See cluster.h. */
#include "agent/cluster.h"
#include "agent/clock.h"

#include <stdio.h>

/* An agent that restarts is back by then; a host that is off will not be. */
enum { LOOK_MAX_MS = 10000, POLL_MS = 500 };

static bool is_silence(int rc)
{
    return rc == -ERR_DEVICE || rc == -ERR_STORE;
}

static int ask_again(struct drive *drive, uint64_t until_ms, struct err *err)
{
    const struct cluster_restore *all = drive->all;
    int rc = -(int)err->code;
    while (is_silence(rc) && now_ms() < until_ms) {
        pause_ms(POLL_MS);
        if (job_check_cancel(all->job, err) < 0)
            return -(int)err->code;
        rc = cluster_call_within(&all->cluster, drive->member, CLUSTER_ANSWER_S, "GET", "/node",
                                 NULL, &drive->node, err);
    }
    return rc;
}

static int unreachable(const struct drive *drive, struct err *err)
{
    if (drive->all->alone)
        return err_hint(err, "nothing was touched; is its host up, and its agent started?");
    return err_hint(err,
                    "nothing was touched; start its agent, or restore without the node: "
                    "--without-node=%s%s",
                    drive->recorded, drive->primary ? ", and --primary=MEMBER" : "");
}

int cluster_look(struct cluster_restore *all, struct err *err)
{
    json_t *answers[CLUSTER_MEMBERS_MAX];
    struct err errs[CLUSTER_MEMBERS_MAX];
    uint64_t max_ms = min_u64(LOOK_MAX_MS, all->job->conf.coordinator_agent_timeout_s * 1000ull);
    uint64_t until_ms = now_ms() + max_ms;
    int rc = 0;
    cluster_call_all(&all->cluster, "GET", "/node", answers, errs);
    for (size_t i = 0; i < all->cluster.count; i++)
        all->unseen[i] = !answers[i];
    for (size_t i = 0; i < all->count; i++) {
        struct drive *drive = &all->drives[i];
        size_t index = (size_t)(drive->member - all->cluster.members);
        json_decref(drive->node);
        drive->node = json_incref(answers[index]);
        if (rc < 0 || drive->node)
            continue;
        *err = errs[index];
        rc = ask_again(drive, until_ms, err);
        if (is_silence(rc))
            (void)unreachable(drive, err);
    }
    for (size_t i = 0; i < all->cluster.count; i++)
        json_decref(answers[i]);
    return rc;
}

const char *cluster_untried(const struct cluster_restore *all, char *text, size_t size)
{
    const struct drive *primary = NULL;
    for (size_t i = 0; i < all->count; i++)
        if (all->drives[i].primary)
            primary = &all->drives[i];
    if (!primary) /* a node rejoins: whom it follows is known to run */
        return NULL;
    if (json_is(primary->node, "role", "primary"))
        return NULL;
    bool standby = json_is(primary->node, "role", "standby");
    (void)snprintf(text, size, standby ? "%s is a standby now" : "the server of %s does not run",
                   primary->member->name);
    return text;
}
