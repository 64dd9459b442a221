/* What an answer, or none, means for an S3 operation: see s3_request.h. One rule table for codes,
 * one for status; the first that fits decides. */
#include <assert.h>
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>

#include "io/s3_request.h"
#include "io/s3_watch.h"
#include "io/s3_xml.h"

enum {
    BACKOFF_FIRST_MS = 100,
    BACKOFF_MAX_MS = 10000,
    DOUBTS_MAX = 2, /* repeats of an answer that a healthy server does not give */
};

/* What is known about one answer. */
struct answer {
    struct s3_call *call;
    struct s3_service *service;
    unsigned status;
    struct s3_xml_error error; /* code "" when the body is no error document */
    time_t now_s;
    uint64_t now_ms;
    unsigned *ret_delay_ms;
    struct err *err;
};

enum kind {
    KIND_AGAIN,  /* passes by itself */
    KIND_DOUBT,  /* once or twice it may be damage on the way; then it is final (ERR_STORE) */
    KIND_SIGNED, /* as KIND_DOUBT where these keys have worked before, then ERR_AUTH */
    KIND_AUTH,
    KIND_CLOCK,
    KIND_REGION,
    KIND_BUCKET,
    KIND_FULL,
    KIND_ARCHIVED,
    KIND_FINAL, /* ERR_STORE */
};

static const struct {
    const char *code;
    enum kind kind;
} code_kinds[] = {
    {"SlowDown", KIND_AGAIN},
    {"InternalError", KIND_AGAIN},
    {"ServiceUnavailable", KIND_AGAIN},
    {"RequestTimeout", KIND_AGAIN},
    {"OperationAborted", KIND_AGAIN},
    {"ConditionalRequestConflict", KIND_AGAIN},
    {"TooManyRequests", KIND_AGAIN},
    /* a body that was damaged or cut on its way to the server */
    {"BadDigest", KIND_AGAIN},
    {"XAmzContentSHA256Mismatch", KIND_AGAIN},
    {"IncompleteBody", KIND_AGAIN},
    {"SignatureDoesNotMatch", KIND_SIGNED},
    {"RequestTimeTooSkewed", KIND_CLOCK},
    {"AuthorizationHeaderMalformed", KIND_REGION},
    {"PermanentRedirect", KIND_REGION},
    {"TemporaryRedirect", KIND_REGION},
    {"IllegalLocationConstraintException", KIND_REGION},
    {"NoSuchBucket", KIND_BUCKET},
    {"QuotaExceeded", KIND_FULL},
    {"InsufficientCapacity", KIND_FULL},
    {"StorageFull", KIND_FULL},
    {"XMinioStorageFull", KIND_FULL},
    {"AccessDenied", KIND_AUTH},
    {"InvalidAccessKeyId", KIND_SIGNED},
    {"ExpiredToken", KIND_AUTH},
    {"InvalidToken", KIND_AUTH},
    {"TokenRefreshRequired", KIND_AUTH},
    {"UserSuspended", KIND_AUTH},
    {"AllAccessDisabled", KIND_AUTH},
    {"AccountProblem", KIND_AUTH},
    {"InvalidSecurity", KIND_AUTH},
    {"NotSignedUp", KIND_AUTH},
    {"InvalidObjectState", KIND_ARCHIVED},
};

static enum kind kind_of_status(unsigned status)
{
    switch (status) {
    case 408:
    case 409:
    case 425:
    case 429:
    case 500:
    case 502:
    case 503:
    case 504:
        return KIND_AGAIN;
    case 401:
    case 403:
        return KIND_AUTH;
    case 301:
    case 302:
    case 307:
    case 308:
        return KIND_REGION;
    case 507:
        return KIND_FULL;
    case 400:
    case 501:
    case 404: /* without a code: not the store itself may have said so */
        return KIND_DOUBT;
    default:
        return KIND_FINAL;
    }
}

