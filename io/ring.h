/* One io_uring of one lane (io/ring.c is the only file that includes liburing).
 *
 * An operation is a struct ring_op that its caller owns and keeps, with its buffer, until done()
 * ran: the kernel writes into both until then. done() runs inside ring_run(), on the thread that
 * opened the ring, after completions were copied out of the kernel's queue, so it may start
 * operations. All functions are for that one thread.
 *
 *     op->done = on_read;
 *     ring_read(ring, op, fd, buf, len, len, offset);
 *     while (!finished)
 *         rc = ring_run(ring, 1, 100000, err);
 *
 * EINTR and EAGAIN are retried here; a short read or write is retried once, whole, and then
 * reported: a short O_DIRECT transfer would otherwise continue through the page cache, which may
 * hold stale pages of a mounted device (FACTS). */
#ifndef TIDEMARK_IO_RING_H
#define TIDEMARK_IO_RING_H

#include "io/err.h"

struct ring;

enum ring_kind {
    RING_NOP,
    RING_READ,
    RING_WRITE,
    RING_FSYNC,
    RING_FALLOCATE,
    RING_LINK,
    RING_POLL,
    RING_TIMER,
    RING_CANCEL,
};

struct ring_op {
    void (*done)(struct ring_op *op); /* set before the operation is started */
    void *owner;                      /* the caller's */
    int result;                       /* in done(): 0, or -errno; -ENODATA after two short moves */
    size_t moved;                     /* bytes of the last attempt, for messages */
    unsigned events;                  /* ring_poll(): what poll(2) would have said */
    /* The rest is the ring's. */
    enum ring_kind kind;
    int fd;
    void *buf;
    size_t len;
    size_t len_min;
    uint64_t offset;
    int mode;              /* RING_FALLOCATE: mode; RING_LINK: flags */
    int to_fd;             /* RING_LINK */
    const char *from_path; /* RING_LINK: valid until done() */
    const char *to_path;
    struct {
        int64_t seconds, nanoseconds;
    } timeout;              /* RING_TIMER: a struct __kernel_timespec */
    struct ring_op *target; /* RING_CANCEL */
    bool was_short;
    bool injected;
    int injected_result;
    unsigned retries;
    struct ring_op *next;
};

/* A ring for the calling thread. ERR_INTERNAL with a hint when the kernel has io_uring off. */
int ring_open(struct ring **ret, struct err *err);

/* Waits for nothing: operations in flight keep their pages pinned, so memory may be unmapped. */
void ring_close(struct ring *ring);

/* Registers the payload memory (transfers inside it need no page pinning) and one file. Both are
 * speed only: without the permission or the memlock quota the ring works without. */
void ring_register(struct ring *ring, void *base, size_t len, int fd);

/* done() gets 0 when at least len_min bytes were read: an aligned read over the end of a file. */
void ring_read(struct ring *ring, struct ring_op *op, int fd, void *buf, size_t len, size_t len_min,
               uint64_t offset);
void ring_write(struct ring *ring, struct ring_op *op, int fd, const void *buf, size_t len,
                uint64_t offset);
void ring_fsync(struct ring *ring, struct ring_op *op, int fd);
void ring_fallocate(struct ring *ring, struct ring_op *op, int fd, int mode, uint64_t offset,
                    uint64_t len);
/* linkat(2); from is relative to from_fd. */
void ring_link(struct ring *ring, struct ring_op *op, int from_fd, const char *from, int to_fd,
               const char *to, int flags);
/* Waits once until fd is ready for one of mask (POLLIN, POLLOUT; errors and hang-ups always count).
 * The kernel keeps the file open until done(): cancel before closing fd, or the peer sees nothing
 * of it. */
void ring_poll(struct ring *ring, struct ring_op *op, int fd, unsigned mask);
/* Completes with 0 after timeout_us. */
void ring_timer(struct ring *ring, struct ring_op *op, uint64_t timeout_us);
/* Ends a poll or timer that was started: its done() gets -ECANCELED, unless it was just done. What
 * op itself gets is 0, -ENOENT (too late) or -EALREADY and does not matter: target is not touched
 * after its done(), but op and target must both be waited for. Never injected. */
void ring_cancel(struct ring *ring, struct ring_op *op, struct ring_op *target);
/* Completes with result in the next ring_run(): how a synchronous failure is reported later. */
void ring_nop(struct ring *ring, struct ring_op *op, int result);

/* Submits, waits until `want` completions are there or timeout_us passed (want = 0: does not wait),
 * and runs the callbacks of all that are there. ERR_INTERNAL when the ring itself fails. */
int ring_run(struct ring *ring, unsigned want, uint64_t timeout_us, struct err *err);

/* Operations that were started and have not run done(). */
unsigned ring_pending(const struct ring *ring);

/* Why op failed, for messages: "Input/output error", "short: 512 of 4096 bytes". */
const char *ring_op_reason(const struct ring_op *op, char *buf, size_t len);

/* fsync(2) on the calling thread, no ring needed; goes through ring_inject() like the others. */
int ring_fsync_now(int fd);

/* Seam of the fault tests (io/ring_inject.c): called for every submission on the thread that makes
 * it. True: the kernel is not asked and the operation completes with *ret_result instead. */
bool ring_inject(const struct ring_op *op, int *ret_result);

#endif
