/* The repository format: round trips, limits, and each refusal. Damage that a checksum would catch
 * first is made with the checksums put right again, so that the check behind it is reached. */
#include "io/format.h"

#include "io/crypt.h"
#include "io/hash.h"
#include "tests/tap.h"

static struct err err;
static uint8_t repository[ID_LEN], volume[ID_LEN], snapshot[ID_LEN], older[ID_LEN];

static void reseal_header(uint8_t *object)
{
    hash_xxh3_128(object, 176, 0, object + 176);
}

static void reseal_body(uint8_t *object, size_t len)
{
    sha256(object + FMT_HEADER_LEN, len - FMT_HEADER_LEN, object + 88);
    reseal_header(object);
}

/* --- object header ---------------------------------------------------------------------------- */

static struct fmt_header pack_header(void)
{
    struct fmt_header header = {.kind = FMT_PACK, .body_len = 12345, .number = 7};
    memcpy(header.repository, repository, ID_LEN);
    memcpy(header.volume, volume, ID_LEN);
    memcpy(header.snapshot, snapshot, ID_LEN);
    return header;
}

static void test_header(void)
{
    struct fmt_header header = pack_header(), got;
    uint8_t bytes[FMT_HEADER_LEN];
    fmt_header_encode(&header, bytes);
    is_good(fmt_header_decode(bytes, sizeof(bytes), &got, &err), &err, "header decodes");
    ok(memcmp(&got, &header, sizeof(got)) == 0, "header is the same");
    is_good(fmt_header_expect(bytes, sizeof(bytes), FMT_PACK, repository, &got, &err), &err,
            "it is a pack of this repository");
    is_err(fmt_header_expect(bytes, sizeof(bytes), FMT_TABLES, repository, &got, &err), &err,
           ERR_CORRUPT, "a pack where a table pack was expected", "it is no table pack");
    is_err(fmt_header_expect(bytes, sizeof(bytes), FMT_PACK, volume, &got, &err), &err, ERR_CORRUPT,
           "another repository", "nor of another repository");
    is_err(fmt_header_decode(bytes, sizeof(bytes) - 1, &got, &err), &err, ERR_CORRUPT, "cut",
           "191 bytes are no header");
    is_err(fmt_header_expect_whole(bytes, sizeof(bytes), FMT_PACK, NULL, &got, &err), &err,
           ERR_CORRUPT, "12345", "a pack without its body");
    size_t good = 0;
    for (size_t bit = 0; bit < 8 * sizeof(bytes); bit++) {
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        good += fmt_header_decode(bytes, sizeof(bytes), &got, &err) != -ERR_CORRUPT;
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    is_u64(good, 0, "each of 1536 flipped bits is corrupt");
}

/* One changed byte behind a right checksum. */
static void header_case(size_t at, uint8_t value, enum err_code code, const char *part)
{
    struct fmt_header header = pack_header(), got;
    uint8_t bytes[FMT_HEADER_LEN];
    fmt_header_encode(&header, bytes);
    bytes[at] = value;
    if (at >= 8)
        reseal_header(bytes);
    is_err(fmt_header_decode(bytes, sizeof(bytes), &got, &err), &err, code, part,
           "header byte %zu = %u: %s", at, value, part);
}

static void test_header_refusals(void)
{
    header_case(0, 'X', ERR_CORRUPT, "unknown magic");
    header_case(2, 'Q', ERR_CORRUPT, "unknown magic");
    header_case(8, 2, ERR_REFUSED, "unknown version 2");
    header_case(12, 200, ERR_REFUSED, "unknown version");
    header_case(16, 1, ERR_CORRUPT, "sealed without a salt");
    header_case(21, 1, ERR_REFUSED, "unknown flags 0x100");
    header_case(84, 1, ERR_REFUSED, "reserved");
    header_case(120, 1, ERR_REFUSED, "reserved");
    header_case(175, 1, ERR_REFUSED, "reserved");
    header_case(88, 1, ERR_CORRUPT, "digest does not fit");
}

static void test_header_ids(void)
{
    struct fmt_header header = pack_header(), got;
    uint8_t bytes[FMT_HEADER_LEN];
    static const struct {
        size_t at;
        const char *part;
    } ids[] = {{32, "repository id is zero"}, {48, "volume id"}, {64, "snapshot id"}};
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        fmt_header_encode(&header, bytes);
        memset(bytes + ids[i].at, 0, ID_LEN);
        reseal_header(bytes);
        is_err(fmt_header_decode(bytes, sizeof(bytes), &got, &err), &err, ERR_CORRUPT, ids[i].part,
               "pack header without id at %zu", ids[i].at);
    }
}

