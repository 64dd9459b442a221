/* pull_read(): a few bytes of a snapshot, without ring and lanes. */
#include <inttypes.h>

#include "io/codec.h"
#include "io/hash.h"
#include "io/pull.h"
#include "io/seal.h"

/* seal is NULL in a plain repository, else it has the pack's key. */
static int read_stored(struct store *store, struct seal *seal, const char *name,
                       const struct fmt_entry *entry, uint8_t *stored, struct err *err)
{
    uint32_t len = fmt_entry_len(entry);
    size_t got, want = len + (seal != NULL ? (size_t)FMT_TAG_LEN : 0);
    int rc = store_get(store, name, entry->offset, stored, want, &got, err);
    if (rc == 0 && got != want)
        rc = err_set(err, ERR_CORRUPT, "cut: %zu of %zu bytes", got, want);
    if (rc == 0 && seal != NULL && !seal_open_part(seal, entry->offset, stored, len, stored))
        rc = err_set(err, ERR_CORRUPT, "the stored bytes are not what was sealed there");
    return rc;
}

/* Decodes one chunk with data into to and checks it. stored has room for the longest and its tag.
 */
static int read_chunk_once(struct store *store, struct seal *seal, const struct repo *repo,
                           const char *name, const struct fmt_entry *entry, uint8_t *stored,
                           uint8_t *to, uint32_t len, struct err *err)
{
    uint32_t stored_len = fmt_entry_len(entry);
    int rc = read_stored(store, seal, name, entry, stored, err);
    if (rc < 0)
        return rc;
    if (fmt_entry_flags(entry) & FMT_RAW)
        memcpy(to, stored, len);
    else if (!codec_decompress(stored, stored_len, to, len))
        return err_set(err, ERR_CORRUPT, "the stored bytes are no LZ4 block of this length");
    uint8_t digest[FMT_DIGEST_LEN];
    hash_xxh3_128(to, len, repo->digest_seed, digest);
    if (memcmp(digest, entry->digest, sizeof(digest)) != 0)
        return err_set(err, ERR_CORRUPT, "the digest differs");
    return 0;
}

static int read_chunk(struct store *store, const struct repo *repo,
                      const struct fmt_manifest *manifest, const struct fmt_pack_ref *ref,
                      const char *name, const struct fmt_entry *entry, uint8_t *stored, uint8_t *to,
                      uint32_t len, struct err *err)
{
    struct seal *seal = store_keys(store) != NULL ? seal_new() : NULL;
    int rc = seal != NULL
                 ? seal_begin_reached(seal, store_keys(store), manifest, ref->snapshot, name, err)
                 : 0;
    unsigned tries = rc == 0 ? STORE_READ_TRIES : 0;
    for (unsigned i = 0; i < tries && (i == 0 || rc == -ERR_CORRUPT); i++)
        rc = read_chunk_once(store, seal, repo, name, entry, stored, to, len, err);
    seal_free(seal);
    return rc;
}

/* The chunk at hand, whole, in plain[]. */
static int load_chunk(struct store *store, const struct repo *repo,
                      const struct fmt_manifest *manifest, uint64_t chunk, uint8_t *plain,
                      uint8_t *stored, struct err *err)
{
    uint32_t per_region = manifest->region_size / manifest->chunk_size;
    uint32_t region_index = (uint32_t)(chunk / per_region), at = (uint32_t)(chunk % per_region);
    free_mem void *buf = NULL;
    struct fmt_region region;
    int rc = table_fetch_region(store, repo, manifest, region_index, &buf, &region, err);
    if (rc < 0)
        return rc;
    const struct fmt_entry *entry = &region.entries[at];
    uint32_t len = at == region.chunk_count - 1 ? region.last_chunk_len : region.chunk_size;
    if (fmt_entry_flags(entry) & (FMT_ZERO | FMT_FREE)) {
        memset(plain, 0, len);
        return 0;
    }
    const struct fmt_pack_ref *ref = &region.packs[entry->pack];
    char name[STORE_NAME_MAX + 1];
    repo_pack_name(name, manifest->volume, ref->snapshot, ref->number);
    rc = read_chunk(store, repo, manifest, ref, name, entry, stored, plain, len, err);
    if (rc < 0)
        return err_prefix(err, "object '%s' region %" PRIu32 " chunk %" PRIu64, name, region_index,
                          chunk);
    return 0;
}

int pull_read(struct store *store, const struct repo *repo, const struct fmt_manifest *manifest,
              uint64_t offset, void *buf, size_t len, struct err *err)
{
    uint64_t end;
    if (!add_u64(offset, len, &end) || end > manifest->size)
        return err_set(err, ERR_INTERNAL, "%zu bytes at %" PRIu64 " lie outside of the volume", len,
                       offset);
    free_mem uint8_t *plain = malloc(2 * (size_t)manifest->chunk_size + FMT_TAG_LEN);
    if (plain == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    uint8_t *to = buf;
    while (offset < end) {
        uint64_t chunk = offset / manifest->chunk_size;
        uint32_t at = (uint32_t)(offset % manifest->chunk_size);
        size_t part = (size_t)min_u64(manifest->chunk_size - at, end - offset);
        int rc = load_chunk(store, repo, manifest, chunk, plain, plain + manifest->chunk_size, err);
        if (rc < 0)
            return rc;
        memcpy(to, plain + at, part);
        to += part;
        offset += part;
    }
    return 0;
}