/* The region that the server names, "" when it names none. */
static void named_region(const struct answer *answer, char *ret, size_t size)
{
    if (http_header(&answer->call->exchange, "x-amz-bucket-region", ret, size) == NULL)
        (void)snprintf(ret, size, "%s", answer->error.region);
    if (strspn(ret, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(ret))
        ret[0] = '\0';
}

static enum kind kind_of(const struct answer *answer)
{
    for (size_t i = 0; i < ARRAY_LEN(code_kinds); i++)
        if (strcmp(code_kinds[i].code, answer->error.code) == 0)
            return code_kinds[i].kind;
    return kind_of_status(answer->status);
}

bool s3_code_passes(const char *code)
{
    for (size_t i = 0; i < ARRAY_LEN(code_kinds); i++)
        if (strcmp(code_kinds[i].code, code) == 0)
            return code_kinds[i].kind == KIND_AGAIN;
    return false;
}

/* --- texts -------------------------------------------------------------------------------------*/
static void describe_call(const struct s3_call *call, char *ret, size_t size)
{
    static const char *const verbs[] = {[S3_PUT] = "put",
                                        [S3_GET] = "get",
                                        [S3_LIST] = "list",
                                        [S3_DELETE] = "remove",
                                        [S3_DELETE_BATCH] = "remove many objects",
                                        [S3_ASK] = "ask the bucket about",
                                        [S3_RETAIN] = "lock"};
    (void)snprintf(ret, size, "%s%s%s%s", verbs[call->op], call->name[0] ? " '" : "", call->name,
                   call->name[0] ? "'" : "");
}

/* Sets err: "get 'x' in s3://b/p at https://h: REASON". */
static int say(const struct answer *answer, enum err_code code, const char *reason)
{
    char what[STORE_NAME_MAX + 32], where[S3_HOST_MAX + S3_PREFIX_MAX + S3_BUCKET_MAX + 32];
    describe_call(answer->call, what, sizeof(what));
    s3_service_text(answer->service, where, sizeof(where));
    return err_set(answer->err, code, "%s in %s: %s", what, where, reason);
}

/* "the server answered 503 SlowDown (Reduce your request rate.)" */
static void describe_answer(const struct answer *answer, char *ret, size_t size)
{
    const struct s3_xml_error *error = &answer->error;
    (void)snprintf(ret, size, "the server answered %u%s%s%s%s%s", answer->status,
                   error->code[0] ? " " : "", error->code, error->message[0] ? " (" : "",
                   error->message, error->message[0] ? ")" : "");
}

static int say_answer(const struct answer *answer, enum err_code code)
{
    char reason[512];
    describe_answer(answer, reason, sizeof(reason));
    return say(answer, code, reason);
}

/* --- again -------------------------------------------------------------------------------------*/
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u); /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

unsigned s3_backoff_ms(unsigned tries, uint64_t *random)
{
    unsigned doublings = tries > 8 ? 8 : tries > 0 ? tries - 1 : 0;
    uint64_t ceiling = min_u64(BACKOFF_MAX_MS, (uint64_t)BACKOFF_FIRST_MS << doublings);
    return (unsigned)(next_random(random) % (ceiling + 1));
}

/* Seconds of a Retry-After header, in milliseconds; its other form, a date, is not used by S3. */
static uint64_t retry_after_ms(const struct http_exchange *x)
{
    char text[16];
    if (x->rc < 0 || http_header(x, "Retry-After", text, sizeof(text)) == NULL ||
        !isdigit((unsigned char)text[0]))
        return 0;
    uint64_t seconds = strtoull(text, NULL, 10);
    return min_u64(seconds, UINT32_MAX) * 1000;
}

