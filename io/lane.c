/* Threads, dispenser and first error of the lanes. See lane.h. */
#include "io/lane.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>

#include "io/clock.h"

enum {
    TICK_MS = 200,
    TAKE_MIN = 4, /* items at a time, unless there are few for each lane */
};

struct lanes {
    const struct lanes_job *job;
    _Atomic bool failed;
    pthread_mutex_t mutex; /* guards everything below */
    pthread_cond_t ended;
    uint64_t next_item;
    uint64_t rate_free_ns; /* when the rate limit has room again */
    unsigned running;
    struct err error;
};

bool lane_stopped(const struct lane *lane)
{
    return atomic_load_explicit(&lane->lanes->failed, memory_order_relaxed) ||
           atomic_load_explicit(&lane->lanes->job->progress->cancel, memory_order_relaxed);
}

uint64_t lane_take(struct lane *lane, uint64_t end, uint64_t min, uint64_t *ret_first)
{
    struct lanes *lanes = lane->lanes;
    unsigned lane_count = lanes->job->plan->lane_count;
    uint64_t count = 0;
    if (lane_stopped(lane))
        return 0;
    (void)pthread_mutex_lock(&lanes->mutex);
    uint64_t next = lanes->next_item;
    if (next < end) {
        uint64_t share = div_round_up(end - next, lane_count);
        uint64_t least = max_u64(min, min_u64(TAKE_MIN, div_round_up(end, 2 * lane_count)));
        count = min_u64(min_u64(LANE_TAKE_MAX, max_u64(share, least)), end - next);
    } else if (next < lanes->job->item_count) {
        count = 1;
    }
    lanes->next_item += count;
    (void)pthread_mutex_unlock(&lanes->mutex);
    *ret_first = next;
    return count;
}

static void keep_error(struct lanes *lanes, const struct err *err)
{
    (void)pthread_mutex_lock(&lanes->mutex);
    if (lanes->error.code == ERR_OK)
        lanes->error = *err;
    (void)pthread_mutex_unlock(&lanes->mutex);
    atomic_store(&lanes->failed, true);
}

void lane_fail(struct lane *lane, const struct err *err)
{
    assert(err->code != ERR_OK);
    keep_error(lane->lanes, err);
}

uint64_t lane_rate_reserve(struct lane *lane, uint64_t len)
{
    struct lanes *lanes = lane->lanes;
    uint64_t rate = lanes->job->rate_limit;
    if (rate == 0)
        return 0;
    uint64_t cost_ns = (uint64_t)((double)len * 1e9 / (double)rate);
    uint64_t now_ns = monotonic_ns();
    (void)pthread_mutex_lock(&lanes->mutex);
    lanes->rate_free_ns = max_u64(lanes->rate_free_ns, now_ns) + cost_ns;
    uint64_t free_ns = lanes->rate_free_ns;
    (void)pthread_mutex_unlock(&lanes->mutex);
    return free_ns;
}

/* --- one lane's thread -------------------------------------------------------------------- */

static int lane_open(struct lane *lane, const struct lanes_job *job, struct err *err)
{
    int rc = ring_open(&lane->ring, err);
    if (rc < 0)
        return rc;
    rc = buffers_open(&lane->buffers, job->plan->lane_len, job->plan->ring_len, err);
    if (rc < 0)
        return rc;
    ring_register(lane->ring, lane->buffers.base, job->plan->ring_len, job->fd);
    return store_lane_open(job->store, lane->ring, lane->index, job->plan->lane_count,
                           job->request_count, &lane->store, err);
}

static void *lane_main(void *arg)
{
    struct lane *lane = arg;
    struct lanes *lanes = lane->lanes;
    const struct lanes_job *job = lanes->job;
    struct err err = {0};
    int rc = lane_open(lane, job, &err);
    if (rc == 0)
        rc = job->run(lane, &err);
    if (rc < 0)
        keep_error(lanes, &err);
    store_lane_close(lane->store);
    ring_close(lane->ring);
    buffers_close(&lane->buffers);
    (void)pthread_mutex_lock(&lanes->mutex);
    lanes->running--;
    (void)pthread_cond_signal(&lanes->ended);
    (void)pthread_mutex_unlock(&lanes->mutex);
    return NULL;
}

/* --- the caller's thread ------------------------------------------------------------------ */

/* Signals are the caller's: a lane would only see EINTR. */
static unsigned start_threads(struct lanes *lanes, struct lane *all, pthread_t *threads)
{
    sigset_t block, before;
    (void)sigfillset(&block);
    (void)pthread_sigmask(SIG_SETMASK, &block, &before);
    unsigned started = 0;
    for (; started < lanes->job->plan->lane_count; started++) {
        all[started] = (struct lane){.lanes = lanes, .index = started, .ctx = lanes->job->ctx};
        (void)pthread_mutex_lock(&lanes->mutex);
        lanes->running++;
        (void)pthread_mutex_unlock(&lanes->mutex);
        int rc = pthread_create(&threads[started], NULL, lane_main, &all[started]);
        if (rc != 0) {
            (void)pthread_mutex_lock(&lanes->mutex);
            lanes->running--;
            (void)pthread_mutex_unlock(&lanes->mutex);
            struct err err;
            errno = rc;
            (void)err_sys(&err, ERR_INTERNAL, "start lane %u", started);
            keep_error(lanes, &err);
            break;
        }
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

static void wait_for_lanes(struct lanes *lanes)
{
    (void)pthread_mutex_lock(&lanes->mutex);
    while (lanes->running > 0) {
        const struct timespec until = monotonic_until(TICK_MS);
        (void)pthread_cond_clockwait(&lanes->ended, &lanes->mutex, CLOCK_MONOTONIC, &until);
        if (lanes->job->tick == NULL || lanes->running == 0 || atomic_load(&lanes->failed))
            continue;
        (void)pthread_mutex_unlock(&lanes->mutex);
        struct err err = {0};
        if (lanes->job->tick(lanes->job->ctx, &err) < 0)
            keep_error(lanes, &err);
        (void)pthread_mutex_lock(&lanes->mutex);
    }
    (void)pthread_mutex_unlock(&lanes->mutex);
}

int lanes_run(const struct lanes_job *job, struct err *err)
{
    unsigned count = job->plan->lane_count;
    free_mem struct lane *all = calloc(count, sizeof(*all));
    free_mem pthread_t *threads = calloc(count, sizeof(*threads));
    if (all == NULL || threads == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory for %u lanes", count);
    struct lanes lanes = {
        .job = job, .mutex = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER};
    unsigned started = start_threads(&lanes, all, threads);
    wait_for_lanes(&lanes);
    for (unsigned i = 0; i < started; i++)
        (void)pthread_join(threads[i], NULL);
    (void)pthread_cond_destroy(&lanes.ended);
    (void)pthread_mutex_destroy(&lanes.mutex);
    if (lanes.error.code != ERR_OK) {
        *err = lanes.error;
        return -(int)err->code;
    }
    if (atomic_load(&job->progress->cancel))
        return err_set(err, ERR_CANCELLED, "cancelled");
    return 0;
}
