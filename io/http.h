/* HTTP client (libcurl; this is the only file that includes it): one blocking request at a time
 * over a Unix socket. A struct http belongs to one thread. */
#ifndef TIDEMARK_IO_HTTP_H
#define TIDEMARK_IO_HTTP_H

#include "io/err.h"

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

/* No connection is made yet. */
int http_open_unix(const char *socket_path, struct http **ret, struct err *err);
/* Any HTTP status is a success here. ERR_DEVICE when there is no answer, ERR_CANCELLED. */
int http_perform(struct http *http, const struct http_request *request, struct http_response *ret,
                 struct err *err);
void http_close(struct http *http);

#endif
