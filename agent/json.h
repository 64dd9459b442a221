/* JSON: jansson behind one wrapper, plus typed getters that fill struct err. Values follow
 * jansson's reference counting: `new` results are owned by the caller (json_decref), `borrowed`
 * ones by their parent. One thread per tree. */
#ifndef TIDEMARK_AGENT_JSON_H
#define TIDEMARK_AGENT_JSON_H

#include <jansson.h>

#include "io/err.h"

static inline void cleanup_json(json_t **json)
{
    json_decref(*json);
}
#define free_json __attribute__((cleanup(cleanup_json)))

/* The string under key, "" when there is none or it is none; borrowed. */
static inline const char *json_str(const json_t *obj, const char *key)
{
    const char *text = json_string_value(json_object_get(obj, key));
    return text ? text : "";
}

static inline bool json_is(const json_t *obj, const char *key, const char *value)
{
    return strcmp(json_str(obj, key), value) == 0;
}

/* Parses len bytes; duplicate keys and trailing bytes are errors. code is what a bad text means to
 * the caller (ERR_USAGE for requests, ERR_CORRUPT for files). Returns a new reference. */
int json_parse(const char *text, size_t len, enum err_code code, json_t **ret, struct err *err);

/* Compact text with a NUL, malloc'ed, owned by the caller. Never fails but for memory (aborts). */
char *json_text(const json_t *json);

/* Appends a text, cut at 511 bytes, to an array of texts: warnings of a plan. */
void json_append_text(json_t *array, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Getters: the key must be there with the right type, else code "missing or wrong 'key'". Strings
 * are borrowed. The _opt forms leave *ret as it is when the key is absent or null. */
int json_get_string(const json_t *obj, const char *key, enum err_code code, const char **ret,
                    struct err *err);
int json_get_u64(const json_t *obj, const char *key, enum err_code code, uint64_t *ret,
                 struct err *err);
int json_opt_string(const json_t *obj, const char *key, enum err_code code, const char **ret,
                    struct err *err);
int json_opt_u64(const json_t *obj, const char *key, enum err_code code, uint64_t *ret,
                 struct err *err);
int json_opt_bool(const json_t *obj, const char *key, enum err_code code, bool *ret,
                  struct err *err);

/* ERR_USAGE "unknown field 'x' (did you mean 'y'?)" unless every key is in the NULL-ended list. */
int json_check_keys(const json_t *obj, const char *const *known, struct err *err);

/* Binary as base64 (RFC 4648, padded). to_base64 returns a new json string; from_ returns
 * malloc'ed bytes owned by the caller. */
json_t *json_base64(const void *ptr, size_t len);
int json_get_base64(const json_t *obj, const char *key, enum err_code code, void **ret,
                    size_t *ret_len, struct err *err);

/* Atomic replace with fsync of file and directory; mode 0600. read: ERR_MISSING, ERR_CORRUPT. */
int json_save(const char *path, const json_t *json, bool durable, struct err *err);
int json_load_path(const char *path, json_t **ret, struct err *err);

#endif