/* --- tidemark.repo ---------------------------------------------------------------------------- */

static void test_repo(void)
{
    struct repo repo = {.chunk_size = 32768,
                        .region_size = FMT_REGION_SIZE,
                        .digest_seed = 0x1122334455667788,
                        .created_s = 1764095000},
                got;
    uint8_t bytes[FMT_REPO_LEN];
    memcpy(repo.id, repository, ID_LEN);
    fmt_repo_encode(&repo, bytes);
    is_good(fmt_repo_decode(bytes, sizeof(bytes), &got, &err), &err, "tidemark.repo decodes");
    ok(memcmp(&got, &repo, sizeof(got)) == 0, "and is the same");
    size_t good = 0;
    for (size_t i = 0; i < sizeof(bytes); i++)
        good += fmt_repo_decode(bytes, i, &got, &err) != -ERR_CORRUPT;
    is_u64(good, 0, "each cut is corrupt");
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] ^= 0x10;
        good += fmt_repo_decode(bytes, sizeof(bytes), &got, &err) != -ERR_CORRUPT;
        bytes[i] ^= 0x10;
    }
    is_u64(good, 0, "each flipped byte is corrupt");
    static const struct {
        size_t at;
        uint8_t value;
        const char *part;
    } cases[] = {
        {FMT_HEADER_LEN + 1, 0x20, "unknown geometry"}, /* chunks of 8 KiB */
        {FMT_HEADER_LEN + 7, 1, "unknown geometry"},
        {FMT_HEADER_LEN + 24, 2, "unknown cipher 2"},
        {FMT_HEADER_LEN + 63, 1, "reserved"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        fmt_repo_encode(&repo, bytes);
        bytes[cases[i].at] = cases[i].value;
        reseal_body(bytes, sizeof(bytes));
        is_err(fmt_repo_decode(bytes, sizeof(bytes), &got, &err), &err, ERR_REFUSED, cases[i].part,
               "repo byte %zu: %s", cases[i].at, cases[i].part);
    }
}

/* --- region tables ---------------------------------------------------------------------------- */

enum { CHUNK = 32768, CHUNKS = 5, PACKS = 2 };
static struct fmt_pack_ref refs[PACKS];
static struct fmt_entry entries[CHUNKS];
static _Alignas(8) uint8_t table_bytes[4096];

static void fill_region(struct fmt_region *region)
{
    memset(entries, 0, sizeof(entries));
    for (uint32_t i = 0; i < PACKS; i++) {
        refs[i] = (struct fmt_pack_ref){.number = 10 + i};
        memcpy(refs[i].snapshot, i ? snapshot : older, ID_LEN);
    }
    for (uint32_t i = 0; i < CHUNKS; i++) {
        entries[i] = (struct fmt_entry){.pack = i % 2, .offset = 192 + 100 * i, .len_flags = 100};
        memset(entries[i].digest, (int)(i + 1), FMT_DIGEST_LEN);
    }
    entries[1] = (struct fmt_entry){.len_flags = (uint32_t)FMT_ZERO << 24};
    entries[2] = (struct fmt_entry){.len_flags = (uint32_t)FMT_FREE << 24};
    entries[4].len_flags = 4096 | (uint32_t)FMT_RAW << 24;
    *region = (struct fmt_region){
        .region_index = 3,
        .chunk_size = CHUNK,
        .chunk_count = CHUNKS,
        .pack_count = PACKS,
        .last_chunk_len = 4096,
        .packs = refs,
        .entries = entries,
    };
}

