/* XXH3-128: published and independently computed values, every length class, seed, alignment. */
#include "io/hash.h"
#include "io/crypt.h"

#include "tests/tap.h"

static void hex(const uint8_t *bytes, size_t len, char *to)
{
    for (size_t i = 0; i < len; i++)
        (void)snprintf(to + 2 * i, 3, "%02x", bytes[i]);
}

/* Bytes 0, 7, 14, … modulo 251. */
static void fill(uint8_t *to, size_t len)
{
    for (size_t i = 0; i < len; i++)
        to[i] = (uint8_t)(i * 7 % 251);
}

static void check(size_t len, uint64_t seed, const char *want)
{
    static uint8_t bytes[70000];
    uint8_t digest[16];
    char text[33];
    fill(bytes + 3, len);
    hash_xxh3_128(bytes + 3, len, seed, digest);
    hex(digest, sizeof(digest), text);
    is_str(text, want, "xxh3-128 of %zu bytes, seed %llx", len, (unsigned long long)seed);
}

static void test_xxh3(void)
{
    uint64_t seed = 0x9e3779b185ebca87;
    check(0, 0, "99aa06d3014798d86001c324468d497f");
#include "tests/unit/t_hash_vectors.inc"
}

static void test_sha256(void)
{
    uint8_t digest[32], again[32];
    char text[65];
    sha256("abc", 3, digest);
    hex(digest, sizeof(digest), text);
    is_str(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
           "SHA-256 of abc (FIPS 180-2)");
    struct sha256_stream *stream = sha256_open();
    sha256_update(stream, "a", 1);
    sha256_update(stream, "", 0);
    sha256_update(stream, "bc", 2);
    sha256_finish(stream, again);
    ok(memcmp(digest, again, sizeof(digest)) == 0, "the stream gives the same digest");
}

int main(void)
{
    test_xxh3();
    test_sha256();
    return done();
}
