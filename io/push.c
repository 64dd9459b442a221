/* push_run(): from extents to lanes. The work of a lane is in push_lane.c, the end of a snapshot in
 * push_seal.c. */
#include "io/push.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>

#include "io/push_lane.h"

/* A pack is closed when a chunk might not fit any more, so every one but a lane's last holds at
 * least this. */
static const uint64_t pack_fill_min =
    FMT_PACK_TARGET - FMT_HEADER_LEN - FMT_CHUNK_SIZE_MAX - FMT_TAG_LEN;

enum { LANE_BYTES_MIN = 64 << 20 };

static void check_push(const struct push *push, const struct extent *used, size_t used_count)
{
    assert(push->work->chunk_size == push->repo->chunk_size);
    assert(fmt_chunk_size_valid(push->work->chunk_size));
    assert(push->parent == NULL || push->parent->chunk_size == push->work->chunk_size);
    assert(push->alignment > 0 && (push->alignment & (push->alignment - 1)) == 0);
    assert(push->alignment <= push->work->chunk_size);
    for (size_t i = 0; i < used_count; i++) {
        assert(used[i].len > 0 && used[i].offset < push->work->size);
        assert(used[i].len <= push->work->size - used[i].offset);
        assert(i == 0 || used[i].offset > used[i - 1].offset + used[i - 1].len);
    }
}

/* Room for every pack number that this run can give away, so that lanes share no list. */
static int grow_pack_len(struct push *push, uint64_t bytes, unsigned lane_count, struct err *err)
{
    uint64_t limit = push->next_pack + (bytes / pack_fill_min + 1) * lane_count;
    if (limit > UINT32_MAX)
        return err_set(err, ERR_INTERNAL, "too many packs in one snapshot");
    uint64_t *pack_len = reallocarray(push->pack_len, (size_t)limit, sizeof(*pack_len));
    if (pack_len == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory for %" PRIu64 " packs", limit);
    memset(pack_len + push->next_pack, 0, (size_t)(limit - push->next_pack) * sizeof(*pack_len));
    push->pack_len = pack_len;
    push->pack_len_count = (uint32_t)limit;
    return 0;
}

/* After a success the numbers behind the last pack are free again. */
static void shrink_pack_len(struct push *push, bool success)
{
    uint32_t next = push->pack_len_count;
    while (success && next > push->next_pack && push->pack_len[next - 1] == 0)
        next--;
    push->next_pack = next;
    push->pack_len_count = next;
}

int push_run(struct push *push, const struct extent *used, size_t used_count, struct err *err)
{
    check_push(push, used, used_count);
    if (used_count == 0)
        return 0;
    const struct extent *last = &used[used_count - 1];
    uint32_t region_first = (uint32_t)(used[0].offset / push->work->region_size);
    uint64_t region_count =
        (last->offset + last->len - 1) / push->work->region_size - region_first + 1;
    uint64_t bytes = push_wanted_bytes(push->work, used, used_count);
    struct store_lane_shape shape;
    store_lane_shape(push->store, &shape);
    struct buffers_need need = {
        .block_name = "read",
        .object_name = "pack",
        .block_len = PUSH_READ_LEN,
        .block_count = PUSH_READ_COUNT,
        .object_len = FMT_PACK_TARGET,
        .object_min = PUSH_PACKS_MIN,
        .object_max = (unsigned)max_u64(PUSH_PACKS_MIN, shape.lane_max),
        .object_total = (unsigned)min_u64(shape.total_max, div_round_up(bytes, FMT_PACK_TARGET)),
        .object_spare = 1, /* the one that is being filled */
        .object_extra = shape.overhead_len,
        /* Of a small pass each lane would leave a small pack, and a restore a request for it. */
        .lane_max = min_u64(region_count, div_round_up(bytes, LANE_BYTES_MIN)),
    };
    struct buffers_plan plan;
    int rc = buffers_plan(&push->options, &need, &plan, err);
    if (rc < 0)
        return rc;
    (void)snprintf(push->memory_sum, sizeof(push->memory_sum), "%s", plan.text);
    rc = grow_pack_len(push, bytes, plan.lane_count, err);
    if (rc == 0)
        rc = push_need_origin(push, err);
    if (rc == 0)
        rc = store_prepare_puts(push->store, err);
    if (rc < 0)
        return rc;
    (void)atomic_fetch_add(&push->progress->bytes_total, bytes);
    struct push_job job = {
        .push = push,
        .used = used,
        .used_count = used_count,
        .region_first = region_first,
        .region_count = region_count,
        .pack_first = push->next_pack,
        .pack_limit = push->pack_len_count,
        .lane_count = plan.lane_count,
        .pack_count = plan.object_count,
    };
    struct lanes_job lanes = {
        .plan = &plan,
        .item_count = region_count,
        .store = push->store,
        .request_count = plan.object_count,
        .fd = push->fd,
        .rate_limit = push->options.rate_limit,
        .progress = push->progress,
        .run = push_lane_run,
        .ctx = &job,
    };
    rc = lanes_run(&lanes, err);
    shrink_pack_len(push, rc == 0);
    return rc;
}

int push_need_origin(struct push *push, struct err *err)
{
    const struct keyring *keys = store_keys(push->store);
    assert((keys != NULL) == (push->repo->cipher != REPO_PLAIN));
    return keys == NULL || push->origin.key_id != 0
               ? 0
               : seal_origin_new(keys, FMT_ROLE_DATA, &push->origin, err);
}

void push_header(const struct push *push, enum fmt_kind kind, uint32_t number, uint8_t *object,
                 size_t len)
{
    struct fmt_header header = {.kind = kind, .body_len = len - FMT_HEADER_LEN, .number = number};
    memcpy(header.repository, push->repo->id, ID_LEN);
    memcpy(header.volume, push->work->volume, ID_LEN);
    memcpy(header.snapshot, push->work->snapshot, ID_LEN);
    header.key_id = push->origin.key_id;
    memcpy(header.salt, push->origin.salt, FMT_SALT_LEN);
    fmt_header_encode(&header, object);
}

void push_release(struct push *push)
{
    free(push->pack_len);
    free(push->rewrite);
    push->pack_len = NULL;
    push->rewrite = NULL;
    push->pack_len_count = 0;
}
