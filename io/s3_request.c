/* Building and signing S3 requests: see s3_request.h. What the answers mean is in s3_judge.c. */
#include "io/s3_request.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "io/crypt.h"

static const char empty_hash[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/* --- the operations ----------------------------------------------------------------------------*/
/* "/bucket/prefix/name", or without the bucket when the host has it. Nothing in it needs escaping:
 * names and prefixes consist of unreserved characters (store_name_valid). */
static void set_path(struct s3_call *call, const struct s3_service *service, const char *name)
{
    bool in_host = service->addressing == STORE_S3_VIRTUAL;
    int len =
        snprintf(call->path, sizeof(call->path), "/%s%s%s%s", in_host ? "" : service->bucket,
                 in_host || name == NULL ? "" : "/", name ? service->prefix : "", name ? name : "");
    assert(len > 0 && (size_t)len < sizeof(call->path));
}

static uint64_t hash_text(const char *text)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (; *text; text++)
        hash = (hash ^ (uint8_t)*text) * 0x100000001b3u;
    return hash;
}

/* object: NULL for operations on the bucket. The exchange's done and owner stay. */
static void begin(struct s3_call *call, const struct s3_service *service, enum s3_op op,
                  const char *name, const char *object, uint64_t now_ms)
{
    call->op = op;
    call->got = 0;
    call->object_size = call->offset = 0;
    call->len = 0;
    call->to = NULL;
    (void)snprintf(call->name, sizeof(call->name), "%s", name);
    call->conditional = call->maybe_executed = false;
    call->tries = call->doubts = 0;
    call->moved = false;
    call->start_ms = now_ms;
    call->deadline_ms = now_ms + service->retry_timeout_ms;
    call->random = service->seed ^ hash_text(name) ^ now_ms;
    call->query[0] = call->payload_md5[0] = call->checksum[0] = '\0';
    call->lock_mode = STORE_LOCK_NONE;
    (void)snprintf(call->payload_hash, sizeof(call->payload_hash), "%s", empty_hash);
    set_path(call, service, object);
    call->exchange.body = NULL;
    call->exchange.body_len = 0;
    call->exchange.answer = call->answer;
    call->exchange.answer_capacity = sizeof(call->answer);
}

static void to_base64(const uint8_t *ptr, size_t len, char *ret)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < len; i += 3) {
        uint32_t bits = (uint32_t)ptr[i] << 16 | (i + 1 < len ? (uint32_t)ptr[i + 1] << 8 : 0) |
                        (i + 2 < len ? ptr[i + 2] : 0);
        *ret++ = digits[bits >> 18];
        *ret++ = digits[bits >> 12 & 63];
        *ret++ = i + 1 < len ? digits[bits >> 6 & 63] : '=';
        *ret++ = i + 2 < len ? digits[bits & 63] : '=';
    }
    *ret = '\0';
}

