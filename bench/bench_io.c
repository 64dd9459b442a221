/* See bench_io.h. */
#include "bench/bench_io.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

#include "io/buffers.h"
#include "io/store_ops.h"

/* --- time --------------------------------------------------------------------------------- */

static double wall_s(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static double process_s(void)
{
    struct rusage usage;
    (void)getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* CPU nanoseconds of one kernel thread (a child of kthreadd), 0 for all others. */
static double kernel_thread_ns(const char *pid)
{
    char path[64], line[512];
    (void)snprintf(path, sizeof(path), "/proc/%.20s/stat", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0;
    size_t len = fread(line, 1, sizeof(line) - 1, file);
    (void)fclose(file);
    line[len] = '\0';
    const char *end = strrchr(line, ')'); /* pid (comm) state ppid … */
    if (end == NULL || strncmp(end + 3, " 2 ", 3) != 0)
        return 0;
    (void)snprintf(path, sizeof(path), "/proc/%.20s/schedstat", pid);
    file = fopen(path, "re");
    if (file == NULL)
        return 0;
    double ns = 0;
    if (fgets(line, sizeof(line), file) != NULL)
        ns = strtod(line, NULL);
    (void)fclose(file);
    return ns;
}

static double kernel_s(void)
{
    DIR *dir = opendir("/proc");
    double sum_ns = 0;
    if (dir == NULL)
        return 0;
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9')
            sum_ns += kernel_thread_ns(entry->d_name);
    (void)closedir(dir);
    return sum_ns / 1e9;
}

void bench_start(struct bench_time *time)
{
    time->kernel_s = kernel_s();
    time->process_s = process_s();
    time->wall_s = wall_s();
}

void bench_stop(struct bench_time *time)
{
    time->wall_s = wall_s() - time->wall_s;
    time->process_s = process_s() - time->process_s;
    double kernel = kernel_s() - time->kernel_s;
    time->kernel_s = kernel > 0 ? kernel : 0; /* a worker that ended takes its time with it */
}

void bench_report(const char *name, uint64_t bytes, const struct bench_time *time, const char *note)
{
    double gb = (double)bytes / 1e9;
    printf("%-34s %5.2f GB/s  %5.3f CPU-s/GB (%.3f process + %.3f kernel threads) %s\n", name,
           gb / time->wall_s, (time->process_s + time->kernel_s) / gb, time->process_s / gb,
           time->kernel_s / gb, note);
    (void)fflush(stdout);
}

int bench_warm_memory(uint64_t bytes, struct err *err)
{
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return err_sys(err, ERR_INTERNAL, "map %llu bytes", (unsigned long long)bytes);
    (void)madvise(map, bytes, MADV_HUGEPAGE);
    memset(map, 1, bytes);
    (void)munmap(map, bytes);
    return 0;
}

/* --- transfers ---------------------------------------------------------------------------- */

enum { PIECE_LEN = 1 << 20, DEPTH = 16 };

struct transfer {
    struct ring *ring;
    int fd;
    bool is_write;
    uint64_t len, next;
    int failed; /* -errno */
};

struct piece {
    struct ring_op op;
    struct transfer *transfer;
    uint8_t *buf;
};

static void piece_start(struct piece *piece);

static void piece_done(struct ring_op *op)
{
    struct piece *piece = CONTAINER_OF(op, struct piece, op);
    if (op->result < 0)
        piece->transfer->failed = op->result;
    else
        piece_start(piece);
}

static void piece_start(struct piece *piece)
{
    struct transfer *transfer = piece->transfer;
    if (transfer->next >= transfer->len || transfer->failed < 0)
        return;
    uint64_t at = transfer->next;
    size_t len = (size_t)min_u64(PIECE_LEN, transfer->len - at);
    transfer->next += PIECE_LEN;
    piece->op.done = piece_done;
    size_t whole = (size_t)align_up(len, 4096); /* the end of an object */
    if (transfer->is_write)
        ring_write(transfer->ring, &piece->op, transfer->fd, piece->buf, len, at);
    else
        ring_read(transfer->ring, &piece->op, transfer->fd, piece->buf, whole, len, at);
}

int bench_transfer(int fd, uint64_t len, bool is_write, struct err *err)
{
    struct buffers buffers;
    struct transfer transfer = {.fd = fd, .len = len, .is_write = is_write};
    struct piece pieces[DEPTH];
    int rc = ring_open(&transfer.ring, err);
    if (rc < 0)
        return rc;
    rc = buffers_open(&buffers, (size_t)DEPTH * PIECE_LEN, (size_t)DEPTH * PIECE_LEN, err);
    if (rc == 0) {
        memset(buffers.base, 0x5a, (size_t)DEPTH * PIECE_LEN);
        ring_register(transfer.ring, buffers.base, buffers.len, fd);
        for (unsigned i = 0; i < DEPTH; i++) {
            pieces[i].transfer = &transfer;
            pieces[i].buf = buffers_cut(&buffers, PIECE_LEN, PIECE_LEN);
            piece_start(&pieces[i]);
        }
        while (rc == 0 && ring_pending(transfer.ring) > 0)
            rc = ring_run(transfer.ring, 1, 1000000, err);
        buffers_close(&buffers);
    }
    ring_close(transfer.ring);
    if (rc == 0 && transfer.failed < 0) {
        errno = -transfer.failed;
        return err_sys(err, ERR_DEVICE, "reference transfer");
    }
    return rc;
}

/* --- data --------------------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Rows of a counter, a time, a random hexadecimal text and words, as an orders table has them. */
static void fill_page(uint8_t *page, size_t len, uint64_t *state, uint64_t *row)
{
    size_t at = 0;
    char text[160];
    while (at < len) {
        uint64_t random = next_random(state);
        int n = snprintf(text, sizeof(text),
                         "%c%c%c%c%08llu 2026-11-%02u 12:%02u:%02u %06x {\"status\": \"shipped\", "
                         "\"carrier\": \"%s\", \"note\": \"none\"}        ",
                         (int)(random & 7), 0, (int)(random >> 8 & 3), 0,
                         (unsigned long long)(*row)++, (unsigned)(random % 28 + 1),
                         (unsigned)(random >> 5 & 31), (unsigned)(random >> 10 & 31),
                         (unsigned)(random >> 20 & 0xffffff), random >> 63 ? "north" : "south");
        size_t part = (size_t)min_u64((uint64_t)n, len - at);
        memcpy(page + at, text, part);
        at += part;
    }
}

int bench_fill(int fd, uint64_t len, uint64_t seed, struct err *err)
{
    struct buffers buffers;
    uint64_t state = seed | 1, row = 0;
    int rc = buffers_open(&buffers, PIECE_LEN, PIECE_LEN, err);
    if (rc < 0)
        return rc;
    for (uint64_t at = 0; rc == 0 && at < len; at += PIECE_LEN) {
        size_t part = (size_t)min_u64(PIECE_LEN, len - at);
        for (size_t page = 0; page < part; page += 8192)
            fill_page(buffers.base + page, 8192, &state, &row);
        if (pwrite(fd, buffers.base, part, (off_t)at) != (ssize_t)part)
            rc = err_sys(err, ERR_DEVICE, "fill the device");
    }
    buffers_close(&buffers);
    return rc;
}

/* --- the null store ----------------------------------------------------------------------- */

enum { NULL_DEPTH = 16 };

struct null_put {
    struct ring_op op;
    struct store_request *request;
};

struct null_lane {
    struct store_lane lane;
    struct ring *ring;
    struct null_put puts[NULL_DEPTH];
};

static int null_lane_open(struct store *store, struct ring *ring, unsigned lane_index,
                          unsigned lane_count, unsigned request_count, struct store_lane **ret,
                          struct err *err)
{
    (void)lane_index, (void)lane_count;
    assert(request_count <= NULL_DEPTH);
    struct null_lane *lane = calloc(1, sizeof(*lane));
    if (lane == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    lane->lane.ops = store->ops;
    lane->ring = ring;
    *ret = &lane->lane;
    return 0;
}

static void null_lane_close(struct store_lane *lane)
{
    free(CONTAINER_OF(lane, struct null_lane, lane));
}

static void null_put_done(struct ring_op *op)
{
    struct null_put *put = CONTAINER_OF(op, struct null_put, op);
    struct store_request *request = put->request;
    put->request = NULL;
    request->rc = 0;
    request->done(request);
}

static void null_lane_put(struct store_lane *store_lane, struct store_request *request)
{
    struct null_lane *lane = CONTAINER_OF(store_lane, struct null_lane, lane);
    struct null_put *put = lane->puts;
    while (put->request != NULL)
        put++;
    put->request = request;
    put->op.done = null_put_done;
    ring_nop(lane->ring, &put->op, 0);
}

static int null_put(struct store *store, const char *name, const void *ptr, size_t len,
                    struct err *err)
{
    (void)store, (void)name, (void)ptr, (void)len, (void)err;
    return 0;
}

static void null_close(struct store *store)
{
    (void)store;
}

static const struct store_ops null_ops = {
    .scheme = "null://",
    .put = null_put,
    .close = null_close,
    .lane_depth = 4,
    .lane_open = null_lane_open,
    .lane_close = null_lane_close,
    .lane_put = null_lane_put,
};

struct store *bench_null_store(const struct store *like)
{
    struct store *store = calloc(1, sizeof(*store));
    if (store != NULL) {
        store->ops = &null_ops;
        store->sealed = like->sealed;
        store->keys = like->keys;
    }
    return store;
}
