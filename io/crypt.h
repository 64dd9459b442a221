/* SHA-256, HMAC-SHA-256 and MD5 (libcrypto; io/crypt.c is the only file that includes it). MD5 only
 * because S3 asks for it in Content-MD5. A libcrypto without one of them ends the program: there
 * is nothing a caller could do. Any thread. */
#ifndef TIDEMARK_IO_CRYPT_H
#define TIDEMARK_IO_CRYPT_H

#include "io/base.h"

enum { SHA256_LEN = 32, MD5_LEN = 16 };

void sha256(const void *ptr, size_t len, uint8_t ret_digest[32]);

/* Incremental form: open, update any number of times, finish (which also frees). */
struct sha256_stream;
struct sha256_stream *sha256_open(void);
void sha256_update(struct sha256_stream *stream, const void *ptr, size_t len);
void sha256_finish(struct sha256_stream *stream, uint8_t ret_digest[32]);

void hmac_sha256(const void *key, size_t key_len, const void *ptr, size_t len,
                 uint8_t ret_mac[SHA256_LEN]);

void md5(const void *ptr, size_t len, uint8_t ret_digest[MD5_LEN]);

#endif
