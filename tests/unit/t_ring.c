/* io/ring and io/buffers: transfers, short ones, retries, order, overflow, the memory sum. */
#include <fcntl.h>
#include <poll.h>

#include "io/buffers.h"
#include "io/clock.h"
#include "tests/sim/faults.h"
#include "tests/tap.h"

static unsigned done_count;
static int last_result;

static void on_done(struct ring_op *op)
{
    done_count++;
    last_result = op->result;
}

/* Starts another operation from inside its own completion. */
static void on_chain(struct ring_op *op)
{
    unsigned *left = op->owner;
    done_count++;
    if (--*left > 0)
        ring_nop(*(struct ring **)(left + 2), op, 0);
}

static int drain(struct ring *ring, struct err *err)
{
    int rc = 0;
    while (rc == 0 && ring_pending(ring) > 0)
        rc = ring_run(ring, 1, 1000000, err);
    return rc;
}

static void test_transfers(struct ring *ring, struct buffers *buffers, struct err *err)
{
    char path[] = "/var/tmp/tidemark-t-ring-XXXXXX";
    close_fd int fd = mkstemp(path);
    (void)unlink(path);
    uint8_t *buf = buffers_cut(buffers, 65536, 4096);
    memset(buf, 0x5a, 65536);
    ring_register(ring, buffers->base, buffers->len, fd);
    struct ring_op op = {.done = on_done};
    ring_write(ring, &op, fd, buf, 65536, 0);
    is_u64(ring_pending(ring), 1, "an operation is pending");
    is_good(drain(ring, err), err, "write");
    is_u64(last_result, 0, "result");
    memset(buf, 0, 65536);
    ring_read(ring, &op, fd, buf, 65536, 65536, 0);
    is_good(drain(ring, err), err, "read");
    ok(last_result == 0 && buf[0] == 0x5a && buf[65535] == 0x5a, "the bytes are back");
    uint8_t outside[512];
    ring_read(ring, &op, fd, outside, 512, 512, 65536 - 512);
    is_good(drain(ring, err), err, "read into memory that is not registered");
    ok(last_result == 0 && outside[511] == 0x5a, "the bytes are there");
    ring_read(ring, &op, fd, buf, 65536, 1000, 64536);
    is_good(drain(ring, err), err, "read over the end");
    is_u64(last_result, 0, "enough is good");
    is_u64(op.moved, 1000, "how much came");
    ring_read(ring, &op, fd, buf, 65536, 1001, 64536);
    is_good(drain(ring, err), err, "read over the end");
    char reason[64];
    is_u64(-last_result, ENODATA, "too little is an error");
    is_str(ring_op_reason(&op, reason, sizeof(reason)), "short: 1000 of 65536 bytes",
           "which is explained");
    ring_read(ring, &op, -1, buf, 512, 512, 0);
    is_good(drain(ring, err), err, "a bad descriptor");
    is_u64(-last_result, EBADF, "is reported");
    is_str(ring_op_reason(&op, reason, sizeof(reason)), "Bad file descriptor", "with its text");
    ring_fallocate(ring, &op, fd, 0, 0, 1 << 20);
    is_good(drain(ring, err), err, "fallocate");
    ok(last_result == 0 && lseek(fd, 0, SEEK_END) == 1 << 20, "made it longer");
    ring_fsync(ring, &op, fd);
    is_good(drain(ring, err), err, "fsync");
    is_u64(last_result, 0, "result");
}

static void test_link(struct ring *ring, struct err *err)
{
    char from[] = "/var/tmp/tidemark-t-ring-XXXXXX", to[64];
    close_fd int fd = mkstemp(from);
    snprintf(to, sizeof(to), "%s-2", from);
    struct ring_op op = {.done = on_done};
    ring_link(ring, &op, AT_FDCWD, from, AT_FDCWD, to, 0);
    is_good(drain(ring, err), err, "link");
    ok(last_result == 0 && access(to, F_OK) == 0, "the name is there");
    ring_link(ring, &op, AT_FDCWD, from, AT_FDCWD, to, 0);
    is_good(drain(ring, err), err, "link again");
    is_u64(-last_result, EEXIST, "does not replace");
    (void)unlink(from);
    (void)unlink(to);
}

