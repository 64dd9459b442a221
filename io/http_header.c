/* Reads the header block of an answer. Apart from libcurl, so that the fuzzer needs nothing else.
 */
#include "io/http.h"

#include <strings.h>

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

const char *http_header(const struct http_exchange *x, const char *name, char *buf, size_t len)
{
    size_t name_len = strlen(name);
    const char *line = memchr(x->head, '\n', x->head_len); /* ends the status line */
    while (line != NULL) {
        line++;
        size_t left = x->head_len - (size_t)(line - x->head);
        const char *next = memchr(line, '\n', left);
        const char *end = next != NULL ? next : line + left;
        if ((size_t)(end - line) > name_len && line[name_len] == ':' &&
            strncasecmp(line, name, name_len) == 0) {
            const char *value = line + name_len + 1;
            while (value < end && is_blank(*value))
                value++;
            while (end > value && is_blank(end[-1]))
                end--;
            size_t value_len = (size_t)(end - value);
            if (value_len >= len || memchr(value, '\0', value_len) != NULL)
                return NULL;
            memcpy(buf, value, value_len);
            buf[value_len] = '\0';
            return buf;
        }
        line = next;
    }
    return NULL;
}
