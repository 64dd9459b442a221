/* WAL objects: see format.h. A WAL file is cut in blocks of 64 KiB, so that a reader needs no more
 * memory than the file, and each block is compressed alone. */
#include "io/format.h"

#include <assert.h>
#include <inttypes.h>

#include "io/codec.h"
#include "io/crypt.h"
#include "io/hash.h"

struct wire_wal {
    uint64_t raw_len;
    uint64_t system_id;
    uint32_t timeline;
    uint32_t block_size;
    char name[64];
    char cluster[64];
    uint8_t zero[24];
    uint8_t checksum[FMT_DIGEST_LEN];
};
static_assert(sizeof(struct wire_wal) == FMT_WAL_FIXED_LEN, "wire size");
static_assert(offsetof(struct wire_wal, system_id) == 8, "wire offset");
static_assert(offsetof(struct wire_wal, timeline) == 16, "wire offset");
static_assert(offsetof(struct wire_wal, block_size) == 20, "wire offset");
static_assert(offsetof(struct wire_wal, name) == 24, "wire offset");
static_assert(offsetof(struct wire_wal, cluster) == 88, "wire offset");
static_assert(offsetof(struct wire_wal, zero) == 152, "wire offset");
static_assert(offsetof(struct wire_wal, checksum) == 176, "wire offset");

enum {
    WAL_HEAD_LEN = FMT_WAL_HEAD_LEN,
    WAL_CHECKED_LEN = WAL_HEAD_LEN - FMT_DIGEST_LEN,
    WAL_BLOCK_RAW = 1u << 31, /* in stored_len: the block is not compressed */
    WAL_ACCELERATION = 2,
};

size_t fmt_wal_len_max(uint64_t raw_len)
{
    assert(raw_len <= FMT_WAL_RAW_MAX);
    return WAL_HEAD_LEN + raw_len + div_round_up(raw_len, FMT_WAL_BLOCK_SIZE) * sizeof(uint32_t);
}

size_t fmt_wal_encode_block(const void *raw, size_t raw_len, uint8_t *to)
{
    uint8_t *payload = to + sizeof(uint32_t);
    size_t stored = codec_compress(raw, raw_len, payload, raw_len, WAL_ACCELERATION);
    if (stored == 0) {
        memcpy(payload, raw, raw_len);
        put_le32(to, (uint32_t)raw_len | WAL_BLOCK_RAW);
        return sizeof(uint32_t) + raw_len;
    }
    put_le32(to, (uint32_t)stored);
    return sizeof(uint32_t) + stored;
}

void fmt_wal_encode_head(const struct fmt_wal *wal, const uint8_t repository[ID_LEN], size_t len,
                         uint8_t *to)
{
    struct wire_wal wire = {
        .raw_len = wal->raw_len,
        .system_id = wal->system_id,
        .timeline = wal->timeline,
        .block_size = FMT_WAL_BLOCK_SIZE,
    };
    struct fmt_header header = {.kind = FMT_WAL, .body_len = len - FMT_HEADER_LEN};
    assert(len >= WAL_HEAD_LEN);
    assert(wal->timeline != 0);
    assert(strnlen(wal->name, sizeof(wal->name)) < sizeof(wal->name));
    assert(strnlen(wal->cluster, sizeof(wal->cluster)) < sizeof(wal->cluster));
    assert(repo_name_valid(wal->name, sizeof(wal->name) - 1));
    assert(repo_name_valid(wal->cluster, sizeof(wal->cluster) - 1));
    memcpy(wire.name, wal->name, strlen(wal->name));
    memcpy(wire.cluster, wal->cluster, strlen(wal->cluster));
    memcpy(header.repository, repository, ID_LEN);
    memcpy(header.digest, wal->raw_sha256, FMT_SHA256_LEN);
    fmt_header_encode(&header, to);
    memcpy(to + FMT_HEADER_LEN, &wire, sizeof(wire));
    hash_xxh3_128(to, WAL_CHECKED_LEN, 0, to + WAL_CHECKED_LEN);
}

size_t fmt_wal_encode(const struct fmt_wal *wal, const uint8_t repository[ID_LEN], const void *raw,
                      uint8_t *to)
{
    size_t at = WAL_HEAD_LEN;
    for (uint64_t done = 0; done < wal->raw_len; done += FMT_WAL_BLOCK_SIZE)
        at += fmt_wal_encode_block((const uint8_t *)raw + done,
                                   min_u64(FMT_WAL_BLOCK_SIZE, wal->raw_len - done), to + at);
    fmt_wal_encode_head(wal, repository, at, to);
    return at;
}

/* Texts of a WAL object are components of its name. */
static bool name_field_valid(const char *text, size_t capacity)
{
    size_t len = strnlen(text, capacity);
    return len < capacity && codec_is_zero(text + len, capacity - len) &&
           repo_name_valid(text, capacity - 1);
}

