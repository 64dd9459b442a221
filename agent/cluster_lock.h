/* The reservation of this node by a cluster restore: <state_dir>/cluster.json, replaced atomically
 * and flushed, names the coordinator's job, its epoch, and the restore here that is its part. While
 * it is held no other restore and no snapshot starts on this node.
 *
 * The epoch grows by one whenever a coordinator takes the cluster job over: whoever still calls
 * with a lower one is refused. A reservation that was released stays in the file, for that reason.
 * With an epoch comes who has it, and a random token that tells two apart which chose the same one.
 *
 * It is held until its restore is over (job_is_over()) or it is released, so that a process that
 * died between the two does not block the node. Any process of this node may call; each call is
 * atomic (flock on <state_dir>/cluster.lock). */
#ifndef TIDEMARK_AGENT_CLUSTER_LOCK_H
#define TIDEMARK_AGENT_CLUSTER_LOCK_H

#include "agent/conf.h"
#include "agent/json.h"
#include "io/repo.h"

enum { CLUSTER_COORDINATOR_MAX = 160 };
#define CLUSTER_EPOCH_MAX 999999999999999999LL /* a JSON number, wherever it is */

struct cluster_lock {
    char job[ID_TEXT_LEN];     /* the cluster job; "" = there never was one */
    char restore[ID_TEXT_LEN]; /* the job here */
    uint64_t epoch;            /* ≥ 1 */
    bool held;
    char coordinator[CLUSTER_COORDINATOR_MAX + 1]; /* "NAME on HOST"; "" = not known */
    char token[ID_TEXT_LEN];                       /* of the epoch; "" = it has none yet */
};

/* The bytes of cluster.json, checked. Pure. ERR_CORRUPT. */
int cluster_lock_parse(const json_t *json, struct cluster_lock *ret, struct err *err);
/* New reference. */
json_t *cluster_lock_json(const struct cluster_lock *lock);

/* What the file says; held is false also when its restore is over. No file: all empty. */
int cluster_lock_read(const struct conf *conf, struct cluster_lock *ret, struct err *err);

/* Whether `want` may be reserved now; want NULL: something that is not part of a cluster restore.
 * ERR_BUSY while another holds the node, ERR_REFUSED for an epoch that is over. */
int cluster_lock_check(const struct conf *conf, const struct cluster_lock *want, struct err *err);

/* cluster_lock_check(), then the reservation is durable. A higher epoch of the same cluster job
 * takes it from a restore that has touched nothing yet. */
int cluster_lock_reserve(const struct conf *conf, const struct cluster_lock *want, struct err *err);

enum cluster_claim {
    CLAIM_GRANTED, /* the epoch is the caller's, durably */
    CLAIM_LOST,    /* another coordinator has this job, or it is over here */
    CLAIM_BUSY,    /* another cluster job holds the node */
};
/* want has job, epoch, token and coordinator: takes an epoch of that job, or says again that it has
 * it. Nothing is reserved by it, and what is reserved stays so. *ret_now: what the file says then;
 * its restore is the part of this job, or "" when there is none. */
int cluster_lock_claim(const struct conf *conf, const struct cluster_lock *want,
                       enum cluster_claim *ret, struct cluster_lock *ret_now, struct err *err);

/* A call about a restore that holds the reservation, with the epoch of the caller: ERR_REFUSED when
 * that is over or the restore does not hold it; a higher epoch is written durably. */
int cluster_lock_renew(const struct conf *conf, const char *restore, uint64_t epoch,
                       struct err *err);

/* Nothing happens unless this restore holds it. */
int cluster_lock_release(const struct conf *conf, const char *restore, struct err *err);

#endif
