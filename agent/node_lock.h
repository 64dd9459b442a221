/* One verb at a time on a node: a snapshot and a restore must not see each other's half of the
 * volumes. flock on <state_dir>/node.lock, whose text says who holds it; the lock ends with its
 * process, however it ends. job_open() takes it for snapshots and restores. One thread. */
#ifndef TIDEMARK_AGENT_NODE_LOCK_H
#define TIDEMARK_AGENT_NODE_LOCK_H

#include "agent/conf.h"

/* Makes state_dir when it is missing. what: "snapshot", "restore"; job: its id. ERR_BUSY "a restore
 * is running (job …)" at once when somebody else holds it. *ret_fd is closed by the caller. */
int node_lock(const struct conf *conf, const char *what, const char *job, int *ret_fd,
              struct err *err);

#endif
