/* Chunk entries, region tables and volume manifests: see format.h. */
#include "io/format.h"

#include <assert.h>
#include <inttypes.h>

#include "io/codec.h"
#include "io/crypt.h"
#include "io/hash.h"

struct wire_region {
    uint8_t magic[8];
    uint32_t version;
    uint32_t header_len;
    uint32_t region_index;
    uint32_t chunk_size;
    uint32_t chunk_count;
    uint32_t pack_count;
    uint32_t last_chunk_len;
    uint32_t flags;
    uint8_t zero[8];
    uint8_t checksum[FMT_DIGEST_LEN];
};
static_assert(sizeof(struct wire_region) == FMT_REGION_HEADER_LEN, "wire size");
static_assert(offsetof(struct wire_region, region_index) == 16, "wire offset");
static_assert(offsetof(struct wire_region, chunk_size) == 20, "wire offset");
static_assert(offsetof(struct wire_region, chunk_count) == 24, "wire offset");
static_assert(offsetof(struct wire_region, pack_count) == 28, "wire offset");
static_assert(offsetof(struct wire_region, last_chunk_len) == 32, "wire offset");
static_assert(offsetof(struct wire_region, flags) == 36, "wire offset");
static_assert(offsetof(struct wire_region, checksum) == 48, "wire offset");

static_assert(offsetof(struct fmt_entry, pack) == 16, "wire offset");
static_assert(offsetof(struct fmt_entry, offset) == 20, "wire offset");
static_assert(offsetof(struct fmt_entry, len_flags) == 24, "wire offset");
static_assert(offsetof(struct fmt_entry, zero) == 28, "wire offset");
static_assert(offsetof(struct fmt_pack_ref, number) == 16, "wire offset");

struct wire_manifest {
    uint64_t size;
    uint32_t chunk_size;
    uint32_t region_size;
    uint32_t region_count;
    uint32_t pack_count;
    uint32_t logical_sector;
    uint32_t physical_sector;
    uint8_t parent[ID_LEN];
    char fs_type[16];
    char fs_uuid[40];
    char fs_label[64];
    uint32_t origin_count;
    uint8_t zero[84];
};
static_assert(sizeof(struct wire_manifest) == FMT_MANIFEST_FIXED_LEN, "wire size");
static_assert(offsetof(struct wire_manifest, chunk_size) == 8, "wire offset");
static_assert(offsetof(struct wire_manifest, region_count) == 16, "wire offset");
static_assert(offsetof(struct wire_manifest, pack_count) == 20, "wire offset");
static_assert(offsetof(struct wire_manifest, logical_sector) == 24, "wire offset");
static_assert(offsetof(struct wire_manifest, parent) == 32, "wire offset");
static_assert(offsetof(struct wire_manifest, fs_type) == 48, "wire offset");
static_assert(offsetof(struct wire_manifest, fs_uuid) == 64, "wire offset");
static_assert(offsetof(struct wire_manifest, fs_label) == 104, "wire offset");
static_assert(offsetof(struct wire_manifest, origin_count) == 168, "wire offset");
static_assert(offsetof(struct wire_manifest, zero) == 172, "wire offset");

static_assert(offsetof(struct fmt_manifest_region, number) == 16, "wire offset");
static_assert(offsetof(struct fmt_manifest_region, offset) == 20, "wire offset");
static_assert(offsetof(struct fmt_manifest_region, len) == 24, "wire offset");
static_assert(offsetof(struct fmt_manifest_region, sha256) == 32, "wire offset");
static_assert(offsetof(struct fmt_manifest_pack, number) == 16, "wire offset");
static_assert(offsetof(struct fmt_manifest_pack, stored_len) == 24, "wire offset");
static_assert(offsetof(struct fmt_manifest_pack, live_len) == 32, "wire offset");
static_assert(offsetof(struct fmt_manifest_origin, key_id) == 16, "wire offset");
static_assert(offsetof(struct fmt_manifest_origin, salt) == 24, "wire offset");

static const uint8_t region_magic[8] = "TMREGION";

