/* What may be done with a job in which state: cancelling, going on, cleaning up after a death, and
 * what all jobs together say about the health of the node. The same for the agent and for a command
 * line without one. Callers serialise calls within a process. */
#ifndef TIDEMARK_AGENT_JOB_RULES_H
#define TIDEMARK_AGENT_JOB_RULES_H

#include "agent/job.h"

/* Who asks for an end. */
struct job_asker {
    uint64_t epoch;  /* of a coordinator; 0 = it has none, or a person asks */
    bool remote;     /* through the TCP port, where the certificate of any coordinator is let in */
    bool force;      /* a person who was told what it means for the other nodes */
    bool keep_fence; /* what is fenced is given up as it is: its old server does not start */
};

/* Starts a new run of restore `id` for "execute", "verify" or "resume". call: the body of the
 * request, may be NULL. ERR_MISSING, ERR_BUSY,
 * ERR_REFUSED when the job's state does not allow it. resume of a restore that never reached
 * `marked` lifts its fence and ends as cancelled (goal "abort"): the old server may have run. */
int job_continue(const struct conf *conf, const char *id, const char *verb, const json_t *call,
                 int *ret_pid, struct err *err);

/* Starts a new run of a verification that was cut off: it goes on where it was. */
int job_resume_verification(const struct conf *conf, const char *id, struct err *err);

/* The part of job_continue() that is about cluster restores (job_cluster.c). A call about one of
 * their parts has the epoch of its coordinator, which is checked and, when it is a new one, made
 * durable even if the job is busy; a call about another restore has nothing of a cluster in it.
 * ERR_USAGE, ERR_REFUSED. */
int job_cluster_admit(const struct conf *conf, const json_t *status, const char *verb,
                      const json_t *call, struct err *err);
/* The same for an end: who gives a part back may start a server beside the new primary. Without an
 * epoch nobody may over TCP, and on the socket only a plan ends without `force`. */
int job_cluster_admit_cancel(const struct conf *conf, const json_t *status,
                             const struct job_asker *asker, struct err *err);
/* The goal of the next run of a part, NULL when its state does not allow the verb. */
const char *job_cluster_goal(const json_t *status, const char *verb);
/* Whether the part may be asked to run until there. */
int job_cluster_check_until(const json_t *status, const json_t *call, struct err *err);

/* Cancels: a running job gets SIGTERM; one that only waits ends at once; a fenced restore runs once
 * more to lift its fence; an unfinished restore past `marked` is given up (its volumes stay marked
 * and unusable until another restore). *ret_done: it has ended already. */
int job_request_cancel(const struct conf *conf, const char *id, const struct job_asker *asker,
                       bool *ret_done, struct err *err);

/* Ends what died: interrupted snapshots and verifications become failed, interrupted restores
 * before `marked` are cancelled (the fence is lifted). With resume, interrupted restores past
 * `marked` go on. Parts of a cluster restore that touched anything are left to its coordinator:
 * only it knows what the other nodes have done since. Logs what it does. */
void job_sweep(const struct conf *conf, bool resume);

struct health {
    const char *status;    /* "ok", "restoring", "partial", "recovering", "diverged", "failed" */
    int64_t since_s;       /* Unix seconds; 0 = not known */
    char job[ID_TEXT_LEN]; /* the restore that says so; "" when ok */
    char step[32];
    bool given_up;                 /* it cannot be resumed: another restore has to be made */
    char cluster_job[ID_TEXT_LEN]; /* it is a part of this cluster restore; "" when it is none */
    char last[ID_TEXT_LEN];        /* ok: the newest restore that is complete; "" = none */
    struct err why;                /* text: the cause, hint: what to do; empty when ok */
};
/* Never fails: a state_dir that cannot be read is "failed". */
void job_health(const struct conf *conf, struct health *ret);

#endif
