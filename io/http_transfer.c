/* One exchange on one easy handle: options, callbacks, and what became of it. The blocking client
 * and the lanes differ only in who waits. */
#include "io/http_curl.h"

#include <assert.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stdio.h>

#include "io/clock.h"

enum {
    /* One a connection: what recv(2) wrote is still in the cache when it is copied out. Measured:
     * 512 KiB cost 10 % more CPU a GB. */
    DOWN_BUFFER_LEN = 64 << 10,
    UP_BUFFER_LEN = 512 << 10,
    HURRIED_STALL_MS = 1000,
    LEAST_RATE = 1024, /* bytes a second, over a window of … */
    RATE_STALLS = 2,   /* … so many stall timeouts: a short answer has until then to end */
    URL_MAX = 12288,   /* an S3 list with the longest token, every byte escaped */
};

void http_acknowledge(curl_socket_t socket)
{
    int on = 1;
    (void)setsockopt(socket, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof(on));
}

/* --- callbacks ---------------------------------------------------------------------------- */

static int on_send(void *ctx, char *a, char *b, int c, int d)
{
    struct http_transfer *transfer = ctx;
    (void)a, (void)b, (void)c, (void)d;
    transfer->sendings++;
    transfer->moved_ns = monotonic_ns();
    return CURL_PREREQFUNC_OK;
}

static size_t on_header(char *data, size_t size, size_t count, void *ctx)
{
    struct http_transfer *transfer = ctx;
    struct http_exchange *x = transfer->x;
    size_t len = size * count;
    /* All heads and the trailer together, so that no number of them goes on for ever. */
    if (len > sizeof(x->head) - 1 - transfer->head_seen) {
        transfer->head_too_long = true;
        return 0;
    }
    transfer->head_seen += len;
    if (x->head_len == 0 && transfer->socket != CURL_SOCKET_BAD)
        http_acknowledge(transfer->socket);
    transfer->moved_ns = monotonic_ns();
    if (transfer->head_ended && len > 5 && memcmp(data, "HTTP/", 5) == 0) {
        x->head_len = 0; /* the one before was a 100 Continue */
        transfer->head_ended = false;
    }
    if (transfer->head_ended) /* a trailer */
        return len;
    memcpy(x->head + x->head_len, data, len);
    x->head_len += len;
    x->head[x->head_len] = '\0';
    transfer->head_ended = data[0] == '\r' || data[0] == '\n';
    return len;
}

static size_t on_data(char *data, size_t size, size_t count, void *ctx)
{
    struct http_transfer *transfer = ctx;
    struct http_exchange *x = transfer->x;
    size_t len = size * count;
    transfer->moved_ns = monotonic_ns();
    size_t room = x->answer_capacity - x->answer_len;
    size_t taken = len < room ? len : room;
    if (taken > 0)
        memcpy((char *)x->answer + x->answer_len, data, taken);
    x->answer_len += taken;
    x->body_seen += len;
    x->answer_cut = x->body_seen > x->answer_capacity;
    return x->body_seen - x->answer_len > HTTP_DRAIN_MAX ? 0 : len;
}

static size_t on_body(char *to, size_t size, size_t count, void *ctx)
{
    struct http_transfer *transfer = ctx;
    const struct http_exchange *x = transfer->x;
    size_t left = x->body_len - transfer->body_at;
    size_t len = (size_t)min_u64(size * count, left);
    if (len > 0)
        memcpy(to, (const char *)x->body + transfer->body_at, len);
    transfer->body_at += len;
    return len;
}

/* Rewinds the body when libcurl has to send again. */
static int on_seek(void *ctx, curl_off_t offset, int origin)
{
    struct http_transfer *transfer = ctx;
    if (origin != SEEK_SET || offset < 0 || (uint64_t)offset > transfer->x->body_len)
        return CURL_SEEKFUNC_FAIL;
    transfer->body_at = (size_t)offset;
    return CURL_SEEKFUNC_OK;
}

/* --- time --------------------------------------------------------------------------------- */

