/* Object header, tidemark.repo, JSON envelope and device marker: see format.h. Tables are in
 * format_table.c, WAL objects in format_wal.c. */
#include "io/format.h"

#include <assert.h>
#include <inttypes.h>

#include "io/codec.h"
#include "io/crypt.h"
#include "io/hash.h"

struct wire_header {
    uint8_t magic[8];
    uint32_t version;
    uint32_t header_len;
    uint32_t key_id;
    uint32_t flags;
    uint64_t body_len;
    uint8_t repository[ID_LEN];
    uint8_t volume[ID_LEN];
    uint8_t snapshot[ID_LEN];
    uint32_t number;
    uint32_t zero1;
    uint8_t digest[FMT_SHA256_LEN];
    uint8_t salt[FMT_SALT_LEN];
    uint8_t zero2[24];
    uint8_t checksum[FMT_DIGEST_LEN];
};
static_assert(sizeof(struct wire_header) == FMT_HEADER_LEN, "wire size");
static_assert(offsetof(struct wire_header, version) == 8, "wire offset");
static_assert(offsetof(struct wire_header, header_len) == 12, "wire offset");
static_assert(offsetof(struct wire_header, key_id) == 16, "wire offset");
static_assert(offsetof(struct wire_header, flags) == 20, "wire offset");
static_assert(offsetof(struct wire_header, body_len) == 24, "wire offset");
static_assert(offsetof(struct wire_header, repository) == 32, "wire offset");
static_assert(offsetof(struct wire_header, volume) == 48, "wire offset");
static_assert(offsetof(struct wire_header, snapshot) == 64, "wire offset");
static_assert(offsetof(struct wire_header, number) == 80, "wire offset");
static_assert(offsetof(struct wire_header, digest) == 88, "wire offset");
static_assert(offsetof(struct wire_header, salt) == 120, "wire offset");
static_assert(offsetof(struct wire_header, zero2) == 152, "wire offset");
static_assert(offsetof(struct wire_header, checksum) == 176, "wire offset");

struct wire_repo {
    uint32_t chunk_size;
    uint32_t region_size;
    uint64_t digest_seed;
    int64_t created_s;
    uint32_t cipher;
    uint8_t zero[36];
};
static_assert(sizeof(struct wire_repo) == FMT_REPO_BODY_LEN, "wire size");
static_assert(offsetof(struct wire_repo, region_size) == 4, "wire offset");
static_assert(offsetof(struct wire_repo, digest_seed) == 8, "wire offset");
static_assert(offsetof(struct wire_repo, created_s) == 16, "wire offset");
static_assert(offsetof(struct wire_repo, cipher) == 24, "wire offset");
static_assert(offsetof(struct wire_repo, zero) == 28, "wire offset");

struct wire_marker {
    uint8_t magic[8];
    uint32_t version;
    uint32_t zero1;
    uint8_t job_id[ID_LEN];
    uint64_t volume_size;
    uint8_t zero2[4040];
    uint8_t checksum[FMT_DIGEST_LEN];
};
static_assert(sizeof(struct wire_marker) == FMT_MARKER_LEN, "wire size");
static_assert(offsetof(struct wire_marker, version) == 8, "wire offset");
static_assert(offsetof(struct wire_marker, job_id) == 16, "wire offset");
static_assert(offsetof(struct wire_marker, volume_size) == 32, "wire offset");
static_assert(offsetof(struct wire_marker, zero2) == 40, "wire offset");
static_assert(offsetof(struct wire_marker, checksum) == 4080, "wire offset");

static const uint8_t marker_magic[8] = "TMMARKER";

/* What each kind carries in its header; a field that it does not have must be zero. */
static const struct {
    uint8_t magic[9];
    const char *name;
    bool has_volume;
    bool has_snapshot;
    bool has_number;
    bool has_digest;
    bool is_open; /* is never sealed */
} kinds[FMT_KIND_COUNT] = {
    [FMT_REPO] = {"TMREPO\0\0", "tidemark.repo", false, false, false, true, true},
    [FMT_PACK] = {"TMPACK\0\0", "pack", true, true, true, false, false},
    [FMT_TABLES] = {"TMTABLE\0", "table pack", true, true, true, false, false},
    [FMT_MANIFEST] = {"TMVOLUME", "volume manifest", true, true, false, true, false},
    [FMT_JSON] = {"TMJSON\0\0", "JSON object", false, true, true, true, false},
    [FMT_WAL] = {"TMWAL\0\0\0", "WAL object", false, false, false, true, false},
    [FMT_KEYS] = {"TMKEYS\0\0", "key ring", false, false, true, true, true},
};

