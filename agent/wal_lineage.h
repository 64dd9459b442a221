/* Which timelines a recovery that begins at some LSN may follow. One thread. */
#ifndef TIDEMARK_AGENT_WAL_LINEAGE_H
#define TIDEMARK_AGENT_WAL_LINEAGE_H

#include "agent/wal.h"

struct wal_lineage {
    uint32_t *timelines;            /* that have anything in the archive, ascending */
    struct wal_history **histories; /* of each; NULL: it cannot be read */
    size_t count;
};

/* A history file that is missing or damaged is no error. */
int wal_lineage_load(const struct wal_archive *archive, struct wal_lineage *ret, struct err *err);
void wal_lineage_release(struct wal_lineage *lineage);

/* True when a backup on `timeline` whose WAL begins at start_lsn may need WAL of timelines[index]
 * from there on: to recover along its own history, or along a later timeline that branched off
 * behind start_lsn. True as well when that cannot be told. */
bool wal_lineage_needs(const struct wal_lineage *lineage, size_t index, uint32_t timeline,
                       uint64_t start_lsn);

#endif
