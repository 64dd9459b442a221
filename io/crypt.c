/* SHA-256 through libcrypto's EVP layer, which picks the CPU's SHA instructions: see crypt.h. */
#include "io/crypt.h"

#include <assert.h>

#include <openssl/evp.h>

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
