/* Exchanges on a lane's ring: queue, beginning, end. See http_lane.h for the parts.
 *
 * libcurl must not be called from its own callbacks (curl_multi_socket_action(3)), and done() of an
 * exchange may start the next: both only leave a note, and pump goes round again. */
#include "io/http_lane.h"

#include <assert.h>

#include "io/clock.h"

enum { TICK_MS_MIN = 10, TICK_MS_MAX = 1000 };

/* --- ends of exchanges -------------------------------------------------------------------- */

static void finish(struct http_lane *lane, struct http_transfer *transfer, CURLcode code)
{
    struct http_exchange *x = transfer->x;
    (void)curl_multi_remove_handle(lane->multi, transfer->curl);
    http_transfer_end(transfer, code);
    transfer->next_free = lane->free_transfers;
    lane->free_transfers = transfer;
    lane->active--;
    x->done(x);
}

/* Ends one for a reason of ours; its connection is closed. */
void http_lane_abandon(struct http_lane *lane, struct http_transfer *transfer,
                       const struct err *why)
{
    transfer->why = *why;
    finish(lane, transfer, CURLE_ABORTED_BY_CALLBACK);
}

void http_lane_abandon_all(struct http_lane *lane, const struct err *why)
{
    for (unsigned i = 0; i < lane->connection_count; i++)
        if (lane->transfers[i].x)
            http_lane_abandon(lane, &lane->transfers[i], why);
}

static void finish_done(struct http_lane *lane)
{
    int left;
    for (CURLMsg *msg; (msg = curl_multi_info_read(lane->multi, &left));) {
        char *private = NULL;
        CURLcode code = msg->data.result;
        (void)curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, &private);
        if (msg->msg == CURLMSG_DONE)
            finish(lane, (struct http_transfer *)(void *)private, code);
    }
}

/* Those that on_socket() could not watch. */
static void finish_unwatched(struct http_lane *lane)
{
    struct err why;
    if (!lane->has_unwatched)
        return;
    lane->has_unwatched = false;
    (void)err_set(&why, ERR_STORE, "%s: more sockets than its connections should have",
                  lane->server.origin);
    for (unsigned i = 0; i < lane->connection_count; i++)
        if (lane->transfers[i].x && lane->transfers[i].unwatched)
            http_lane_abandon(lane, &lane->transfers[i], &why);
}

/* A look that comes late (a look-up of a name blocked this thread, or its owner did) comes before
 * the events of that time were handled: what waits in the sockets has not been seen. So the delay
 * is held against nobody, and the next look decides. */
static void finish_stalled(struct http_lane *lane, uint64_t now_ns)
{
    if (now_ns < lane->tick_ns)
        return;
    uint64_t late_ns = lane->tick_ns > 0 ? now_ns - lane->tick_ns : 0;
    uint64_t tick_ms = lane->server.stall_timeout_ms / 4;
    tick_ms = min_u64(max_u64(tick_ms, TICK_MS_MIN), TICK_MS_MAX);
    lane->tick_ns = now_ns + tick_ms * 1000000;
    for (unsigned i = 0; i < lane->connection_count; i++) {
        struct http_transfer *transfer = &lane->transfers[i];
        if (!transfer->x)
            continue;
        http_transfer_excuse(transfer, late_ns);
        if (http_transfer_stalled(transfer, now_ns))
            finish(lane, transfer, CURLE_OPERATION_TIMEDOUT);
    }
}

void http_lane_act(struct http_lane *lane, curl_socket_t fd, int bits)
{
    int running;
    CURLMcode code = curl_multi_socket_action(lane->multi, fd, bits, &running);
    if (code == CURLM_OK)
        return;
    struct err why;
    (void)err_set(&why, ERR_INTERNAL, "libcurl: %s", curl_multi_strerror(code));
    http_lane_abandon_all(lane, &why);
}

/* --- starting ----------------------------------------------------------------------------- */

static struct http_exchange *next_queued(struct http_lane *lane)
{
    struct http_exchange *x = lane->queue;
    assert(x); /* lane->queued > 0 */
    lane->queue = x->next;
    if (!lane->queue)
        lane->queue_tail = &lane->queue;
    lane->queued--;
    return x;
}

static int on_progress(void *ctx, curl_off_t a, curl_off_t down, curl_off_t b, curl_off_t up)
{
    (void)a, (void)b;
    http_transfer_moved(ctx, down + up);
    return 0;
}

static void start_queued(struct http_lane *lane)
{
    while (lane->queue && lane->free_transfers) {
        struct http_exchange *x = next_queued(lane);
        struct http_transfer *transfer = lane->free_transfers;
        if (http_transfer_begin(transfer, x) < 0) {
            x->done(x);
            continue;
        }
        lane->free_transfers = transfer->next_free;
        lane->active++;
        curl_easy_setopt(transfer->curl, CURLOPT_XFERINFOFUNCTION, on_progress);
        if (lane->active == 1)
            lane->tick_ns = 0;
        CURLMcode code = curl_multi_add_handle(lane->multi, transfer->curl);
        if (code == CURLM_OK)
            continue;
        struct err why;
        (void)err_set(&why, ERR_INTERNAL, "libcurl: %s", curl_multi_strerror(code));
        http_lane_abandon(lane, transfer, &why);
    }
}

