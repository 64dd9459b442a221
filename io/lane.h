/* Lanes: K threads, each with its own ring, payload arena and store_lane; a lane does its CPU work
 * inline. They share the dispenser of work items, the first error and counters, nothing else.
 *
 * The first error is kept and closes admission: lane_take() gives nothing more and lane_stopped()
 * is true. Every lane then drains what it has in flight and returns; lanes_run() joins them and
 * reports. Cancelling works the same way.
 *
 *     struct lanes_job job = {.plan = &plan, .item_count = regions, .run = my_lane, …};
 *     rc = lanes_run(&job, err);
 */
#ifndef TIDEMARK_IO_LANE_H
#define TIDEMARK_IO_LANE_H

#include "io/buffers.h"
#include "io/store_lane.h"

enum {
    /* Neighbouring regions that a lane takes at a time: a snapshot stores their chunks side by
     * side, a restore fetches them together. */
    LANE_TAKE_MAX = 16,
};

struct lanes;

/* What one lane owns; valid inside run(). */
struct lane {
    struct lanes *lanes;
    unsigned index; /* of job->plan->lane_count */
    struct ring *ring;
    struct buffers buffers;
    struct store_lane *store;
    void *ctx; /* the job's */
};

struct lanes_job {
    const struct buffers_plan *plan;
    uint64_t item_count; /* handed out as 0 … item_count - 1, each once */
    struct store *store;
    unsigned request_count; /* store requests in flight a lane, at the most */
    int fd;                 /* registered with every ring; -1 = none */
    uint64_t rate_limit;    /* of lane_rate_reserve(), bytes a second; 0 = none */
    struct io_progress *progress;
    /* On the lane's thread. Returns with nothing in flight, except when the ring itself failed. */
    int (*run)(struct lane *lane, struct err *err);
    /* On the caller's thread, several times a second while lanes run; may be NULL. */
    int (*tick)(void *ctx, struct err *err);
    void *ctx;
};

/* Starts and joins the threads. ERR_CANCELLED when progress->cancel was set; otherwise the first
 * error of any lane. */
int lanes_run(const struct lanes_job *job, struct err *err);

/* The next items: of those before `end` neighbours, at most LANE_TAKE_MAX; fewer when few are left,
 * so that lanes end together, but not fewer than min; from `end` on one. Returns how many; 0 when
 * there is none or the job stops. Any lane. */
uint64_t lane_take(struct lane *lane, uint64_t end, uint64_t min, uint64_t *ret_first);

/* True when an error was kept or somebody cancelled. Any lane; cheap. */
bool lane_stopped(const struct lane *lane);

/* Keeps err if it is the first, and closes admission. Any lane. */
void lane_fail(struct lane *lane, const struct err *err);

/* Takes len bytes of the rate limit; returns the CLOCK_MONOTONIC time (ns) before which the lane
 * must not read again. */
uint64_t lane_rate_reserve(struct lane *lane, uint64_t len);

#endif
