/* The chunk table of a volume as a mapped local file: see table.h.
 *
 *     0     header page (struct table_header, its SHA-256 in the last 32 bytes)
 *     4096  entries, 32 bytes a chunk
 *     …     pack refs, 24 bytes each, appended by table_seal()
 *
 * The header is written last: a file of a crashed snapshot has none and is refused. The SHA-256
 * covers everything but itself. */
#include "io/table.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "io/crypt.h"
#include "io/file.h"
#include "io/seal.h"

enum { TABLE_HEADER_LEN = 4096, TABLE_VERSION = 1 };

struct table_header {
    uint8_t magic[8];
    uint32_t version;
    uint32_t header_len;
    uint8_t volume[ID_LEN];
    uint8_t snapshot[ID_LEN];
    uint64_t size;
    uint32_t chunk_size;
    uint32_t region_size;
    uint64_t chunk_count;
    uint32_t pack_count;
    uint32_t zero;
    uint8_t unused[TABLE_HEADER_LEN - 80 - FMT_SHA256_LEN];
    uint8_t sha256[FMT_SHA256_LEN];
};
static_assert(sizeof(struct table_header) == TABLE_HEADER_LEN, "file layout");
static_assert(offsetof(struct table_header, unused) == 80, "file layout");

static const uint8_t table_magic[8] = "TMCACHE";

static uint64_t entries_len(const struct table *table)
{
    return table->chunk_count * FMT_ENTRY_LEN;
}

/* A hole in the file would turn a full file system into SIGBUS at the first store through the
 * map, so all of it is allocated first. */
static int table_allocate(struct table *table, const char *path, struct err *err)
{
    /* A new inode: whoever has the old one mapped keeps it. */
    if (unlink(path) < 0 && errno != ENOENT)
        return err_sys(err, ERR_DEVICE, "remove table '%s'", path);
    table->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (table->fd < 0)
        return err_sys(err, ERR_DEVICE, "create table '%s'", path);
    table->map_len = TABLE_HEADER_LEN + entries_len(table);
    errno = posix_fallocate(table->fd, 0, (off_t)table->map_len);
    if (errno != 0)
        return err_sys(err, ERR_DEVICE, "table '%s' of %zu bytes", path, table->map_len);
    table->map = mmap(NULL, table->map_len, PROT_READ | PROT_WRITE, MAP_SHARED, table->fd, 0);
    if (table->map == MAP_FAILED) {
        table->map = NULL;
        return err_sys(err, ERR_DEVICE, "map table '%s'", path);
    }
    table->entries = (void *)((uint8_t *)table->map + TABLE_HEADER_LEN);
    return 0;
}

static int take_packs(struct table *table, const struct fmt_pack_ref *packs, uint32_t count,
                      struct err *err)
{
    table->packs = calloc(max_u64(count, 1), sizeof(*packs));
    if (!table->packs)
        return err_sys(err, ERR_INTERNAL, "table of %" PRIu32 " packs", count);
    if (count)
        memcpy(table->packs, packs, count * sizeof(*packs));
    table->pack_count = count;
    table->parent_pack_count = count;
    return 0;
}

int table_create(const char *path, const uint8_t volume[ID_LEN], const uint8_t snapshot[ID_LEN],
                 uint64_t size, const struct repo *repo, const struct table *parent,
                 struct table *ret, struct err *err)
{
    struct table table = {
        .fd = -1,
        .size = size,
        .chunk_size = repo->chunk_size,
        .region_size = repo->region_size,
        .chunk_count = div_round_up(size, repo->chunk_size),
    };
    assert(size > 0);
    assert(!parent || parent->chunk_size == repo->chunk_size);
    memcpy(table.volume, volume, ID_LEN);
    memcpy(table.snapshot, snapshot, ID_LEN);
    int rc =
        take_packs(&table, parent ? parent->packs : NULL, parent ? parent->pack_count : 0, err);
    if (rc == 0)
        rc = table_allocate(&table, path, err);
    if (rc < 0) {
        table_close(&table);
        return rc;
    }
    const struct fmt_entry unused = {.len_flags = (uint32_t)FMT_FREE << 24};
    for (uint64_t i = 0; i < table.chunk_count; i++)
        table.entries[i] = unused;
    *ret = table;
    return 0;
}

