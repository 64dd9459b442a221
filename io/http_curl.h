/* Private to io/http*.c: what the blocking client and the lanes share of libcurl. A struct
 * http_server is one endpoint; a struct http_transfer is one easy handle, which carries one
 * exchange at a time and keeps its connection. Both belong to one thread. */
#ifndef TIDEMARK_IO_HTTP_CURL_H
#define TIDEMARK_IO_HTTP_CURL_H

#include <curl/curl.h>

#include "io/http.h"

struct http_server {
    char *origin;
    char *ca_file; /* NULL = the system's */
    unsigned connect_timeout_ms;
    unsigned stall_timeout_ms;
    char host[256]; /* of the origin, without brackets */
    unsigned port;
    bool resolve;                 /* host is a name: addresses has what it means */
    struct curl_slist *addresses; /* for CURLOPT_RESOLVE */
    uint64_t resolved_ns;         /* when that was looked up; 0 = not yet, or it failed since */
    uint64_t unresolved_ns;       /* when a look-up failed last; 0 = it did not */
    uint64_t lookup_pause_ns;     /* not again for so long from then on */
    struct err unresolved;        /* why */
};

int http_server_open(struct http_server *server, const struct http_endpoint *endpoint,
                     struct err *err);
void http_server_close(struct http_server *server);
/* Looks the host up on this thread when it is a name that is not known: libcurl's own resolver
 * would start a thread for every look-up. Blocks for as long as resolv.conf says. After a failure
 * the old addresses are taken, or the same error is given, for a second and for four times as long
 * as it took: a lane has most of its time for the exchanges under way. */
int http_server_resolve(struct http_server *server, struct err *err);

struct http_transfer {
    CURL *curl;
    struct http_server *server;
    struct http_exchange *x; /* NULL: idle */
    struct curl_slist *headers;
    size_t body_at; /* bytes of x->body that libcurl took */
    unsigned sendings;
    bool stalled;   /* nothing moved */
    bool creeping;  /* too little did */
    bool unwatched; /* a lane had no room for its socket */
    bool hurried;   /* x->hurry was true at the beginning */
    struct err why; /* a lane ends it for this reason; code 0: libcurl's result says */
    bool head_too_long;
    bool head_ended;
    size_t head_seen;  /* bytes of all heads and of the trailer */
    curl_off_t moved;  /* bytes both ways, at moved_ns */
    uint64_t moved_ns; /* 0: not connected yet, the connect timeout watches */
    curl_off_t mark;   /* moved, when its rate was looked at last: */
    uint64_t mark_ns;  /* 0: not yet */
    uint64_t begun_ns;
    char error[CURL_ERROR_SIZE];
    curl_socket_t socket;            /* of the blocking client; else CURL_SOCKET_BAD */
    struct http_transfer *next_free; /* of a lane */
};

int http_transfer_open(struct http_transfer *transfer, struct http_server *server, struct err *err);
void http_transfer_close(struct http_transfer *transfer);
/* Fills the easy handle for x. On failure x->rc and x->err are set. */
int http_transfer_begin(struct http_transfer *transfer, struct http_exchange *x);
/* Fills the out fields of x from what libcurl says; the transfer is idle again. */
void http_transfer_end(struct http_transfer *transfer, CURLcode code);
/* libcurl's count of the bytes that moved both ways. */
void http_transfer_moved(struct http_transfer *transfer, curl_off_t total);
/* True when nothing moved for stall_timeout_ms, or less than 1 KiB a second for twice as long. */
bool http_transfer_stalled(struct http_transfer *transfer, uint64_t now_ns);
/* Our thread was elsewhere for so long: that is not the server's fault. */
void http_transfer_excuse(struct http_transfer *transfer, uint64_t late_ns);

/* http_open_mutual() */
struct http_peer {
    char *certificate_file, *key_file;
    char *route; /* for CURLOPT_CONNECT_TO; NULL = the URL's host is the address */
    struct curl_slist *connect_to;
    int (*check)(void *ctx, const char *certificate, struct err *err);
    void *ctx;
    bool unchecked; /* a connection was made since the last check */
    int rc;         /* of check(), with err */
    struct err err;
};

struct http {
    /* http_perform() */
    CURL *curl;
    char socket[108]; /* empty: over TLS */
    char base[400];   /* of every URL */
    struct http_peer peer;
    char error[CURL_ERROR_SIZE];
    /* TCP or TLS; of http_open_mutual() only the server */
    struct http_server server;
    struct http_transfer transfer;
};

/* The options of a request over TLS, and the address of the server. follows: lines come as long as
 * they like, but come. */
int http_mutual_begin(struct http *http, bool follows, struct err *err);
/* Why it failed. */
int http_mutual_failure(const struct http *http, CURLcode code, struct err *err);
void http_mutual_close(struct http_peer *peer);
/* What is there, when the peer does not speak our protocol: a few words, NULL = not known. Blocks
 * for some seconds at the most. */
const char *http_stranger(const struct http *http);

/* Acknowledges what was received at once. A server without TCP_NODELAY (radosgw as it comes) sends
 * the head of an answer and holds a short body back until the head is acknowledged, which a kernel
 * does 40 ms later when nothing goes the other way. Not permanent (TCP_QUICKACK in tcp(7)), so to
 * be called after every piece that came. */
void http_acknowledge(curl_socket_t socket);

/* curl_global_init(), once, on whichever thread comes first. */
int http_curl_init(struct err *err);

#endif
