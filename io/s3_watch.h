/* Whether the server works, as all requests of one store see it together: what tells a person,
 * once, that he is waiting for a store that does not answer (struct store_notice). A request that
 * fails while others succeed is no outage. Any thread; no lock. */
#ifndef TIDEMARK_IO_S3_WATCH_H
#define TIDEMARK_IO_S3_WATCH_H

#include <stdatomic.h>

#include "io/store.h"

/* Retries that end sooner are nobody's business. */
enum { S3_WATCH_PATIENCE_MS = 5000 };

struct s3_watch {
    void (*notice)(void *ctx, const struct store_notice *notice); /* NULL = nobody listens */
    void *notice_ctx;
    _Atomic uint64_t worked_ms;     /* last answer that was one; CLOCK_MONOTONIC, 0 = none */
    _Atomic uint64_t told_since_ms; /* 0 = nothing is told, else since when it fails */
};

/* A try failed that will be repeated at next_ms, and so on until deadline_ms; its operation began
 * at start_ms. why is for people. watch may be NULL, here and below. */
void s3_watch_failed(struct s3_watch *watch, uint64_t start_ms, uint64_t now_ms, uint64_t next_ms,
                     uint64_t deadline_ms, const char *why);

void s3_watch_worked(struct s3_watch *watch, uint64_t now_ms);

#endif
