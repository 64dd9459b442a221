/* Object lock: what is sent with a put, how a lock is put and read, and how versions are listed.
 * What the answers mean is t_s3_request.c's. Pure: no server. */
#include "io/s3_request.h"

#include "tests/tap.h"

static struct s3_service *service;
static struct s3_call *call;

/* The value of a header of the request that was signed last. */
static const char *header(const char *name)
{
    size_t len = strlen(name);
    const char *const *line = call->headers;
    while (*line && (strncasecmp(*line, name, len) != 0 || (*line)[len] != ':'))
        line++;
    return *line ? *line + len + 2 : "";
}

static const struct {
    const char *head;
    enum store_lock_mode mode;
    int64_t until_s;
    bool held;
} locks[] = {
    {"", STORE_LOCK_NONE, 0, false},
    {"x-amz-object-lock-mode: COMPLIANCE\r\n"
     "x-amz-object-lock-retain-until-date: 2013-05-24T00:00:00.000Z\r\n", /* AWS */
     STORE_LOCK_COMPLIANCE, 1369353600, false},
    {"x-amz-object-lock-retain-until-date: 2013-05-24T00:00:07.123456789Z\r\n" /* radosgw */
     "x-amz-object-lock-mode: GOVERNANCE\r\n",
     STORE_LOCK_GOVERNANCE, 1369353607, false},
    {"x-amz-object-lock-mode: COMPLIANCE\r\n", STORE_LOCK_NONE, 0, false},
    {"x-amz-object-lock-mode: COMPLIANCE\r\nx-amz-object-lock-retain-until-date: soon\r\n",
     STORE_LOCK_NONE, 0, false},
    {"x-amz-object-lock-mode: COMPLIANCE\r\n"
     "x-amz-object-lock-retain-until-date: 2013-05-24T00:00:00+01:00\r\n",
     STORE_LOCK_NONE, 0, false},
    {"x-amz-object-lock-legal-hold: ON\r\n", STORE_LOCK_NONE, 0, true},
    {"x-amz-object-lock-legal-hold: OFF\r\n", STORE_LOCK_NONE, 0, false},
};

static void check_read_locks(void)
{
    for (size_t i = 0; i < ARRAY_LEN(locks); i++) {
        struct http_exchange *x = &call->exchange;
        struct store_lock lock;
        snprintf(x->head, sizeof(x->head), "HTTP/1.1 200 OK\r\n%s\r\n", locks[i].head);
        x->head_len = strlen(x->head);
        s3_call_read_lock(call, &lock);
        ok(lock.mode == locks[i].mode && lock.until_s == locks[i].until_s &&
               lock.held == locks[i].held,
           "the lock of answer %zu", i);
    }
}

static void check_put_locks(void)
{
    s3_call_put(call, service, "pack/x", "abc", 3, 0);
    s3_call_sign(call, service, 1369353600);
    is_str(header("x-amz-object-lock-mode"), "COMPLIANCE", "a pack is locked");
    is_str(header("x-amz-object-lock-retain-until-date"), "2013-05-25T00:00:00Z", "for a day");
    ok(strstr(header("authorization"), ";x-amz-date;x-amz-object-lock-mode;"
                                       "x-amz-object-lock-retain-until-date,"),
       "and that is signed");
    service->lock_until_s = 1369353600 + 172800;
    s3_call_put(call, service, "tidemark.repo", "abc", 3, 0);
    s3_call_sign(call, service, 1369353600);
    is_str(header("x-amz-object-lock-retain-until-date"), "2013-05-26T00:00:00Z",
           "until a date that was chosen");
    s3_call_sign(call, service, service->lock_until_s + 5);
    is_str(header("x-amz-object-lock-retain-until-date"), "2013-05-26T00:01:05Z",
           "a moment more when that is over: no server takes a past date");
    s3_call_put(call, service, "withdrawn/x", "abc", 3, 0);
    s3_call_sign(call, service, 1369353600);
    is_str(header("x-amz-object-lock-mode"), "", "a mark is not");
    s3_call_look(call, service, "pack/x", 0);
    s3_call_sign(call, service, 1369353600);
    is_str(header("x-amz-object-lock-mode"), "", "nor what is read");
}

