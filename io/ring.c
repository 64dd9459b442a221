/* The one place that talks to io_uring: set-up with fallbacks, queues that cannot overflow, retries
 * that every caller would need. */
#include "io/ring.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>

enum {
    SQ_ENTRIES = 128,
    INFLIGHT_MAX = 1024, /* = CQ entries, so that the kernel's queue cannot overflow */
    RETRY_MAX = 64,      /* EINTR and EAGAIN of one operation */
    WORKERS_MAX = 4,     /* io-wq threads: fsync, fallocate and link always use one each */
};

static_assert(sizeof(((struct ring_op *)0)->timeout) == sizeof(struct __kernel_timespec),
              "ring.h does not include the kernel's headers");

/* Registered buffers are limited to 1 GiB each (io_uring_register(2)); a lane has less. */
static const size_t registered_max = (size_t)1 << 30;

struct ring {
    struct io_uring uring;
    unsigned inflight;    /* in the kernel's hands */
    unsigned waiting;     /* in the list below */
    struct ring_op *head; /* started, not submitted: the kernel's queue had no room */
    struct ring_op **tail;
    const uint8_t *base; /* registered memory */
    size_t base_len;
    int registered_fd; /* file index 0, or -1 */
};

static int setup(struct io_uring *uring, unsigned flags)
{
    struct io_uring_params params = {
        .flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
        .cq_entries = INFLIGHT_MAX,
    };
    return io_uring_queue_init_params(SQ_ENTRIES, uring, &params);
}

