/* Fields of a record as JSON: by kind, there and back. */
#include "agent/record_fields.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "agent/pg.h"
#include "io/format.h"

/* --- writing ---------------------------------------------------------------------------------- */

json_t *field_text_to_json(const char *text)
{
    json_t *json = json_string(text);
    return json ? json : json_pack("{s:o}", "base64", json_base64(text, strlen(text)));
}

static json_t *hex_to_json(const uint8_t *bytes, size_t len)
{
    char text[2 * FMT_SHA256_LEN + 1];
    assert(2 * len < sizeof(text));
    for (size_t i = 0; i < len; i++)
        (void)snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    return json_string(text);
}

static uint64_t load_uint(const void *from, size_t size)
{
    uint16_t half;
    if (size == sizeof(half)) {
        memcpy(&half, from, sizeof(half));
        return half;
    }
    assert(size == sizeof(uint32_t) || size == sizeof(uint64_t));
    return size == sizeof(uint32_t) ? get_le32(from) : get_le64(from);
}

static json_t *field_to_json(const struct field *field, const void *from)
{
    char text[32];
    bool flag;
    switch (field->kind) {
    case FIELD_TEXT:
    case FIELD_NOTE:
        return field_text_to_json(from);
    case FIELD_UINT:
    case FIELD_TIME:
    case FIELD_LATER:
        return json_integer((json_int_t)load_uint(from, field->size));
    case FIELD_BIG:
        (void)snprintf(text, sizeof(text), "%" PRIu64, get_le64(from));
        return json_string(text);
    case FIELD_BOOL:
        memcpy(&flag, from, sizeof(flag));
        return json_boolean(flag);
    case FIELD_ID:
    case FIELD_SHA256:
        return hex_to_json(from, field->size);
    case FIELD_LSN:
        pg_lsn_format(get_le64(from), text);
        return json_string(text);
    }
    abort();
}

/* What older versions do not know is written only when there is something to say. */
static bool is_left_out(const struct field *field, const char *member)
{
    return (field->kind == FIELD_LATER && load_uint(member, field->size) == 0) ||
           (field->kind == FIELD_NOTE && member[0] == '\0');
}

void fields_to_json(const struct field *fields, size_t count, const void *from, json_t *to)
{
    for (size_t i = 0; i < count; i++) {
        const char *member = (const char *)from + fields[i].offset;
        if (!is_left_out(&fields[i], member))
            json_object_set_new(to, fields[i].key, field_to_json(&fields[i], member));
    }
}

/* --- reading ---------------------------------------------------------------------------------- */

int field_wrong(const char *key, struct err *err)
{
    return err_set(err, ERR_CORRUPT, "snapshot record: missing or wrong '%s'", key);
}

bool field_text_from_json(const json_t *json, char *to, size_t size)
{
    free_mem void *bytes = NULL;
    const char *text = json_string_value(json);
    size_t len = json_string_length(json);
    struct err ignored;
    if (json_is_object(json)) {
        if (json_get_base64(json, "base64", ERR_CORRUPT, &bytes, &len, &ignored) < 0)
            return false;
        text = bytes;
    }
    if (!text || len >= size || memchr(text, '\0', len))
        return false;
    memcpy(to, text, len);
    to[len] = '\0';
    return true;
}

static bool hex_from_json(const json_t *json, uint8_t *to, size_t len)
{
    const char *text = json_string_value(json);
    if (!text || strlen(text) != 2 * len || strspn(text, "0123456789abcdef") != 2 * len)
        return false;
    for (size_t i = 0; i < len; i++) {
        char digits[3] = {text[2 * i], text[2 * i + 1], '\0'};
        to[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    return true;
}

bool field_uint_from_json(const json_t *json, size_t size, void *to)
{
    if (!json_is_integer(json) || json_integer_value(json) < 0)
        return false;
    uint64_t value = (uint64_t)json_integer_value(json);
    if (size < sizeof(value) && value >> (8 * size))
        return false;
    memcpy(to, &value, size); /* little-endian: the low bytes */
    return true;
}

static bool big_from_json(const json_t *json, void *to)
{
    const char *text = json_string_value(json);
    if (!text || !*text || strlen(text) > 20 || strspn(text, "0123456789") != strlen(text))
        return false;
    errno = 0;
    put_le64(to, strtoull(text, NULL, 10));
    return errno == 0;
}

static bool field_from_json(const struct field *field, const json_t *json, void *to)
{
    bool flag = json_is_true(json);
    uint64_t lsn;
    switch (field->kind) {
    case FIELD_TEXT:
        return field_text_from_json(json, to, field->size);
    case FIELD_NOTE:
        return !json || field_text_from_json(json, to, field->size);
    case FIELD_UINT:
    case FIELD_TIME:
        return field_uint_from_json(json, field->size, to);
    case FIELD_LATER:
        return !json || field_uint_from_json(json, field->size, to);
    case FIELD_BIG:
        return big_from_json(json, to);
    case FIELD_BOOL:
        memcpy(to, &flag, sizeof(flag));
        return json_is_boolean(json);
    case FIELD_ID:
    case FIELD_SHA256:
        return hex_from_json(json, to, field->size);
    case FIELD_LSN:
        if (!json_is_string(json) || !pg_lsn_parse(json_string_value(json), &lsn))
            return false;
        put_le64(to, lsn);
        return true;
    }
    abort();
}

int fields_from_json(const struct field *fields, size_t count, const json_t *json, void *to,
                     struct err *err)
{
    for (size_t i = 0; i < count; i++)
        if (!field_from_json(&fields[i], json_object_get(json, fields[i].key),
                             (char *)to + fields[i].offset))
            return field_wrong(fields[i].key, err);
    return 0;
}
