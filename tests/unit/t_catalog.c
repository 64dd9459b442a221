/* The catalogue over a directory store: commit, find, list, damage. */
#include <sys/stat.h>

#include "tests/tap.h"
#include "tests/unit/record_fixture.h"

#include "agent/catalog.h"
#include "io/crypt.h"
#include "io/keyring.h"

static struct err err;
static char directory[] = "/tmp/tidemark-t_catalog-XXXXXX";
static struct store *store;
static struct repo repo;

static int commit(uint8_t id, const char *tag, const char *node)
{
    struct record *record = calloc(1, sizeof(*record));
    fixture_record(record, id, tag);
    (void)snprintf(record->node, sizeof(record->node), "%s", node);
    err_clear(&err);
    int rc = catalog_commit(store, &repo, record, &err);
    record_release(record);
    free(record);
    return rc;
}

/* rc of the search; on success the first byte of the id found. */
static int find(const char *cluster, const char *node, const char *what, size_t *ret_damaged)
{
    struct record *record = calloc(1, sizeof(*record));
    err_clear(&err);
    int rc = catalog_find(store, &repo, cluster, node, what, record, ret_damaged, &err);
    if (rc == 0) {
        rc = record->id[0];
        record_release(record);
    }
    free(record);
    return rc;
}

static void object_path(char path[512], const char *node, uint8_t id_byte)
{
    char name[STORE_NAME_MAX + 1];
    uint8_t id[ID_LEN];
    memset(id, id_byte, sizeof(id));
    repo_record_name(name, "main", node, id);
    (void)snprintf(path, 512, "%s/repo/%s", directory, name);
}

static void flip_bit(const char *path, long offset)
{
    (void)chmod(path, 0600);
    FILE *file = fopen(path, "r+");
    (void)fseek(file, offset, SEEK_SET);
    int c = fgetc(file);
    (void)fseek(file, offset, SEEK_SET);
    (void)fputc(c ^ 4, file);
    (void)fclose(file);
}

static void test_empty(void)
{
    is_err(find("main", "db1", "latest", NULL), &err, ERR_MISSING, "no snapshot 'latest'",
           "latest of an empty repository");
    ok(strstr(err.hint, "no snapshot of this cluster"), "the hint says that it is empty");
    is_err(find("", "", "before", NULL), &err, ERR_MISSING, "no snapshot 'before'", "a tag");
}

