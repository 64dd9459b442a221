/* Byte ranges of a device or file: sorted, not overlapping, not touching after normalising.
 * An extent list owns its array (malloc; control data, a few MiB at the most). One thread. */
#ifndef TIDEMARK_IO_EXTENT_H
#define TIDEMARK_IO_EXTENT_H

#include "io/err.h"

struct extent {
    uint64_t offset; /* bytes */
    uint64_t len;    /* bytes, not 0 in a normalised list */
};

struct extent_list {
    struct extent *items;
    size_t count;
    size_t capacity;
};

/* Appends a range; order is free until extent_list_normalise(). */
int extent_list_add(struct extent_list *list, uint64_t offset, uint64_t len, struct err *err);

/* The same, but the last one grows when the range begins at its end: a list that is built in order
 * is normalised. */
int extent_list_append(struct extent_list *list, uint64_t offset, uint64_t len, struct err *err);

/* Sorts, merges overlapping and touching ranges, drops empty ones. */
void extent_list_normalise(struct extent_list *list);

/* ret = a without b; both normalised; ret must be empty and is normalised afterwards. */
int extent_list_subtract(const struct extent_list *a, const struct extent_list *b,
                         struct extent_list *ret, struct err *err);

/* ret = [0, size) without list, list being normalised. */
int extent_list_invert(const struct extent_list *list, uint64_t size, struct extent_list *ret,
                       struct err *err);

/* Sum of all lengths. */
uint64_t extent_list_bytes(const struct extent_list *list);

/* True when [offset, offset + len) touches any range of the normalised list. */
bool extent_list_overlaps(const struct extent_list *list, uint64_t offset, uint64_t len);

void extent_list_release(struct extent_list *list);

#endif
