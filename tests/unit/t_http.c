/* io/http, blocking: exchanges with a server over TCP, keep-alive, and what each way to fail is
 * called. */
#include "io/clock.h"
#include "io/http.h"
#include "tests/lib/webserver.h"

static struct web web;
static uint8_t answer[4 << 20], body[4 << 20];

static struct http *open_http(void)
{
    struct http_endpoint endpoint = {.origin = web.origin, .stall_timeout_ms = 300};
    struct http *http = NULL;
    struct err err;
    is_good(http_open(&endpoint, &http, &err), &err, "http_open");
    return http;
}

static bool bytes_good(const struct http_exchange *x, uint64_t first)
{
    const uint8_t *at = x->answer;
    for (size_t i = 0; i < x->answer_len; i++)
        if (at[i] != web_byte(first + i))
            return false;
    return true;
}

static struct http_exchange *exchange(const char *method, const char *target, size_t body_len)
{
    static struct http_exchange x;
    memset(answer, 0, sizeof(answer));
    x = (struct http_exchange){.method = method,
                               .target = target,
                               .body = body,
                               .body_len = body_len,
                               .answer = answer,
                               .answer_capacity = sizeof(answer)};
    return &x;
}

static void test_good(void)
{
    struct http *http = open_http();
    char value[64];
    struct http_exchange *x = exchange("GET", "/3000000", 0);
    http_run(http, x);
    is_good(x->rc, &x->err, "GET");
    ok(x->status == 200 && x->answer_len == 3000000 && bytes_good(x, 0), "the body came whole");
    ok(x->has_content_length && x->content_length == 3000000, "Content-Length");
    is_str(http_header(x, "etag", value, sizeof(value)), "\"e3000000\"", "a header");
    is_str(http_header(x, "X-Empty", value, sizeof(value)), "", "an empty header");
    ok(!http_header(x, "none", value, sizeof(value)), "a header that is not there");
    ok(!http_header(x, "etag", value, 4), "a header that does not fit");
    ok(!http_header(x, "HTTP/1.1 200 Text", value, sizeof(value)), "the status line is none");
    const char *const range[] = {"Range: bytes=1000-1999", NULL};
    x = exchange("GET", "/3000000", 0);
    x->headers = range;
    http_run(http, x);
    ok(x->rc == 0 && x->status == 206 && x->answer_len == 1000 && bytes_good(x, 1000), "a range");
    x = exchange("HEAD", "/77", 0);
    http_run(http, x);
    ok(x->rc == 0 && x->status == 200 && x->answer_len == 0 && x->content_length == 77, "HEAD");
    x = exchange("PUT", "/key", sizeof(body));
    http_run(http, x);
    ok(x->rc == 0 && x->status == 200 && web.puts_done == 1, "PUT");
    is_u64(x->answer_len, 3, "… with its answer");
    x = exchange("PUT", "/key", 0);
    http_run(http, x);
    ok(x->rc == 0 && x->status == 200 && web.puts_done == 2, "PUT of nothing");
    x = exchange("POST", "/key", 100);
    http_run(http, x);
    ok(x->rc == 0 && x->status == 200, "POST");
    x = exchange("DELETE", "/key", 0);
    http_run(http, x);
    ok(x->rc == 0 && x->status == 200 && !x->maybe_executed, "DELETE");
    is_u64(web.accepted, 1, "one connection for all of it");
    http_close(http);
}

static void test_odd_answers(void)
{
    char value[64];
    web_again(&web);
    struct http *http = open_http();
    web.faults[0] = WEB_CONTINUE;
    web.faults[1] = WEB_CHUNKED;
    web.faults[2] = WEB_503;
    struct http_exchange *x = exchange("PUT", "/key", 5000);
    http_run(http, x);
    ok(x->rc == 0 && x->status == 200, "100 Continue is not the answer");
    ok(!http_header(x, "x-part", value, sizeof(value)), "… and its headers are gone");
    x = exchange("GET", "/5000", 0);
    http_run(http, x);
    ok(x->rc == 0 && x->answer_len == 5000 && bytes_good(x, 0) && !x->has_content_length,
       "a chunked body");
    ok(!http_header(x, "x-trailer", value, sizeof(value)), "a trailer is no header");
    x = exchange("GET", "/5000", 0);
    http_run(http, x);
    ok(x->rc == 0 && x->status == 503, "a status is no failure");
    x = exchange("GET", "/5000", 0);
    x->answer_capacity = 100;
    http_run(http, x);
    ok(x->rc == 0 && x->answer_cut && x->answer_len == 100 && bytes_good(x, 0), "a cut answer");
    is_u64(web.accepted, 1, "… is read to its end, for the connection's sake");
    x = exchange("GET", "/5000000", 0);
    x->answer_capacity = 0;
    x->answer = NULL;
    http_run(http, x);
    ok(x->rc == 0 && x->answer_cut && x->answer_len == 0, "… unless it is long");
    x = exchange("GET", "/1", 0);
    http_run(http, x);
    ok(x->rc == 0 && web.accepted == 2, "the next one connects anew");
    web.faults[web.requests] = WEB_ENDLESS;
    x = exchange("GET", "/1", 0);
    http_run(http, x);
    ok(x->rc == 0 && x->answer_cut && x->answer_len == sizeof(answer) && bytes_good(x, 0),
       "an endless answer ends");
    http_close(http);
}