int table_add_packs(struct table *table, uint32_t count, struct err *err)
{
    assert(table->pack_count == table->parent_pack_count);
    uint32_t total;
    if (__builtin_add_overflow(table->parent_pack_count, count, &total))
        return err_set(err, ERR_INTERNAL, "too many packs");
    struct fmt_pack_ref *packs = reallocarray(table->packs, max_u64(total, 1), sizeof(*packs));
    if (!packs)
        return err_sys(err, ERR_INTERNAL, "table of %" PRIu32 " packs", total);
    table->packs = packs;
    for (uint32_t number = 0; number < count; number++) {
        struct fmt_pack_ref *ref = &packs[table->parent_pack_count + number];
        *ref = (struct fmt_pack_ref){.number = number};
        memcpy(ref->snapshot, table->snapshot, ID_LEN);
    }
    table->pack_count = total;
    return 0;
}

static bool has_data(const struct fmt_entry *entry)
{
    return !(fmt_entry_flags(entry) & (FMT_ZERO | FMT_FREE));
}

/* Drops packs that no entry names, so that the list does not grow with every generation. */
static int table_compact(struct table *table, struct err *err)
{
    if (table->pack_count == 0)
        return 0;
    /* new_index[i] = 0 while pack i is unused, then its new index + 1 */
    free_mem uint32_t *new_index = calloc(table->pack_count, sizeof(*new_index));
    if (!new_index)
        return err_sys(err, ERR_INTERNAL, "table of %" PRIu32 " packs", table->pack_count);
    for (uint64_t i = 0; i < table->chunk_count; i++) {
        if (!has_data(&table->entries[i]))
            continue;
        assert(table->entries[i].pack < table->pack_count);
        new_index[table->entries[i].pack] = 1;
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < table->pack_count; i++) {
        if (!new_index[i])
            continue;
        table->packs[kept++] = table->packs[i];
        new_index[i] = kept;
    }
    for (uint64_t i = 0; kept < table->pack_count && i < table->chunk_count; i++)
        if (has_data(&table->entries[i]))
            table->entries[i].pack = new_index[table->entries[i].pack] - 1;
    table->pack_count = kept;
    table->parent_pack_count = kept;
    return 0;
}

static void table_digest(const struct table_header *header, const void *entries, size_t len,
                         const struct fmt_pack_ref *packs, uint8_t ret_digest[FMT_SHA256_LEN])
{
    struct sha256_stream *stream = sha256_open();
    sha256_update(stream, header, offsetof(struct table_header, sha256));
    sha256_update(stream, entries, len);
    sha256_update(stream, packs, (size_t)header->pack_count * sizeof(*packs));
    sha256_finish(stream, ret_digest);
}

static int write_at(const struct table *table, const void *ptr, size_t len, uint64_t offset,
                    struct err *err)
{
    if (lseek(table->fd, (off_t)offset, SEEK_SET) < 0 || write_all(table->fd, ptr, len) < 0)
        return err_sys(err, ERR_DEVICE, "write table");
    return 0;
}

int table_seal(struct table *table, struct err *err)
{
    struct table_header header = {
        .version = TABLE_VERSION,
        .header_len = TABLE_HEADER_LEN,
        .size = table->size,
        .chunk_size = table->chunk_size,
        .region_size = table->region_size,
        .chunk_count = table->chunk_count,
    };
    int rc = table_compact(table, err);
    if (rc < 0)
        return rc;
    header.pack_count = table->pack_count;
    memcpy(header.magic, table_magic, sizeof(header.magic));
    memcpy(header.volume, table->volume, ID_LEN);
    memcpy(header.snapshot, table->snapshot, ID_LEN);
    table_digest(&header, table->entries, entries_len(table), table->packs, header.sha256);
    rc = write_at(table, table->packs, (size_t)table->pack_count * FMT_PACK_REF_LEN,
                  TABLE_HEADER_LEN + entries_len(table), err);
    if (rc < 0)
        return rc;
    if (msync(table->map, table->map_len, MS_SYNC) < 0 || fsync(table->fd) < 0)
        return err_sys(err, ERR_DEVICE, "flush table");
    rc = write_at(table, &header, sizeof(header), 0, err);
    if (rc < 0)
        return rc;
    if (fsync(table->fd) < 0)
        return err_sys(err, ERR_DEVICE, "flush table");
    return 0;
}

