/* push_keep(): chunks that are taken from the parent without a look at the device. */
#include <assert.h>

#include "io/push_lane.h"

/* Forward only: chunks come in order. */
static bool is_changed(const struct extent_list *changed, size_t *at, uint64_t offset, uint64_t len)
{
    while (*at < changed->count && changed->items[*at].offset + changed->items[*at].len <= offset)
        (*at)++;
    return *at < changed->count && changed->items[*at].offset < offset + len;
}

/* FREE in the parent says that nobody looked: WAL that was left out, blocks without data. */
static bool parent_has(const struct push *push, uint64_t chunk, uint32_t len)
{
    const struct table *parent = push->parent;
    return chunk < parent->chunk_count && table_chunk_len(parent, chunk) == len &&
           (fmt_entry_flags(&parent->entries[chunk]) & FMT_FREE) == 0;
}

int push_keep(struct push *push, const struct extent_list *used, const struct extent_list *changed,
              struct extent_list *ret_read, uint64_t *ret_kept_count, struct err *err)
{
    struct table *work = push->work;
    assert(push->parent != NULL && push->parent->chunk_size == work->chunk_size);
    assert(push->next_pack == 0 && work->parent_pack_count == push->parent->pack_count);
    uint64_t next = 0, kept = 0; /* next: first chunk not decided yet */
    size_t at = 0;
    for (size_t i = 0; i < used->count; i++) {
        const struct extent *extent = &used->items[i];
        uint64_t last = (extent->offset + extent->len - 1) / work->chunk_size;
        for (uint64_t chunk = max_u64(extent->offset / work->chunk_size, next); chunk <= last;
             chunk++) {
            uint64_t offset = chunk * work->chunk_size;
            uint32_t len = table_chunk_len(work, chunk);
            if (!is_changed(changed, &at, offset, len) && parent_has(push, chunk, len) &&
                !push_is_rewritten(push, chunk)) {
                work->entries[chunk] = push->parent->entries[chunk];
                kept++;
            } else {
                int rc = extent_list_append(ret_read, offset, len, err);
                if (rc < 0)
                    return rc;
            }
        }
        next = last + 1;
    }
    *ret_kept_count = kept;
    return 0;
}
