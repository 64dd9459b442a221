/* One lane of pull: region tables ahead, ranged GETs decoded in the order in which they come (one
 * that the store has to repeat holds nobody up), chunks decoded and checked inline in 1 MiB steps,
 * so that completions are never far behind. See pull_lane.h for the parts. */
#include "io/pull_lane.h"

#include <assert.h>
#include <inttypes.h>

#include "io/codec.h"
#include "io/hash.h"

enum {
    WAIT_US = 100000,         /* the longest before somebody's cancel is seen */
    DECODE_STEP_LEN = 1 << 20 /* plain bytes between two looks at the ring */
};

/* --- errors ------------------------------------------------------------------------------- */

bool pull_note_damage(struct pull_lane *pl, const char *object, uint32_t chunk_count,
                      const struct err *err)
{
    const struct pull *pull = pl->pull;
    if (pull->sink != PULL_TO_NULL || pull->damaged == NULL ||
        (err->code != ERR_CORRUPT && err->code != ERR_MISSING))
        return false;
    struct pull_damage damage = {.object = object, .err = err, .chunk_count = chunk_count};
    (void)pthread_mutex_lock(&pl->job->mutex);
    pull->damaged(pull->damaged_ctx, &damage);
    (void)pthread_mutex_unlock(&pl->job->mutex);
    return true;
}

/* count chunks of order[] from `first` on cannot be read. False: that ends the run. */
static bool lose_chunks(struct pull_lane *pl, struct pull_get *get, uint32_t first, uint32_t count,
                        struct err *err)
{
    const struct pull_place *places = &get->batch->order[first];
    struct pull_region *regions = get->batch->regions;
    const char *object = get->request.name;
    uint32_t index = regions[places[0].region].index;
    uint64_t start = (uint64_t)index * (pl->manifest->region_size / pl->manifest->chunk_size);
    (void)err_prefix(err, "object '%s' region %" PRIu32 " chunk %" PRIu64, object, index,
                     start + places[0].chunk);
    if (!pull_note_damage(pl, object, count, err)) {
        lane_fail(pl->lane, err);
        return false;
    }
    for (uint32_t i = 0; i < count; i++)
        pull_chunk_done(pl, &regions[places[i].region], places[i].chunk);
    return true;
}

bool pull_read_again(struct pull_lane *pl, struct store_request *request, unsigned *tries)
{
    if (*tries + 1 >= STORE_READ_TRIES || lane_stopped(pl->lane))
        return false;
    (*tries)++;
    pl->requests_left++;
    store_lane_get(pl->lane->store, request);
    return true;
}

/* Its table cannot be read: what the region holds is not known. */
static void fail_region(struct pull_lane *pl, struct pull_region *region, struct err *err)
{
    uint64_t bytes = pull_region_bytes(pl->manifest, region->index);
    (void)err_prefix(err, "object '%s' region %" PRIu32, region->request.name, region->index);
    if (!pull_note_damage(pl, region->request.name,
                          (uint32_t)div_round_up(bytes, pl->manifest->chunk_size), err)) {
        lane_fail(pl->lane, err);
        return;
    }
    pull_count(&pl->pull->progress->bytes_done, bytes);
    region->state = REGION_FETCH;
    region->chunks_left = 0;
    memset(region->todo, 0, sizeof(region->todo));
    pull_region_settle(region);
}

void pull_fail_op(struct pull_lane *pl, const struct ring_op *op, const char *verb)
{
    struct err err;
    char reason[64];
    (void)err_set(&err, ERR_DEVICE, "%s %zu bytes of the target at %" PRIu64 ": %s", verb, op->len,
                  op->offset, ring_op_reason(op, reason, sizeof(reason)));
    lane_fail(pl->lane, &err);
}

/* --- region tables ------------------------------------------------------------------------ */

static bool may_be_there(const struct pull_lane *pl, uint32_t index)
{
    const uint8_t *bits = pl->pull->done_before;
    if (pl->pull->sink == PULL_TO_NULL)
        return false;
    return pl->pull->compare || (bits != NULL && (bits[index / 8] >> (index % 8) & 1));
}

