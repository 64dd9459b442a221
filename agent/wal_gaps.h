/* Whether the WAL that [retention] keeps is there without a gap. One thread. */
#ifndef TIDEMARK_AGENT_WAL_GAPS_H
#define TIDEMARK_AGENT_WAL_GAPS_H

#include "io/repo.h"

struct wal_gaps {
    size_t timelines; /* that were looked at; 0: no snapshot needs archived WAL */
    char oldest[64];  /* tag of the snapshot from which it is continuous, of the last system */
};

/* From the start of the oldest snapshot of this cluster that is not pinned to the last segment of
 * every timeline that can be recovered from it: ERR_MISSING names the first one that is missing.
 * Segments may arrive out of order: one that does within seconds is no gap. */
int wal_gaps(struct store *store, const struct repo *repo, const char *cluster,
             struct wal_gaps *ret, struct err *err);

#endif
