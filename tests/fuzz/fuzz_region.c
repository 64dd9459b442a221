/* Region tables: what decodes must encode to the same bytes, and every entry must be usable. */
#include "tests/fuzz/fuzz.h"

static void one(const uint8_t *data, size_t size)
{
    struct fmt_region region;
    struct err err;
    if (!fuzz_good(fmt_region_decode(data, size, &region, &err), &err))
        return;
    for (uint32_t i = 0; i < region.chunk_count; i++) {
        const struct fmt_entry *entry = &region.entries[i];
        if (fmt_entry_flags(entry) & (FMT_ZERO | FMT_FREE))
            continue;
        FUZZ_CHECK(entry->pack < region.pack_count);
        FUZZ_CHECK(fmt_entry_len(entry) > 0 && fmt_entry_len(entry) <= region.chunk_size);
        FUZZ_CHECK((uint64_t)entry->offset + fmt_entry_len(entry) <= UINT32_MAX);
    }
    free_mem uint8_t *again = malloc(size);
    FUZZ_CHECK(again && size == fmt_region_len(region.chunk_count, region.pack_count));
    fmt_region_encode(&region, again);
    FUZZ_CHECK(memcmp(again, data, size) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    free_mem uint8_t *copy = fuzz_copy(data, size);
    one(copy, size);
    if (size >= FMT_REGION_HEADER_LEN) {
        hash_xxh3_128(copy, 48, 0, copy + 48);
        one(copy, size);
    }
    return 0;
}
