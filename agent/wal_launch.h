/* Executing tidemark-wal-worker: in our place, or detached as the prefetcher or to push ahead.
 * Lean. */
#ifndef TIDEMARK_AGENT_WAL_LAUNCH_H
#define TIDEMARK_AGENT_WAL_LAUNCH_H

#include "io/err.h"

/* Becomes `tidemark-wal-worker ARGS`; returns only on failure (ERR_CONFIG). */
int wal_launch_worker(char **argv, struct err *err);

/* Starts `tidemark-wal-worker prefetch …` with the arguments of a get: in a session of its own,
 * with nothing of ours open. It stays behind when we end; that it cannot be started is no error,
 * get works without. */
void wal_launch_prefetch(int argc, char **argv);

/* The same with the arguments of a push, as `push-ahead`. Returns our end of a socket that it has
 * as its stdin (the caller closes it), so that nobody has to wait until it listens; -1 when it
 * cannot be started. One that ends, or starts beside another, shows as the end of what is read. */
int wal_launch_push_ahead(int argc, char **argv);

#endif