void http_transfer_moved(struct http_transfer *transfer, curl_off_t total)
{
    if (total == transfer->moved)
        return;
    if (total < transfer->mark) /* libcurl sends from the beginning again */
        transfer->mark = 0;
    transfer->moved = total;
    transfer->moved_ns = monotonic_ns();
}

void http_transfer_excuse(struct http_transfer *transfer, uint64_t late_ns)
{
    transfer->begun_ns += late_ns;
    if (transfer->moved_ns > 0)
        transfer->moved_ns += late_ns;
    if (transfer->mark_ns > 0)
        transfer->mark_ns += late_ns;
}

static bool must_hurry(const struct http_transfer *transfer)
{
    const struct http_exchange *x = transfer->x;
    return x->hurry && !transfer->hurried && atomic_load(x->hurry);
}

static unsigned stall_limit_ms(const struct http_transfer *transfer)
{
    unsigned limit_ms = transfer->server->stall_timeout_ms;
    return must_hurry(transfer) && limit_ms > HURRIED_STALL_MS ? HURRIED_STALL_MS : limit_ms;
}

static bool stands(const struct http_transfer *transfer, uint64_t now_ns)
{
    uint64_t since_ns = transfer->moved_ns;
    if (since_ns == 0 && must_hurry(transfer))
        since_ns = transfer->begun_ns;
    return since_ns > 0 && now_ns > since_ns &&
           now_ns - since_ns > (uint64_t)stall_limit_ms(transfer) * 1000000;
}

static unsigned rate_window_ms(const struct http_transfer *transfer)
{
    return RATE_STALLS * stall_limit_ms(transfer);
}

/* A byte now and then keeps nobody from waiting for ever. */
static bool creeps(struct http_transfer *transfer, uint64_t now_ns)
{
    unsigned window_ms = rate_window_ms(transfer);
    if (transfer->moved_ns == 0)
        return false;
    if (transfer->mark_ns == 0)
        transfer->mark_ns = transfer->moved_ns;
    if (now_ns <= transfer->mark_ns || now_ns - transfer->mark_ns < window_ms * (uint64_t)1000000)
        return false;
    bool creeping = transfer->moved - transfer->mark < (curl_off_t)window_ms * LEAST_RATE / 1000;
    transfer->mark_ns = now_ns;
    transfer->mark = transfer->moved;
    return creeping;
}

bool http_transfer_stalled(struct http_transfer *transfer, uint64_t now_ns)
{
    transfer->stalled = stands(transfer, now_ns);
    transfer->creeping = !transfer->stalled && creeps(transfer, now_ns);
    return transfer->stalled || transfer->creeping;
}

/* --- begin -------------------------------------------------------------------------------- */

int http_transfer_open(struct http_transfer *transfer, struct http_server *server, struct err *err)
{
    *transfer = (struct http_transfer){
        .server = server, .curl = curl_easy_init(), .socket = CURL_SOCKET_BAD};
    return transfer->curl ? 0 : err_set(err, ERR_INTERNAL, "libcurl did not start");
}

void http_transfer_close(struct http_transfer *transfer)
{
    curl_easy_cleanup(transfer->curl);
    curl_slist_free_all(transfer->headers);
    *transfer = (struct http_transfer){0};
}

static void set_connection(struct http_transfer *transfer)
{
    const struct http_server *server = transfer->server;
    CURL *curl = transfer->curl;
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, transfer->error);
    curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)server->connect_timeout_ms);
    curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, (long)DOWN_BUFFER_LEN);
    curl_easy_setopt(curl, CURLOPT_UPLOAD_BUFFERSIZE, (long)UP_BUFFER_LEN);
    curl_easy_setopt(curl, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 1L);
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 2L);
    if (server->ca_file) { /* instead of the system's, which Debian's libcurl adds by its path */
        curl_easy_setopt(curl, CURLOPT_CAINFO, server->ca_file);
        curl_easy_setopt(curl, CURLOPT_CAPATH, NULL);
    }
    if (server->addresses)
        curl_easy_setopt(curl, CURLOPT_RESOLVE, server->addresses);
}

