/* What the server's user left beside the spools: whatever it is, what comes out is a failure with
 * one line of printable ASCII each for text and hint. */
#include "agent/wal_report.h"
#include "tests/fuzz/fuzz.h"

static bool printable(const char *text)
{
    for (; *text; text++)
        if (*text < ' ' || *text > '~')
            return false;
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err failure;
    free_mem char *text = fuzz_text(data, size);
    if (!wal_report_parse(text, "000000010000000000000007", &failure))
        return 0;
    FUZZ_CHECK(failure.code > ERR_OK && failure.code < ERR_CODE_COUNT);
    FUZZ_CHECK(failure.code != ERR_CANCELLED && failure.code != ERR_PARTIAL);
    FUZZ_CHECK(printable(failure.text) && printable(failure.hint));
    return 0;
}
