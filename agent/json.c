/* JSON: typed access and files, see json.h. */
#include "agent/json.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>

#include "agent/nearest.h"
#include "io/file.h"

enum { FILE_LEN_MAX = 64 << 20 };

int json_parse(const char *text, size_t len, enum err_code code, json_t **ret, struct err *err)
{
    json_error_t error;
    json_t *json = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
    if (!json)
        return err_set(err, code, "not valid JSON at line %d, column %d: %s", error.line,
                       error.column, error.text);
    *ret = json;
    return 0;
}

char *json_text(const json_t *json)
{
    char *text = json_dumps(json, JSON_COMPACT | JSON_ENCODE_ANY);
    if (!text)
        abort(); /* out of memory: nothing sensible is left to do with a control message */
    return text;
}

void json_append_text(json_t *array, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    (void)json_array_append_new(array, json_string(text));
}

/* The value at key, or NULL when it is absent or null. */
static json_t *json_present(const json_t *obj, const char *key)
{
    json_t *value = json_object_get(obj, key);
    return json_is_null(value) ? NULL : value;
}

static int json_wrong(enum err_code code, const char *key, struct err *err)
{
    return err_set(err, code, "missing or wrong '%s'", key);
}

int json_opt_string(const json_t *obj, const char *key, enum err_code code, const char **ret,
                    struct err *err)
{
    const json_t *value = json_present(obj, key);
    if (!value)
        return 0;
    /* A NUL inside would cut the string silently in C. */
    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
        return json_wrong(code, key, err);
    *ret = json_string_value(value);
    return 0;
}

int json_opt_u64(const json_t *obj, const char *key, enum err_code code, uint64_t *ret,
                 struct err *err)
{
    const json_t *value = json_present(obj, key);
    if (!value)
        return 0;
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return json_wrong(code, key, err);
    *ret = (uint64_t)json_integer_value(value);
    return 0;
}

int json_opt_bool(const json_t *obj, const char *key, enum err_code code, bool *ret,
                  struct err *err)
{
    const json_t *value = json_present(obj, key);
    if (!value)
        return 0;
    if (!json_is_boolean(value))
        return json_wrong(code, key, err);
    *ret = json_is_true(value);
    return 0;
}

int json_get_string(const json_t *obj, const char *key, enum err_code code, const char **ret,
                    struct err *err)
{
    if (!json_present(obj, key))
        return json_wrong(code, key, err);
    return json_opt_string(obj, key, code, ret, err);
}

int json_get_u64(const json_t *obj, const char *key, enum err_code code, uint64_t *ret,
                 struct err *err)
{
    if (!json_present(obj, key))
        return json_wrong(code, key, err);
    return json_opt_u64(obj, key, code, ret, err);
}

static bool is_known(const char *key, const char *const *known)
{
    for (; *known; known++)
        if (strcmp(key, *known) == 0)
            return true;
    return false;
}

int json_check_keys(const json_t *obj, const char *const *known, struct err *err)
{
    if (!json_is_object(obj))
        return err_set(err, ERR_USAGE, "expected a JSON object");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)obj, key, value)
    {
        if (is_known(key, known))
            continue;
        const char *near = nearest_name(key, known);
        if (near)
            return err_set(err, ERR_USAGE, "unknown field '%.100s' (did you mean '%s'?)", key,
                           near);
        return err_set(err, ERR_USAGE, "unknown field '%.100s'", key);
    }
    return 0;
}

/* --- base64 (RFC 4648 §4) ------------------------------------------------------------------------
 */
static const char base64_digits[64] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

json_t *json_base64(const void *ptr, size_t len)
{
    const uint8_t *from = ptr;
    char *text = malloc((len + 2) / 3 * 4 + 1);
    if (!text)
        abort();
    char *to = text;
    for (size_t i = 0; i < len; i += 3) {
        size_t rest = len - i;
        uint32_t bits = (uint32_t)from[i] << 16 | (rest > 1 ? (uint32_t)from[i + 1] << 8 : 0) |
                        (rest > 2 ? from[i + 2] : 0);
        *to++ = base64_digits[bits >> 18];
        *to++ = base64_digits[bits >> 12 & 63];
        *to++ = rest > 1 ? base64_digits[bits >> 6 & 63] : '=';
        *to++ = rest > 2 ? base64_digits[bits & 63] : '=';
    }
    json_t *json = json_stringn_nocheck(text, (size_t)(to - text));
    free(text);
    if (!json)
        abort();
    return json;
}

