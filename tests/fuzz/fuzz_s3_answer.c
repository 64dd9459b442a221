/* Any answer to any S3 operation, again and again: judged without harm, and never an absence, a
 * success or an object of somebody else that the answer does not show. The input is
 * `operation status head NUL body`. */
#include "io/s3_request.h"

#include "tests/fuzz/fuzz.h"

static struct s3_service *service;
static struct s3_call *call;
static char buf[8192];
static const char secret[] = "the-secret-key";
static bool secret_given; /* the input holds it itself */

static void begin(uint8_t op)
{
    switch (op % 7) {
    case 0:
        s3_call_put(call, service, "name", "bytes", 5, 1000);
        break;
    case 1:
        s3_call_get(call, service, "name", op, buf, 1 + op * 30u, 1000);
        break;
    case 2:
        s3_call_list(call, service, "wal/", "", 100, buf, sizeof(buf), 1000);
        break;
    case 3:
        s3_call_delete(call, service, "name", 1000);
        break;
    case 4:
        s3_call_delete_batch(call, service, "<Delete/>", 9, buf, sizeof(buf), 1000);
        break;
    case 5:
        s3_call_ask(call, service, "object-lock", 1000);
        break;
    default:
        s3_call_retain(call, service, "name", STORE_LOCK_COMPLIANCE, 1369353600, 1000);
    }
}

static enum s3_verdict judge(unsigned status, const char *head, const uint8_t *body, size_t len,
                             uint64_t now_ms, struct err *err)
{
    struct http_exchange *x = &call->exchange;
    unsigned delay_ms = 0;
    s3_call_sign(call, service, 1369353600);
    x->rc = 0;
    x->status = status;
    x->maybe_executed = false;
    x->answer_cut = len > x->answer_capacity;
    x->answer_len = (size_t)min_u64(len, x->answer_capacity);
    memcpy(x->answer, body, x->answer_len);
    (void)snprintf(x->head, sizeof(x->head), "HTTP/1.1 %u X\r\n%s", status, head);
    x->head_len = strlen(x->head);
    enum s3_verdict verdict = s3_call_judge(call, service, now_ms, 1369353600, &delay_ms, err);
    FUZZ_CHECK(verdict != S3_AGAIN || delay_ms <= 60000);
    return verdict;
}

static void check(enum s3_verdict verdict, unsigned status, const struct err *err)
{
    bool good = status >= 200 && status < 300;
    if (verdict == S3_DONE)
        FUZZ_CHECK(good || (status == 416 && call->op == S3_GET) ||
                   (status == 404 && call->op == S3_DELETE));
    if (verdict == S3_ABSENT)
        FUZZ_CHECK(status == 404 && err->code == ERR_MISSING &&
                   (call->op == S3_GET || call->op == S3_ASK || call->op == S3_RETAIN));
    if (verdict == S3_COMPARE)
        FUZZ_CHECK(status == 412 && call->op == S3_PUT);
    if (verdict == S3_FAILED)
        FUZZ_CHECK((err->code == ERR_STORE || err->code == ERR_AUTH) && err->text[0] != '\0');
    if (verdict == S3_DONE && call->op == S3_GET) {
        struct store_lock lock;
        FUZZ_CHECK(call->got <= call->len);
        s3_call_read_lock(call, &lock);
        FUZZ_CHECK((lock.mode == STORE_LOCK_NONE) == (lock.until_s == 0) || lock.until_s == 0);
    }
    FUZZ_CHECK(secret_given || (!strstr(err->text, secret) && !strstr(err->hint, secret)));
}

static void set_up(void)
{
    static const struct store_s3_options options = {.endpoint = "http://h",
                                                    .access_key = "key",
                                                    .secret_key = secret,
                                                    .retry_timeout_ms = 60000,
                                                    .seed = 1};
    struct err err;
    s3_service_close(service);
    FUZZ_CHECK(s3_service_open("bucket/p", &options, &service, &err) == 0);
    if (call == NULL)
        call = calloc(1, sizeof(*call));
    FUZZ_CHECK(call != NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char head[512] = "";
    struct err err = {.code = ERR_OK};
    if (size < 3)
        return 0;
    unsigned status = (unsigned)(data[1] << 8 | data[2]) % 600;
    size_t head_len = strnlen((const char *)data + 3, size - 3);
    memcpy(head, data + 3, min_u64(head_len, sizeof(head) - 1));
    const uint8_t *body = data + 3 + min_u64(head_len + 1, size - 3);
    size_t body_len = (size_t)(data + size - body);
    secret_given = memmem(data, size, secret, strlen(secret)) != NULL;
    set_up();
    begin(data[0]);
    enum s3_verdict verdict = judge(status, head, body, body_len, 1000, &err);
    check(verdict, status, &err);
    for (int i = 0; i < 8 && verdict == S3_AGAIN; i++) {
        verdict = judge(status, head, body, body_len, 1000 + (uint64_t)i * 10000, &err);
        check(verdict, status, &err);
    }
    FUZZ_CHECK(verdict != S3_AGAIN); /* the last one is behind the deadline */
    return 0;
}
