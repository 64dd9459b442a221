/* One lane of push: reads of the device in order, the CPU work of every chunk inline, packs to the
 * store.
 *
 * Reads form a FIFO: they complete in any order and are used in the order they were started, so
 * chunks lie in a pack in device order. A pack buffer comes back when its PUT completed; a lane
 * without one stops using reads, a lane without free reads stops reading: that is all of the flow
 * control. A work entry is written by the lane that holds its region and by no other. */
#include "io/push_lane.h"

#include <assert.h>
#include <inttypes.h>

#include "io/clock.h"
#include "io/codec.h"
#include "io/hash.h"

enum { WAIT_US = 100000 }; /* the longest before somebody's cancel is seen */

struct push_read {
    struct ring_op op;
    struct push_lane *lane;
    uint8_t *buf;
    struct push_span span;
    bool ready;
};

struct push_pack {
    struct store_request request;
    struct push_lane *lane;
    struct push_pack *next_free;
    uint8_t *buf;
    size_t len;
    uint32_t number;
    uint64_t plain_len; /* of its chunks, for progress */
    uint32_t chunk_count;
    uint64_t rewritten_len; /* stored bytes of chunks that have not changed */
    uint32_t rewritten_count;
};

struct push_lane {
    struct lane *lane;
    const struct push_job *job;
    struct push *push;
    struct push_cursor cursor;
    uint64_t item_next, item_end; /* regions that it has taken */
    bool cursor_open;
    bool no_more; /* the dispenser is empty and the cursor at its end */
    uint64_t read_after_ns;
    unsigned read_first, read_count; /* FIFO in reads[] */
    struct push_read reads[PUSH_READ_COUNT];
    struct push_pack *open; /* the pack that is being filled */
    struct seal *seal;      /* with its key; NULL: the repository is plain */
    size_t tag_len;         /* of each stored chunk */
    struct push_pack *free_packs;
    unsigned puts_pending;
    uint32_t next_number;
    struct push_pack packs[]; /* job->pack_count */
};

static void count(_Atomic uint64_t *counter, uint64_t by)
{
    (void)atomic_fetch_add_explicit(counter, by, memory_order_relaxed);
}

/* --- packs -------------------------------------------------------------------------------- */

static void put_done(struct store_request *request)
{
    struct push_pack *pack = CONTAINER_OF(request, struct push_pack, request);
    struct push_lane *pl = pack->lane;
    struct io_progress *progress = pl->push->progress;
    if (request->rc == STORE_EXISTS)
        request->rc =
            err_set(&request->err, ERR_STORE,
                    "object '%s' exists already: the snapshot id is not unique", request->name);
    if (request->rc < 0) {
        lane_fail(pl->lane, &request->err);
    } else {
        pl->push->pack_len[pack->number] = pack->len;
        count(&progress->objects, 1);
        count(&progress->bytes_stored, pack->len);
        count(&progress->bytes_done, pack->plain_len);
        count(&progress->chunks_stored, pack->chunk_count);
        count(&progress->chunks_rewritten, pack->rewritten_count);
        count(&progress->bytes_rewritten, pack->rewritten_len);
    }
    pl->puts_pending--;
    pack->next_free = pl->free_packs;
    pl->free_packs = pack;
}

static void close_pack(struct push_lane *pl)
{
    struct push_pack *pack = pl->open;
    push_header(pl->push, FMT_PACK, pack->number, pack->buf, pack->len);
    pack->request.buf = pack->buf;
    pack->request.capacity = FMT_PACK_TARGET;
    pack->request.len = pack->len;
    pack->request.done = put_done;
    pl->open = NULL;
    pl->puts_pending++;
    store_lane_put(pl->lane->store, &pack->request);
}

/* The keys are there (push_need_origin()), so it cannot fail. */
static void begin_seal(struct push_lane *pl, const struct push_pack *pack)
{
    struct err err;
    const struct seal_origin *origin = &pl->push->origin;
    int rc = seal_begin(pl->seal, store_keys(pl->push->store), FMT_ROLE_DATA, origin->key_id,
                        origin->salt, pack->request.name, &err);
    assert(rc == 0);
}

/* The open pack, with room for len bytes. can_use() promised that one is free. */
static struct push_pack *pack_for(struct push_lane *pl, size_t len)
{
    if (pl->open != NULL && FMT_PACK_TARGET - pl->open->len < len)
        close_pack(pl);
    if (pl->open != NULL)
        return pl->open;
    struct push_pack *pack = pl->free_packs;
    assert(pack != NULL);
    pl->free_packs = pack->next_free;
    pack->number = pl->next_number;
    assert(pack->number < pl->job->pack_limit);
    pl->next_number += pl->job->lane_count;
    pack->len = FMT_HEADER_LEN;
    pack->plain_len = 0;
    pack->chunk_count = 0;
    pack->rewritten_len = 0;
    pack->rewritten_count = 0;
    repo_pack_name(pack->request.name, pl->push->work->volume, pl->push->work->snapshot,
                   pack->number);
    if (pl->seal != NULL)
        begin_seal(pl, pack);
    pl->open = pack;
    return pack;
}

