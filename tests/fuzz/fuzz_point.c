/* Points in time and WAL as a person writes them. A time that is accepted is printed so that it is
 * accepted again as the same moment; with UTC behind it, it is printed as it was given. */
#include "agent/pg_names.h"
#include "agent/restore.h"
#include "tests/fuzz/fuzz.h"

static void check_lsn(const char *text)
{
    char again[PG_LSN_TEXT];
    uint64_t lsn, second;
    if (!pg_lsn_parse(text, &lsn))
        return;
    pg_lsn_format(lsn, again);
    FUZZ_CHECK(pg_lsn_parse(again, &second) && second == lsn);
}

static void check_segment(const char *text)
{
    static const uint32_t sizes[] = {MIB, 16 * MIB, GIB};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        uint32_t timeline;
        uint64_t number;
        char again[PG_SEGMENT_TEXT];
        if (!pg_segment_parse(text, sizes[i], &timeline, &number))
            continue;
        pg_segment_name(timeline, number, sizes[i], again);
        FUZZ_CHECK(strcmp(text, again) == 0);
    }
}

static void check_time(const char *text)
{
    char shown[64], again[64];
    int64_t time_us, second_us;
    struct err err;
    int rc = restore_parse_time(text, &time_us, shown, sizeof(shown), &err);
    if (!fuzz_good(rc, &err)) {
        FUZZ_CHECK(err.code == ERR_USAGE);
        return;
    }
    FUZZ_CHECK(restore_parse_time(shown, &second_us, again, sizeof(again), &err) == 0);
    FUZZ_CHECK(second_us == time_us && strcmp(shown, again) == 0);
    /* The day that was written is the day that is meant: there is no 31st of February. A 60th
     * second may be the next day's first. */
    bool exact = strspn(text, "0123456789-") == 10 && text[10] == ' ' && !strchr(text, '+') &&
                 text[strlen(text) - 1] == 'Z';
    FUZZ_CHECK(!exact || strncmp(text, shown, 10) == 0 || strstr(text, ":6"));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    free_mem char *text = fuzz_text(data, size);
    check_lsn(text);
    check_segment(text);
    check_time(text);
    return 0;
}
