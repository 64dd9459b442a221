/* Encryption: published vectors, and that whatever happens to the bytes of an encrypted repository
 * is seen. Key files and key rings: t_keyring.c. */
#include "tests/unit/seal_fixture.h"

/* --- vectors ---------------------------------------------------------------------------------- */

static size_t unhex(const char *text, uint8_t *to)
{
    size_t len = strlen(text) / 2;
    for (size_t i = 0; i < len; i++) {
        unsigned byte;
        sscanf(text + 2 * i, "%2x", &byte);
        to[i] = (uint8_t)byte;
    }
    return len;
}

static void sequence(uint8_t *to, uint8_t first, size_t len)
{
    for (size_t i = 0; i < len; i++)
        to[i] = (uint8_t)(first + i);
}

/* RFC 5869, appendix A.1 to A.3. */
static void test_hkdf(void)
{
    uint8_t secret[80], salt[80], info[80], got[82], want[82];
    memset(secret, 0x0b, 22);
    sequence(salt, 0, 13);
    sequence(info, 0xf0, 10);
    size_t len = unhex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b"
                       "887185865",
                       want);
    hkdf_sha256(secret, 22, salt, 13, info, 10, got, len);
    ok(memcmp(got, want, len) == 0, "RFC 5869 A.1");
    len = unhex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b"
                "61a96c8",
                want);
    hkdf_sha256(secret, 22, NULL, 0, NULL, 0, got, len);
    ok(memcmp(got, want, len) == 0, "RFC 5869 A.3");
    sequence(secret, 0, 80);
    sequence(salt, 0x60, 80);
    sequence(info, 0xb0, 80);
    len = unhex("b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac78"
                "27271cb41c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1"
                "f3434f1d87",
                want);
    hkdf_sha256(secret, 80, salt, 80, info, 80, got, len);
    ok(memcmp(got, want, len) == 0, "RFC 5869 A.2");
}

/* Test cases 13 to 16 of the GCM specification (McGrew and Viega), which NIST took over. */
static void test_gcm(void)
{
    static const char key15[] = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308";
    static const char plain15[] =
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2"
        "449a6b525b16aedf5aa0de657ba637b391aafd255";
    static const char cipher15[] =
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1"
        "056828838c5f61e6393ba7a0abcc9f662898015ad";
    static const char zeros[] = "0000000000000000000000000000000000000000000000000000000000000000";
    static const struct {
        const char *key, *nonce, *plain, *aad, *cipher, *tag;
        size_t len;
    } cases[] = {
        {zeros, "000000000000000000000000", "", "", "", "530f8afbc74536b9a963b4f1c4cb738b", 0},
        {zeros, "000000000000000000000000", zeros, "", "cea7403d4d606b6e074ec5d3baf39d18",
         "d0d1c8a799996bf0265b98b5d48ab919", 16},
        {key15, "cafebabefacedbaddecaf888", plain15, "", cipher15,
         "b094dac5d93471bdec1a502270e3cc6c", 64},
        {key15, "cafebabefacedbaddecaf888", plain15, "feedfacedeadbeeffeedfacedeadbeefabaddad2",
         cipher15, "76fc6ece0f4e1768cddf8853bb2d551b", 60},
    };
    struct gcm *gcm = gcm_new();
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint8_t key[32], nonce[12], bytes[64], plain[64], cipher[64], aad[20], tag[16], want[16];
        unhex(cases[i].key, key);
        unhex(cases[i].nonce, nonce);
        unhex(cases[i].plain, plain);
        unhex(cases[i].cipher, cipher);
        unhex(cases[i].tag, want);
        size_t aad_len = unhex(cases[i].aad, aad), len = cases[i].len;
        memcpy(bytes, plain, len);
        gcm_set_key(gcm, key);
        gcm_seal(gcm, nonce, aad, aad_len, bytes, len, bytes, tag);
        ok(memcmp(bytes, cipher, len) == 0 && memcmp(tag, want, 16) == 0, "GCM test case %zu",
           13 + i);
        ok(gcm_open(gcm, nonce, aad, aad_len, bytes, len, tag, bytes) &&
               memcmp(bytes, plain, len) == 0,
           "and back, in place");
        tag[15] ^= 1;
        ok(!gcm_open(gcm, nonce, aad, aad_len, cipher, len, tag, bytes),
           "but not with another tag");
    }
    gcm_free(gcm);
}

