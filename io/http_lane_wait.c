/* What a lane waits for: sockets and time. Known about libcurl (tried with 7.88):
 * - it says what it wants of a socket when that changes, so a poll that was used up is armed again
 *   by us;
 * - a poll that is replaced completes later, when its socket may be closed and the descriptor used
 *   again: every poll is an object of its own that knows its socket, or that it is stale. */
#include "io/http_lane.h"

#include <errno.h>
#include <poll.h>

#include "io/clock.h"

/* --- what libcurl wants ------------------------------------------------------------------- */

static struct lane_socket *take_socket(struct http_lane *lane, curl_socket_t fd)
{
    for (unsigned i = 0; i < lane->socket_count; i++) {
        struct lane_socket *socket = &lane->sockets[i];
        if (socket->used)
            continue;
        *socket = (struct lane_socket){.used = true, .fd = fd};
        (void)curl_multi_assign(lane->multi, fd, socket);
        return socket;
    }
    return NULL;
}

static void disarm(struct http_lane *lane, struct lane_socket *socket)
{
    struct lane_poll *poll = socket->poll;
    if (!poll)
        return;
    poll->socket = NULL;
    poll->pending++;
    socket->poll = NULL;
    ring_cancel(lane->ring, &poll->cancel, &poll->op);
}

static int on_socket(CURL *curl, curl_socket_t fd, int what, void *ctx, void *assigned)
{
    struct http_lane *lane = ctx;
    struct lane_socket *socket = assigned;
    char *private = NULL;
    if (!socket && what != CURL_POLL_REMOVE)
        socket = take_socket(lane, fd);
    (void)curl_easy_getinfo(curl, CURLINFO_PRIVATE, &private);
    struct http_transfer *transfer = (struct http_transfer *)(void *)private;
    if (!socket) { /* -1 would end all transfers of the multi handle */
        bool wanted = what != CURL_POLL_REMOVE && transfer; /* the handle that closes has none */
        if (wanted)
            transfer->unwatched = lane->has_unwatched = true;
        return 0;
    }
    socket->want = what == CURL_POLL_REMOVE ? 0
                                            : (what & CURL_POLL_IN ? POLLIN : 0U) |
                                                  (what & CURL_POLL_OUT ? POLLOUT : 0U);
    socket->transfer = transfer;
    if (socket->poll && socket->poll->mask != socket->want)
        disarm(lane, socket);
    socket->used = what != CURL_POLL_REMOVE;
    if (!socket->used)
        (void)curl_multi_assign(lane->multi, fd, NULL);
    return 0;
}

static int on_timer(CURLM *multi, long timeout_ms, void *ctx)
{
    struct http_lane *lane = ctx;
    (void)multi;
    lane->deadline_ns = timeout_ms < 0 ? 0 : monotonic_ns() + (uint64_t)timeout_ms * 1000000;
    return 0;
}

/* --- polls -------------------------------------------------------------------------------- */

static void release_poll(struct lane_poll *poll)
{
    if (--poll->pending > 0)
        return;
    poll->next_free = poll->lane->free_polls;
    poll->lane->free_polls = poll;
}

static void cancel_done(struct ring_op *op)
{
    struct lane_poll *poll = op->owner;
    release_poll(poll);
    http_lane_pump(poll->lane); /* somebody may wait for a free one */
}

/* Hang-ups and errors are told as what libcurl waits for: it reads or writes and finds the cause.
 */
static int action_bits(unsigned events, unsigned want)
{
    if (events & ~(unsigned)(POLLIN | POLLOUT))
        events |= want;
    return (events & POLLIN ? CURL_CSELECT_IN : 0) | (events & POLLOUT ? CURL_CSELECT_OUT : 0);
}

static void poll_done(struct ring_op *op)
{
    struct lane_poll *poll = op->owner;
    struct http_lane *lane = poll->lane;
    struct lane_socket *socket = poll->socket;
    release_poll(poll);
    if (socket) {
        socket->poll = NULL;
        if (op->result == 0) {
            http_lane_act(lane, socket->fd, action_bits(op->events, socket->want));
            if (socket->used && (op->events & POLLIN))
                http_acknowledge(socket->fd);
        } else if (op->result != -ECANCELED) {
            struct err why;
            errno = -op->result;
            (void)err_sys(&why, ERR_STORE, "wait for %s", lane->server.origin);
            http_lane_abandon(lane, socket->transfer, &why);
        }
    }
    http_lane_pump(lane);
}