const char *fmt_kind_name(enum fmt_kind kind)
{
    assert(kind < FMT_KIND_COUNT);
    return kinds[kind].name;
}

/* NULL when the fields fit the kind, else what is wrong. */
static const char *header_fault(const struct fmt_header *header)
{
    bool job = header->kind == FMT_JSON && header->number == FMT_JSON_JOB;
    if (id_is_zero(header->repository))
        return "repository id is zero";
    if (id_is_zero(header->volume) == kinds[header->kind].has_volume)
        return "volume id does not fit the kind";
    if (id_is_zero(header->snapshot) == kinds[header->kind].has_snapshot && !job)
        return "snapshot id does not fit the kind";
    if (header->key_id != 0 && codec_is_zero(header->salt, FMT_SALT_LEN))
        return "sealed without a salt";
    if (header->number != 0 && !kinds[header->kind].has_number)
        return "number does not fit the kind";
    if (header->kind == FMT_JSON &&
        (header->number < FMT_JSON_RECORD || header->number > FMT_JSON_MARK))
        return "unknown kind of JSON object";
    if ((!kinds[header->kind].has_digest || header->key_id != 0) &&
        !codec_is_zero(header->digest, FMT_SHA256_LEN))
        return "digest does not fit the kind";
    return NULL;
}

void fmt_header_encode(const struct fmt_header *header, uint8_t to[FMT_HEADER_LEN])
{
    assert(header->kind < FMT_KIND_COUNT);
    assert(header->key_id == 0 ? codec_is_zero(header->salt, FMT_SALT_LEN)
                               : !kinds[header->kind].is_open);
    assert(header_fault(header) == NULL);
    struct wire_header wire = {
        .version = FMT_VERSION,
        .header_len = FMT_HEADER_LEN,
        .key_id = header->key_id,
        .body_len = header->body_len,
        .number = header->number,
    };
    memcpy(wire.magic, kinds[header->kind].magic, sizeof(wire.magic));
    memcpy(wire.repository, header->repository, ID_LEN);
    memcpy(wire.volume, header->volume, ID_LEN);
    memcpy(wire.snapshot, header->snapshot, ID_LEN);
    memcpy(wire.digest, header->digest, FMT_SHA256_LEN);
    memcpy(wire.salt, header->salt, FMT_SALT_LEN);
    hash_xxh3_128(&wire, offsetof(struct wire_header, checksum), 0, wire.checksum);
    memcpy(to, &wire, sizeof(wire));
}

static int kind_of_magic(const uint8_t magic[8], enum fmt_kind *ret)
{
    for (int kind = 0; kind < FMT_KIND_COUNT; kind++) {
        if (memcmp(magic, kinds[kind].magic, 8) == 0) {
            *ret = (enum fmt_kind)kind;
            return 0;
        }
    }
    return -1;
}

/* The checksum lies at the same place in every version: a header that fails it is damaged, one that
 * passes it and is not ours comes from another version. */
static int header_check(const struct wire_header *wire, enum fmt_kind *ret_kind, struct err *err)
{
    uint8_t checksum[FMT_DIGEST_LEN];
    if (kind_of_magic(wire->magic, ret_kind) < 0)
        return err_set(err, ERR_CORRUPT, "not an object of a repository: unknown magic");
    const char *name = kinds[*ret_kind].name;
    hash_xxh3_128(wire, offsetof(struct wire_header, checksum), 0, checksum);
    if (memcmp(checksum, wire->checksum, sizeof(checksum)) != 0)
        return err_set(err, ERR_CORRUPT, "%s header: wrong checksum", name);
    if (wire->version != FMT_VERSION || wire->header_len != FMT_HEADER_LEN) {
        (void)err_set(err, ERR_REFUSED, "%s header: unknown version %" PRIu32, name, wire->version);
        return err_hint(err, "a newer Tidemark wrote it: use that one");
    }
    if (wire->key_id != 0 && kinds[*ret_kind].is_open)
        return err_set(err, ERR_REFUSED,
                       "%s header: sealed with key %" PRIu32 ", which is never done", name,
                       wire->key_id);
    if (wire->flags != 0)
        return err_set(err, ERR_REFUSED, "%s header: unknown flags 0x%" PRIx32, name, wire->flags);
    bool has_salt = !codec_is_zero(wire->salt, sizeof(wire->salt));
    if (wire->zero1 != 0 || (wire->key_id == 0 && has_salt) ||
        !codec_is_zero(wire->zero2, sizeof(wire->zero2)))
        return err_set(err, ERR_REFUSED, "%s header: reserved bytes are not zero", name);
    return 0;
}

