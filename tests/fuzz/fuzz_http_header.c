/* http_header() over a header block of any bytes: the input is name | NUL | block. What it finds is
 * a line of the block, whole, without the blanks around it. */
#include "io/http.h"
#include "tests/fuzz/fuzz.h"

#include <strings.h>

static void check_value(const struct http_exchange *x, const char *name, const char *value)
{
    size_t len = strlen(value);
    FUZZ_CHECK(strchr(value, '\n') == NULL);
    FUZZ_CHECK(len == 0 || (value[0] != ' ' && value[0] != '\t' && value[0] != '\r'));
    FUZZ_CHECK(len == 0 || (value[len - 1] != ' ' && value[len - 1] != '\r'));
    size_t line_len = strlen(name) + 1 + len;
    bool found = false;
    for (size_t at = 1; !found && at + line_len <= x->head_len; at++)
        found = x->head[at - 1] == '\n' && x->head[at + strlen(name)] == ':' &&
                strncasecmp(x->head + at, name, strlen(name)) == 0 &&
                (len == 0 || memmem(x->head + at, x->head_len - at, value, len) != NULL);
    FUZZ_CHECK(found);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    free_mem char *name = fuzz_text(data, size);
    size_t skip = min_u64(strlen(name) + 1, size);
    struct http_exchange *x = calloc(1, sizeof(*x));
    FUZZ_CHECK(x != NULL);
    x->head_len = min_u64(size - skip, sizeof(x->head) - 1);
    if (x->head_len > 0)
        memcpy(x->head, data + skip, x->head_len);
    for (size_t room = 1; room <= sizeof(x->head); room = room * 4 + 1) {
        free_mem char *buf = malloc(room); /* so that a byte written behind it is seen */
        FUZZ_CHECK(buf != NULL);
        const char *value = http_header(x, name, buf, room);
        FUZZ_CHECK(value == NULL || value == buf);
        if (value != NULL)
            check_value(x, name, value);
    }
    free(x);
    return 0;
}
