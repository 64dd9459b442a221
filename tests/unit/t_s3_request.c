/* What is sent, and what every kind of answer means: tables of answers as AWS documents them and as
 * radosgw and Swift gave them. Pure: no server. */
#include "io/s3_request.h"
#include "io/s3_watch.h"

#include "tests/tap.h"

static const struct store_s3_options usual = {
    .endpoint = "http://127.0.0.1:9000",
    .access_key = "AKID",
    .secret_key = "the-secret-key",
    .retry_timeout_ms = 60000,
    .seed = 7,
};

static struct s3_service *service;
static struct s3_call *call;

static void open_service(const char *address, const struct store_s3_options *options)
{
    struct err err;
    s3_service_close(service);
    service = NULL;
    if (s3_service_open(address, options, &service, &err) < 0) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
}

static const char *header(const char *name)
{
    size_t len = strlen(name);
    for (size_t i = 0; call->headers[i]; i++)
        if (strncasecmp(call->headers[i], name, len) == 0 && call->headers[i][len] == ':')
            return call->headers[i] + len + 2;
    return "";
}

/* --- URLs ------------------------------------------------------------------------------------- */
static const struct {
    const char *address, *endpoint, *region;
    enum store_s3_addressing addressing;
    const char *origin, *host, *target; /* of "x/y" */
} places[] = {
    {"b-1/p/q", "http://h:9000", "", STORE_S3_AUTO, "http://h:9000", "h:9000", "/b-1/p/q/x/y"},
    {"bucket", "https://h/", "", STORE_S3_AUTO, "https://h", "h", "/bucket/x/y"},
    {"bucket/", "https://h", "", STORE_S3_VIRTUAL, "https://bucket.h", "bucket.h", "/x/y"},
    {"bucket/p/", "http://s3.localhost:1", "", STORE_S3_VIRTUAL, "http://bucket.s3.localhost:1",
     "bucket.s3.localhost:1", "/p/x/y"},
    {"bucket/p", "", "", STORE_S3_AUTO, "https://bucket.s3.us-east-1.amazonaws.com",
     "bucket.s3.us-east-1.amazonaws.com", "/p/x/y"},
    {"with.dot/p", "", "eu-west-1", STORE_S3_AUTO, "https://s3.eu-west-1.amazonaws.com",
     "s3.eu-west-1.amazonaws.com", "/with.dot/p/x/y"},
    {"bucket", "https://s3.amazonaws.com:443", "", STORE_S3_AUTO,
     "https://bucket.s3.amazonaws.com:443", "bucket.s3.amazonaws.com:443", "/x/y"},
    {"bucket", "http://[::1]:9000", "", STORE_S3_AUTO, "http://[::1]:9000", "[::1]:9000",
     "/bucket/x/y"},
};

static void check_places(void)
{
    char origin[S3_ORIGIN_MAX];
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        struct store_s3_options options = usual;
        options.endpoint = places[i].endpoint;
        options.region = places[i].region;
        options.addressing = places[i].addressing;
        open_service(places[i].address, &options);
        s3_service_origin(service, origin);
        is_str(origin, places[i].origin, "origin of s3://%s", places[i].address);
        s3_call_look(call, service, "x/y", 0);
        s3_call_sign(call, service, 0);
        is_str(header("host"), places[i].host, "its host");
        is_str(call->exchange.target, places[i].target, "its path");
    }
}