static void test_find(void)
{
    is_good(commit(0x10, "before-release", "db1"), &err, "commit");
    is_good(commit(0x11, "before-migration", "db1"), &err, "commit another");
    is_good(commit(0x12, "nightly", "db1"), &err, "and another");
    is_u64(find("main", "db1", "before-release", NULL), 0x10, "by tag");
    is_u64(find("main", "db1", "latest", NULL), 0x12, "latest is the newest instant");
    is_u64(find("", "", "latest", NULL), 0x12, "in the only cluster");
    is_u64(find("main", "db1", "10101010101010101010101010101010", NULL), 0x10, "by id");
    is_u64(find("main", "db1", "111111", NULL), 0x11, "by a prefix of six digits");
    is_err(find("main", "db1", "11111", NULL), &err, ERR_MISSING, "no snapshot '11111'",
           "five digits are no prefix");
    is_err(find("main", "db1", "10101010101010101010101010101011", NULL), &err, ERR_MISSING,
           "no snapshot", "an id that is not there");
    is_err(find("main", "db1", "before-relaese", NULL), &err, ERR_MISSING,
           "no snapshot 'before-relaese'", "a mistyped tag");
    is_str(err.hint, "the nearest tags are: before-release, before-migration, nightly",
           "names the nearest, best first");
    is_err(find("main", "other", "nightly", NULL), &err, ERR_MISSING, "no snapshot",
           "a tag of another node");
    is_err(find("else", NULL, "nightly", NULL), &err, ERR_MISSING, "no snapshot",
           "a tag of another cluster");
    char longest[200];
    memset(longest, 'x', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    is_err(find("main", "db1", longest, NULL), &err, ERR_MISSING, "no snapshot 'xxx",
           "a text too long for a tag");
}

/* The ids of snapshots say nothing about their order, nor do their times within a second. */
static void test_same_second(void)
{
    struct record *record = calloc(1, sizeof(*record));
    static const struct {
        uint8_t id;
        const char *tag;
        uint64_t tag_lsn;
    } cases[] = {{0x42, "s1", 0x1000001a0ULL},
                 {0x41, "s2", 0x2000001a0ULL},
                 {0x43, "s0", 0x1000001a0ULL - 0x10}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        fixture_record(record, cases[i].id, cases[i].tag);
        (void)snprintf(record->node, sizeof(record->node), "fast");
        record->captured_s = record->committed_s;
        record->tag_lsn = cases[i].tag_lsn;
        is_good(catalog_commit(store, &repo, record, &err), &err, "commit %s", cases[i].tag);
        record_release(record);
    }
    free(record);
    is_u64(find("main", "fast", "latest", NULL), 0x41,
           "of several in one second, latest is the one behind in the WAL");
}

static void test_ambiguous(void)
{
    is_err(commit(0x20, "nightly", "db1"), &err, ERR_BUSY,
           "tag 'nightly' is taken by snapshot 1212", "a tag in use is refused");
    is_good(commit(0x21, "nightly", "db2"), &err, "another node may use it");
    is_u64(find("main", "db2", "nightly", NULL), 0x21, "and it is found by node");
    is_err(find("main", "", "nightly", NULL), &err, ERR_USAGE, "ambiguous", "but not without");
    ok(strstr(err.text, "12121212121212121212121212121212 (main/db1)") &&
           strstr(err.text, "21212121212121212121212121212121 (main/db2)"),
       "both candidates are named");
    struct record *twin = calloc(1, sizeof(*twin));
    fixture_record(twin, 0x12, "twin");
    twin->id[ID_LEN - 1] = 0x13;
    is_good(catalog_commit(store, &repo, twin, &err), &err, "an id with the same beginning");
    is_err(find("main", "", "121212", NULL), &err, ERR_USAGE, "id '121212' is ambiguous",
           "makes a prefix ambiguous");
    is_good(catalog_commit(store, &repo, twin, &err) == -ERR_BUSY ? 0 : -1, &err,
            "the same record again finds its own tag taken");
    record_release(twin);
    free(twin);
    is_good(commit(0x30, "decade", "db1"), &err, "a tag of hex digits");
    is_good(commit(0xde, "other", "db1"), &err, "beside an id");
    is_u64(find("main", "db1", "decade", NULL), 0x30, "the tag wins");
    is_u64(find("main", "db1", "dededede", NULL), 0xde, "an id prefix that is no tag");
}

static int count_records(void *ctx, const struct record *record, struct err *e)
{
    (void)e;
    char *text = ctx;
    size_t len = strlen(text);
    (void)snprintf(text + len, 256 - len, "%s ", record->tag);
    return 0;
}

static int stop(void *ctx, const struct record *record, struct err *e)
{
    (void)record;
    ++*(int *)ctx;
    return err_set(e, ERR_CANCELLED, "enough");
}

static void test_list(void)
{
    char tags[256] = "";
    size_t damaged = 7;
    is_good(catalog_list(store, &repo, "main", count_records, tags, &damaged, &err), &err, "list");
    is_str(tags, "before-release before-migration nightly twin nightly decade other s0 s1 s2 ",
           "oldest first");
    is_u64(damaged, 0, "none is damaged");
    int calls = 0;
    is_err(catalog_list(store, &repo, "main", stop, &calls, NULL, &err), &err, ERR_CANCELLED,
           "enough", "a callback that stops");
    is_u64(calls, 1, "stops at once");
}

static void test_damage(void)
{
    char path[512], other[512], tags[256] = "";
    size_t damaged = 0;
    object_path(path, "db1", 0x10);
    flip_bit(path, 400);
    is_err(find("main", "db1", "before-release", &damaged), &err, ERR_CORRUPT,
           "no snapshot 'before-release' among the records that can be read",
           "a damaged record is no candidate");
    is_u64(damaged, 1, "it is counted");
    ok(strstr(err.hint, "1 snapshot record is damaged") && strstr(err.hint, "10101010"),
       "and named in the hint");
    is_err(find("main", "db1", "101010", NULL), &err, ERR_CORRUPT, "10101010",
           "asked for by id it is corrupt");
    is_good(catalog_list(store, &repo, "main", count_records, tags, &damaged, &err), &err,
            "list goes on");
    is_u64(damaged, 1, "and counts it");
    flip_bit(path, 400);
    is_u64(find("main", "db1", "before-release", NULL), 0x10, "intact again");
    object_path(other, "db1", 0x11);
    (void)rename(path, other);
    is_err(find("main", "db1", "11111111", NULL), &err, ERR_CORRUPT, "another snapshot",
           "a record under another's name");
    is_good(truncate(other, 100) ? -1 : 0, &err, "cut");
    is_err(find("main", "db1", "11111111", NULL), &err, ERR_CORRUPT, "11111111", "a cut record");
    (void)unlink(other);
}

static void test_withdrawn(void)
{
    uint8_t id[ID_LEN];
    struct record *record = calloc(1, sizeof(*record));
    memset(id, 0x12, sizeof(id));
    is_good(catalog_read(store, &repo, "main", "db1", id, record, &err), &err, "read by id");
    record_release(record);
    is_good(store_put(store, "withdrawn/12121212121212121212121212121212", "x", 1, &err), &err,
            "withdraw");
    is_err(catalog_read(store, &repo, "main", "db1", id, record, &err), &err, ERR_MISSING,
           "withdrawn", "a withdrawn snapshot is gone");
    is_err(find("main", "db1", "nightly", NULL), &err, ERR_MISSING, "no snapshot", "by tag too");
    is_good(commit(0x40, "nightly", "db1"), &err, "its tag is free");
    free(record);
}

/* Enough for several threads to read them. */
static void test_many(void)
{
    char path[512], tag[32];
    size_t damaged = 0;
    bool good = true;
    for (unsigned i = 0; i < 48; i++) {
        (void)snprintf(tag, sizeof(tag), "many-%u", i);
        good = good && commit((uint8_t)(0x80 + i), tag, "db9") == 0;
    }
    ok(good, "48 snapshots of another node");
    is_u64(find("main", "db9", "many-0", &damaged), 0x80, "the first");
    is_u64(find("main", "db9", "many-47", &damaged), 0x80 + 47, "the last");
    is_u64(find("main", "db9", "latest", &damaged), 0x80 + 47, "the newest");
    for (unsigned i = 5; i < 40; i += 7) {
        object_path(path, "db9", (uint8_t)(0x80 + i));
        flip_bit(path, 400);
    }
    is_err(find("main", "db9", "many-12", &damaged), &err, ERR_CORRUPT, "no snapshot 'many-12'",
           "one of five that are damaged");
    is_u64(damaged, 5, "which are counted");
    ok(strstr(err.hint, "85858585") != NULL, "the first of them is named, whoever read it");
    is_u64(find("main", "db9", "many-13", &damaged), 0x80 + 13, "its neighbour");
    for (unsigned i = 0; i < 48; i++) {
        object_path(path, "db9", (uint8_t)(0x80 + i));
        (void)unlink(path);
    }
}

static void test_clusters(void)
{
    struct record *record = calloc(1, sizeof(*record));
    fixture_record(record, 0x50, "nightly");
    (void)snprintf(record->cluster, sizeof(record->cluster), "second");
    is_good(catalog_commit(store, &repo, record, &err), &err, "a second cluster");
    is_err(find("", "", "latest", NULL), &err, ERR_USAGE, "several clusters: main, second",
           "no cluster is not enough then");
    is_u64(find("", "", "50505050505050505050505050505050", NULL), 0x50, "an id is");
    is_u64(find("second", "", "latest", NULL), 0x50, "a cluster too");
    record->tag[0] = '\0';
    is_err(catalog_commit(store, &repo, record, &err), &err, ERR_INTERNAL, "tag",
           "a bad record is never written");
    record_release(record);
    free(record);
}

/* A manifest of one region, put under its name, and the record that seals it. */
static void put_manifest(struct record *record, struct fmt_manifest *manifest)
{
    struct fmt_manifest_region own = {
        .len = (uint32_t)fmt_region_len(repo.region_size / repo.chunk_size, 0),
        .offset = FMT_HEADER_LEN,
    };
    *manifest = (struct fmt_manifest){.size = 64 * MIB,
                                      .chunk_size = repo.chunk_size,
                                      .region_size = repo.region_size,
                                      .region_count = 1,
                                      .logical_sector = 512,
                                      .physical_sector = 512,
                                      .fs_type = "ext4",
                                      .regions = &own};
    memcpy(own.snapshot, record->id, ID_LEN);
    memcpy(manifest->volume, record->volumes[0].id, ID_LEN);
    memcpy(manifest->snapshot, record->id, ID_LEN);
    size_t len = fmt_manifest_len(1, 0);
    free_mem uint8_t *object = calloc(1, len);
    char name[STORE_NAME_MAX + 1];
    fmt_manifest_encode(manifest, repo.id, object);
    repo_manifest_name(name, manifest->volume, manifest->snapshot);
    is_good(store_put(store, name, object, len, &err), &err, "put a manifest");
    sha256(object, len, record->volumes[0].manifest_sha256);
    record->volumes[0].size = 64 * MIB;
}

static void test_manifest(void)
{
    struct record *record = calloc(1, sizeof(*record));
    struct fmt_manifest manifest, got;
    void *buf = NULL;
    fixture_record(record, 0x60, "manifest");
    put_manifest(record, &manifest);
    is_good(catalog_manifest(store, &repo, record, 0, &buf, &got, &err), &err, "read it");
    ok(buf && got.size == 64 * MIB && got.region_count == 1, "it is what was written");
    free(buf);
    record->volumes[0].size = 65 * MIB;
    is_err(catalog_manifest(store, &repo, record, 0, &buf, &got, &err), &err, ERR_CORRUPT,
           "geometry", "a volume of another size");
    record->volumes[0].size = 64 * MIB;
    record->volumes[0].manifest_sha256[3] ^= 1;
    is_err(catalog_manifest(store, &repo, record, 0, &buf, &got, &err), &err, ERR_CORRUPT,
           "SHA-256", "another digest");
    is_err(catalog_manifest(store, &repo, record, 1, &buf, &got, &err), &err, ERR_MISSING,
           "volume/", "a manifest that is missing");
    record_release(record);
    free(record);
}

/* Each chunk of a small volume in a pack of another snapshot, and its table in yet another's: no
 * manifest of it can be longer. */
static void test_longest_manifest(void)
{
    enum { CHUNKS = 16 };
    char url[600], name[STORE_NAME_MAX + 1];
    struct store *sealed;
    struct repo other;
    struct key_secret secret;
    struct record *record = calloc(1, sizeof(*record));
    struct fmt_manifest_region region = {.len = (uint32_t)fmt_region_len(CHUNKS, CHUNKS),
                                         .offset = FMT_HEADER_LEN};
    struct fmt_manifest_pack packs[CHUNKS] = {0};
    struct fmt_manifest_origin origins[CHUNKS + 1] = {0};
    struct fmt_manifest manifest = {.size = 1 << 20,
                                    .chunk_size = 64 << 10,
                                    .region_size = FMT_REGION_SIZE,
                                    .region_count = 1,
                                    .pack_count = CHUNKS,
                                    .origin_count = CHUNKS + 1,
                                    .regions = &region,
                                    .packs = packs,
                                    .origins = origins};
    struct fmt_manifest got;
    void *buf = NULL;
    (void)snprintf(url, sizeof(url), "file://%s/sealed", directory);
    is_good(store_open(url, NULL, true, &sealed, &err), &err, "another store");
    is_good(key_secret_random(&secret, &err), &err, "a secret");
    is_good(repo_create_sealed(sealed, 64 << 10, &secret, &other, &err), &err, "encrypted");
    fixture_record(record, 0x61, "longest");
    memcpy(manifest.volume, record->volumes[0].id, ID_LEN);
    memcpy(manifest.snapshot, record->id, ID_LEN);
    for (uint8_t i = 0; i <= CHUNKS; i++) {
        origins[i].snapshot[0] = i + 1;
        origins[i].key_id = origins[i].salt[0] = 1;
        uint8_t *snapshot = i < CHUNKS ? packs[i].snapshot : region.snapshot;
        snapshot[0] = i + 1;
        if (i < CHUNKS)
            packs[i].stored_len = FMT_HEADER_LEN + FMT_TAG_LEN + (packs[i].live_len = 1000);
    }
    uint8_t object[4096];
    size_t len = fmt_manifest_len(1, CHUNKS) + sizeof(origins);
    fmt_manifest_encode(&manifest, other.id, object);
    repo_manifest_name(name, manifest.volume, manifest.snapshot);
    is_good(store_put(sealed, name, object, len, &err), &err, "the longest manifest");
    sha256(object, len, record->volumes[0].manifest_sha256);
    record->volumes[0].size = manifest.size;
    is_good(catalog_manifest(sealed, &other, record, 0, &buf, &got, &err), &err, "is read");
    is_u64(got.origin_count, CHUNKS + 1, "with all its origins");
    free(buf);
    record_release(record);
    free(record);
    store_close(sealed);
}

int main(void)
{
    char url[600], command[600];
    if (!mkdtemp(directory))
        return 1;
    (void)snprintf(url, sizeof(url), "file://%s/repo", directory);
    is_good(store_open(url, NULL, true, &store, &err), &err, "a store");
    is_good(repo_create(store, 32 << 10, &repo, &err), &err, "a repository");
    test_empty();
    test_find();
    test_same_second();
    test_ambiguous();
    test_list();
    test_damage();
    test_withdrawn();
    test_many();
    test_clusters();
    test_manifest();
    test_longest_manifest();
    store_close(store);
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    return system(command) != 0 || done();
}
