/* The same small operation on many objects, by several threads: each costs a round trip or two. */
#ifndef TIDEMARK_AGENT_STORE_THREADS_H
#define TIDEMARK_AGENT_STORE_THREADS_H

#include "io/store.h"

/* Calls work() on this thread with the store, and at the same time on others with clones of it, as
 * many as the store has connections, 8 in all at most, fewer for a small count, down to none where
 * something does not work. What they share is the caller's; none outlives the call. */
void store_threads_run(struct store *store, size_t count,
                       void (*work)(void *ctx, struct store *store), void *ctx);

#endif
