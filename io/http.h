/* HTTP client (libcurl; only io/http*.c include it), in four ways of use:
 *
 * - http_open_unix() or http_open_mutual() + http_perform(): one blocking request at a time to an
 *   agent, over a Unix socket or over TLS with certificates on both sides;
 * - http_open() + http_run(): one blocking exchange at a time with a server over TCP or TLS;
 * - http_post(): one POST to whatever URL;
 * - http_lane_open() + http_lane_start(): many at once on a lane's ring.
 *
 * All of them speak HTTP/1.1 with keep-alive, follow no redirect, take no credentials from
 * anywhere, and use no proxy, whatever http_proxy and https_proxy say. TLS is 1.2 or newer and the
 * server's certificate is always verified. Nothing here repeats a request that failed, with one
 * exception: libcurl sends a request again when a connection that idled turns out dead before one
 * byte of the answer came (see maybe_executed).
 *
 * An object belongs to one thread. */
#ifndef TIDEMARK_IO_HTTP_H
#define TIDEMARK_IO_HTTP_H

#include "io/ring.h"

struct http;

struct http_request {
    const char *method; /* "GET", "POST", "DELETE" */
    const char *path;   /* "/jobs?x=1", already escaped */
    const char *body;   /* NULL = none; sent as application/json */
    size_t body_len;
    unsigned timeout_s; /* of the whole request; 0 = none */
    /* Stops the request with ERR_CANCELLED when it returns true; called at least every second.
     * May be NULL. */
    bool (*stop)(void *ctx);
    /* Gets every line of a good (2xx) answer as it arrives, without its newline, instead of
     * collecting the body; a negative return ends the request and is returned. May be NULL. */
    int (*line)(void *ctx, const char *text, size_t len, struct err *err);
    void *ctx;
};

struct http_response {
    unsigned status;
    char *body; /* malloc'ed, with a NUL; owned by the caller */
    size_t len;
};

enum { HTTP_BODY_MAX = 64 << 20 };

/* No connection is made yet. ERR_CONFIG when the path is longer than sun_path (unix(7)). */
int http_open_unix(const char *socket_path, struct http **ret, struct err *err);
/* Any HTTP status is a success here. ERR_DEVICE when there is no answer, ERR_CONFIG when something
 * else is there that we know (http_stranger.c), ERR_CANCELLED; over TLS also ERR_AUTH when one side
 * does not accept the other's certificate, ERR_CONFIG for its files. */
int http_perform(struct http *http, const struct http_request *request, struct http_response *ret,
                 struct err *err);
void http_close(struct http *http);

/* A peer that wants to see our certificate as well. All is copied but check and ctx. */
struct http_mutual {
    const char *origin; /* "https://host:port" */
    /* What the peer's certificate must name, when that is not the host: the node, whatever its
     * address is today. NULL = the host. */
    const char *name;
    const char *ca_file, *certificate_file, *key_file; /* PEM */
    /* Judges the peer's certificate (PEM), once a connection and before a request goes out on it:
     * a negative return is the request's result and nothing was sent. May be NULL. */
    int (*check)(void *ctx, const char *certificate, struct err *err);
    void *ctx;
};

/* No connection is made yet. ERR_CONFIG for a malformed origin or name. */
int http_open_mutual(const struct http_mutual *mutual, struct http **ret, struct err *err);

/* --- a server over TCP or TLS ------------------------------------------------------------------
 */

struct http_endpoint {
    const char *origin;          /* "http://host:port" or "https://host:port"; no path */
    const char *ca_file;         /* PEM; NULL = the system's */
    unsigned connect_timeout_ms; /* TCP and TLS; 0 = 10 s */
    /* Not one byte moved for so long, or less than 1 KiB a second for twice as long: the exchange
     * fails; 0 = 30 s. */
    unsigned stall_timeout_ms;
};

enum {
    HTTP_HEAD_MAX = 8192,   /* more of header lines, 1xx and trailers included, is an error */
    HTTP_DRAIN_MAX = 65536, /* what an answer may be longer than its buffer before we hang up */
};

/* One request and its answer. The caller owns it and every buffer until http_run() returned or
 * done() ran. Zero what is not used. */
