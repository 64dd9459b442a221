/* Device markers: what decodes must encode to the same bytes. */
#include "tests/fuzz/fuzz.h"

static void one(const uint8_t *data, size_t size)
{
    struct err err;
    uint8_t job[ID_LEN], again[FMT_MARKER_LEN];
    uint64_t volume_size;
    if (!fuzz_good(fmt_marker_decode(data, size, job, &volume_size, &err), &err))
        return;
    fmt_marker_encode(job, volume_size, again);
    FUZZ_CHECK(memcmp(again, data, FMT_MARKER_LEN) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    free_mem uint8_t *copy = fuzz_copy(data, size);
    one(copy, size);
    if (size >= FMT_MARKER_LEN) {
        hash_xxh3_128(copy, 4080, 0, copy + 4080);
        one(copy, size);
    }
    return 0;
}