/* err holds the reason of this try. */
static enum s3_verdict again(const struct answer *answer)
{
    struct s3_call *call = answer->call;
    if (answer->now_ms >= call->deadline_ms) {
        char reason[sizeof(answer->err->text)];
        memcpy(reason, answer->err->text, sizeof(reason));
        (void)snprintf(answer->err->text, sizeof(answer->err->text),
                       "%.*s; gave up after %u tr%s in %.1f s", (int)sizeof(reason) - 64, reason,
                       call->tries, call->tries == 1 ? "y" : "ies",
                       (double)(answer->now_ms - call->start_ms) / 1000);
        if (answer->err->hint[0] == '\0')
            (void)err_hint(answer->err, "the server goes on failing: see its own log, or raise "
                                        "retry_timeout");
        return S3_FAILED;
    }
    uint64_t delay = s3_backoff_ms(call->tries, &call->random);
    delay = max_u64(delay, retry_after_ms(&call->exchange));
    *answer->ret_delay_ms = (unsigned)min_u64(delay, call->deadline_ms - answer->now_ms);
    s3_watch_failed(answer->service->watch, call->start_ms, answer->now_ms,
                    answer->now_ms + *answer->ret_delay_ms, call->deadline_ms, answer->err->text);
    return S3_AGAIN;
}

static enum s3_verdict again_because(const struct answer *answer, const char *reason)
{
    (void)say(answer, ERR_STORE, reason);
    return again(answer);
}

/* --- errors with something to say --------------------------------------------------------------*/
/* Of what is asked of a bucket, not of an object; else NULL. The names are those of AWS: Action in
 * "Amazon S3 API operations and permissions". */
static const char *action_of(const struct s3_call *call)
{
    if (call->op == S3_ASK)
        return strcmp(call->name, "versioning") == 0 ? "s3:GetBucketVersioning"
                                                     : "s3:GetBucketObjectLockConfiguration";
    return call->op == S3_LIST && strstr(call->query, "&versions=") ? "s3:ListBucketVersions"
                                                                    : NULL;
}

static enum s3_verdict fail_auth(const struct answer *answer)
{
    const char *code = answer->error.code;
    (void)say_answer(answer, ERR_AUTH);
    if (strcmp(code, "SignatureDoesNotMatch") == 0)
        (void)err_hint(answer->err, "the secret key is wrong, or something between here and the "
                                    "server changes requests");
    else if (strcmp(code, "InvalidAccessKeyId") == 0)
        (void)err_hint(answer->err, "this server does not know the access key: check the key and "
                                    "the endpoint");
    else if (strcmp(code, "ExpiredToken") == 0 || strcmp(code, "InvalidToken") == 0)
        (void)err_hint(answer->err, "the session token has ended: get a new one");
    else if (action_of(answer->call))
        (void)err_hint(answer->err, "the key needs the permission %s", action_of(answer->call));
    else
        (void)err_hint(answer->err,
                       "the key needs permission to %s objects, and to list the "
                       "bucket (without that, servers answer 403 for absent objects)",
                       answer->call->lock_mode != STORE_LOCK_NONE ? "write and lock"
                       : answer->call->op == S3_RETAIN            ? "lock"
                       : answer->call->op == S3_PUT               ? "write"
                       : answer->call->op == S3_DELETE || answer->call->op == S3_DELETE_BATCH
                           ? "remove"
                           : "read");
    return S3_FAILED;
}

static void format_time(time_t time_s, char ret[32])
{
    struct tm utc;
    if (gmtime_r(&time_s, &utc) == NULL || strftime(ret, 32, "%Y-%m-%d %H:%M:%S UTC", &utc) == 0)
        (void)snprintf(ret, 32, "unknown");
}

bool s3_call_date(const struct s3_call *call, time_t *ret_s)
{
    char header[64];
    struct tm utc = {0};
    if (http_header(&call->exchange, "Date", header, sizeof(header)) == NULL ||
        strptime(header, "%a, %d %b %Y %H:%M:%S", &utc) == NULL)
        return false;
    *ret_s = timegm(&utc);
    return true;
}

static enum s3_verdict fail_clock(const struct answer *answer)
{
    char ours[32], theirs[32] = "not told";
    time_t date;
    format_time(answer->now_s, ours);
    if (s3_call_date(answer->call, &date))
        format_time(date, theirs);
    (void)say_answer(answer, ERR_AUTH);
    (void)err_hint(answer->err,
                   "the clocks differ: here it is %s, at the server %s; set the wrong "
                   "one (NTP)",
                   ours, theirs);
    return S3_FAILED;
}