static void set_request(struct http_transfer *transfer, const char *url)
{
    const struct http_exchange *x = transfer->x;
    CURL *curl = transfer->curl;
    bool uploads = strcmp(x->method, "PUT") == 0 || strcmp(x->method, "POST") == 0;
    assert(uploads || x->body_len == 0);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PRIVATE, transfer);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, transfer->headers);
    if (uploads) {
        curl_easy_setopt(curl, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(curl, CURLOPT_INFILESIZE_LARGE, (curl_off_t)x->body_len);
        curl_easy_setopt(curl, CURLOPT_READFUNCTION, on_body);
        curl_easy_setopt(curl, CURLOPT_READDATA, transfer);
        curl_easy_setopt(curl, CURLOPT_SEEKFUNCTION, on_seek);
        curl_easy_setopt(curl, CURLOPT_SEEKDATA, transfer);
    } else if (strcmp(x->method, "HEAD") == 0) {
        curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
    }
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, x->method);
    curl_easy_setopt(curl, CURLOPT_PREREQFUNCTION, on_send);
    curl_easy_setopt(curl, CURLOPT_PREREQDATA, transfer);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, transfer);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, transfer);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, transfer);
}

static int add_headers(struct http_transfer *transfer)
{
    struct http_exchange *x = transfer->x;
    /* Never a second round trip before a body: S3 servers refuse a request by closing. */
    struct curl_slist *list = curl_slist_append(NULL, "Expect:");
    for (const char *const *line = x->headers; list && line && *line; line++) {
        struct curl_slist *longer = curl_slist_append(list, *line);
        if (!longer)
            curl_slist_free_all(list);
        list = longer;
    }
    transfer->headers = list;
    return list ? 0 : err_set(&x->err, ERR_INTERNAL, "out of memory");
}

static void clear_answer(struct http_exchange *x)
{
    x->rc = 0;
    x->status = 0;
    x->answer_len = 0;
    x->answer_cut = false;
    x->stalled = false;
    x->content_length = 0;
    x->has_content_length = false;
    x->maybe_executed = false;
    x->head[0] = '\0';
    x->head_len = 0;
    x->body_seen = 0;
    err_clear(&x->err);
}

int http_transfer_begin(struct http_transfer *transfer, struct http_exchange *x)
{
    assert(!transfer->x && !transfer->headers);
    assert(x->target[0] == '/');
    assert(x->answer || x->answer_capacity == 0);
    char url[URL_MAX];
    clear_answer(x);
    x->rc = http_server_resolve(transfer->server, &x->err);
    if (x->rc < 0)
        return x->rc;
    int len = snprintf(url, sizeof(url), "%s%s", transfer->server->origin, x->target);
    if (len < 0 || (size_t)len >= sizeof(url))
        return x->rc = err_set(&x->err, ERR_INTERNAL, "the request's path is too long");
    transfer->x = x;
    transfer->body_at = 0;
    transfer->sendings = 0;
    transfer->hurried = x->hurry && atomic_load(x->hurry);
    transfer->unwatched = false;
    transfer->stalled = transfer->creeping = false;
    transfer->head_too_long = transfer->head_ended = false;
    transfer->head_seen = 0;
    transfer->moved = transfer->mark = 0;
    transfer->moved_ns = transfer->mark_ns = 0;
    transfer->begun_ns = monotonic_ns();
    err_clear(&transfer->why);
    transfer->error[0] = '\0';
    x->rc = add_headers(transfer);
    if (x->rc < 0) {
        transfer->x = NULL;
        return x->rc;
    }
    curl_easy_reset(transfer->curl);
    set_connection(transfer);
    set_request(transfer, url);
    return 0;
}

/* --- end ---------------------------------------------------------------------------------- */

