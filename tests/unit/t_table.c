/* The mapped chunk table: create, seal, open, damage, compaction, rebuild from a repository. */
#include "io/table.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>

#include "io/crypt.h"
#include "tests/tap.h"

static struct err err;
static char dir[64] = "/tmp/tidemark-t_table.XXXXXX";
static char path[128], rebuilt_path[128];
static uint8_t volume[ID_LEN], first[ID_LEN], second[ID_LEN];

enum { CHUNK = 65536, REGION_CHUNKS = FMT_REGION_SIZE / CHUNK, SIZE = FMT_REGION_SIZE + 1536 };
static const struct repo repo = {
    .id = {1}, .chunk_size = CHUNK, .region_size = FMT_REGION_SIZE, .digest_seed = 9};

static struct fmt_entry data_entry(uint32_t pack, uint32_t offset, uint32_t stored)
{
    struct fmt_entry entry = {.pack = pack, .offset = offset, .len_flags = stored};
    memset(entry.digest, (int)(offset % 251 + 1), FMT_DIGEST_LEN);
    return entry;
}

static void flip_file(const char *name, off_t offset)
{
    uint8_t byte;
    close_fd int fd = open(name, O_RDWR);
    if (pread(fd, &byte, 1, offset) != 1)
        abort();
    byte ^= 1;
    if (pwrite(fd, &byte, 1, offset) != 1)
        abort();
}

static void test_create(void)
{
    struct table table, opened;
    is_err(table_open(path, &opened, &err), &err, ERR_MISSING, "open table", "no file yet");
    is_good(table_create(path, volume, first, SIZE, &repo, NULL, &table, &err), &err, "create");
    is_u64(table.chunk_count, REGION_CHUNKS + 1, "chunks");
    is_u64(table_chunk_len(&table, 0), CHUNK, "first chunk");
    is_u64(table_chunk_len(&table, REGION_CHUNKS), 1536, "last chunk is short");
    size_t other = 0;
    for (uint64_t i = 0; i < table.chunk_count; i++)
        other += fmt_entry_flags(&table.entries[i]) != FMT_FREE;
    is_u64(other, 0, "all entries are FREE");
    is_err(table_open(path, &opened, &err), &err, ERR_CORRUPT, "never finished",
           "not before it is sealed");
    table.entries[5] = data_entry(1, 192, 777);
    table.entries[6] = data_entry(1, 969, 100);
    table.entries[7] = (struct fmt_entry){.len_flags = (uint32_t)FMT_ZERO << 24};
    is_good(table_add_packs(&table, 3, &err), &err, "three packs");
    is_good(table_seal(&table, &err), &err, "seal");
    is_u64(table.pack_count, 1, "one pack is named");
    is_u64(table.packs[0].number, 1, "which is number 1");
    is_u64(table.entries[5].pack, 0, "and now stands at index 0");
    is_good(table_open(path, &opened, &err), &err, "open");
    ok(memcmp(opened.entries, table.entries, table.chunk_count * FMT_ENTRY_LEN) == 0,
       "entries are the same");
    ok(opened.size == SIZE && opened.pack_count == 1 &&
           memcmp(opened.packs, table.packs, FMT_PACK_REF_LEN) == 0 &&
           memcmp(opened.snapshot, first, ID_LEN) == 0,
       "the rest, too");
    table_close(&opened);
    table_close(&table);
    table_close(&table);
}

static void test_damage(void)
{
    struct table table;
    struct stat stat_buf;
    if (stat(path, &stat_buf) < 0)
        abort();
    static const off_t places[] = {0, 8, 40, 60, 70, 2000, 4095, 4096, 4096 + 5 * 32};
    for (size_t i = 0; i <= ARRAY_LEN(places); i++) {
        off_t at = i < ARRAY_LEN(places) ? places[i] : stat_buf.st_size - 1;
        flip_file(path, at);
        int rc = table_open(path, &table, &err);
        ok(rc == -ERR_CORRUPT, "flipped bit at %lld: %s", (long long)at, err.text);
        flip_file(path, at);
    }
    is_good(table_open(path, &table, &err), &err, "all put right again");
    table_close(&table);
    if (truncate(path, stat_buf.st_size - 1) < 0)
        abort();
    is_err(table_open(path, &table, &err), &err, ERR_CORRUPT, "bytes, not", "cut by one byte");
    if (truncate(path, 100) < 0)
        abort();
    is_err(table_open(path, &table, &err), &err, ERR_CORRUPT, "is cut", "cut in the header");
    is_err(table_create("/nonexistent/table", volume, first, SIZE, &repo, NULL, &table, &err), &err,
           ERR_DEVICE, "create table", "no directory");
}

