/* What a batch of regions needs. Pure: no I/O. */
#include <assert.h>

#include "io/pull_lane.h"

/* A pack more than a full snapshot would have costs a request in each group of regions that are
 * fetched together. As many groups as there may be for these to add a quarter; one lane then does a
 * small volume alone, which costs less than the requests that several would make of it. */
uint32_t pull_plan_batch(const struct fmt_manifest *manifest, uint64_t get_len)
{
    uint64_t live = 0;
    for (uint32_t i = 0; i < manifest->pack_count; i++)
        live += manifest->packs[i].live_len;
    uint64_t fresh_packs = div_round_up(live, FMT_PACK_TARGET);
    if (manifest->pack_count <= fresh_packs)
        return 1;
    uint64_t more = (manifest->region_count + div_round_up(live, get_len)) / 4;
    uint64_t groups = max_u64(1, more / (manifest->pack_count - fresh_packs));
    return (uint32_t)min_u64(LANE_TAKE_MAX, div_round_up(manifest->region_count, groups));
}

uint64_t pull_chunk_offset(const struct pull_lane *pl, const struct pull_region *region,
                           uint32_t chunk)
{
    return (uint64_t)region->index * pl->manifest->region_size +
           (uint64_t)chunk * pl->manifest->chunk_size;
}

const struct extent *pull_withheld(const struct pull *pull, uint64_t offset)
{
    size_t low = 0, high = pull->withheld_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (pull->withheld[middle].offset + pull->withheld[middle].len > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low < pull->withheld_count ? &pull->withheld[low] : NULL;
}

bool pull_is_withheld(const struct pull *pull, uint64_t offset, uint64_t len)
{
    const struct extent *next = pull_withheld(pull, offset);
    return next != NULL && next->offset < offset + len;
}

void pull_chunk_done(struct pull_lane *pl, struct pull_region *region, uint32_t chunk)
{
    assert(region->chunks_left > 0);
    region->chunks_left--;
    pull_count(&pl->pull->progress->bytes_done, pull_chunk_len(region, chunk));
}

/* True when the target must be touched for a chunk without data. */
static bool must_zero(const struct pull *pull, uint32_t flags, uint64_t offset, uint32_t len)
{
    if (pull->sink == PULL_TO_NULL || pull->free_policy == PULL_FREE_KNOWN_ZERO)
        return false;
    if (flags & FMT_FREE && pull->free_policy == PULL_FREE_LEAVE)
        return pull_is_withheld(pull, offset, len);
    return true;
}

void pull_plan_todo(struct pull_lane *pl, struct pull_region *region)
{
    region->chunks_left = region->table.chunk_count;
    memset(region->todo, 0, sizeof(region->todo));
    for (uint32_t i = 0; i < region->table.chunk_count; i++) {
        const struct fmt_entry *entry = &region->table.entries[i];
        uint64_t offset = pull_chunk_offset(pl, region, i);
        bool data = pull_has_data(entry);
        if (fmt_entry_flags(entry) & FMT_ZERO)
            pull_count(&pl->pull->progress->chunks_zero, 1);
        if (!data && offset == 0)
            memset(pl->pull->head, 0, PULL_HEAD_LEN);
        if (data || must_zero(pl->pull, fmt_entry_flags(entry), offset, pull_chunk_len(region, i)))
            region->todo[i / 64] |= (uint64_t)1 << (i % 64);
        else
            pull_chunk_done(pl, region, i);
    }
}

/* The same pack may have another index in another region. */
static int compare_packs(const struct pull_batch *batch, const struct pull_place *left,
                         const struct pull_place *right)
{
    const struct fmt_pack_ref *a = pull_pack(batch, left), *b = pull_pack(batch, right);
    if (a == b)
        return 0;
    int order = memcmp(a->snapshot, b->snapshot, sizeof(a->snapshot));
    return order ? order : (a->number > b->number) - (a->number < b->number);
}

static int compare_order(const void *a, const void *b, void *ctx)
{
    const struct pull_batch *batch = ctx;
    int order = compare_packs(batch, a, b);
    if (order != 0)
        return order;
    uint32_t left = pull_entry(batch, a)->offset, right = pull_entry(batch, b)->offset;
    return (left > right) - (left < right);
}

void pull_plan_order(struct pull_batch *batch)
{
    batch->order_count = 0;
    batch->order_next = 0;
    bool sorted = true; /* as often in full snapshots */
    for (uint32_t r = 0; r < batch->count; r++) {
        const struct pull_region *region = &batch->regions[r];
        for (uint32_t i = 0; region->state == REGION_FETCH && i < region->table.chunk_count; i++) {
            if (!pull_todo(region, i) || !pull_has_data(&region->table.entries[i]))
                continue;
            struct pull_place *place = &batch->order[batch->order_count++];
            *place = (struct pull_place){.region = (uint16_t)r, .chunk = (uint16_t)i};
            sorted =
                sorted && (place == batch->order || compare_order(place - 1, place, batch) <= 0);
        }
    }
    if (!sorted)
        qsort_r(batch->order, batch->order_count, sizeof(batch->order[0]), compare_order, batch);
}

void pull_plan_range(const struct pull_lane *pl, struct pull_batch *batch, uint32_t *ret_first,
                     uint32_t *ret_count, uint64_t *ret_offset, size_t *ret_len,
                     bool *ret_has_header)
{
    uint32_t first = batch->order_next, count = 1;
    assert(first < batch->order_count);
    const struct pull_place *begin = &batch->order[first];
    uint64_t start = pull_entry(batch, begin)->offset;
    uint64_t end = start + fmt_entry_len(pull_entry(batch, begin)) + pl->tag_len;
    /* The header costs nothing here and tells a swapped object by its name. */
    bool has_header = start <= PULL_GET_GAP_MAX;
    if (has_header)
        start = 0;
    for (; first + count < batch->order_count; count++) {
        const struct pull_place *place = &batch->order[first + count];
        const struct fmt_entry *next = pull_entry(batch, place);
        uint64_t next_end =
            max_u64(end, (uint64_t)next->offset + fmt_entry_len(next) + pl->tag_len);
        if (compare_packs(batch, begin, place) != 0 || next->offset > end + PULL_GET_GAP_MAX ||
            next_end - start > pl->job->get_len)
            break;
        end = next_end;
    }
    batch->order_next += count;
    *ret_first = first;
    *ret_count = count;
    *ret_offset = start;
    *ret_len = (size_t)(end - start);
    *ret_has_header = has_header;
}

static bool wants_zero(const struct pull_region *region, uint32_t chunk)
{
    return pull_todo(region, chunk) && !pull_has_data(&region->table.entries[chunk]);
}

bool pull_plan_zero_run(struct pull_region *region, uint32_t *ret_first, uint32_t *ret_count,
                        bool *ret_is_free)
{
    uint32_t end = region->table.chunk_count;
    while (region->zero_next < end && !wants_zero(region, region->zero_next))
        region->zero_next++;
    if (region->zero_next == end)
        return false;
    uint32_t first = region->zero_next;
    uint32_t flags = fmt_entry_flags(&region->table.entries[first]);
    while (region->zero_next < end && wants_zero(region, region->zero_next) &&
           fmt_entry_flags(&region->table.entries[region->zero_next]) == flags)
        region->zero_next++;
    *ret_first = first;
    *ret_count = region->zero_next - first;
    *ret_is_free = (flags & FMT_FREE) != 0;
    return true;
}
