/* See seal.h. An object that is sealed as a whole is the header, then the body and its tag. A WAL
 * object has two parts, so that its identity can be read without the rest: its fixed part without
 * the checksum and with the digest of the raw file, which the header must not tell; then its
 * blocks. */
#include "io/seal.h"

#include <assert.h>
#include <inttypes.h>

#include "io/crypt.h"
#include "io/hash.h"

enum {
    WAL_CHECKSUM_AT = FMT_WAL_FIXED_LEN - FMT_DIGEST_LEN,
    WAL_HEAD_PLAIN = FMT_HEADER_LEN + FMT_WAL_FIXED_LEN,
    WAL_SEALED_FIXED = WAL_CHECKSUM_AT + FMT_SHA256_LEN,
};
static_assert(FMT_HEADER_LEN + WAL_SEALED_FIXED + FMT_TAG_LEN == SEAL_WAL_HEAD_LEN, "wire size");
static_assert(SEAL_WAL_HEAD_LEN + FMT_TAG_LEN - WAL_HEAD_PLAIN == SEAL_WAL_OVERHEAD, "wire size");
static_assert((int)SEAL_WAL_OVERHEAD <= (int)SEAL_OVERHEAD_MAX, "wire size");
static_assert((int)FMT_TAG_LEN == (int)GCM_TAG_LEN, "wire size");
static_assert((int)HKDF_INFO_MAX >= (int)STORE_NAME_MAX, "a name is the info");

struct seal {
    struct gcm *gcm;
    uint8_t repository[ID_LEN];
};

/* --- parts ------------------------------------------------------------------------------------ */

struct seal *seal_new(void)
{
    struct seal *seal = calloc(1, sizeof(*seal));
    if (!seal)
        abort();
    seal->gcm = gcm_new();
    return seal;
}

void seal_free(struct seal *seal)
{
    if (!seal)
        return;
    gcm_free(seal->gcm);
    free(seal);
}

int seal_begin(struct seal *seal, const struct keyring *keys, enum fmt_role role, uint32_t key_id,
               const uint8_t salt[FMT_SALT_LEN], const char *name, struct err *err)
{
    uint8_t key[GCM_KEY_LEN];
    int rc = keyring_object_key(keys, role, key_id, salt, name, key, err);
    if (rc < 0)
        return rc;
    gcm_set_key(seal->gcm, key);
    explicit_bzero(key, sizeof(key));
    memcpy(seal->repository, keyring_repository(keys), ID_LEN);
    return 0;
}

int seal_no_origin(const uint8_t snapshot[ID_LEN], struct err *err)
{
    char text[ID_TEXT_LEN];
    id_to_text(snapshot, text);
    return err_set(err, ERR_CORRUPT, "the manifest does not say how the packs of %s are sealed",
                   text);
}

int seal_begin_reached(struct seal *seal, const struct keyring *keys,
                       const struct fmt_manifest *manifest, const uint8_t snapshot[ID_LEN],
                       const char *name, struct err *err)
{
    const struct fmt_manifest_origin *origin = fmt_manifest_origin(manifest, snapshot);
    if (origin == NULL)
        return seal_no_origin(snapshot, err);
    return seal_begin(seal, keys, FMT_ROLE_DATA, origin->key_id, origin->salt, name, err);
}

static void nonce_of(uint64_t offset, uint8_t nonce[GCM_NONCE_LEN])
{
    memset(nonce, 0, GCM_NONCE_LEN);
    memcpy(nonce, &offset, sizeof(offset));
}

static void seal_to(struct seal *seal, uint64_t offset, const uint8_t *from, size_t len,
                    uint8_t *to)
{
    uint8_t nonce[GCM_NONCE_LEN];
    nonce_of(offset, nonce);
    gcm_seal(seal->gcm, nonce, seal->repository, ID_LEN, from, len, to, to + len);
}

/* The first part of an object that is sealed as a whole answers for its header, which stands before
 * it at to. */