/* --- chunks ------------------------------------------------------------------------------- */

static void store_chunk(struct push_lane *pl, const uint8_t *ptr, uint32_t len,
                        struct fmt_entry *entry)
{
    struct push_pack *pack = pack_for(pl, len + pl->tag_len);
    uint8_t *to = pack->buf + pack->len;
    int acceleration = pl->push->options.acceleration;
    /* Room for the whole chunk is there, so that what is RAW depends on the chunk alone. */
    size_t stored = codec_compress(ptr, len, to, len, acceleration > 0 ? acceleration : 2);
    uint32_t flags = 0;
    if (stored == 0) {
        memcpy(to, ptr, len);
        stored = len;
        flags = FMT_RAW;
    }
    entry->pack = pl->push->work->parent_pack_count + pack->number;
    entry->offset = (uint32_t)pack->len;
    entry->len_flags = (uint32_t)stored | flags << 24;
    if (pl->seal != NULL)
        seal_part(pl->seal, pack->len, to, stored);
    pack->len += stored + pl->tag_len;
    pack->plain_len += len;
    pack->chunk_count++;
}

static bool has_digest(const struct fmt_entry *entry, const uint8_t digest[FMT_DIGEST_LEN])
{
    return (fmt_entry_flags(entry) & (FMT_ZERO | FMT_FREE)) == 0 &&
           memcmp(entry->digest, digest, FMT_DIGEST_LEN) == 0;
}

/* It has data that an earlier run of this snapshot stored. */
static bool is_own(const struct table *work, const struct fmt_entry *entry)
{
    return (fmt_entry_flags(entry) & (FMT_ZERO | FMT_FREE)) == 0 &&
           entry->pack >= work->parent_pack_count;
}

/* The same bytes in the parent. */
static bool is_parents(const struct push *push, uint64_t index, uint32_t len,
                       const uint8_t digest[FMT_DIGEST_LEN])
{
    const struct table *parent = push->parent;
    return parent != NULL && index < parent->chunk_count && table_chunk_len(parent, index) == len &&
           has_digest(&parent->entries[index], digest);
}

static void rewrite_chunk(struct push_lane *pl, const uint8_t *ptr, uint32_t len,
                          struct fmt_entry *entry)
{
    store_chunk(pl, ptr, len, entry);
    pl->open->rewritten_len += fmt_entry_len(entry);
    pl->open->rewritten_count++;
}

/* From the parent, from an earlier run of this snapshot, or new. */
static void settle_chunk(struct push_lane *pl, uint64_t index, const uint8_t *ptr, uint32_t len,
                         struct fmt_entry *entry)
{
    const struct push *push = pl->push;
    const struct fmt_entry *own = &push->work->entries[index];
    bool parents = is_parents(push, index, len, entry->digest);
    bool stored = is_own(push->work, own);
    bool owns = stored && memcmp(own->digest, entry->digest, FMT_DIGEST_LEN) == 0;
    if (!owns && !parents) {
        store_chunk(pl, ptr, len, entry);
    } else if (parents && !stored && push_is_rewritten(push, index)) { /* once: it is a budget */
        rewrite_chunk(pl, ptr, len, entry);
    } else {
        *entry = owns ? *own : push->parent->entries[index];
        count(&push->progress->chunks_same, 1);
        count(&push->progress->bytes_done, len);
    }
}

static void use_chunk(struct push_lane *pl, uint64_t index, const uint8_t *ptr)
{
    struct push *push = pl->push;
    assert(push->work->entries != NULL && index < push->work->chunk_count);
    struct fmt_entry *to = &push->work->entries[index];
    uint32_t len = table_chunk_len(push->work, index);
    struct fmt_entry entry = {.len_flags = (uint32_t)FMT_ZERO << 24};
    if (codec_is_zero(ptr, len)) {
        *to = entry;
        count(&push->progress->chunks_zero, 1);
        count(&push->progress->bytes_done, len);
        return;
    }
    hash_xxh3_128(ptr, len, push->repo->digest_seed, entry.digest);
    settle_chunk(pl, index, ptr, len, &entry);
    *to = entry;
}

/* --- reads -------------------------------------------------------------------------------- */

static void read_done(struct ring_op *op)
{
    struct push_read *read = CONTAINER_OF(op, struct push_read, op);
    read->ready = true;
    if (op->result == 0)
        return;
    struct err err;
    char reason[64];
    (void)err_set(&err, ERR_DEVICE, "read %zu bytes of the volume at %" PRIu64 ": %s", op->len,
                  op->offset, ring_op_reason(op, reason, sizeof(reason)));
    lane_fail(read->lane->lane, &err);
}

