/* Writes the golden objects of the format: a small repository with two snapshots of one volume, a
 * device marker, and objects that must be refused. Everything is fixed: the same bytes each time.
 *
 *     tool_golden DIR              DIR/repo/…, DIR/marker, DIR/bad/<name>
 *     tool_golden DIR --sealed     the same repository, encrypted, and its key files DIR/key and
 *                                  DIR/wal.key: with other salts, so other bytes, each time
 *
 * tests/golden/t_golden.py compares its output with the committed files. */
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <sys/stat.h>

#include "io/codec.h"
#include "io/crypt.h"
#include "io/hash.h"
#include "io/seal.h"
#include "tests/unit/record_fixture.h"

enum {
    CHUNK = 65536,
    REGION_CHUNKS = FMT_REGION_SIZE / CHUNK,
    LAST_LEN = 1536,
    VOLUME_SIZE = FMT_REGION_SIZE + CHUNK + LAST_LEN,
    OBJECT_MAX = 1 << 20,
};

static struct err err;
static const char *out_dir;
static struct repo repo = {
    .chunk_size = CHUNK,
    .region_size = FMT_REGION_SIZE,
    .digest_seed = 0x0123456789abcdef,
    .created_s = 1764000000,
};
static uint8_t volume[ID_LEN], first[ID_LEN], second[ID_LEN];
static struct store *store;
static struct seal *cipher; /* NULL: plain */
static struct fmt_manifest_origin origins[2];

static void must(int rc)
{
    if (rc == 0)
        return;
    fprintf(stderr, "tool_golden: %s\n", err.text);
    exit(1);
}

/* The plain bytes of a chunk of version 1 or 2; t_golden.py has the same rule. */
static void fill_chunk(uint8_t *to, size_t len, uint32_t version)
{
    for (size_t i = 0; i < len; i++)
        to[i] = (uint8_t)((i / 16 * 37 + i % 16 * version) % 253);
}

static void fill_noise(uint8_t *to, size_t len)
{
    uint32_t state = 1;
    for (size_t i = 0; i < len; i++) {
        state = state * 1664525 + 1013904223;
        to[i] = (uint8_t)(state >> 24);
    }
}

/* --- packs, tables, manifests ----------------------------------------------------------------- */

struct pack {
    uint8_t bytes[OBJECT_MAX];
    size_t len;
    size_t live_len;
};

static const struct fmt_manifest_origin *origin_of(const uint8_t snapshot[ID_LEN])
{
    return &origins[memcmp(snapshot, first, ID_LEN) != 0];
}

/* Seals what has been put at this place of an object; returns the bytes that it adds. */
static size_t seal_at(const char *name, const uint8_t snapshot[ID_LEN], uint8_t *object, size_t at,
                      size_t len)
{
    const struct fmt_manifest_origin *origin = origin_of(snapshot);
    if (!cipher)
        return 0;
    must(seal_begin(cipher, store_keys(store), FMT_ROLE_DATA, origin->key_id, origin->salt, name,
                    &err));
    seal_part(cipher, at, object + at, len);
    return FMT_TAG_LEN;
}

/* pack_index is the pack's number as well. */
static struct fmt_entry add_chunk(struct pack *pack, const uint8_t snapshot[ID_LEN],
                                  uint32_t pack_index, const uint8_t *plain, size_t len)
{
    char name[STORE_NAME_MAX + 1];
    struct fmt_entry entry = {.pack = pack_index, .offset = (uint32_t)pack->len};
    uint8_t *to = pack->bytes + pack->len;
    size_t stored = codec_compress(plain, len, to, len, 2);
    if (stored == 0) {
        memcpy(to, plain, len);
        entry.len_flags = (uint32_t)len | (uint32_t)FMT_RAW << 24;
        stored = len;
    } else {
        entry.len_flags = (uint32_t)stored;
    }
    hash_xxh3_128(plain, len, repo.digest_seed, entry.digest);
    repo_pack_name(name, volume, snapshot, pack_index);
    pack->live_len += stored;
    pack->len += stored + seal_at(name, snapshot, pack->bytes, pack->len, stored);
    return entry;
}