/* --- objects ---------------------------------------------------------------------------------- */

/* Every bit and every length, and another object's bytes. */
static void damage(const char *name, const char *other)
{
    static uint8_t bytes[1 << 18], wrong[1 << 18];
    size_t len = load(name, bytes, sizeof(bytes)), other_len = load(other, wrong, sizeof(wrong));
    size_t good = 0, named = 0, tried = 0;
    uint8_t header[FMT_HEADER_LEN];
    memcpy(header, bytes, sizeof(header));
    ok(len > 0 && memmem(bytes, len, "horse battery", 13) == NULL, "%s: nothing plain in it", name);
    for (size_t i = 0; i<len; i += len> 2000 ? 37 : 1, tried++) {
        bytes[i] ^= (uint8_t)(1 << i % 8);
        save(name, bytes, len);
        good += get(f.store, name) == -ERR_CORRUPT;
        named += strstr(err.text, name) != NULL;
        bytes[i] ^= (uint8_t)(1 << i % 8);
    }
    is_u64(good, tried, "%s: each flipped bit is corrupt", name);
    is_u64(named, tried, "and the object is named");
    good = tried = 0;
    for (size_t i = 0; i < 8 * (size_t)176; i++, tried++) {
        bytes[i / 8] ^= (uint8_t)(1 << i % 8);
        right_checksum(bytes);
        save(name, bytes, len);
        int rc = get(f.store, name);
        /* Of a later version, or with a key that is not there. */
        good += rc == -ERR_CORRUPT || (rc == -ERR_REFUSED && strstr(err.text, name) != NULL) ||
                (rc == -ERR_AUTH && i / 32 == 4);
        memcpy(bytes, header, sizeof(header));
    }
    is_u64(good, tried, "%s: each bit of the header, with the right checksum", name);
    good = tried = 0;
    for (size_t i = 0; i<len; i += len> 2000 ? 37 : 1, tried++) {
        save(name, bytes, i);
        good += get(f.store, name) == -ERR_CORRUPT;
    }
    is_u64(good, tried, "%s: cut anywhere it is corrupt", name);
    save(name, wrong, other_len);
    is_err(get(f.store, name), &err, ERR_CORRUPT, "not what was sealed under this name",
           "%s: another's bytes", name);
    save(name, bytes, len);
    is_good(get(f.store, name), &err, "%s: put right again", name);
}

/* A key for WAL, which the server's user has, seals nothing else; a part is good in its place. */
static void test_parts(void)
{
    uint8_t a[64 + FMT_TAG_LEN] = {0}, b[64 + FMT_TAG_LEN] = {0}, salt[FMT_SALT_LEN] = {1};
    struct seal *seal = seal_new();
    is_err(seal_begin(seal, store_keys(f.store), FMT_ROLE_DATA, 2, salt, "drill/a", &err), &err,
           ERR_CORRUPT, "for WAL only", "a data object that names the key of WAL");
    is_err(seal_begin(seal, store_keys(f.store), FMT_ROLE_WAL, 1, salt, "wal/a", &err), &err,
           ERR_CORRUPT, "not for WAL", "and the other way round");
    is_err(seal_begin(seal, store_keys(f.store), FMT_ROLE_DATA, 9, salt, "drill/a", &err), &err,
           ERR_AUTH, "does not have", "a key that is not there");
    is_good(seal_begin(seal, store_keys(f.store), FMT_ROLE_DATA, 1, salt, "drill/a", &err), &err,
            "the right one");
    seal_part(seal, 192, a, 64);
    seal_part(seal, 272, b, 64);
    ok(memcmp(a, b, 64) != 0, "the same bytes at another place are sealed otherwise");
    ok(!seal_open_part(seal, 272, a, 64, b), "and do not open there");
    ok(seal_open_part(seal, 192, a, 64, b) && b[0] == 0 && b[63] == 0, "but where they belong");
    /* The packs of a snapshot share their salt. */
    is_good(seal_begin(seal, store_keys(f.store), FMT_ROLE_DATA, 1, salt, "drill/b", &err), &err,
            "another object with the same salt");
    ok(!seal_open_part(seal, 192, a, 64, b), "does not open them");
    seal_free(seal);
}

