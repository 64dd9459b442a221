/* SHA-256 (the only file that includes libcrypto). Aborts only when libcrypto cannot allocate.
 * Any thread. */
#ifndef TIDEMARK_IO_CRYPT_H
#define TIDEMARK_IO_CRYPT_H

#include "io/base.h"

void sha256(const void *ptr, size_t len, uint8_t ret_digest[32]);

/* Incremental form: open, update any number of times, finish (which also frees). */
struct sha256_stream;
struct sha256_stream *sha256_open(void);
void sha256_update(struct sha256_stream *stream, const void *ptr, size_t len);
void sha256_finish(struct sha256_stream *stream, uint8_t ret_digest[32]);

#endif
