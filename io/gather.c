/* One ring on the calling thread is enough: the work is the device's. */
#include "io/gather.h"

#include <assert.h>
#include <errno.h>
#include <sys/mman.h>

#include "io/clock.h"
#include "io/ring.h"

enum { DEPTH = 32, WAIT_US = 20000 };

struct gather {
    struct ring *ring;
    char *base;
    size_t len;
    struct gather_source sources[GATHER_SOURCES_MAX]; /* of the last gather_read() */
    size_t source_count;
    /* The next read: an extent of a source, a place in it, and one in memory. */
    size_t source, extent;
    uint64_t within;
    size_t filled;
    struct ring_op ops[DEPTH];
    struct ring_op *idle[DEPTH];
    size_t idle_count;
    struct ring_op *failed;
};

int gather_open(uint64_t bytes, struct gather **ret, struct err *err)
{
    struct gather *gather = calloc(1, sizeof(*gather));
    if (gather == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    gather->len = (size_t)align_up(max_u64(bytes, MIB), 2 * MIB);
    void *base =
        mmap(NULL, gather->len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int rc = 0;
    if (base == MAP_FAILED) {
        rc = err_sys(err, ERR_INTERNAL, "take %zu bytes of memory", gather->len);
    } else {
        gather->base = base;
        (void)madvise(base, gather->len, MADV_HUGEPAGE);
        memset(base, 0, gather->len); /* no page fault while frozen */
        rc = ring_open(&gather->ring, err);
    }
    if (rc < 0) {
        gather_close(gather);
        return rc;
    }
    *ret = gather;
    return 0;
}

void gather_close(struct gather *gather)
{
    if (gather == NULL)
        return;
    if (gather->ring != NULL)
        ring_close(gather->ring);
    if (gather->base != NULL)
        (void)munmap(gather->base, gather->len);
    free(gather);
}

/* --- reading ---------------------------------------------------------------------------------- */

static void on_read(struct ring_op *op)
{
    struct gather *gather = op->owner;
    gather->idle[gather->idle_count++] = op;
    if (op->result < 0 && gather->failed == NULL)
        gather->failed = op;
}

/* Starts the next read; false when there is none left. */
static bool start_read(struct gather *gather)
{
    while (gather->source < gather->source_count &&
           gather->extent == gather->sources[gather->source].extents->count) {
        gather->source++;
        gather->extent = 0;
    }
    if (gather->source == gather->source_count)
        return false;
    const struct gather_source *source = &gather->sources[gather->source];
    const struct extent *extent = &source->extents->items[gather->extent];
    uint64_t max = source->request_max > 0 ? source->request_max : MIB;
    size_t len = (size_t)min_u64(extent->len - gather->within, max);
    assert(gather->idle_count > 0 && len > 0 && len <= gather->len - gather->filled);
    struct ring_op *op = gather->idle[--gather->idle_count];
    *op = (struct ring_op){.done = on_read, .owner = gather};
    ring_read(gather->ring, op, source->fd, gather->base + gather->filled, len, len,
              extent->offset + gather->within);
    gather->filled += len;
    gather->within += len;
    if (gather->within == extent->len) {
        gather->extent++;
        gather->within = 0;
    }
    return true;
}

static void rewind_to_start(struct gather *gather, const struct gather_source *sources,
                            size_t count)
{
    assert(count <= GATHER_SOURCES_MAX);
    memcpy(gather->sources, sources, count * sizeof(sources[0]));
    gather->source_count = count;
    gather->source = gather->extent = 0;
    gather->within = 0;
    gather->filled = 0;
    gather->failed = NULL;
    gather->idle_count = 0;
    for (size_t i = 0; i < DEPTH; i++)
        gather->idle[gather->idle_count++] = &gather->ops[i];
}

int gather_read(struct gather *gather, const struct gather_source *sources, size_t count,
                uint64_t deadline_ns, bool *ret_complete, struct err *err)
{
    rewind_to_start(gather, sources, count);
    bool more = true, late = false;
    while (more || gather->idle_count < DEPTH) {
        late = late || monotonic_ns() >= deadline_ns;
        while (more && gather->idle_count > 0)
            more = !late && gather->failed == NULL && start_read(gather);
        if (gather->idle_count == DEPTH)
            break;
        int rc = ring_run(gather->ring, 1, WAIT_US, err);
        if (rc < 0)
            return rc;
    }
    if (gather->failed != NULL) {
        char reason[96];
        return err_set(err, ERR_DEVICE, "read %zu bytes at %llu: %s", gather->failed->len,
                       (unsigned long long)gather->failed->offset,
                       ring_op_reason(gather->failed, reason, sizeof(reason)));
    }
    *ret_complete = !late;
    return 0;
}

/* --- handing over ----------------------------------------------------------------------------- */

static int write_whole(int fd, const char *from, size_t len, uint64_t offset, struct err *err)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = pwrite(fd, from + done, len - done, (off_t)(offset + done));
        if (n < 0 && errno != EINTR)
            return err_sys(err, ERR_INTERNAL, "write %zu bytes to memory", len);
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

int gather_to_memory_file(struct gather *gather, size_t index, uint64_t size, int *ret_fd,
                          struct err *err)
{
    assert(index < gather->source_count);
    close_fd int fd = memfd_create("tidemark", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        return err_sys(err, ERR_INTERNAL, "make a file of %llu bytes in memory",
                       (unsigned long long)size);
    size_t at = 0;
    for (size_t i = 0; i < index; i++)
        at += (size_t)extent_list_bytes(gather->sources[i].extents);
    const struct extent_list *extents = gather->sources[index].extents;
    size_t given_back = (size_t)align_down(at, 2 * MIB);
    for (size_t i = 0; i < extents->count; i++) {
        const struct extent *extent = &extents->items[i];
        int rc = write_whole(fd, gather->base + at, (size_t)extent->len, extent->offset, err);
        if (rc < 0)
            return rc;
        at += (size_t)extent->len;
        size_t end = (size_t)align_down(at, 2 * MIB);
        (void)madvise(gather->base + given_back, end - given_back, MADV_DONTNEED);
        given_back = end;
    }
    *ret_fd = take_fd(&fd);
    return 0;
}