static void put_with_header(enum fmt_kind kind, const uint8_t snapshot[ID_LEN], uint32_t number,
                            uint8_t *object, size_t len)
{
    char name[STORE_NAME_MAX + 1];
    struct fmt_header header = {.kind = kind, .body_len = len - FMT_HEADER_LEN, .number = number};
    memcpy(header.repository, repo.id, ID_LEN);
    memcpy(header.volume, volume, ID_LEN);
    memcpy(header.snapshot, snapshot, ID_LEN);
    header.key_id = origin_of(snapshot)->key_id;
    memcpy(header.salt, origin_of(snapshot)->salt, FMT_SALT_LEN);
    fmt_header_encode(&header, object);
    if (kind == FMT_PACK)
        repo_pack_name(name, volume, snapshot, number);
    else
        repo_table_name(name, volume, snapshot, number);
    must(store_put(store, name, object, len, &err));
}

static struct fmt_entry entries[REGION_CHUNKS];
static struct fmt_manifest_region places[2];
static struct fmt_manifest_pack manifest_packs[3];

static size_t add_region(uint8_t *object, size_t at, const uint8_t snapshot[ID_LEN],
                         const struct fmt_region *region)
{
    struct fmt_manifest_region *place = &places[region->region_index];
    size_t len = fmt_region_len(region->chunk_count, region->pack_count);
    fmt_region_encode(region, object + at);
    *place = (struct fmt_manifest_region){.offset = (uint32_t)at, .len = (uint32_t)len};
    memcpy(place->snapshot, snapshot, ID_LEN);
    sha256(object + at, len, place->sha256);
    char name[STORE_NAME_MAX + 1];
    repo_table_name(name, volume, snapshot, 0);
    return at + len + seal_at(name, snapshot, object, at, len);
}

static struct fmt_region region_of(uint32_t index, uint32_t chunks, uint32_t last_len,
                                   const struct fmt_pack_ref *refs, uint32_t ref_count)
{
    return (struct fmt_region){
        .region_index = index,
        .chunk_size = CHUNK,
        .chunk_count = chunks,
        .pack_count = ref_count,
        .last_chunk_len = last_len,
        .packs = refs,
        .entries = entries,
    };
}

static void clear_entries(void)
{
    for (size_t i = 0; i < REGION_CHUNKS; i++)
        entries[i] = (struct fmt_entry){.len_flags = (uint32_t)FMT_FREE << 24};
}

static struct fmt_pack_ref ref_of(const uint8_t snapshot[ID_LEN], uint32_t number)
{
    struct fmt_pack_ref ref = {.number = number};
    memcpy(ref.snapshot, snapshot, ID_LEN);
    return ref;
}

static void put_manifest(const uint8_t snapshot[ID_LEN], const uint8_t parent[ID_LEN],
                         uint32_t pack_count, uint8_t ret_sha256[FMT_SHA256_LEN])
{
    static _Alignas(8) uint8_t object[4096];
    char name[STORE_NAME_MAX + 1];
    struct fmt_manifest manifest = {
        .size = VOLUME_SIZE,
        .chunk_size = CHUNK,
        .region_size = FMT_REGION_SIZE,
        .region_count = 2,
        .pack_count = pack_count,
        .logical_sector = 512,
        .physical_sector = 4096,
        .fs_type = "ext4",
        .fs_uuid = "3e6be9de-8139-11d1-9106-a43f08d823a6",
        .fs_label = "pgdata",
        .regions = places,
        .packs = manifest_packs,
        .origins = cipher ? origins : NULL,
        .origin_count = cipher ? (pack_count > 2 ? 2 : 1) : 0,
    };
    memcpy(manifest.volume, volume, ID_LEN);
    memcpy(manifest.snapshot, snapshot, ID_LEN);
    memcpy(manifest.parent, parent, ID_LEN);
    fmt_manifest_encode(&manifest, repo.id, object);
    size_t len =
        fmt_manifest_len(2, pack_count) + manifest.origin_count * (size_t)FMT_MANIFEST_ORIGIN_LEN;
    repo_manifest_name(name, volume, snapshot);
    must(store_put(store, name, object, len, &err));
    sha256(object, len, ret_sha256);
}

/* What is left of a writer that died: a mark without a record. */
static void put_mark(void)
{
    static const char text[] =
        "{\"by\":\"db1\",\"format\":1,\"id\":\"33333333333333333333333333333333\","
        "\"why\":\"abandoned\",\"written_s\":1764000000}";
    uint8_t object[FMT_HEADER_LEN + sizeof(text) - 1], id[ID_LEN];
    memset(id, 0x33, sizeof(id));
    fmt_json_encode(FMT_JSON_MARK, repo.id, id, text, sizeof(text) - 1, object);
    must(store_put(store, "withdrawn/33333333333333333333333333333333", object, sizeof(object),
                   &err));
}