int pull_open_table(struct pull_lane *pl, struct pull_region *region,
                    const struct fmt_manifest *manifest, struct err *err)
{
    struct store_request *request = &region->request;
    if (pl->seal == NULL)
        return 0;
    pl->seal_name[0] = '\0'; /* of a pack */
    return table_open_region(pl->seal, store_keys(pl->pull->store), manifest, region->index,
                             request->name, request->payload,
                             request->buf + (request->payload - request->buf), err);
}

static void table_done(struct store_request *request)
{
    struct pull_region *region = CONTAINER_OF(request, struct pull_region, request);
    struct pull_lane *pl = region->lane;
    int rc = request->rc;
    pl->requests_left--;
    if (rc == 0)
        rc = pull_open_table(pl, region, pl->manifest, &request->err);
    if (rc == 0)
        rc = table_decode_region(pl->manifest, region->index, request->payload, &region->table,
                                 &request->err);
    if (rc == -ERR_CORRUPT && pull_read_again(pl, request, &region->table_tries))
        return;
    if (rc < 0) {
        fail_region(pl, region, &request->err);
        return;
    }
    pull_count(&pl->pull->progress->objects, 1);
    pull_count(&pl->pull->progress->bytes_stored, request->len);
    region->zero_next = 0;
    region->check_next = 0;
    pull_plan_todo(pl, region);
    if (may_be_there(pl, region->index))
        region->state = REGION_CHECK;
    else if (region->known_buf != NULL && region->chunks_left > 0)
        pull_known_start(pl, region);
    else
        pull_region_fetch(region);
}

void pull_region_fetch(struct pull_region *region)
{
    region->state = REGION_FETCH;
    pull_region_settle(region);
}

static void start_region(struct pull_lane *pl, struct pull_region *region, uint32_t index)
{
    const struct fmt_manifest_region *place = &pl->manifest->regions[index];
    struct store_request *request = &region->request;
    region->state = REGION_TABLE;
    region->index = index;
    region->ops_left = 0;
    region->table_tries = 0;
    repo_table_name(request->name, pl->manifest->volume, place->snapshot, place->number);
    assert(place->len <= PULL_TABLE_LEN_MAX && place->offset % FMT_REGION_ALIGN == 0);
    request->buf = region->buf;
    request->capacity = PULL_TABLE_BUF_LEN;
    request->offset = place->offset;
    request->len = place->len + pl->tag_len;
    request->done = table_done;
    pl->requests_left++;
    store_lane_get(pl->lane->store, request);
}

void pull_region_settle(struct pull_region *region)
{
    struct pull_lane *pl = region->lane;
    if (region->state != REGION_FETCH || region->chunks_left > 0 || region->ops_left > 0 ||
        lane_stopped(pl->lane))
        return;
    region->state = REGION_DONE;
    pull_region_durable_next_flush(pl->job, region->index,
                                   pull_region_bytes(pl->manifest, region->index));
}

/* --- items -------------------------------------------------------------------------------- */

static struct pull_batch *free_batch(struct pull_lane *pl)
{
    for (unsigned i = 0; i < PULL_BATCHES; i++)
        if (pl->batches[i].count == 0)
            return &pl->batches[i];
    return NULL;
}

static void start_batch(struct pull_lane *pl, struct pull_batch *batch, uint64_t first,
                        uint64_t count)
{
    bool any = false;
    assert(count <= LANE_TAKE_MAX);
    for (uint32_t i = 0; i < count; i++) {
        batch->regions[i].state = REGION_DONE;
        if (pull_skips_region(pl->job, (uint32_t)first + i))
            continue;
        start_region(pl, &batch->regions[i], (uint32_t)first + i);
        any = true;
    }
    batch->sequence = pl->next_sequence++;
    batch->count = any ? (uint32_t)count : 0;
    batch->ordered = false;
    batch->order_count = 0;
    batch->order_next = 0;
}

/* Items are regions, then objects to check; room for both kinds comes first. */
static void admit_items(struct pull_lane *pl)
{
    while (!pl->no_more && pl->free_probes != NULL) {
        struct pull_batch *batch = free_batch(pl);
        uint64_t regions = pl->manifest->region_count, item;
        if (batch == NULL)
            return;
        uint64_t count = lane_take(pl->lane, regions, pl->job->batch_min, &item);
        if (count == 0) {
            pl->no_more = true;
            return;
        }
        if (item < regions)
            start_batch(pl, batch, item, count);
        else
            pull_probe_start(pl, &pl->job->objects[item - regions]);
    }
}