static int tls_failure(const struct http_transfer *transfer, const char *text)
{
    struct err *err = &transfer->x->err;
    const struct http_server *server = transfer->server;
    long chain = 0; /* 1: libcurl's first value, it failed at the name in it; else who signed it */
    (void)curl_easy_getinfo(transfer->curl, CURLINFO_SSL_VERIFYRESULT, &chain);
    (void)err_set(err, ERR_AUTH, "the certificate of %s is not accepted: %s", server->origin, text);
    if (chain <= 1)
        return err_hint(err, "the endpoint must be written with a name that is in the server's "
                             "certificate");
    if (server->ca_file)
        return err_hint(err, "'%s' must hold the CA that signed the certificate of '%s'",
                        server->ca_file, server->host);
    return err_hint(err, "set ca_file to the CA that signed it");
}

/* Why the exchange failed, for x->err; code is not CURLE_OK. */
static int failure(struct http_transfer *transfer, CURLcode code)
{
    struct http_exchange *x = transfer->x;
    struct http_server *server = transfer->server;
    struct err *err = &x->err;
    const char *text = transfer->error[0] ? transfer->error : curl_easy_strerror(code);
    if (transfer->why.code != ERR_OK) {
        *err = transfer->why;
        return -(int)err->code;
    }
    x->stalled = transfer->stalled || transfer->creeping;
    if (transfer->stalled)
        return err_set(err, ERR_STORE, "%s: nothing moved for %u ms", server->origin,
                       stall_limit_ms(transfer));
    if (transfer->creeping)
        return err_set(err, ERR_STORE, "%s: less than %d bytes a second moved for %u ms",
                       server->origin, LEAST_RATE, rate_window_ms(transfer));
    if (transfer->head_too_long)
        return err_set(err, ERR_STORE, "%s: the answer's headers are longer than %u bytes",
                       server->origin, HTTP_HEAD_MAX);
    if (code == CURLE_OUT_OF_MEMORY)
        return err_set(err, ERR_INTERNAL, "out of memory in a request to %s", server->origin);
    if (code == CURLE_PEER_FAILED_VERIFICATION)
        return tls_failure(transfer, text);
    if (code == CURLE_SSL_CACERT_BADFILE) {
        (void)err_set(err, ERR_CONFIG, "use the CA file '%s': %s",
                      server->ca_file ? server->ca_file : "of the system", text);
        return err_hint(err, "it must hold certificates in PEM");
    }
    if (code == CURLE_COULDNT_CONNECT || code == CURLE_OPERATION_TIMEDOUT)
        server->resolved_ns = 0; /* it may have moved: look it up again */
    long sys_errno = 0;
    (void)curl_easy_getinfo(transfer->curl, CURLINFO_OS_ERRNO, &sys_errno);
    (void)err_set(err, ERR_STORE, "%s: %s", server->origin, text);
    err->sys_errno = (int)sys_errno;
    if (code == CURLE_COULDNT_CONNECT)
        return err_hint(err, "is the server running, and the endpoint right?");
    return -(int)err->code;
}

static void read_answer(const struct http_transfer *transfer)
{
    struct http_exchange *x = transfer->x;
    long status = 0;
    curl_off_t length = -1;
    (void)curl_easy_getinfo(transfer->curl, CURLINFO_RESPONSE_CODE, &status);
    (void)curl_easy_getinfo(transfer->curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    x->status = (unsigned)status;
    x->has_content_length = length >= 0;
    x->content_length = length >= 0 ? (uint64_t)length : 0;
}

void http_transfer_end(struct http_transfer *transfer, CURLcode code)
{
    struct http_exchange *x = transfer->x;
    long sent = 0;
    (void)curl_easy_getinfo(transfer->curl, CURLINFO_REQUEST_SIZE, &sent);
    read_answer(transfer);
    /* We hung up because the rest of a cut body was not wanted. */
    if (code == CURLE_WRITE_ERROR && x->answer_cut && !transfer->head_too_long)
        code = CURLE_OK;
    x->rc = code == CURLE_OK ? 0 : failure(transfer, code);
    x->maybe_executed = x->rc < 0 ? sent > 0 : transfer->sendings > 1;
    curl_slist_free_all(transfer->headers);
    transfer->headers = NULL;
    transfer->x = NULL;
}