static void fails(enum web_fault fault, const char *method, size_t body_len, const char *part,
                  bool executed)
{
    web_again(&web);
    struct http *http = open_http();
    web.faults[0] = fault;
    struct http_exchange *x = exchange(method, "/3000000", body_len);
    http_run(http, x);
    is_err(x->rc, &x->err, ERR_STORE, part, "%s, fault %d: %s", method, (int)fault, part);
    ok(x->stalled == (strstr(part, " moved for ") != NULL), "… it says when it stalled");
    ok(x->maybe_executed, "… the server may have done it");
    is_u64(web.puts_done, executed, "… and has or has not");
    x = exchange("GET", "/1000", 0);
    http_run(http, x);
    ok(x->rc == 0 && x->answer_len == 1000 && bytes_good(x, 0), "… the next request is good");
    http_close(http);
}

static void test_failures(void)
{
    fails(WEB_RESET_AT_HEAD, "GET", 0, web.origin, false);
    fails(WEB_RESET_AT_HEAD, "PUT", sizeof(body), web.origin, false);
    fails(WEB_RESET_IN_BODY, "PUT", sizeof(body), web.origin, false);
    fails(WEB_RESET_UNANSWERED, "PUT", sizeof(body), web.origin, true);
    fails(WEB_RESET_IN_ANSWER, "GET", 0, web.origin, false);
    fails(WEB_SHORT, "GET", 0, web.origin, false);
    fails(WEB_STALL, "PUT", 1000, "nothing moved for 300 ms", true);
    fails(WEB_STALL_IN_BODY, "PUT", sizeof(body), "nothing moved for 300 ms", false);
    fails(WEB_STALL_IN_ANSWER, "GET", 0, "nothing moved for 300 ms", false);
    fails(WEB_LONG_HEAD, "GET", 0, "longer than 8192 bytes", false);
    fails(WEB_ENDLESS_CONTINUE, "GET", 0, "longer than 8192 bytes", false);
    fails(WEB_ENDLESS_TRAILER, "GET", 0, "longer than 8192 bytes", false);
    fails(WEB_NOT_HTTP, "GET", 0, web.origin, false);
}

/* It always moves a little. */
static void test_trickle(void)
{
    struct http_endpoint endpoint = {.origin = web.origin, .stall_timeout_ms = 1000};
    struct http *http = NULL;
    struct err err;
    is_good(http_open(&endpoint, &http, &err), &err, "a stall time of a second");
    web_again(&web);
    web.faults[0] = WEB_TRICKLE;
    struct http_exchange *x = exchange("GET", "/1000000", 0);
    http_run(http, x);
    is_err(x->rc, &x->err, ERR_STORE, "less than 1024 bytes a second moved for 2000 ms",
           "fifty bytes a second are too few");
    ok(x->stalled, "which is a stall");
    http_close(http);
}

static void *set_later(void *flag)
{
    while (web.requests == 0)
        poll(NULL, 0, 1);
    atomic_store((atomic_bool *)flag, true);
    return NULL;
}

/* Somebody cancels: what hangs ends soon, what begins afterwards has its time. */
static void test_hurry(void)
{
    struct http_endpoint endpoint = {.origin = web.origin, .stall_timeout_ms = 100000};
    struct http *http = NULL;
    struct err err;
    atomic_bool hurry = false;
    pthread_t thread;
    is_good(http_open(&endpoint, &http, &err), &err, "a stall time of 100 s");
    web_again(&web);
    web.faults[0] = WEB_STALL;
    if (pthread_create(&thread, NULL, set_later, &hurry) != 0)
        abort();
    struct http_exchange *x = exchange("GET", "/10", 0);
    x->hurry = &hurry;
    http_run(http, x);
    (void)pthread_join(thread, NULL);
    is_err(x->rc, &x->err, ERR_STORE, "nothing moved for 1000 ms", "who is hurried waits a second");
    web.delay_ms = 2500;
    x = exchange("GET", "/10", 0);
    x->hurry = &hurry;
    http_run(http, x);
    ok(x->rc == 0 && x->answer_len == 10, "who begins later waits for a slow answer");
    web.delay_ms = 0;
    http_close(http);
}