/* Polls of a pipe: readiness, hang-up, cancelling in every order, and timers. */
static void test_waits(struct ring *ring, struct err *err)
{
    int fds[2];
    struct ring_op op = {.done = on_done}, other = {.done = on_done}, cancel = {.done = on_done};
    ok(pipe2(fds, O_CLOEXEC) == 0, "a pipe");
    ring_poll(ring, &op, fds[1], POLLOUT);
    is_good(drain(ring, err), err, "poll of what is ready");
    ok(last_result == 0 && op.events == POLLOUT, "is ready");
    done_count = 0;
    ring_poll(ring, &op, fds[0], POLLIN);
    is_good(ring_run(ring, 1, 1000, err), err, "poll of what is not");
    ok(done_count == 0 && ring_pending(ring) == 1, "waits");
    ok(write(fds[1], "x", 1) == 1, "until something comes");
    is_good(drain(ring, err), err, "and is done");
    ok(last_result == 0 && op.events == POLLIN && done_count == 1, "once");
    char byte;
    ok(read(fds[0], &byte, 1) == 1, "read it");
    ring_poll(ring, &op, fds[0], POLLIN);
    ring_timer(ring, &other, 3600 * (uint64_t)1000000);
    is_good(ring_run(ring, 0, 0, err), err, "submit a poll and a timer");
    ring_cancel(ring, &cancel, &op);
    is_good(ring_run(ring, 2, 1000000, err), err, "cancel the poll");
    ok(op.result == -ECANCELED && cancel.result == 0, "it is cancelled");
    is_u64(ring_pending(ring), 1, "the timer is not");
    ring_cancel(ring, &cancel, &other);
    is_good(drain(ring, err), err, "cancel the timer");
    ok(other.result == -ECANCELED && cancel.result == 0, "it is cancelled");
    ring_cancel(ring, &cancel, &op);
    is_good(drain(ring, err), err, "cancel what was done already");
    is_u64(-cancel.result, ENOENT, "is too late");
    ring_poll(ring, &op, fds[0], POLLIN);
    ring_cancel(ring, &cancel, &op);
    is_good(drain(ring, err), err, "cancel what was not submitted yet");
    ok(op.result == -ECANCELED && cancel.result == 0, "it is cancelled");
    ring_poll(ring, &op, fds[0], POLLIN);
    (void)close(fds[1]);
    is_good(drain(ring, err), err, "the other end closes");
    ok(op.result == 0 && op.events == POLLHUP, "a hang-up counts");
    (void)close(fds[0]);
    ring_poll(ring, &op, fds[0], POLLIN);
    is_good(drain(ring, err), err, "poll of a closed descriptor");
    is_u64(-last_result, EBADF, "is reported");
    uint64_t before = monotonic_ns();
    ring_timer(ring, &op, 20000);
    is_good(drain(ring, err), err, "a timer");
    ok(last_result == 0 && monotonic_ns() - before >= 20000000, "takes its time");
    for (int kind = FAULT_EIO; kind <= FAULT_EAGAIN; kind++) {
        fault_arm((enum fault_kind)kind, 1);
        ring_timer(ring, &op, 1);
        is_good(drain(ring, err), err, "timer with %s", fault_names[kind]);
        ok((last_result == 0) == fault_is_harmless(), "result %d", last_result);
    }
    fault_arm(FAULT_NONE, 0);
}

static void test_queues(struct ring *ring, struct err *err)
{
    enum { MANY = 5000 }; /* more than both of the kernel's queues hold */
    struct ring_op *ops = calloc(MANY, sizeof(*ops));
    done_count = 0;
    for (unsigned i = 0; i < MANY; i++) {
        ops[i].done = on_done;
        ring_nop(ring, &ops[i], 0);
    }
    is_good(drain(ring, err), err, "more operations than the queues hold");
    is_u64(done_count, MANY, "all complete");
    struct {
        unsigned left, unused;
        struct ring *ring;
    } chain = {.left = 300, .ring = ring};
    done_count = 0;
    ops[0].done = on_chain;
    ops[0].owner = &chain;
    ring_nop(ring, &ops[0], 0);
    is_good(drain(ring, err), err, "operations that start operations");
    is_u64(done_count, 300, "all complete");
    ops[1].done = on_done;
    ring_nop(ring, &ops[1], -EIO);
    is_good(drain(ring, err), err, "a failure reported later");
    is_u64(-last_result, EIO, "arrives");
    is_good(ring_run(ring, 1, 1000, err), err, "waiting for nothing ends");
    free(ops);
}