int fmt_entry_check(const struct fmt_entry *entry, uint32_t plain_len, uint32_t pack_count,
                    struct err *err)
{
    uint32_t flags = fmt_entry_flags(entry), stored = fmt_entry_len(entry);
    if (flags & ~(uint32_t)FMT_FLAGS_KNOWN || entry->zero != 0)
        return err_set(err, ERR_REFUSED, "unknown flags 0x%" PRIx32 ", reserved 0x%" PRIx32, flags,
                       entry->zero);
    if (flags & (FMT_ZERO | FMT_FREE)) {
        bool bare = (flags == FMT_ZERO || flags == FMT_FREE) && stored == 0 && entry->pack == 0 &&
                    entry->offset == 0 && codec_is_zero(entry->digest, FMT_DIGEST_LEN);
        return bare ? 0 : err_set(err, ERR_CORRUPT, "a chunk without data names data");
    }
    if (entry->pack >= pack_count)
        return err_set(err, ERR_CORRUPT, "pack %" PRIu32 " of %" PRIu32, entry->pack, pack_count);
    if (flags & FMT_RAW ? stored != plain_len : stored == 0 || stored >= plain_len)
        return err_set(err, ERR_CORRUPT, "%" PRIu32 " stored bytes for %" PRIu32 " plain ones",
                       stored, plain_len);
    if (entry->offset < FMT_HEADER_LEN || (uint64_t)entry->offset + stored > UINT32_MAX)
        return err_set(err, ERR_CORRUPT, "offset %" PRIu32 " lies outside a pack", entry->offset);
    return 0;
}

void fmt_region_encode(const struct fmt_region *region, uint8_t *to)
{
    struct wire_region wire = {
        .version = FMT_VERSION,
        .header_len = FMT_REGION_HEADER_LEN,
        .region_index = region->region_index,
        .chunk_size = region->chunk_size,
        .chunk_count = region->chunk_count,
        .pack_count = region->pack_count,
        .last_chunk_len = region->last_chunk_len,
    };
    assert(region->chunk_count > 0);
    memcpy(wire.magic, region_magic, sizeof(wire.magic));
    hash_xxh3_128(&wire, offsetof(struct wire_region, checksum), 0, wire.checksum);
    memcpy(to, &wire, sizeof(wire));
    to += sizeof(wire);
    size_t packs_len = (size_t)region->pack_count * FMT_PACK_REF_LEN;
    if (packs_len)
        memcpy(to, region->packs, packs_len);
    memcpy(to + packs_len, region->entries, (size_t)region->chunk_count * FMT_ENTRY_LEN);
}

static int region_check_header(const struct wire_region *wire, size_t len, struct err *err)
{
    uint8_t checksum[FMT_DIGEST_LEN];
    hash_xxh3_128(wire, offsetof(struct wire_region, checksum), 0, checksum);
    if (memcmp(checksum, wire->checksum, sizeof(checksum)) != 0)
        return err_set(err, ERR_CORRUPT, "region table: wrong header checksum");
    if (wire->version != FMT_VERSION || wire->header_len != FMT_REGION_HEADER_LEN)
        return err_set(err, ERR_REFUSED, "region table: unknown version %" PRIu32, wire->version);
    if (wire->flags != 0 || !codec_is_zero(wire->zero, sizeof(wire->zero)))
        return err_set(err, ERR_REFUSED, "region table: unknown flags 0x%" PRIx32, wire->flags);
    if (!fmt_chunk_size_valid(wire->chunk_size))
        return err_set(err, ERR_REFUSED, "region table: unknown chunk size %" PRIu32,
                       wire->chunk_size);
    if (wire->chunk_count == 0 || wire->chunk_count > FMT_REGION_SIZE / wire->chunk_size ||
        wire->pack_count > wire->chunk_count || wire->last_chunk_len == 0 ||
        wire->last_chunk_len > wire->chunk_size)
        return err_set(err, ERR_CORRUPT,
                       "region table: impossible geometry: %" PRIu32 " chunks, %" PRIu32
                       " packs, last chunk %" PRIu32 " bytes",
                       wire->chunk_count, wire->pack_count, wire->last_chunk_len);
    if (len != fmt_region_len(wire->chunk_count, wire->pack_count))
        return err_set(err, ERR_CORRUPT, "region table: %zu bytes, want %zu", len,
                       fmt_region_len(wire->chunk_count, wire->pack_count));
    return 0;
}

