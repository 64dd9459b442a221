/* file:// on a lane: objects move in 1 MiB pieces through the ring, O_DIRECT where the
 * repository's filesystem has it. A put keeps the order of store_file.h:
 *
 *     temporary → fallocate → writes → ftruncate → fsync → link → fsync of the directory
 *
 * fallocate first, because a write into a hole blocks in the filesystem and io_uring would hand
 * every piece to a worker thread (FACTS). Opening is synchronous: microseconds on a local
 * filesystem, one round trip a pack on NFS. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "io/store_file.h"

enum {
    PIECE_LEN = 1 << 20,
    PIECES_MAX = (STORE_LANE_LEN_MAX + STORE_LANE_SLACK + PIECE_LEN - 1) / PIECE_LEN,
};

struct file_lane;

struct transfer {
    struct file_lane *lane;
    struct store_request *request;
    struct transfer *next_free;
    int fd;
    unsigned pieces_pending;
    bool direct;
    /* put only */
    struct store_file_temp temp;
    int dir_fd;
    const char *base; /* in request->name */
    char proc_path[32];
    struct ring_op ops[PIECES_MAX];
};

struct file_lane {
    struct store_lane lane;
    struct store_file file; /* our own: the job's store belongs to another thread */
    struct ring *ring;
    struct transfer *free;
    struct transfer transfers[];
};

static struct file_lane *of(struct store_lane *lane)
{
    return CONTAINER_OF(lane, struct file_lane, lane);
}

