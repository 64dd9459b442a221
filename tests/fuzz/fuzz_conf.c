/* Configuration files. What is accepted is written and read again as the same values; what is
 * refused says where. */
#include "agent/conf.h"
#include "tests/fuzz/fuzz.h"

static struct conf first, second;

static void check_refusal(const struct err *err)
{
    FUZZ_CHECK(err->code == ERR_CONFIG);
    FUZZ_CHECK(strncmp(err->text, "f:", 2) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    free_mem uint8_t *copy = fuzz_copy(data, size);
    struct err err;
    if (!fuzz_good(conf_parse("f", (const char *)copy, size, &first, &err), &err)) {
        check_refusal(&err);
        return 0;
    }
    char *text = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&text, &len);
    FUZZ_CHECK(to && conf_write(&first, to) == 0 && fclose(to) == 0);
    int rc = conf_parse("f", text, len, &second, &err);
    if (rc != 0)
        fprintf(stderr, "%s\n%s\n", err.text, text);
    FUZZ_CHECK(rc == 0);
    FUZZ_CHECK(memcmp(&first, &second, sizeof(first)) == 0);
    free(text);
    return 0;
}