static const struct {
    const char *address, *endpoint, *key, *part;
    enum err_code code;
} bad_places[] = {
    {"", "http://h", "k", "bucket", ERR_CONFIG},
    {"ab/p", "http://h", "k", "bucket", ERR_CONFIG},
    {"-abc/p", "http://h", "k", "bucket", ERR_CONFIG},
    {"buc ket", "http://h", "k", "bucket", ERR_CONFIG},
    {"user:pass@bucket", "http://h", "k", "credentials do not go there", ERR_CONFIG},
    {"bucket//p", "http://h", "k", "prefix", ERR_CONFIG},
    {"bucket/../p", "http://h", "k", "prefix", ERR_CONFIG},
    {"bucket/p q", "http://h", "k", "prefix", ERR_CONFIG},
    {"bucket", "h:9000", "k", "malformed", ERR_CONFIG},
    {"bucket", "ftp://h", "k", "malformed", ERR_CONFIG},
    {"bucket", "http://", "k", "malformed", ERR_CONFIG},
    {"bucket", "http://h/path", "k", "malformed", ERR_CONFIG},
    {"bucket", "http://user@h", "k", "credentials do not go there", ERR_CONFIG},
    {"bucket", "http://h", "", "no credentials", ERR_AUTH},
    {"bucket", "http://h", "a/b", "access key is malformed", ERR_AUTH},
    {"bucket", "http://h", "a\nb", "access key is malformed", ERR_AUTH},
};

static void check_bad_places(void)
{
    struct err err;
    struct s3_service *none;
    for (size_t i = 0; i < ARRAY_LEN(bad_places); i++) {
        struct store_s3_options options = usual;
        options.endpoint = bad_places[i].endpoint;
        options.access_key = bad_places[i].key;
        is_err(s3_service_open(bad_places[i].address, &options, &none, &err), &err,
               bad_places[i].code, bad_places[i].part, "refused: s3://%s at %s as '%.3s'",
               bad_places[i].address, bad_places[i].endpoint, bad_places[i].key);
    }
    struct store_s3_options options = usual;
    options.addressing = STORE_S3_VIRTUAL;
    is_err(s3_service_open("bucket", &options, &none, &err), &err, ERR_CONFIG, "needs a host name",
           "virtual hosts at an address");
}