static int wal_check_fixed(const struct wire_wal *wire, struct err *err)
{
    if (!codec_is_zero(wire->zero, sizeof(wire->zero)))
        return err_set(err, ERR_REFUSED, "WAL object: reserved bytes are not zero");
    if (wire->block_size != FMT_WAL_BLOCK_SIZE)
        return err_set(err, ERR_REFUSED, "WAL object: unknown block size %" PRIu32,
                       wire->block_size);
    if (wire->raw_len > FMT_WAL_RAW_MAX || wire->timeline == 0)
        return err_set(err, ERR_CORRUPT, "WAL object: %" PRIu64 " raw bytes on timeline %" PRIu32,
                       wire->raw_len, wire->timeline);
    if (!name_field_valid(wire->name, sizeof(wire->name)) ||
        !name_field_valid(wire->cluster, sizeof(wire->cluster)))
        return err_set(err, ERR_CORRUPT, "WAL object: malformed name or cluster");
    return 0;
}

int fmt_wal_decode_header(const uint8_t *from, size_t len, const uint8_t repository[ID_LEN],
                          struct fmt_wal *ret, struct err *err)
{
    struct fmt_header header;
    struct wire_wal wire;
    uint8_t checksum[FMT_DIGEST_LEN];
    int rc = fmt_header_expect(from, len, FMT_WAL, repository, &header, err);
    if (rc < 0)
        return rc;
    if (len < WAL_HEAD_LEN)
        return err_set(err, ERR_CORRUPT, "WAL object: cut after %zu bytes", len);
    memcpy(&wire, from + FMT_HEADER_LEN, sizeof(wire));
    hash_xxh3_128(from, WAL_CHECKED_LEN, 0, checksum);
    if (memcmp(checksum, wire.checksum, sizeof(checksum)) != 0)
        return err_set(err, ERR_CORRUPT, "WAL object: wrong checksum of its fixed part");
    rc = wal_check_fixed(&wire, err);
    if (rc < 0)
        return rc;
    *ret = (struct fmt_wal){
        .raw_len = wire.raw_len,
        .system_id = wire.system_id,
        .timeline = wire.timeline,
        .block_size = wire.block_size,
    };
    memcpy(ret->name, wire.name, sizeof(ret->name));
    memcpy(ret->cluster, wire.cluster, sizeof(ret->cluster));
    memcpy(ret->raw_sha256, header.digest, FMT_SHA256_LEN);
    return 0;
}

/* Decodes one block of exactly raw_len bytes and moves *at behind it; false when it is damaged. */
static bool decode_block(const uint8_t *from, size_t len, size_t *at, uint8_t *raw, size_t raw_len)
{
    if (len - *at < sizeof(uint32_t))
        return false;
    uint32_t word = get_le32(from + *at);
    size_t stored = word & ~WAL_BLOCK_RAW;
    const uint8_t *payload = from + *at + sizeof(uint32_t);
    if (stored > len - *at - sizeof(uint32_t))
        return false;
    if (word & WAL_BLOCK_RAW) {
        if (stored != raw_len)
            return false;
        memcpy(raw, payload, raw_len);
    } else if (stored >= raw_len || !codec_decompress(payload, stored, raw, raw_len)) {
        return false;
    }
    *at += sizeof(uint32_t) + stored;
    return true;
}

int fmt_wal_decode_body(const uint8_t *from, size_t len, const struct fmt_wal *wal, void *raw,
                        struct err *err)
{
    struct fmt_header header;
    uint8_t digest[FMT_SHA256_LEN];
    size_t at = WAL_HEAD_LEN;
    int rc = fmt_header_expect_whole(from, len, FMT_WAL, NULL, &header, err);
    if (rc < 0)
        return rc;
    if (len < WAL_HEAD_LEN)
        return err_set(err, ERR_CORRUPT, "WAL object: cut after %zu bytes", len);
    for (uint64_t done = 0; done < wal->raw_len; done += wal->block_size)
        if (!decode_block(from, len, &at, (uint8_t *)raw + done,
                          min_u64(wal->block_size, wal->raw_len - done)))
            return err_set(err, ERR_CORRUPT, "WAL object %s: block at %" PRIu64 " is damaged",
                           wal->name, done);
    if (at != len)
        return err_set(err, ERR_CORRUPT, "WAL object %s: %zu bytes after its last block", wal->name,
                       len - at);
    sha256(raw, wal->raw_len, digest);
    if (memcmp(digest, wal->raw_sha256, sizeof(digest)) != 0)
        return err_set(err, ERR_CORRUPT, "WAL object %s: wrong SHA-256", wal->name);
    return 0;
}