/* Of a digest as hex. */
static void hash_to_base64(const char hash[SIGV4_HASH_LEN], char ret[48])
{
    uint8_t digest[SIGV4_HASH_LEN / 2];
    for (size_t i = 0; i < sizeof(digest); i++) {
        char pair[3] = {hash[2 * i], hash[2 * i + 1], '\0'};
        digest[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    to_base64(digest, sizeof(digest), ret);
}

void s3_call_put(struct s3_call *call, const struct s3_service *service, const char *name,
                 const void *ptr, size_t len, uint64_t now_ms)
{
    begin(call, service, S3_PUT, name, name, now_ms);
    call->conditional = service->create_once != S3_CREATE_ONCE_NO;
    sigv4_hash(ptr, len, call->payload_hash);
    hash_to_base64(call->payload_hash, call->checksum);
    if (store_locks(name)) {
        call->lock_mode = service->lock_mode;
        call->lock_until_s = service->lock_until_s;
        call->lock_s = service->lock_s;
    }
    call->exchange.body = ptr;
    call->exchange.body_len = len;
}

void s3_call_get(struct s3_call *call, const struct s3_service *service, const char *name,
                 uint64_t offset, void *buf, size_t len, uint64_t now_ms)
{
    assert(len > 0);
    begin(call, service, S3_GET, name, name, now_ms);
    call->offset = offset;
    call->len = len;
    call->to = buf;
    if (len < sizeof(call->answer))
        return;
    call->exchange.answer = buf;
    call->exchange.answer_capacity = len;
}

void s3_call_look(struct s3_call *call, const struct s3_service *service, const char *name,
                  uint64_t now_ms)
{
    s3_call_get(call, service, name, 0, call->answer, 1, now_ms);
}

/* Parameters in ascending order, as the signature wants them. */
void s3_call_list(struct s3_call *call, const struct s3_service *service, const char *prefix,
                  const char *token, unsigned count, void *buf, size_t capacity, uint64_t now_ms)
{
    assert(count > 0 && count <= S3_LIST_MAX);
    begin(call, service, S3_LIST, prefix, NULL, now_ms);
    bool fits = true;
    if (token[0]) {
        (void)snprintf(call->query, sizeof(call->query), "continuation-token=");
        fits = sigv4_escape(token, false, call->query, sizeof(call->query));
    }
    size_t at = strlen(call->query);
    int len = snprintf(call->query + at, sizeof(call->query) - at,
                       "%sencoding-type=url&list-type=2&max-keys=%u&prefix=", at ? "&" : "", count);
    fits = fits && len > 0 && (size_t)len < sizeof(call->query) - at &&
           sigv4_escape(service->prefix, false, call->query, sizeof(call->query)) &&
           sigv4_escape(prefix, false, call->query, sizeof(call->query));
    assert(fits); /* S3_TOKEN_MAX, S3_PREFIX_MAX, STORE_NAME_MAX */
    call->exchange.answer = buf;
    call->exchange.answer_capacity = capacity;
}

void s3_call_delete(struct s3_call *call, const struct s3_service *service, const char *name,
                    uint64_t now_ms)
{
    begin(call, service, S3_DELETE, name, name, now_ms);
}

/* A body of XML. Swift insists on Content-MD5 for it, AWS does for locks. */
static void set_document(struct s3_call *call, const void *body, size_t body_len)
{
    uint8_t digest[MD5_LEN];
    sigv4_hash(body, body_len, call->payload_hash);
    md5(body, body_len, digest);
    to_base64(digest, sizeof(digest), call->payload_md5);
    call->exchange.body = body;
    call->exchange.body_len = body_len;
}

void s3_call_delete_batch(struct s3_call *call, const struct s3_service *service, const void *body,
                          size_t body_len, void *buf, size_t capacity, uint64_t now_ms)
{
    begin(call, service, S3_DELETE_BATCH, "", NULL, now_ms);
    (void)snprintf(call->query, sizeof(call->query), "delete=");
    set_document(call, body, body_len);
    call->exchange.answer = buf;
    call->exchange.answer_capacity = capacity;
}

/* --- locks and versions ------------------------------------------------------------------------*/
void s3_date_format(int64_t time_s, char ret[S3_DATE_LEN])
{
    time_t clock = (time_t)time_s;
    struct tm utc;
    if (gmtime_r(&clock, &utc) == NULL ||
        strftime(ret, S3_DATE_LEN, "%Y-%m-%dT%H:%M:%SZ", &utc) == 0)
        ret[0] = '\0';
}

bool s3_date_parse(const char *text, int64_t *ret_s)
{
    struct tm utc = {0};
    const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &utc);
    if (rest != NULL && *rest == '.')
        rest += 1 + strspn(rest + 1, "0123456789");
    if (rest == NULL || strcmp(rest, "Z") != 0)
        return false;
    *ret_s = (int64_t)timegm(&utc);
    return true;
}

static const char *const lock_words[] = {[STORE_LOCK_NONE] = "",
                                         [STORE_LOCK_COMPLIANCE] = "COMPLIANCE",
                                         [STORE_LOCK_GOVERNANCE] = "GOVERNANCE"};

void s3_call_read_lock(const struct s3_call *call, struct store_lock *ret)
{
    const struct http_exchange *x = &call->exchange;
    char mode[16], date[48], hold[8];
    *ret = (struct store_lock){
        .held = http_header(x, "x-amz-object-lock-legal-hold", hold, sizeof(hold)) != NULL &&
                strcmp(hold, "ON") == 0};
    if (http_header(x, "x-amz-object-lock-mode", mode, sizeof(mode)) == NULL ||
        http_header(x, "x-amz-object-lock-retain-until-date", date, sizeof(date)) == NULL ||
        !s3_date_parse(date, &ret->until_s))
        return;
    ret->mode = strcmp(mode, lock_words[STORE_LOCK_COMPLIANCE]) == 0 ? STORE_LOCK_COMPLIANCE
                                                                     : STORE_LOCK_GOVERNANCE;
}

void s3_call_ask(struct s3_call *call, const struct s3_service *service, const char *what,
                 uint64_t now_ms)
{
    begin(call, service, S3_ASK, what, NULL, now_ms);
    (void)snprintf(call->query, sizeof(call->query), "%s=", what);
}

void s3_call_retain(struct s3_call *call, const struct s3_service *service, const char *name,
                    enum store_lock_mode mode, int64_t until_s, uint64_t now_ms)
{
    char date[S3_DATE_LEN];
    begin(call, service, S3_RETAIN, name, name, now_ms);
    s3_date_format(until_s, date);
    int len =
        snprintf(call->retention, sizeof(call->retention),
                 "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>%s</Mode>"
                 "<RetainUntilDate>%s</RetainUntilDate></Retention>",
                 lock_words[mode], date);
    assert(len > 0 && (size_t)len < sizeof(call->retention));
    (void)snprintf(call->query, sizeof(call->query), "retention=");
    set_document(call, call->retention, (size_t)len);
}

void s3_call_list_versions(struct s3_call *call, const struct s3_service *service,
                           const char *prefix, const char *key_marker, const char *version_marker,
                           void *buf, size_t capacity, uint64_t now_ms)
{
    begin(call, service, S3_LIST, prefix, NULL, now_ms);
    const struct {
        const char *name, *value, *more;
    } parts[] = {{"encoding-type=", "url", ""},
                 {"&key-marker=", key_marker, ""},
                 {"&max-keys=", "1000", ""},
                 {"&prefix=", service->prefix, prefix},
                 {"&version-id-marker=", version_marker, ""},
                 {"&versions=", "", ""}};
    bool fits = true;
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        size_t at = strlen(call->query);
        if (strstr(parts[i].name, "marker") != NULL && parts[i].value[0] == '\0')
            continue;
        (void)snprintf(call->query + at, sizeof(call->query) - at, "%s", parts[i].name);
        fits = fits && sigv4_escape(parts[i].value, false, call->query, sizeof(call->query)) &&
               sigv4_escape(parts[i].more, false, call->query, sizeof(call->query));
    }
    assert(fits); /* S3_KEY_MAX, S3_VERSION_MAX, S3_PREFIX_MAX, STORE_NAME_MAX */
    call->exchange.answer = buf;
    call->exchange.answer_capacity = capacity;
}

