/* The coordinator: snapshots and restores of a whole cluster through the agents of its nodes. It
 * touches no volume and no server itself; what a node does is its agent's business (restore.h), and
 * the agents' answers are the only truth about them. A coordinator is `tidemark-coordinator`, the
 * agent's daemon with [coordinator] members; its jobs are jobs like an agent's (job.h), of the
 * types cluster_snapshot and cluster_restore, with the steps of a restore.
 *
 * Waves of a cluster restore, each a barrier of all nodes unless it says otherwise:
 *
 *     reserve    plan and durable lock on every agent; any refusal gives all of them back
 *     fence      every server is stopped and kept stopped
 *     pull       blocks, the same snapshot on every node; no node waits for another's copy
 *     recover    the new primary to the target, promoted and archived, its slots; then every
 *                standby that has its blocks follows it
 *     verify     one history, standbys streaming; amcheck on the primary; then the standbys
 *
 * Copies of the journal go to the repository (cluster_archive.h): another coordinator can take the
 * restore over. The one before old data goes has to arrive; of the others the log says when they do
 * not. */
#ifndef TIDEMARK_AGENT_CLUSTER_H
#define TIDEMARK_AGENT_CLUSTER_H

#include <pthread.h>

#include "agent/client.h"
#include "agent/cluster_lock.h"
#include "agent/job.h"
#include "agent/record.h"

enum { CLUSTER_MEMBERS_MAX = 16, CLUSTER_ADDRESS_MAX = 255 };

struct cluster_member {
    char name[CONF_NAME_MAX + 1]; /* the agent's `node` */
    char address[CLUSTER_ADDRESS_MAX + 1];
};

struct cluster {
    const struct conf *conf;
    struct cluster_member members[CLUSTER_MEMBERS_MAX]; /* ascending by name */
    size_t count;
};

/* --- cluster_members.c --- */
/* Parses conf->coordinator_members: "NAME=ADDRESS …". ERR_CONFIG for a name or an address that
 * cannot be one, a name that is there twice, more than CLUSTER_MEMBERS_MAX, or none at all. conf is
 * borrowed. Pure. */
int cluster_members(const struct conf *conf, struct cluster *ret, struct err *err);
/* NULL when there is none. */
const struct cluster_member *cluster_member(const struct cluster *cluster, const char *name);
/* [coordinator] primary_conninfo, which is there, for a standby of this primary. ERR_CONFIG. Pure.
 */
int cluster_fill_conninfo(const struct conf *conf, const struct cluster_member *primary,
                          const char *standby, char *ret, size_t size, struct err *err);
/* One request to a member's agent; *ret: its answer (new reference). The member's name precedes the
 * text of an error. Any thread; blocks for as long as the request takes. */
int cluster_call(const struct cluster *cluster, const struct cluster_member *member,
                 const char *method, const char *path, const json_t *body, json_t **ret,
                 struct err *err);
/* The same for at most timeout_s (0 = as long as any request). */
int cluster_call_within(const struct cluster *cluster, const struct cluster_member *member,
                        unsigned timeout_s, const char *method, const char *path,
                        const json_t *body, json_t **ret, struct err *err);
/* The same to all members at the same time, for at most CLUSTER_ANSWER_S: somebody waits for the
 * whole. answers[i], which is NULL where errs[i] says why. */
enum { CLUSTER_ANSWER_S = 15 };
void cluster_call_all(const struct cluster *cluster, const char *method, const char *path,
                      json_t *answers[CLUSTER_MEMBERS_MAX], struct err errs[CLUSTER_MEMBERS_MAX]);

/* --- cluster_status.c --- */
/* What every agent says of its node (GET /node), and what follows for the cluster: {"status":
 * worst, "members": [{"name", "address", "status", "cause", "hint", …}]}; a member that does not
 * answer is "unreachable", one whose server is stopped "down". Never fails. */
json_t *cluster_status(const struct cluster *cluster);
/* The member that has last heard from who has this epoch of a cluster restore: its "reservation"
 * has "heard_ago_ms". NULL when none says. Borrowed. Pure. */
const json_t *cluster_last_heard(const json_t *members, const char *job, uint64_t epoch);
/* Sets "diverged" (the reason), "cause" and "hint" in every member whose history is not the
 * cluster's: that of its only primary. restored: the newest complete restore of the cluster, which
 * decides between two; may be NULL. Pure. */
void cluster_find_diverged(json_t *members, const json_t *restored);
/* GET /health of a coordinator, see conf/openapi.yaml: the worst of its members and of its own
 * restores. New reference. */
json_t *cluster_health(const struct conf *conf);
/* The same when the members have been asked: status from cluster_status(). */
json_t *cluster_health_of(const struct conf *conf, const json_t *status);