static void seal_first(struct seal *seal, const uint8_t *from, size_t len, uint8_t *to)
{
    uint8_t nonce[GCM_NONCE_LEN];
    nonce_of(FMT_HEADER_LEN, nonce);
    gcm_seal(seal->gcm, nonce, to - FMT_HEADER_LEN, FMT_HEADER_LEN, from, len, to, to + len);
}

static bool open_first(struct seal *seal, const uint8_t *object, size_t len, uint8_t *to)
{
    const uint8_t *from = object + FMT_HEADER_LEN;
    uint8_t nonce[GCM_NONCE_LEN], tag[GCM_TAG_LEN];
    nonce_of(FMT_HEADER_LEN, nonce);
    memcpy(tag, from + len, sizeof(tag));
    return gcm_open(seal->gcm, nonce, object, FMT_HEADER_LEN, from, len, tag, to);
}

void seal_part(struct seal *seal, uint64_t offset, uint8_t *bytes, size_t len)
{
    seal_to(seal, offset, bytes, len, bytes);
}

bool seal_open_part(struct seal *seal, uint64_t offset, const uint8_t *from, size_t len,
                    uint8_t *to)
{
    uint8_t nonce[GCM_NONCE_LEN], tag[GCM_TAG_LEN];
    nonce_of(offset, nonce);
    memcpy(tag, from + len, sizeof(tag));
    return gcm_open(seal->gcm, nonce, seal->repository, ID_LEN, from, len, tag, to);
}

int seal_origin_new(const struct keyring *keys, enum fmt_role role, struct seal_origin *ret,
                    struct err *err)
{
    struct seal_origin origin;
    int rc = keyring_current(keys, role, &origin.key_id, err);
    if (rc == 0)
        rc = id_random(origin.salt, err);
    if (rc == 0)
        rc = id_random(origin.salt + ID_LEN, err);
    if (rc == 0)
        *ret = origin;
    return rc;
}

/* --- whole objects ---------------------------------------------------------------------------- */