static size_t encode_region(void)
{
    struct fmt_region region;
    fill_region(&region);
    fmt_region_encode(&region, table_bytes);
    return fmt_region_len(CHUNKS, PACKS);
}

static void test_region(void)
{
    struct fmt_region got;
    size_t len = encode_region();
    is_u64(len, 64 + 2 * 24 + 5 * 32, "length of a region table");
    is_good(fmt_region_decode(table_bytes, len, &got, &err), &err, "region table decodes");
    is_u64(got.region_index, 3, "index");
    is_u64(got.last_chunk_len, 4096, "last chunk");
    ok(memcmp(got.packs, refs, sizeof(refs)) == 0, "packs are the same");
    ok(memcmp(got.entries, entries, sizeof(entries)) == 0, "entries are the same");
    size_t good = 0;
    for (size_t i = 0; i < len; i++)
        good += fmt_region_decode(table_bytes, i, &got, &err) != -ERR_CORRUPT;
    is_u64(good, 0, "each cut is corrupt");
    is_err(fmt_region_decode(table_bytes, len + 1, &got, &err), &err, ERR_CORRUPT, "bytes, want",
           "one byte more, too");
    for (size_t i = 0; i < FMT_REGION_HEADER_LEN; i++) {
        table_bytes[i] ^= 1;
        good += fmt_region_decode(table_bytes, len, &got, &err) != -ERR_CORRUPT;
        table_bytes[i] ^= 1;
    }
    is_u64(good, 0, "each flipped header byte is corrupt");
}

static void region_case(size_t at, uint8_t value, enum err_code code, const char *part)
{
    struct fmt_region got;
    size_t len = encode_region();
    table_bytes[at] = value;
    if (at < 48)
        hash_xxh3_128(table_bytes, 48, 0, table_bytes + 48);
    is_err(fmt_region_decode(table_bytes, len, &got, &err), &err, code, part,
           "region byte %zu = %u: %s", at, value, part);
}

static void test_region_refusals(void)
{
    size_t entry = FMT_REGION_HEADER_LEN + PACKS * FMT_PACK_REF_LEN;
    region_case(3, 'x', ERR_CORRUPT, "magic");
    region_case(8, 9, ERR_REFUSED, "unknown version 9");
    region_case(12, 9, ERR_REFUSED, "unknown version");
    region_case(21, 0x10, ERR_REFUSED, "chunk size");
    region_case(25, 0x80, ERR_CORRUPT, "impossible geometry");
    region_case(28, 6, ERR_CORRUPT, "impossible geometry");
    region_case(33, 0, ERR_CORRUPT, "impossible geometry"); /* last chunk of 0 bytes */
    region_case(34, 1, ERR_CORRUPT, "impossible geometry");
    region_case(36, 1, ERR_REFUSED, "flags");
    region_case(40, 1, ERR_REFUSED, "flags");
    region_case(FMT_REGION_HEADER_LEN + 20, 1, ERR_REFUSED, "pack 0: reserved");
    region_case(entry + 27, 8, ERR_REFUSED, "region 3 chunk 0: unknown flags");
    region_case(entry + 28, 1, ERR_REFUSED, "region 3 chunk 0: unknown flags");
    region_case(entry + 16, 2, ERR_CORRUPT, "chunk 0: pack 2 of 2");
    region_case(entry + 24, 0, ERR_CORRUPT, "chunk 0: 0 stored bytes");
    region_case(entry + 25, 0x80, ERR_CORRUPT, "chunk 0: 32868 stored bytes");
    region_case(entry + 20, 0, ERR_CORRUPT, "chunk 0: offset 0");
    region_case(entry + 27, FMT_RAW, ERR_CORRUPT, "chunk 0: 100 stored bytes for 32768");
    region_case(entry + 32 + 27, FMT_ZERO | FMT_FREE, ERR_CORRUPT, "chunk 1: a chunk without data");
    region_case(entry + 32 + 27, FMT_ZERO | FMT_RAW, ERR_CORRUPT, "chunk 1: a chunk without data");
    region_case(entry + 32, 1, ERR_CORRUPT, "chunk 1: a chunk without data");
    region_case(entry + 64 + 24, 1, ERR_CORRUPT, "chunk 2: a chunk without data");
    region_case(entry + 4 * 32 + 24, 1, ERR_CORRUPT, "chunk 4: 4097 stored bytes for 4096");
}

