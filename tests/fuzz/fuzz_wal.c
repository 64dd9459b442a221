/* WAL objects: header, fixed part, blocks. */
#include "tests/fuzz/fuzz.h"

enum { RAW_MAX = 4 << 20 };

static void one(const uint8_t *data, size_t size)
{
    struct fmt_wal wal;
    struct err err;
    if (!fuzz_good(fmt_wal_decode_header(data, size, NULL, &wal, &err), &err))
        return;
    FUZZ_CHECK(repo_name_valid(wal.name, 63) && repo_name_valid(wal.cluster, 63));
    FUZZ_CHECK(wal.raw_len <= FMT_WAL_RAW_MAX && wal.timeline != 0);
    if (wal.raw_len > RAW_MAX)
        return;
    free_mem uint8_t *raw = malloc(wal.raw_len ? wal.raw_len : 1);
    FUZZ_CHECK(raw != NULL);
    if (fmt_wal_decode_body(data, size, &wal, raw, &err) == 0) {
        free_mem uint8_t *again = malloc(fmt_wal_len_max(wal.raw_len));
        struct fmt_wal second;
        FUZZ_CHECK(again != NULL);
        size_t len = fmt_wal_encode(&wal, data + 32, raw, again);
        FUZZ_CHECK(len <= fmt_wal_len_max(wal.raw_len));
        FUZZ_CHECK(fmt_wal_decode_header(again, len, data + 32, &second, &err) == 0);
        FUZZ_CHECK(memcmp(&wal, &second, sizeof(wal)) == 0);
        FUZZ_CHECK(fmt_wal_decode_body(again, len, &wal, raw, &err) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    free_mem uint8_t *copy = fuzz_copy(data, size);
    one(copy, size);
    if (size >= FMT_HEADER_LEN + FMT_WAL_FIXED_LEN) {
        fuzz_seal_header(copy, size);
        hash_xxh3_128(copy, 368, 0, copy + 368);
        one(copy, size);
    }
    return 0;
}