static void start_read(struct push_lane *pl, const struct push_span *span)
{
    const struct push *push = pl->push;
    struct push_read *read = &pl->reads[(pl->read_first + pl->read_count++) % PUSH_READ_COUNT];
    uint64_t offset = span->first * push->work->chunk_size;
    size_t len =
        (size_t)min_u64((uint64_t)span->count * push->work->chunk_size, push->work->size - offset);
    read->span = *span;
    read->ready = false;
    read->op.done = read_done;
    /* Only an image file can end within a sector; a read may go over its end. */
    size_t whole = (size_t)align_up(len, push->alignment);
    ring_read(pl->lane->ring, &read->op, push->fd, read->buf, whole, len, offset);
    pl->read_after_ns = lane_rate_reserve(pl->lane, len);
}

static bool next_span(struct push_lane *pl, struct push_span *ret)
{
    for (;;) {
        if (pl->cursor_open && push_cursor_next(&pl->cursor, ret))
            return true;
        pl->cursor_open = false;
        if (pl->item_next == pl->item_end) {
            uint64_t count = lane_take(pl->lane, pl->job->region_count, 1, &pl->item_next);
            pl->item_end = pl->item_next + count;
            if (count == 0)
                return false;
        }
        push_cursor_open(&pl->cursor, pl->job, pl->job->region_first + pl->item_next++);
        pl->cursor_open = true;
    }
}

static void admit_reads(struct push_lane *pl)
{
    while (!pl->no_more && pl->read_count < PUSH_READ_COUNT) {
        if (pl->read_after_ns > 0 && pl->read_after_ns > monotonic_ns())
            return;
        struct push_span span;
        if (next_span(pl, &span))
            start_read(pl, &span);
        else
            pl->no_more = true;
    }
}

/* The oldest read is there, and so is room for all of its chunks: a read is at most 1 MiB, so it
 * needs one new pack at the most. */
static bool can_use(const struct push_lane *pl)
{
    if (pl->read_count == 0 || !pl->reads[pl->read_first].ready)
        return false;
    size_t most = PUSH_READ_LEN + PUSH_READ_CHUNKS_MAX * pl->tag_len;
    bool fits = pl->open != NULL && FMT_PACK_TARGET - pl->open->len >= most;
    return fits || pl->free_packs != NULL;
}

static void use_read(struct push_lane *pl)
{
    struct push_read *read = &pl->reads[pl->read_first];
    for (uint32_t i = 0; i < read->span.count; i++)
        if (read->span.wanted >> i & 1)
            use_chunk(pl, read->span.first + i, read->buf + (size_t)i * pl->push->work->chunk_size);
    pl->read_first = (pl->read_first + 1) % PUSH_READ_COUNT;
    pl->read_count--;
}

/* --- the loop ----------------------------------------------------------------------------- */

static uint64_t wait_us(const struct push_lane *pl)
{
    uint64_t now_ns = pl->read_after_ns > 0 ? monotonic_ns() : 0;
    if (pl->no_more || pl->read_after_ns <= now_ns)
        return WAIT_US;
    return min_u64(WAIT_US, (pl->read_after_ns - now_ns) / 1000 + 1);
}

static int push_loop(struct push_lane *pl, struct err *err)
{
    struct ring *ring = pl->lane->ring;
    for (;;) {
        int rc;
        bool stopped = lane_stopped(pl->lane);
        if (stopped)
            store_lane_stop(pl->lane->store);
        else
            admit_reads(pl);
        bool all_read = pl->no_more && pl->read_count == 0;
        if (!stopped && all_read && pl->open != NULL)
            close_pack(pl);
        if ((stopped || all_read) && pl->puts_pending == 0 && ring_pending(ring) == 0)
            return 0;
        if (!stopped && can_use(pl)) {
            use_read(pl);
            rc = ring_run(ring, 0, 0, err);
        } else {
            rc = ring_run(ring, 1, wait_us(pl), err);
        }
        if (rc < 0)
            return rc;
    }
}

static void cut_buffers(struct push_lane *pl, struct buffers *buffers)
{
    for (unsigned i = 0; i < PUSH_READ_COUNT; i++) {
        pl->reads[i].lane = pl;
        pl->reads[i].buf = buffers_cut(buffers, PUSH_READ_LEN, PUSH_READ_LEN);
    }
    for (unsigned i = 0; i < pl->job->pack_count; i++) {
        pl->packs[i].lane = pl;
        pl->packs[i].buf = buffers_cut(buffers, FMT_PACK_TARGET, STORE_LANE_ALIGN);
        pl->packs[i].next_free = pl->free_packs;
        pl->free_packs = &pl->packs[i];
    }
}

int push_lane_run(struct lane *lane, struct err *err)
{
    const struct push_job *job = lane->ctx;
    struct push_lane *pl = calloc(1, sizeof(*pl) + job->pack_count * sizeof(struct push_pack));
    if (pl == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    pl->lane = lane;
    pl->job = job;
    pl->push = job->push;
    pl->next_number = job->pack_first + lane->index;
    if (job->push->origin.key_id != 0) {
        pl->seal = seal_new();
        pl->tag_len = FMT_TAG_LEN;
    }
    cut_buffers(pl, &lane->buffers);
    int rc = push_loop(pl, err);
    seal_free(pl->seal);
    free(pl);
    return rc;
}
