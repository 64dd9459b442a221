/* Object headers: what decodes must encode to the same bytes. */
#include "tests/fuzz/fuzz.h"

static void one(const uint8_t *data, size_t size)
{
    struct fmt_header header;
    struct err err;
    uint8_t again[FMT_HEADER_LEN];
    if (!fuzz_good(fmt_header_decode(data, size, &header, &err), &err))
        return;
    FUZZ_CHECK(size >= FMT_HEADER_LEN);
    fmt_header_encode(&header, again);
    FUZZ_CHECK(memcmp(again, data, FMT_HEADER_LEN) == 0);
    for (int kind = 0; kind < FMT_KIND_COUNT; kind++) {
        int rc = fmt_header_expect(data, size, (enum fmt_kind)kind, NULL, &header, &err);
        bool opens = header.key_id == 0 || kind == FMT_PACK || kind == FMT_TABLES;
        FUZZ_CHECK((rc == 0) == (kind == (int)header.kind && opens));
        (void)fmt_header_expect_whole(data, size, (enum fmt_kind)kind, NULL, &header, &err);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    free_mem uint8_t *copy = fuzz_copy(data, size);
    one(copy, size);
    fuzz_seal_header(copy, size);
    one(copy, size);
    return 0;
}
