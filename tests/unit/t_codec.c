/* LZ4 blocks and the zero test: round trips, limits, damaged input. */
#include "io/codec.h"

#include "tests/tap.h"

enum { LEN = 65536 };
static uint8_t plain[LEN], packed[LEN + 1024], again[LEN];

static uint64_t random_state = 0x243f6a8885a308d3;

static uint8_t random_byte(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint8_t)(random_state >> 24);
}

static void fill_text(void)
{
    for (size_t i = 0; i < LEN; i++)
        plain[i] = (uint8_t)(i % 97 + (random_byte() < 16));
}

static void test_round_trip(void)
{
    static const size_t lens[] = {2, 13, 512, 16384, 32768, 65535, LEN};
    fill_text();
    for (size_t i = 0; i < ARRAY_LEN(lens); i++) {
        size_t got = codec_compress(plain, lens[i], packed, sizeof(packed), 2);
        if (got == 0) {
            ok(lens[i] < 64, "%zu bytes do not shrink", lens[i]);
            continue;
        }
        memset(again, 0xee, sizeof(again));
        ok(got < lens[i], "%zu bytes shrink to %zu", lens[i], got);
        ok(codec_decompress(packed, got, again, lens[i]), "they come back");
        ok(memcmp(plain, again, lens[i]) == 0, "and are the same");
    }
}

static void test_limits(void)
{
    fill_text();
    ok(codec_compress(plain, 0, packed, sizeof(packed), 2) == 0, "nothing does not shrink");
    ok(codec_compress(plain, 1, packed, sizeof(packed), 2) == 0, "one byte does not shrink");
    size_t need = codec_compress(plain, LEN, packed, sizeof(packed), 2);
    ok(codec_compress(plain, LEN, packed, need - 1, 2) == 0, "too small a buffer: 0");
    is_u64(codec_compress(plain, LEN, packed, need, 2), need, "just enough");
    for (size_t i = 0; i < LEN; i++)
        plain[i] = random_byte();
    ok(codec_compress(plain, LEN, packed, sizeof(packed), 2) == 0, "noise does not shrink");
}

static void test_damage(void)
{
    fill_text();
    size_t got = codec_compress(plain, LEN, packed, sizeof(packed), 2);
    ok(!codec_decompress(packed, got, again, LEN - 1), "shorter target: false");
    ok(!codec_decompress(packed, got, again, LEN) == false, "right length: true");
    ok(!codec_decompress(packed, got - 1, again, LEN), "cut input: false");
    ok(!codec_decompress(packed, 0, again, LEN), "no input: false");
    ok(!codec_decompress(packed, SIZE_MAX, again, LEN), "absurd input length: false");
    ok(!codec_decompress(packed, got, again, (size_t)1 << 40), "absurd output length: false");
    size_t same = 0;
    for (size_t i = 0; i < 1000; i++) {
        size_t at = (size_t)(random_byte() << 8 | random_byte()) % got;
        uint8_t old = packed[at];
        packed[at] ^= (uint8_t)(1 << i % 8);
        same += codec_decompress(packed, got, again, LEN) && memcmp(plain, again, LEN) == 0;
        packed[at] = old;
    }
    ok(same < 1000, "flipped bits stay inside the buffers (%zu had no effect)", same);
}

static void test_zero(void)
{
    size_t bad = 0;
    memset(plain, 0, LEN);
    ok(codec_is_zero(plain, LEN), "zeros");
    ok(codec_is_zero(plain, 0), "nothing is zero");
    for (size_t i = 0; i < 512; i++) {
        plain[i] = 1;
        bad += codec_is_zero(plain, 512) || !codec_is_zero(plain, i) ||
               !codec_is_zero(plain + i + 1, 511 - i);
        plain[i] = 0;
    }
    is_u64(bad, 0, "one byte at each place of 512 is seen");
    plain[LEN - 1] = 0x80;
    ok(!codec_is_zero(plain, LEN), "last byte is seen");
    ok(codec_is_zero(plain + 1, LEN - 2), "odd address and length");
}

int main(void)
{
    test_round_trip();
    test_limits();
    test_damage();
    test_zero();
    return done();
}