/* --- cluster_page.c --- */
/* All of it as one page of HTML for a browser; malloc'ed. Loads nothing, runs nothing. */
char *cluster_page(const struct cluster *cluster);

/* --- cluster_topology.c --- */
/* What a snapshot keeps of members (cluster_status()): of a slot no more than makes it again. New
 * reference. Pure. */
json_t *cluster_topology(const json_t *members);
/* The standby among members that this one followed: it is a cascading one. NULL when it followed
 * the primary, or nobody knows. Borrowed. Pure. */
const char *cluster_upstream(const json_t *members, const json_t *standby);

/* --- cluster_restore.c, cluster_plan.c, cluster_look.c, cluster_describe.c, cluster_check.c,
 * cluster_drive.c, cluster_ask.c, cluster_claim.c --- */

/* How far a node has come, by its agent's word. */
enum cluster_level {
    LEVEL_NONE,
    LEVEL_RESERVED,
    LEVEL_FENCED,
    LEVEL_CONFIGURED,
    LEVEL_RECOVERED,
    LEVEL_COMPLETE,
    LEVEL_COUNT,
};

struct cluster_restore;

/* One node: a thread of its own while the job runs. */
struct drive {
    struct cluster_restore *all;
    const struct cluster_member *member;
    bool primary;
    char recorded[CONF_NAME_MAX + 1]; /* the node of the topology whose place it takes */
    char conninfo[CONF_PATH_MAX + 1]; /* of a standby: how it reaches the primary */
    char slot[64];                    /* of a standby: its physical slot there, "" = none */
    char job[ID_TEXT_LEN];            /* of its agent; "" = not reserved, or no answer came */
    bool asked;                       /* to reserve the node; under all->mutex */
    bool refused;                     /* it said no: nothing of ours can be there */
    bool followed;                    /* by the journal a standby on the new timeline already */
    bool silent;                      /* its agent does not answer; under all->mutex */
    bool waited;                      /* for it in vain; its own thread's */
    json_t *node;                     /* what its agent said before any was reserved; or NULL */
    json_t *plan;                     /* its agent's; NULL before it is reserved */
    json_t *verification;             /* what its agent found; under all->mutex */
    enum cluster_level level;         /* under all->mutex */
    bool failed;
    struct err err;
    pthread_t thread;
};

struct cluster_restore {
    struct job *job;
    struct cluster cluster;
    uint64_t epoch;
    char token[ID_TEXT_LEN];                       /* of our epoch, see cluster_lock.h */
    char coordinator[CLUSTER_COORDINATOR_MAX + 1]; /* what agents and copies call us */
    bool taking;      /* the epoch is new, and not every agent knows it yet: journal["taking"] */
    bool complete;    /* all nodes are: a restore that comes after ours takes nothing from us */
    bool alone;       /* one node rejoins: no other coordinator has to know */
    bool keep_fences; /* cluster_release(): what is fenced stays so, a new primary may write */
    bool lost;        /* another coordinator has the job: nothing is ours to change any more */
    struct record record;
    bool record_read;
    struct drive drives[CLUSTER_MEMBERS_MAX];
    size_t count;
    bool unseen[CLUSTER_MEMBERS_MAX]; /* members that did not answer cluster_look() */
    /* Of what follows, drive.level and the journal. */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    pthread_mutex_t copying; /* before mutex: one copy of the journal after the other */
    bool stop;               /* a node failed, or somebody cancelled: nobody begins another wave */
    json_t *fork;            /* {"timeline", "lsn", "parent"} once the new primary is promoted */
    json_t *history;         /* of the primary, while others are compared with it */
};

/* Finds the snapshot, gives every member its part, describes it in journal["plan"]. */
int cluster_plan(struct cluster_restore *all, struct err *err);
/* The same for one node that becomes a standby of the cluster again (cluster_rejoin.c), and the
 * part of it that reads the record. */
int cluster_rejoin_plan(struct cluster_restore *all, struct err *err);
int cluster_plan_rejoin(struct cluster_restore *all, const struct cluster_member *primary,
                        struct err *err);
/* Nothing is reserved yet: asks all nodes at the same time what they are. Whoever plans waits at a
 * terminal: a node that does not answer within seconds ends it, with what to do. */
int cluster_look(struct cluster_restore *all, struct err *err);
/* Why a standby cannot try now how it reaches the primary; NULL when it can. */
const char *cluster_untried(const struct cluster_restore *all, char *text, size_t size);
/* All are reserved: what only becomes known from all nodes together, into
 * journal["plan"]["warnings"] (which a plan that was not looked at does not have), or a refusal. */
int cluster_check_plan(struct cluster_restore *all, struct err *err);
/* The part of it that only tells: what the agents' plans say, into those of the members, and for
 * whom commits would wait. */
