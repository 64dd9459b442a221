/* Sorted lists of byte ranges: see extent.h. */
#include "io/extent.h"

#include <assert.h>

static uint64_t extent_end(const struct extent *extent)
{
    return extent->offset + extent->len; /* checked by extent_list_add() */
}

int extent_list_add(struct extent_list *list, uint64_t offset, uint64_t len, struct err *err)
{
    uint64_t end;
    if (!add_u64(offset, len, &end))
        return err_set(err, ERR_INTERNAL, "extent at %llu is longer than a device can be",
                       (unsigned long long)offset);
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 64;
        struct extent *items = reallocarray(list->items, capacity, sizeof(*items));
        if (!items)
            return err_sys(err, ERR_INTERNAL, "extent list of %zu ranges", capacity);
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = (struct extent){.offset = offset, .len = len};
    return 0;
}

int extent_list_append(struct extent_list *list, uint64_t offset, uint64_t len, struct err *err)
{
    struct extent *last = list->count > 0 ? &list->items[list->count - 1] : NULL;
    if (last == NULL || extent_end(last) != offset)
        return extent_list_add(list, offset, len, err);
    last->len += len;
    return 0;
}

static int extent_compare(const void *a, const void *b)
{
    const struct extent *left = a, *right = b;
    return (left->offset > right->offset) - (left->offset < right->offset);
}

void extent_list_normalise(struct extent_list *list)
{
    if (list->count == 0)
        return;
    qsort(list->items, list->count, sizeof(*list->items), extent_compare);
    size_t kept = 0;
    for (size_t i = 0; i < list->count; i++) {
        struct extent next = list->items[i];
        if (next.len == 0)
            continue;
        struct extent *last = kept ? &list->items[kept - 1] : NULL;
        if (last && next.offset <= extent_end(last))
            last->len = max_u64(extent_end(last), extent_end(&next)) - last->offset;
        else
            list->items[kept++] = next;
    }
    list->count = kept;
}

/* Appends the parts of one range of a that lie outside b; *at is the first range of b that may
 * still matter, and only moves forward because both lists ascend. */
static int subtract_one(struct extent from, const struct extent_list *b, size_t *at,
                        struct extent_list *ret, struct err *err)
{
    uint64_t start = from.offset, end = extent_end(&from);
    while (*at < b->count && extent_end(&b->items[*at]) <= start)
        (*at)++;
    for (size_t i = *at; i < b->count && b->items[i].offset < end; i++) {
        if (b->items[i].offset > start) {
            int rc = extent_list_add(ret, start, b->items[i].offset - start, err);
            if (rc < 0)
                return rc;
        }
        start = extent_end(&b->items[i]);
    }
    return start < end ? extent_list_add(ret, start, end - start, err) : 0;
}

int extent_list_subtract(const struct extent_list *a, const struct extent_list *b,
                         struct extent_list *ret, struct err *err)
{
    assert(ret->count == 0);
    size_t at = 0;
    for (size_t i = 0; i < a->count; i++) {
        int rc = subtract_one(a->items[i], b, &at, ret, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int extent_list_invert(const struct extent_list *list, uint64_t size, struct extent_list *ret,
                       struct err *err)
{
    struct extent whole = {.offset = 0, .len = size};
    struct extent_list all = {.items = &whole, .count = size != 0};
    return extent_list_subtract(&all, list, ret, err);
}

uint64_t extent_list_bytes(const struct extent_list *list)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < list->count; i++)
        sum += list->items[i].len;
    return sum;
}

bool extent_list_overlaps(const struct extent_list *list, uint64_t offset, uint64_t len)
{
    size_t low = 0, high = list->count; /* first range that ends after offset */
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (extent_end(&list->items[mid]) <= offset)
            low = mid + 1;
        else
            high = mid;
    }
    if (len == 0 || low == list->count)
        return false;
    return list->items[low].offset < offset || list->items[low].offset - offset < len;
}

void extent_list_release(struct extent_list *list)
{
    free(list->items);
    *list = (struct extent_list){0};
}