static enum s3_verdict fail_bucket(const struct answer *answer)
{
    const struct s3_service *service = answer->service;
    bool virtual_host = service->addressing == STORE_S3_VIRTUAL;
    (void)say_answer(answer, ERR_STORE);
    (void)err_hint(answer->err,
                   "make the bucket '%s' first; if it exists, this server may want the other kind "
                   "of address: set addressing = %s (now it is %s)",
                   service->bucket, virtual_host ? "path" : "virtual",
                   virtual_host ? "virtual" : "path");
    return S3_FAILED;
}

static enum s3_verdict judge_region(const struct answer *answer)
{
    struct s3_service *service = answer->service;
    char region[S3_REGION_MAX + 1];
    named_region(answer, region, sizeof(region));
    bool other = region[0] && strcmp(region, service->region) != 0;
    (void)say_answer(answer, ERR_STORE);
    *answer->ret_delay_ms = 0;
    if (!other && service->region_corrected && !answer->call->moved) {
        answer->call->moved = true; /* it was on its way when another call heard of the region */
        return S3_AGAIN;
    }
    if (other && !service->region_corrected) {
        (void)snprintf(service->region, sizeof(service->region), "%s", region);
        if (service->is_derived) /* never away from an endpoint that somebody chose */
            (void)snprintf(service->host, sizeof(service->host), "s3.%s.amazonaws.com", region);
        service->region_corrected = answer->call->moved = true;
        return S3_AGAIN;
    }
    if (answer->error.endpoint[0])
        (void)err_hint(answer->err, "the server says: endpoint %s%s%s", answer->error.endpoint,
                       region[0] ? ", region " : "", region);
    else if (region[0])
        (void)err_hint(answer->err, "set region = %s", region);
    else
        (void)err_hint(answer->err, "the region or the endpoint is wrong (region is %s now)",
                       service->region);
    return S3_FAILED;
}

static const char is_s3[] = "is the endpoint an S3 server, and nothing before it at fault?";

/* err holds what is doubted. */
static enum s3_verdict doubt(const struct answer *answer)
{
    if (answer->call->doubts++ < DOUBTS_MAX)
        return again(answer);
    if (answer->status == 404)
        (void)err_hint(answer->err, "it does not say that the object is absent: is the endpoint "
                                    "an S3 server?");
    else if (answer->error.code[0] == '\0')
        (void)err_hint(answer->err, "%s", is_s3);
    else if (answer->call->lock_mode != STORE_LOCK_NONE)
        (void)err_hint(answer->err, "lock_days is set: was the bucket made with object lock?");
    return S3_FAILED;
}

static enum s3_verdict judge_doubt(const struct answer *answer, enum err_code code)
{
    (void)say_answer(answer, code);
    return doubt(answer);
}

static enum s3_verdict judge_error(const struct answer *answer)
{
    switch (kind_of(answer)) {
    case KIND_AGAIN:
        (void)say_answer(answer, ERR_STORE);
        return again(answer);
    case KIND_DOUBT:
        return judge_doubt(answer, ERR_STORE);
    case KIND_SIGNED:
        return answer->service->has_worked && answer->call->doubts < DOUBTS_MAX
                   ? judge_doubt(answer, ERR_AUTH)
                   : fail_auth(answer);
    case KIND_AUTH:
        return fail_auth(answer);
    case KIND_CLOCK:
        return fail_clock(answer);
    case KIND_REGION:
        return judge_region(answer);
    case KIND_BUCKET:
        return fail_bucket(answer);
    case KIND_FULL:
        (void)say_answer(answer, ERR_STORE);
        (void)err_hint(answer->err, "the store is full, or its quota is used up");
        return S3_FAILED;
    case KIND_ARCHIVED:
        (void)say_answer(answer, ERR_STORE);
        (void)err_hint(answer->err, "it lies in an archive class (Glacier): restore the object "
                                    "there first, and keep this prefix out of such rules");
        return S3_FAILED;
    case KIND_FINAL:
        break;
    }
    (void)say_answer(answer, ERR_STORE);
    if (answer->error.code[0] == '\0')
        (void)err_hint(answer->err, "%s", is_s3);
    return S3_FAILED;
}

