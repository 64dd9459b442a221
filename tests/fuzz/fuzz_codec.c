/* LZ4 blocks: any input as a block of several plain lengths, and as plain bytes that must survive
 * the way there and back. The first two bytes choose the length. */
#include "io/codec.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    size_t plain_len = (size_t)data[0] | (size_t)data[1] << 8;
    data += 2;
    size -= 2;
    free_mem uint8_t *from = fuzz_copy(data, size);
    free_mem uint8_t *plain = malloc(plain_len ? plain_len : 1);
    free_mem uint8_t *packed = malloc(size ? size : 1);
    free_mem uint8_t *again = malloc(size ? size : 1);
    FUZZ_CHECK(plain && packed && again);
    (void)codec_decompress(from, size, plain, plain_len);
    size_t len = codec_compress(from, size, packed, size, 1 + (int)(plain_len % 8));
    if (len > 0) {
        FUZZ_CHECK(len < size && codec_decompress(packed, len, again, size));
        FUZZ_CHECK(memcmp(again, from, size) == 0);
    }
    bool zero = true;
    for (size_t i = 0; i < size; i++)
        zero = zero && from[i] == 0;
    FUZZ_CHECK(codec_is_zero(from, size) == zero);
    return 0;
}
