/* The spool: segments that the prefetcher has ready for restore_command. Lean: no libcrypto.
 *
 *     <spool>/<system id>-<repository id>/       so that nothing of another server is ever served
 *         000000010000000000000007              complete, flushed, checked
 *         000000010000000000000008.tidemark     being fetched
 *         state                                 what was delivered last, counters; flock:
 * prefetcher
 *
 * A segment gets its name by rename after a flush, and leaves by rename into pg_wal: a process that
 * dies at any moment leaves whole segments and temporaries that nobody takes. One thread. */
#ifndef TIDEMARK_AGENT_WAL_SPOOL_H
#define TIDEMARK_AGENT_WAL_SPOOL_H

#include "agent/wal.h"

/* On disk; torn or foreign content is ignored (magic, and a name that must be valid). The first
 * part is written by get, the second by the prefetcher: each its own pwrite. */
struct wal_spool_state {
    char magic[8];
    char last[WAL_NAME_MAX + 1]; /* segment delivered last */
    uint32_t segment_size;       /* bytes */
    uint32_t zero;
    uint64_t hits, waits, misses; /* waits: found while the prefetcher was fetching it */
    uint64_t prefetched, discarded, failed;
};

struct wal_spool {
    char dir[1200];
    int state_fd; /* -1 = none */
    struct wal_spool_state state;
};

/* Opens the spool of this server and repository below base; create makes what is missing (mode
 * 0700). False when it is not there or not usable: carry on without. */
bool wal_spool_open(const char *base, uint64_t system_id, const uint8_t repository_id[ID_LEN],
                    bool create, struct wal_spool *ret);
void wal_spool_close(struct wal_spool *spool);

/* Moves the segment to to_path when it is there and its header fits name, system and size. A file
 * that does not is removed. *ret_size gets its bytes. */
bool wal_spool_take(struct wal_spool *spool, const char *name, uint64_t system_id,
                    const char *to_path, uint32_t *ret_size);

enum wal_spool_event { SPOOL_HIT, SPOOL_WAIT, SPOOL_MISS };
/* Notes a delivery: the prefetcher goes on behind it (and is woken by the write). */
void wal_spool_delivered(struct wal_spool *spool, const char *name, uint32_t segment_size,
                         enum wal_spool_event event);

/* True while a prefetcher holds the lock. */
bool wal_spool_busy(const struct wal_spool *spool);

/* Reads state again; false when there is none. */
bool wal_spool_load(struct wal_spool *spool);

/* Path of name + suffix in the spool. */
void wal_spool_path(const struct wal_spool *spool, const char *name, const char *suffix, char *ret,
                    size_t size);

#endif
