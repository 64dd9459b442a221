/* Output of pg_controldata. What is accepted has what recovery relies on, and is accepted again
 * behind lines of a later version that nobody here knows. */
#include "agent/pg.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char more[] = "Something of PostgreSQL 30:              1/2\n";
    struct pg_control control, second;
    free_mem char *text = fuzz_text(data, size);
    memset(&control, 0, sizeof(control));
    memset(&second, 0, sizeof(second));
    if (!pg_control_parse(text, &control))
        return 0;
    FUZZ_CHECK(pg_segment_size_valid(control.segment_size));
    FUZZ_CHECK(control.state[0] && strlen(control.state) < sizeof(control.state));
    FUZZ_CHECK(!strchr(control.state, '\n'));
    char *longer = NULL;
    FUZZ_CHECK(asprintf(&longer, "%s%s", more, text) > 0);
    FUZZ_CHECK(pg_control_parse(longer, &second));
    FUZZ_CHECK(memcmp(&control, &second, sizeof(control)) == 0);
    free(longer);
    return 0;
}