/* --- requests --------------------------------------------------------------------------------- */
static void check_requests(void)
{
    struct store_s3_options options = usual;
    char buf[5000];
    options.session_token = "tok+en/=";
    open_service("bucket/p", &options);
    s3_call_put(call, service, "n", "abc", 3, 0);
    s3_call_sign(call, service, 1369353600);
    is_str(call->exchange.method, "PUT", "put");
    is_str(header("if-none-match"), "*", "is conditional");
    is_str(header("x-amz-content-sha256"),
           "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "payload's hash");
    is_str(header("x-amz-checksum-sha256"), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=",
           "and again, for buckets with Object Lock");
    is_str(header("x-amz-date"), "20130524T000000Z", "date");
    is_str(header("x-amz-security-token"), "tok+en/=", "session token");
    ok(strstr(header("authorization"),
              "SignedHeaders=host;if-none-match;x-amz-checksum-sha256;x-amz-content-sha256;"
              "x-amz-date;x-amz-security-token,"),
       "all of them are signed");
    s3_call_get(call, service, "n", 100, buf, sizeof(buf), 0);
    s3_call_sign(call, service, 0);
    is_str(header("range"), "bytes=100-5099", "get has its range");
    is_str(header("x-amz-checksum-sha256"), "", "and no checksum");
    s3_call_list(call, service, "a/", "", 10, buf, sizeof(buf), 0);
    s3_call_sign(call, service, 0);
    is_str(call->exchange.target,
           "/bucket?encoding-type=url&list-type=2&max-keys=10&prefix=p%2Fa%2F", "list");
    s3_call_list(call, service, "", "t=/", 10, buf, sizeof(buf), 0);
    s3_call_sign(call, service, 0);
    is_str(call->exchange.target,
           "/bucket?continuation-token=t%3D%2F&encoding-type=url&list-type=2&max-keys=10&"
           "prefix=p%2F",
           "list goes on");
    s3_call_delete_batch(call, service, "abc", 3, buf, sizeof(buf), 0);
    s3_call_sign(call, service, 0);
    is_str(call->exchange.target, "/bucket?delete=", "batch delete");
    is_str(header("content-md5"), "kAFQmDzST7DWlj99KOF/cg==", "with its MD5");
    service->create_once = S3_CREATE_ONCE_NO;
    s3_call_put(call, service, "n", "abc", 3, 0);
    s3_call_sign(call, service, 0);
    is_str(header("if-none-match"), "", "no condition for a server without it");
}

/* --- answers ---------------------------------------------------------------------------------- */
static bool unframed; /* the answer's body ends with the connection */

static enum s3_verdict answer(unsigned status, const char *head, const char *body, uint64_t now_ms,
                              unsigned *ret_delay_ms, struct err *err)
{
    struct http_exchange *x = &call->exchange;
    size_t len = strlen(body);
    memset(err, 0, sizeof(*err));
    s3_call_sign(call, service, 1369353600);
    x->rc = 0;
    x->status = status;
    x->maybe_executed = x->stalled = false;
    x->has_content_length = !unframed;
    x->content_length = len;
    x->answer_cut = len > x->answer_capacity;
    x->answer_len = x->answer_cut ? x->answer_capacity : len;
    memcpy(x->answer, body, x->answer_len);
    snprintf(x->head, sizeof(x->head), "HTTP/1.1 %u X\r\n%s\r\n", status, head);
    x->head_len = strlen(x->head);
    return s3_call_judge(call, service, now_ms, 1369353600, ret_delay_ms, err);
}

#define XML(code) "<Error><Code>" code "</Code></Error>"

static const struct {
    enum s3_op op;
    unsigned status;
    const char *head, *body;
    enum s3_verdict want;
    enum err_code code; /* of S3_FAILED, S3_ABSENT */
    const char *part;   /* of text or hint */
} answers[] = {
    {S3_PUT, 200, "", "", S3_DONE, ERR_OK, ""},
    {S3_PUT, 200, "", XML("InternalError"), S3_AGAIN, ERR_OK, ""},
    {S3_PUT, 412, "", XML("PreconditionFailed"), S3_COMPARE, ERR_OK, ""},
    {S3_PUT, 409, "", XML("ConditionalRequestConflict"), S3_AGAIN, ERR_OK, ""},
    {S3_PUT, 501, "", XML("NotImplemented"), S3_UNCONDITIONAL, ERR_OK, ""},
    {S3_PUT, 400, "", XML("XAmzContentSHA256Mismatch"), S3_AGAIN, ERR_OK, ""},
    {S3_PUT, 400, "", XML("BadDigest"), S3_AGAIN, ERR_OK, ""},
    {S3_PUT, 400, "", XML("RequestTimeout"), S3_AGAIN, ERR_OK, ""},
    {S3_PUT, 400, "", XML("EntityTooLarge"), S3_AGAIN, ERR_OK, ""}, /* a doubt: see below */
    {S3_PUT, 413, "", "", S3_FAILED, ERR_STORE, "413"},
    {S3_PUT, 403, "", XML("QuotaExceeded"), S3_FAILED, ERR_STORE, "full"},
    {S3_PUT, 507, "", "", S3_FAILED, ERR_STORE, "full"},
    {S3_GET, 403, "", XML("InvalidObjectState"), S3_FAILED, ERR_STORE, "archive class"},
    {S3_PUT, 404, "", XML("NoSuchBucket"), S3_FAILED, ERR_STORE, "make the bucket 'bucket'"},
    {S3_PUT, 403, "", XML("AccessDenied"), S3_FAILED, ERR_AUTH, "permission to write"},
    {S3_GET, 403, "", XML("AccessDenied"), S3_FAILED, ERR_AUTH, "permission to read"},
    {S3_DELETE, 403, "", XML("AccessDenied"), S3_FAILED, ERR_AUTH, "permission to remove"},
    {S3_GET, 403, "", "", S3_FAILED, ERR_AUTH, "permission"},
    {S3_GET, 401, "", "", S3_FAILED, ERR_AUTH, "401"},
    {S3_GET, 403, "", XML("InvalidAccessKeyId"), S3_FAILED, ERR_AUTH, "does not know"},
    {S3_GET, 403, "", XML("SignatureDoesNotMatch"), S3_FAILED, ERR_AUTH, "secret key is wrong"},
    {S3_GET, 400, "", XML("ExpiredToken"), S3_FAILED, ERR_AUTH, "session token has ended"},
    {S3_GET, 403, "Date: Fri, 24 May 2013 02:00:00 GMT\r\n", XML("RequestTimeTooSkewed"), S3_FAILED,
     ERR_AUTH, "here it is 2013-05-24 00:00:00 UTC, at the server 2013-05-24 02:00:00 UTC"},
    {S3_GET, 404, "", XML("NoSuchKey"), S3_ABSENT, ERR_MISSING, "no such object"},
    {S3_GET, 404, "", XML("NoSuchBucket"), S3_FAILED, ERR_STORE, "make the bucket"},
    {S3_GET, 404, "", "<html>nothing here</html>", S3_AGAIN, ERR_OK, ""},
    {S3_DELETE, 204, "", "", S3_DONE, ERR_OK, ""},
    {S3_DELETE, 404, "", XML("NoSuchKey"), S3_DONE, ERR_OK, ""},
    {S3_GET, 206, "Content-Range: bytes 0-4/9\r\n", "abcde", S3_DONE, ERR_OK, ""},
    {S3_GET, 206, "Content-Range: bytes 0-2/3\r\n", "abc", S3_DONE, ERR_OK, ""},
    {S3_GET, 206, "Content-Range: bytes 0-2/9\r\n", "abc", S3_AGAIN, ERR_OK, ""},
    {S3_GET, 206, "Content-Range: bytes 1-5/9\r\n", "abcde", S3_AGAIN, ERR_OK, ""},
    {S3_GET, 206, "", "abcde", S3_AGAIN, ERR_OK, ""},
    {S3_GET, 200, "", "abc", S3_DONE, ERR_OK, ""},
    {S3_GET, 200, "", "abcdefgh", S3_FAILED, ERR_STORE, "ignores ranges"},
    {S3_GET, 416, "Content-Range: bytes */0\r\n", XML("InvalidRange"), S3_DONE, ERR_OK, ""},
    {S3_GET, 500, "", XML("InternalError"), S3_AGAIN, ERR_OK, ""},
    {S3_GET, 503, "", XML("SlowDown"), S3_AGAIN, ERR_OK, ""},
    {S3_GET, 502, "", "<html>", S3_AGAIN, ERR_OK, ""},
    {S3_GET, 504, "", "", S3_AGAIN, ERR_OK, ""},
    {S3_GET, 429, "", "", S3_AGAIN, ERR_OK, ""},
    {S3_GET, 405, "", "", S3_FAILED, ERR_STORE, "405"},
    {S3_GET, 999, "", "", S3_FAILED, ERR_STORE, "is the endpoint an S3 server"},
    {S3_GET, 200, "", "a web page", S3_FAILED, ERR_STORE, "is the endpoint an S3 server"},
    {S3_GET, 301, "", "<Error><Code>PermanentRedirect</Code><Endpoint>e.test</Endpoint></Error>",
     S3_FAILED, ERR_STORE, "endpoint e.test"},
    {S3_GET, 302, "Location: /login\r\n", "", S3_FAILED, ERR_STORE, "the endpoint is wrong"},
    {S3_LIST, 200, "", "<ListBucketResult/>", S3_DONE, ERR_OK, ""},
    {S3_LIST, 200, "", XML("InternalError"), S3_AGAIN, ERR_OK, ""},
    {S3_LIST, 404, "", XML("NoSuchBucket"), S3_FAILED, ERR_STORE, "make the bucket"},
};

static void begin(enum s3_op op, void *buf, size_t len)
{
    if (op == S3_PUT)
        s3_call_put(call, service, "n", "abc", 3, 1000);
    else if (op == S3_GET)
        s3_call_get(call, service, "n", 0, buf, len, 1000);
    else if (op == S3_DELETE)
        s3_call_delete(call, service, "n", 1000);
    else
        s3_call_list(call, service, "", "", 10, buf, len, 1000);
}

static void check_answers(void)
{
    char buf[5000];
    unsigned delay;
    struct err err;
    for (size_t i = 0; i < ARRAY_LEN(answers); i++) {
        open_service("bucket/p", &usual);
        begin(answers[i].op, buf, answers[i].op == S3_GET ? 5 : sizeof(buf));
        enum s3_verdict got =
            answer(answers[i].status, answers[i].head, answers[i].body, 2000, &delay, &err);
        bool good = got == answers[i].want;
        if (got == S3_FAILED || got == S3_ABSENT)
            good = good && err.code == answers[i].code &&
                   (strstr(err.text, answers[i].part) || strstr(err.hint, answers[i].part));
        if (!ok(good, "op %d, %u %.60s", (int)answers[i].op, answers[i].status, answers[i].body))
            printf("# verdict %d: %s (%s)\n", (int)got, err.text, err.hint);
        ok(!strstr(err.text, "the-secret-key") && !strstr(err.hint, "the-secret-key"),
           "no secret in it");
    }
}

static void check_bytes(void)
{
    char buf[8] = "";
    unsigned delay;
    struct err err;
    open_service("bucket/p", &usual);
    begin(S3_GET, buf, 5);
    ok(answer(206, "Content-Range: bytes 0-4/9\r\n", "abcde", 0, &delay, &err) == S3_DONE, "get");
    is_str(buf, "abcde", "few bytes are copied out of the answer");
    is_u64(call->object_size, 9, "size of the object");
    s3_call_look(call, service, "n", 0);
    ok(answer(416, "", XML("InvalidRange"), 0, &delay, &err) == S3_DONE, "look at an empty object");
    is_u64(call->object_size, 0, "its size");
}

/* --- again and again -------------------------------------------------------------------------- */
static void check_backoff(void)
{
    unsigned delay, longest = 0;
    uint64_t now = 1000;
    struct err err;
    enum s3_verdict got;
    open_service("bucket/p", &usual);
    begin(S3_PUT, NULL, 0);
    unsigned tries = 0;
    while ((got = answer(503, "", XML("SlowDown"), now, &delay, &err)) == S3_AGAIN && tries < 500) {
        unsigned ceiling = tries > 6 ? 10000 : 100u << tries;
        if (delay > ceiling)
            longest = UINT32_MAX;
        longest = delay > longest ? delay : longest;
        now += delay + 1;
        tries++;
    }
    ok(got == S3_FAILED && err.code == ERR_STORE, "gives up");
    ok(now >= 61000 && now < 61500, "when retry_timeout is over (%llu ms)",
       (unsigned long long)now - 1000);
    ok(strstr(err.text, "503 SlowDown; gave up after"), "and says why: %s", err.text);
    ok(longest <= 10000 && longest > 1000, "delays grow to 10 s at most (%u ms)", longest);
    begin(S3_PUT, NULL, 0);
    ok(answer(503, "Retry-After: 17\r\n", "", 1000, &delay, &err) == S3_AGAIN && delay == 17000,
       "Retry-After is honoured");
    ok(answer(503, "Retry-After: 99999\r\n", "", 1000, &delay, &err) == S3_AGAIN && delay == 60000,
       "up to the deadline");
    begin(S3_GET, call->answer, 1);
    for (int i = 0; i < 2; i++)
        ok(answer(404, "", "<html>", 1000, &delay, &err) == S3_AGAIN, "a strange 404: again");
    ok(answer(404, "", "<html>", 1000, &delay, &err) == S3_FAILED && err.code == ERR_STORE,
       "but not for ever, and it is no absence");
}

/* A 412 may be about our own object once a try of ours may have been done. */
static void check_lost_answers(void)
{
    unsigned delay;
    struct err err;
    struct http_exchange *x = &call->exchange;
    open_service("bucket/p", &usual);
    begin(S3_PUT, NULL, 0);
    s3_call_sign(call, service, 0);
    x->rc = -ERR_STORE;
    x->maybe_executed = true;
    (void)err_set(&x->err, ERR_STORE, "reset");
    ok(s3_call_judge(call, service, 1000, 0, &delay, &err) == S3_AGAIN, "a reset: again");
    ok(answer(412, "", "", 1000, &delay, &err) == S3_COMPARE, "412 after it: compare");
    ok(service->create_once == S3_CREATE_ONCE_YES, "the server honours the header");
    begin(S3_PUT, NULL, 0);
    ok(answer(500, "", "", 1000, &delay, &err) == S3_AGAIN, "500");
    ok(answer(412, "", "", 1000, &delay, &err) == S3_COMPARE, "412 after it: compare");
    begin(S3_PUT, NULL, 0);
    s3_call_sign(call, service, 0);
    x->rc = -ERR_STORE;
    x->maybe_executed = false;
    ok(s3_call_judge(call, service, 1000, 0, &delay, &err) == S3_AGAIN, "not connected: again");
    ok(answer(412, "", "", 1000, &delay, &err) == S3_COMPARE, "412 after it: compare, too");
    begin(S3_PUT, NULL, 0);
    ok(answer(501, "", "", 1000, &delay, &err) == S3_AGAIN &&
           service->create_once == S3_CREATE_ONCE_YES,
       "501 where the header was honoured before: a doubt");
    begin(S3_PUT, NULL, 0);
    s3_call_sign(call, service, 0);
    x->rc = -ERR_AUTH;
    (void)err_set(&x->err, ERR_AUTH, "certificate");
    (void)err_hint(&x->err, "ca_file");
    ok(s3_call_judge(call, service, 1000, 0, &delay, &err) == S3_FAILED && err.code == ERR_AUTH &&
           strstr(err.hint, "ca_file"),
       "a certificate is final");
}

/* A server that took requests before and takes one more without an answer. */
static void check_stall(void)
{
    unsigned delay;
    struct err err;
    struct http_exchange *x = &call->exchange;
    for (int worked = 0; worked < 2; worked++) {
        open_service("bucket/p", &usual);
        service->has_worked = worked;
        begin(S3_PUT, NULL, 0);
        s3_call_sign(call, service, 0);
        x->rc = -ERR_STORE;
        x->stalled = x->maybe_executed = true;
        (void)err_set(&x->err, ERR_STORE, "nothing moved for 4000 ms");
        ok(s3_call_judge(call, service, 99000, 0, &delay, &err) == S3_FAILED && err.maybe_done,
           "a PUT without an answer: it may be done all the same");
        ok(strstr(err.hint, worked ? "takes requests and does not answer" : "can this host reach"),
           "%s: %s", worked ? "it worked before" : "the first request", err.hint);
    }
    begin(S3_PUT, NULL, 0);
    ok(answer(413, "", "", 1000, &delay, &err) == S3_FAILED && !err.maybe_done,
       "an answer leaves no doubt");
    begin(S3_GET, call->answer, 1);
    s3_call_sign(call, service, 0);
    x->rc = -ERR_STORE;
    x->maybe_executed = true;
    ok(s3_call_judge(call, service, 99000, 0, &delay, &err) == S3_FAILED && !err.maybe_done,
       "what a GET does matters to nobody");
}

/* How a 200 that may have been cut looks. */
static void check_unframed(void)
{
    char buf[8];
    unsigned delay;
    struct err err;
    open_service("bucket/p", &usual);
    unframed = true;
    begin(S3_GET, buf, 5);
    ok(answer(200, "Transfer-Encoding: chunked\r\n", "abc", 1000, &delay, &err) == S3_DONE,
       "chunks have an end");
    begin(S3_GET, buf, 5);
    for (int i = 0; i < 2; i++)
        ok(answer(200, "", "abc", 1000, &delay, &err) == S3_AGAIN,
           "a body that ends with the connection: again");
    ok(answer(200, "", "abc", 1000, &delay, &err) == S3_FAILED && err.code == ERR_STORE &&
           strstr(err.text, "where its answer ends") && strstr(err.hint, "S3 server"),
       "but not for ever: %s", err.text);
    unframed = false;
}

/* AWS repeats in a SignatureDoesNotMatch what it signed, as text and as hex. */
static void check_long_error(void)
{
    static char body[16000];
    unsigned delay;
    struct err err;
    int len = snprintf(body, sizeof(body),
                       "<Error><Code>SignatureDoesNotMatch</Code><Message>m"
                       "</Message><StringToSignBytes>");
    while (len < 15000)
        len += snprintf(body + len, sizeof(body) - (size_t)len, "41 ");
    (void)snprintf(body + len, sizeof(body) - (size_t)len, "</StringToSignBytes></Error>");
    open_service("bucket/p", &usual);
    begin(S3_PUT, NULL, 0);
    ok(answer(403, "", body, 1000, &delay, &err) == S3_FAILED && err.code == ERR_AUTH &&
           strstr(err.hint, "secret key is wrong"),
       "a long SignatureDoesNotMatch: %s", err.hint);
}

/* Keys that have worked are doubted only after the request that they signed. */
static void check_worked(void)
{
    static const char *const codes[] = {XML("SignatureDoesNotMatch"), XML("InvalidAccessKeyId")};
    unsigned delay;
    struct err err;
    for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
        open_service("bucket/p", &usual);
        begin(S3_GET, call->answer, 1);
        ok(answer(404, "", XML("NoSuchKey"), 1000, &delay, &err) == S3_ABSENT, "an absence");
        begin(S3_PUT, NULL, 0);
        for (int tries = 0; tries < 2; tries++)
            ok(answer(403, "", codes[i], 1000, &delay, &err) == S3_AGAIN, "then %s: again",
               codes[i]);
        ok(answer(403, "", codes[i], 1000, &delay, &err) == S3_FAILED && err.code == ERR_AUTH &&
               err.hint[0],
           "but not for ever");
    }
}

