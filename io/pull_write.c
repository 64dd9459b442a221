/* The target side of a lane: adjoining chunks gather in 1 MiB buffers and leave as one write; zeros
 * are asked for, and written only where the target cannot zero by itself. The first PULL_HEAD_LEN
 * bytes of the volume are cut off every write here. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>

#include "io/pull_lane.h"

/* Up to here zeros are cheaper written than allocated by an io-wq thread. */
enum { ZERO_WRITE_MAX = 128 << 10 };

enum zero_method { ZERO_BY_RANGE, ZERO_BY_PUNCH, ZERO_BY_WRITE };

void pull_write_init(struct pull_lane *pl)
{
    for (unsigned i = 0; i < PULL_ZEROS; i++) {
        pl->zeros[i].lane = pl;
        pl->zeros[i].next_free = pl->free_zeros;
        pl->free_zeros = &pl->zeros[i];
    }
    for (unsigned i = 0; i < PULL_BLOCK_COUNT; i++) {
        pl->blocks[i].lane = pl;
        pull_block_release(&pl->blocks[i]);
    }
}

struct pull_block *pull_block_take(struct pull_lane *pl)
{
    struct pull_block *block = pl->free_blocks;
    if (block == NULL)
        return NULL;
    pl->free_blocks = block->next_free;
    block->used = 0;
    block->piece_count = 0;
    block->pieces_left = 0;
    return block;
}

void pull_block_release(struct pull_block *block)
{
    block->next_free = block->lane->free_blocks;
    block->lane->free_blocks = block;
}

/* Lengths that the target takes: only an image file may end within a sector, and is cut to its
 * length at the end. */
static size_t whole_sectors(const struct pull_lane *pl, size_t len)
{
    return (size_t)align_up(len, pl->pull->alignment);
}

/* --- data --------------------------------------------------------------------------------- */

static void piece_done(struct ring_op *op)
{
    struct pull_piece *piece = CONTAINER_OF(op, struct pull_piece, op);
    struct pull_block *block = piece->block;
    struct pull_lane *pl = block->lane;
    if (op->result < 0)
        pull_fail_op(pl, op, "write");
    else
        pull_count(&pl->pull->progress->bytes_done, piece->plain_len);
    assert(block->pieces_left > 0);
    if (--block->pieces_left == 0 && block != pl->block)
        pull_block_release(block);
    piece->region->ops_left--;
    pull_region_settle(piece->region);
}

static void flush_run(struct pull_lane *pl)
{
    struct pull_run run = pl->run;
    struct pull_block *block = pl->block;
    if (run.region == NULL)
        return;
    pl->run.region = NULL;
    run.region->ops_left--; /* the open run's own */
    for (size_t at = 0; at < run.len;) {
        size_t len = (size_t)min_u64(pl->job->piece_max, run.len - at);
        size_t whole = whole_sectors(pl, len);
        assert(block->piece_count < PULL_PIECES_MAX);
        struct pull_piece *piece = &block->pieces[block->piece_count++];
        piece->block = block;
        piece->region = run.region;
        piece->plain_len = len;
        piece->op.done = piece_done;
        block->pieces_left++;
        run.region->ops_left++;
        uint8_t *from = block->buf + run.at + at;
        memset(from + len, 0, whole - len);
        ring_write(pl->lane->ring, &piece->op, pl->pull->fd, from, whole, run.offset + at);
        at += len;
    }
    block->used = (size_t)align_up(block->used, 4096); /* where the next run may begin */
}

static void close_block(struct pull_lane *pl)
{
    flush_run(pl);
    struct pull_block *block = pl->block;
    pl->block = NULL;
    if (block != NULL && block->pieces_left == 0)
        pull_block_release(block);
}

uint8_t *pull_write_slot(struct pull_lane *pl, struct pull_region *region, uint32_t chunk)
{
    const struct pull_run *run = &pl->run;
    if (run->region != NULL &&
        (run->region != region || run->offset + run->len != pull_chunk_offset(pl, region, chunk)))
        flush_run(pl);
    /* A whole chunk always, so that the padding of a short last one fits too. */
    if (pl->block != NULL && PULL_BLOCK_LEN - pl->block->used < pl->manifest->chunk_size)
        close_block(pl);
    if (pl->block == NULL)
        pl->block = pull_block_take(pl);
    return pl->block != NULL ? pl->block->buf + pl->block->used : NULL;
}

/* Zeros the withheld parts of a decoded chunk. */
static void withhold(const struct pull *pull, uint8_t *ptr, uint64_t offset, uint64_t len)
{
    const struct extent *end = pull->withheld + pull->withheld_count;
    for (const struct extent *next = pull_withheld(pull, offset);
         next != NULL && next < end && next->offset < offset + len; next++) {
        uint64_t from = max_u64(next->offset, offset);
        uint64_t to = min_u64(next->offset + next->len, offset + len);
        memset(ptr + (from - offset), 0, (size_t)(to - from));
    }
}