int fmt_header_decode(const uint8_t *from, size_t len, struct fmt_header *ret, struct err *err)
{
    struct wire_header wire;
    struct fmt_header header = {0};
    if (len < sizeof(wire))
        return err_set(err, ERR_CORRUPT, "cut: %zu bytes are no object header", len);
    memcpy(&wire, from, sizeof(wire));
    int rc = header_check(&wire, &header.kind, err);
    if (rc < 0)
        return rc;
    header.key_id = wire.key_id;
    header.body_len = wire.body_len;
    header.number = wire.number;
    memcpy(header.repository, wire.repository, ID_LEN);
    memcpy(header.volume, wire.volume, ID_LEN);
    memcpy(header.snapshot, wire.snapshot, ID_LEN);
    memcpy(header.digest, wire.digest, FMT_SHA256_LEN);
    memcpy(header.salt, wire.salt, FMT_SALT_LEN);
    const char *fault = header_fault(&header);
    if (fault)
        return err_set(err, ERR_CORRUPT, "%s header: %s", kinds[header.kind].name, fault);
    *ret = header;
    return 0;
}

int fmt_header_expect(const uint8_t *from, size_t len, enum fmt_kind kind,
                      const uint8_t repository[ID_LEN], struct fmt_header *ret, struct err *err)
{
    struct fmt_header header;
    int rc = fmt_header_decode(from, len, &header, err);
    if (rc < 0)
        return rc;
    if (header.kind != kind)
        return err_set(err, ERR_CORRUPT, "a %s where a %s was expected", kinds[header.kind].name,
                       kinds[kind].name);
    if (repository && memcmp(header.repository, repository, ID_LEN) != 0)
        return err_set(err, ERR_CORRUPT, "%s of another repository", kinds[kind].name);
    if (header.key_id != 0 && kind != FMT_PACK && kind != FMT_TABLES) {
        (void)err_set(err, ERR_REFUSED, "%s: sealed with key %" PRIu32 ", and nobody opened it",
                      kinds[kind].name, header.key_id);
        return err_hint(err, "it is an object of an encrypted repository: its key file is needed");
    }
    *ret = header;
    return 0;
}

int fmt_header_expect_whole(const uint8_t *from, size_t len, enum fmt_kind kind,
                            const uint8_t repository[ID_LEN], struct fmt_header *ret,
                            struct err *err)
{
    struct fmt_header header;
    int rc = fmt_header_expect(from, len, kind, repository, &header, err);
    if (rc < 0)
        return rc;
    if (header.body_len != len - FMT_HEADER_LEN)
        return err_set(err, ERR_CORRUPT, "%s is %zu bytes long, its header says %" PRIu64 " + %d",
                       kinds[kind].name, len, header.body_len, FMT_HEADER_LEN);
    if (kind != FMT_PACK && kind != FMT_TABLES && kind != FMT_WAL) {
        uint8_t digest[FMT_SHA256_LEN];
        sha256(from + FMT_HEADER_LEN, len - FMT_HEADER_LEN, digest);
        if (memcmp(digest, header.digest, sizeof(digest)) != 0)
            return err_set(err, ERR_CORRUPT, "%s: wrong SHA-256", kinds[kind].name);
    }
    *ret = header;
    return 0;
}

void fmt_repo_encode(const struct repo *repo, uint8_t to[FMT_REPO_LEN])
{
    struct wire_repo wire = {
        .chunk_size = repo->chunk_size,
        .region_size = repo->region_size,
        .digest_seed = repo->digest_seed,
        .created_s = repo->created_s,
        .cipher = repo->cipher,
    };
    struct fmt_header header = {.kind = FMT_REPO, .body_len = sizeof(wire)};
    assert(fmt_chunk_size_valid(repo->chunk_size));
    assert(repo->region_size == FMT_REGION_SIZE);
    memcpy(header.repository, repo->id, ID_LEN);
    sha256(&wire, sizeof(wire), header.digest);
    fmt_header_encode(&header, to);
    memcpy(to + FMT_HEADER_LEN, &wire, sizeof(wire));
}