static bool begins(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

bool seal_exempts(const char *name)
{
    return strcmp(name, "tidemark.repo") == 0 || strcmp(name, "tidemark.repo.copy") == 0 ||
           begins(name, "key/") || begins(name, "probe/");
}

static enum fmt_role role_of(const char *name)
{
    return begins(name, "wal/") ? FMT_ROLE_WAL : FMT_ROLE_DATA;
}

static bool has_parts(enum fmt_kind kind)
{
    return kind == FMT_PACK || kind == FMT_TABLES;
}

/* The kind must be where its role is: a key for WAL opens nothing else. */
static int check_kind(const struct fmt_header *header, const char *name, struct err *err)
{
    if ((header->kind == FMT_WAL) == (role_of(name) == FMT_ROLE_WAL))
        return 0;
    return err_set(err, ERR_CORRUPT, "a %s has no place there", fmt_kind_name(header->kind));
}

/* Behind the header of the sealed object, which is at to. digest: of the plain one. */
static void seal_body(struct seal *seal, enum fmt_kind kind, const uint8_t digest[FMT_SHA256_LEN],
                      const uint8_t *plain, size_t len, uint8_t *to)
{
    uint8_t *body = to + FMT_HEADER_LEN;
    if (kind != FMT_WAL) {
        seal_first(seal, plain + FMT_HEADER_LEN, len - FMT_HEADER_LEN, body);
        return;
    }
    memcpy(body, plain + FMT_HEADER_LEN, WAL_CHECKSUM_AT);
    memcpy(body + WAL_CHECKSUM_AT, digest, FMT_SHA256_LEN);
    seal_first(seal, body, WAL_SEALED_FIXED, body);
    seal_to(seal, SEAL_WAL_HEAD_LEN, plain + WAL_HEAD_PLAIN, len - WAL_HEAD_PLAIN,
            to + SEAL_WAL_HEAD_LEN);
}

static int seal_whole(const struct keyring *keys, const char *name, struct fmt_header *header,
                      const uint8_t *plain, size_t len, uint8_t *to, struct err *err)
{
    struct seal_origin origin;
    int rc = seal_origin_new(keys, role_of(name), &origin, err);
    if (rc < 0)
        return rc;
    struct seal *seal = seal_new();
    rc = seal_begin(seal, keys, role_of(name), origin.key_id, origin.salt, name, err);
    if (rc == 0) {
        uint8_t digest[FMT_SHA256_LEN];
        memcpy(digest, header->digest, sizeof(digest));
        header->key_id = origin.key_id;
        header->body_len += header->kind == FMT_WAL ? SEAL_WAL_OVERHEAD : FMT_TAG_LEN;
        memcpy(header->salt, origin.salt, sizeof(header->salt));
        memset(header->digest, 0, sizeof(header->digest));
        fmt_header_encode(header, to);
        seal_body(seal, header->kind, digest, plain, len, to);
    }
    seal_free(seal);
    return rc;
}

int seal_object(const struct keyring *keys, const char *name, const uint8_t *plain, size_t len,
                uint8_t **ret, size_t *ret_len, struct err *err)
{
    struct fmt_header header;
    int rc = fmt_header_decode(plain, len, &header, err);
    if (rc == 0 && len != FMT_HEADER_LEN + header.body_len)
        rc = err_set(err, ERR_INTERNAL, "its header says another length");
    if (rc == 0)
        rc = check_kind(&header, name, err);
    if (rc == 0 && (has_parts(header.kind) != (header.key_id != 0) ||
                    (header.kind == FMT_WAL && len < WAL_HEAD_PLAIN)))
        rc = err_set(err, ERR_INTERNAL, "it cannot be sealed");
    if (rc < 0) {
        err->code = ERR_INTERNAL; /* we made it */
        return err_prefix(err, "object '%s' is not written", name);
    }
    if (has_parts(header.kind)) {
        *ret = NULL;
        return 0;
    }
    size_t sealed_len = len + (header.kind == FMT_WAL ? SEAL_WAL_OVERHEAD : FMT_TAG_LEN);
    free_mem uint8_t *to = malloc(sealed_len);
    if (!to)
        return err_set(err, ERR_INTERNAL, "out of memory for object '%s'", name);
    rc = seal_whole(keys, name, &header, plain, len, to, err);
    if (rc < 0)
        return rc;
    *ret = take_ptr(&to);
    *ret_len = sealed_len;
    return 0;
}

/* --- opening ---------------------------------------------------------------------------------- */

/* The object at from belongs into this repository, under this name, and is sealed: its key. */
static int begin_open(struct seal *seal, const struct keyring *keys, const char *name,
                      const uint8_t *from, size_t len, struct fmt_header *ret, struct err *err)
{
    int rc = fmt_header_decode(from, len, ret, err);
    if (rc == 0 && memcmp(ret->repository, keyring_repository(keys), ID_LEN) != 0)
        rc = err_set(err, ERR_CORRUPT, "%s of another repository", fmt_kind_name(ret->kind));
    if (rc == 0)
        rc = check_kind(ret, name, err);
    if (rc == 0 && ret->key_id == 0)
        rc = err_set(err, ERR_CORRUPT, "it is not sealed, in an encrypted repository");
    if (rc < 0 || has_parts(ret->kind))
        return rc;
    return seal_begin(seal, keys, role_of(name), ret->key_id, ret->salt, name, err);
}

static int not_sealed_so(struct err *err)
{
    return err_set(err, ERR_CORRUPT, "it is not what was sealed under this name");
}

/* The plain header that goes with what was opened. */
static void put_plain_header(struct fmt_header *header, uint64_t overhead, uint8_t *to)
{
    header->key_id = 0;
    header->body_len -= overhead;
    memset(header->salt, 0, sizeof(header->salt));
    fmt_header_encode(header, to);
}

static int open_wal_fixed(struct seal *seal, struct fmt_header *header, const uint8_t *from,
                          uint8_t *to, struct err *err)
{
    uint8_t fixed[WAL_SEALED_FIXED];
    if (header->body_len < SEAL_WAL_HEAD_LEN + FMT_TAG_LEN - FMT_HEADER_LEN ||
        !open_first(seal, from, sizeof(fixed), fixed))
        return not_sealed_so(err);
    memcpy(to + FMT_HEADER_LEN, fixed, WAL_CHECKSUM_AT);
    memcpy(header->digest, fixed + WAL_CHECKSUM_AT, FMT_SHA256_LEN);
    put_plain_header(header, SEAL_WAL_OVERHEAD, to);
    hash_xxh3_128(to, WAL_HEAD_PLAIN - FMT_DIGEST_LEN, 0, to + WAL_HEAD_PLAIN - FMT_DIGEST_LEN);
    return 0;
}

static int open_wal(struct seal *seal, struct fmt_header *header, const uint8_t *from, size_t len,
                    uint8_t *to, size_t *ret_len, struct err *err)
{
    if (len < SEAL_WAL_HEAD_LEN + FMT_TAG_LEN)
        return not_sealed_so(err);
    int rc = open_wal_fixed(seal, header, from, to, err);
    if (rc < 0)
        return rc;
    if (!seal_open_part(seal, SEAL_WAL_HEAD_LEN, from + SEAL_WAL_HEAD_LEN,
                        len - SEAL_WAL_HEAD_LEN - FMT_TAG_LEN, to + WAL_HEAD_PLAIN))
        return not_sealed_so(err);
    *ret_len = len - SEAL_WAL_OVERHEAD;
    return 0;
}

static int open_body(struct seal *seal, struct fmt_header *header, const uint8_t *from, size_t len,
                     uint8_t *to, size_t *ret_len, struct err *err)
{
    if (header->kind == FMT_WAL)
        return open_wal(seal, header, from, len, to, ret_len, err);
    size_t plain_len = len - FMT_TAG_LEN;
    if (len < FMT_HEADER_LEN + FMT_TAG_LEN ||
        !open_first(seal, from, plain_len - FMT_HEADER_LEN, to + FMT_HEADER_LEN))
        return not_sealed_so(err);
    sha256(to + FMT_HEADER_LEN, plain_len - FMT_HEADER_LEN, header->digest);
    put_plain_header(header, FMT_TAG_LEN, to);
    *ret_len = plain_len;
    return 0;
}

int seal_open_object(const struct keyring *keys, const char *name, const uint8_t *from, size_t len,
                     uint8_t **ret, size_t *ret_len, struct err *err)
{
    struct fmt_header header;
    free_mem uint8_t *to = malloc(len + 1);
    size_t plain_len = len;
    if (!to)
        return err_set(err, ERR_INTERNAL, "out of memory for object '%s'", name);
    struct seal *seal = seal_new();
    int rc = begin_open(seal, keys, name, from, len, &header, err);
    if (rc == 0 && len != FMT_HEADER_LEN + header.body_len)
        rc = err_set(err, ERR_CORRUPT, "it has %zu bytes, its header promises %" PRIu64 " + %d",
                     len, header.body_len, FMT_HEADER_LEN);
    if (rc == 0 && has_parts(header.kind))
        memcpy(to, from, len);
    else if (rc == 0)
        rc = open_body(seal, &header, from, len, to, &plain_len, err);
    seal_free(seal);
    if (rc < 0)
        return err_prefix(err, "object '%s'", name);
    *ret = take_ptr(&to);
    *ret_len = plain_len;
    return 0;
}

int seal_open_wal_head(const struct keyring *keys, const char *name, const uint8_t *from,
                       size_t len, uint8_t *to, struct err *err)
{
    struct fmt_header header;
    struct seal *seal = seal_new();
    int rc = begin_open(seal, keys, name, from, len, &header, err);
    if (rc == 0 && (header.kind != FMT_WAL || len < SEAL_WAL_HEAD_LEN))
        rc = err_set(err, ERR_CORRUPT, "cut: %zu bytes are no sealed WAL object", len);
    if (rc == 0)
        rc = open_wal_fixed(seal, &header, from, to, err);
    seal_free(seal);
    return rc;
}
