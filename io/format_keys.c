/* Key rings: see format.h. Only the shape is looked at here; keyring.c unwraps the keys. */
#include "io/format.h"

#include <assert.h>
#include <inttypes.h>

#include "io/codec.h"
#include "io/crypt.h"

static_assert(offsetof(struct fmt_key, role) == 4, "wire offset");
static_assert(offsetof(struct fmt_key, created_s) == 8, "wire offset");
static_assert(offsetof(struct fmt_key, file_id) == 16, "wire offset");
static_assert(offsetof(struct fmt_key, salt) == 32, "wire offset");
static_assert(offsetof(struct fmt_key, wrapped) == 64, "wire offset");
static_assert(offsetof(struct fmt_key, tag) == 96, "wire offset");

void fmt_keys_encode(const struct fmt_key *keys, uint32_t count, uint32_t generation,
                     const uint8_t repository[ID_LEN], uint8_t *to)
{
    struct fmt_header header = {
        .kind = FMT_KEYS,
        .body_len = fmt_keys_len(count) - FMT_HEADER_LEN,
        .number = generation,
    };
    uint8_t *body = to + FMT_HEADER_LEN;
    assert(count > 0 && count <= FMT_KEYS_MAX);
    assert(generation > 0 && generation <= FMT_GENERATION_MAX);
    memset(body, 0, FMT_KEYS_FIXED_LEN);
    put_le32(body, count);
    memcpy(body + FMT_KEYS_FIXED_LEN, keys, (size_t)count * sizeof(*keys));
    memcpy(header.repository, repository, ID_LEN);
    sha256(body, header.body_len, header.digest);
    fmt_header_encode(&header, to);
}

static int check_keys(const struct fmt_key *keys, uint32_t count, struct err *err)
{
    for (uint32_t i = 0; i < count; i++) {
        if (keys[i].role != FMT_ROLE_DATA && keys[i].role != FMT_ROLE_WAL)
            return err_set(err, ERR_REFUSED, "key ring: key %" PRIu32 " has unknown role %" PRIu32,
                           keys[i].id, keys[i].role);
        if (keys[i].id == 0 || (i > 0 && keys[i].id <= keys[i - 1].id))
            return err_set(err, ERR_CORRUPT, "key ring: keys are not in order at %" PRIu32, i);
    }
    return 0;
}

int fmt_keys_decode(const uint8_t *from, size_t len, const uint8_t repository[ID_LEN],
                    uint32_t *ret_generation, const struct fmt_key **ret, uint32_t *ret_count,
                    struct err *err)
{
    struct fmt_header header;
    assert((uintptr_t)from % _Alignof(uint64_t) == 0);
    int rc = fmt_header_expect_whole(from, len, FMT_KEYS, repository, &header, err);
    if (rc < 0)
        return rc;
    const uint8_t *body = from + FMT_HEADER_LEN;
    if (header.body_len < FMT_KEYS_FIXED_LEN)
        return err_set(err, ERR_CORRUPT, "key ring: cut after %zu bytes", len);
    if (!codec_is_zero(body + 4, FMT_KEYS_FIXED_LEN - 4))
        return err_set(err, ERR_REFUSED, "key ring: reserved bytes are not zero");
    uint32_t count = get_le32(body);
    if (header.number == 0 || header.number > FMT_GENERATION_MAX || count == 0 ||
        count > FMT_KEYS_MAX || len != fmt_keys_len(count))
        return err_set(err, ERR_CORRUPT,
                       "key ring: %zu bytes for %" PRIu32 " keys of generation %08" PRIx32, len,
                       count, header.number);
    const struct fmt_key *keys = (const void *)(body + FMT_KEYS_FIXED_LEN);
    rc = check_keys(keys, count, err);
    if (rc < 0)
        return rc;
    *ret_generation = header.number;
    *ret = keys;
    *ret_count = count;
    return 0;
}