static void test_objects(void)
{
    static const char *const names[] = {"drill/a", "drill/b",
                                        "wal/main/1/00000001/00000002.history",
                                        "wal/main/1/00000001/00000003.history"};
    static uint8_t plain[512];
    uint8_t snapshot[ID_LEN] = {7};
    put_json(names[0]);
    put_json(names[1]);
    put_wal(names[2]);
    put_wal(names[3]);
    damage(names[0], names[1]);
    damage(names[2], names[3]);
    size_t len = sizeof(secret_text) - 1;
    fmt_json_encode(FMT_JSON_DRILL, f.repo.id, snapshot, secret_text, len, plain);
    save("drill/plain", plain, FMT_HEADER_LEN + len);
    is_err(get(f.store, "drill/plain"), &err, ERR_CORRUPT, "not sealed", "a plain object");
    is_err(store_put(f.store, "wal/x", plain, FMT_HEADER_LEN + len, &err), &err, ERR_INTERNAL,
           "not written", "JSON with the key of WAL");
    test_parts();
    is_err(store_put(f.store, "drill/c", secret_text, len, &err), &err, ERR_INTERNAL, "not written",
           "no object at all");
}

/* --- volumes ---------------------------------------------------------------------------------- */

enum { IMAGE_SIZE = (64 << 20) + (5 << 20) + 512 };

static int pull_all(struct shot *shot, int fd)
{
    struct io_progress progress = {0};
    struct lane_options options = {.lane_count = 1};
    struct pull pull = pull_of(&f, shot, fd, &options, &progress);
    return pull_run(&pull, &err);
}

static bool same_files(int a, int b)
{
    static uint8_t left[1 << 20], right[1 << 20];
    for (uint64_t at = 4096; at < IMAGE_SIZE; at += sizeof(left)) /* the head comes last */
        if (pread(a, left, sizeof(left), (off_t)at) != pread(b, right, sizeof(right), (off_t)at) ||
            memcmp(left, right, (size_t)min_u64(sizeof(left), IMAGE_SIZE - at)) != 0)
            return false;
    return true;
}

static void try_damage(struct shot *shot, const char *what, const char *name, const uint8_t *bytes,
                       size_t len)
{
    int rc = shot ? pull_all(shot, -1) : 0;
    ok(rc == -ERR_CORRUPT && strstr(err.text, name) != NULL, "%s %s: %s", name, what,
       rc < 0 ? err.text : "not seen");
    save(name, bytes, len);
}

/* live: per mille of the object that nobody reaches come before. */
static void damage_pack(struct shot *shot, const char *name, const char *other, unsigned live)
{
    static uint8_t bytes[FMT_PACK_TARGET], wrong[FMT_PACK_TARGET];
    size_t len = load(name, bytes, sizeof(bytes));
    static const unsigned parts[] = {0, 1, 500, 999}; /* per mille */
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        size_t at = FMT_HEADER_LEN + (len - FMT_HEADER_LEN - 1) * parts[i] / 1000;
        if (parts[i] >= live) {
            bytes[at] ^= 4;
            save(name, bytes, len);
            bytes[at] ^= 4;
            try_damage(shot, "with a flipped bit", name, bytes, len);
        }
        save(name, bytes, at);
        try_damage(shot, "cut", name, bytes, len);
    }
    save(name, wrong, load(other, wrong, sizeof(wrong)));
    try_damage(shot, "swapped", name, bytes, len);
    /* With the header of the right one: only the seals tell. */
    size_t other_len = load(other, wrong, sizeof(wrong));
    if (other_len == len) {
        memcpy(wrong, bytes, FMT_HEADER_LEN);
        save(name, wrong, len);
        try_damage(shot, "swapped behind its header", name, bytes, len);
    }
}