static void test_entry_offset(void)
{
    struct fmt_entry entry = {.offset = UINT32_MAX, .len_flags = 1};
    is_err(fmt_entry_check(&entry, CHUNK, 1, &err), &err, ERR_CORRUPT, "outside a pack",
           "an entry may not wrap around");
    entry.offset = UINT32_MAX - 1;
    is_good(fmt_entry_check(&entry, CHUNK, 1, &err), &err, "one byte before that is fine");
}

/* --- volume manifests ------------------------------------------------------------------------- */

enum { REGIONS = 2, VPACKS = 3 };
static struct fmt_manifest_region places[REGIONS];
static struct fmt_manifest_pack packs[VPACKS];
static _Alignas(8) uint8_t manifest_bytes[4096];

static size_t encode_manifest(struct fmt_manifest *manifest)
{
    memset(places, 0, sizeof(places));
    memset(packs, 0, sizeof(packs));
    for (uint32_t i = 0; i < REGIONS; i++) {
        places[i].number = i;
        places[i].offset = 192;
        places[i].len = (uint32_t)fmt_region_len(i ? 1 : FMT_REGION_SIZE / CHUNK, 1);
        memcpy(places[i].snapshot, i ? snapshot : older, ID_LEN);
        memset(places[i].sha256, 0x40, FMT_SHA256_LEN);
    }
    for (uint32_t i = 0; i < VPACKS; i++) {
        packs[i] = (struct fmt_manifest_pack){.number = i, .stored_len = 1000, .live_len = 808};
        memcpy(packs[i].snapshot, i == 2 ? snapshot : older, ID_LEN);
    }
    *manifest = (struct fmt_manifest){
        .size = FMT_REGION_SIZE + 512,
        .chunk_size = CHUNK,
        .region_size = FMT_REGION_SIZE,
        .region_count = REGIONS,
        .pack_count = VPACKS,
        .logical_sector = 512,
        .physical_sector = 4096,
        .fs_type = "xfs",
        .fs_uuid = "0123",
        .fs_label = "pgdata",
        .regions = places,
        .packs = packs,
    };
    memcpy(manifest->volume, volume, ID_LEN);
    memcpy(manifest->snapshot, snapshot, ID_LEN);
    memcpy(manifest->parent, older, ID_LEN);
    memset(manifest->fs_uuid + 8, 0xee, sizeof(manifest->fs_uuid) - 8); /* must not get out */
    fmt_manifest_encode(manifest, repository, manifest_bytes);
    return fmt_manifest_len(REGIONS, VPACKS);
}

static void test_manifest(void)
{
    struct fmt_manifest manifest, got;
    size_t len = encode_manifest(&manifest);
    is_u64(len, 192 + 256 + 2 * 64 + 3 * 40, "length of a manifest");
    is_good(fmt_manifest_decode(manifest_bytes, len, repository, &got, &err), &err,
            "manifest decodes");
    is_u64(got.size, FMT_REGION_SIZE + 512, "size");
    is_u64(got.physical_sector, 4096, "sector");
    ok(memcmp(got.parent, older, ID_LEN) == 0, "parent");
    is_str(got.fs_label, "pgdata", "label");
    is_str(got.fs_uuid, "0123", "text");
    ok(memcmp(got.regions, places, sizeof(places)) == 0, "regions are the same");
    ok(memcmp(got.packs, packs, sizeof(packs)) == 0, "packs are the same");
    is_err(fmt_manifest_decode(manifest_bytes, len, volume, &got, &err), &err, ERR_CORRUPT,
           "another repository", "a stranger's manifest is refused");
    size_t good = 0;
    for (size_t i = 0; i < len; i++) {
        good += fmt_manifest_decode(manifest_bytes, i, repository, &got, &err) != -ERR_CORRUPT;
        manifest_bytes[i] ^= 4;
        good += fmt_manifest_decode(manifest_bytes, len, repository, &got, &err) != -ERR_CORRUPT;
        manifest_bytes[i] ^= 4;
    }
    is_u64(good, 0, "each cut and each flipped byte is corrupt");
}