static int region_check_parts(const struct fmt_region *region, struct err *err)
{
    for (uint32_t i = 0; i < region->pack_count; i++) {
        if (region->packs[i].zero != 0)
            return err_set(err, ERR_REFUSED, "region table: pack %" PRIu32 ": reserved bytes", i);
        if (id_is_zero(region->packs[i].snapshot))
            return err_set(err, ERR_CORRUPT, "region table: pack %" PRIu32 " has no snapshot", i);
    }
    for (uint32_t i = 0; i < region->chunk_count; i++) {
        bool last = i == region->chunk_count - 1;
        uint32_t plain_len = last ? region->last_chunk_len : region->chunk_size;
        int rc = fmt_entry_check(&region->entries[i], plain_len, region->pack_count, err);
        if (rc < 0)
            return err_prefix(err, "region %" PRIu32 " chunk %" PRIu32, region->region_index, i);
    }
    return 0;
}

int fmt_region_decode(const uint8_t *from, size_t len, struct fmt_region *ret, struct err *err)
{
    struct wire_region wire;
    assert((uintptr_t)from % _Alignof(uint64_t) == 0);
    if (len < sizeof(wire))
        return err_set(err, ERR_CORRUPT, "region table: cut after %zu bytes", len);
    memcpy(&wire, from, sizeof(wire));
    if (memcmp(wire.magic, region_magic, sizeof(region_magic)) != 0)
        return err_set(err, ERR_CORRUPT, "not a region table: unknown magic");
    int rc = region_check_header(&wire, len, err);
    if (rc < 0)
        return rc;
    const uint8_t *packs = from + sizeof(wire);
    const uint8_t *entries = packs + (size_t)wire.pack_count * FMT_PACK_REF_LEN;
    struct fmt_region region = {
        .region_index = wire.region_index,
        .chunk_size = wire.chunk_size,
        .chunk_count = wire.chunk_count,
        .pack_count = wire.pack_count,
        .last_chunk_len = wire.last_chunk_len,
        .packs = (const void *)packs,
        .entries = (const void *)entries,
    };
    rc = region_check_parts(&region, err);
    if (rc < 0)
        return rc;
    *ret = region;
    return 0;
}

/* Plain bytes of one region; only the last one is short. */
static uint64_t region_bytes(uint64_t size, uint32_t region_size, uint32_t index)
{
    return min_u64(region_size, size - (uint64_t)index * region_size);
}

void fmt_manifest_encode(const struct fmt_manifest *manifest, const uint8_t repository[ID_LEN],
                         uint8_t *to)
{
    struct wire_manifest wire = {
        .size = manifest->size,
        .chunk_size = manifest->chunk_size,
        .region_size = manifest->region_size,
        .region_count = manifest->region_count,
        .pack_count = manifest->pack_count,
        .logical_sector = manifest->logical_sector,
        .physical_sector = manifest->physical_sector,
        .origin_count = manifest->origin_count,
    };
    size_t regions_len = (size_t)manifest->region_count * FMT_MANIFEST_REGION_LEN;
    size_t packs_len = (size_t)manifest->pack_count * FMT_MANIFEST_PACK_LEN;
    size_t origins_len = (size_t)manifest->origin_count * FMT_MANIFEST_ORIGIN_LEN;
    struct fmt_header header = {
        .kind = FMT_MANIFEST,
        .body_len = sizeof(wire) + regions_len + packs_len + origins_len,
    };
    assert(manifest->region_count == div_round_up(manifest->size, manifest->region_size));
    memcpy(wire.parent, manifest->parent, ID_LEN);
    /* The bytes after the NUL are zeroed: texts come from buffers of any history. */
    memcpy(wire.fs_type, manifest->fs_type, strnlen(manifest->fs_type, sizeof(wire.fs_type) - 1));
    memcpy(wire.fs_uuid, manifest->fs_uuid, strnlen(manifest->fs_uuid, sizeof(wire.fs_uuid) - 1));
    memcpy(wire.fs_label, manifest->fs_label,
           strnlen(manifest->fs_label, sizeof(wire.fs_label) - 1));
    uint8_t *at = to + FMT_HEADER_LEN;
    memcpy(at, &wire, sizeof(wire));
    memcpy(at + sizeof(wire), manifest->regions, regions_len);
    if (packs_len)
        memcpy(at + sizeof(wire) + regions_len, manifest->packs, packs_len);
    if (origins_len)
        memcpy(at + sizeof(wire) + regions_len + packs_len, manifest->origins, origins_len);
    memcpy(header.repository, repository, ID_LEN);
    memcpy(header.volume, manifest->volume, ID_LEN);
    memcpy(header.snapshot, manifest->snapshot, ID_LEN);
    sha256(at, header.body_len, header.digest);
    fmt_header_encode(&header, to);
}

