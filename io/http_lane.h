/* Private to io/http_lane*.c. http_lane.c has the exchanges: queue, beginning, end, and pump(), the
 * one place that calls into libcurl. http_lane_wait.c has what they wait for: a one-shot poll for
 * every socket that libcurl names, and one timer for its deadline and ours. */
#ifndef TIDEMARK_IO_HTTP_LANE_H
#define TIDEMARK_IO_HTTP_LANE_H

#include "io/http_curl.h"

struct lane_socket;

struct lane_poll {
    struct ring_op op;
    struct ring_op cancel;
    struct http_lane *lane;
    struct lane_socket *socket; /* NULL: stale */
    unsigned pending;           /* of op and cancel */
    unsigned mask;
    struct lane_poll *next_free;
};

struct lane_socket {
    bool used;
    curl_socket_t fd;
    unsigned want;          /* POLLIN, POLLOUT */
    struct lane_poll *poll; /* the one that counts, or NULL */
    struct http_transfer *transfer;
};

struct http_lane {
    struct http_server server;
    struct ring *ring;
    CURLM *multi;
    bool pumping, stopping, has_unwatched;
    unsigned active, queued;
    struct http_exchange *queue, **queue_tail;
    uint64_t deadline_ns; /* libcurl's; 0 = none */
    uint64_t tick_ns;     /* when to look for stalled exchanges next */
    struct ring_op nop, timer, timer_cancel;
    bool nop_pending, timer_pending, timer_cancelled, cancel_pending;
    uint64_t timer_ns; /* when the timer fires */
    struct lane_poll *free_polls;
    struct lane_poll *polls;
    struct lane_socket *sockets;
    unsigned poll_count, socket_count, connection_count;
    struct http_transfer *free_transfers;
    struct http_transfer transfers[];
};

/* http_lane.c */

/* Everything that is to be done now. Called by completions only. */
void http_lane_pump(struct http_lane *lane);
/* curl_multi_socket_action(3). */
void http_lane_act(struct http_lane *lane, curl_socket_t fd, int bits);
/* End exchanges for a reason of ours; their connections are closed. */
void http_lane_abandon(struct http_lane *lane, struct http_transfer *transfer,
                       const struct err *why);
void http_lane_abandon_all(struct http_lane *lane, const struct err *why);

/* http_lane_wait.c */

int http_lane_wait_open(struct http_lane *lane, struct err *err);
/* After libcurl was called: starts the polls and the timer that it asked for meanwhile. */
void http_lane_arm(struct http_lane *lane);

#endif