static void arm_sockets(struct http_lane *lane)
{
    for (unsigned i = 0; i < lane->socket_count; i++) {
        struct lane_socket *socket = &lane->sockets[i];
        struct lane_poll *poll = lane->free_polls;
        if (!socket->used || socket->poll || socket->want == 0 || !poll)
            continue;
        lane->free_polls = poll->next_free;
        poll->pending = 1;
        poll->socket = socket;
        poll->mask = socket->want;
        socket->poll = poll;
        ring_poll(lane->ring, &poll->op, socket->fd, socket->want);
    }
}

/* --- the timer ---------------------------------------------------------------------------- */

static void timer_cancel_done(struct ring_op *op)
{
    struct http_lane *lane = op->owner;
    lane->cancel_pending = false;
    http_lane_pump(lane);
}

static void timer_done(struct ring_op *op)
{
    struct http_lane *lane = op->owner;
    lane->timer_pending = lane->timer_cancelled = false;
    if (op->result < 0 && op->result != -ECANCELED) {
        struct err why;
        errno = -op->result;
        (void)err_sys(&why, ERR_STORE, "set a timer for %s", lane->server.origin);
        http_lane_abandon_all(lane, &why);
    }
    http_lane_pump(lane);
}

/* One that fires too early is left alone: it is set again then. */
static void arm_timer(struct http_lane *lane)
{
    uint64_t at_ns = lane->tick_ns;
    if (lane->deadline_ns > 0 && lane->deadline_ns < at_ns)
        at_ns = lane->deadline_ns;
    if (lane->timer_pending) {
        bool wrong = lane->active == 0 || at_ns < lane->timer_ns;
        if (wrong && !lane->timer_cancelled && !lane->cancel_pending) {
            lane->timer_cancelled = lane->cancel_pending = true;
            ring_cancel(lane->ring, &lane->timer_cancel, &lane->timer);
        }
        return;
    }
    if (lane->active == 0)
        return;
    uint64_t now_ns = monotonic_ns();
    lane->timer_pending = true;
    lane->timer_ns = at_ns;
    ring_timer(lane->ring, &lane->timer, at_ns > now_ns ? (at_ns - now_ns) / 1000 + 1 : 0);
}

/* --- open ---------------------------------------------------------------------------------- */

/* A connection attempt may have two sockets, one an address family, and libcurl's resolver (of
 * localhost) one more: four are never all used. A socket has one poll that counts and some that are
 * being cancelled; when none is free it is armed when one is. */
int http_lane_wait_open(struct http_lane *lane, struct err *err)
{
    lane->socket_count = lane->connection_count * 4;
    lane->poll_count = lane->connection_count * 8;
    lane->sockets = calloc(lane->socket_count, sizeof(*lane->sockets));
    lane->polls = calloc(lane->poll_count, sizeof(*lane->polls));
    if (!lane->sockets || !lane->polls)
        return err_set(err, ERR_INTERNAL, "out of memory");
    for (unsigned i = 0; i < lane->poll_count; i++) {
        struct lane_poll *poll = &lane->polls[i];
        *poll = (struct lane_poll){.lane = lane, .next_free = lane->free_polls};
        poll->op.done = poll_done;
        poll->cancel.done = cancel_done;
        poll->op.owner = poll->cancel.owner = poll;
        lane->free_polls = poll;
    }
    lane->timer.done = timer_done;
    lane->timer_cancel.done = timer_cancel_done;
    lane->timer.owner = lane->timer_cancel.owner = lane;
    curl_multi_setopt(lane->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(lane->multi, CURLMOPT_SOCKETDATA, lane);
    curl_multi_setopt(lane->multi, CURLMOPT_TIMERFUNCTION, on_timer);
    curl_multi_setopt(lane->multi, CURLMOPT_TIMERDATA, lane);
    return 0;
}

void http_lane_arm(struct http_lane *lane)
{
    arm_sockets(lane);
    arm_timer(lane);
}