/* Texts end with a NUL inside their field and carry zeros after it. */
static bool text_valid(const char *text, size_t capacity)
{
    size_t len = strnlen(text, capacity);
    return len < capacity && codec_is_zero(text + len, capacity - len);
}

static int manifest_check_fixed(const struct wire_manifest *wire, uint64_t body_len,
                                struct err *err)
{
    if (!codec_is_zero(wire->zero, sizeof(wire->zero)))
        return err_set(err, ERR_REFUSED, "volume manifest: reserved bytes are not zero");
    if (!fmt_chunk_size_valid(wire->chunk_size) || wire->region_size != FMT_REGION_SIZE)
        return err_set(err, ERR_REFUSED,
                       "volume manifest: unknown geometry: chunks of %" PRIu32
                       ", regions of %" PRIu32 " bytes",
                       wire->chunk_size, wire->region_size);
    if (wire->size % FMT_SECTOR != 0)
        return err_set(err, ERR_CORRUPT,
                       "volume manifest: size %" PRIu64 " is not a multiple of 512", wire->size);
    if (wire->size == 0 || wire->region_count != div_round_up(wire->size, wire->region_size))
        return err_set(err, ERR_CORRUPT,
                       "volume manifest: %" PRIu32 " regions for %" PRIu64 " bytes",
                       wire->region_count, wire->size);
    if (body_len != fmt_manifest_len(wire->region_count, wire->pack_count) - FMT_HEADER_LEN +
                        (uint64_t)wire->origin_count * FMT_MANIFEST_ORIGIN_LEN)
        return err_set(err, ERR_CORRUPT,
                       "volume manifest: %" PRIu64 " bytes for %" PRIu32 " regions and %" PRIu32
                       " packs, %" PRIu32 " origins",
                       body_len, wire->region_count, wire->pack_count, wire->origin_count);
    if (!text_valid(wire->fs_type, sizeof(wire->fs_type)) ||
        !text_valid(wire->fs_uuid, sizeof(wire->fs_uuid)) ||
        !text_valid(wire->fs_label, sizeof(wire->fs_label)))
        return err_set(err, ERR_CORRUPT, "volume manifest: a text is not ended");
    return 0;
}

static int manifest_check_regions(const struct fmt_manifest *manifest, struct err *err)
{
    for (uint32_t i = 0; i < manifest->region_count; i++) {
        const struct fmt_manifest_region *region = &manifest->regions[i];
        uint64_t bytes = region_bytes(manifest->size, manifest->region_size, i);
        uint32_t chunks = (uint32_t)div_round_up(bytes, manifest->chunk_size);
        if (region->zero != 0)
            return err_set(err, ERR_REFUSED, "volume manifest: region %" PRIu32 ": reserved bytes",
                           i);
        if (id_is_zero(region->snapshot) || region->offset < FMT_HEADER_LEN ||
            region->offset % FMT_REGION_ALIGN != 0 || region->len < fmt_region_len(chunks, 0) ||
            region->len > fmt_region_len(chunks, chunks))
            return err_set(err, ERR_CORRUPT,
                           "volume manifest: region %" PRIu32 ": table of %" PRIu32
                           " bytes at %" PRIu32 " cannot be",
                           i, region->len, region->offset);
    }
    return 0;
}

static int manifest_check_packs(const struct fmt_manifest *manifest, struct err *err)
{
    for (uint32_t i = 0; i < manifest->pack_count; i++) {
        const struct fmt_manifest_pack *pack = &manifest->packs[i];
        if (pack->zero != 0)
            return err_set(err, ERR_REFUSED, "volume manifest: pack %" PRIu32 ": reserved bytes",
                           i);
        if (id_is_zero(pack->snapshot) || pack->stored_len < FMT_HEADER_LEN ||
            pack->live_len > pack->stored_len - FMT_HEADER_LEN)
            return err_set(err, ERR_CORRUPT,
                           "volume manifest: pack %" PRIu32 ": %" PRIu64 " live bytes of %" PRIu64,
                           i, pack->live_len, pack->stored_len);
        if (i > 0 && fmt_manifest_pack_compare(pack - 1, pack) >= 0)
            return err_set(err, ERR_CORRUPT, "volume manifest: packs are not in order at %" PRIu32,
                           i);
    }
    return 0;
}

