/* A small HTTP/1.1 server of a test's own process: one thread a connection on an ephemeral port of
 * 127.0.0.1, keep-alive, objects that are a pure function of their offset, and one fault a request.
 *
 *     web_start(&web);                      GET /1000 answers 1000 bytes of web_byte()
 *     web.faults[3] = WEB_RESET_IN_ANSWER;  the fourth request from now on
 *     web_stop(&web);                       waits for every thread
 *
 * A PUT is good (200) when its body is web_byte() of its offsets. Counters may be read at any
 * time. */
#ifndef TIDEMARK_TESTS_LIB_WEBSERVER_H
#define TIDEMARK_TESTS_LIB_WEBSERVER_H

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "tests/tap.h"

enum web_fault {
    WEB_NONE,
    WEB_RESET_AT_HEAD,    /* connection reset after the request's head was read */
    WEB_RESET_IN_BODY,    /* … after half of its body */
    WEB_RESET_UNANSWERED, /* … after all of it, which counts as done */
    WEB_RESET_IN_ANSWER,  /* … after half of the answer's body */
    WEB_SHORT,            /* closed properly after half of the answer's body */
    WEB_STALL,            /* nothing is answered until the client hangs up */
    WEB_STALL_IN_ANSWER,
    WEB_STALL_IN_BODY, /* the request's body is not read */
    WEB_CLOSE_AFTER,   /* closed without a word after a good answer */
    WEB_503,
    WEB_CONTINUE,  /* two 100 Continue before the answer */
    WEB_CHUNKED,   /* no Content-Length */
    WEB_LONG_HEAD, /* more header lines than anybody sends */
    WEB_NOT_HTTP,
    WEB_ENDLESS,          /* a body without length that goes on until the client hangs up */
    WEB_ENDLESS_CONTINUE, /* so many 100 Continue */
    WEB_ENDLESS_TRAILER,
    WEB_TRICKLE, /* a byte of the answer's body every 20 ms, so that it always moves */
    WEB_FAULT_COUNT
};

enum { WEB_FAULTS_MAX = 512 };

struct web {
    int fd;
    unsigned port;
    char origin[64];
    _Atomic enum web_fault faults[WEB_FAULTS_MAX]; /* by number of the request */
    _Atomic unsigned requests, accepted, puts_done, open;
    _Atomic unsigned delay_ms; /* before every answer */
    _Atomic bool stopping;
    pthread_t acceptor;
};

struct web_connection {
    struct web *web;
    int fd;
    char buf[65536];
    size_t len; /* bytes of the next requests that are here */
};

struct web_request {
    char method[16], target[512];
    uint64_t body_len, range_first, range_last;
    bool has_range;
};

static inline uint8_t web_byte(uint64_t offset)
{
    return (uint8_t)(offset * 131 + (offset >> 8) * 7 + (offset >> 16));
}