static void test_faults(struct ring *ring, struct err *err)
{
    uint8_t buf[4096];
    close_fd int fd = open("/dev/zero", O_RDONLY);
    struct ring_op op = {.done = on_done};
    for (int kind = FAULT_EIO; kind < FAULT_KIND_COUNT; kind++) {
        fault_arm((enum fault_kind)kind, 1);
        ring_read(ring, &op, fd, buf, sizeof(buf), sizeof(buf), 0);
        is_good(drain(ring, err), err, "read with %s", fault_names[kind]);
        ok((last_result == 0) == fault_is_harmless(), "result %d", last_result);
    }
    fault_arm(FAULT_EIO, 1);
    ok(ring_fsync_now(fd) < 0 && errno == EIO, "fsync goes through the seam");
    fault_arm(FAULT_NONE, 0);
}

static void test_plan(struct err *err)
{
    const struct buffers_need need = {
        .block_name = "read",
        .object_name = "pack",
        .block_len = MIB,
        .block_count = 8,
        .object_len = 16 * MIB,
        .object_min = 2,
        .object_max = 15,
    };
    struct buffers_plan plan;
    struct lane_options options = {.lane_count = 2, .memory_max = 512 * MIB};
    is_good(buffers_plan(&options, &need, &plan, err), err, "plan");
    ok(plan.lane_count == 2 && plan.object_count == 15 && plan.lane_len == 248 * MIB,
       "as many packs as help: %s", plan.text);
    is_u64(plan.ring_len, plan.lane_len, "all of it for the ring");
    options.memory_max = 200 * MIB;
    is_good(buffers_plan(&options, &need, &plan, err), err, "less memory");
    ok(plan.lane_count == 2 && plan.object_count == 5, "first fewer packs: %s", plan.text);
    options.memory_max = 79 * MIB;
    is_good(buffers_plan(&options, &need, &plan, err), err, "still less");
    ok(plan.lane_count == 1 && plan.object_count == 2, "then fewer lanes: %s", plan.text);
    options.memory_max = 39 * MIB;
    is_err(buffers_plan(&options, &need, &plan, err), err, ERR_CONFIG,
           "1 lanes x (8 read buffers x 1024 KiB + 2 pack buffers x 16384 KiB + 0 KiB) = 40 MiB of "
           "memory_max 39 MiB",
           "then no");
    is_str(err->hint, "set memory_max to 40 MiB or more", "with a hint");
    struct buffers_need many = need; /* a store with 32 connections in all */
    many.object_max = many.object_total = 32;
    many.object_spare = 1;
    many.object_extra = MIB;
    options = (struct lane_options){.lane_count = 2, .memory_max = 2048 * MIB};
    is_good(buffers_plan(&options, &many, &plan, err), err, "connections over all lanes");
    ok(plan.lane_count == 2 && plan.object_count == 17 && plan.lane_len == 280 * MIB,
       "half of them each, and one to fill: %s", plan.text);
    is_u64(plan.ring_len, 8 * MIB, "only reads go through the ring");
    ok(strstr(plan.text, "17 pack buffers x 17408 KiB + 0 KiB) = 594 MiB") != NULL,
       "what a connection needs is counted: %s", plan.text);
    options.memory_max = 512 * MIB;
    is_good(buffers_plan(&options, &many, &plan, err), err, "what fits");
    ok(plan.lane_count == 2 && plan.object_count == 14, "fewer packs at once: %s", plan.text);
    many.object_total = 1;
    is_good(buffers_plan(&options, &many, &plan, err), err, "one connection");
    ok(plan.lane_count == 1 && plan.object_count == 2, "one lane: %s", plan.text);
    options = (struct lane_options){0};
    is_good(buffers_plan(&options, &need, &plan, err), err, "defaults");
    ok(plan.lane_count >= 1 && plan.lane_count <= 8, "as many lanes as cores: %s", plan.text);
}

int main(void)
{
    struct err err = {0};
    struct ring *ring;
    struct buffers buffers;
    test_plan(&err);
    int rc = ring_open(&ring, &err);
    if (rc < 0) {
        skip(err.text);
        return done();
    }
    is_good(buffers_open(&buffers, 3 * MIB, 3 * MIB, &err), &err, "buffers");
    is_u64((uintptr_t)buffers.base % (2 * MIB), 0, "are aligned to huge pages");
    test_transfers(ring, &buffers, &err);
    test_link(ring, &err);
    test_waits(ring, &err);
    test_queues(ring, &err);
    test_faults(ring, &err);
    ring_close(ring);
    buffers_close(&buffers);
    return done();
}