struct http_exchange {
    /* in */
    const char *method; /* GET HEAD PUT POST DELETE */
    const char *target; /* "/bucket/key?query", escaped by the caller; sent as it is */
    /* "Name: value" lines, NULL-terminated; may be NULL. A "Host: …" replaces the origin's; what
     * the certificate must name is always the origin's host. Content-Length is ours. */
    const char *const *headers;
    const void *body; /* PUT and POST */
    size_t body_len;
    void *answer; /* the answer's body, whatever the status */
    size_t answer_capacity;
    /* http_run(): may become true on any thread, the exchange stalls after a second from then on.
     * One that begins when it is true already is somebody's cleaning up and has all its time. NULL
     * = never. */
    const _Atomic bool *hurry;
    void (*done)(struct http_exchange *x); /* lane mode */
    void *owner;                           /* the caller's */
    /* out */
    /* 0: status line, headers and the whole body arrived (of a body that is cut: its beginning).
     * Otherwise -code with err: ERR_STORE transport, ERR_AUTH certificate, ERR_CONFIG ca_file,
     * ERR_CANCELLED, ERR_INTERNAL memory. */
    int rc;
    unsigned status;
    size_t answer_len;
    bool answer_cut;         /* the body was longer than answer_capacity */
    bool stalled;            /* rc < 0: because of stall_timeout_ms */
    uint64_t content_length; /* as announced, also by the answer to HEAD */
    bool has_content_length;
    /* rc < 0: the request left at least in part, the server may have done it. rc == 0: it was
     * sent twice and may have been done by the first time (a 412 may be about our own object). */
    bool maybe_executed;
    char head[HTTP_HEAD_MAX]; /* the final answer's status line and header lines as they came */
    struct err err;
    /* http's own */
    size_t head_len;
    uint64_t body_seen;
    struct http_exchange *next;
};

/* The value of the first header of this name (any case), without the spaces around it, copied
 * into buf. NULL when there is none or it does not fit. Pure; any thread. */
const char *http_header(const struct http_exchange *x, const char *name, char *buf, size_t len);

/* No connection is made yet. ERR_CONFIG for a malformed origin or an unreadable ca_file. */
int http_open(const struct http_endpoint *endpoint, struct http **ret, struct err *err);
/* Blocks; the result is in x. The stall time is looked at once a second. A host name is looked up
 * by the first exchange, and by the next after one that could not connect; one that has no address
 * is ERR_STORE, and is not looked up again for a second. */
void http_run(struct http *http, struct http_exchange *x);

/* --- a webhook -------------------------------------------------------------------------------- */

struct http_post {
    const char *url;  /* http:// or https://, with path, query and user as its owner wrote them */
    const char *body; /* sent as application/json */
    size_t body_len;
    unsigned timeout_ms; /* of all: look-up, connection, answer */
};

/* One POST, blocking, on a connection of its own. The answer's body is dropped. Any status is a
 * success; otherwise ERR_DEVICE (nobody answers, or not in time: the server may have got it),
 * ERR_AUTH (certificate; the CA is the system's), ERR_CONFIG (malformed URL), ERR_INTERNAL. The
 * error's text does not repeat the URL. */
int http_post(const struct http_post *post, unsigned *ret_status, struct err *err);

/* --- on a lane ------------------------------------------------------------------------------ */

struct http_lane;

/* Everything on the lane's thread, inside ring_run(). At most connection_count connections; they
 * stay open for the next exchange. Memory: about 0.5 MiB a connection that receives, 1 MiB a
 * connection that sent (HTTP_LANE_MEMORY), malloc'ed by libcurl. No connection is made yet, and
 * errors are those of http_open(). */
int http_lane_open(const struct http_endpoint *endpoint, struct ring *ring,
                   unsigned connection_count, struct http_lane **ret, struct err *err);

enum { HTTP_LANE_MEMORY = 1 << 20 }; /* bytes a connection, at the most */

/* Any number may be started: they wait in order for a connection. done() runs inside ring_run(),
 * never in here, and may start more. Until then something of the lane is pending in the ring; a few
 * ring_run() after the last one nothing is, however many connections idle. */
void http_lane_start(struct http_lane *lane, struct http_exchange *x);

/* From now on every exchange ends with ERR_CANCELLED in the next ring_run(). */
void http_lane_stop(struct http_lane *lane);

/* No exchange may be in flight, unless the ring failed; then none runs done() any more. */
void http_lane_close(struct http_lane *lane);

#endif