static bool web_send(int fd, const void *buf, size_t len)
{
    const char *from = buf;
    for (size_t at = 0; at < len;) {
        ssize_t sent = send(fd, from + at, len - at, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        at += (size_t)sent;
    }
    return true;
}

static bool web_send_text(int fd, const char *text)
{
    return web_send(fd, text, strlen(text));
}

static bool web_send_bytes(int fd, uint64_t first, uint64_t count)
{
    uint8_t piece[16384];
    while (count > 0) {
        size_t len = (size_t)min_u64(count, sizeof(piece));
        for (size_t i = 0; i < len; i++)
            piece[i] = web_byte(first + i);
        if (!web_send(fd, piece, len))
            return false;
        first += len;
        count -= len;
    }
    return true;
}

/* Until the client hangs up or the server stops. What it sends is not read for the first two
 * seconds, and then thrown away: its FIN comes behind it. */
static void web_wait_hangup(const struct web_connection *c)
{
    char scrap[65536];
    for (unsigned i = 0; !atomic_load(&c->web->stopping); i++) {
        struct pollfd poll_fd = {.fd = c->fd, .events = POLLRDHUP};
        if (poll(&poll_fd, 1, 20) > 0 && poll_fd.revents & (POLLRDHUP | POLLHUP | POLLERR))
            return;
        if (i >= 100 && recv(c->fd, scrap, sizeof(scrap), MSG_DONTWAIT) == 0)
            return;
    }
}

static bool web_read_more(struct web_connection *c)
{
    ssize_t got = recv(c->fd, c->buf + c->len, sizeof(c->buf) - 1 - c->len, 0);
    if (got <= 0)
        return false;
    c->len += (size_t)got;
    c->buf[c->len] = '\0';
    return true;
}

static bool web_read_head(struct web_connection *c, struct web_request *request)
{
    char *end;
    c->buf[c->len] = '\0';
    while (!(end = strstr(c->buf, "\r\n\r\n")))
        if (!web_read_more(c))
            return false;
    *request = (struct web_request){0};
    sscanf(c->buf, "%15s %511s", request->method, request->target);
    *end = '\0';
    const char *length = strcasestr(c->buf, "\r\nContent-Length:");
    if (length)
        request->body_len = strtoull(length + 17, NULL, 10);
    const char *range = strcasestr(c->buf, "\r\nRange: bytes=");
    request->has_range =
        range && sscanf(range + 15, "%lu-%lu", &request->range_first, &request->range_last) == 2;
    size_t head_len = (size_t)(end + 4 - c->buf);
    memmove(c->buf, c->buf + head_len, c->len - head_len);
    c->len -= head_len;
    return true;
}

/* count bytes of the body from offset first; sets *good to false when they are not web_byte(). */
static bool web_read_body(struct web_connection *c, uint64_t first, uint64_t count, bool *good)
{
    while (count > 0) {
        if (c->len == 0 && !web_read_more(c))
            return false;
        size_t len = (size_t)min_u64(count, c->len);
        for (size_t i = 0; i < len; i++)
            *good = *good && (uint8_t)c->buf[i] == web_byte(first + i);
        memmove(c->buf, c->buf + len, c->len - len);
        c->len -= len;
        first += len;
        count -= len;
    }
    return true;
}

static void web_reset(struct web_connection *c)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

static bool web_send_long_head(const struct web_connection *c)
{
    bool good = web_send_text(c->fd, "HTTP/1.1 200 OK\r\n");
    for (unsigned i = 0; i < 400 && good; i++)
        good = web_send_text(c->fd, "X-Filler: 0123456789012345678901234567890123456789\r\n");
    return good && web_send_text(c->fd, "Content-Length: 0\r\n\r\n");
}

static bool web_send_endless(const struct web_connection *c)
{
    bool good = web_send_text(c->fd, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
    for (uint64_t at = 0; good; at += 16384)
        good = web_send_bytes(c->fd, at, 16384);
    return false;
}

static bool web_send_repeated(const struct web_connection *c, const char *first, const char *text,
                              int pause_ms)
{
    bool good = web_send_text(c->fd, first);
    while (good && !atomic_load(&c->web->stopping)) {
        good = web_send_text(c->fd, text);
        if (pause_ms > 0)
            poll(NULL, 0, pause_ms);
    }
    return false;
}

static bool web_send_chunked(const struct web_connection *c, uint64_t count)
{
    char size[32];
    bool good = web_send_text(c->fd, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (uint64_t at = 0; at < count && good;) {
        uint64_t len = min_u64(count - at, 1000);
        snprintf(size, sizeof(size), "%llx\r\n", (unsigned long long)len);
        good = web_send_text(c->fd, size) && web_send_bytes(c->fd, at, len) &&
               web_send_text(c->fd, "\r\n");
        at += len;
    }
    return good && web_send_text(c->fd, "0\r\nX-Trailer: late\r\n\r\n");
}

/* A whole answer, or half of one; false when the connection ends here. */
static bool web_answer(struct web_connection *c, const struct web_request *request, bool good,
                       enum web_fault fault)
{
    char head[512];
    uint64_t first = 0, count = strtoull(request->target + 1, NULL, 10);
    unsigned status = fault == WEB_503 ? 503 : good ? 200 : 400;
    if (strcmp(request->method, "GET") != 0 && strcmp(request->method, "HEAD") != 0)
        count = 3;
    if (request->has_range && status == 200) {
        status = 206;
        first = request->range_first;
        count = min_u64(count, request->range_last + 1) - first;
    }
    if (fault == WEB_CONTINUE)
        web_send_text(c->fd, "HTTP/1.1 100 Continue\r\nX-Part: interim\r\n\r\n"
                             "HTTP/1.1 100 Continue\r\n\r\n");
    snprintf(head, sizeof(head),
             "HTTP/1.1 %u Text\r\nServer: test\r\nETag: \"e%llu\"\r\nx-empty:\r\n"
             "Content-Length: %llu\r\n\r\n",
             status, (unsigned long long)count, (unsigned long long)count);
    if (!web_send_text(c->fd, head))
        return false;
    if (strcmp(request->method, "HEAD") == 0)
        return true;
    bool half = fault == WEB_RESET_IN_ANSWER || fault == WEB_SHORT || fault == WEB_STALL_IN_ANSWER;
    if (!web_send_bytes(c->fd, first, half ? count / 2 : count))
        return false;
    if (fault == WEB_STALL_IN_ANSWER)
        web_wait_hangup(c);
    if (fault == WEB_RESET_IN_ANSWER)
        web_reset(c);
    return !half && fault != WEB_CLOSE_AFTER;
}

static bool web_one(struct web_connection *c)
{
    struct web_request request;
    struct web *web = c->web;
    bool good = true;
    if (!web_read_head(c, &request))
        return false;
    unsigned number = atomic_fetch_add(&web->requests, 1);
    enum web_fault fault = number < WEB_FAULTS_MAX ? web->faults[number] : WEB_NONE;
    uint64_t wanted = fault == WEB_RESET_IN_BODY ? request.body_len / 2 : request.body_len;
    if (fault == WEB_RESET_AT_HEAD)
        wanted = 0;
    if (fault == WEB_STALL_IN_BODY) {
        web_wait_hangup(c);
        return false;
    }
    if (!web_read_body(c, 0, wanted, &good))
        return false;
    if (fault == WEB_RESET_AT_HEAD || fault == WEB_RESET_IN_BODY) {
        web_reset(c);
        return false;
    }
    if (strcmp(request.method, "PUT") == 0 && good && fault != WEB_503)
        atomic_fetch_add(&web->puts_done, 1);
    unsigned delay_ms = atomic_load(&web->delay_ms);
    if (delay_ms > 0)
        poll(NULL, 0, (int)delay_ms); /* latency of the network, not a wait for something */
    if (fault == WEB_RESET_UNANSWERED) {
        web_reset(c);
        return false;
    }
    if (fault == WEB_STALL)
        web_wait_hangup(c);
    if (fault == WEB_NOT_HTTP)
        web_send_text(c->fd, "220 mail.example ESMTP\r\n");
    if (fault == WEB_STALL || fault == WEB_NOT_HTTP)
        return false;
    if (fault == WEB_LONG_HEAD)
        return web_send_long_head(c);
    if (fault == WEB_ENDLESS)
        return web_send_endless(c);
    if (fault == WEB_ENDLESS_CONTINUE)
        return web_send_repeated(c, "", "HTTP/1.1 100 Continue\r\n\r\n", 0);
    if (fault == WEB_ENDLESS_TRAILER)
        return web_send_repeated(c,
                                 "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                                 "1\r\nx\r\n0\r\n",
                                 "X-Filler: 0123456789\r\n", 0);
    if (fault == WEB_TRICKLE)
        return web_send_repeated(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", "x", 20);
    if (fault == WEB_CHUNKED)
        return web_send_chunked(c, strtoull(request.target + 1, NULL, 10));
    return web_answer(c, &request, good, fault);
}

static void *web_connection_main(void *arg)
{
    struct web_connection *c = arg;
    while (!atomic_load(&c->web->stopping) && web_one(c))
        ;
    struct web *web = c->web;
    close(c->fd);
    free(c);
    atomic_fetch_sub(&web->open, 1);
    return NULL;
}

static void *web_main(void *arg)
{
    struct web *web = arg;
    while (!atomic_load(&web->stopping)) {
        struct pollfd poll_fd = {.fd = web->fd, .events = POLLIN};
        if (poll(&poll_fd, 1, 20) <= 0)
            continue;
        int fd = accept(web->fd, NULL, NULL);
        if (fd < 0)
            continue;
        struct timeval tick = {.tv_sec = 120};
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tick, sizeof(tick));
        struct web_connection *c = calloc(1, sizeof(*c));
        c->web = web;
        c->fd = fd;
        atomic_fetch_add(&web->accepted, 1);
        atomic_fetch_add(&web->open, 1);
        pthread_t thread;
        if (pthread_create(&thread, NULL, web_connection_main, c) != 0)
            abort();
        pthread_detach(thread);
    }
    return NULL;
}

__attribute__((unused)) static void web_start(struct web *web)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(address);
    memset(web, 0, sizeof(*web));
    web->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(web->fd, (struct sockaddr *)&address, len) < 0 || listen(web->fd, 128) < 0 ||
        getsockname(web->fd, (struct sockaddr *)&address, &len) < 0) {
        perror("Bail out! no socket");
        exit(1);
    }
    web->port = ntohs(address.sin_port);
    snprintf(web->origin, sizeof(web->origin), "http://127.0.0.1:%u", web->port);
    pthread_create(&web->acceptor, NULL, web_main, web);
}

/* Forgets the faults and counts from 0 again; no request may be running. */
__attribute__((unused)) static void web_again(struct web *web)
{
    for (unsigned i = 0; i < WEB_FAULTS_MAX; i++)
        atomic_store(&web->faults[i], WEB_NONE);
    atomic_store(&web->requests, 0);
    atomic_store(&web->accepted, 0);
    atomic_store(&web->puts_done, 0);
}

/* Clients have closed their connections: threads end by themselves. */
__attribute__((unused)) static void web_stop(struct web *web)
{
    atomic_store(&web->stopping, true);
    pthread_join(web->acceptor, NULL);
    while (atomic_load(&web->open) > 0)
        poll(NULL, 0, 1);
    close(web->fd);
}

#endif
