/* libpq connection strings, by the rules of conninfo_parse() and conninfo_uri_parse_options() in
 * fe-connect.c: values may be quoted, a backslash takes the next byte; in a URI a password stands
 * behind the user or among the parameters. */
#include "agent/conninfo.h"

#include <ctype.h>
#include <stdio.h>
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

static bool is_secret(const char *key, size_t len)
{
    static const char *const keys[] = {"password", "sslpassword", "oauth_client_secret",
                                       "scram_client_key", "scram_server_key"};
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (strlen(keys[i]) == len && memcmp(keys[i], key, len) == 0)
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

static bool copy_pairs(const char *text, struct out *out)
{
    bool first = true;
    for (const char *at = skip_blanks(text); *at; at = skip_blanks(at)) {
        const char *key = at;
        while (*at && *at != '=' && !isspace((unsigned char)*at))
            at++;
        size_t key_len = (size_t)(at - key);
        at = skip_blanks(at);
        if (key_len == 0 || *at != '=')
            return false;
        const char *value = skip_blanks(at + 1);
        at = value_end(value);
        if (!at)
            return false;
        bool secret = is_secret(key, key_len);
        if (secret && !out->mask)
            continue;
        put(out, " ", first ? 0 : 1);
        put(out, key, key_len);
        put(out, "=", 1);
        put(out, secret ? out->mask : value, secret ? strlen(out->mask) : (size_t)(at - value));
        first = false;
    }
    return true;
}

/* --- URI -------------------------------------------------------------------------------------- */

static bool is_uri(const char *text)
{
    return strncmp(text, "postgresql://", 13) == 0 || strncmp(text, "postgres://", 11) == 0;
}

/* "user:secret@" becomes "user@", or "user:***@". The secret may hold a '?': credentials end at the
 * first '@' that no '/' precedes. */
static const char *copy_authority(const char *at, struct out *out)
{
    size_t len = strcspn(at, "@/");
    if (at[len] == '@') {
        const char *colon = memchr(at, ':', len);
        put(out, at, colon ? (size_t)(colon - at) : len);
        if (colon && out->mask) {
            put(out, ":", 1);
            put(out, out->mask, strlen(out->mask));
        }
        put(out, "@", 1);
        at += len + 1;
    }
    len = strcspn(at, "/?");
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
