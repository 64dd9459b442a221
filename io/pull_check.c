/* What is right already: chunks on the target of a resumed restore or one with --delta, and, for
 * the null sink, headers and lengths of objects. */
#include <assert.h>
#include <inttypes.h>

#include "io/codec.h"
#include "io/hash.h"
#include "io/pull_lane.h"

/* --- what is on the target ------------------------------------------------------------------ */

static bool is_same(const struct pull_lane *pl, const struct pull_region *region, uint32_t chunk,
                    const uint8_t *ptr)
{
    const struct fmt_entry *entry = &region->table.entries[chunk];
    uint32_t len = pull_chunk_len(region, chunk);
    uint64_t offset = pull_chunk_offset(pl, region, chunk);
    /* The head must be fetched anyway, and withheld bytes differ from their digest on purpose. */
    if (offset == 0 || pull_is_withheld(pl->pull, offset, len))
        return false;
    if (!pull_has_data(entry))
        return codec_is_zero(ptr, len);
    uint8_t digest[FMT_DIGEST_LEN];
    hash_xxh3_128(ptr, len, pl->job->pull->repo->digest_seed, digest);
    return memcmp(digest, entry->digest, sizeof(digest)) == 0;
}

static void compare_block(struct pull_lane *pl, const struct pull_piece *piece)
{
    struct pull_region *region = piece->region;
    for (uint32_t i = 0; i < piece->chunk_count; i++) {
        uint32_t chunk = piece->chunk_first + i;
        const uint8_t *ptr = piece->block->buf + (size_t)i * pl->manifest->chunk_size;
        if (!pull_todo(region, chunk) || !is_same(pl, region, chunk, ptr))
            continue;
        region->todo[chunk / 64] &= ~((uint64_t)1 << (chunk % 64));
        pull_count(&pl->pull->progress->chunks_same, 1);
        pull_count(&pl->pull->progress->bytes_same, pull_chunk_len(region, chunk));
        pull_chunk_done(pl, region, chunk);
    }
}

static void check_ended(struct pull_region *region)
{
    if (region->ops_left > 0 || region->check_next < region->table.chunk_count)
        return;
    region->state = REGION_FETCH;
    pull_region_settle(region);
}

static void read_back_done(struct ring_op *op)
{
    struct pull_piece *piece = CONTAINER_OF(op, struct pull_piece, op);
    struct pull_region *region = piece->region;
    struct pull_lane *pl = region->lane;
    if (op->result < 0)
        pull_fail_op(pl, op, "read back");
    else
        compare_block(pl, piece);
    pull_block_release(piece->block);
    region->ops_left--;
    if (!lane_stopped(pl->lane))
        check_ended(region);
}

static void read_back(struct pull_lane *pl, struct pull_region *region, struct pull_block *block,
                      uint32_t first, uint32_t count)
{
    struct pull_piece *piece = &block->pieces[0];
    uint64_t offset = pull_chunk_offset(pl, region, first);
    size_t len = (size_t)(pull_chunk_offset(pl, region, first + count - 1) - offset) +
                 pull_chunk_len(region, first + count - 1);
    piece->block = block;
    piece->region = region;
    piece->chunk_first = first;
    piece->chunk_count = count;
    piece->op.done = read_back_done;
    region->ops_left++;
    ring_read(pl->lane->ring, &piece->op, pl->pull->fd, block->buf,
              (size_t)align_up(len, pl->pull->alignment), len, offset);
}

void pull_check_start(struct pull_lane *pl, struct pull_region *region)
{
    uint32_t end = region->table.chunk_count;
    uint32_t per_block = PULL_BLOCK_LEN / pl->manifest->chunk_size;
    while (region->check_next < end) {
        if (!pull_todo(region, region->check_next)) {
            region->check_next++;
            continue;
        }
        struct pull_block *block = pull_block_take(pl);
        if (block == NULL)
            return;
        uint32_t first = region->check_next;
        uint32_t count = end - first < per_block ? end - first : per_block;
        region->check_next += count;
        read_back(pl, region, block, first, count);
    }
    check_ended(region);
}

/* --- objects ------------------------------------------------------------------------------ */