/* --- GETs --------------------------------------------------------------------------------- */

/* Its chunks are done with. */
static void free_get(struct pull_lane *pl, struct pull_get *get)
{
    get->following = pl->free_gets;
    pl->free_gets = get;
}

static void get_done(struct store_request *request)
{
    struct pull_get *get = CONTAINER_OF(request, struct pull_get, request);
    struct pull_lane *pl = get->lane;
    pl->requests_left--;
    if (request->rc == -ERR_CORRUPT && pull_read_again(pl, request, &get->tries))
        return;
    if (request->rc < 0) {
        if (lose_chunks(pl, get, get->first, get->count, &request->err))
            free_get(pl, get);
        return;
    }
    get->following = NULL;
    *pl->ready_tail = get;
    pl->ready_tail = &get->following;
    pull_count(&pl->pull->progress->objects, 1);
    pull_count(&pl->pull->progress->bytes_stored, request->len);
}

static void start_get(struct pull_lane *pl, struct pull_batch *batch)
{
    struct pull_get *get = pl->free_gets;
    pl->free_gets = get->following;
    struct store_request *request = &get->request;
    pull_plan_range(pl, batch, &get->first, &get->count, &request->offset, &request->len,
                    &get->has_header);
    const struct fmt_pack_ref *ref = pull_pack(batch, &batch->order[get->first]);
    repo_pack_name(request->name, pl->manifest->volume, ref->snapshot, ref->number);
    get->batch = batch;
    get->next = 0;
    get->tries = 0;
    request->buf = get->buf;
    request->capacity = pl->job->get_len + STORE_LANE_SLACK;
    request->done = get_done;
    pl->requests_left++;
    store_lane_get(pl->lane->store, request);
}

/* The oldest batch that still has ranges to ask for. */
static struct pull_batch *next_to_fetch(struct pull_lane *pl)
{
    struct pull_batch *oldest = NULL;
    for (unsigned i = 0; i < PULL_BATCHES; i++) {
        struct pull_batch *batch = &pl->batches[i];
        if (batch->order_next < batch->order_count &&
            (oldest == NULL || batch->sequence < oldest->sequence))
            oldest = batch;
    }
    return oldest;
}

static void advance_region(struct pull_lane *pl, struct pull_region *region)
{
    if (region->state == REGION_CHECK)
        pull_check_start(pl, region);
    if (region->state != REGION_FETCH)
        return;
    pull_zero_start(pl, region);
    if (region->chunks_left == 0) /* no chunk will join the open run any more */
        pull_write_flush(pl, region);
    pull_region_settle(region);
}

static void advance_batch(struct pull_lane *pl, struct pull_batch *batch)
{
    uint32_t ready = 0, done = 0;
    if (batch->count == 0)
        return;
    for (uint32_t i = 0; i < batch->count; i++) {
        struct pull_region *region = &batch->regions[i];
        advance_region(pl, region);
        ready += region->state == REGION_FETCH || region->state == REGION_DONE;
        done += region->state == REGION_DONE;
    }
    if (ready == batch->count && !batch->ordered) {
        pull_plan_order(batch);
        batch->ordered = true;
    }
    if (done == batch->count)
        batch->count = 0;
}

static void admit_work(struct pull_lane *pl)
{
    for (unsigned i = 0; i < PULL_BATCHES; i++)
        advance_batch(pl, &pl->batches[i]);
    admit_items(pl); /* after batches that are done are free */
    while (pl->free_gets != NULL) {
        struct pull_batch *batch = next_to_fetch(pl);
        if (batch == NULL)
            return;
        start_get(pl, batch);
    }
}

/* --- decoding ----------------------------------------------------------------------------- */

/* The pack's key, unless the lane has it. */
static int begin_pack(struct pull_lane *pl, const struct pull_get *get, struct err *err)
{
    const struct fmt_pack_ref *ref = pull_pack(get->batch, &get->batch->order[get->first]);
    if (strcmp(pl->seal_name, get->request.name) == 0)
        return 0;
    int rc = seal_begin_reached(pl->seal, store_keys(pl->pull->store), pl->manifest, ref->snapshot,
                                get->request.name, err);
    if (rc == 0)
        memcpy(pl->seal_name, get->request.name, sizeof(pl->seal_name));
    return rc;
}

