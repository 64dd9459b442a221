/* See s3_watch.h. */
#include "io/s3_watch.h"

void s3_watch_failed(struct s3_watch *watch, uint64_t start_ms, uint64_t now_ms, uint64_t next_ms,
                     uint64_t deadline_ms, const char *why)
{
    uint64_t none = 0;
    if (watch == NULL || watch->notice == NULL)
        return;
    uint64_t since_ms = max_u64(start_ms, atomic_load(&watch->worked_ms));
    if (next_ms <= since_ms + S3_WATCH_PATIENCE_MS ||
        !atomic_compare_exchange_strong(&watch->told_since_ms, &none, max_u64(since_ms, 1)))
        return;
    const struct store_notice notice = {
        .failing = true,
        .since_ms = now_ms - since_ms,
        .left_ms = deadline_ms - min_u64(now_ms, deadline_ms),
        .why = why,
    };
    watch->notice(watch->notice_ctx, &notice);
}

void s3_watch_worked(struct s3_watch *watch, uint64_t now_ms)
{
    if (watch == NULL || watch->notice == NULL)
        return;
    atomic_store(&watch->worked_ms, now_ms);
    if (atomic_load(&watch->told_since_ms) == 0) /* no write to a shared line for each request */
        return;
    uint64_t since_ms = atomic_exchange(&watch->told_since_ms, 0);
    if (since_ms == 0)
        return;
    const struct store_notice notice = {.since_ms = now_ms - min_u64(since_ms, now_ms), .why = ""};
    watch->notice(watch->notice_ctx, &notice);
}