static int table_map_file(struct table *table, const char *path, struct err *err)
{
    struct stat stat;
    table->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (table->fd < 0)
        return err_sys(err, errno == ENOENT ? ERR_MISSING : ERR_DEVICE, "open table '%s'", path);
    if (fstat(table->fd, &stat) < 0)
        return err_sys(err, ERR_DEVICE, "stat table '%s'", path);
    if (stat.st_size < TABLE_HEADER_LEN)
        return err_set(err, ERR_CORRUPT, "table '%s' is cut", path);
    table->map_len = (size_t)stat.st_size;
    table->map = mmap(NULL, table->map_len, PROT_READ, MAP_SHARED, table->fd, 0);
    if (table->map == MAP_FAILED) {
        table->map = NULL;
        return err_sys(err, ERR_DEVICE, "map table '%s'", path);
    }
    return 0;
}

static int table_check_header(const struct table_header *header, size_t file_len, const char *path,
                              struct err *err)
{
    uint64_t want = TABLE_HEADER_LEN, entries, packs;
    if (memcmp(header->magic, table_magic, sizeof(table_magic)) != 0)
        return err_set(err, ERR_CORRUPT, "table '%s' was never finished", path);
    if (header->version != TABLE_VERSION || header->header_len != TABLE_HEADER_LEN)
        return err_set(err, ERR_CORRUPT, "table '%s' is of another version", path);
    if (!mul_u64(header->chunk_count, FMT_ENTRY_LEN, &entries) ||
        !mul_u64(header->pack_count, FMT_PACK_REF_LEN, &packs) || !add_u64(want, entries, &want) ||
        !add_u64(want, packs, &want) || want != file_len)
        return err_set(err, ERR_CORRUPT, "table '%s' has %zu bytes, not %" PRIu64, path, file_len,
                       want);
    return 0;
}

static int table_check_entries(const struct table *table, const char *path, struct err *err)
{
    if (!fmt_chunk_size_valid(table->chunk_size) || table->region_size != FMT_REGION_SIZE ||
        table->size == 0 || table->chunk_count != div_round_up(table->size, table->chunk_size))
        return err_set(err, ERR_CORRUPT, "table '%s' has an impossible geometry", path);
    for (uint64_t i = 0; i < table->chunk_count; i++) {
        int rc =
            fmt_entry_check(&table->entries[i], table_chunk_len(table, i), table->pack_count, err);
        if (rc < 0) {
            err->code = ERR_CORRUPT;
            return err_prefix(err, "table '%s' chunk %" PRIu64, path, i);
        }
    }
    return 0;
}

static int table_load(struct table *table, const char *path, struct err *err)
{
    int rc = table_map_file(table, path, err);
    if (rc < 0)
        return rc;
    const struct table_header *header = table->map;
    rc = table_check_header(header, table->map_len, path, err);
    if (rc < 0)
        return rc;
    uint8_t *entries = (uint8_t *)table->map + TABLE_HEADER_LEN;
    size_t len = header->chunk_count * FMT_ENTRY_LEN;
    const struct fmt_pack_ref *packs = (const void *)(entries + len);
    uint8_t digest[FMT_SHA256_LEN];
    table_digest(header, entries, len, packs, digest);
    if (memcmp(digest, header->sha256, sizeof(digest)) != 0)
        return err_set(err, ERR_CORRUPT, "table '%s': wrong SHA-256", path);
    memcpy(table->volume, header->volume, ID_LEN);
    memcpy(table->snapshot, header->snapshot, ID_LEN);
    table->size = header->size;
    table->chunk_size = header->chunk_size;
    table->region_size = header->region_size;
    table->chunk_count = header->chunk_count;
    table->entries = (void *)entries;
    rc = take_packs(table, packs, header->pack_count, err);
    return rc < 0 ? rc : table_check_entries(table, path, err);
}

int table_open(const char *path, struct table *ret, struct err *err)
{
    struct table table = {.fd = -1};
    int rc = table_load(&table, path, err);
    if (rc < 0) {
        table_close(&table);
        return rc;
    }
    *ret = table;
    return 0;
}

uint32_t table_chunk_len(const struct table *table, uint64_t chunk_index)
{
    assert(chunk_index < table->chunk_count);
    return (uint32_t)min_u64(table->chunk_size, table->size - chunk_index * table->chunk_size);
}

void table_close(struct table *table)
{
    if (table->map)
        (void)munmap(table->map, table->map_len);
    if (table->fd >= 0)
        (void)close(table->fd);
    free(table->packs);
    *table = (struct table){.fd = -1};
}