static void put_record(const uint8_t snapshot[ID_LEN], const uint8_t parent[ID_LEN],
                       const char *tag, const uint8_t manifest_sha256[FMT_SHA256_LEN])
{
    static struct record record;
    char name[STORE_NAME_MAX + 1];
    fixture_record(&record, snapshot[0], tag);
    memcpy(record.id, snapshot, ID_LEN);
    memcpy(record.parent, parent, ID_LEN);
    memcpy(record.volumes[0].id, volume, ID_LEN);
    memcpy(record.volumes[0].manifest_sha256, manifest_sha256, FMT_SHA256_LEN);
    record.volumes[0].size = VOLUME_SIZE;
    record.volume_count = 1;
    free_json json_t *json = record_to_json(&record);
    must(record_check(&record, &err));
    free_mem char *text = json_text(json);
    size_t len = strlen(text);
    free_mem uint8_t *object = malloc(FMT_HEADER_LEN + len);
    fmt_json_encode(FMT_JSON_RECORD, repo.id, snapshot, text, len, object);
    repo_record_name(name, "main", "db1", snapshot);
    must(store_put(store, name, object, FMT_HEADER_LEN + len, &err));
    record_release(&record);
}

/* Region 0: chunk 0 LZ4, 1 zero, 3 LZ4, others free. Region 1: chunk 0 LZ4, chunk 1 short, raw. */
static void put_first(void)
{
    static struct pack packs[2];
    static uint8_t tables[OBJECT_MAX], plain[CHUNK];
    static const uint8_t none[ID_LEN];
    uint8_t digest[FMT_SHA256_LEN];
    struct fmt_pack_ref refs[2] = {ref_of(first, 0), ref_of(first, 1)};
    packs[0].len = packs[1].len = FMT_HEADER_LEN;
    clear_entries();
    fill_chunk(plain, CHUNK, 1);
    entries[0] = add_chunk(&packs[0], first, 0, plain, CHUNK);
    entries[1] = (struct fmt_entry){.len_flags = (uint32_t)FMT_ZERO << 24};
    fill_chunk(plain, CHUNK, 2);
    entries[3] = add_chunk(&packs[0], first, 0, plain, CHUNK);
    struct fmt_region region = region_of(0, REGION_CHUNKS, CHUNK, refs, 1);
    size_t len = add_region(tables, FMT_HEADER_LEN, first, &region);
    fill_chunk(plain, CHUNK, 3);
    entries[0] = add_chunk(&packs[0], first, 0, plain, CHUNK); /* a pack serves several regions */
    fill_noise(plain, LAST_LEN);
    entries[1] = add_chunk(&packs[1], first, 1, plain, LAST_LEN);
    region = region_of(1, 2, LAST_LEN, refs, 2);
    len = add_region(tables, len, first, &region);
    for (uint32_t i = 0; i < 2; i++) {
        put_with_header(FMT_PACK, first, i, packs[i].bytes, packs[i].len);
        manifest_packs[i] = (struct fmt_manifest_pack){
            .number = i, .stored_len = packs[i].len, .live_len = packs[i].live_len};
        memcpy(manifest_packs[i].snapshot, first, ID_LEN);
    }
    put_with_header(FMT_TABLES, first, 0, tables, len);
    put_manifest(first, none, 2, digest);
    put_record(first, none, "first", digest);
}

/* Chunk 0 of region 0 is zero now, chunk 3 has new bytes; region 1 keeps its table. */
static void put_second(void)
{
    static struct pack pack;
    static uint8_t tables[OBJECT_MAX], plain[CHUNK];
    uint8_t digest[FMT_SHA256_LEN];
    struct fmt_pack_ref refs[1] = {ref_of(second, 0)};
    uint64_t dead = 0;
    pack.len = FMT_HEADER_LEN;
    clear_entries();
    entries[0] = entries[1] = (struct fmt_entry){.len_flags = (uint32_t)FMT_ZERO << 24};
    fill_chunk(plain, CHUNK, 4);
    entries[3] = add_chunk(&pack, second, 0, plain, CHUNK);
    struct fmt_region region = region_of(0, REGION_CHUNKS, CHUNK, refs, 1);
    size_t len = add_region(tables, FMT_HEADER_LEN, second, &region);
    put_with_header(FMT_PACK, second, 0, pack.bytes, pack.len);
    put_with_header(FMT_TABLES, second, 0, tables, len);
    for (uint32_t i = 1; i <= 2; i++) { /* the first snapshot's chunks 0 and 3 are dead now */
        uint8_t packed[CHUNK];
        fill_chunk(plain, CHUNK, i);
        dead += codec_compress(plain, CHUNK, packed, CHUNK, 2);
    }
    manifest_packs[0].live_len -= dead;
    manifest_packs[2] =
        (struct fmt_manifest_pack){.stored_len = pack.len, .live_len = pack.live_len};
    memcpy(manifest_packs[2].snapshot, second, ID_LEN);
    put_manifest(second, first, 3, digest);
    put_record(second, first, "second", digest);
}