/* --- success -----------------------------------------------------------------------------------*/
/* "bytes 0-99/1234", "bytes 0-99/" and a star, "bytes *" and "/1234". */
static bool content_range(const struct http_exchange *x, uint64_t *ret_first, uint64_t *ret_total)
{
    char text[96], *end;
    if (http_header(x, "Content-Range", text, sizeof(text)) == NULL ||
        strncmp(text, "bytes ", 6) != 0)
        return false;
    *ret_first = strtoull(text + 6, NULL, 10);
    const char *slash = strchr(text, '/');
    if (slash == NULL || !isdigit((unsigned char)slash[1]))
        return false;
    *ret_total = strtoull(slash + 1, &end, 10);
    return *end == '\0';
}

static enum s3_verdict take_bytes(struct s3_call *call, uint64_t object_size)
{
    const struct http_exchange *x = &call->exchange;
    call->got = x->answer_len;
    call->object_size = object_size;
    if (x->answer != call->to)
        memcpy(call->to, x->answer, x->answer_len);
    return S3_DONE;
}

static enum s3_verdict judge_range(const struct answer *answer)
{
    struct s3_call *call = answer->call;
    const struct http_exchange *x = &call->exchange;
    uint64_t first = 0, total = 0;
    if (!content_range(x, &first, &total) || first != call->offset || total <= call->offset ||
        x->answer_cut || x->answer_len != min_u64(call->len, total - call->offset))
        return again_because(answer, "the server sent another range than was asked for");
    return take_bytes(call, total);
}

/* What ends when the connection does may have been cut anywhere. */
static bool has_end(const struct http_exchange *x)
{
    char coding[32];
    return x->has_content_length ||
           http_header(x, "Transfer-Encoding", coding, sizeof(coding)) != NULL;
}

static enum s3_verdict judge_get(const struct answer *answer)
{
    struct s3_call *call = answer->call;
    const struct http_exchange *x = &call->exchange;
    uint64_t first;
    if (answer->status == 206)
        return judge_range(answer);
    if (answer->status == 416) { /* at or behind the end of an object that exists */
        call->got = 0;
        if (!content_range(x, &first, &call->object_size))
            call->object_size = call->offset;
        return S3_DONE;
    }
    if (answer->status != 200 || call->offset > 0 || x->answer_cut || x->answer_len > call->len) {
        (void)say(answer, ERR_STORE, "the server ignores ranges");
        (void)err_hint(answer->err, "%s", is_s3);
        return S3_FAILED;
    }
    if (!has_end(x)) {
        (void)say(answer, ERR_STORE, "the server does not say where its answer ends");
        return doubt(answer);
    }
    return take_bytes(call, x->answer_len); /* an empty object may come so */
}

static enum s3_verdict judge_success(const struct answer *answer)
{
    struct s3_call *call = answer->call;
    if (call->op == S3_GET)
        return judge_get(answer);
    if (answer->error.code[0]) { /* 200 and an error: it began before the failure */
        (void)say_answer(answer, ERR_STORE);
        return again(answer);
    }
    if (call->exchange.answer_cut && (call->op == S3_LIST || call->op == S3_DELETE_BATCH)) {
        (void)say(answer, ERR_STORE, "the server's answer is too long");
        return S3_FAILED;
    }
    call->got = call->exchange.answer_len;
    return S3_DONE;
}