static void cancel_all(struct http_lane *lane)
{
    struct err why;
    (void)err_set(&why, ERR_CANCELLED, "cancelled");
    http_lane_abandon_all(lane, &why);
    for (unsigned left = lane->queued; left > 0; left--) {
        struct http_exchange *x = next_queued(lane);
        x->err = why;
        x->rc = -(int)why.code;
        x->maybe_executed = false;
        x->done(x);
    }
}

void http_lane_pump(struct http_lane *lane)
{
    if (lane->pumping)
        return;
    lane->pumping = true;
    for (bool again = true; again;) {
        if (lane->stopping)
            cancel_all(lane);
        start_queued(lane);
        uint64_t now_ns = monotonic_ns();
        if (lane->deadline_ns > 0 && lane->deadline_ns <= now_ns) {
            lane->deadline_ns = 0;
            http_lane_act(lane, CURL_SOCKET_TIMEOUT, 0);
        }
        finish_done(lane);
        finish_unwatched(lane);
        finish_stalled(lane, now_ns);
        again = lane->queue && (lane->free_transfers || lane->stopping);
        again |= lane->deadline_ns > 0 && lane->deadline_ns <= now_ns;
    }
    http_lane_arm(lane);
    lane->pumping = false;
}

static void nop_done(struct ring_op *op)
{
    struct http_lane *lane = op->owner;
    lane->nop_pending = false;
    http_lane_pump(lane);
}

static void pump_later(struct http_lane *lane)
{
    if (lane->pumping || lane->nop_pending)
        return;
    lane->nop_pending = true;
    ring_nop(lane->ring, &lane->nop, 0);
}

void http_lane_start(struct http_lane *lane, struct http_exchange *x)
{
    assert(x->done);
    x->next = NULL;
    *lane->queue_tail = x;
    lane->queue_tail = &x->next;
    lane->queued++;
    pump_later(lane);
}

void http_lane_stop(struct http_lane *lane)
{
    lane->stopping = true;
    pump_later(lane);
}

/* --- open and close ----------------------------------------------------------------------- */

static int open_multi(struct http_lane *lane, struct err *err)
{
    lane->multi = curl_multi_init();
    if (!lane->multi)
        return err_set(err, ERR_INTERNAL, "libcurl did not start");
    curl_multi_setopt(lane->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING);
    curl_multi_setopt(lane->multi, CURLMOPT_MAXCONNECTS, (long)lane->connection_count);
    for (unsigned i = 0; i < lane->connection_count; i++) {
        struct http_transfer *transfer = &lane->transfers[i];
        int rc = http_transfer_open(transfer, &lane->server, err);
        if (rc < 0)
            return rc;
        transfer->next_free = lane->free_transfers;
        lane->free_transfers = transfer;
    }
    return 0;
}

int http_lane_open(const struct http_endpoint *endpoint, struct ring *ring,
                   unsigned connection_count, struct http_lane **ret, struct err *err)
{
    assert(connection_count > 0);
    struct http_lane *lane =
        calloc(1, sizeof(*lane) + connection_count * sizeof(struct http_transfer));
    if (!lane)
        return err_set(err, ERR_INTERNAL, "out of memory");
    lane->ring = ring;
    lane->connection_count = connection_count;
    lane->queue_tail = &lane->queue;
    lane->nop.done = nop_done;
    lane->nop.owner = lane;
    int rc = http_server_open(&lane->server, endpoint, err);
    if (rc == 0)
        rc = open_multi(lane, err);
    if (rc == 0)
        rc = http_lane_wait_open(lane, err);
    if (rc < 0) {
        http_lane_close(lane);
        return rc;
    }
    *ret = lane;
    return 0;
}

void http_lane_close(struct http_lane *lane)
{
    if (!lane)
        return;
    if (lane->multi) {
        curl_multi_setopt(lane->multi, CURLMOPT_SOCKETFUNCTION, NULL);
        curl_multi_setopt(lane->multi, CURLMOPT_TIMERFUNCTION, NULL);
    }
    for (unsigned i = 0; i < lane->connection_count; i++) {
        if (lane->transfers[i].x)
            (void)curl_multi_remove_handle(lane->multi, lane->transfers[i].curl);
        http_transfer_close(&lane->transfers[i]);
    }
    if (lane->multi)
        (void)curl_multi_cleanup(lane->multi);
    free(lane->sockets);
    free(lane->polls);
    http_server_close(&lane->server);
    free(lane);
}
