/* gather: reads the changed chunks of several devices into memory while their filesystems are
 * frozen. Everything that takes time and can be done before has been done by gather_open(): the
 * memory is there and touched, the ring is open; while frozen there is nothing but parallel reads,
 * and they end at a deadline.
 *
 *     gather_open(&gather, bytes, err)
 *     … freeze … gather_read(gather, sources, count, deadline_ns, &complete, err) … thaw …
 *     gather_to_memory_file(gather, index, size, &fd, err)       for each source, once
 *     gather_close(gather)
 *
 * One thread. */
#ifndef TIDEMARK_IO_GATHER_H
#define TIDEMARK_IO_GATHER_H

#include "io/extent.h"

struct gather;

enum { GATHER_SOURCES_MAX = 16 };

struct gather_source {
    int fd;                            /* O_RDONLY | O_DIRECT */
    uint32_t request_max;              /* bytes */
    const struct extent_list *extents; /* stays as it is until the next gather_read() */
};

/* Takes `bytes` of memory, at least 1 MiB. */
int gather_open(uint64_t bytes, struct gather **ret, struct err *err);

/* Reads all extents of all sources, whose sum must fit, replacing what was read before.
 * *ret_complete is false when the CLOCK_MONOTONIC time deadline_ns came first: then nothing was
 * read. Nothing is in flight when it returns, but after ERR_INTERNAL. ERR_DEVICE. */
int gather_read(struct gather *gather, const struct gather_source *sources, size_t count,
                uint64_t deadline_ns, bool *ret_complete, struct err *err);

/* A sparse file in memory, of `size` bytes, that holds the extents of sources[index] of the last
 * gather_read() at their places. The sources are taken in order: memory that was moved is given
 * back, so that the sum stays what gather_open() took. */
int gather_to_memory_file(struct gather *gather, size_t index, uint64_t size, int *ret_fd,
                          struct err *err);

/* NULL is accepted. */
void gather_close(struct gather *gather);

#endif
