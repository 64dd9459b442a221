/* Private to agent/record*.c: one table of fields an object feeds the writer and the reader of its
 * JSON, so that they cannot drift apart. Pure. */
#ifndef TIDEMARK_AGENT_RECORD_FIELDS_H
#define TIDEMARK_AGENT_RECORD_FIELDS_H

#include "agent/json.h"

enum field_kind {
    FIELD_TEXT,   /* char[], NUL-ended */
    FIELD_NOTE,   /* the same; may be missing: empty, which is not written */
    FIELD_UINT,   /* uint16_t, uint32_t, uint64_t below 2^63 */
    FIELD_TIME,   /* int64_t, not negative */
    FIELD_LATER,  /* the same; records of older versions lack it: zero, which is not written */
    FIELD_BIG,    /* uint64_t of any value, a decimal string in JSON */
    FIELD_BOOL,   /* bool */
    FIELD_ID,     /* uint8_t[ID_LEN], 32 hex digits */
    FIELD_LSN,    /* uint64_t, "X/Y" */
    FIELD_SHA256, /* uint8_t[32], 64 hex digits */
};

struct field {
    const char *key;
    enum field_kind kind;
    size_t offset; /* in the struct */
    size_t size;   /* of the member */
};

#define FIELD(kind, type, member)                                                                  \
    {                                                                                              \
#member, (kind), offsetof(type, member), sizeof(((type *)0)->member)                       \
    }

/* A string, or {"base64": …} when the text is not UTF-8. New reference. */
json_t *field_text_to_json(const char *text);
bool field_text_from_json(const json_t *json, char *to, size_t size);
/* An integer into `size` bytes; false when it does not fit. */
bool field_uint_from_json(const json_t *json, size_t size, void *to);
/* ERR_CORRUPT: missing or wrong 'key'. */
int field_wrong(const char *key, struct err *err);

/* The struct at from as keys of the object; and back, into the struct at to. */
void fields_to_json(const struct field *fields, size_t count, const void *from, json_t *to);
int fields_from_json(const struct field *fields, size_t count, const json_t *json, void *to,
                     struct err *err);

#endif
