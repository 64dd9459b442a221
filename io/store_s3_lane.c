/* s3:// on a lane: every request is an s3_call whose tries go through the lane's http_lane; between
 * tries a timer of the ring runs. A put takes the way of the client mode (store_s3.h):
 *
 *     look (unless a 412 proves that the server creates once) → PUT → compare after a doubtful 412
 *
 * The service is a copy of the job's: what a lane learns about the server stays in the lane. */
#include <assert.h>
#include <errno.h>
#include <time.h>

#include "io/clock.h"
#include "io/s3_request.h"
#include "io/store_s3.h"

enum {
    /* What 32 connections need then (34 buffers, their own memory and two lanes' writes) is 127
     * MiB: it fits a memory_max of 128. Measured with radosgw: 1, 2 and 4 MiB give 0.56, 0.80 and
     * 0.91 x a downloader of whole packs. */
    GET_LEN = 2 << 20,
};

struct s3_lane;

enum step { STEP_GET, STEP_LOOK, STEP_PUT, STEP_COMPARE };

struct s3_transfer {
    struct s3_lane *lane;
    struct store_request *request;
    struct s3_transfer *next_free;
    enum step step;
    size_t at;            /* STEP_COMPARE: bytes that are equal */
    uint8_t *compare_buf; /* STEP_COMPARE only */
    struct ring_op timer, cancel;
    unsigned waits; /* of timer and cancel */
    struct s3_call call;
};

struct s3_lane {
    struct store_lane lane;
    struct s3_service *service;
    struct ring *ring;
    struct http_lane *http;
    bool stopping;
    char origin[S3_ORIGIN_MAX];
    struct s3_transfer *free;
    unsigned transfer_count;
    struct s3_transfer transfers[];
};

static struct s3_lane *of(struct store_lane *lane)
{
    return CONTAINER_OF(lane, struct s3_lane, lane);
}

static void call_done(struct http_exchange *x);
static void timer_done(struct ring_op *op);
static void cancel_done(struct ring_op *op);

/* --- open, close -------------------------------------------------------------------------- */

void store_s3_lane_shape(struct store *store, struct store_lane_shape *shape)
{
    const struct store_s3 *s3 = CONTAINER_OF(store, struct store_s3, store);
    shape->lane_max = shape->total_max = s3->service->connections;
    shape->get_len = GET_LEN;
    shape->overhead_len = HTTP_LANE_MEMORY + sizeof(struct s3_transfer);
}

static int open_http(struct s3_lane *lane, unsigned connection_count, struct err *err)
{
    const struct s3_service *service = lane->service;
    s3_service_origin(service, lane->origin);
    const struct http_endpoint endpoint = store_s3_endpoint(service, lane->origin);
    return http_lane_open(&endpoint, lane->ring, connection_count, &lane->http, err);
}

/* Of count connections; a lane that had none could do nothing. */
static unsigned share_of(unsigned count, unsigned lane_index, unsigned lane_count)
{
    unsigned share = count / lane_count + (lane_index < count % lane_count);
    return share > 0 ? share : 1;
}

