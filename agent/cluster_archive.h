/* Copies of cluster restores' journals in the repository: writing ours, finding anybody's. What is
 * in them: cluster_copy.h. Every function opens the repository anew and blocks for as long as it
 * takes. */
#ifndef TIDEMARK_AGENT_CLUSTER_ARCHIVE_H
#define TIDEMARK_AGENT_CLUSTER_ARCHIVE_H

#include "agent/cluster.h"
#include "agent/cluster_copy.h"

/* Copies the journal of this job as it is now, with state ("running" while it runs); over: there
 * will be no other copy. Any thread of the job, not under all->mutex. */
int cluster_archive_write(struct cluster_restore *all, const char *state, bool over,
                          struct err *err);
/* The same for a copy that nothing depends on: gives up after a few seconds, with a line in the
 * log, because the agents know how far their nodes are. */
void cluster_archive_note(struct cluster_restore *all, const char *state, bool over);

/* The newest copy of a job; a damaged one is left out, with a line in the log. job may be the first
 * digits (≥ 6) of an id; *ret_id is that of the copy, with the highest epoch that any copy has.
 * ERR_MISSING, ERR_USAGE when several jobs begin so. */
int cluster_archive_find(const struct conf *conf, const char *job, struct cluster_copy_id *ret_id,
                         json_t **ret, struct err *err);

/* Array of the newest copies of all restores of this cluster; over: also of those that are over. */
int cluster_archive_list(const struct conf *conf, bool over, json_t **ret, struct err *err);

#endif
