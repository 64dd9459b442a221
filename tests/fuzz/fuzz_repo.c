/* tidemark.repo: what decodes must encode to the same bytes. */
#include "tests/fuzz/fuzz.h"

static void one(const uint8_t *data, size_t size)
{
    struct repo repo;
    struct err err;
    uint8_t again[FMT_REPO_LEN];
    if (!fuzz_good(fmt_repo_decode(data, size, &repo, &err), &err))
        return;
    FUZZ_CHECK(size == FMT_REPO_LEN);
    fmt_repo_encode(&repo, again);
    FUZZ_CHECK(memcmp(again, data, size) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return fuzz_object(data, size, one);
}