/* Swapped for an object that was sealed otherwise, or never. */
static int check_origin(const struct pull_lane *pl, const struct fmt_header *header,
                        struct err *err)
{
    const struct fmt_manifest_origin *origin = fmt_manifest_origin(pl->manifest, header->snapshot);
    if (pl->seal == NULL ? header->key_id == 0
                         : origin != NULL && header->key_id == origin->key_id &&
                               memcmp(header->salt, origin->salt, FMT_SALT_LEN) == 0)
        return 0;
    return err_set(err, ERR_CORRUPT, "it is not sealed as the manifest says");
}

int pull_check_header(const struct pull_lane *pl, const uint8_t *from,
                      const struct pull_object *want, uint64_t *ret_len, struct err *err)
{
    struct fmt_header header;
    int rc = fmt_header_expect(from, FMT_HEADER_LEN, want->kind, pl->pull->repo->id, &header, err);
    if (rc < 0)
        return rc;
    if (memcmp(header.volume, pl->manifest->volume, ID_LEN) != 0 ||
        memcmp(header.snapshot, want->snapshot, ID_LEN) != 0 || header.number != want->number)
        return err_set(err, ERR_CORRUPT, "the header is another object's");
    rc = check_origin(pl, &header, err);
    if (rc < 0)
        return rc;
    uint64_t len;
    if (!add_u64(header.body_len, FMT_HEADER_LEN, &len) ||
        (want->stored_len != 0 && len != want->stored_len))
        return err_set(err, ERR_CORRUPT,
                       "the header promises %" PRIu64 " bytes, the manifest says %" PRIu64,
                       header.body_len, want->stored_len);
    if (ret_len != NULL)
        *ret_len = len;
    return 0;
}

static void probe_end(struct pull_probe *probe, int rc)
{
    struct pull_lane *pl = probe->lane;
    pl->requests_left--;
    if (rc == -ERR_CORRUPT && pull_read_again(pl, &probe->request, &probe->tries))
        return;
    if (rc < 0) {
        /* The store's own errors name the object already. */
        if (strstr(probe->request.err.text, probe->request.name) == NULL)
            (void)err_prefix(&probe->request.err, "object '%s'", probe->request.name);
        if (!pull_note_damage(pl, probe->request.name, 0, &probe->request.err))
            lane_fail(pl->lane, &probe->request.err);
    }
    probe->next_free = pl->free_probes;
    pl->free_probes = probe;
}

static void probe_tail_done(struct store_request *request)
{
    struct pull_probe *probe = CONTAINER_OF(request, struct pull_probe, request);
    probe_end(probe, request->rc);
}

/* The header is right: is its last byte there? */
static void probe_head_done(struct store_request *request)
{
    struct pull_probe *probe = CONTAINER_OF(request, struct pull_probe, request);
    struct pull_lane *pl = probe->lane;
    uint64_t len = 0;
    int rc = request->rc;
    if (rc == 0)
        rc = pull_check_header(pl, request->payload, probe->object, &len, &request->err);
    if (rc == 0 && probe->object->size > len)
        rc = err_set(&request->err, ERR_CORRUPT,
                     "it has %" PRIu64 " bytes, its header promises %" PRIu64, probe->object->size,
                     len);
    if (rc < 0 || lane_stopped(pl->lane)) {
        probe_end(probe, rc);
        return;
    }
    pull_count(&pl->pull->progress->objects, 1);
    request->offset = len - 1;
    request->len = 1;
    request->done = probe_tail_done;
    store_lane_get(pl->lane->store, request);
}

void pull_object_name(const struct pull *pull, const struct pull_object *object, char *name)
{
    if (object->kind == FMT_PACK)
        repo_pack_name(name, pull->manifest->volume, object->snapshot, object->number);
    else
        repo_table_name(name, pull->manifest->volume, object->snapshot, object->number);
}

void pull_probe_start(struct pull_lane *pl, const struct pull_object *object)
{
    struct pull_probe *probe = pl->free_probes;
    assert(probe != NULL);
    pl->free_probes = probe->next_free;
    probe->object = object;
    probe->tries = 0;
    struct store_request *request = &probe->request;
    pull_object_name(pl->pull, object, request->name);
    request->buf = probe->buf;
    request->capacity = PULL_PROBE_BUF_LEN;
    request->offset = 0;
    request->len = FMT_HEADER_LEN;
    request->done = probe_head_done;
    pl->requests_left++;
    store_lane_get(pl->lane->store, request);
}