/* --- WAL -------------------------------------------------------------------------------------- */

enum { WAL_RAW_LEN = 2 * FMT_WAL_BLOCK_SIZE + 300 };

/* A segment (its last block does not shrink) or a history file. */
static size_t make_wal(const char *file, uint32_t timeline, const void *raw, size_t raw_len,
                       uint8_t *object)
{
    struct fmt_wal wal = {.raw_len = raw_len, .system_id = 7400000000000000001, .cluster = "main"};
    wal.timeline = timeline;
    memcpy(wal.name, file, strlen(file));
    sha256(raw, raw_len, wal.raw_sha256);
    return fmt_wal_encode(&wal, repo.id, raw, object);
}

static size_t make_segment(uint8_t *object)
{
    static uint8_t raw[WAL_RAW_LEN];
    fill_chunk(raw, sizeof(raw), 5);
    fill_noise(raw + 2 * (size_t)FMT_WAL_BLOCK_SIZE, 300);
    return make_wal("000000010000000000000003", 1, raw, sizeof(raw), object);
}

static void put_wal(void)
{
    static const char history[] = "1\t0/3000000\tno recovery target specified\n";
    static uint8_t object[OBJECT_MAX];
    char name[STORE_NAME_MAX + 1];
    size_t len = make_segment(object);
    repo_wal_name(name, "main", 7400000000000000001, 1, "000000010000000000000003");
    must(store_put(store, name, object, len, &err));
    len = make_wal("00000002.history", 2, history, sizeof(history) - 1, object);
    repo_wal_name(name, "main", 7400000000000000001, 2, "00000002.history");
    must(store_put(store, name, object, len, &err));
}

/* --- objects that must be refused ------------------------------------------------------------- */

