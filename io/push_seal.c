/* push_seal(): region tables in table packs, then the volume manifest, then the local table.
 *
 * A region table lists its packs in the order in which its chunks name them, so equal regions give
 * equal bytes, and a region whose SHA-256 is that of the parent's keeps the parent's reference. */
#include <assert.h>
#include <inttypes.h>

#include "io/crypt.h"
#include "io/push_lane.h"

static const uint32_t not_local = UINT32_MAX;

struct seal {
    struct push *push;
    const struct push_identity *identity;
    uint64_t *live_len;    /* bytes of all chunks that name a pack, by index in work->packs */
    uint32_t *local_index; /* of a pack in the region at hand; not_local outside of seal_region() */
    struct fmt_pack_ref *local_packs; /* of the region at hand */
    struct fmt_entry *local_entries;
    uint8_t *region; /* encoded */
    struct fmt_manifest_region *regions;
    struct fmt_manifest_pack *packs;
    uint8_t *table_pack; /* FMT_PACK_TARGET bytes */
    size_t table_pack_len;
    uint32_t table_pack_number;
    struct seal *cipher; /* NULL: the repository is plain */
    size_t tag_len;
    struct fmt_manifest_origin *origins;
    uint32_t origin_count;
    struct push_result result;
};

static bool has_data(const struct fmt_entry *entry)
{
    return (fmt_entry_flags(entry) & (FMT_ZERO | FMT_FREE)) == 0;
}

static void *get(size_t count, size_t size)
{
    return calloc(count > 0 ? count : 1, size);
}

static int seal_open(struct seal *seal, uint32_t region_count, struct err *err)
{
    const struct table *work = seal->push->work;
    size_t chunks = work->region_size / work->chunk_size;
    size_t table_len = fmt_region_len((uint32_t)chunks, (uint32_t)chunks);
    seal->live_len = get(work->pack_count, sizeof(*seal->live_len));
    seal->local_index = get(work->pack_count, sizeof(*seal->local_index));
    seal->local_packs = get(chunks, sizeof(*seal->local_packs));
    seal->local_entries = get(chunks, sizeof(*seal->local_entries));
    seal->region = get(1, table_len);
    seal->regions = get(region_count, sizeof(*seal->regions));
    seal->packs = get(work->pack_count, sizeof(*seal->packs));
    /* Small volumes have small tables. */
    seal->table_pack =
        get(1, (size_t)min_u64(FMT_PACK_TARGET,
                               FMT_HEADER_LEN + (table_len + FMT_TAG_LEN) * region_count));
    if (!seal->live_len || !seal->local_index || !seal->local_packs || !seal->local_entries ||
        !seal->region || !seal->regions || !seal->packs || !seal->table_pack)
        return err_set(err, ERR_INTERNAL, "out of memory for the tables of a snapshot");
    memset(seal->local_index, 0xff, work->pack_count * sizeof(*seal->local_index));
    seal->table_pack_len = FMT_HEADER_LEN;
    if (seal->push->origin.key_id != 0) {
        seal->cipher = seal_new();
        seal->tag_len = FMT_TAG_LEN;
    }
    return 0;
}

static void seal_release(struct seal *seal)
{
    free(seal->live_len);
    free(seal->local_index);
    free(seal->local_packs);
    free(seal->local_entries);
    free(seal->region);
    free(seal->regions);
    free(seal->packs);
    free(seal->table_pack);
    free(seal->origins);
    seal_free(seal->cipher);
}

/* Object names contain a random snapshot id: one that exists is a bug or a copied state_dir. */
static int put_new(struct seal *seal, const char *name, const void *ptr, size_t len,
                   struct err *err)
{
    int rc = store_put(seal->push->store, name, ptr, len, err);
    if (rc == STORE_EXISTS)
        return err_set(err, ERR_STORE, "object '%s' exists already: the snapshot id is not unique",
                       name);
    if (rc < 0)
        return rc;
    (void)atomic_fetch_add(&seal->push->progress->objects, 1);
    (void)atomic_fetch_add(&seal->push->progress->bytes_stored, len);
    return 0;
}

/* --- region tables ------------------------------------------------------------------------ */