static int setup_best(struct io_uring *uring)
{
    /* 6.1 and newer; older kernels answer EINVAL to flags they do not know. */
    int rc = setup(uring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
    if (rc == -EINVAL)
        rc = setup(uring, IORING_SETUP_COOP_TASKRUN);
    if (rc == -EINVAL)
        rc = setup(uring, 0);
    return rc;
}

int ring_open(struct ring **ret, struct err *err)
{
    struct ring *ring = calloc(1, sizeof(*ring));
    if (ring == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    int rc = setup_best(&ring->uring);
    if (rc < 0) {
        free(ring);
        errno = -rc;
        (void)err_sys(err, ERR_INTERNAL, "set up io_uring");
        return err_hint(err, "see sysctl kernel.io_uring_disabled and the container's seccomp "
                             "profile");
    }
    ring->tail = &ring->head;
    ring->registered_fd = -1;
    unsigned workers[2] = {WORKERS_MAX, WORKERS_MAX};
    (void)io_uring_register_iowq_max_workers(&ring->uring, workers); /* 5.15; only a cap */
    *ret = ring;
    return 0;
}

void ring_close(struct ring *ring)
{
    if (ring == NULL)
        return;
    io_uring_queue_exit(&ring->uring);
    free(ring);
}

void ring_register(struct ring *ring, void *base, size_t len, int fd)
{
    struct iovec iov = {.iov_base = base, .iov_len = len < registered_max ? len : registered_max};
    if (io_uring_register_buffers(&ring->uring, &iov, 1) == 0) {
        ring->base = base;
        ring->base_len = iov.iov_len;
    }
    if (fd >= 0 && io_uring_register_files(&ring->uring, &fd, 1) == 0)
        ring->registered_fd = fd;
}

unsigned ring_pending(const struct ring *ring)
{
    return ring->inflight + ring->waiting;
}

const char *ring_op_reason(const struct ring_op *op, char *buf, size_t len)
{
    if (op->was_short && op->result == -ENODATA)
        (void)snprintf(buf, len, "short: %zu of %zu bytes", op->moved, op->len);
    else
        return strerror_r(-op->result, buf, len);
    return buf;
}

/* --- starting ----------------------------------------------------------------------------- */

static void enqueue(struct ring *ring, struct ring_op *op)
{
    op->next = NULL;
    *ring->tail = op;
    ring->tail = &op->next;
    ring->waiting++;
}

static void start(struct ring *ring, struct ring_op *op)
{
    assert(op->done != NULL);
    op->result = 0;
    op->moved = 0;
    op->was_short = false;
    op->retries = 0;
    enqueue(ring, op);
}

void ring_read(struct ring *ring, struct ring_op *op, int fd, void *buf, size_t len, size_t len_min,
               uint64_t offset)
{
    assert(len_min <= len && len <= INT32_MAX);
    op->kind = RING_READ;
    op->fd = fd;
    op->buf = buf;
    op->len = len;
    op->len_min = len_min;
    op->offset = offset;
    start(ring, op);
}

void ring_write(struct ring *ring, struct ring_op *op, int fd, const void *buf, size_t len,
                uint64_t offset)
{
    assert(len <= INT32_MAX);
    op->kind = RING_WRITE;
    op->fd = fd;
    memcpy(&op->buf, &buf, sizeof(buf)); /* the kernel only reads it */
    op->len = len;
    op->len_min = len;
    op->offset = offset;
    start(ring, op);
}

void ring_fsync(struct ring *ring, struct ring_op *op, int fd)
{
    op->kind = RING_FSYNC;
    op->fd = fd;
    start(ring, op);
}

void ring_fallocate(struct ring *ring, struct ring_op *op, int fd, int mode, uint64_t offset,
                    uint64_t len)
{
    op->kind = RING_FALLOCATE;
    op->fd = fd;
    op->mode = mode;
    op->offset = offset;
    op->len = (size_t)len;
    start(ring, op);
}

void ring_link(struct ring *ring, struct ring_op *op, int from_fd, const char *from, int to_fd,
               const char *to, int flags)
{
    op->kind = RING_LINK;
    op->fd = from_fd;
    op->from_path = from;
    op->to_fd = to_fd;
    op->to_path = to;
    op->mode = flags;
    start(ring, op);
}

void ring_poll(struct ring *ring, struct ring_op *op, int fd, unsigned mask)
{
    op->kind = RING_POLL;
    op->fd = fd;
    op->mode = (int)mask;
    op->events = 0;
    start(ring, op);
}

void ring_timer(struct ring *ring, struct ring_op *op, uint64_t timeout_us)
{
    op->kind = RING_TIMER;
    op->fd = -1;
    op->timeout.seconds = (int64_t)(timeout_us / 1000000);
    op->timeout.nanoseconds = (int64_t)(timeout_us % 1000000) * 1000;
    start(ring, op);
}

void ring_cancel(struct ring *ring, struct ring_op *op, struct ring_op *target)
{
    assert(target->kind == RING_POLL || target->kind == RING_TIMER);
    op->kind = RING_CANCEL;
    op->fd = -1;
    op->target = target;
    start(ring, op);
}

void ring_nop(struct ring *ring, struct ring_op *op, int result)
{
    assert(result <= 0);
    op->kind = RING_NOP;
    start(ring, op);
    op->result = result;
}

/* --- submitting --------------------------------------------------------------------------- */

static bool in_registered(const struct ring *ring, const struct ring_op *op)
{
    const uint8_t *buf = op->buf;
    return ring->base != NULL && buf >= ring->base && op->len <= ring->base_len &&
           (size_t)(buf - ring->base) <= ring->base_len - op->len;
}

static void prepare_transfer(const struct ring *ring, const struct ring_op *op, int fd,
                             struct io_uring_sqe *sqe)
{
    unsigned len = (unsigned)op->len;
    bool fixed = in_registered(ring, op);
    if (op->kind == RING_READ && fixed)
        io_uring_prep_read_fixed(sqe, fd, op->buf, len, op->offset, 0);
    else if (op->kind == RING_READ)
        io_uring_prep_read(sqe, fd, op->buf, len, op->offset);
    else if (fixed)
        io_uring_prep_write_fixed(sqe, fd, op->buf, len, op->offset, 0);
    else
        io_uring_prep_write(sqe, fd, op->buf, len, op->offset);
}

static void prepare(const struct ring *ring, struct ring_op *op, struct io_uring_sqe *sqe)
{
    enum ring_kind kind = op->injected ? RING_NOP : op->kind;
    bool on_file =
        kind == RING_READ || kind == RING_WRITE || kind == RING_FSYNC || kind == RING_FALLOCATE;
    bool registered = on_file && ring->registered_fd >= 0 && op->fd == ring->registered_fd;
    int fd = registered ? 0 : op->fd;
    switch (kind) {
    case RING_NOP:
        io_uring_prep_nop(sqe);
        break;
    case RING_READ:
    case RING_WRITE:
        prepare_transfer(ring, op, fd, sqe);
        break;
    case RING_FSYNC:
        io_uring_prep_fsync(sqe, fd, 0);
        break;
    case RING_FALLOCATE:
        io_uring_prep_fallocate(sqe, fd, op->mode, (off_t)op->offset, (off_t)op->len);
        break;
    case RING_LINK:
        io_uring_prep_linkat(sqe, op->fd, op->from_path, op->to_fd, op->to_path, op->mode);
        break;
    case RING_POLL:
        io_uring_prep_poll_add(sqe, op->fd, (unsigned)op->mode);
        break;
    case RING_TIMER:
        io_uring_prep_timeout(sqe, (struct __kernel_timespec *)&op->timeout, 0, 0);
        break;
    case RING_CANCEL:
        io_uring_prep_cancel64(sqe, (uint64_t)(uintptr_t)op->target, 0);
        break;
    }
    if (registered)
        io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(sqe, op);
}

static void fill_queue(struct ring *ring)
{
    while (ring->head != NULL && ring->inflight < INFLIGHT_MAX) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
        if (sqe == NULL)
            return;
        struct ring_op *op = ring->head;
        ring->head = op->next;
        if (ring->head == NULL)
            ring->tail = &ring->head;
        ring->waiting--;
        ring->inflight++;
        op->injected = op->kind != RING_NOP && op->kind != RING_CANCEL &&
                       ring_inject(op, &op->injected_result);
        prepare(ring, op, sqe);
    }
}

/* --- completing --------------------------------------------------------------------------- */

static bool must_retry(struct ring_op *op, int res)
{
    if (res == -EINTR || res == -EAGAIN)
        return op->retries++ < RETRY_MAX;
    if ((op->kind != RING_READ && op->kind != RING_WRITE) || res < 0)
        return false;
    op->moved = (size_t)res;
    if (op->moved >= op->len_min || op->was_short)
        return false;
    op->was_short = true;
    return true;
}

static void complete(struct ring *ring, struct ring_op *op, int res)
{
    if (op->kind == RING_NOP)
        res = op->result;
    else if (op->injected)
        res = op->injected_result;
    if (must_retry(op, res)) {
        enqueue(ring, op);
        return;
    }
    bool transfer = op->kind == RING_READ || op->kind == RING_WRITE;
    if (op->kind == RING_TIMER && res == -ETIME)
        res = 0;
    if (op->kind == RING_POLL && res >= 0)
        op->events = (unsigned)res;
    if (res >= 0)
        res = transfer && op->moved < op->len_min ? -ENODATA : 0;
    op->result = res;
    op->done(op);
}

/* Copies completions out before any callback runs: callbacks start operations. */
static unsigned drain(struct ring *ring)
{
    struct {
        struct ring_op *op;
        int res;
    } batch[64];
    unsigned total = 0, count, head;
    do {
        struct io_uring_cqe *cqe;
        count = 0;
        io_uring_for_each_cqe(&ring->uring, head, cqe)
        {
            if (count == ARRAY_LEN(batch))
                break;
            batch[count].op = io_uring_cqe_get_data(cqe);
            batch[count++].res = cqe->res;
        }
        io_uring_cq_advance(&ring->uring, count);
        assert(ring->inflight >= count);
        ring->inflight -= count;
        for (unsigned i = 0; i < count; i++)
            complete(ring, batch[i].op, batch[i].res);
        total += count;
    } while (count == ARRAY_LEN(batch));
    return total;
}

static int enter(struct ring *ring, unsigned want, uint64_t timeout_us)
{
    if (want == 0)
        return io_uring_submit_and_get_events(&ring->uring);
    struct __kernel_timespec timeout = {
        .tv_sec = (long long)(timeout_us / 1000000),
        .tv_nsec = (long long)(timeout_us % 1000000) * 1000,
    };
    struct io_uring_cqe *cqe;
    return io_uring_submit_and_wait_timeout(&ring->uring, &cqe, want, &timeout, NULL);
}

int ring_run(struct ring *ring, unsigned want, uint64_t timeout_us, struct err *err)
{
    if (want > 0 && ring_pending(ring) == 0) { /* a caller that waits for time, not for I/O */
        (void)usleep((useconds_t)min_u64(timeout_us, 999999));
        return 0;
    }
    for (unsigned attempt = 0;; attempt++) {
        fill_queue(ring);
        unsigned can_come = ring->inflight < want ? ring->inflight : want;
        int rc = enter(ring, can_come, timeout_us);
        unsigned count = drain(ring);
        bool transient = rc == -EAGAIN || rc == -EBUSY || rc == -EINTR;
        if (rc < 0 && rc != -ETIME && !(transient && attempt < 1000)) {
            errno = -rc;
            return err_sys(err, ERR_INTERNAL, "io_uring_enter");
        }
        /* Memory is short (EAGAIN) or a signal came: what is in flight makes room. */
        if (!transient || count > 0)
            return 0;
    }
}

int ring_fsync_now(int fd)
{
    struct ring_op op = {.kind = RING_FSYNC, .fd = fd};
    int result;
    if (ring_inject(&op, &result)) {
        if (result == 0 || result == -EINTR || result == -EAGAIN)
            return ring_fsync_now(fd);
        errno = -result;
        return -1;
    }
    return fsync(fd);
}