static int base64_value(char c)
{
    const char *at = c ? memchr(base64_digits, c, sizeof(base64_digits)) : NULL;
    return at ? (int)(at - base64_digits) : -1;
}

/* Decodes text (len a multiple of 4) into to; returns the length or -1. Bits that a canonical
 * encoder leaves zero must be zero: one text for one value. */
static ssize_t base64_decode(const char *text, size_t len, uint8_t *to)
{
    size_t out = 0;
    for (size_t i = 0; i < len; i += 4) {
        bool last = i + 4 == len;
        unsigned pad = last ? (unsigned)(text[i + 3] == '=') : 0;
        pad += pad && text[i + 2] == '=';
        uint32_t bits = 0;
        for (size_t k = 0; k < 4; k++) {
            int value = k >= 4 - pad ? 0 : base64_value(text[i + k]);
            if (value < 0)
                return -1;
            bits = bits << 6 | (uint32_t)value;
        }
        if ((pad == 1 && (bits & 0xff)) || (pad == 2 && (bits & 0xffff)))
            return -1;
        for (unsigned k = 0; k < 3 - pad; k++)
            to[out++] = (uint8_t)(bits >> (16 - 8 * k));
    }
    return (ssize_t)out;
}

int json_get_base64(const json_t *obj, const char *key, enum err_code code, void **ret,
                    size_t *ret_len, struct err *err)
{
    const json_t *value = json_object_get(obj, key);
    size_t len = json_string_length(value);
    if (!json_is_string(value) || len % 4)
        return json_wrong(code, key, err);
    free_mem uint8_t *bytes = malloc(len / 4 * 3 + 1);
    if (!bytes)
        return err_set(err, ERR_INTERNAL, "out of memory");
    ssize_t out = base64_decode(json_string_value(value), len, bytes);
    if (out < 0)
        return json_wrong(code, key, err);
    *ret = take_ptr(&bytes);
    *ret_len = (size_t)out;
    return 0;
}

/* --- files -------------------------------------------------------------------------------------*/
/* The temporary name is the writer's own: threads and processes may save the same path. */
static int save_temporary(const char *temporary, const json_t *json, bool durable, struct err *err)
{
    free_mem char *text = json_text(json);
    close_fd int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "create '%s'", temporary);
    if (write_all(fd, text, strlen(text)) < 0 || write_all(fd, "\n", 1) < 0)
        return err_sys(err, ERR_DEVICE, "write '%s'", temporary);
    if (durable && fsync(fd) < 0)
        return err_sys(err, ERR_DEVICE, "sync '%s'", temporary);
    if (close(take_fd(&fd)) < 0)
        return err_sys(err, ERR_DEVICE, "close '%s'", temporary);
    return 0;
}

int json_save(const char *path, const json_t *json, bool durable, struct err *err)
{
    char temporary[PATH_MAX];
    int len = snprintf(temporary, sizeof(temporary), "%s.%d.%d.tmp", path, getpid(), gettid());
    if (len < 0 || (size_t)len >= sizeof(temporary))
        return err_set(err, ERR_DEVICE, "path too long: '%s'", path);
    int rc = save_temporary(temporary, json, durable, err);
    if (rc == 0 && rename(temporary, path) < 0)
        rc = err_sys(err, ERR_DEVICE, "rename '%s' to '%s'", temporary, path);
    if (rc < 0) {
        (void)unlink(temporary);
        return rc;
    }
    return durable ? sync_parent(path, err) : 0;
}

int json_load_path(const char *path, json_t **ret, struct err *err)
{
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return err_set(err, ERR_MISSING, "'%s' does not exist", path);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_sys(err, ERR_DEVICE, "stat '%s'", path);
    if (st.st_size > FILE_LEN_MAX)
        return err_set(err, ERR_CORRUPT, "'%s' is too long", path);
    free_mem char *text = malloc((size_t)st.st_size + 1);
    if (!text)
        return err_set(err, ERR_INTERNAL, "out of memory");
    size_t len = 0;
    if (read_all(fd, text, (size_t)st.st_size, &len) < 0)
        return err_sys(err, ERR_DEVICE, "read '%s'", path);
    int rc = json_parse(text, len, ERR_CORRUPT, ret, err);
    return rc < 0 ? err_prefix(err, "'%s'", path) : 0;
}
