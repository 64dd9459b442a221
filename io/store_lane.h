/* Objects moved on a lane's ring: payloads of push and pull. One store_lane a lane, opened from
 * the job's store, which the lanes do not touch otherwise.
 *
 * A struct store_request and its buffer belong to the caller, who keeps both until done(); done()
 * runs inside ring_run() and may start further requests. Retries are the store's business: an error
 * that arrives here is final. */
#ifndef TIDEMARK_IO_STORE_LANE_H
#define TIDEMARK_IO_STORE_LANE_H

#include "io/ring.h"
#include "io/store.h"

struct store_lane;

enum {
    /* Directory stores read whole blocks around the range: a buffer for a get is this much longer
     * than the longest range, and payload points into it. */
    STORE_LANE_SLACK = 8192,
    STORE_LANE_ALIGN = 4096, /* of buf and capacity */
    STORE_LANE_LEN_MAX = 16 << 20,
};

struct store_request {
    /* in */
    char name[STORE_NAME_MAX + 1];
    uint8_t *buf;    /* aligned; put: len bytes at its start, what follows may be overwritten */
    size_t capacity; /* aligned; put: ≥ len rounded up; get: ≥ len + STORE_LANE_SLACK */
    uint64_t offset; /* get: bytes from the start of the object */
    size_t len;
    void (*done)(struct store_request *request);
    /* out, in done() */
    const uint8_t *payload; /* get: the len bytes */
    int rc;                 /* 0, STORE_EXISTS, or -code with err */
    struct err err;
};

/* What keeps this store busy. */
struct store_lane_shape {
    unsigned lane_max;   /* puts or gets in flight a lane */
    unsigned total_max;  /* over all lanes; 0 = no limit */
    size_t get_len;      /* bytes of one get: more needs memory, less costs requests */
    size_t overhead_len; /* memory of one request in flight beside its buffer */
};
void store_lane_shape(struct store *store, struct store_lane_shape *ret);

/* lane_count lanes are opened in all, each for at most request_count requests at once; lane_index
 * is this one's of them: what cannot be shared evenly goes to the first ones. */
int store_lane_open(struct store *store, struct ring *ring, unsigned lane_index,
                    unsigned lane_count, unsigned request_count, struct store_lane **ret,
                    struct err *err);
/* Nobody wants the results any more: requests in flight, and those to come, end soon, where the
 * store may take long; their rc is ERR_CANCELLED unless they were just done. */
void store_lane_stop(struct store_lane *lane);
/* No request may be in flight, unless the ring failed. */
void store_lane_close(struct store_lane *lane);

/* A durable whole object, in the order of store_put(). */
void store_lane_put(struct store_lane *lane, struct store_request *request);
/* len bytes at offset; fewer is ERR_CORRUPT. ERR_MISSING as in store_get(). */
void store_lane_get(struct store_lane *lane, struct store_request *request);

#endif
