/* See key_wrap.h. As objects are sealed: AES-256-GCM under a key that HKDF makes of the secret and
 * a random salt, with what the key is for as additional data. RFC 3394 would do as well, but binds
 * nothing to the key and would be a second primitive to trust. */
#include "io/key_wrap.h"

#include <assert.h>

#include "io/crypt.h"

struct aad {
    uint8_t repository[ID_LEN];
    uint32_t id;
    uint32_t role;
    int64_t created_s;
    uint32_t generation;
    uint32_t count;
    uint8_t digest[FMT_SHA256_LEN];
};
static_assert(offsetof(struct aad, id) == 16, "wire offset");
static_assert(offsetof(struct aad, generation) == 32, "wire offset");
static_assert(sizeof(struct aad) == 72, "wire size");

static const uint8_t nonce[GCM_NONCE_LEN]; /* zeros: every wrapping has a key of its own */

void key_wrap_begin(struct key_wrap_ring *ring, const struct repo *repo, uint32_t generation,
                    const struct fmt_key *keys, uint32_t count)
{
    uint8_t object[FMT_REPO_LEN];
    struct sha256_stream *stream = sha256_open();
    *ring = (struct key_wrap_ring){.generation = generation, .count = count};
    memcpy(ring->repository, repo->id, ID_LEN);
    fmt_repo_encode(repo, object);
    sha256_update(stream, object, sizeof(object));
    for (uint32_t i = 0; i < count; i++)
        sha256_update(stream, &keys[i], offsetof(struct fmt_key, file_id));
    sha256_finish(stream, ring->digest);
}

static struct aad aad_of(const struct key_wrap_ring *ring, const struct fmt_key *key)
{
    struct aad aad = {
        .id = key->id,
        .role = key->role,
        .created_s = key->created_s,
        .generation = ring->generation,
        .count = ring->count,
    };
    memcpy(aad.repository, ring->repository, ID_LEN);
    memcpy(aad.digest, ring->digest, sizeof(aad.digest));
    return aad;
}

static struct gcm *cipher_of(const struct key_secret *secret, const uint8_t salt[FMT_SALT_LEN])
{
    static const char info[] = "tidemark key wrap";
    uint8_t key[GCM_KEY_LEN];
    struct gcm *gcm = gcm_new();
    hkdf_sha256(secret->bytes, sizeof(secret->bytes), salt, FMT_SALT_LEN, info, sizeof(info) - 1,
                key, sizeof(key));
    gcm_set_key(gcm, key);
    explicit_bzero(key, sizeof(key));
    return gcm;
}

int key_wrap(const struct key_wrap_ring *ring, const struct key_secret *secret,
             const uint8_t key[32], struct fmt_key *to, struct err *err)
{
    int rc = id_random(to->salt, err);
    if (rc == 0)
        rc = id_random(to->salt + ID_LEN, err);
    if (rc < 0)
        return rc;
    key_secret_id(secret, to->file_id);
    struct aad aad = aad_of(ring, to);
    struct gcm *gcm = cipher_of(secret, to->salt);
    gcm_seal(gcm, nonce, &aad, sizeof(aad), key, sizeof(to->wrapped), to->wrapped, to->tag);
    gcm_free(gcm);
    return 0;
}

bool key_wrap_is_by(const struct fmt_key *key, const struct key_secret *secret)
{
    uint8_t file_id[KEY_FILE_ID_LEN];
    key_secret_id(secret, file_id);
    return secret->role == key->role && memcmp(file_id, key->file_id, sizeof(file_id)) == 0;
}

bool key_unwrap(const struct key_wrap_ring *ring, const struct key_secret *secret,
                const struct fmt_key *key, uint8_t ret_key[32])
{
    struct aad aad = aad_of(ring, key);
    struct gcm *gcm = cipher_of(secret, key->salt);
    bool opened = gcm_open(gcm, nonce, &aad, sizeof(aad), key->wrapped, sizeof(key->wrapped),
                           key->tag, ret_key);
    gcm_free(gcm);
    if (!opened)
        explicit_bzero(ret_key, sizeof(key->wrapped));
    return opened;
}
