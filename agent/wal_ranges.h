/* What WAL the archive has: of each timeline the first and the last segment. One thread. */
#ifndef TIDEMARK_AGENT_WAL_RANGES_H
#define TIDEMARK_AGENT_WAL_RANGES_H

#include "agent/json.h"
#include "io/repo.h"

/* *ret: an array, ascending by cluster, system and timeline, of {cluster, system_id (a string),
 * timeline, first, last, segments, missing: between the two, or null where the first cannot be
 * read, bytes: stored}; a new reference. cluster "" = all. Reads names, and one head a range. */
int wal_ranges(struct store *store, const struct repo *repo, const char *cluster, json_t **ret,
               struct err *err);

#endif
