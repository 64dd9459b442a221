/* Volume manifests: what decodes must encode to the same bytes. */
#include "tests/fuzz/fuzz.h"

static void one(const uint8_t *data, size_t size)
{
    struct fmt_manifest manifest;
    struct err err;
    if (!fuzz_good(fmt_manifest_decode(data, size, NULL, &manifest, &err), &err))
        return;
    FUZZ_CHECK(size == fmt_manifest_len(manifest.region_count, manifest.pack_count) +
                           manifest.origin_count * (size_t)FMT_MANIFEST_ORIGIN_LEN);
    free_mem uint8_t *again = malloc(size);
    FUZZ_CHECK(again != NULL);
    fmt_manifest_encode(&manifest, data + 32, again);
    FUZZ_CHECK(memcmp(again, data, size) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return fuzz_object(data, size, one);
}