static void test_generations(void)
{
    struct table parent, table;
    is_good(table_create(path, volume, first, SIZE, &repo, NULL, &parent, &err), &err, "parent");
    parent.entries[0] = data_entry(0, 192, 10);
    parent.entries[1] = data_entry(1, 192, 10);
    (void)table_add_packs(&parent, 2, &err);
    is_good(table_seal(&parent, &err), &err, "sealed");
    is_good(table_create(rebuilt_path, volume, second, SIZE, &repo, &parent, &table, &err), &err,
            "child");
    is_u64(table.parent_pack_count, 2, "knows its parent's packs");
    table.entries[1] = parent.entries[1];
    table.entries[2] = data_entry(table.parent_pack_count + 0, 192, 20);
    (void)table_add_packs(&table, 1, &err);
    is_good(table_seal(&table, &err), &err, "sealed");
    is_u64(table.pack_count, 2, "a pack that nobody names any more is dropped");
    ok(memcmp(table.packs[0].snapshot, first, ID_LEN) == 0 && table.packs[0].number == 1 &&
           memcmp(table.packs[1].snapshot, second, ID_LEN) == 0 && table.packs[1].number == 0,
       "the others stay in order");
    is_u64(table.entries[1].pack, 0, "entries follow");
    is_u64(table.entries[2].pack, 1, "entries follow");
    table_close(&parent);
    table_close(&table);
}

/* --- a repository with one manifest and one table pack --------------------------------------- */

enum { REGION0_PACKS = 2, TABLE_LEN_MAX = 1 << 18 };
static struct fmt_manifest_region places[2];
static struct fmt_manifest_pack packs[2];

static size_t add_region(uint8_t *object, size_t at, const struct fmt_region *region)
{
    size_t len = fmt_region_len(region->chunk_count, region->pack_count);
    struct fmt_manifest_region *place = &places[region->region_index];
    fmt_region_encode(region, object + at);
    *place = (struct fmt_manifest_region){.offset = (uint32_t)at, .len = (uint32_t)len};
    memcpy(place->snapshot, first, ID_LEN);
    sha256(object + at, len, place->sha256);
    return at + len;
}

static void make_repository(struct store *store, struct fmt_manifest *manifest)
{
    free_mem uint8_t *object = calloc(1, TABLE_LEN_MAX);
    static struct fmt_entry entries[REGION_CHUNKS];
    struct fmt_pack_ref refs[REGION0_PACKS] = {{.number = 1}, {.number = 0}}; /* not sorted */
    for (uint32_t i = 0; i < 2; i++) {
        memcpy(refs[i].snapshot, first, ID_LEN);
        packs[i] = (struct fmt_manifest_pack){.number = i, .stored_len = 1 << 20, .live_len = 99};
        memcpy(packs[i].snapshot, first, ID_LEN);
    }
    for (uint32_t i = 0; i < REGION_CHUNKS; i++)
        entries[i] = data_entry(i % 2, 192 + i * 8, 8);
    struct fmt_region region = {
        .chunk_size = CHUNK,
        .chunk_count = REGION_CHUNKS,
        .pack_count = REGION0_PACKS,
        .last_chunk_len = CHUNK,
        .packs = refs,
        .entries = entries,
    };
    size_t len = add_region(object, FMT_HEADER_LEN, &region);
    struct fmt_entry zero = {.len_flags = (uint32_t)FMT_ZERO << 24};
    region = (struct fmt_region){
        .region_index = 1,
        .chunk_size = CHUNK,
        .chunk_count = 1,
        .last_chunk_len = 1536,
        .entries = &zero,
    };
    len = add_region(object, len, &region);
    struct fmt_header header = {.kind = FMT_TABLES, .body_len = len - FMT_HEADER_LEN};
    char name[STORE_NAME_MAX + 1];
    memcpy(header.repository, repo.id, ID_LEN);
    memcpy(header.volume, volume, ID_LEN);
    memcpy(header.snapshot, first, ID_LEN);
    fmt_header_encode(&header, object);
    repo_table_name(name, volume, first, 0);
    /* A store confirms absences only where a repository is. */
    is_good(store_put(store, "tidemark.repo", "", 0, &err), &err, "a repository");
    is_good(store_put(store, name, object, len, &err), &err, "a table pack");
    *manifest = (struct fmt_manifest){
        .size = SIZE,
        .chunk_size = CHUNK,
        .region_size = FMT_REGION_SIZE,
        .region_count = 2,
        .pack_count = 2,
        .regions = places,
        .packs = packs,
    };
    memcpy(manifest->volume, volume, ID_LEN);
    memcpy(manifest->snapshot, first, ID_LEN);
}