/* A region table stands alone; this ties it to its place in the manifest. */
static int region_check_place(const struct fmt_region *region, const struct fmt_manifest *manifest,
                              uint32_t region_index, struct err *err)
{
    uint64_t start = (uint64_t)region_index * manifest->region_size;
    uint64_t bytes = min_u64(manifest->region_size, manifest->size - start);
    uint64_t chunk_count = div_round_up(bytes, manifest->chunk_size);
    uint64_t last_len = bytes - (chunk_count - 1) * manifest->chunk_size;
    if (region->region_index != region_index || region->chunk_size != manifest->chunk_size ||
        region->chunk_count != chunk_count || region->last_chunk_len != last_len)
        return err_set(err, ERR_CORRUPT,
                       "region table %" PRIu32 " of %" PRIu32 " chunks stands for region %" PRIu32
                       " of %" PRIu64,
                       region->region_index, region->chunk_count, region_index, chunk_count);
    return 0;
}

static int pack_key_compare(const void *key, const void *item)
{
    return fmt_manifest_pack_compare(key, item);
}

/* Index of a pack in the manifest's sorted list; -1 when it is not there. */
static int64_t find_pack(const struct fmt_manifest *manifest, const struct fmt_pack_ref *ref)
{
    struct fmt_manifest_pack key = {.number = ref->number};
    memcpy(key.snapshot, ref->snapshot, ID_LEN);
    const struct fmt_manifest_pack *found =
        manifest->pack_count
            ? bsearch(&key, manifest->packs, manifest->pack_count, sizeof(key), pack_key_compare)
            : NULL;
    return found ? found - manifest->packs : -1;
}

/* The manifest's list is what keeps packs alive. */
static int region_check_packs(const struct fmt_region *region, const struct fmt_manifest *manifest,
                              struct err *err)
{
    for (uint32_t i = 0; i < region->pack_count; i++)
        if (find_pack(manifest, &region->packs[i]) < 0)
            return err_set(err, ERR_CORRUPT,
                           "region table: names a pack that its manifest does not list");
    return 0;
}

int table_decode_region(const struct fmt_manifest *manifest, uint32_t region_index,
                        const uint8_t *from, struct fmt_region *ret, struct err *err)
{
    const struct fmt_manifest_region *place = &manifest->regions[region_index];
    struct fmt_region region;
    uint8_t digest[FMT_SHA256_LEN];
    sha256(from, place->len, digest);
    if (memcmp(digest, place->sha256, sizeof(digest)) != 0)
        return err_set(err, ERR_CORRUPT, "region table: wrong SHA-256");
    int rc = fmt_region_decode(from, place->len, &region, err);
    if (rc == 0)
        rc = region_check_place(&region, manifest, region_index, err);
    if (rc == 0)
        rc = region_check_packs(&region, manifest, err);
    if (rc == 0)
        *ret = region;
    return rc;
}

int table_open_region(struct seal *seal, const struct keyring *keys,
                      const struct fmt_manifest *manifest, uint32_t region_index, const char *name,
                      const uint8_t *from, uint8_t *to, struct err *err)
{
    const struct fmt_manifest_region *place = &manifest->regions[region_index];
    int rc = seal_begin_reached(seal, keys, manifest, place->snapshot, name, err);
    if (rc == 0 && !seal_open_part(seal, place->offset, from, place->len, to))
        rc = err_set(err, ERR_CORRUPT, "region table: not what was sealed there");
    return rc;
}

static int region_open(struct store *store, const struct fmt_manifest *manifest,
                       uint32_t region_index, const char *name, uint8_t *buf, struct err *err)
{
    if (store_keys(store) == NULL)
        return 0;
    struct seal *seal = seal_new();
    int rc =
        table_open_region(seal, store_keys(store), manifest, region_index, name, buf, buf, err);
    seal_free(seal);
    return rc;
}

/* Reads exactly the bytes that the manifest promises. */
static int region_read(struct store *store, const char *name,
                       const struct fmt_manifest_region *place, void *buf, struct err *err)
{
    size_t got, want = place->len + (store_keys(store) != NULL ? (size_t)FMT_TAG_LEN : 0);
    int rc = store_get(store, name, place->offset, buf, want, &got, err);
    if (rc == 0 && got != want)
        rc = err_set(err, ERR_CORRUPT, "region table is cut: %zu of %zu bytes", got, want);
    return rc;
}

