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
