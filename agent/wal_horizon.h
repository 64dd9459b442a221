/* Below which WAL goes: horizon/<cluster>/<system-id>/<segment>-<job> (FORMAT.md §8). Expire puts
 * such a mark before it removes segments below <segment> of its timeline, then looks for snapshots
 * that have been committed since it listed them, and for jobs that have begun to read (reading.h),
 * and removes the segments, or the mark when one of them needs any. A snapshot looks for such marks
 * behind its record, a restore behind its mark and before it touches anything. So one of them sees
 * the other, whichever sleeps: a snapshot never counts as taken whose WAL goes, and no restore
 * begins whose WAL goes. The last mark of a timeline stays. One thread. */
#ifndef TIDEMARK_AGENT_WAL_HORIZON_H
#define TIDEMARK_AGENT_WAL_HORIZON_H

#include "agent/wal.h"

/* because: the snapshot that needs nothing below; by: the node that expires. */
int wal_horizon_put(const struct wal_archive *archive, const char *segment, const char *job,
                    const uint8_t because[ID_LEN], const char *by, struct err *err);
int wal_horizon_remove(const struct wal_archive *archive, const char *segment, const char *job,
                       struct err *err);
/* Removes the other marks of the timeline that say less, but for what is locked. */
int wal_horizon_settle(const struct wal_archive *archive, const char *segment, const char *job,
                       struct err *err);

/* ERR_BUSY when WAL goes, or has gone, that a backup on timeline from start_lsn on needs. */
int wal_horizon_check(const struct wal_archive *archive, uint32_t timeline, uint64_t start_lsn,
                      uint32_t segment_size, struct err *err);

/* ERR_BUSY when WAL goes, or has gone, that a recovery on timeline reads from segment number `from`
 * on and before end_lsn. What a pin keeps, start to tag, is not asked about: it stays below any
 * mark. An expire that was killed leaves a mark above WAL that is there: the hint says which. */
int wal_horizon_check_replay(const struct wal_archive *archive, uint32_t timeline, uint64_t from,
                             uint64_t end_lsn, uint32_t segment_size, struct err *err);

#endif
