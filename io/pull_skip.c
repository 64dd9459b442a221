/* What the null sink need not read: regions of an earlier run, those outside of the sample, and
 * what an earlier snapshot of the same volume shares, which was read with that one. */
#include <inttypes.h>

#include "io/hash.h"
#include "io/pull_lane.h"

static void set_bit(uint8_t *bitmap, uint32_t index)
{
    bitmap[index / 8] |= (uint8_t)(1 << (index % 8));
}

static bool has_bit(const uint8_t *bitmap, uint32_t index)
{
    return bitmap[index / 8] >> (index % 8) & 1;
}

/* A number below 2³², the same for the same thing and seed in every snapshot of the volume: what
 * two snapshots share is in the sample of both or of none. */
static uint64_t draw(const struct pull *pull, uint32_t kind, const uint8_t *snapshot,
                     uint32_t number)
{
    uint8_t key[2 * ID_LEN + 8] = {0}, digest[16];
    memcpy(key, pull->manifest->volume, ID_LEN);
    if (snapshot != NULL)
        memcpy(key + ID_LEN, snapshot, ID_LEN);
    put_le32(key + 2 * (size_t)ID_LEN, kind);
    put_le32(key + 2 * (size_t)ID_LEN + 4, number);
    hash_xxh3_128(key, sizeof(key), pull->sample_seed, digest);
    return get_le32(digest);
}

static bool is_drawn(const struct pull *pull, uint64_t drawn)
{
    return drawn * 100 < (uint64_t)pull->sample_percent << 32;
}

static void skip_outside_sample(const struct pull *pull, uint8_t *skip)
{
    uint32_t count = pull->manifest->region_count, least = 0, chosen = 0;
    uint64_t least_drawn = UINT64_MAX;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t drawn = draw(pull, 0, NULL, i);
        if (drawn < least_drawn) {
            least_drawn = drawn;
            least = i;
        }
        if (is_drawn(pull, drawn))
            chosen++;
        else
            set_bit(skip, i);
    }
    if (chosen == 0) /* at least one */
        skip[least / 8] &= (uint8_t) ~(1 << (least % 8));
}

bool pull_is_comparable(const struct pull *pull)
{
    const struct fmt_manifest *known = pull->known;
    return known != NULL && known->size == pull->manifest->size &&
           known->region_count == pull->manifest->region_count &&
           memcmp(known->volume, pull->manifest->volume, ID_LEN) == 0;
}

static bool is_same_table(const struct fmt_manifest_region *a, const struct fmt_manifest_region *b)
{
    return a->number == b->number && a->offset == b->offset && a->len == b->len &&
           memcmp(a->snapshot, b->snapshot, ID_LEN) == 0 &&
           memcmp(a->sha256, b->sha256, sizeof(a->sha256)) == 0;
}

void pull_skip_regions(struct pull_job *job)
{
    const struct pull *pull = job->pull;
    const struct fmt_manifest *manifest = pull->manifest;
    if (pull->done_before != NULL)
        memcpy(job->skip, pull->done_before, job->bitmap_len);
    if (pull->sample_percent != 0)
        skip_outside_sample(pull, job->skip);
    for (uint32_t i = 0; i < manifest->region_count && pull_is_comparable(pull); i++)
        if (is_same_table(&manifest->regions[i], &pull->known->regions[i]))
            set_bit(job->skip, i);
    for (uint32_t i = 0; i < manifest->region_count; i++)
        if (has_bit(job->skip, i)) {
            set_bit(job->bitmap, i);
            job->bytes_skipped += pull_region_bytes(manifest, i);
        }
}

bool pull_skips_region(const struct pull_job *job, uint32_t index)
{
    return job->skip != NULL && has_bit(job->skip, index);
}

bool pull_skips_object(const struct pull *pull, const struct pull_object *object)
{
    return pull->sample_percent != 0 && !is_drawn(pull, draw(pull, (uint32_t)object->kind + 1,
                                                             object->snapshot, object->number));
}

/* --- chunks that the earlier snapshot has at the same place ------------------------------------
 */

static bool is_same_chunk(const struct fmt_region *left, const struct fmt_region *right,
                          uint32_t chunk)
{
    const struct fmt_entry *a = &left->entries[chunk], *b = &right->entries[chunk];
    if (!pull_has_data(a) || !pull_has_data(b) || a->offset != b->offset ||
        a->len_flags != b->len_flags || memcmp(a->digest, b->digest, sizeof(a->digest)) != 0)
        return false;
    return left->packs[a->pack].number == right->packs[b->pack].number &&
           memcmp(left->packs[a->pack].snapshot, right->packs[b->pack].snapshot, ID_LEN) == 0;
}

static void drop_known(struct pull_region *region, const struct fmt_region *known)
{
    struct pull_lane *pl = region->lane;
    for (uint32_t i = 0; i < region->table.chunk_count; i++) {
        if (!pull_todo(region, i) || !is_same_chunk(&region->table, known, i))
            continue;
        region->todo[i / 64] &= ~((uint64_t)1 << (i % 64));
        pull_count(&pl->pull->progress->chunks_same, 1);
        pull_count(&pl->pull->progress->bytes_same, pull_chunk_len(region, i));
        pull_chunk_done(pl, region, i);
    }
}

/* A table that is damaged was reported with its own snapshot: then nothing is known. */
static void known_done(struct store_request *request)
{
    struct pull_region *region = CONTAINER_OF(request, struct pull_region, request);
    struct pull_lane *pl = region->lane;
    struct fmt_region known;
    struct err ignored;
    pl->requests_left--;
    if (request->rc == 0)
        pull_count(&pl->pull->progress->bytes_stored, request->len);
    if (request->rc == 0 && pull_open_table(pl, region, pl->pull->known, &ignored) == 0 &&
        table_decode_region(pl->pull->known, region->index, request->payload, &known, &ignored) ==
            0)
        drop_known(region, &known);
    pull_region_fetch(region);
}

void pull_known_start(struct pull_lane *pl, struct pull_region *region)
{
    const struct fmt_manifest_region *place = &pl->pull->known->regions[region->index];
    struct store_request *request = &region->request;
    repo_table_name(request->name, pl->manifest->volume, place->snapshot, place->number);
    request->buf = region->known_buf;
    request->capacity = PULL_TABLE_BUF_LEN;
    request->offset = place->offset;
    request->len = place->len + pl->tag_len;
    request->done = known_done;
    region->state = REGION_TABLE;
    pl->requests_left++;
    store_lane_get(pl->lane->store, request);
}