static void check_codes(void)
{
    ok(s3_code_passes("SlowDown") && s3_code_passes("InternalError") &&
           s3_code_passes("ServiceUnavailable"),
       "errors of single keys that pass");
    ok(!s3_code_passes("AccessDenied") && !s3_code_passes("QuotaExceeded") && !s3_code_passes(""),
       "and those that do not");
    uint64_t random = 1;
    unsigned longest = 0;
    bool bounded = true;
    for (unsigned tries = 0; tries < 40; tries++) {
        unsigned ms = s3_backoff_ms(tries, &random);
        bounded = bounded && ms <= (tries <= 1 ? 100 : 10000);
        longest = ms > longest ? ms : longest;
    }
    ok(bounded && longest > 3000, "pauses grow from 100 ms to 10 s (longest %u)", longest);
}

/* --- the watch -------------------------------------------------------------------------------- */
static unsigned notices;
static struct store_notice last;

static void note(void *ctx, const struct store_notice *notice)
{
    (void)ctx;
    notices++;
    last = *notice;
}

static void check_watch(void)
{
    struct s3_watch watch = {.notice = note};
    unsigned delay;
    struct err err;
    open_service("bucket/p", &usual);
    service->watch = &watch;
    begin(S3_GET, call->answer, 1); /* at 1000 */
    (void)answer(503, "", "", 5000, &delay, &err);
    ok(notices == 0, "four seconds are not worth a word");
    (void)answer(503, "Retry-After: 2\r\n", "", 5000, &delay, &err);
    ok(notices == 1 && last.since_ms == 4000, "unless the next try comes later than after five");
    atomic_store(&watch.told_since_ms, notices = 0);
    (void)answer(503, "", "", 6500, &delay, &err);
    ok(notices == 1 && last.failing && last.since_ms == 5500 && last.left_ms == 54500,
       "five are: since when, and for how long (%llu, %llu)", (unsigned long long)last.since_ms,
       (unsigned long long)last.left_ms);
    (void)answer(503, "", "", 9000, &delay, &err);
    ok(notices == 1, "once");
    ok(answer(404, "", "<Error><Code>NoSuchKey</Code></Error>", 11000, &delay, &err) == S3_ABSENT &&
           notices == 2 && !last.failing && last.since_ms == 10000,
       "an answer ends it, also with a word");
    begin(S3_GET, call->answer, 1);
    (void)answer(503, "", "", 15000, &delay, &err); /* the first pause is at most 100 ms */
    ok(notices == 2, "others succeeded four seconds ago");
    (void)answer(503, "", "", 16001, &delay, &err);
    ok(notices == 3 && last.since_ms == 5001, "five seconds after them it is another outage");
    service->watch = NULL;
}