static void test_volume(void)
{
    struct lane_options options = {.lane_count = 1};
    struct extent used[] = {{0, 20 << 20}, {64 << 20, (5 << 20) + 512}};
    struct shot first, second;
    char pack[2][STORE_NAME_MAX + 1], table[2][STORE_NAME_MAX + 1];
    int fd = image_create(&f, "image", IMAGE_SIZE, used, 2);
    is_good(shot_take(&f, fd, IMAGE_SIZE, used, 2, NULL, &options, &first, &err), &err, "snapshot");
    uint8_t bytes[65536];
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * i >> 3);
    ok(pwrite(fd, bytes, sizeof(bytes), 1 << 20) == sizeof(bytes), "a change");
    is_good(shot_take(&f, fd, IMAGE_SIZE, used, 2, &first, &options, &second, &err), &err,
            "incremental");
    ok(second.progress.chunks_stored <= 2 && second.manifest.origin_count == 2,
       "%llu chunks stored, two origins", (unsigned long long)second.progress.chunks_stored);
    int out = image_create(&f, "out", IMAGE_SIZE, NULL, 0);
    is_good(pull_all(&second, out), &err, "it is restored");
    ok(same_files(fd, out), "to the last byte");
    is_good(pull_all(&second, -1), &err, "and verified");
    uint8_t part[200000], want[200000];
    is_good(
        pull_read(f.store, &f.repo, &second.manifest, (1 << 20) - 5000, part, sizeof(part), &err),
        &err, "a part of it");
    ok(pread(fd, want, sizeof(want), (1 << 20) - 5000) == sizeof(want) &&
           memcmp(part, want, sizeof(want)) == 0,
       "is right");
    struct table rebuilt;
    char path[160];
    snprintf(path, sizeof(path), "%s/rebuilt", f.dir);
    is_good(table_rebuild(path, f.store, &f.repo, &second.manifest, &rebuilt, &err), &err,
            "the table is rebuilt");
    table_close(&rebuilt);
    repo_pack_name(pack[0], f.volume, first.table.snapshot, 0);
    repo_pack_name(pack[1], f.volume, second.table.snapshot, 0);
    repo_table_name(table[0], f.volume, first.table.snapshot, 0);
    repo_table_name(table[1], f.volume, second.table.snapshot, 0);
    damage_pack(&second, pack[0], pack[1], 0);
    damage_pack(&second, pack[1], pack[0], 0);
    damage_pack(&second, table[0], table[1], 950); /* its first table is dead */
    damage_pack(&second, table[1], table[0], 0);
    is_good(pull_all(&second, -1), &err, "all put right again");
    char manifest[STORE_NAME_MAX + 1], older[STORE_NAME_MAX + 1];
    repo_manifest_name(manifest, f.volume, second.table.snapshot);
    repo_manifest_name(older, f.volume, first.table.snapshot);
    damage(manifest, older);
    shot_close(&second);
    shot_close(&first);
    (void)close(fd);
    (void)close(out);
}

int main(void)
{
    test_hkdf();
    test_gcm();
    is_good(fixture_open_as(&f, "/var/tmp", 32 << 10, 1, true, &err), &err,
            "an encrypted repository");
    test_objects();
    test_volume();
    fixture_close(&f);
    return done();
}
