/* LSNs and segment names. */
#include "agent/pg_names.h"
#include "tests/tap.h"

static void test_lsn(void)
{
    char text[PG_LSN_TEXT];
    uint64_t lsn = 0;
    ok(pg_lsn_parse("16/B374D848", &lsn), "an LSN parses");
    is_u64(lsn, 0x16B374D848, "its value");
    pg_lsn_format(lsn, text);
    is_str(text, "16/B374D848", "and back");
    pg_lsn_format(UINT64_MAX, text);
    is_str(text, "FFFFFFFF/FFFFFFFF", "the largest");
    ok(pg_lsn_parse("ffffffff/ffffffff", &lsn) && lsn == UINT64_MAX, "lower case is fine");
    ok(pg_lsn_parse("0/0", &lsn) && lsn == 0, "zero");
    static const char *const bad[] = {"",     "/",           "1/",          "/1",  "1/2 ",  " 1/2",
                                      "1/2/", "123456789/0", "0/123456789", "g/0", "0x1/0", "1-2"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        lsn = 7;
        ok(!pg_lsn_parse(bad[i], &lsn) && lsn == 7, "'%s' is refused", bad[i]);
    }
}

static void test_segment(void)
{
    char name[PG_SEGMENT_TEXT];
    uint32_t timeline;
    uint64_t segment;
    pg_segment_name(1, 255, 16 << 20, name);
    is_str(name, "0000000100000000000000FF", "last segment below 4 GiB");
    pg_segment_name(0xABCDEF01, 256, 16 << 20, name);
    is_str(name, "ABCDEF010000000100000000", "first one above");
    pg_segment_name(2, 5, 1 << 30, name);
    is_str(name, "000000020000000100000001", "1 GiB segments: four an id");
    static const uint32_t sizes[] = {1 << 20, 16 << 20, 64 << 20, 1 << 30};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        for (uint64_t number = 1; number < (uint64_t)1 << 44; number *= 37) {
            if (number > UINT64_MAX / sizes[i])
                break;
            pg_segment_name(3, number, sizes[i], name);
            if (!pg_segment_parse(name, sizes[i], &timeline, &segment) || timeline != 3 ||
                segment != number)
                ok(false, "%s of %u bytes goes back to %llu", name, sizes[i],
                   (unsigned long long)number);
        }
    ok(pg_segment_parse("0000000100000000000000FF", 16 << 20, &timeline, &segment), "parses");
    static const char *const bad[] = {"",
                                      "0000000100000000000000F",
                                      "0000000100000000000000FFF",
                                      "0000000100000000000000ff",
                                      "0000000000000000000000FF",
                                      "000000010000000000000100",
                                      "00000001000000000000000G",
                                      "0000000100000000000000FF.partial"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        ok(!pg_segment_parse(bad[i], 16 << 20, &timeline, &segment), "'%s' is refused", bad[i]);
    ok(pg_segment_size_valid(1 << 20) && pg_segment_size_valid(1 << 30), "1 MiB and 1 GiB");
    ok(!pg_segment_size_valid(0) && !pg_segment_size_valid(3 << 20) &&
           !pg_segment_size_valid(1U << 31),
       "other sizes are not");
}

int main(void)
{
    test_lsn();
    test_segment();
    return done();
}
