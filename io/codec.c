/* LZ4 blocks and the zero test: see codec.h. */
#include "io/codec.h"

#include <assert.h>
#include <limits.h>

#include <lz4.h>

enum { ZERO_STEP = 64 };

size_t codec_compress(const void *from, size_t len, void *to, size_t capacity, int acceleration)
{
    assert(len <= LZ4_MAX_INPUT_SIZE);
    if (len < 2)
        return 0;
    /* One byte less than the input: LZ4 gives up as soon as it cannot be smaller. */
    size_t limit = min_u64(capacity, len - 1);
    int got = LZ4_compress_fast(from, to, (int)len, (int)limit, acceleration);
    assert(got >= 0 && (size_t)got <= limit);
    return (size_t)got;
}

bool codec_decompress(const void *from, size_t from_len, void *to, size_t len)
{
    if (from_len > INT_MAX || len > INT_MAX)
        return false;
    int got = LZ4_decompress_safe(from, to, (int)from_len, (int)len);
    return got >= 0 && (size_t)got == len;
}

bool codec_is_zero(const void *ptr, size_t len)
{
    const uint8_t *bytes = ptr;
    size_t at = 0;
    /* Words of one step are or-ed without a branch, so that the compiler may use vectors; data is
     * nearly always told apart from zeros by the first step. */
    for (; at + ZERO_STEP <= len; at += ZERO_STEP) {
        uint64_t words[ZERO_STEP / sizeof(uint64_t)];
        memcpy(words, bytes + at, sizeof(words));
        uint64_t any = 0;
        for (size_t i = 0; i < ARRAY_LEN(words); i++)
            any |= words[i];
        if (any != 0)
            return false;
    }
    for (; at < len; at++)
        if (bytes[at] != 0)
            return false;
    return true;
}