/* Servers close idle connections; libcurl sends again and we hear of it. */
static void test_idle_close(void)
{
    web_again(&web);
    struct http *http = open_http();
    web.faults[0] = WEB_CLOSE_AFTER;
    web.faults[2] = WEB_RESET_UNANSWERED;
    struct http_exchange *x = exchange("GET", "/10", 0);
    http_run(http, x);
    ok(x->rc == 0, "an answer, then the connection closes");
    x = exchange("GET", "/10", 0);
    http_run(http, x);
    ok(x->rc == 0 && x->answer_len == 10 && web.accepted == 2, "the next request connects anew");
    x = exchange("PUT", "/key", 1000);
    http_run(http, x);
    ok(x->rc == 0 && x->status == 200, "a connection that was alive before dies in a PUT");
    is_u64(web.puts_done, 2, "… libcurl repeats it, and both arrived");
    ok(x->maybe_executed, "… which the exchange says");
    http_close(http);
}

static void test_no_server(void)
{
    struct web gone;
    struct err err;
    struct http *http;
    web_start(&gone);
    web_stop(&gone);
    struct http_endpoint endpoint = {.origin = gone.origin};
    is_good(http_open(&endpoint, &http, &err), &err, "http_open");
    struct http_exchange *x = exchange("GET", "/", 0);
    http_run(http, x);
    is_err(x->rc, &x->err, ERR_STORE, "connect", "nobody listens");
    is_u64(x->err.sys_errno, ECONNREFUSED, "… with its errno");
    ok(!x->maybe_executed && x->err.hint[0] != '\0', "… nothing was sent, and there is a hint");
    http_close(http);
    endpoint.origin = "http://no-such-host.invalid";
    is_good(http_open(&endpoint, &http, &err), &err, "http_open");
    http_run(http, x);
    is_err(x->rc, &x->err, ERR_STORE, "no-such-host.invalid", "an unknown name");
    http_close(http);
    char localhost[64];
    snprintf(localhost, sizeof(localhost), "http://any.s3.localhost:%u/", web.port);
    endpoint.origin = localhost;
    is_good(http_open(&endpoint, &http, &err), &err, "a name below localhost");
    x = exchange("GET", "/9", 0);
    http_run(http, x);
    ok(x->rc == 0 && x->answer_len == 9, "… is here");
    http_close(http);
}

static void test_bad_origins(void)
{
    static const char *const bad[] = {
        "",           "127.0.0.1:80",      "ftp://host",      "http://",       "http://:80",
        "http://h:0", "http://h:70000",    "http://h:1x",     "http://h/path", "http://u@h",
        "https://h:", "http://h:80?query", "http://[::1",     "http://h#a",    "http://h:-1",
        "https:///",  "http://h\\x",       "http://host name"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct http_endpoint endpoint = {.origin = bad[i]};
        struct http *http = NULL;
        struct err err;
        is_err(http_open(&endpoint, &http, &err), &err, ERR_CONFIG, "no address", "'%s'", bad[i]);
        ok(!http, "… leaves the result alone");
    }
    static const char *const good[] = {"http://h", "https://h:1/", "https://[::1]:9000",
                                       "http://127.0.0.1"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        struct http_endpoint endpoint = {.origin = good[i]};
        struct http *http = NULL;
        struct err err;
        is_good(http_open(&endpoint, &http, &err), &err, "'%s'", good[i]);
        http_close(http);
    }
    struct http_endpoint endpoint = {.origin = "https://h", .ca_file = "/nonexistent/ca.pem"};
    struct http *http = NULL;
    struct err err;
    is_err(http_open(&endpoint, &http, &err), &err, ERR_CONFIG, "/nonexistent/ca.pem", "ca_file");
}

static void test_socket_path(void)
{
    char path[109];
    struct http *unix_http = NULL;
    struct err err;
    memset(path, 's', sizeof(path));
    path[0] = '/';
    path[108] = '\0';
    is_err(http_open_unix(path, &unix_http, &err), &err, ERR_CONFIG, "longer than 107 bytes",
           "a socket's path of 108 bytes is refused");
    path[107] = '\0';
    is_good(http_open_unix(path, &unix_http, &err), &err, "one of 107 is not");
    http_close(unix_http);
}

int main(void)
{
    setenv("http_proxy", "http://127.0.0.1:1", 1);
    setenv("all_proxy", "http://127.0.0.1:1", 1);
    for (size_t i = 0; i < sizeof(body); i++)
        body[i] = web_byte(i);
    web_start(&web);
    test_good();
    test_odd_answers();
    test_failures();
    test_trickle();
    test_hurry();
    test_idle_close();
    test_no_server();
    test_bad_origins();
    test_socket_path();
    web_stop(&web);
    return done();
}