static void manifest_case(size_t at, uint8_t value, enum err_code code, const char *part)
{
    struct fmt_manifest manifest, got;
    size_t len = encode_manifest(&manifest);
    manifest_bytes[FMT_HEADER_LEN + at] = value;
    reseal_body(manifest_bytes, len);
    is_err(fmt_manifest_decode(manifest_bytes, len, repository, &got, &err), &err, code, part,
           "manifest body byte %zu = %u: %s", at, value, part);
}

static void test_manifest_refusals(void)
{
    size_t place = FMT_MANIFEST_FIXED_LEN, pack = place + REGIONS * FMT_MANIFEST_REGION_LEN;
    manifest_case(0, 1, ERR_CORRUPT, "not a multiple of 512");
    manifest_case(4, 1, ERR_CORRUPT, "2 regions for");
    manifest_case(9, 0x20, ERR_REFUSED, "unknown geometry");
    manifest_case(15, 1, ERR_REFUSED, "unknown geometry");
    manifest_case(16, 3, ERR_CORRUPT, "3 regions for");
    manifest_case(20, 2, ERR_CORRUPT, "bytes for 2 regions and 2 packs");
    manifest_case(23, 0xff, ERR_CORRUPT, "bytes for 2 regions");
    manifest_case(48 + 10, 'x', ERR_CORRUPT, "a text is not ended");
    manifest_case(255, 1, ERR_REFUSED, "reserved");
    manifest_case(place + 20, 1, ERR_CORRUPT, "region 0: table of");
    manifest_case(place + 26, 3, ERR_CORRUPT, "region 0: table of");
    manifest_case(place + 28, 1, ERR_REFUSED, "region 0: reserved");
    manifest_case(place + 64 + 24, 0, ERR_CORRUPT, "region 1: table of");
    manifest_case(pack + 16, 1, ERR_CORRUPT, "not in order at 1");
    manifest_case(pack + 20, 1, ERR_REFUSED, "pack 0: reserved");
    manifest_case(pack + 25, 0, ERR_CORRUPT, "pack 0: 808 live bytes of 232");
}

/* --- JSON envelope, device marker ------------------------------------------------------------- */

