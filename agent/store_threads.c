/* See store_threads.h. */
#include "agent/store_threads.h"

#include <pthread.h>

#include "io/store_lane.h"

enum { THREADS_MAX = 8, COUNT_PER_THREAD = 4 };

struct worker {
    void (*work)(void *ctx, struct store *store);
    void *ctx;
    struct store *store; /* a clone */
    pthread_t thread;
};

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    worker->work(worker->ctx, worker->store);
    return NULL;
}

void store_threads_run(struct store *store, size_t count,
                       void (*work)(void *ctx, struct store *store), void *ctx)
{
    struct worker workers[THREADS_MAX];
    struct store_lane_shape shape;
    struct err ignored;
    unsigned started = 0;
    store_lane_shape(store, &shape);
    uint64_t limit = shape.total_max ? min_u64(shape.total_max, THREADS_MAX) : THREADS_MAX;
    uint64_t wanted = min_u64(limit, count / COUNT_PER_THREAD);
    for (; started + 1 < wanted; started++) {
        struct worker *worker = &workers[started];
        *worker = (struct worker){.work = work, .ctx = ctx};
        if (store_clone(store, &worker->store, &ignored) < 0)
            break;
        if (pthread_create(&worker->thread, NULL, worker_main, worker) != 0) {
            store_close(worker->store);
            break;
        }
    }
    work(ctx, store);
    for (unsigned i = 0; i < started; i++) {
        (void)pthread_join(workers[i].thread, NULL);
        store_close(workers[i].store);
    }
}
