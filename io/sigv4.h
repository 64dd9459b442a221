/* AWS Signature Version 4 in the Authorization header, service "s3": own signer, pure, any thread.
 *
 * Source: AWS, "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)"
 * (Amazon S3 API Reference), whose four worked examples are in tests/unit/t_sigv4.c.
 *
 * What is signed: method, path and query as they are sent (S3 does not normalise the path), the
 * headers that are given, and the SHA-256 of the payload. The secret key is used here and leaves no
 * copy behind: everything that is derived from it is overwritten before the return. */
#ifndef TIDEMARK_IO_SIGV4_H
#define TIDEMARK_IO_SIGV4_H

#include <time.h>

#include "io/base.h"

enum {
    SIGV4_DATE_LEN = 17,    /* "20130524T000000Z" and NUL */
    SIGV4_HASH_LEN = 65,    /* lower-case hex and NUL */
    SIGV4_HEADERS_MAX = 12, /* signed ones */
};

struct sigv4_header {
    const char *name; /* lower case */
    const char *value;
};

struct sigv4_request {
    const char *method;
    const char *path;                   /* escaped, begins with '/' */
    const char *query;                  /* escaped and sorted by name, "" = none */
    const struct sigv4_header *headers; /* sorted by name; host and x-amz-* must be among them */
    size_t header_count;
    const char *payload_hash; /* hex SHA-256 of the body, as in x-amz-content-sha256 */
    const char *date;         /* as in x-amz-date */
    const char *region;
    const char *access_key;
    const char *secret_key;
};

/* UTC as x-amz-date wants it. */
void sigv4_date(time_t now_s, char ret[SIGV4_DATE_LEN]);

/* Hex SHA-256 of a payload. */
void sigv4_hash(const void *ptr, size_t len, char ret[SIGV4_HASH_LEN]);

/* Writes the value of the Authorization header. False when it does not fit into size bytes or the
 * request is longer than what this signer can hold (16 KiB of canonical request). */
bool sigv4_authorize(const struct sigv4_request *request, char *ret, size_t size);

/* Appends text escaped as S3 wants it in paths and queries: everything but A-Z a-z 0-9 - . _ ~ as
 * %XX; '/' stays when keep_slash. Returns false when it does not fit (to is then cut). */
bool sigv4_escape(const char *text, bool keep_slash, char *to, size_t size);

#endif