static void test_json(void)
{
    static const char json[] = "{\"tag\":\"t\"}";
    uint8_t bytes[FMT_HEADER_LEN + sizeof(json)];
    size_t len = FMT_HEADER_LEN + sizeof(json) - 1, got_len, good = 0;
    struct fmt_header header;
    const char *got;
    fmt_json_encode(FMT_JSON_RECORD, repository, snapshot, json, sizeof(json) - 1, bytes);
    is_good(fmt_json_decode(bytes, len, FMT_JSON_RECORD, repository, &header, &got, &got_len, &err),
            &err, "JSON decodes");
    ok(got_len == sizeof(json) - 1 && memcmp(got, json, got_len) == 0, "and is the same");
    ok(memcmp(header.snapshot, snapshot, ID_LEN) == 0, "snapshot");
    is_err(fmt_json_decode(bytes, len, FMT_JSON_JOB, repository, &header, &got, &got_len, &err),
           &err, ERR_CORRUPT, "kind 1 where 3", "a record is no job");
    for (size_t i = 0; i < len; i++) {
        good += fmt_json_decode(bytes, i, FMT_JSON_RECORD, repository, &header, &got, &got_len,
                                &err) != -ERR_CORRUPT;
        bytes[i] ^= 4;
        good += fmt_json_decode(bytes, len, FMT_JSON_RECORD, repository, &header, &got, &got_len,
                                &err) != -ERR_CORRUPT;
        bytes[i] ^= 4;
    }
    is_u64(good, 0, "each cut and each flipped byte is corrupt");
    bytes[80] = 9;
    reseal_header(bytes);
    is_err(fmt_json_decode(bytes, len, FMT_JSON_RECORD, repository, &header, &got, &got_len, &err),
           &err, ERR_CORRUPT, "unknown kind of JSON", "kind 9");
    uint8_t none[ID_LEN] = {0};
    fmt_json_encode(FMT_JSON_JOB, repository, none, "[]", 2, bytes);
    is_good(fmt_json_decode(bytes, FMT_HEADER_LEN + 2, FMT_JSON_JOB, NULL, &header, &got, &got_len,
                            &err),
            &err, "a job may have no snapshot");
}

static void test_marker(void)
{
    uint8_t bytes[FMT_MARKER_LEN], job[ID_LEN];
    uint64_t size = 0;
    size_t good = 0;
    fmt_marker_encode(snapshot, 1 << 30, bytes);
    is_good(fmt_marker_decode(bytes, sizeof(bytes), job, &size, &err), &err, "marker decodes");
    ok(memcmp(job, snapshot, ID_LEN) == 0 && size == 1 << 30, "job and size");
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] ^= 1;
        int rc = fmt_marker_decode(bytes, sizeof(bytes), job, &size, &err);
        good += rc != (i < 8 ? -ERR_MISSING : -ERR_CORRUPT);
        bytes[i] ^= 1;
    }
    is_u64(good, 0, "a flipped byte is corrupt, in the magic: no marker");
    is_err(fmt_marker_decode(bytes, 4095, job, &size, &err), &err, ERR_MISSING, "no device marker",
           "4095 bytes are none");
    bytes[8] = 2;
    hash_xxh3_128(bytes, 4080, 0, bytes + 4080);
    is_err(fmt_marker_decode(bytes, sizeof(bytes), job, &size, &err), &err, ERR_REFUSED,
           "unknown version 2", "version 2");
}

/* --- WAL objects ------------------------------------------------------------------------------ */

enum { WAL_LEN = 3 * FMT_WAL_BLOCK_SIZE + 100 };
static uint8_t wal_raw[WAL_LEN], wal_again[WAL_LEN];

static uint8_t *encode_wal(uint64_t raw_len, struct fmt_wal *wal, size_t *ret_len)
{
    uint8_t *object = malloc(fmt_wal_len_max(raw_len));
    uint32_t noise = 1;
    for (size_t i = 0; i < WAL_LEN; i++) {
        noise = noise * 1664525 + 1013904223;
        wal_raw[i] = i / FMT_WAL_BLOCK_SIZE == 1 ? (uint8_t)(noise >> 24) : (uint8_t)(i / 50);
    }
    *wal = (struct fmt_wal){
        .raw_len = raw_len,
        .system_id = 7400000000000000001,
        .timeline = 3,
        .name = "000000030000000000000007",
        .cluster = "main",
    };
    sha256(wal_raw, raw_len, wal->raw_sha256);
    *ret_len = fmt_wal_encode(wal, repository, wal_raw, object);
    return object;
}

