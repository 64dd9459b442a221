/* The first page of a WAL segment, against a name: the input is name (24 bytes) | page. What is
 * accepted must really carry that name's timeline and address. */
#include "agent/pg_names.h"
#include "agent/wal.h"
#include "agent/wal_page.h"
#include "tests/fuzz/fuzz.h"

static void one(const char *name, const uint8_t *page_bytes, size_t size)
{
    struct wal_page page;
    struct err err;
    if (!fuzz_good(wal_page_decode(page_bytes, size, &page, &err), &err))
        return;
    FUZZ_CHECK(size >= WAL_PAGE_HEADER_LEN && pg_segment_size_valid(page.segment_size));
    int rc = wal_page_check(page_bytes, size, name, page.system_id, page.segment_size, &err);
    if (!fuzz_good(rc, &err))
        return;
    uint32_t timeline;
    uint64_t number;
    char plain[PG_SEGMENT_TEXT], again[PG_SEGMENT_TEXT];
    (void)snprintf(plain, sizeof(plain), "%.24s", name);
    FUZZ_CHECK(pg_segment_parse(plain, page.segment_size, &timeline, &number));
    FUZZ_CHECK(page.timeline <= timeline && page.address == number * page.segment_size);
    pg_segment_name(timeline, number, page.segment_size, again);
    FUZZ_CHECK(strcmp(again, plain) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char name[64] = "";
    size_t name_len = min_u64(size, 24);
    enum wal_kind kind;
    uint32_t timeline = 0;
    memcpy(name, data, name_len);
    free_mem uint8_t *page = fuzz_copy(data + name_len, size - name_len);
    FUZZ_CHECK(!wal_name_parse(name, &kind, &timeline) || timeline != 0);
    one(name, page, size - name_len);
    if (size - name_len >= WAL_PAGE_HEADER_LEN) { /* random bytes seldom begin with the magic */
        page[0] = 0x10;
        page[1] = 0xD1;
        page[2] |= 2;
        put_le32(page + 32, (uint32_t)1 << (20 + page[32] % 11));
        one(name, page, size - name_len);
    }
    return 0;
}