int fmt_repo_decode(const uint8_t *from, size_t len, struct repo *ret, struct err *err)
{
    struct fmt_header header;
    struct wire_repo wire;
    int rc = fmt_header_expect_whole(from, len, FMT_REPO, NULL, &header, err);
    if (rc < 0)
        return rc;
    if (header.body_len != sizeof(wire))
        return err_set(err, ERR_CORRUPT, "tidemark.repo: body of %" PRIu64 " bytes",
                       header.body_len);
    memcpy(&wire, from + FMT_HEADER_LEN, sizeof(wire));
    if (wire.cipher != REPO_PLAIN && wire.cipher != REPO_AES_256_GCM)
        return err_set(err, ERR_REFUSED, "tidemark.repo: unknown cipher %" PRIu32, wire.cipher);
    if (!codec_is_zero(wire.zero, sizeof(wire.zero)))
        return err_set(err, ERR_REFUSED, "tidemark.repo: reserved bytes are not zero");
    if (!fmt_chunk_size_valid(wire.chunk_size) || wire.region_size != FMT_REGION_SIZE)
        return err_set(err, ERR_REFUSED,
                       "tidemark.repo: unknown geometry: chunks of %" PRIu32 ", regions of %" PRIu32
                       " bytes",
                       wire.chunk_size, wire.region_size);
    *ret = (struct repo){
        .chunk_size = wire.chunk_size,
        .region_size = wire.region_size,
        .digest_seed = wire.digest_seed,
        .created_s = wire.created_s,
        .cipher = (enum repo_cipher)wire.cipher,
    };
    memcpy(ret->id, header.repository, ID_LEN);
    return 0;
}

void fmt_json_encode(enum fmt_json kind, const uint8_t repository[ID_LEN],
                     const uint8_t snapshot[ID_LEN], const char *json, size_t json_len, uint8_t *to)
{
    struct fmt_header header = {.kind = FMT_JSON, .number = kind, .body_len = json_len};
    memcpy(header.repository, repository, ID_LEN);
    memcpy(header.snapshot, snapshot, ID_LEN);
    sha256(json, json_len, header.digest);
    fmt_header_encode(&header, to);
    memcpy(to + FMT_HEADER_LEN, json, json_len);
}

int fmt_json_decode(const uint8_t *from, size_t len, enum fmt_json kind,
                    const uint8_t repository[ID_LEN], struct fmt_header *ret_header,
                    const char **ret_json, size_t *ret_json_len, struct err *err)
{
    struct fmt_header header;
    int rc = fmt_header_expect_whole(from, len, FMT_JSON, repository, &header, err);
    if (rc < 0)
        return rc;
    if (header.number != (uint32_t)kind)
        return err_set(err, ERR_CORRUPT, "JSON object of kind %" PRIu32 " where %d was expected",
                       header.number, kind);
    *ret_header = header;
    *ret_json = (const char *)from + FMT_HEADER_LEN;
    *ret_json_len = len - FMT_HEADER_LEN;
    return 0;
}

void fmt_marker_encode(const uint8_t job_id[ID_LEN], uint64_t volume_size,
                       uint8_t to[FMT_MARKER_LEN])
{
    struct wire_marker wire = {.version = FMT_VERSION, .volume_size = volume_size};
    memcpy(wire.magic, marker_magic, sizeof(wire.magic));
    memcpy(wire.job_id, job_id, ID_LEN);
    hash_xxh3_128(&wire, offsetof(struct wire_marker, checksum), 0, wire.checksum);
    memcpy(to, &wire, sizeof(wire));
}

int fmt_marker_decode(const uint8_t *from, size_t len, uint8_t ret_job_id[ID_LEN],
                      uint64_t *ret_volume_size, struct err *err)
{
    struct wire_marker wire;
    uint8_t checksum[FMT_DIGEST_LEN];
    if (len < sizeof(wire) || memcmp(from, marker_magic, sizeof(marker_magic)) != 0)
        return err_set(err, ERR_MISSING, "no device marker");
    memcpy(&wire, from, sizeof(wire));
    hash_xxh3_128(&wire, offsetof(struct wire_marker, checksum), 0, checksum);
    if (memcmp(checksum, wire.checksum, sizeof(checksum)) != 0)
        return err_set(err, ERR_CORRUPT, "device marker: wrong checksum");
    if (wire.version != FMT_VERSION)
        return err_set(err, ERR_REFUSED, "device marker: unknown version %" PRIu32, wire.version);
    if (wire.zero1 != 0 || !codec_is_zero(wire.zero2, sizeof(wire.zero2)))
        return err_set(err, ERR_REFUSED, "device marker: reserved bytes are not zero");
    memcpy(ret_job_id, wire.job_id, ID_LEN);
    *ret_volume_size = wire.volume_size;
    return 0;
}