/* What compression made of a chunk: as it came, or opened, a RAW one right to where it goes. */
static int open_chunk(struct pull_lane *pl, const struct pull_get *get,
                      const struct fmt_entry *entry, uint8_t *to, const uint8_t **from,
                      struct err *err)
{
    uint8_t *opened = fmt_entry_flags(entry) & FMT_RAW ? to : pl->opened;
    int rc = begin_pack(pl, get, err);
    if (rc == 0 && !seal_open_part(pl->seal, entry->offset, *from, fmt_entry_len(entry), opened))
        rc = err_set(err, ERR_CORRUPT, "the stored bytes are not what was sealed there");
    *from = opened;
    return rc;
}

static int decode_chunk(struct pull_lane *pl, const struct pull_get *get,
                        const struct pull_region *region, uint32_t chunk, uint8_t *to,
                        struct err *err)
{
    const struct fmt_entry *entry = &region->table.entries[chunk];
    uint32_t len = pull_chunk_len(region, chunk), stored = fmt_entry_len(entry);
    const uint8_t *from = get->request.payload + (entry->offset - get->request.offset);
    assert(entry->offset - get->request.offset + stored + pl->tag_len <= get->request.len);
    int rc = pl->seal != NULL ? open_chunk(pl, get, entry, to, &from, err) : 0;
    if (rc < 0)
        return rc;
    if (fmt_entry_flags(entry) & FMT_RAW) {
        assert(stored == len);
        if (from != to)
            memcpy(to, from, len);
    } else if (!codec_decompress(from, stored, to, len)) {
        return err_set(err, ERR_CORRUPT, "the stored bytes are no LZ4 block of this length");
    }
    uint8_t digest[FMT_DIGEST_LEN];
    hash_xxh3_128(to, len, pl->pull->repo->digest_seed, digest);
    if (memcmp(digest, entry->digest, sizeof(digest)) != 0)
        return err_set(err, ERR_CORRUPT, "the digest differs");
    if (pull_chunk_offset(pl, region, chunk) == 0)
        memcpy(pl->pull->head, to, PULL_HEAD_LEN);
    return 0;
}

static int check_get_header(const struct pull_lane *pl, const struct pull_get *get, struct err *err)
{
    const struct fmt_pack_ref *ref = pull_pack(get->batch, &get->batch->order[get->first]);
    struct pull_object want = {.kind = FMT_PACK, .number = ref->number};
    memcpy(want.snapshot, ref->snapshot, ID_LEN);
    return pull_check_header(pl, get->request.payload, &want, NULL, err);
}

/* The next chunk, or the pack's header before the first, is not what its checksum says. With a
 * wrong header its chunks may still be right. */
static void damaged(struct pull_lane *pl, struct pull_get *get, struct err *err)
{
    if (err->code == ERR_CORRUPT && pull_read_again(pl, &get->request, &get->tries)) {
        pl->get = NULL;
        return;
    }
    bool header = get->next == 0 && get->has_header;
    get->has_header = false;
    if (lose_chunks(pl, get, get->first + get->next, header ? 0 : 1, err) && !header)
        get->next++;
}

static void end_get(struct pull_lane *pl, struct pull_get *get)
{
    pl->get = NULL;
    free_get(pl, get);
}

/* The GET that is being decoded, or the next; NULL when none is here. */
static struct pull_get *ready_get(struct pull_lane *pl)
{
    if (pl->get == NULL && pl->ready_gets != NULL) {
        pl->get = pl->ready_gets;
        pl->ready_gets = pl->get->following;
        if (pl->ready_gets == NULL)
            pl->ready_tail = &pl->ready_gets;
    }
    return pl->get;
}

/* Decodes chunks of a GET that is here, as far as the target has buffers. False when nothing could
 * be done. */
