/* The blocking clients, see http.h. HTTP/1.1 is asked for explicitly: the default negotiates. */
#include "io/http_curl.h"

#include <assert.h>
#include <stdio.h>

#include "io/clock.h"

struct receiver {
    const struct http_request *request;
    CURL *curl;
    char *buf; /* the body, or the line that is not complete yet */
    size_t len;
    int rc; /* of line() */
    bool too_long;
    struct err *err;
};

int http_open_unix(const char *socket_path, struct http **ret, struct err *err)
{
    if (strlen(socket_path) >= sizeof(((struct http *)0)->socket))
        return err_set(err, ERR_CONFIG, "the socket's path is longer than %zu bytes: '%s'",
                       sizeof(((struct http *)0)->socket) - 1, socket_path);
    int rc = http_curl_init(err);
    if (rc < 0)
        return rc;
    struct http *http = calloc(1, sizeof(*http));
    if (!http)
        return err_set(err, ERR_INTERNAL, "out of memory");
    (void)snprintf(http->socket, sizeof(http->socket), "%s", socket_path);
    (void)snprintf(http->base, sizeof(http->base), "http://localhost");
    http->curl = curl_easy_init();
    if (!http->curl) {
        free(http);
        return err_set(err, ERR_INTERNAL, "libcurl did not start");
    }
    *ret = http;
    return 0;
}

void http_close(struct http *http)
{
    if (!http)
        return;
    curl_easy_cleanup(http->curl);
    http_transfer_close(&http->transfer);
    http_server_close(&http->server);
    http_mutual_close(&http->peer);
    free(http);
}

/* --- TCP or TLS --------------------------------------------------------------------------- */

int http_open(const struct http_endpoint *endpoint, struct http **ret, struct err *err)
{
    struct http *http = calloc(1, sizeof(*http));
    if (!http)
        return err_set(err, ERR_INTERNAL, "out of memory");
    int rc = http_server_open(&http->server, endpoint, err);
    if (rc == 0)
        rc = http_transfer_open(&http->transfer, &http->server, err);
    if (rc < 0) {
        http_close(http);
        return rc;
    }
    *ret = http;
    return 0;
}

/* Called with every piece that moves, and once a second without. */
static int watch_stall(void *ctx, curl_off_t a, curl_off_t down, curl_off_t b, curl_off_t up)
{
    struct http_transfer *transfer = ctx;
    (void)a, (void)b;
    http_transfer_moved(transfer, down + up);
    return http_transfer_stalled(transfer, monotonic_ns());
}

/* The connection's socket: of two that are tried at the same time the later one, which costs the
 * other nothing but its quick acknowledgement. */
static int on_socket(void *ctx, curl_socket_t socket, curlsocktype purpose)
{
    struct http_transfer *transfer = ctx;
    (void)purpose;
    transfer->socket = socket;
    return CURL_SOCKOPT_OK;
}

static int on_close(void *ctx, curl_socket_t socket)
{
    struct http_transfer *transfer = ctx;
    if (transfer->socket == socket)
        transfer->socket = CURL_SOCKET_BAD;
    return close(socket);
}

void http_run(struct http *http, struct http_exchange *x)
{
    struct http_transfer *transfer = &http->transfer;
    assert(transfer->curl); /* from http_open() */
    if (http_transfer_begin(transfer, x) < 0)
        return;
    curl_easy_setopt(transfer->curl, CURLOPT_XFERINFOFUNCTION, watch_stall);
    curl_easy_setopt(transfer->curl, CURLOPT_SOCKOPTFUNCTION, on_socket);
    curl_easy_setopt(transfer->curl, CURLOPT_SOCKOPTDATA, transfer);
    curl_easy_setopt(transfer->curl, CURLOPT_CLOSESOCKETFUNCTION, on_close);
    curl_easy_setopt(transfer->curl, CURLOPT_CLOSESOCKETDATA, transfer);
    http_transfer_end(transfer, curl_easy_perform(transfer->curl));
}

/* --- an agent ----------------------------------------------------------------------------- */

static bool append(struct receiver *receiver, const char *data, size_t len)
{
    if (receiver->len + len > HTTP_BODY_MAX) {
        receiver->too_long = true;
        return false;
    }
    char *grown = realloc(receiver->buf, receiver->len + len + 1);
    if (!grown)
        return false;
    memcpy(grown + receiver->len, data, len);
    receiver->buf = grown;
    receiver->len += len;
    grown[receiver->len] = '\0';
    return true;
}

