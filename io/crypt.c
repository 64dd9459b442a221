/* Digests through libcrypto's EVP layer, which picks the CPU's SHA instructions: see crypt.h. */
#include "io/crypt.h"

#include <assert.h>
#include <limits.h>

#include <openssl/evp.h>
#include <openssl/hmac.h>

struct sha256_stream {
    EVP_MD_CTX *ctx;
};

/* The only failures of these calls are a missing allocation and a libcrypto that was told not to
 * offer SHA-256: nothing that a caller could handle. */
static void must(bool done)
{
    if (!done)
        abort();
}

struct sha256_stream *sha256_open(void)
{
    struct sha256_stream *stream = malloc(sizeof(*stream));
    must(stream != NULL);
    stream->ctx = EVP_MD_CTX_new();
    must(stream->ctx != NULL);
    must(EVP_DigestInit_ex(stream->ctx, EVP_sha256(), NULL) == 1);
    return stream;
}

void sha256_update(struct sha256_stream *stream, const void *ptr, size_t len)
{
    must(EVP_DigestUpdate(stream->ctx, ptr, len) == 1);
}

void sha256_finish(struct sha256_stream *stream, uint8_t ret_digest[32])
{
    unsigned len = 0;
    must(EVP_DigestFinal_ex(stream->ctx, ret_digest, &len) == 1);
    assert(len == 32);
    EVP_MD_CTX_free(stream->ctx);
    free(stream);
}

void sha256(const void *ptr, size_t len, uint8_t ret_digest[32])
{
    struct sha256_stream *stream = sha256_open();
    sha256_update(stream, ptr, len);
    sha256_finish(stream, ret_digest);
}

void hmac_sha256(const void *key, size_t key_len, const void *ptr, size_t len,
                 uint8_t ret_mac[SHA256_LEN])
{
    unsigned mac_len = 0;
    assert(key_len <= INT_MAX);
    must(HMAC(EVP_sha256(), key, (int)key_len, ptr, len, ret_mac, &mac_len) != NULL);
    assert(mac_len == SHA256_LEN);
}

void md5(const void *ptr, size_t len, uint8_t ret_digest[MD5_LEN])
{
    unsigned digest_len = 0;
    must(EVP_Digest(ptr, len, ret_digest, &digest_len, EVP_md5(), NULL) == 1);
    assert(digest_len == MD5_LEN);
}

/* --- HKDF (RFC 5869) -------------------------------------------------------------------------- */

void hkdf_sha256(const void *secret, size_t secret_len, const void *salt, size_t salt_len,
                 const void *info, size_t info_len, uint8_t *ret_key, size_t key_len)
{
    uint8_t prk[SHA256_LEN], block[SHA256_LEN], input[SHA256_LEN + HKDF_INFO_MAX + 1];
    size_t block_len = 0, done = 0;
    assert(info_len <= HKDF_INFO_MAX && key_len <= 255 * SHA256_LEN);
    hmac_sha256(salt, salt_len, secret, secret_len, prk);
    for (uint8_t counter = 1; done < key_len; counter++) {
        memcpy(input, block, block_len);
        if (info_len > 0)
            memcpy(input + block_len, info, info_len);
        input[block_len + info_len] = counter;
        hmac_sha256(prk, sizeof(prk), input, block_len + info_len + 1, block);
        block_len = sizeof(block);
        size_t part = key_len - done < sizeof(block) ? key_len - done : sizeof(block);
        memcpy(ret_key + done, block, part);
        done += part;
    }
    explicit_bzero(prk, sizeof(prk));
    explicit_bzero(block, sizeof(block));
    explicit_bzero(input, sizeof(input));
}

/* --- AES-256-GCM ------------------------------------------------------------------------------ */

struct gcm {
    EVP_CIPHER_CTX *ctx;
};

struct gcm *gcm_new(void)
{
    struct gcm *gcm = malloc(sizeof(*gcm));
    must(gcm != NULL);
    gcm->ctx = EVP_CIPHER_CTX_new();
    must(gcm->ctx != NULL);
    must(EVP_CipherInit_ex(gcm->ctx, EVP_aes_256_gcm(), NULL, NULL, NULL, 1) == 1);
    return gcm;
}

void gcm_free(struct gcm *gcm)
{
    if (gcm == NULL)
        return;
    EVP_CIPHER_CTX_free(gcm->ctx); /* overwrites the key schedule */
    free(gcm);
}

void gcm_set_key(struct gcm *gcm, const uint8_t key[GCM_KEY_LEN])
{
    must(EVP_CipherInit_ex(gcm->ctx, NULL, NULL, key, NULL, 1) == 1);
}

static void begin(struct gcm *gcm, const uint8_t nonce[GCM_NONCE_LEN], const void *aad,
                  size_t aad_len, int encrypt)
{
    int len;
    assert(aad_len <= INT_MAX);
    must(EVP_CipherInit_ex(gcm->ctx, NULL, NULL, NULL, nonce, encrypt) == 1);
    must(aad_len == 0 || EVP_CipherUpdate(gcm->ctx, NULL, &len, aad, (int)aad_len) == 1);
}

void gcm_seal(struct gcm *gcm, const uint8_t nonce[GCM_NONCE_LEN], const void *aad, size_t aad_len,
              const uint8_t *from, size_t len, uint8_t *to, uint8_t ret_tag[GCM_TAG_LEN])
{
    int done = 0, rest = 0;
    assert(len <= INT_MAX);
    begin(gcm, nonce, aad, aad_len, 1);
    must(len == 0 || EVP_CipherUpdate(gcm->ctx, to, &done, from, (int)len) == 1);
    must(EVP_CipherFinal_ex(gcm->ctx, to + done, &rest) == 1);
    assert((size_t)done + (size_t)rest == len);
    must(EVP_CIPHER_CTX_ctrl(gcm->ctx, EVP_CTRL_AEAD_GET_TAG, GCM_TAG_LEN, ret_tag) == 1);
}

bool gcm_open(struct gcm *gcm, const uint8_t nonce[GCM_NONCE_LEN], const void *aad, size_t aad_len,
              const uint8_t *from, size_t len, const uint8_t tag[GCM_TAG_LEN], uint8_t *to)
{
    int done = 0, rest = 0;
    uint8_t expected[GCM_TAG_LEN];
    assert(len <= INT_MAX);
    memcpy(expected, tag, sizeof(expected)); /* the call below wants it writable */
    begin(gcm, nonce, aad, aad_len, 0);
    must(len == 0 || EVP_CipherUpdate(gcm->ctx, to, &done, from, (int)len) == 1);
    must(EVP_CIPHER_CTX_ctrl(gcm->ctx, EVP_CTRL_AEAD_SET_TAG, GCM_TAG_LEN, expected) == 1);
    return EVP_CipherFinal_ex(gcm->ctx, to + done, &rest) == 1;
}
