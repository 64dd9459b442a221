/* Dispatch of lane requests to the store's scheme. */
#include "io/store_lane.h"

#include <assert.h>

#include "io/store_ops.h"

void store_lane_shape(struct store *store, struct store_lane_shape *ret)
{
    *ret = (struct store_lane_shape){.lane_max = store->ops->lane_depth, .get_len = 8 << 20};
    if (store->ops->lane_shape != NULL)
        store->ops->lane_shape(store, ret);
}

int store_lane_open(struct store *store, struct ring *ring, unsigned lane_index,
                    unsigned lane_count, unsigned request_count, struct store_lane **ret,
                    struct err *err)
{
    struct store_lane *lane;
    int rc = store->ops->lane_open(store, ring, lane_index, lane_count, request_count, &lane, err);
    if (rc < 0)
        return rc;
    assert(lane->ops != NULL); /* a store that wraps another gives the inner one's lane */
    *ret = lane;
    return 0;
}

void store_lane_stop(struct store_lane *lane)
{
    if (lane->ops->lane_stop != NULL)
        lane->ops->lane_stop(lane);
}

void store_lane_close(struct store_lane *lane)
{
    if (lane != NULL)
        lane->ops->lane_close(lane);
}

static void check(const struct store_request *request)
{
    assert(request->done != NULL);
    assert(store_name_valid(request->name));
    assert((uintptr_t)request->buf % STORE_LANE_ALIGN == 0);
    assert(request->capacity % STORE_LANE_ALIGN == 0);
    assert(request->len > 0 && request->len <= STORE_LANE_LEN_MAX);
}

void store_lane_put(struct store_lane *lane, struct store_request *request)
{
    check(request);
    assert(request->capacity >= request->len);
    lane->ops->lane_put(lane, request);
}

void store_lane_get(struct store_lane *lane, struct store_request *request)
{
    check(request);
    assert(request->capacity >= request->len + STORE_LANE_SLACK);
    lane->ops->lane_get(lane, request);
}