void cluster_describe(struct cluster_restore *all, json_t *warnings);
/* All are recovered: one system, one history, every standby streams and is past the fork. */
int cluster_check_history(struct cluster_restore *all, struct err *err);
/* Fills the drives from the journal; cluster_load() reads the record, too. What gives the nodes
 * back needs no repository. */
int cluster_load_drives(struct cluster_restore *all, struct err *err);
int cluster_load(struct cluster_restore *all, struct err *err);
/* The primary will be promoted once more, to another timeline: ERR_REFUSED when a standby followed
 * it to this one, where it would be left behind. */
int cluster_forget_fork(struct cluster_restore *all, struct err *err);
/* Drives every node to level, at most; returns the first error when one failed. */
int cluster_drive(struct cluster_restore *all, enum cluster_level level, struct err *err);
/* Gives reservations and fences back, as far as nothing was touched. */
int cluster_release(struct cluster_restore *all, struct err *err);
/* Writes journal["members"] and the step, durably. Under all->mutex. */
int cluster_journal(struct cluster_restore *all, struct err *err);
const char *cluster_level_name(enum cluster_level level); /* cluster_copy.c */
/* The wave that the slowest node is in, in the words of a restore's steps (job_is_partial()). Pure.
 */
const char *cluster_wave_name(enum cluster_level slowest);
/* The same for a restore that has touched its nodes: members of its journal or of a copy of it. */
const char *cluster_wave(const json_t *members);

/* It holds no node, so nobody can take one from it. */
bool cluster_is_dry_run(const struct cluster_restore *all);

/* Who we are: fills coordinator and token. */
int cluster_identify(struct cluster_restore *all, struct err *err);
/* Makes sure, at every agent that has a part of the job, that we have it; when it is being taken
 * over at all of them. ERR_REFUSED with all->lost when another coordinator has it. */
int cluster_claim(struct cluster_restore *all, struct err *err);
/* After something failed: whether that is why. err is only then written. */
bool cluster_is_lost(struct cluster_restore *all, struct err *err);

/* --- cluster_adopt.c --- */
struct cluster_adoption {
    const char *goal; /* "all", "abort" */
    bool insist;      /* "all": also of a coordinator that is at work */
};
/* For a job that this coordinator does not have, or lost: makes it here from its newest copy in the
 * repository, with the next epoch, and starts it with this goal. ERR_REFUSED when an agent has
 * heard from who has it since we began to look, which takes some seconds. job may be the first
 * digits of its id; ret_id: all of it. mutex (may be NULL) is held while jobs are changed. */
int cluster_adopt(const struct conf *conf, const char *job, const struct cluster_adoption *how,
                  pthread_mutex_t *mutex, char ret_id[ID_TEXT_LEN], struct err *err);

/* The thread of drive asks its agent, and waits while it is silent, no longer than [coordinator]
 * agent_timeout: then ERR_DEVICE. For whom it waits is in journal["silent"]. */
enum cluster_patience {
    ASK_ONCE,
    ASK_UNLESS_CANCELLED,
    ASK_ALWAYS, /* what gives a node back is not cancelled */
};
/* A request that can be made twice; *ret: the answer (new reference). */
int cluster_ask(struct drive *drive, enum cluster_patience patience, const char *method,
                const char *path, const json_t *body, json_t **ret, struct err *err);
/* Until the agent's job does not run; *ret: its status. */
int cluster_ask_job(struct drive *drive, enum cluster_patience patience, json_t **ret,
                    struct err *err);
/* POST /restores/{job}/{verb}, and until its job has come to `wanted`, or failed; ret may be NULL.
 */
int cluster_ask_step(struct drive *drive, const char *verb, json_t *body, enum cluster_level wanted,
                     json_t **ret, struct err *err);
/* POST /restores; drive->job is what came of it. */
int cluster_ask_reserve(struct drive *drive, const json_t *body, struct err *err);
/* The reservation whose answer never came: fills drive->job when there is one. */
int cluster_ask_for(struct drive *drive, enum cluster_patience patience, struct err *err);
/* The same for who gives it back: a request that was given up may arrive behind the first look. */
int cluster_ask_late(struct drive *drive, enum cluster_patience patience, struct err *err);
/* How far the node has come by the status of its agent's job. */
enum cluster_level cluster_level_of(const json_t *status);
/* What the agent's job failed with, as our own error. */
int cluster_job_error(const struct drive *drive, const json_t *status, struct err *err);
/* --- cluster_slots.c: new references, from the record --- */
/* For the plan: [{"name", "node", "type", "plugin", "database", "recreated"}]. */
json_t *cluster_slots(const struct cluster_restore *all);
/* Names for the new primary: slots of its standbys, and other physical ones. */
json_t *cluster_used_slots(const struct cluster_restore *all);
json_t *cluster_idle_slots(const struct cluster_restore *all);

#endif