void pull_write_commit(struct pull_lane *pl, struct pull_region *region, uint32_t chunk)
{
    struct pull_block *block = pl->block;
    size_t at = block->used, len = pull_chunk_len(region, chunk);
    uint64_t offset = pull_chunk_offset(pl, region, chunk);
    block->used += len;
    withhold(pl->pull, block->buf + at, offset, len);
    assert(region->chunks_left > 0);
    region->chunks_left--;
    if (offset == 0) {
        pull_count(&pl->pull->progress->bytes_done, PULL_HEAD_LEN);
        at += PULL_HEAD_LEN;
        len -= PULL_HEAD_LEN;
        offset = PULL_HEAD_LEN;
    }
    if (pl->run.region == NULL && len > 0) {
        pl->run = (struct pull_run){.region = region, .at = at, .offset = offset};
        region->ops_left++;
    }
    pl->run.len += len;
}

void pull_write_flush(struct pull_lane *pl, const struct pull_region *region)
{
    if (pl->run.region == region)
        flush_run(pl);
}

/* --- zeros -------------------------------------------------------------------------------- */

static void zero_next(struct pull_zero *zero);

static enum zero_method zero_method(const struct pull_zero *zero)
{
    static const enum zero_method of_zero[] = {ZERO_BY_RANGE, ZERO_BY_PUNCH, ZERO_BY_WRITE};
    static const enum zero_method of_free[] = {ZERO_BY_PUNCH, ZERO_BY_RANGE, ZERO_BY_WRITE};
    assert(zero->method < ARRAY_LEN(of_zero));
    return zero->is_free ? of_free[zero->method] : of_zero[zero->method];
}

static void zero_end(struct pull_zero *zero)
{
    struct pull_lane *pl = zero->lane;
    struct pull_region *region = zero->region;
    zero->next_free = pl->free_zeros;
    pl->free_zeros = zero;
    region->ops_left--;
    pull_region_settle(region);
}

static bool is_unsupported(int result)
{
    return result == -EOPNOTSUPP || result == -ENOSYS || result == -EINVAL || result == -ENODEV;
}

static void zero_done(struct ring_op *op)
{
    struct pull_zero *zero = CONTAINER_OF(op, struct pull_zero, op);
    struct pull_lane *pl = zero->lane;
    enum zero_method method = zero_method(zero);
    if (op->result < 0 && method != ZERO_BY_WRITE && is_unsupported(op->result)) {
        pl->no_punch |= method == ZERO_BY_PUNCH;
        pl->no_zero_range |= method == ZERO_BY_RANGE;
        zero_next(zero);
        return;
    }
    if (op->result < 0) {
        pull_fail_op(pl, op, "zero");
        zero_end(zero);
        return;
    }
    uint64_t len =
        method == ZERO_BY_WRITE ? min_u64(op->len, zero->len - zero->done_len) : zero->len;
    zero->done_len += len;
    pull_count(&pl->pull->progress->bytes_done, len);
    if (zero->done_len < zero->len && !lane_stopped(pl->lane))
        zero_next(zero);
    else
        zero_end(zero);
}

/* Starts the best method that is left, or the next piece of a written one. */
static void zero_next(struct pull_zero *zero)
{
    struct pull_lane *pl = zero->lane;
    struct ring *ring = pl->lane->ring;
    if (zero->len <= ZERO_WRITE_MAX)
        zero->method = 2;
    while ((zero_method(zero) == ZERO_BY_PUNCH && pl->no_punch) ||
           (zero_method(zero) == ZERO_BY_RANGE && pl->no_zero_range))
        zero->method++;
    zero->op.done = zero_done;
    int mode = FALLOC_FL_KEEP_SIZE; /* fallocate(2); block devices: blkdev_fallocate(), 4.9 */
    switch (zero_method(zero)) {
    case ZERO_BY_RANGE: /* keeps the space: files had it */
        ring_fallocate(ring, &zero->op, pl->pull->fd, mode | FALLOC_FL_ZERO_RANGE, zero->offset,
                       zero->len);
        break;
    case ZERO_BY_PUNCH: /* releases it; reads back zeros or fails, unlike BLKDISCARD */
        ring_fallocate(ring, &zero->op, pl->pull->fd, mode | FALLOC_FL_PUNCH_HOLE, zero->offset,
                       zero->len);
        break;
    case ZERO_BY_WRITE: {
        size_t len = (size_t)min_u64(pl->job->piece_max, zero->len - zero->done_len);
        ring_write(ring, &zero->op, pl->pull->fd, pl->zero_buf, whole_sectors(pl, len),
                   zero->offset + zero->done_len);
        break;
    }
    }
}

void pull_zero_start(struct pull_lane *pl, struct pull_region *region)
{
    uint32_t first, count;
    bool is_free;
    while (pl->free_zeros != NULL && pull_plan_zero_run(region, &first, &count, &is_free)) {
        struct pull_zero *zero = pl->free_zeros;
        uint64_t start = pull_chunk_offset(pl, region, first);
        uint64_t end = pull_chunk_offset(pl, region, first + count - 1) +
                       pull_chunk_len(region, first + count - 1);
        assert(region->chunks_left >= count);
        region->chunks_left -= count;
        if (start == 0) {
            pull_count(&pl->pull->progress->bytes_done, PULL_HEAD_LEN);
            start = PULL_HEAD_LEN;
        }
        if (start == end)
            continue;
        pl->free_zeros = zero->next_free;
        zero->region = region;
        zero->offset = start;
        zero->len = end - start;
        zero->done_len = 0;
        zero->method = 0;
        zero->is_free = is_free;
        region->ops_left++;
        zero_next(zero);
    }
}