static void check_locks(void)
{
    char buf[5000];
    check_put_locks();
    s3_call_retain(call, service, "n", STORE_LOCK_GOVERNANCE, 1369353600, 0);
    s3_call_sign(call, service, 0);
    is_str(call->exchange.method, "PUT", "a lock is put");
    is_str(call->exchange.target, "/bucket/p/n?retention=", "beside the object");
    is_str(header("content-md5"), "PapP8nuaTdTNOrXmCwMJWA==", "with the MD5 of");
    is_str((const char *)call->exchange.body,
           "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>GOVERNANCE</Mode>"
           "<RetainUntilDate>2013-05-24T00:00:00Z</RetainUntilDate></Retention>",
           "its document");
    s3_call_ask(call, service, "object-lock", 0);
    s3_call_sign(call, service, 0);
    is_str(call->exchange.target, "/bucket?object-lock=", "the bucket is asked");
    s3_call_list_versions(call, service, "a/", "", "", buf, sizeof(buf), 0);
    s3_call_sign(call, service, 0);
    is_str(call->exchange.target,
           "/bucket?encoding-type=url&max-keys=1000&prefix=p%2Fa%2F&versions=", "versions");
    s3_call_list_versions(call, service, "a/", "p/a/b", "v+1", buf, sizeof(buf), 0);
    s3_call_sign(call, service, 0);
    is_str(call->exchange.target,
           "/bucket?encoding-type=url&key-marker=p%2Fa%2Fb&max-keys=1000&prefix=p%2Fa%2F&"
           "version-id-marker=v%2B1&versions=",
           "go on");
    s3_call_look_version(call, service, "n", "v+1", 0);
    s3_call_sign(call, service, 0);
    is_str(call->exchange.target, "/bucket/p/n?versionId=v%2B1", "one version");
    check_read_locks();
}

/* --- answers ---------------------------------------------------------------------------------- */
static const struct {
    enum s3_op op;
    unsigned status;
    const char *code;
    enum s3_verdict want;
    enum err_code error;
    const char *part; /* of text or hint */
} answers[] = {
    {S3_RETAIN, 200, "", S3_DONE, ERR_OK, ""},
    {S3_RETAIN, 404, "NoSuchKey", S3_ABSENT, ERR_MISSING, "no such object"},
    {S3_RETAIN, 403, "AccessDenied", S3_FAILED, ERR_AUTH, "permission to lock"},
    {S3_RETAIN, 503, "SlowDown", S3_AGAIN, ERR_OK, ""},
    {S3_ASK, 200, "", S3_DONE, ERR_OK, ""},
    {S3_ASK, 404, "ObjectLockConfigurationNotFoundError", S3_ABSENT, ERR_MISSING, "it has none"},
    {S3_ASK, 404, "NoSuchKey", S3_AGAIN, ERR_OK, ""},
    {S3_ASK, 403, "AccessDenied", S3_FAILED, ERR_AUTH, "s3:GetBucketObjectLockConfiguration"},
    {S3_LIST, 403, "AccessDenied", S3_FAILED, ERR_AUTH, "s3:ListBucketVersions"},
    {S3_GET, 404, "NoSuchVersion", S3_ABSENT, ERR_MISSING, "no such object"},
    {S3_PUT, 403, "AccessDenied", S3_FAILED, ERR_AUTH, "permission to write and lock"},
};

static void check_answer(size_t i)
{
    struct http_exchange *x = &call->exchange;
    struct err err = {.code = ERR_OK};
    unsigned delay;
    static char versions[4096];
    if (answers[i].op == S3_ASK)
        s3_call_ask(call, service, "object-lock", 1000);
    else if (answers[i].op == S3_LIST)
        s3_call_list_versions(call, service, "", "", "", versions, sizeof(versions), 1000);
    else if (answers[i].op == S3_RETAIN)
        s3_call_retain(call, service, "n", STORE_LOCK_COMPLIANCE, 1369353600, 1000);
    else if (answers[i].op == S3_PUT)
        s3_call_put(call, service, "pack/n", "abc", 3, 1000);
    else
        s3_call_look_version(call, service, "n", "v", 1000);
    s3_call_sign(call, service, 1369353600);
    x->status = answers[i].status;
    x->head_len = 0;
    x->answer_len = (size_t)snprintf(x->answer, x->answer_capacity,
                                     "<Error><Code>%s</Code></Error>", answers[i].code);
    enum s3_verdict got = s3_call_judge(call, service, 2000, 1369353600, &delay, &err);
    bool told = answers[i].error == ERR_OK ||
                (err.code == answers[i].error &&
                 (strstr(err.text, answers[i].part) || strstr(err.hint, answers[i].part)));
    ok(got == answers[i].want && told, "op %d, %u %s", (int)answers[i].op, answers[i].status,
       answers[i].code);
}

int main(void)
{
    static const struct store_s3_options options = {.endpoint = "http://127.0.0.1:9000",
                                                    .access_key = "AKID",
                                                    .secret_key = "the-secret-key",
                                                    .lock_mode = STORE_LOCK_COMPLIANCE,
                                                    .lock_s = 86400};
    struct err err;
    is_good(s3_service_open("bucket/p", &options, &service, &err), &err, "a place that locks");
    call = calloc(1, sizeof(*call));
    check_locks();
    for (size_t i = 0; i < ARRAY_LEN(answers); i++)
        check_answer(i);
    free(call);
    s3_service_close(service);
    return done();
}