void s3_call_look_version(struct s3_call *call, const struct s3_service *service, const char *name,
                          const char *version, uint64_t now_ms)
{
    s3_call_look(call, service, name, now_ms);
    (void)snprintf(call->query, sizeof(call->query), "versionId=");
    bool fits = sigv4_escape(version, false, call->query, sizeof(call->query));
    assert(fits);
}

/* --- signing -----------------------------------------------------------------------------------*/
/* The headers of one try: those that are signed, sorted by name, and then as lines. */
struct headers {
    struct sigv4_header list[SIGV4_HEADERS_MAX];
    size_t count;
};

static void add(struct headers *headers, const char *name, const char *value)
{
    assert(headers->count < SIGV4_HEADERS_MAX);
    assert(headers->count == 0 || strcmp(headers->list[headers->count - 1].name, name) < 0);
    headers->list[headers->count++] = (struct sigv4_header){name, value};
}

/* Appends one line to headers_text and points headers[index] to it. */
PRINTF_LIKE(3, 4)
static size_t add_line(struct s3_call *call, size_t index, const char *fmt, ...)
{
    size_t at = 0;
    if (index > 0)
        at = (size_t)(call->headers[index - 1] - call->headers_text) +
             strlen(call->headers[index - 1]) + 1;
    va_list ap;
    va_start(ap, fmt);
    int len = vsnprintf(call->headers_text + at, sizeof(call->headers_text) - at, fmt, ap);
    va_end(ap);
    assert(len > 0 && at + (size_t)len < sizeof(call->headers_text)); /* S3_SESSION_MAX */
    call->headers[index] = call->headers_text + at;
    return index + 1;
}

