/* libpq connection strings, by the rules of conninfo_parse() and conninfo_uri_parse_options() in
 * fe-connect.c: values may be quoted, a backslash takes the next byte; in a URI a password stands
 * behind the user or among the parameters. */
#include "agent/conninfo.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct out {
    char *at;
    size_t left; /* with the NUL */
    bool full;
    const char *mask; /* stands for a secret; NULL: its key goes, too */
};

static void put(struct out *out, const char *bytes, size_t len)
{
    if (len >= out->left) {
        out->full = true;
        return;
    }
    memcpy(out->at, bytes, len);
    out->at += len;
    out->left -= len;
    *out->at = '\0';
}

static bool is_key(const char *key, const char *ptr, size_t len)
{
    return strlen(key) == len && memcmp(key, ptr, len) == 0;
}

static bool is_secret(const char *ptr, size_t len)
{
    static const char *const keys[] = {"password", "sslpassword", "oauth_client_secret",
                                       "scram_client_key", "scram_server_key"};
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (is_key(keys[i], ptr, len))
            return true;
    return false;
}

/* --- keyword = value -------------------------------------------------------------------------- */

static const char *skip_blanks(const char *at)
{
    while (isspace((unsigned char)*at))
        at++;
    return at;
}

/* The byte behind a value; NULL when its quote is not closed. */
static const char *value_end(const char *at)
{
    bool quoted = *at == '\'';
    for (at += quoted; *at && (quoted ? *at != '\'' : !isspace((unsigned char)*at)); at++)
        if (*at == '\\' && at[1])
            at++;
    if (!quoted)
        return at;
    return *at ? at + 1 : NULL;
}

struct pair {
    const char *key, *value; /* the latter with its quotes */
    size_t key_len, value_len;
};

/* The pair at *at, which is no blank; moves *at to the next one. False: there is none. */
static bool take_pair(const char **at, struct pair *ret)
{
    const char *key_end = *at;
    while (*key_end && *key_end != '=' && !isspace((unsigned char)*key_end))
        key_end++;
    const char *equals = skip_blanks(key_end);
    if (key_end == *at || *equals != '=')
        return false;
    ret->key = *at;
    ret->key_len = (size_t)(key_end - *at);
    ret->value = skip_blanks(equals + 1);
    const char *end = value_end(ret->value);
    if (!end)
        return false;
    ret->value_len = (size_t)(end - ret->value);
    *at = skip_blanks(end);
    return true;
}

static bool copy_pairs(const char *text, struct out *out)
{
    bool first = true;
    struct pair pair;
    for (const char *at = skip_blanks(text); *at;) {
        if (!take_pair(&at, &pair))
            return false;
        bool secret = is_secret(pair.key, pair.key_len);
        if (secret && !out->mask)
            continue;
        put(out, " ", first ? 0 : 1);
        put(out, pair.key, pair.key_len);
        put(out, "=", 1);
        put(out, secret ? out->mask : pair.value, secret ? strlen(out->mask) : pair.value_len);
        first = false;
    }
    return true;
}

/* --- URI -------------------------------------------------------------------------------------- */

static bool is_uri(const char *text)
{
    return strncmp(text, "postgresql://", 13) == 0 || strncmp(text, "postgres://", 11) == 0;
}

/* The byte behind "user:secret@", at itself where there are no credentials. The secret may hold a
 * '?': they end at the first '@' that no '/' precedes. */
static const char *skip_credentials(const char *at)
{
    size_t len = strcspn(at, "@/");
    return at[len] == '@' ? at + len + 1 : at;
}

/* "user:secret@" becomes "user@", or "user:***@". */
static const char *copy_authority(const char *at, struct out *out)
{
    const char *host = skip_credentials(at);
    if (host > at) {
        size_t user_len = strcspn(at, ":@");
        put(out, at, user_len);
        if (at[user_len] == ':' && out->mask) {
            put(out, ":", 1);
            put(out, out->mask, strlen(out->mask));
        }
        put(out, "@", 1);
        at = host;
    }
    size_t len = strcspn(at, "/?");
    put(out, at, len);
    return at + len;
}