static bool decode_some(struct pull_lane *pl)
{
    struct pull_get *get = ready_get(pl);
    if (get == NULL)
        return false;
    struct err err;
    bool null = pl->pull->sink == PULL_TO_NULL;
    if (get->next == 0 && get->has_header && check_get_header(pl, get, &err) < 0) {
        damaged(pl, get, &err);
        return true;
    }
    get->has_header = false;
    uint64_t len = 0;
    for (; get->next < get->count && len < DECODE_STEP_LEN; get->next++) {
        const struct pull_place *place = &get->batch->order[get->first + get->next];
        struct pull_region *region = &get->batch->regions[place->region];
        uint32_t chunk = place->chunk;
        uint8_t *to = null ? pl->scratch : pull_write_slot(pl, region, chunk);
        if (to == NULL)
            return len > 0;
        if (decode_chunk(pl, get, region, chunk, to, &err) < 0) {
            damaged(pl, get, &err);
            return true;
        }
        if (null)
            pull_chunk_done(pl, region, chunk);
        else
            pull_write_commit(pl, region, chunk);
        len += pull_chunk_len(region, chunk);
    }
    if (get->next == get->count)
        end_get(pl, get);
    return true;
}

/* --- the loop ----------------------------------------------------------------------------- */

static bool is_idle(const struct pull_lane *pl)
{
    for (unsigned i = 0; i < PULL_BATCHES; i++)
        if (pl->batches[i].count > 0)
            return false;
    return pl->no_more && pl->requests_left == 0;
}

static int pull_loop(struct pull_lane *pl, struct err *err)
{
    struct ring *ring = pl->lane->ring;
    for (;;) {
        bool stopped = lane_stopped(pl->lane);
        if (stopped)
            store_lane_stop(pl->lane->store);
        else
            admit_work(pl);
        if ((stopped ? pl->requests_left == 0 : is_idle(pl)) && ring_pending(ring) == 0)
            return 0;
        bool busy = !stopped && decode_some(pl);
        int rc = ring_run(ring, busy ? 0 : 1, WAIT_US, err);
        if (rc < 0)
            return rc;
    }
}

static void cut_buffers(struct pull_lane *pl, struct buffers *buffers)
{
    for (unsigned i = 0; i < PULL_BLOCK_COUNT; i++)
        pl->blocks[i].buf = buffers_cut(buffers, PULL_BLOCK_LEN, PULL_BLOCK_LEN);
    pl->zero_buf = buffers_cut(buffers, PULL_BLOCK_LEN, PULL_BLOCK_LEN); /* arenas begin as zeros */
    pl->ready_tail = &pl->ready_gets;
    for (unsigned i = 0; i < pl->job->get_count; i++) {
        pl->gets[i].lane = pl;
        pl->gets[i].following = pl->free_gets;
        pl->free_gets = &pl->gets[i];
        pl->gets[i].buf =
            buffers_cut(buffers, pl->job->get_len + STORE_LANE_SLACK, STORE_LANE_ALIGN);
    }
    for (unsigned i = 0; i < PULL_REGIONS; i++) {
        struct pull_region *region = &pl->batches[i / LANE_TAKE_MAX].regions[i % LANE_TAKE_MAX];
        region->lane = pl;
        region->buf = buffers_cut(buffers, PULL_TABLE_BUF_LEN, STORE_LANE_ALIGN);
        if (pull_is_comparable(pl->pull))
            region->known_buf = buffers_cut(buffers, PULL_TABLE_BUF_LEN, STORE_LANE_ALIGN);
    }
    for (unsigned i = 0; i < PULL_PROBES; i++) {
        pl->probes[i].lane = pl;
        pl->probes[i].buf = buffers_cut(buffers, PULL_PROBE_BUF_LEN, STORE_LANE_ALIGN);
        pl->probes[i].next_free = pl->free_probes;
        pl->free_probes = &pl->probes[i];
    }
    pl->scratch = buffers_cut(buffers, FMT_CHUNK_SIZE_MAX, STORE_LANE_ALIGN);
    pl->opened = buffers_cut(buffers, FMT_CHUNK_SIZE_MAX, STORE_LANE_ALIGN);
}

int pull_lane_run(struct lane *lane, struct err *err)
{
    struct pull_lane *pl = calloc(1, sizeof(*pl));
    if (pl == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    pl->lane = lane;
    pl->job = lane->ctx;
    pl->pull = pl->job->pull;
    pl->manifest = pl->pull->manifest;
    if (store_keys(pl->pull->store) != NULL) {
        pl->seal = seal_new();
        pl->tag_len = FMT_TAG_LEN;
    }
    cut_buffers(pl, &lane->buffers);
    pull_write_init(pl);
    int rc = pull_loop(pl, err);
    seal_free(pl->seal);
    free(pl);
    return rc;
}