/* --- the rest ----------------------------------------------------------------------------------*/
static enum s3_verdict judge_missing(const struct answer *answer)
{
    struct s3_call *call = answer->call;
    if (call->op == S3_DELETE && strcmp(answer->error.code, "NoSuchKey") == 0)
        return S3_DONE;
    if (((call->op == S3_GET || call->op == S3_RETAIN) &&
         strcmp(answer->error.code, "NoSuchKey") == 0) ||
        (call->op == S3_GET && strcmp(answer->error.code, "NoSuchVersion") == 0)) {
        (void)say(answer, ERR_MISSING, "there is no such object");
        return S3_ABSENT;
    }
    if (call->op == S3_ASK &&
        strcmp(answer->error.code, "ObjectLockConfigurationNotFoundError") == 0) {
        (void)say(answer, ERR_MISSING, "it has none");
        return S3_ABSENT;
    }
    return judge_error(answer);
}

static enum s3_verdict judge_status(const struct answer *answer)
{
    struct s3_call *call = answer->call;
    unsigned status = answer->status;
    bool success = status >= 200 && status < 300;
    bool absent = status == 404 && strcmp(answer->error.code, "NoSuchKey") == 0;
    if (success || absent || status == 412 || status == 416)
        answer->service->has_worked = true;
    if (success || (status == 416 && call->op == S3_GET))
        return judge_success(answer);
    if (status == 412 && call->conditional) {
        answer->service->create_once = S3_CREATE_ONCE_YES;
        return S3_COMPARE;
    }
    /* Not from a server that has shown that it knows the header: something on the way, then. */
    if (status == 501 && call->conditional && answer->service->create_once != S3_CREATE_ONCE_YES) {
        answer->service->create_once = S3_CREATE_ONCE_NO;
        return S3_UNCONDITIONAL;
    }
    /* A failing server may have done what it was asked for. */
    call->maybe_executed = call->maybe_executed || status >= 500 || status == 408;
    return status == 404 ? judge_missing(answer) : judge_error(answer);
}

static const char *transport_hint(const struct answer *answer)
{
    const struct http_exchange *x = &answer->call->exchange;
    if (x->err.hint[0])
        return x->err.hint;
    if (x->stalled && answer->service->has_worked)
        return "the server takes requests and does not answer: see its health (Ceph holds writes "
               "while its disks are full), and the network";
    return "is the endpoint right, with http or https, and can this host reach it?";
}

static enum s3_verdict judge_transport(const struct answer *answer)
{
    const struct http_exchange *x = &answer->call->exchange;
    if (x->err.code == ERR_STORE) {
        (void)say(answer, ERR_STORE, x->err.text);
        (void)err_hint(answer->err, "%s", transport_hint(answer));
        return again(answer);
    }
    (void)say(answer, x->err.code, x->err.text);
    if (x->err.hint[0])
        (void)err_hint(answer->err, "%s", x->err.hint);
    return S3_FAILED;
}

static enum s3_verdict judge(struct answer *answer)
{
    const struct s3_call *call = answer->call;
    const struct http_exchange *x = &call->exchange;
    if (x->rc < 0)
        return judge_transport(answer);
    if (x->answer_len > 0 && (x->status >= 300 || call->op != S3_GET)) {
        size_t len = (size_t)min_u64(x->answer_len, x->answer_capacity);
        (void)s3_xml_error_parse(x->answer, len, &answer->error);
    }
    return judge_status(answer);
}

enum s3_verdict s3_call_judge(struct s3_call *call, struct s3_service *service, uint64_t now_ms,
                              time_t now_s, unsigned *ret_delay_ms, struct err *err)
{
    struct http_exchange *x = &call->exchange;
    struct answer answer = {.call = call,
                            .service = service,
                            .status = x->status,
                            .now_s = now_s,
                            .now_ms = now_ms,
                            .ret_delay_ms = ret_delay_ms,
                            .err = err};
    assert(call->tries > 0);
    call->maybe_executed = call->maybe_executed || x->maybe_executed;
    enum s3_verdict verdict = judge(&answer);
    if (verdict == S3_FAILED)
        err->maybe_done = call->op == S3_PUT && call->maybe_executed;
    else if (verdict != S3_AGAIN)
        s3_watch_worked(service->watch, now_ms);
    return verdict;
}