static int compare_origins(const void *a, const void *b)
{
    const struct fmt_manifest_origin *left = a, *right = b;
    return memcmp(left->snapshot, right->snapshot, ID_LEN);
}

const struct fmt_manifest_origin *fmt_manifest_origin(const struct fmt_manifest *manifest,
                                                      const uint8_t snapshot[ID_LEN])
{
    struct fmt_manifest_origin key = {0};
    memcpy(key.snapshot, snapshot, ID_LEN);
    return manifest->origin_count ? bsearch(&key, manifest->origins, manifest->origin_count,
                                            sizeof(key), compare_origins)
                                  : NULL;
}

/* In an encrypted repository every snapshot that is reached has its origin, once. */
static int manifest_check_origins(const struct fmt_manifest *manifest, struct err *err)
{
    const struct fmt_manifest_origin *origins = manifest->origins;
    for (uint32_t i = 0; i < manifest->origin_count; i++) {
        if (origins[i].zero != 0)
            return err_set(err, ERR_REFUSED, "volume manifest: origin %" PRIu32 ": reserved bytes",
                           i);
        if (origins[i].key_id == 0 || (i > 0 && compare_origins(&origins[i - 1], &origins[i]) >= 0))
            return err_set(err, ERR_CORRUPT,
                           "volume manifest: origin %" PRIu32 " has no key or is not in order", i);
    }
    for (uint32_t i = 0; origins && i < manifest->region_count; i++)
        if (!fmt_manifest_origin(manifest, manifest->regions[i].snapshot))
            return err_set(err, ERR_CORRUPT, "volume manifest: region %" PRIu32 " has no origin",
                           i);
    for (uint32_t i = 0; origins && i < manifest->pack_count; i++)
        if (!fmt_manifest_origin(manifest, manifest->packs[i].snapshot))
            return err_set(err, ERR_CORRUPT, "volume manifest: pack %" PRIu32 " has no origin", i);
    return 0;
}

int fmt_manifest_decode(const uint8_t *from, size_t len, const uint8_t repository[ID_LEN],
                        struct fmt_manifest *ret, struct err *err)
{
    struct fmt_header header;
    struct wire_manifest wire;
    assert((uintptr_t)from % _Alignof(uint64_t) == 0);
    int rc = fmt_header_expect_whole(from, len, FMT_MANIFEST, repository, &header, err);
    if (rc < 0)
        return rc;
    if (header.body_len < sizeof(wire))
        return err_set(err, ERR_CORRUPT, "volume manifest: cut after %zu bytes", len);
    memcpy(&wire, from + FMT_HEADER_LEN, sizeof(wire));
    rc = manifest_check_fixed(&wire, header.body_len, err);
    if (rc < 0)
        return rc;
    const uint8_t *regions = from + FMT_HEADER_LEN + sizeof(wire);
    struct fmt_manifest manifest = {
        .size = wire.size,
        .chunk_size = wire.chunk_size,
        .region_size = wire.region_size,
        .region_count = wire.region_count,
        .pack_count = wire.pack_count,
        .logical_sector = wire.logical_sector,
        .physical_sector = wire.physical_sector,
        .regions = (const void *)regions,
        .packs = (const void *)(regions + (size_t)wire.region_count * FMT_MANIFEST_REGION_LEN),
    };
    if (wire.origin_count > 0) {
        manifest.origin_count = wire.origin_count;
        manifest.origins = (const void *)(manifest.packs + wire.pack_count);
    }
    memcpy(manifest.volume, header.volume, ID_LEN);
    memcpy(manifest.snapshot, header.snapshot, ID_LEN);
    memcpy(manifest.parent, wire.parent, ID_LEN);
    memcpy(manifest.fs_type, wire.fs_type, sizeof(wire.fs_type));
    memcpy(manifest.fs_uuid, wire.fs_uuid, sizeof(wire.fs_uuid));
    memcpy(manifest.fs_label, wire.fs_label, sizeof(wire.fs_label));
    rc = manifest_check_regions(&manifest, err);
    if (rc == 0)
        rc = manifest_check_packs(&manifest, err);
    if (rc == 0)
        rc = manifest_check_origins(&manifest, err);
    if (rc < 0)
        return rc;
    *ret = manifest;
    return 0;
}
