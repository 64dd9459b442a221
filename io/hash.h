/* XXH3-128 (the only file that includes xxhash; run-time dispatch to AVX2 where the CPU has it)
 * Error and change detection, not authentication. Pure, any thread. */
#ifndef TIDEMARK_IO_HASH_H
#define TIDEMARK_IO_HASH_H

#include "io/base.h"

/* Canonical (big-endian) XXH3-128 of ptr, seeded. */
void hash_xxh3_128(const void *ptr, size_t len, uint64_t seed, uint8_t ret_digest[16]);

#endif