static void check_region(void)
{
    static const char malformed[] =
        "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>";
    unsigned delay;
    struct err err;
    char origin[S3_ORIGIN_MAX];
    open_service("bucket/p", &usual);
    begin(S3_GET, call->answer, 1);
    ok(answer(400, "", malformed, 1000, &delay, &err) == S3_AGAIN && delay == 0,
       "the server names another region: at once again");
    is_str(service->region, "eu-west-1", "with it");
    ok(answer(400, "", malformed, 1000, &delay, &err) == S3_FAILED, "which does not help: final");
    begin(S3_GET, call->answer, 1);
    ok(answer(400, "", malformed, 1000, &delay, &err) == S3_AGAIN && delay == 0 &&
           answer(400, "", malformed, 1000, &delay, &err) == S3_FAILED,
       "a call that was under way meanwhile is signed again as well, once");
    begin(S3_GET, call->answer, 1);
    (void)snprintf(service->region, sizeof(service->region), "other");
    ok(answer(400, "", malformed, 1000, &delay, &err) == S3_FAILED &&
           strstr(err.hint, "region = eu-west-1"),
       "once only; then a hint");
    struct store_s3_options options = usual;
    options.endpoint = "";
    open_service("bucket/p", &options);
    begin(S3_GET, call->answer, 1);
    ok(answer(301, "x-amz-bucket-region: eu-central-1\r\n", XML("PermanentRedirect"), 1000, &delay,
              &err) == S3_AGAIN,
       "AWS names the region in a header");
    s3_service_origin(service, origin);
    is_str(origin, "https://bucket.s3.eu-central-1.amazonaws.com", "the host follows");
    static const char redirect[] = "<Error><Code>PermanentRedirect</Code><Endpoint>bucket.s3-eu-"
                                   "west-1.amazonaws.com</Endpoint></Error>";
    open_service("bucket/p", &options);
    begin(S3_GET, call->answer, 1);
    ok(answer(301, "x-amz-bucket-region: eu-west-1\r\n", redirect, 1000, &delay, &err) == S3_AGAIN,
       "as AWS redirects, with an endpoint");
    s3_service_origin(service, origin);
    is_str(origin, "https://bucket.s3.eu-west-1.amazonaws.com", "the host follows, too");
    options.endpoint = "https://vpce-1.s3.us-east-1.vpce.amazonaws.com";
    open_service("bucket/p", &options);
    begin(S3_GET, call->answer, 1);
    (void)answer(400, "", malformed, 1000, &delay, &err);
    s3_service_origin(service, origin);
    ok(strstr(origin, "vpce-1.s3.us-east-1.vpce.amazonaws.com") != NULL,
       "an endpoint that was chosen is not left");
    open_service("bucket/p", &usual);
    service->has_worked = true;
    begin(S3_GET, call->answer, 1);
    ok(answer(403, "", XML("SignatureDoesNotMatch"), 1000, &delay, &err) == S3_AGAIN,
       "a bad signature of keys that have worked: again");
    (void)answer(403, "", XML("SignatureDoesNotMatch"), 1000, &delay, &err);
    ok(answer(403, "", XML("SignatureDoesNotMatch"), 1000, &delay, &err) == S3_FAILED &&
           err.code == ERR_AUTH,
       "but not for ever");
}

int main(void)
{
    call = calloc(1, sizeof(*call));
    if (!call)
        return 1;
    check_places();
    check_bad_places();
    check_requests();
    check_answers();
    check_bytes();
    check_backoff();
    check_lost_answers();
    check_stall();
    check_unframed();
    check_long_error();
    check_worked();
    check_codes();
    check_watch();
    check_region();
    s3_service_close(service);
    free(call);
    return done();
}
