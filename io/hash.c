/* XXH3-128: see hash.h. libxxhash exports the x86 dispatcher (SSE2, AVX2, AVX-512 chosen at the
 * first call) beside the plain symbols, which are SSE2 only: 0.02 against 0.06 CPU-s per GB on a
 * chunk that is hot in the cache. Elsewhere the plain symbols are the native ones. */
#include "io/hash.h"

#ifdef __x86_64__
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

void hash_xxh3_128(const void *ptr, size_t len, uint64_t seed, uint8_t ret_digest[16])
{
    XXH128_canonical_t canonical;
    _Static_assert(sizeof(canonical) == 16, "size of a digest");
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_withSeed(ptr, len, seed));
    memcpy(ret_digest, &canonical, sizeof(canonical));
}
