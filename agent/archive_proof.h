/* Does the server archive to this repository? It has to prove it, with a segment that is written
 * and switched for the purpose and then has to be here. The server's own word (pg_stat_archiver) is
 * never the proof; it only says why we wait. One thread. */
#ifndef TIDEMARK_AGENT_ARCHIVE_PROOF_H
#define TIDEMARK_AGENT_ARCHIVE_PROOF_H

#include "agent/pg.h"
#include "agent/wal.h"

struct archive_proof {
    /* in, borrowed */
    const struct conf *conf;
    struct pg_session *session; /* to a primary */
    const struct wal_archive *archive;
    const char *wal_directory; /* where tidemark-wal leaves why it failed */
    unsigned timeout_s;
    /* Sleeps between two looks; an error ends the wait. NULL = plain sleep. */
    int (*pause)(void *ctx, unsigned pause_ms, struct err *err);
    void *ctx;
    /* out: the segment */
    char segment[64];
};

/* 0 once the segment is in the repository. ERR_REFUSED when the server archives elsewhere, fails
 * again and again, or has not archived it in time; the code of the last push where that is known.
 */
int archive_prove(struct archive_proof *proof, struct err *err);

/* What the server says of its archiving. */
struct archiver {
    uint64_t failed_count;
    char last_archived[64], last_failed[64];
};
int archiver_read(struct pg_session *session, struct archiver *ret, struct err *err);

/* What archive_command said last of the file that the server names, if it told us; else 0. The code
 * is its own: a store that is full is no server that does not archive. */
int archive_failed_push(const struct archive_proof *proof, const struct archiver *archiver,
                        struct err *err);

#endif
