/* What one region needs. Pure: no I/O, no allocation. */
#include <assert.h>

#include "io/pull_lane.h"

/* Bytes of a pack that are fetched for nothing rather than with another request. */
enum { GET_GAP_MAX = 128 << 10 };

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

static int compare_order(const void *a, const void *b, void *ctx)
{
    const struct fmt_entry *entries = ((const struct pull_region *)ctx)->table.entries;
    const struct fmt_entry *left = &entries[*(const uint16_t *)a];
    const struct fmt_entry *right = &entries[*(const uint16_t *)b];
    if (left->pack != right->pack)
        return left->pack < right->pack ? -1 : 1;
    return (left->offset > right->offset) - (left->offset < right->offset);
}

void pull_plan_order(struct pull_region *region)
{
    region->order_count = 0;
    region->order_next = 0;
    for (uint32_t i = 0; i < region->table.chunk_count; i++)
        if (pull_todo(region, i) && pull_has_data(&region->table.entries[i]))
            region->order[region->order_count++] = (uint16_t)i;
    bool sorted = true; /* as in every full snapshot */
    for (uint32_t i = 1; i < region->order_count && sorted; i++)
        sorted = compare_order(&region->order[i - 1], &region->order[i], region) <= 0;
    if (!sorted)
        qsort_r(region->order, region->order_count, sizeof(region->order[0]), compare_order,
                region);
}

void pull_plan_range(struct pull_region *region, uint32_t *ret_first, uint32_t *ret_count,
                     uint64_t *ret_offset, size_t *ret_len, bool *ret_has_header)
{
    const struct fmt_entry *entries = region->table.entries;
    uint32_t first = region->order_next, count = 1;
    assert(first < region->order_count);
    const struct fmt_entry *begin = &entries[region->order[first]];
    uint32_t tag_len = region->lane->tag_len;
    uint64_t start = begin->offset, end = start + fmt_entry_len(begin) + tag_len;
    /* The header costs nothing here and tells a swapped object by its name. */
    bool has_header = start <= GET_GAP_MAX;
    if (has_header)
        start = 0;
    for (; first + count < region->order_count; count++) {
        const struct fmt_entry *next = &entries[region->order[first + count]];
        uint64_t next_end = max_u64(end, (uint64_t)next->offset + fmt_entry_len(next) + tag_len);
        if (next->pack != begin->pack || next->offset > end + GET_GAP_MAX ||
            next_end - start > region->lane->job->get_len)
            break;
        end = next_end;
    }
    region->order_next += count;
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