static int table_fetch_region_once(struct store *store, const struct repo *repo,
                                   const struct fmt_manifest *manifest, uint32_t region_index,
                                   void **ret_buf, struct fmt_region *ret, struct err *err)
{
    const struct fmt_manifest_region *place = &manifest->regions[region_index];
    char name[STORE_NAME_MAX + 1];
    struct fmt_region region;
    assert(region_index < manifest->region_count);
    if (manifest->chunk_size != repo->chunk_size || manifest->region_size != repo->region_size)
        return err_set(err, ERR_CORRUPT, "manifest and repository differ in geometry");
    repo_table_name(name, manifest->volume, place->snapshot, place->number);
    free_mem void *buf = malloc(place->len + (size_t)FMT_TAG_LEN);
    if (!buf)
        return err_sys(err, ERR_INTERNAL, "region table of %" PRIu32 " bytes", place->len);
    int rc = region_read(store, name, place, buf, err);
    if (rc == 0)
        rc = region_open(store, manifest, region_index, name, buf, err);
    if (rc == 0)
        rc = table_decode_region(manifest, region_index, buf, &region, err);
    if (rc < 0)
        return err_prefix(err, "object %s region %" PRIu32, name, region_index);
    *ret = region;
    *ret_buf = take_ptr(&buf);
    return 0;
}

int table_fetch_region(struct store *store, const struct repo *repo,
                       const struct fmt_manifest *manifest, uint32_t region_index, void **ret_buf,
                       struct fmt_region *ret, struct err *err)
{
    int rc = -ERR_CORRUPT;
    for (unsigned i = 0; rc == -ERR_CORRUPT && i < STORE_READ_TRIES; i++)
        rc = table_fetch_region_once(store, repo, manifest, region_index, ret_buf, ret, err);
    return rc;
}

/* Copies one region's entries into the table, with pack indices of the manifest's list. */
static int place_region(struct table *table, const struct fmt_manifest *manifest,
                        const struct fmt_region *region, struct err *err)
{
    uint64_t first = (uint64_t)region->region_index * (manifest->region_size / region->chunk_size);
    free_mem uint32_t *index = calloc(max_u64(region->pack_count, 1), sizeof(*index));
    if (!index)
        return err_sys(err, ERR_INTERNAL, "region of %" PRIu32 " packs", region->pack_count);
    for (uint32_t i = 0; i < region->pack_count; i++) {
        int64_t found = find_pack(manifest, &region->packs[i]);
        assert(found >= 0); /* table_decode_region() */
        index[i] = (uint32_t)found;
    }
    for (uint32_t i = 0; i < region->chunk_count; i++) {
        struct fmt_entry entry = region->entries[i];
        if (has_data(&entry))
            entry.pack = index[entry.pack];
        table->entries[first + i] = entry;
    }
    return 0;
}

static int rebuild_regions(struct table *table, struct store *store, const struct repo *repo,
                           const struct fmt_manifest *manifest, struct err *err)
{
    for (uint32_t i = 0; i < manifest->region_count; i++) {
        free_mem void *buf = NULL;
        struct fmt_region region;
        int rc = table_fetch_region(store, repo, manifest, i, &buf, &region, err);
        if (rc == 0)
            rc = place_region(table, manifest, &region, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int list_packs(struct table *table, const struct fmt_manifest *manifest, struct err *err)
{
    free_mem struct fmt_pack_ref *packs = calloc(max_u64(manifest->pack_count, 1), sizeof(*packs));
    if (!packs)
        return err_sys(err, ERR_INTERNAL, "table of %" PRIu32 " packs", manifest->pack_count);
    for (uint32_t i = 0; i < manifest->pack_count; i++) {
        packs[i].number = manifest->packs[i].number;
        memcpy(packs[i].snapshot, manifest->packs[i].snapshot, ID_LEN);
    }
    free(table->packs);
    return take_packs(table, packs, manifest->pack_count, err);
}

int table_rebuild(const char *path, struct store *store, const struct repo *repo,
                  const struct fmt_manifest *manifest, struct table *ret, struct err *err)
{
    struct table table;
    if (manifest->chunk_size != repo->chunk_size || manifest->region_size != repo->region_size)
        return err_set(err, ERR_CORRUPT, "manifest and repository differ in geometry");
    int rc = table_create(path, manifest->volume, manifest->snapshot, manifest->size, repo, NULL,
                          &table, err);
    if (rc < 0)
        return rc;
    rc = list_packs(&table, manifest, err);
    if (rc == 0)
        rc = rebuild_regions(&table, store, repo, manifest, err);
    if (rc == 0)
        rc = table_seal(&table, err);
    if (rc < 0) {
        table_close(&table);
        (void)unlink(path);
        return rc;
    }
    *ret = table;
    return 0;
}