static int flush_table_pack(struct seal *seal, struct err *err)
{
    const struct table *work = seal->push->work;
    if (seal->table_pack_len == FMT_HEADER_LEN)
        return 0;
    push_header(seal->push, FMT_TABLES, seal->table_pack_number, seal->table_pack,
                seal->table_pack_len);
    char name[STORE_NAME_MAX + 1];
    repo_table_name(name, work->volume, work->snapshot, seal->table_pack_number);
    int rc = put_new(seal, name, seal->table_pack, seal->table_pack_len, err);
    if (rc < 0)
        return rc;
    seal->result.table_bytes += seal->table_pack_len;
    seal->table_pack_number++;
    seal->table_pack_len = FMT_HEADER_LEN;
    return 0;
}

/* Encodes region index into seal->region and counts the live bytes of its packs. */
static size_t encode_region(struct seal *seal, uint32_t index)
{
    const struct table *work = seal->push->work;
    uint32_t per_region = work->region_size / work->chunk_size;
    uint64_t first = (uint64_t)index * per_region;
    struct fmt_region region = {
        .region_index = index,
        .chunk_size = work->chunk_size,
        .chunk_count = (uint32_t)min_u64(per_region, work->chunk_count - first),
        .packs = seal->local_packs,
        .entries = seal->local_entries,
    };
    region.last_chunk_len = table_chunk_len(work, first + region.chunk_count - 1);
    for (uint32_t i = 0; i < region.chunk_count; i++) {
        struct fmt_entry entry = work->entries[first + i];
        if (has_data(&entry)) {
            assert(entry.pack < work->pack_count);
            uint32_t *local = &seal->local_index[entry.pack];
            if (*local == not_local) {
                *local = region.pack_count++;
                seal->local_packs[*local] = work->packs[entry.pack];
            }
            seal->live_len[entry.pack] += fmt_entry_len(&entry);
            entry.pack = *local;
        }
        seal->local_entries[i] = entry;
    }
    for (uint32_t i = 0; i < region.chunk_count; i++)
        if (has_data(&work->entries[first + i]))
            seal->local_index[work->entries[first + i].pack] = not_local;
    fmt_region_encode(&region, seal->region);
    return fmt_region_len(region.chunk_count, region.pack_count);
}

/* Puts the table that is in seal->region behind the others. */
static int add_table(struct seal *seal, size_t len, struct err *err)
{
    const struct push *push = seal->push;
    uint8_t *to = seal->table_pack + seal->table_pack_len;
    char name[STORE_NAME_MAX + 1];
    memcpy(to, seal->region, len);
    if (seal->cipher != NULL) {
        repo_table_name(name, push->work->volume, push->work->snapshot, seal->table_pack_number);
        int rc = seal_begin(seal->cipher, store_keys(push->store), FMT_ROLE_DATA,
                            push->origin.key_id, push->origin.salt, name, err);
        if (rc < 0)
            return rc;
        seal_part(seal->cipher, seal->table_pack_len, to, len);
    }
    seal->table_pack_len += len + seal->tag_len;
    return 0;
}

static int seal_region(struct seal *seal, uint32_t index, struct err *err)
{
    const struct fmt_manifest *parent = seal->identity->parent_manifest;
    struct fmt_manifest_region *to = &seal->regions[index];
    size_t len = encode_region(seal, index);
    sha256(seal->region, len, to->sha256);
    if (parent != NULL && index < parent->region_count && parent->regions[index].len == len &&
        memcmp(parent->regions[index].sha256, to->sha256, FMT_SHA256_LEN) == 0) {
        *to = parent->regions[index];
        return 0;
    }
    int rc = 0;
    if (FMT_PACK_TARGET - seal->table_pack_len < len + seal->tag_len)
        rc = flush_table_pack(seal, err);
    if (rc < 0)
        return rc;
    memcpy(to->snapshot, seal->push->work->snapshot, ID_LEN);
    to->number = seal->table_pack_number;
    to->offset = (uint32_t)seal->table_pack_len;
    to->len = (uint32_t)len;
    return add_table(seal, len, err);
}

/* --- manifest ----------------------------------------------------------------------------- */