static void copy_parameters(const char *at, struct out *out)
{
    bool first = true;
    while (*at) {
        size_t len = strcspn(at, "&"), key_len = strcspn(at, "=&");
        bool secret = is_secret(at, key_len);
        /* A key may be written with %xx: then nobody looks what it says. */
        if ((!secret || out->mask) && !memchr(at, '%', key_len)) {
            put(out, first ? "?" : "&", 1);
            put(out, at, secret ? key_len : len);
            put(out, "=", secret ? 1 : 0);
            put(out, secret ? out->mask : "", secret ? strlen(out->mask) : 0);
            first = false;
        }
        at += len + (at[len] == '&');
    }
}

static bool copy_uri(const char *text, struct out *out)
{
    const char *at = strstr(text, "//") + 2;
    put(out, text, (size_t)(at - text));
    at = copy_authority(at, out);
    size_t len = strcspn(at, "?");
    put(out, at, len);
    if (at[len] == '?')
        copy_parameters(at + len + 1, out);
    return true;
}

static bool copy(const char *text, const char *mask, char *ret, size_t size)
{
    struct out out = {.at = ret, .left = size, .mask = mask};
    ret[0] = '\0';
    bool good = is_uri(text) ? copy_uri(text, &out) : copy_pairs(text, &out);
    if (good && !out.full)
        return true;
    ret[0] = '\0';
    return false;
}

bool conninfo_public(const char *text, char *ret, size_t size)
{
    return copy(text, NULL, ret, size);
}

bool conninfo_masked(const char *text, char *ret, size_t size)
{
    return copy(text, "***", ret, size);
}

/* --- one value -------------------------------------------------------------------------------- */

/* False: it does not fit, or holds a NUL. */
static bool put_byte(struct out *out, char byte)
{
    put(out, &byte, 1);
    return byte != '\0' && !out->full;
}

static bool unquote(const char *ptr, size_t len, struct out *out)
{
    bool quoted = len > 0 && *ptr == '\'';
    const char *end = ptr + len - quoted;
    for (ptr += quoted; ptr < end; ptr++) {
        if (*ptr == '\\' && ++ptr == end)
            break;
        if (!put_byte(out, *ptr))
            return false;
    }
    return true;
}

static bool decode_percent(const char *ptr, size_t len, struct out *out)
{
    for (const char *end = ptr + len; ptr < end; ptr++) {
        char byte = *ptr, hex[3] = "";
        if (byte == '%') {
            if (end - ptr < 3 || !isxdigit((unsigned char)ptr[1]) ||
                !isxdigit((unsigned char)ptr[2]))
                return false;
            memcpy(hex, ptr + 1, 2);
            byte = (char)strtoul(hex, NULL, 16);
            ptr += 2;
        }
        if (!put_byte(out, byte))
            return false;
    }
    return true;
}

static bool value_of_pairs(const char *text, const char *key, char *ret, size_t size)
{
    bool found = false;
    struct pair pair;
    for (const char *at = skip_blanks(text); *at;) {
        if (!take_pair(&at, &pair))
            return false;
        if (!is_key(key, pair.key, pair.key_len))
            continue;
        struct out out = {.at = ret, .left = size};
        ret[0] = '\0';
        found = unquote(pair.value, pair.value_len, &out);
        if (!found)
            return false;
    }
    return found;
}

static bool value_of_parameters(const char *at, const char *key, char *ret, size_t size)
{
    bool found = false;
    while (*at) {
        char name[64];
        size_t len = strcspn(at, "&"), key_len = strcspn(at, "=&");
        struct out out = {.at = name, .left = sizeof(name)};
        name[0] = '\0';
        if (key_len < len && decode_percent(at, key_len, &out) && strcmp(name, key) == 0) {
            out = (struct out){.at = ret, .left = size};
            ret[0] = '\0';
            found = decode_percent(at + key_len + 1, len - key_len - 1, &out);
            if (!found)
                return false;
        }
        at += len + (at[len] == '&');
    }
    return found;
}

bool conninfo_value(const char *text, const char *key, char *ret, size_t size)
{
    bool found;
    ret[0] = '\0';
    if (is_uri(text)) {
        const char *at = skip_credentials(strstr(text, "//") + 2);
        at += strcspn(at, "?");
        found = value_of_parameters(*at ? at + 1 : at, key, ret, size);
    } else {
        found = value_of_pairs(text, key, ret, size);
    }
    if (!found)
        ret[0] = '\0';
    return found;
}