int store_s3_lane_open(struct store *store, struct ring *ring, unsigned lane_index,
                       unsigned lane_count, unsigned request_count, struct store_lane **ret,
                       struct err *err)
{
    const struct store_s3 *from = CONTAINER_OF(store, struct store_s3, store);
    struct s3_lane *lane = calloc(1, sizeof(*lane) + request_count * sizeof(struct s3_transfer));
    if (lane == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    lane->lane.ops = store->ops;
    lane->ring = ring;
    lane->transfer_count = request_count;
    for (unsigned i = 0; i < request_count; i++) {
        struct s3_transfer *transfer = &lane->transfers[i];
        transfer->lane = lane;
        transfer->timer.done = timer_done;
        transfer->cancel.done = cancel_done;
        transfer->next_free = lane->free;
        lane->free = transfer;
    }
    int rc = s3_service_copy(from->service, &lane->service, err);
    if (rc == 0) {
        unsigned share = share_of(lane->service->connections, lane_index, lane_count);
        rc = open_http(lane, (unsigned)min_u64(share, request_count), err);
    }
    if (rc < 0) {
        store_s3_lane_close(&lane->lane);
        return rc;
    }
    *ret = &lane->lane;
    return 0;
}

void store_s3_lane_close(struct store_lane *store_lane)
{
    struct s3_lane *lane = of(store_lane);
    http_lane_close(lane->http);
    s3_service_close(lane->service);
    for (unsigned i = 0; i < lane->transfer_count; i++)
        free(lane->transfers[i].compare_buf);
    free(lane);
}

/* --- one try after the other -------------------------------------------------------------- */

static void finish(struct s3_transfer *transfer, int rc)
{
    struct store_request *request = transfer->request;
    free(transfer->compare_buf);
    transfer->compare_buf = NULL;
    transfer->request = NULL;
    transfer->next_free = transfer->lane->free;
    transfer->lane->free = transfer;
    request->rc = rc;
    request->done(request);
}

static void send_try(struct s3_transfer *transfer)
{
    struct s3_lane *lane = transfer->lane;
    s3_call_sign(&transfer->call, lane->service, time(NULL));
    transfer->call.exchange.done = call_done;
    transfer->call.exchange.owner = transfer;
    http_lane_start(lane->http, &transfer->call.exchange);
}

static void start_step(struct s3_transfer *transfer, enum step step)
{
    struct s3_call *call = &transfer->call;
    const struct s3_service *service = transfer->lane->service;
    const struct store_request *request = transfer->request;
    uint64_t now_ms = monotonic_ms();
    transfer->step = step;
    switch (step) {
    case STEP_GET:
        s3_call_get(call, service, request->name, request->offset, request->buf, request->len,
                    now_ms);
        break;
    case STEP_LOOK:
        s3_call_look(call, service, request->name, now_ms);
        break;
    case STEP_PUT:
        s3_call_put(call, service, request->name, request->buf, request->len, now_ms);
        break;
    case STEP_COMPARE:
        s3_call_get(call, service, request->name, transfer->at, transfer->compare_buf,
                    (size_t)min_u64(request->len - transfer->at, STORE_S3_COMPARE_LEN), now_ms);
        break;
    }
    send_try(transfer);
}

static void wait_over(struct s3_transfer *transfer)
{
    if (--transfer->waits > 0)
        return;
    struct store_request *request = transfer->request;
    if (transfer->lane->stopping)
        finish(transfer, err_set(&request->err, ERR_CANCELLED, "cancelled"));
    else if (transfer->timer.result < 0 && transfer->timer.result != -ECANCELED) {
        errno = -transfer->timer.result;
        finish(transfer, err_sys(&request->err, ERR_STORE, "wait before trying again to use '%s'",
                                 request->name));
    } else
        send_try(transfer);
}

static void timer_done(struct ring_op *op)
{
    wait_over(CONTAINER_OF(op, struct s3_transfer, timer));
}

static void cancel_done(struct ring_op *op)
{
    wait_over(CONTAINER_OF(op, struct s3_transfer, cancel));
}

static void again_after(struct s3_transfer *transfer, unsigned delay_ms)
{
    struct s3_lane *lane = transfer->lane;
    struct store_request *request = transfer->request;
    char origin[S3_ORIGIN_MAX];
    s3_service_origin(lane->service, origin);
    if (strcmp(origin, lane->origin) != 0) { /* client mode has been there before: never seen */
        finish(transfer, -(int)request->err.code);
        return;
    }
    if (lane->stopping) {
        finish(transfer, err_set(&request->err, ERR_CANCELLED, "cancelled"));
        return;
    }
    if (delay_ms == 0) {
        send_try(transfer);
        return;
    }
    transfer->waits = 1;
    ring_timer(lane->ring, &transfer->timer, (uint64_t)delay_ms * 1000);
}

/* --- verdicts ----------------------------------------------------------------------------- */

static void got_range(struct s3_transfer *transfer)
{
    struct store_request *request = transfer->request;
    request->payload = request->buf;
    if (transfer->call.got == request->len)
        finish(transfer, 0);
    else
        finish(transfer, err_set(&request->err, ERR_CORRUPT,
                                 "object '%s' is cut: it has %llu bytes, %zu at %llu are wanted",
                                 request->name, (unsigned long long)transfer->call.object_size,
                                 request->len, (unsigned long long)request->offset));
}

static void compare_more(struct s3_transfer *transfer)
{
    const struct store_request *request = transfer->request;
    const struct s3_call *call = &transfer->call;
    size_t part = (size_t)min_u64(request->len - transfer->at, STORE_S3_COMPARE_LEN);
    bool equal = call->object_size == request->len && call->got == part &&
                 memcmp(transfer->compare_buf, request->buf + transfer->at, part) == 0;
    transfer->at += part;
    if (!equal)
        finish(transfer, STORE_EXISTS);
    else if (transfer->at == request->len)
        finish(transfer, 0);
    else
        start_step(transfer, STEP_COMPARE);
}

static void compare_first(struct s3_transfer *transfer)
{
    struct store_request *request = transfer->request;
    transfer->at = 0;
    transfer->compare_buf = malloc(STORE_S3_COMPARE_LEN);
    if (transfer->compare_buf == NULL)
        finish(transfer, err_set(&request->err, ERR_INTERNAL, "out of memory"));
    else
        start_step(transfer, STEP_COMPARE);
}

static void step_done(struct s3_transfer *transfer)
{
    switch (transfer->step) {
    case STEP_GET:
        got_range(transfer);
        break;
    case STEP_LOOK:
        finish(transfer, STORE_EXISTS);
        break;
    case STEP_PUT:
        finish(transfer, 0);
        break;
    case STEP_COMPARE:
        compare_more(transfer);
        break;
    }
}

static void call_done(struct http_exchange *x)
{
    struct s3_transfer *transfer = x->owner;
    struct err *err = &transfer->request->err;
    unsigned delay_ms = 0;
    enum s3_verdict verdict = s3_call_judge(&transfer->call, transfer->lane->service,
                                            monotonic_ms(), time(NULL), &delay_ms, err);
    switch (verdict) {
    case S3_DONE:
        step_done(transfer);
        break;
    case S3_ABSENT:
        if (transfer->step == STEP_LOOK)
            start_step(transfer, STEP_PUT);
        else
            finish(transfer, -(int)err->code);
        break;
    case S3_COMPARE:
        compare_first(transfer);
        break;
    case S3_UNCONDITIONAL:
        start_step(transfer, STEP_LOOK);
        break;
    case S3_AGAIN:
        again_after(transfer, delay_ms);
        break;
    case S3_FAILED:
        finish(transfer, -(int)err->code);
        break;
    }
}

/* --- put, get, stop ----------------------------------------------------------------------- */

static struct s3_transfer *take_transfer(struct s3_lane *lane, struct store_request *request)
{
    struct s3_transfer *transfer = lane->free;
    assert(transfer != NULL); /* request_count of store_lane_open() was right */
    lane->free = transfer->next_free;
    transfer->request = request;
    transfer->waits = 0;
    request->rc = 0;
    request->payload = NULL;
    return transfer;
}

void store_s3_lane_put(struct store_lane *store_lane, struct store_request *request)
{
    struct s3_lane *lane = of(store_lane);
    bool sure = lane->service->create_once == S3_CREATE_ONCE_YES;
    start_step(take_transfer(lane, request), sure ? STEP_PUT : STEP_LOOK);
}

void store_s3_lane_get(struct store_lane *lane, struct store_request *request)
{
    start_step(take_transfer(of(lane), request), STEP_GET);
}

void store_s3_lane_stop(struct store_lane *store_lane)
{
    struct s3_lane *lane = of(store_lane);
    if (lane->stopping)
        return;
    lane->stopping = true;
    http_lane_stop(lane->http);
    for (unsigned i = 0; i < lane->transfer_count; i++) {
        struct s3_transfer *transfer = &lane->transfers[i];
        if (transfer->request == NULL || transfer->waits == 0)
            continue;
        transfer->waits++;
        ring_cancel(lane->ring, &transfer->cancel, &transfer->timer);
    }
}