int store_file_lane_open(struct store *store, struct ring *ring, unsigned lane_index,
                         unsigned lane_count, unsigned request_count, struct store_lane **ret,
                         struct err *err)
{
    (void)lane_index, (void)lane_count;
    const struct store_file *from = CONTAINER_OF(store, struct store_file, store);
    struct file_lane *lane = calloc(1, sizeof(*lane) + request_count * sizeof(struct transfer));
    if (lane == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    lane->lane.ops = store->ops;
    lane->file.store = from->store;
    lane->file.group_id = from->group_id;
    lane->file.dir_fd = -1;
    lane->file.root_fd = fcntl(from->root_fd, F_DUPFD_CLOEXEC, 0);
    lane->ring = ring;
    if (lane->file.root_fd < 0) {
        free(lane);
        return err_sys(err, ERR_STORE, "open %s on a lane", store->url);
    }
    for (unsigned i = 0; i < request_count; i++) {
        lane->transfers[i].lane = lane;
        lane->transfers[i].next_free = lane->free;
        lane->free = &lane->transfers[i];
    }
    *ret = &lane->lane;
    return 0;
}

void store_file_lane_close(struct store_lane *store_lane)
{
    struct file_lane *lane = of(store_lane);
    if (lane->file.dir_fd >= 0)
        (void)close(lane->file.dir_fd);
    (void)close(lane->file.root_fd);
    free(lane);
}

static struct transfer *take_transfer(struct file_lane *lane, struct store_request *request)
{
    struct transfer *transfer = lane->free;
    assert(transfer != NULL); /* request_count of store_lane_open() was right */
    lane->free = transfer->next_free;
    transfer->request = request;
    transfer->fd = -1;
    transfer->dir_fd = -1;
    transfer->temp.fd = -1;
    transfer->temp.name[0] = '\0';
    request->rc = 0;
    request->payload = NULL;
    return transfer;
}

static void finish(struct transfer *transfer)
{
    struct store_request *request = transfer->request;
    struct file_lane *lane = transfer->lane;
    store_file_temp_close(&lane->file, &transfer->temp);
    if (transfer->fd >= 0)
        (void)close(transfer->fd);
    if (transfer->dir_fd >= 0)
        (void)close(transfer->dir_fd);
    transfer->next_free = lane->free;
    lane->free = transfer;
    request->done(request);
}

static void finish_op(struct ring_op *op)
{
    finish(CONTAINER_OF(op, struct transfer, ops[0]));
}

/* done() must not run inside store_lane_put() or _get(). */
static void finish_later(struct transfer *transfer)
{
    transfer->ops[0].done = finish_op;
    ring_nop(transfer->lane->ring, &transfer->ops[0], 0);
}

/* Keeps the first failure of a request. */
static void fail(struct transfer *transfer, const struct ring_op *op, const char *what)
{
    struct store_request *request = transfer->request;
    if (request->rc < 0)
        return;
    if (op->result == -ENODATA && op->was_short) {
        char reason[64];
        request->rc =
            err_set(&request->err, ERR_STORE, "%s '%s' in %s: %s", what, request->name,
                    transfer->lane->file.store.url, ring_op_reason(op, reason, sizeof(reason)));
        return;
    }
    errno = -op->result;
    request->rc = store_file_error(&transfer->lane->file, what, request->name, &request->err);
}

/* --- put ---------------------------------------------------------------------------------- */

static void put_flushed_dir(struct ring_op *op)
{
    struct transfer *transfer = CONTAINER_OF(op, struct transfer, ops[0]);
    if (op->result < 0)
        fail(transfer, op, "flush the directory of object");
    finish(transfer);
}

static void put_linked(struct ring_op *op)
{
    struct transfer *transfer = CONTAINER_OF(op, struct transfer, ops[0]);
    if (op->result == -EEXIST)
        transfer->request->rc = STORE_EXISTS;
    else if (op->result < 0)
        fail(transfer, op, "name object");
    if (transfer->request->rc < 0) {
        finish(transfer);
        return;
    }
    op->done = put_flushed_dir;
    ring_fsync(transfer->lane->ring, op, transfer->dir_fd);
}

static void put_flushed(struct ring_op *op)
{
    struct transfer *transfer = CONTAINER_OF(op, struct transfer, ops[0]);
    if (op->result < 0) {
        fail(transfer, op, "flush object");
        finish(transfer);
        return;
    }
    op->done = put_linked;
    if (transfer->temp.name[0] != '\0') {
        ring_link(transfer->lane->ring, op, transfer->lane->file.root_fd, transfer->temp.name,
                  transfer->dir_fd, transfer->base, 0);
        return;
    }
    (void)snprintf(transfer->proc_path, sizeof(transfer->proc_path), "/proc/self/fd/%d",
                   transfer->temp.fd);
    ring_link(transfer->lane->ring, op, AT_FDCWD, transfer->proc_path, transfer->dir_fd,
              transfer->base, AT_SYMLINK_FOLLOW);
}

static void put_wrote(struct transfer *transfer)
{
    struct store_request *request = transfer->request;
    if (request->rc == 0 && transfer->direct &&
        ftruncate(transfer->temp.fd, (off_t)request->len) < 0)
        request->rc =
            store_file_error(&transfer->lane->file, "cut object", request->name, &request->err);
    if (request->rc < 0) {
        finish(transfer);
        return;
    }
    transfer->ops[0].done = put_flushed;
    ring_fsync(transfer->lane->ring, &transfer->ops[0], transfer->temp.fd);
}

static void put_piece(struct ring_op *op)
{
    struct transfer *transfer = op->owner;
    if (op->result < 0)
        fail(transfer, op, "write object");
    if (--transfer->pieces_pending == 0)
        put_wrote(transfer);
}

static void put_write(struct transfer *transfer, size_t len)
{
    const struct store_request *request = transfer->request;
    unsigned count = (unsigned)div_round_up(len, PIECE_LEN);
    assert(count > 0 && count <= PIECES_MAX);
    transfer->pieces_pending = count;
    for (unsigned i = 0; i < count; i++) {
        struct ring_op *op = &transfer->ops[i];
        size_t at = (size_t)i * PIECE_LEN;
        op->owner = transfer;
        op->done = put_piece;
        ring_write(transfer->lane->ring, op, transfer->temp.fd, request->buf + at,
                   len - at < PIECE_LEN ? len - at : PIECE_LEN, at);
    }
}

static void put_allocated(struct ring_op *op)
{
    struct transfer *transfer = CONTAINER_OF(op, struct transfer, ops[0]);
    /* Only a full filesystem matters here: NFS before 4.2 and others have no fallocate(2). */
    if (op->result < 0 && op->result != -EOPNOTSUPP && op->result != -EINVAL &&
        op->result != -ENOSYS) {
        fail(transfer, op, "allocate object");
        finish(transfer);
        return;
    }
    put_write(transfer, op->len);
}

static int put_open(struct transfer *transfer, struct err *err)
{
    struct store_file *file = &transfer->lane->file;
    char dir[STORE_NAME_MAX + 1];
    transfer->base = store_file_split(transfer->request->name, dir);
    int rc = store_file_put_dir(file, dir, err);
    if (rc < 0)
        return rc;
    transfer->dir_fd = fcntl(file->dir_fd, F_DUPFD_CLOEXEC, 0);
    if (transfer->dir_fd < 0)
        return store_file_error(file, "open the directory of object", transfer->request->name, err);
    return store_file_temp_open(file, transfer->dir_fd, O_DIRECT, &transfer->temp,
                                &transfer->direct, err);
}

void store_file_lane_put(struct store_lane *lane, struct store_request *request)
{
    struct transfer *transfer = take_transfer(of(lane), request);
    request->rc = put_open(transfer, &request->err);
    if (request->rc < 0) {
        finish_later(transfer);
        return;
    }
    size_t len = request->len;
    if (transfer->direct) {
        len = (size_t)align_up(len, STORE_LANE_ALIGN);
        memset(request->buf + request->len, 0, len - request->len);
    }
    transfer->ops[0].done = put_allocated;
    ring_fallocate(transfer->lane->ring, &transfer->ops[0], transfer->temp.fd, 0, 0, len);
}

/* --- get ---------------------------------------------------------------------------------- */

static void get_piece(struct ring_op *op)
{
    struct transfer *transfer = op->owner;
    if (op->result < 0)
        fail(transfer, op, "read object");
    if (--transfer->pieces_pending == 0)
        finish(transfer);
}

static int get_open(struct transfer *transfer, struct err *err)
{
    struct store_file *file = &transfer->lane->file;
    const struct store_request *request = transfer->request;
    struct stat st;
    int rc = store_file_open_object(file, request->name, O_DIRECT, &transfer->fd, &st, err);
    transfer->direct = rc == 0;
    if (rc == -ERR_STORE && err->sys_errno == EINVAL)
        rc = store_file_open_object(file, request->name, 0, &transfer->fd, &st, err);
    if (rc < 0)
        return rc;
    uint64_t end;
    if (!add_u64(request->offset, request->len, &end) || end > (uint64_t)st.st_size)
        return err_set(err, ERR_CORRUPT,
                       "object '%s' is cut: it has %lld bytes, %zu at %llu are wanted",
                       request->name, (long long)st.st_size, request->len,
                       (unsigned long long)request->offset);
    return 0;
}

void store_file_lane_get(struct store_lane *lane, struct store_request *request)
{
    struct transfer *transfer = take_transfer(of(lane), request);
    request->rc = get_open(transfer, &request->err);
    if (request->rc < 0) {
        finish_later(transfer);
        return;
    }
    /* Whole blocks around the range; the last may end behind the object. */
    uint64_t align = transfer->direct ? STORE_LANE_ALIGN : 1;
    uint64_t start = align_down(request->offset, align);
    size_t wanted = (size_t)(request->offset + request->len - start);
    size_t len = (size_t)align_up(wanted, align);
    assert(len <= request->capacity);
    request->payload = request->buf + (request->offset - start);
    unsigned count = (unsigned)div_round_up(len, PIECE_LEN);
    assert(count <= PIECES_MAX);
    transfer->pieces_pending = count;
    for (unsigned i = 0; i < count; i++) {
        struct ring_op *op = &transfer->ops[i];
        size_t at = (size_t)i * PIECE_LEN;
        size_t piece = len - at < PIECE_LEN ? len - at : PIECE_LEN;
        op->owner = transfer;
        op->done = get_piece;
        ring_read(transfer->lane->ring, op, transfer->fd, request->buf + at, piece,
                  wanted - at < piece ? wanted - at : piece, start + at);
    }
}
