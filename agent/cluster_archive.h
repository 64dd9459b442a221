/* Copies of cluster restores' journals in the repository: writing ours, finding anybody's. What is
 * in them: cluster_copy.h. Every function opens the repository anew and blocks for as long as it
 * takes. */
#ifndef TIDEMARK_AGENT_CLUSTER_ARCHIVE_H
#define TIDEMARK_AGENT_CLUSTER_ARCHIVE_H

#include "agent/cluster.h"
#include "agent/cluster_copy.h"

/* Copies the journal of this job as it is now, with state; NULL: it runs, which is "prepared" until
 * somebody has agreed to the plan. over: there will be no other copy. Any thread of the job, not
 * under all->mutex. */
int cluster_archive_write(struct cluster_restore *all, const char *state, bool over,
                          struct err *err);
/* The same for a copy that nothing depends on: gives up after a few seconds, with a line in the
 * log, because the agents know how far their nodes are. */
void cluster_archive_note(struct cluster_restore *all, const char *state, bool over);

/* Whether any copy of this job, by whichever coordinator, says that old data may be gone, or cannot
 * be read. */
int cluster_archive_touched(const struct cluster_restore *all, bool *ret, struct err *err);

/* The newest copy of a job; a damaged one is left out, with a line in the log. job may be the first
 * digits (≥ 6) of an id; *ret_id is that of the copy, with the highest epoch that any copy has.
 * ERR_MISSING, ERR_USAGE when several jobs begin so. */
int cluster_archive_find(const struct conf *conf, const char *job, struct cluster_copy_id *ret_id,
                         json_t **ret, struct err *err);

/* Array of the newest copies of all restores of this cluster; over: also of those that are over. */
int cluster_archive_list(const struct conf *conf, bool over, json_t **ret, struct err *err);
/* The same with over, for somebody who asks again and again. *state stands for the names that were
 * there the last time, and is replaced; 0 = none yet. Without a new one *ret is NULL. */
int cluster_archive_watch(const struct conf *conf, uint64_t *state, json_t **ret, struct err *err);

#endif