static int compare_packs(const void *a, const void *b)
{
    return fmt_manifest_pack_compare(a, b);
}

const struct fmt_manifest_pack *push_manifest_pack(const struct fmt_manifest *manifest,
                                                   const struct fmt_pack_ref *ref)
{
    struct fmt_manifest_pack key = {.number = ref->number};
    memcpy(key.snapshot, ref->snapshot, ID_LEN);
    return manifest->pack_count == 0
               ? NULL
               : bsearch(&key, manifest->packs, manifest->pack_count, sizeof(key), compare_packs);
}

/* Length of the whole object of a pack: our own from push, an older one's from the parent. */
static int pack_stored_len(const struct seal *seal, uint32_t index, uint64_t *ret, struct err *err)
{
    const struct push *push = seal->push;
    const struct fmt_pack_ref *ref = &push->work->packs[index];
    if (index >= push->work->parent_pack_count) {
        uint32_t number = index - push->work->parent_pack_count;
        assert(number < push->pack_len_count && push->pack_len[number] > 0);
        *ret = push->pack_len[number];
        return 0;
    }
    const struct fmt_manifest *parent = seal->identity->parent_manifest;
    const struct fmt_manifest_pack *found = parent == NULL ? NULL : push_manifest_pack(parent, ref);
    if (found == NULL) {
        char text[ID_TEXT_LEN];
        id_to_text(ref->snapshot, text);
        return err_set(err, ERR_CORRUPT,
                       "the table cache names pack %s/%08" PRIu32
                       ", the parent's manifest does not",
                       text, ref->number);
    }
    *ret = found->stored_len;
    return 0;
}

static int collect_packs(struct seal *seal, uint32_t *ret_count, struct err *err)
{
    const struct table *work = seal->push->work;
    uint32_t count = 0;
    for (uint32_t i = 0; i < work->pack_count; i++) {
        if (seal->live_len[i] == 0)
            continue;
        struct fmt_manifest_pack *pack = &seal->packs[count++];
        memcpy(pack->snapshot, work->packs[i].snapshot, ID_LEN);
        pack->number = work->packs[i].number;
        pack->live_len = seal->live_len[i];
        int rc = pack_stored_len(seal, i, &pack->stored_len, err);
        if (rc < 0)
            return rc;
    }
    if (count > 0)
        qsort(seal->packs, count, sizeof(*seal->packs), compare_packs);
    *ret_count = count;
    return 0;
}

static int compare_origins(const void *a, const void *b)
{
    return memcmp(a, b, ID_LEN);
}

