/* Signature V4: canonical request → string to sign → signature, see sigv4.h. */
#include "io/sigv4.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>

#include "io/crypt.h"

enum { CANONICAL_MAX = 16384, SECRET_MAX = 256 };

static const char hex_digits[] = "0123456789abcdef";

static void to_hex(const uint8_t *digest, size_t len, char *ret)
{
    for (size_t i = 0; i < len; i++) {
        ret[2 * i] = hex_digits[digest[i] >> 4];
        ret[2 * i + 1] = hex_digits[digest[i] & 15];
    }
    ret[2 * len] = '\0';
}

void sigv4_date(time_t now_s, char ret[SIGV4_DATE_LEN])
{
    struct tm utc;
    bool good = gmtime_r(&now_s, &utc) != NULL &&
                strftime(ret, SIGV4_DATE_LEN, "%Y%m%dT%H%M%SZ", &utc) == SIGV4_DATE_LEN - 1;
    if (!good) /* a clock beyond the year 9999: the server will say what it thinks of it */
        (void)snprintf(ret, SIGV4_DATE_LEN, "19700101T000000Z");
}

void sigv4_hash(const void *ptr, size_t len, char ret[SIGV4_HASH_LEN])
{
    uint8_t digest[SHA256_LEN];
    sha256(ptr, len, digest);
    to_hex(digest, sizeof(digest), ret);
}

static bool unreserved(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.' || c == '_' || c == '~';
}

bool sigv4_escape(const char *text, bool keep_slash, char *to, size_t size)
{
    static const char digits[] = "0123456789ABCDEF";
    size_t at = strlen(to);
    for (; *text; text++) {
        uint8_t byte = (uint8_t)*text;
        bool plain = unreserved(*text) || (keep_slash && *text == '/');
        if (at + (plain ? 1 : 3) >= size)
            return false;
        if (plain) {
            to[at++] = *text;
        } else {
            to[at++] = '%';
            to[at++] = digits[byte >> 4];
            to[at++] = digits[byte & 15];
        }
        to[at] = '\0';
    }
    return true;
}

/* Text that grows in a fixed buffer and remembers that it did not fit. */
struct text {
    char *at;
    size_t left;
    bool over;
};

PRINTF_LIKE(2, 3) static void put(struct text *text, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int len = vsnprintf(text->at, text->left, fmt, ap);
    va_end(ap);
    if (len < 0 || (size_t)len >= text->left) {
        text->over = true;
        return;
    }
    text->at += len;
    text->left -= (size_t)len;
}

static void put_names(struct text *text, const struct sigv4_request *request)
{
    for (size_t i = 0; i < request->header_count; i++)
        put(text, "%s%s", i ? ";" : "", request->headers[i].name);
}

/* False when it does not fit. */
static bool hash_canonical(const struct sigv4_request *request, char ret[SIGV4_HASH_LEN])
{
    char buf[CANONICAL_MAX];
    struct text text = {.at = buf, .left = sizeof(buf)};
    put(&text, "%s\n%s\n%s\n", request->method, request->path, request->query);
    for (size_t i = 0; i < request->header_count; i++)
        put(&text, "%s:%s\n", request->headers[i].name, request->headers[i].value);
    put(&text, "\n");
    put_names(&text, request);
    put(&text, "\n%s", request->payload_hash);
    if (!text.over)
        sigv4_hash(buf, (size_t)(text.at - buf), ret);
    return !text.over;
}

/* The four steps from the secret to the key of one day, region and service. */
static bool derive_key(const struct sigv4_request *request, uint8_t key[SHA256_LEN])
{
    char first[SECRET_MAX + 5];
    int len = snprintf(first, sizeof(first), "AWS4%s", request->secret_key);
    bool fits = len > 0 && (size_t)len < sizeof(first);
    if (fits) {
        hmac_sha256(first, (size_t)len, request->date, 8, key);
        hmac_sha256(key, SHA256_LEN, request->region, strlen(request->region), key);
        hmac_sha256(key, SHA256_LEN, "s3", 2, key);
        hmac_sha256(key, SHA256_LEN, "aws4_request", 12, key);
    }
    explicit_bzero(first, sizeof(first));
    return fits;
}

bool sigv4_authorize(const struct sigv4_request *request, char *ret, size_t size)
{
    char hash[SIGV4_HASH_LEN], scope[160], to_sign[512], signature[SIGV4_HASH_LEN];
    uint8_t key[SHA256_LEN], mac[SHA256_LEN];
    assert(strlen(request->date) == SIGV4_DATE_LEN - 1);
    assert(request->path[0] == '/');
    int scope_len =
        snprintf(scope, sizeof(scope), "%.8s/%s/s3/aws4_request", request->date, request->region);
    if (scope_len < 0 || (size_t)scope_len >= sizeof(scope) || !hash_canonical(request, hash) ||
        !derive_key(request, key))
        return false;
    int len = snprintf(to_sign, sizeof(to_sign), "AWS4-HMAC-SHA256\n%s\n%s\n%s", request->date,
                       scope, hash);
    assert(len > 0 && (size_t)len < sizeof(to_sign));
    hmac_sha256(key, sizeof(key), to_sign, (size_t)len, mac);
    explicit_bzero(key, sizeof(key));
    to_hex(mac, sizeof(mac), signature);
    struct text text = {.at = ret, .left = size};
    put(&text, "AWS4-HMAC-SHA256 Credential=%s/%s,SignedHeaders=", request->access_key, scope);
    put_names(&text, request);
    put(&text, ",Signature=%s", signature);
    return !text.over;
}
