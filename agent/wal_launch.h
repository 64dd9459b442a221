/* Executing tidemark-wal-worker: in our place, or detached as the prefetcher. Lean. */
#ifndef TIDEMARK_AGENT_WAL_LAUNCH_H
#define TIDEMARK_AGENT_WAL_LAUNCH_H

#include "io/err.h"

/* Becomes `tidemark-wal-worker ARGS`; returns only on failure (ERR_CONFIG). */
int wal_launch_worker(char **argv, struct err *err);

/* Starts `tidemark-wal-worker prefetch …` with the arguments of a get: in a session of its own,
 * with nothing of ours open. It stays behind when we end; that it cannot be started is no error,
 * get works without. */
void wal_launch_prefetch(int argc, char **argv);

#endif