static void write_file(const char *name, const void *bytes, size_t len)
{
    char path[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/%s", out_dir, name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, len, file) != len || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

enum base { BASE_REPO, BASE_MANIFEST, BASE_TABLE, BASE_JSON, BASE_WAL, BASE_MARKER };
enum repair {
    SEAL_NONE,   /* the damage is there for a checksum to find */
    SEAL_HEADER, /* header checksum put right */
    SEAL_BODY,   /* digest of the body and header checksum put right */
    SEAL_REGION, /* checksum of the region table's header put right */
    SEAL_WAL,    /* checksum of the WAL object's fixed part put right */
    SEAL_MARKER,
};

static const struct bad_case {
    const char *name;
    enum base base;
    enum repair seal;
    size_t at; /* one byte is changed … */
    uint8_t value;
    size_t cut; /* … and so many bytes are cut from the end */
} bad_cases[] = {
    {"header-magic", BASE_REPO, SEAL_NONE, 0, 'X', 0},
    {"header-checksum", BASE_REPO, SEAL_NONE, 176, 1, 0},
    {"header-bit", BASE_REPO, SEAL_NONE, 90, 0x55, 0},
    {"header-cut", BASE_REPO, SEAL_NONE, 0, 'T', 100},
    {"header-version", BASE_REPO, SEAL_HEADER, 8, 2, 0},
    {"header-length", BASE_REPO, SEAL_HEADER, 12, 200, 0},
    {"header-key", BASE_REPO, SEAL_HEADER, 16, 1, 0},
    {"header-flags", BASE_REPO, SEAL_HEADER, 20, 1, 0},
    {"header-reserved", BASE_REPO, SEAL_HEADER, 160, 1, 0},
    {"header-volume", BASE_REPO, SEAL_HEADER, 48, 1, 0},
    {"repo-bit", BASE_REPO, SEAL_NONE, 200, 1, 0},
    {"repo-cut", BASE_REPO, SEAL_NONE, 0, 'T', 1},
    {"repo-chunk-size", BASE_REPO, SEAL_BODY, 194, 2, 0},
    {"repo-cipher", BASE_REPO, SEAL_BODY, 216, 2, 0},
    {"manifest-bit", BASE_MANIFEST, SEAL_NONE, 300, 1, 0},
    {"manifest-cut", BASE_MANIFEST, SEAL_NONE, 0, 'T', 40},
    {"manifest-size", BASE_MANIFEST, SEAL_BODY, 192, 1, 0},
    {"manifest-regions", BASE_MANIFEST, SEAL_BODY, 208, 2, 0},
    {"manifest-label", BASE_MANIFEST, SEAL_BODY, 192 + 104 + 63, 'x', 0},
    {"manifest-place", BASE_MANIFEST, SEAL_BODY, 448 + 20, 1, 0},
    {"manifest-order", BASE_MANIFEST, SEAL_BODY, 512 + 16, 1, 0},
    {"manifest-live", BASE_MANIFEST, SEAL_BODY, 512 + 32 + 3, 1, 0},
    {"table-magic", BASE_TABLE, SEAL_NONE, 192, 'X', 0},
    {"table-checksum", BASE_TABLE, SEAL_NONE, 192 + 24, 9, 0},
    {"table-version", BASE_TABLE, SEAL_REGION, 192 + 8, 2, 0},
    {"table-flags", BASE_TABLE, SEAL_REGION, 192 + 36, 1, 0},
    {"table-chunks", BASE_TABLE, SEAL_REGION, 192 + 26, 1, 0},
    {"table-cut", BASE_TABLE, SEAL_NONE, 0, 'T', 8},
    {"entry-flags", BASE_TABLE, SEAL_NONE, 280 + 27, 0x10, 0},
    {"entry-pack", BASE_TABLE, SEAL_NONE, 280 + 16, 1, 0},
    {"entry-offset", BASE_TABLE, SEAL_NONE, 280 + 20, 0, 0},
    {"entry-long", BASE_TABLE, SEAL_NONE, 280 + 26, 1, 0},
    {"entry-zero-and-free", BASE_TABLE, SEAL_NONE, 280 + 32 + 27, 3, 0},
    {"json-bit", BASE_JSON, SEAL_NONE, 196, 'x', 0},
    {"json-kind", BASE_JSON, SEAL_HEADER, 80, 9, 0},
    {"json-text", BASE_JSON, SEAL_BODY, 192, '[', 0},
    {"wal-bit", BASE_WAL, SEAL_NONE, 400, 0xff, 0},
    {"wal-cut", BASE_WAL, SEAL_NONE, 0, 'T', 1},
    {"wal-name", BASE_WAL, SEAL_NONE, 220, '9', 0},
    {"wal-digest", BASE_WAL, SEAL_WAL, 90, 0x55, 0},
    {"wal-block-size", BASE_WAL, SEAL_WAL, 192 + 20, 1, 0},
    {"wal-block-length", BASE_WAL, SEAL_NONE, 386, 0x7f, 0},
    {"marker-bit", BASE_MARKER, SEAL_NONE, 20, 1, 0},
    {"marker-version", BASE_MARKER, SEAL_MARKER, 8, 2, 0},
};

static size_t make_base(enum base base, uint8_t *object)
{
    static const char json[] = "{\"state\":\"planned\"}";
    struct fmt_pack_ref ref = ref_of(first, 0);
    struct fmt_header header = {.kind = FMT_TABLES};
    switch (base) {
    case BASE_REPO:
        fmt_repo_encode(&repo, object);
        return FMT_REPO_LEN;
    case BASE_MANIFEST: {
        struct fmt_manifest manifest = {.size = CHUNK,
                                        .chunk_size = CHUNK,
                                        .region_size = FMT_REGION_SIZE,
                                        .region_count = 1,
                                        .pack_count = 2,
                                        .regions = places,
                                        .packs = manifest_packs};
        memcpy(manifest.volume, volume, ID_LEN);
        memcpy(manifest.snapshot, first, ID_LEN);
        places[0].len = (uint32_t)fmt_region_len(1, 1);
        fmt_manifest_encode(&manifest, repo.id, object);
        return fmt_manifest_len(1, 2);
    }
    case BASE_TABLE: {
        clear_entries();
        entries[0] = (struct fmt_entry){.offset = FMT_HEADER_LEN, .len_flags = 1000};
        struct fmt_region region = region_of(0, 2, LAST_LEN, &ref, 1);
        size_t len = fmt_region_len(2, 1);
        fmt_region_encode(&region, object + FMT_HEADER_LEN);
        header.body_len = len;
        memcpy(header.repository, repo.id, ID_LEN);
        memcpy(header.volume, volume, ID_LEN);
        memcpy(header.snapshot, first, ID_LEN);
        fmt_header_encode(&header, object);
        return FMT_HEADER_LEN + len;
    }
    case BASE_JSON:
        fmt_json_encode(FMT_JSON_JOB, repo.id, first, json, sizeof(json) - 1, object);
        return FMT_HEADER_LEN + sizeof(json) - 1;
    case BASE_WAL:
        return make_segment(object);
    case BASE_MARKER:
        fmt_marker_encode(first, VOLUME_SIZE, object);
        return FMT_MARKER_LEN;
    }
    abort();
}

static void reseal(enum repair seal, uint8_t *object, size_t len)
{
    switch (seal) {
    case SEAL_NONE:
        return;
    case SEAL_BODY:
        sha256(object + FMT_HEADER_LEN, len - FMT_HEADER_LEN, object + 88);
        hash_xxh3_128(object, 176, 0, object + 176);
        return;
    case SEAL_HEADER:
        hash_xxh3_128(object, 176, 0, object + 176);
        return;
    case SEAL_REGION:
        hash_xxh3_128(object + FMT_HEADER_LEN, 48, 0, object + FMT_HEADER_LEN + 48);
        return;
    case SEAL_WAL:
        hash_xxh3_128(object, 176, 0, object + 176);
        hash_xxh3_128(object, 368, 0, object + 368);
        return;
    case SEAL_MARKER:
        hash_xxh3_128(object, 4080, 0, object + 4080);
        return;
    }
}

static void write_bad(const struct bad_case *bad)
{
    static _Alignas(8) uint8_t object[OBJECT_MAX];
    char name[64];
    size_t len = make_base(bad->base, object);
    object[bad->at] = bad->value;
    reseal(bad->seal, object, len);
    (void)snprintf(name, sizeof(name), "bad/%s", bad->name);
    write_file(name, object, len - bad->cut);
}

static void make_directory(const char *name)
{
    char path[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/%s", out_dir, name);
    if (mkdir(path, 0755) < 0) {
        perror(path);
        exit(1);
    }
}

static void write_key_file(const char *name, const struct key_secret *secret)
{
    char text[KEY_FILE_TEXT_MAX];
    key_secret_print(secret, text);
    write_file(name, text, strlen(text));
}

static void make_keys(void)
{
    struct key_secret secret, wal;
    must(key_secret_random(&secret, &err));
    must(keyring_create(store, &repo, &secret, &err));
    write_key_file("key", &secret);
    key_secret_wal(&secret, &wal);
    write_key_file("wal.key", &wal);
    cipher = seal_new();
    for (size_t i = 0; i < ARRAY_LEN(origins); i++) {
        struct seal_origin origin;
        must(seal_origin_new(store_keys(store), FMT_ROLE_DATA, &origin, &err));
        origins[i].key_id = origin.key_id;
        memcpy(origins[i].salt, origin.salt, FMT_SALT_LEN);
        memcpy(origins[i].snapshot, i ? second : first, ID_LEN);
    }
}

static void put_repository(bool sealed)
{
    char url[PATH_MAX];
    uint8_t object[FMT_REPO_LEN];
    (void)snprintf(url, sizeof(url), "file://%s/repo", out_dir);
    must(store_open(url, NULL, true, &store, &err));
    repo.cipher = sealed ? REPO_AES_256_GCM : REPO_PLAIN;
    fmt_repo_encode(&repo, object);
    must(store_put(store, "tidemark.repo", object, sizeof(object), &err));
    must(store_put(store, "tidemark.repo.copy", object, sizeof(object), &err));
    if (sealed)
        make_keys();
    put_first();
    put_second();
    put_mark();
    put_wal();
    seal_free(cipher);
    store_close(store);
}

int main(int argc, char **argv)
{
    uint8_t marker[FMT_MARKER_LEN];
    bool sealed = argc == 3 && strcmp(argv[2], "--sealed") == 0;
    if (argc != 2 && !sealed)
        return 2;
    out_dir = argv[1];
    memset(repo.id, 0x10, ID_LEN);
    memset(volume, 0x20, ID_LEN);
    memset(first, 0x31, ID_LEN);
    memset(second, 0x32, ID_LEN);
    put_repository(sealed);
    if (sealed)
        return 0;
    make_directory("bad");
    fmt_marker_encode(first, VOLUME_SIZE, marker);
    write_file("marker", marker, sizeof(marker));
    for (size_t i = 0; i < ARRAY_LEN(bad_cases); i++)
        write_bad(&bad_cases[i]);
    return 0;
}
