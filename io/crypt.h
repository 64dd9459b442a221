/* SHA-256, HMAC-SHA-256, HKDF, AES-256-GCM and MD5 (libcrypto; io/crypt.c is the only file that
 * includes it). MD5 only because S3 asks for it in Content-MD5. A libcrypto without one of them
 * ends the program: there is nothing a caller could do. Any thread. */
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

/* HKDF-SHA-256 of RFC 5869. info has at most HKDF_INFO_MAX bytes. */
enum { HKDF_INFO_MAX = 640 };
void hkdf_sha256(const void *secret, size_t secret_len, const void *salt, size_t salt_len,
                 const void *info, size_t info_len, uint8_t *ret_key, size_t key_len);

/* AES-256-GCM with one key after the other. The key schedule is in libcrypto's own memory: a
 * program that has keys gives up its core dumps (key_file.h). One thread at a time. */
enum { GCM_KEY_LEN = 32, GCM_NONCE_LEN = 12, GCM_TAG_LEN = 16 };
struct gcm;
struct gcm *gcm_new(void);
void gcm_free(struct gcm *gcm); /* accepts NULL */
void gcm_set_key(struct gcm *gcm, const uint8_t key[GCM_KEY_LEN]);
/* from and to have len bytes, less than 2 GiB; they may be the same, but must not overlap
 * otherwise. A nonce must never come twice with one key. */
void gcm_seal(struct gcm *gcm, const uint8_t nonce[GCM_NONCE_LEN], const void *aad, size_t aad_len,
              const uint8_t *from, size_t len, uint8_t *to, uint8_t ret_tag[GCM_TAG_LEN]);
/* False when tag is not that of these bytes; what is in to is worthless then. */
bool gcm_open(struct gcm *gcm, const uint8_t nonce[GCM_NONCE_LEN], const void *aad, size_t aad_len,
              const uint8_t *from, size_t len, const uint8_t tag[GCM_TAG_LEN], uint8_t *to);

void md5(const void *ptr, size_t len, uint8_t ret_digest[MD5_LEN]);

#endif
