/* What may be done with a job in which state: cancelling, going on, cleaning up after a death, and
 * what all jobs together say about the health of the node. The same for the agent and for a command
 * line without one. Callers serialise calls within a process. */
#ifndef TIDEMARK_AGENT_JOB_RULES_H
#define TIDEMARK_AGENT_JOB_RULES_H

#include "agent/job.h"

/* Starts a new run of restore `id` for "execute", "verify" or "resume". ERR_MISSING, ERR_BUSY,
 * ERR_REFUSED when the job's state does not allow it. resume of a restore that never reached
 * `marked` lifts its fence and ends as cancelled (goal "abort"): the old server may have run. */
int job_continue(const struct conf *conf, const char *id, const char *verb, int *ret_pid,
                 struct err *err);

/* Cancels: a running job gets SIGTERM; one that only waits ends at once; a fenced restore runs once
 * more to lift its fence; an unfinished restore past `marked` is given up (its volumes stay marked
 * and unusable until another restore). *ret_done: it has ended already. */
int job_request_cancel(const struct conf *conf, const char *id, bool *ret_done, struct err *err);

/* Ends what died: interrupted snapshots and verifications become failed, interrupted restores
 * before `marked` are cancelled (the fence is lifted). With resume, interrupted restores past
 * `marked` go on. Logs what it does. */
void job_sweep(const struct conf *conf, bool resume);

struct health {
    const char *status;    /* "ok", "restoring", "partial", "recovering", "failed" */
    char job[ID_TEXT_LEN]; /* the restore that says so; "" when ok */
    char step[32];
    bool given_up; /* it cannot be resumed: another restore has to be made */
};
/* Never fails: a state_dir that cannot be read is "failed". */
void job_health(const struct conf *conf, struct health *ret);

#endif
