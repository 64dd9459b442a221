/* The gate of a node that a cluster restore left out (--without-node, or its host was off): its
 * data is of the old branch, on which nothing may be built any more. What it has to know is in the
 * repository, in the last copy of the restore that promoted the newest timeline (cluster_copy.h);
 * the agent looks there at its start and every few minutes, and keeps what it found in
 * <state_dir>/passed.json. The gate is open again once the node's own history has that timeline, or
 * a restore of it is complete.
 *
 * While it is closed, health is `diverged`, and Tidemark starts no server as a primary on it. */
#ifndef TIDEMARK_AGENT_CLUSTER_GATE_H
#define TIDEMARK_AGENT_CLUSTER_GATE_H

#include <pthread.h>

#include "agent/conf.h"
#include "agent/json.h"
#include "agent/restore.h"
#include "io/repo.h"

struct cluster_gate {
    bool closed;
    uint64_t epoch;
    struct restore_fork fork; /* where the cluster went on without this node */
    uint64_t system_id;
    char job[ID_TEXT_LEN]; /* the cluster restore */
    char tag[RECORD_TAG_MAX + 1];
    char primary[CONF_NAME_MAX + 1]; /* which node it made the primary */
};

/* Whether the cluster was restored without this node. Asks pg_control when passed.json is there.
 * Never fails: what cannot be read is told, and does not close the gate. */
void cluster_gate_read(const struct conf *conf, struct cluster_gate *ret);
/* Negative and the cause with what to do (ERR_REFUSED) when it is closed, else 0. */
int cluster_gate_check(const struct conf *conf, struct err *err);

/* Looks into the repository, and writes or removes passed.json. *state: as of
 * cluster_archive_watch(). */
int cluster_gate_look(const struct conf *conf, uint64_t *state, struct err *err);
/* A restore made this node part of the cluster again. */
void cluster_gate_open(const struct conf *conf);

/* The bytes of passed.json. ERR_CORRUPT. Pure. */
int cluster_gate_parse(const json_t *json, struct cluster_gate *ret, struct err *err);
/* Among copies (cluster_archive_list()): the one that decides, NULL when none does. system_id of
 * this node; *ret_left_out: it is not among its members. Borrowed. Pure. */
const json_t *cluster_gate_choose(const json_t *copies, const char *node, uint64_t system_id,
                                  bool *ret_left_out);
/* Whether the history of a server that is on timeline has the fork; text: of its .history file, ""
 * when there is none. Pure. */
bool cluster_gate_follows(const struct restore_fork *fork, uint32_t timeline, const char *text,
                          size_t len);

/* The agent's thread that looks. Nothing is looked for where no coordinator can reach the agent. */
struct cluster_gate_watch {
    const struct conf *conf;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool running, stop;
};
void cluster_gate_start(struct cluster_gate_watch *watch, const struct conf *conf);
void cluster_gate_stop(struct cluster_gate_watch *watch);

#endif