/* Hands over every complete line; the rest waits for more. */
static bool take_lines(struct receiver *receiver)
{
    const struct http_request *request = receiver->request;
    char *at = receiver->buf, *end = receiver->buf + receiver->len;
    for (char *newline; (newline = memchr(at, '\n', (size_t)(end - at))); at = newline + 1) {
        receiver->rc = request->line(request->ctx, at, (size_t)(newline - at), receiver->err);
        if (receiver->rc < 0)
            return false;
    }
    receiver->len = (size_t)(end - at);
    memmove(receiver->buf, at, receiver->len);
    return true;
}

static size_t on_data(char *data, size_t size, size_t count, void *ctx)
{
    struct receiver *receiver = ctx;
    long status = 0;
    size_t len = size * count;
    (void)curl_easy_getinfo(receiver->curl, CURLINFO_RESPONSE_CODE, &status);
    if (!append(receiver, data, len))
        return 0;
    if (receiver->request->line && status >= 200 && status < 300 && !take_lines(receiver))
        return 0;
    return len;
}

static int on_progress(void *ctx, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    const struct receiver *receiver = ctx;
    (void)a, (void)b, (void)c, (void)d;
    return receiver->request->stop && receiver->request->stop(receiver->request->ctx);
}

static void set_options(struct http *http, struct receiver *receiver, const char *url,
                        struct curl_slist *headers)
{
    const struct http_request *request = receiver->request;
    CURL *curl = http->curl;
    curl_easy_reset(curl);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, http->error);
    if (http->socket[0])
        curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, http->socket);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_PROXY, ""); /* whatever http_proxy says */
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, (long)request->timeout_s);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, request->method);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, receiver);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, receiver);
    if (request->body) {
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)request->body_len);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, request->body);
    }
}

static int failure(const struct http *http, const struct receiver *receiver, CURLcode code,
                   struct err *err)
{
    if (receiver->rc < 0)
        return receiver->rc;
    if (code == CURLE_ABORTED_BY_CALLBACK && http->peer.rc == 0)
        return err_set(err, ERR_CANCELLED, "interrupted");
    if (receiver->too_long)
        return err_set(err, ERR_INTERNAL, "the answer is longer than 64 MiB");
    if (!http->socket[0])
        return http_mutual_failure(http, code, err);
    bool hung_up = code == CURLE_GOT_NOTHING || code == CURLE_RECV_ERROR;
    const char *stranger = hung_up ? http_stranger(http) : NULL;
    if (stranger)
        return err_set(err, ERR_CONFIG, "%s answers on '%s', not an agent", stranger, http->socket);
    return err_set(err, ERR_DEVICE, "no answer on '%s': %s", http->socket,
                   http->error[0] ? http->error : curl_easy_strerror(code));
}

int http_perform(struct http *http, const struct http_request *request, struct http_response *ret,
                 struct err *err)
{
    struct receiver receiver = {.request = request, .curl = http->curl, .err = err};
    char url[2048];
    int len = snprintf(url, sizeof(url), "%s%s", http->base, request->path);
    if (len < 0 || (size_t)len >= sizeof(url))
        return err_set(err, ERR_USAGE, "path too long");
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    headers = curl_slist_append(headers, "Expect:"); /* no second round trip for small bodies */
    http->error[0] = '\0';
    set_options(http, &receiver, url, headers);
    int rc = http->socket[0] ? 0 : http_mutual_begin(http, request->timeout_s == 0, err);
    if (rc < 0) {
        curl_slist_free_all(headers);
        return rc;
    }
    CURLcode code = curl_easy_perform(http->curl);
    long status = 0;
    (void)curl_easy_getinfo(http->curl, CURLINFO_RESPONSE_CODE, &status);
    curl_slist_free_all(headers);
    if (code != CURLE_OK) {
        free(receiver.buf);
        return failure(http, &receiver, code, err);
    }
    ret->status = (unsigned)status;
    ret->body = receiver.buf ? receiver.buf : calloc(1, 1);
    ret->len = receiver.len;
    if (!ret->body)
        return err_set(err, ERR_INTERNAL, "out of memory");
    return 0;
}
