/* LSNs and segment names: see pg_names.h. */
#include "agent/pg_names.h"

#include <assert.h>
#include <stdio.h>

static int hex_digit(char c, bool lower_too)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    if (lower_too && c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

/* Reads 1..8 digits; returns how many there were, 0 when none or too many. */
static size_t parse_hex32(const char *text, bool lower_too, uint32_t *ret)
{
    uint32_t value = 0;
    size_t len = 0;
    for (int digit; (digit = hex_digit(text[len], lower_too)) >= 0; len++) {
        if (len == 8)
            return 0;
        value = value << 4 | (uint32_t)digit;
    }
    *ret = value;
    return len;
}

bool pg_lsn_parse(const char *text, uint64_t *ret)
{
    uint32_t high, low;
    size_t len = parse_hex32(text, true, &high);
    if (len == 0 || text[len] != '/')
        return false;
    const char *rest = text + len + 1;
    len = parse_hex32(rest, true, &low);
    if (len == 0 || rest[len] != '\0')
        return false;
    *ret = (uint64_t)high << 32 | low;
    return true;
}

void pg_lsn_format(uint64_t lsn, char text[PG_LSN_TEXT])
{
    (void)snprintf(text, PG_LSN_TEXT, "%X/%X", (unsigned)(lsn >> 32), (unsigned)lsn);
}

bool pg_segment_size_valid(uint32_t segment_size)
{
    return segment_size >= MIB && segment_size <= GIB && (segment_size & (segment_size - 1)) == 0;
}

/* The name holds the segment number as two numbers, because it was once "log file" and "segment":
 * high = number / (4 GiB / size), low = the rest. */
void pg_segment_name(uint32_t timeline, uint64_t segment_number, uint32_t segment_size,
                     char name[PG_SEGMENT_TEXT])
{
    assert(pg_segment_size_valid(segment_size));
    uint64_t per_id = ((uint64_t)1 << 32) / segment_size;
    (void)snprintf(name, PG_SEGMENT_TEXT, "%08X%08X%08X", timeline,
                   (unsigned)(segment_number / per_id), (unsigned)(segment_number % per_id));
}

bool pg_segment_parse(const char *name, uint32_t segment_size, uint32_t *ret_timeline,
                      uint64_t *ret_segment)
{
    assert(pg_segment_size_valid(segment_size));
    uint32_t part[3] = {0, 0, 0};
    for (size_t i = 0; i < 24; i++) {
        int digit = hex_digit(name[i], false);
        if (digit < 0)
            return false;
        part[i / 8] = part[i / 8] << 4 | (uint32_t)digit;
    }
    uint64_t per_id = ((uint64_t)1 << 32) / segment_size;
    if (name[24] != '\0' || part[0] == 0 || part[2] >= per_id)
        return false;
    *ret_timeline = part[0];
    *ret_segment = part[1] * per_id + part[2];
    return true;
}