static void write_lines(struct s3_call *call, const struct headers *headers,
                        const char *authorization)
{
    size_t index = 0;
    for (size_t i = 0; i < headers->count; i++)
        index = add_line(call, index, "%s: %s", headers->list[i].name, headers->list[i].value);
    index = add_line(call, index, "Authorization: %s", authorization);
    static_assert(ARRAY_LEN(call->headers) == SIGV4_HEADERS_MAX + 2, "Authorization and NULL");
    call->headers[index] = NULL;
}

static void set_target(struct s3_call *call)
{
    (void)snprintf(call->target, sizeof(call->target), "%s%s%s", call->path,
                   call->query[0] ? "?" : "", call->query);
}

/* No server takes a date that is over: what was to be locked until then is locked for a moment. */
static int64_t lock_date(const struct s3_call *call, time_t now_s)
{
    enum { MOMENT_S = 60 };
    if (call->lock_until_s == 0)
        return (int64_t)now_s + (int64_t)call->lock_s;
    return call->lock_until_s > (int64_t)now_s ? call->lock_until_s : (int64_t)now_s + MOMENT_S;
}

void s3_call_sign(struct s3_call *call, const struct s3_service *service, time_t now_s)
{
    static const char *const methods[] = {
        [S3_PUT] = "PUT",           [S3_GET] = "GET", [S3_LIST] = "GET",  [S3_DELETE] = "DELETE",
        [S3_DELETE_BATCH] = "POST", [S3_ASK] = "GET", [S3_RETAIN] = "PUT"};
    char host[S3_ORIGIN_MAX], date[SIGV4_DATE_LEN], range[64], authorization[1024];
    char until[S3_DATE_LEN];
    struct headers headers = {.count = 0};
    s3_service_host(service, host);
    sigv4_date(now_s, date);
    if (call->payload_md5[0])
        add(&headers, "content-md5", call->payload_md5);
    add(&headers, "host", host);
    if (call->conditional)
        add(&headers, "if-none-match", "*");
    if (call->op == S3_GET) {
        (void)snprintf(range, sizeof(range), "bytes=%" PRIu64 "-%" PRIu64, call->offset,
                       call->offset + call->len - 1);
        add(&headers, "range", range);
    }
    if (call->checksum[0])
        add(&headers, "x-amz-checksum-sha256", call->checksum);
    add(&headers, "x-amz-content-sha256", call->payload_hash);
    add(&headers, "x-amz-date", date);
    if (call->lock_mode != STORE_LOCK_NONE) {
        s3_date_format(lock_date(call, now_s), until);
        add(&headers, "x-amz-object-lock-mode", lock_words[call->lock_mode]);
        add(&headers, "x-amz-object-lock-retain-until-date", until);
    }
    if (service->session_token[0])
        add(&headers, "x-amz-security-token", service->session_token);
    const struct sigv4_request request = {
        .method = methods[call->op],
        .path = call->path,
        .query = call->query,
        .headers = headers.list,
        .header_count = headers.count,
        .payload_hash = call->payload_hash,
        .date = date,
        .region = service->region,
        .access_key = service->access_key,
        .secret_key = service->secret_key,
    };
    bool fits = sigv4_authorize(&request, authorization, sizeof(authorization));
    assert(fits); /* every part is bounded in s3_service.h and above */
    write_lines(call, &headers, authorization);
    set_target(call);
    call->exchange.method = request.method;
    call->exchange.target = call->target;
    call->exchange.headers = call->headers;
    call->tries++;
}
