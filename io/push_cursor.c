/* From extents to reads: whole chunks, coalesced to 1 MiB, small gaps read along. Pure. */
#include <assert.h>

#include "io/push_lane.h"

/* Reading this much for nothing is cheaper than another request. */
enum { GAP_MAX = 64 << 10 };

static bool test_bit(const uint64_t *bits, uint32_t index)
{
    return bits[index / 64] >> (index % 64) & 1;
}

/* The first extent that ends behind offset. */
static size_t find_extent(const struct extent *used, size_t count, uint64_t offset)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (used[middle].offset + used[middle].len > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

void push_cursor_open(struct push_cursor *cursor, const struct push_job *job, uint64_t region_index)
{
    const struct table *work = job->push->work;
    uint64_t start = region_index * work->region_size;
    assert(start < work->size);
    uint64_t end = start + min_u64(work->region_size, work->size - start);
    cursor->job = job;
    cursor->chunk_first = start / work->chunk_size;
    cursor->chunk_count = (uint32_t)div_round_up(end - start, work->chunk_size);
    cursor->next = 0;
    assert(cursor->chunk_count <= PUSH_REGION_CHUNKS_MAX);
    memset(cursor->wanted, 0, sizeof(cursor->wanted));
    for (size_t i = find_extent(job->used, job->used_count, start);
         i < job->used_count && job->used[i].offset < end; i++) {
        uint64_t from = max_u64(job->used[i].offset, start) - start;
        uint64_t to = min_u64(job->used[i].offset + job->used[i].len, end) - start;
        uint32_t last = (uint32_t)((to - 1) / work->chunk_size);
        for (uint32_t at = (uint32_t)(from / work->chunk_size); at <= last; at++)
            cursor->wanted[at / 64] |= (uint64_t)1 << (at % 64);
    }
}

static uint32_t span_chunks_max(const struct push *push)
{
    uint32_t request_max =
        push->request_max && push->request_max < PUSH_READ_LEN ? push->request_max : PUSH_READ_LEN;
    uint32_t chunks = request_max / push->work->chunk_size;
    return chunks > 0 ? chunks : 1; /* the kernel splits what is still too large */
}

bool push_cursor_next(struct push_cursor *cursor, struct push_span *ret)
{
    while (cursor->next < cursor->chunk_count && !test_bit(cursor->wanted, cursor->next))
        cursor->next++;
    if (cursor->next == cursor->chunk_count)
        return false;
    const struct push *push = cursor->job->push;
    uint32_t gap_max = GAP_MAX / push->work->chunk_size;
    uint32_t max = span_chunks_max(push), gap = 0;
    struct push_span span = {.first = cursor->chunk_first + cursor->next};
    for (uint32_t i = 0; i < max && cursor->next + i < cursor->chunk_count; i++) {
        if (test_bit(cursor->wanted, cursor->next + i)) {
            span.wanted |= (uint64_t)1 << i;
            span.count = i + 1;
            gap = 0;
        } else if (++gap > gap_max) {
            break;
        }
    }
    cursor->next += span.count;
    *ret = span;
    return true;
}

uint64_t push_wanted_bytes(const struct table *work, const struct extent *used, size_t used_count)
{
    uint64_t bytes = 0, next = 0; /* next: first chunk not counted yet */
    for (size_t i = 0; i < used_count; i++) {
        uint64_t first = max_u64(used[i].offset / work->chunk_size, next);
        uint64_t last = (used[i].offset + used[i].len - 1) / work->chunk_size;
        if (last < first)
            continue;
        uint64_t end = min_u64((last + 1) * work->chunk_size, work->size);
        bytes += end - first * work->chunk_size;
        next = last + 1;
    }
    return bytes;
}
