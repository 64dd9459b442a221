/* What a coordinator may ask of this node's part of a cluster restore, and when. The coordinator
 * has the plan of all nodes: a part goes on only as far as it is told, never by itself, and never
 * for somebody whose epoch is over. See job_rules.h. */
#include "agent/cluster_lock.h"
#include "agent/job_rules.h"
#include "agent/restore.h"

/* --- the epoch -------------------------------------------------------------------------------- */

static int refuse_stranger(const json_t *status, const json_t *call, struct err *err)
{
    static const char *const keys[] = {"epoch", "until",      "fork",
                                       "slots", "idle_slots", "primary_conninfo"};
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (json_object_get(call, keys[i]))
            return err_set(err, ERR_USAGE,
                           "field '%s': restore %s is not part of a cluster restore", keys[i],
                           json_str(status, "id"));
    return 0;
}

int job_cluster_admit(const struct conf *conf, const json_t *status, const char *verb,
                      const json_t *call, struct err *err)
{
    if (!job_is_cluster_part(status))
        return refuse_stranger(status, call, err);
    json_int_t epoch = json_integer_value(json_object_get(call, "epoch"));
    if (epoch > 0)
        return cluster_lock_renew(conf, json_str(status, "id"), (uint64_t)epoch, err);
    (void)err_set(err, ERR_REFUSED, "restore %s is one node's part of cluster restore %s",
                  json_str(status, "id"), json_str(json_object_get(status, "cluster"), "job"));
    return err_hint(err, "its coordinator alone can %s it: `tidemark cluster resume`", verb);
}

int job_cluster_admit_cancel(const struct conf *conf, const json_t *status,
                             const struct job_asker *asker, struct err *err)
{
    const char *id = json_str(status, "id"), *step = json_str(status, "step");
    bool planned = !step[0] || strcmp(step, "planned") == 0 || strcmp(step, "none") == 0;
    if (!job_is_cluster_part(status))
        return 0;
    if (asker->epoch)
        return cluster_lock_renew(conf, id, asker->epoch, err);
    if (!asker->remote && (asker->force || planned || job_is_over(status)))
        return 0;
    (void)err_set(err, ERR_REFUSED,
                  "restore %s is one node's part of cluster restore %s: other nodes may be past "
                  "their fence",
                  id, json_str(json_object_get(status, "cluster"), "job"));
    return err_hint(err,
                    "`tidemark cluster abort` on its coordinator ends all parts; `tidemark cancel "
                    "%s` on this node, which asks first, ends this one (argument force=1)",
                    id);
}

/* --- the state -------------------------------------------------------------------------------- */

/* A part that was killed, or failed and kept what it had, does its step again. */
static bool can_execute(const json_t *status)
{
    bool touched = job_is_partial(status) || json_is(status, "step", "fenced");
    if (json_is(status, "state", "prepared") || json_is(status, "state", "held"))
        return true;
    if (json_is(status, "state", "interrupted"))
        return touched;
    return json_is(status, "state", "failed") && !job_is_over(status);
}

const char *job_cluster_goal(const json_t *status, const char *verb)
{
    bool up = json_is(status, "step", "verifying");
    if (strcmp(verb, "execute") == 0)
        return can_execute(status) ? "execute" : NULL;
    if (strcmp(verb, "execute and verify") == 0)
        return can_execute(status) ? "all" : NULL;
    if (strcmp(verb, "verify") == 0)
        return up && (json_is(status, "state", "executed") || can_execute(status)) ? "verify"
                                                                                   : NULL;
    return NULL;
}

int job_cluster_check_until(const json_t *status, const json_t *call, struct err *err)
{
    const char *until = json_string_value(json_object_get(call, "until"));
    enum restore_step step = restore_step_from_name(json_str(status, "step"));
    enum restore_step last = restore_hold_step(until);
    bool standby = json_is(json_object_get(status, "cluster"), "role", "standby");
    bool recovers = last >= STEP_RECOVERING && step < STEP_VERIFYING;
    /* Killed between the last step and its hold: the same call again is fine. */
    bool again = last == STEP_RECOVERING && step == STEP_VERIFYING;
    if (until && step > last && !again)
        return err_set(err, ERR_REFUSED, "restore %s is past '%s' already: it is in step %s",
                       json_str(status, "id"), until, json_str(status, "step"));
    if (!job_is_cluster_part(status) || !recovers)
        return 0;
    const json_t *fork = json_object_get(call, "fork");
    struct restore_fork parsed;
    if (fork && standby)
        return restore_fork_parse(fork, ERR_USAGE, &parsed, err);
    if (standby)
        return err_set(err, ERR_USAGE,
                       "field 'fork' is missing: a standby has to know where its primary's new "
                       "timeline begins");
    return 0;
}
