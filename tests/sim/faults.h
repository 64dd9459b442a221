/* Fails the Nth I/O operation of the process: every submission to a ring (through the seam
 * ring_inject(), which this file defines instead of io/ring_inject.c) and every client call of a
 * wrapped store count. Include it in one file of a test program.
 *
 *     for (fault.at = 1; fault_arm(kind, n), run(), fault.fired; n++) …
 *
 * One lane makes the order of operations repeatable enough: each N is some operation, and the loop
 * ends with the first run that has no Nth one. */
#ifndef TIDEMARK_TESTS_SIM_FAULTS_H
#define TIDEMARK_TESTS_SIM_FAULTS_H

#include <errno.h>
#include <stdatomic.h>

#include "io/ring.h"
#include "io/store_ops.h"

enum fault_kind {
    FAULT_NONE,
    FAULT_EIO,         /* once */
    FAULT_EIO_ON,      /* this and all that follow */
    FAULT_ENOSPC,      /* once; reads get EIO instead */
    FAULT_EINTR,       /* once: must not be noticed */
    FAULT_EAGAIN,      /* once: must not be noticed */
    FAULT_SHORT,       /* once, transfers only: must not be noticed */
    FAULT_SHORT_TWICE, /* the retry of the same operation is short too */
    FAULT_KIND_COUNT
};

static const char *const fault_names[FAULT_KIND_COUNT] = {
    "none", "EIO", "EIO from there on", "ENOSPC", "EINTR", "EAGAIN", "short", "short twice",
};

static struct {
    enum fault_kind kind;
    unsigned at; /* 1 = the first operation */
    atomic_uint count;
    atomic_bool fired;
    const struct ring_op *short_op;
} fault;

__attribute__((unused)) static void fault_arm(enum fault_kind kind, unsigned at)
{
    fault.kind = kind;
    fault.at = at;
    atomic_store(&fault.count, 0);
    atomic_store(&fault.fired, false);
    fault.short_op = NULL;
}

static bool fault_hits(void)
{
    unsigned number = atomic_fetch_add(&fault.count, 1) + 1;
    bool hit = number == fault.at || (fault.kind == FAULT_EIO_ON && number > fault.at);
    if (hit)
        atomic_store(&fault.fired, true);
    return hit;
}

static bool inject_short(const struct ring_op *op, int *ret_result)
{
    if (op->kind != RING_READ && op->kind != RING_WRITE)
        return false;
    fault.short_op = op;
    *ret_result = op->len_min > 512 ? 512 : 0;
    return true;
}

bool ring_inject(const struct ring_op *op, int *ret_result)
{
    if (fault.kind == FAULT_NONE)
        return false;
    if (fault.kind == FAULT_SHORT_TWICE && op == fault.short_op && op->was_short)
        return inject_short(op, ret_result);
    if (!fault_hits())
        return false;
    switch (fault.kind) {
    case FAULT_EINTR:
        *ret_result = -EINTR;
        return true;
    case FAULT_EAGAIN:
        *ret_result = -EAGAIN;
        return true;
    case FAULT_SHORT:
    case FAULT_SHORT_TWICE:
        return inject_short(op, ret_result);
    case FAULT_ENOSPC:
        *ret_result = op->kind == RING_READ ? -EIO : -ENOSPC;
        return true;
    case FAULT_EIO:
    case FAULT_EIO_ON:
        *ret_result = -EIO;
        return true;
    case FAULT_NONE:
    case FAULT_KIND_COUNT:
        break;
    }
    return false;
}

/* True when a run that meets this fault may end well. */
__attribute__((unused)) static bool fault_is_harmless(void)
{
    return fault.kind == FAULT_EINTR || fault.kind == FAULT_EAGAIN || fault.kind == FAULT_SHORT ||
           (fault.kind == FAULT_SHORT_TWICE && fault.short_op == NULL);
}

/* --- a store whose client calls count too ---------------------------------------------------- */

struct fault_store {
    struct store store;
    struct store *inner;
};

static struct store *fault_inner(struct store *store)
{
    return CONTAINER_OF(store, struct fault_store, store)->inner;
}

static int fault_call(const char *what, struct err *err)
{
    bool hard = fault.kind == FAULT_EIO || fault.kind == FAULT_EIO_ON || fault.kind == FAULT_ENOSPC;
    if (!hard || !fault_hits())
        return 0;
    return err_set(err, ERR_STORE, "%s: injected", what);
}

static int fault_put(struct store *store, const char *name, const void *ptr, size_t len,
                     struct err *err)
{
    int rc = fault_call("put", err);
    return rc < 0 ? rc : store_put(fault_inner(store), name, ptr, len, err);
}

static int fault_flush_name(struct store *store, const char *name, struct err *err)
{
    int rc = fault_call("flush", err);
    return rc < 0 ? rc : store_flush_name(fault_inner(store), name, err);
}

static int fault_get(struct store *store, const char *name, uint64_t offset, void *buf, size_t len,
                     size_t *ret_len, uint64_t *ret_size, struct err *err)
{
    struct store *inner = fault_inner(store);
    int rc = fault_call("get", err);
    return rc < 0 ? rc : inner->ops->get(inner, name, offset, buf, len, ret_len, ret_size, err);
}

static int fault_size(struct store *store, const char *name, uint64_t *ret_size, struct err *err)
{
    int rc = fault_call("size", err);
    return rc < 0 ? rc : store_size(fault_inner(store), name, ret_size, err);
}

static int fault_list(struct store *store, const char *prefix,
                      int (*each)(void *ctx, const char *name, uint64_t size, struct err *err),
                      void *ctx, struct err *err)
{
    int rc = fault_call("list", err);
    return rc < 0 ? rc : store_list(fault_inner(store), prefix, each, ctx, err);
}

static int fault_remove(struct store *store, const char *name, struct err *err)
{
    int rc = fault_call("remove", err);
    return rc < 0 ? rc : store_remove(fault_inner(store), name, err);
}

static void fault_close(struct store *store)
{
    store_close(fault_inner(store));
}

static int fault_lane_open(struct store *store, struct ring *ring, unsigned lane_index,
                           unsigned lane_count, unsigned request_count, struct store_lane **ret,
                           struct err *err)
{
    return store_lane_open(fault_inner(store), ring, lane_index, lane_count, request_count, ret,
                           err);
}

static const struct store_ops fault_store_ops = {
    .scheme = "fault://",
    .put = fault_put,
    .flush_name = fault_flush_name,
    .get = fault_get,
    .size = fault_size,
    .list = fault_list,
    .remove = fault_remove,
    .close = fault_close,
    .lane_depth = 4,
    .lane_open = fault_lane_open,
};

/* Takes inner; store_close() of the result closes both. */
__attribute__((unused)) static struct store *fault_store_wrap(struct store *inner)
{
    struct fault_store *wrapped = calloc(1, sizeof(*wrapped));
    if (wrapped == NULL)
        abort();
    wrapped->store.ops = &fault_store_ops;
    wrapped->store.url = strdup(store_url(inner));
    wrapped->inner = inner;
    return &wrapped->store;
}

#endif