/* Our own, and the parent's of those that are still reached. */
static int add_origin(struct seal *seal, const uint8_t snapshot[ID_LEN], struct err *err)
{
    const struct fmt_manifest *parent = seal->identity->parent_manifest;
    struct fmt_manifest_origin own = {.key_id = seal->push->origin.key_id};
    const struct fmt_manifest_origin *origin = &own;
    for (uint32_t i = 0; i < seal->origin_count; i++)
        if (memcmp(seal->origins[i].snapshot, snapshot, ID_LEN) == 0)
            return 0;
    memcpy(own.snapshot, snapshot, ID_LEN);
    memcpy(own.salt, seal->push->origin.salt, FMT_SALT_LEN);
    if (memcmp(snapshot, seal->push->work->snapshot, ID_LEN) != 0)
        origin = parent ? fmt_manifest_origin(parent, snapshot) : NULL;
    if (origin == NULL)
        return seal_no_origin(snapshot, err);
    struct fmt_manifest_origin *origins =
        reallocarray(seal->origins, seal->origin_count + 1, sizeof(*origins));
    if (origins == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory for the origins of packs");
    origins[seal->origin_count++] = *origin;
    seal->origins = origins;
    return 0;
}

/* Runs of one snapshot are long: its origin is looked for once a run. */
static int collect_origins(struct seal *seal, uint32_t region_count, uint32_t pack_count,
                           struct err *err)
{
    const uint8_t *last = NULL;
    int rc = 0;
    if (seal->cipher == NULL)
        return 0;
    for (uint32_t i = 0; rc == 0 && i < region_count + pack_count; i++) {
        const uint8_t *snapshot =
            i < region_count ? seal->regions[i].snapshot : seal->packs[i - region_count].snapshot;
        if (last == NULL || memcmp(last, snapshot, ID_LEN) != 0)
            rc = add_origin(seal, snapshot, err);
        last = snapshot;
    }
    if (rc == 0)
        qsort(seal->origins, seal->origin_count, sizeof(*seal->origins), compare_origins);
    return rc;
}

static void fill_manifest(const struct seal *seal, uint32_t region_count, uint32_t pack_count,
                          struct fmt_manifest *manifest)
{
    const struct table *work = seal->push->work;
    const struct push_identity *identity = seal->identity;
    *manifest = (struct fmt_manifest){
        .size = work->size,
        .chunk_size = work->chunk_size,
        .region_size = work->region_size,
        .region_count = region_count,
        .pack_count = pack_count,
        .logical_sector = identity->logical_sector,
        .physical_sector = identity->physical_sector,
        .regions = seal->regions,
        .packs = seal->packs,
        .origins = seal->origins,
        .origin_count = seal->origin_count,
    };
    memcpy(manifest->volume, work->volume, ID_LEN);
    memcpy(manifest->snapshot, work->snapshot, ID_LEN);
    if (identity->parent_manifest != NULL)
        memcpy(manifest->parent, identity->parent_manifest->snapshot, ID_LEN);
    memcpy(manifest->fs_type, identity->fs_type, sizeof(manifest->fs_type));
    memcpy(manifest->fs_uuid, identity->fs_uuid, sizeof(manifest->fs_uuid));
    memcpy(manifest->fs_label, identity->fs_label, sizeof(manifest->fs_label));
}

static int put_manifest(struct seal *seal, uint32_t region_count, struct err *err)
{
    uint32_t pack_count;
    int rc = collect_packs(seal, &pack_count, err);
    if (rc == 0)
        rc = collect_origins(seal, region_count, pack_count, err);
    if (rc < 0)
        return rc;
    struct fmt_manifest manifest;
    fill_manifest(seal, region_count, pack_count, &manifest);
    size_t len = fmt_manifest_len(region_count, pack_count) +
                 seal->origin_count * (size_t)FMT_MANIFEST_ORIGIN_LEN;
    free_mem uint8_t *object = malloc(len);
    if (object == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory for a manifest of %zu bytes", len);
    fmt_manifest_encode(&manifest, seal->push->repo->id, object);
    char name[STORE_NAME_MAX + 1];
    repo_manifest_name(name, manifest.volume, manifest.snapshot);
    rc = put_new(seal, name, object, len, err);
    if (rc < 0)
        return rc;
    sha256(object, len, seal->result.manifest_sha256);
    seal->result.manifest_len = len;
    seal->result.pack_count = pack_count;
    return 0;
}

static int seal_all(struct seal *seal, uint32_t region_count, struct err *err)
{
    int rc = seal_open(seal, region_count, err);
    for (uint32_t i = 0; rc == 0 && i < region_count; i++)
        rc = atomic_load(&seal->push->progress->cancel) ? err_set(err, ERR_CANCELLED, "cancelled")
                                                        : seal_region(seal, i, err);
    if (rc == 0)
        rc = flush_table_pack(seal, err);
    return rc < 0 ? rc : put_manifest(seal, region_count, err);
}

int push_seal(struct push *push, const struct push_identity *identity, struct push_result *ret,
              struct err *err)
{
    struct table *work = push->work;
    assert((push->parent == NULL) == (identity->parent_manifest == NULL));
    int rc = table_add_packs(work, push->next_pack, err);
    if (rc == 0)
        rc = push_need_origin(push, err);
    if (rc < 0)
        return rc;
    struct seal seal = {.push = push, .identity = identity};
    uint32_t region_count = (uint32_t)div_round_up(work->size, work->region_size);
    rc = seal_all(&seal, region_count, err);
    seal_release(&seal);
    if (rc == 0)
        rc = table_seal(work, err);
    if (rc < 0)
        return rc;
    *ret = seal.result;
    return 0;
}