static void test_wal(void)
{
    static const uint64_t lens[] = {0, 1, 41, FMT_WAL_BLOCK_SIZE, FMT_WAL_BLOCK_SIZE + 1, WAL_LEN};
    struct fmt_wal wal, got;
    size_t len;
    for (size_t i = 0; i < ARRAY_LEN(lens); i++) {
        free_mem uint8_t *object = encode_wal(lens[i], &wal, &len);
        ok(len <= fmt_wal_len_max(lens[i]), "%llu raw bytes: %zu", (unsigned long long)lens[i],
           len);
        is_good(fmt_wal_decode_header(object, len, repository, &got, &err), &err, "header");
        wal.block_size = FMT_WAL_BLOCK_SIZE;
        ok(memcmp(&wal, &got, sizeof(got)) == 0, "is the same");
        is_good(fmt_wal_decode_body(object, len, &got, wal_again, &err), &err, "body");
        ok(memcmp(wal_raw, wal_again, lens[i]) == 0, "is the same");
    }
}

static void test_wal_damage(void)
{
    struct fmt_wal wal, got;
    size_t len, good = 0;
    free_mem uint8_t *object = encode_wal(WAL_LEN, &wal, &len);
    wal.block_size = FMT_WAL_BLOCK_SIZE;
    for (size_t i = 0; i < len; i += i < 400 ? 1 : 517) {
        if (i < FMT_HEADER_LEN + FMT_WAL_FIXED_LEN)
            good += fmt_wal_decode_header(object, i, NULL, &got, &err) != -ERR_CORRUPT;
        good += fmt_wal_decode_body(object, i, &wal, wal_again, &err) != -ERR_CORRUPT;
        object[i] ^= 0x40;
        int rc = fmt_wal_decode_header(object, len, repository, &got, &err);
        if (i < FMT_HEADER_LEN + FMT_WAL_FIXED_LEN)
            good += rc != -ERR_CORRUPT;
        else
            good +=
                rc != 0 || fmt_wal_decode_body(object, len, &wal, wal_again, &err) != -ERR_CORRUPT;
        object[i] ^= 0x40;
    }
    is_u64(good, 0, "cuts and flipped bits are corrupt");
    wal.raw_sha256[0] ^= 1;
    is_err(fmt_wal_decode_body(object, len, &wal, wal_again, &err), &err, ERR_CORRUPT,
           "wrong SHA-256", "other raw bytes");
    wal.raw_len -= 1;
    is_err(fmt_wal_decode_body(object, len, &wal, wal_again, &err), &err, ERR_CORRUPT, "is damaged",
           "other raw length");
    wal.raw_len -= 99;
    is_err(fmt_wal_decode_body(object, len, &wal, wal_again, &err), &err, ERR_CORRUPT,
           "after its last block", "a block too many");
}

static void wal_case(size_t at, uint8_t value, enum err_code code, const char *part)
{
    struct fmt_wal wal, got;
    size_t len;
    free_mem uint8_t *object = encode_wal(100, &wal, &len);
    object[FMT_HEADER_LEN + at] = value;
    hash_xxh3_128(object, 368, 0, object + 368);
    is_err(fmt_wal_decode_header(object, len, repository, &got, &err), &err, code, part,
           "WAL fixed part byte %zu = %u: %s", at, value, part);
}

static void test_wal_refusals(void)
{
    wal_case(7, 1, ERR_CORRUPT, "raw bytes");
    wal_case(16, 0, ERR_CORRUPT, "timeline 0");
    wal_case(20, 1, ERR_REFUSED, "block size 65537");
    wal_case(24, '/', ERR_CORRUPT, "malformed name");
    wal_case(24 + 63, 'x', ERR_CORRUPT, "malformed name");
    wal_case(88, 0, ERR_CORRUPT, "malformed name");
    wal_case(175, 1, ERR_REFUSED, "reserved");
}

int main(void)
{
    memset(repository, 0x11, ID_LEN);
    memset(volume, 0x22, ID_LEN);
    memset(older, 0x33, ID_LEN);
    memset(snapshot, 0x44, ID_LEN);
    test_header();
    test_header_refusals();
    test_header_ids();
    test_repo();
    test_region();
    test_region_refusals();
    test_entry_offset();
    test_manifest();
    test_manifest_refusals();
    test_json();
    test_marker();
    test_wal();
    test_wal_damage();
    test_wal_refusals();
    return done();
}