static void test_rebuild(struct store *store)
{
    struct fmt_manifest manifest;
    struct table table;
    make_repository(store, &manifest);
    is_good(table_rebuild(path, store, &repo, &manifest, &table, &err), &err, "rebuild");
    is_u64(table.pack_count, 2, "two packs");
    is_u64(table.entries[0].pack, 1, "indices are those of the manifest's sorted list");
    is_u64(table.entries[1].pack, 0, "indices are those of the manifest's sorted list");
    is_u64(fmt_entry_flags(&table.entries[REGION_CHUNKS]), FMT_ZERO, "the last, short chunk");
    table_close(&table);
    is_good(table_open(path, &table, &err), &err, "it is sealed");
    table_close(&table);

    places[0].sha256[3] ^= 1;
    is_err(table_rebuild(path, store, &repo, &manifest, &table, &err), &err, ERR_CORRUPT,
           "region 0: region table: wrong SHA-256", "damaged table");
    ok(strstr(err.text, "object table/") != NULL, "names its object");
    ok(access(path, F_OK) < 0, "a failed rebuild leaves no file");
    places[0].sha256[3] ^= 1;
    struct fmt_manifest_region kept = places[1];
    places[1].offset += 1;
    is_err(table_rebuild(path, store, &repo, &manifest, &table, &err), &err, ERR_CORRUPT, "is cut",
           "the table pack ends too early");
    places[1] = kept;
    places[1].number = 7;
    is_err(table_rebuild(path, store, &repo, &manifest, &table, &err), &err, ERR_MISSING,
           "region 1", "no such table pack");
    places[1] = places[0];
    is_err(table_rebuild(path, store, &repo, &manifest, &table, &err), &err, ERR_CORRUPT,
           "stands for region 1", "another region's table");
    places[1] = kept;
    packs[1].number = 5;
    is_err(table_rebuild(path, store, &repo, &manifest, &table, &err), &err, ERR_CORRUPT,
           "does not list", "a pack that the manifest does not know");
    manifest.chunk_size = 32768;
    is_err(table_rebuild(path, store, &repo, &manifest, &table, &err), &err, ERR_CORRUPT,
           "geometry", "another chunk size than the repository's");
}

int main(void)
{
    struct store *store;
    char url[128], command[128];
    if (!mkdtemp(dir))
        abort();
    memset(volume, 0x22, ID_LEN);
    memset(first, 0x33, ID_LEN);
    memset(second, 0x44, ID_LEN);
    (void)snprintf(path, sizeof(path), "%s/a.table", dir);
    (void)snprintf(rebuilt_path, sizeof(rebuilt_path), "%s/b.table", dir);
    (void)snprintf(url, sizeof(url), "file://%s/repo", dir);
    if (store_open(url, NULL, true, &store, &err) < 0) {
        printf("Bail out! %s\n", err.text);
        return 1;
    }
    test_create();
    test_damage();
    test_generations();
    test_rebuild(store);
    store_close(store);
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", dir);
    ok(system(command) == 0, "clean up");
    return done();
}
