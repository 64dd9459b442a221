/* One S3 operation over all its tries: build, sign, judge the answer. Pure: no I/O, no clock, no
 * memory of its own; the blocking store (store_s3.c) and the lanes (store_s3_lane.c) both drive it:
 *
 *     s3_call_put(call, service, name, ptr, len, now_ms);      or _get, _look, _list, …
 *     for (;;) {
 *         s3_call_sign(call, service, time(NULL));             headers of this try
 *         http_run(http, &call->exchange);                     or http_lane_start()
 *         verdict = s3_call_judge(call, service, now_ms, time(NULL), &delay_ms, &err);
 *         if (verdict != S3_AGAIN)
 *             break;
 *         wait delay_ms;
 *     }
 *
 * now_ms is CLOCK_MONOTONIC. A call and its buffers belong to the caller until the verdict; it is
 * about 71 KiB. All texts of errors name the operation, the object and the place; never a secret.
 *
 * What an answer means (RFC 9110; Amazon S3 API Reference "Error responses"; measured on Ceph 16
 * and Swift 2.30):
 * - transport errors, 500, 502, 503, 504, 429, 408, 409 of a conditional PUT, and 400 that says the
 *   body was damaged or late on its way: again, after exponential back-off with full jitter, at
 *   least Retry-After, until retry_timeout is over; then ERR_STORE with the last reason;
 * - 401, 403 and what says that keys or clocks are wrong: ERR_AUTH at once;
 * - 404 with the code NoSuchKey: a confirmed absence. A 404 without a code may come from anything
 * on the way and is none. HEAD is not used at all: its errors have no body, so an absent object, an
 *   absent bucket, a wrong key and a wrong clock all look alike;
 * - the wrong region: signed again with the one that the server names, once a call. The service
 *   changes its region once, whichever of several calls under way hears of it first. */
#ifndef TIDEMARK_IO_S3_REQUEST_H
#define TIDEMARK_IO_S3_REQUEST_H

#include <time.h>

#include "io/http.h"
#include "io/s3_service.h"
#include "io/sigv4.h"
#include "io/store_lock.h"

enum s3_op { S3_PUT, S3_GET, S3_LIST, S3_DELETE, S3_DELETE_BATCH, S3_ASK, S3_RETAIN };

enum s3_verdict {
    S3_DONE,    /* it succeeded; see the out fields */
    S3_ABSENT,  /* GET, RETAIN: confirmed; ASK: the bucket has none; err is ERR_MISSING */
    S3_COMPARE, /* PUT: it exists, maybe by an earlier try of this call, which a proxy may have
                 * made: read it and compare; our bytes = success, others = it was taken */
    S3_UNCONDITIONAL, /* PUT: 501 to If-None-Match; service->create_once is NO now. Look, then call
                       * s3_call_put() again */
    S3_AGAIN,         /* sign and send again after the delay; the origin may have changed when
                       * s3_service_origin() says so */
    S3_FAILED,        /* err; of a PUT, err->maybe_done says whether it may be there all the same */
};

enum {
    S3_BATCH_MAX = 1000, /* keys of one batch delete */
    S3_LIST_MAX = 1000,  /* keys of one page */
    S3_PATH_MAX = 1024,
    S3_QUERY_MAX = 9216,    /* three bytes a byte of a token and a prefix */
    S3_HEADERS_TEXT = 8192, /* all header lines */
    /* A SignatureDoesNotMatch has what was signed twice, once as hex: a token makes 15 KiB of it.
     */
    S3_ANSWER_MAX = 32768,
};

struct s3_call {
    struct http_exchange exchange; /* of the current try; done and owner are the caller's */
    /* out, after S3_DONE */
    size_t got;           /* GET, LIST, ASK: bytes in the answer buffer */
    uint64_t object_size; /* GET, when the server told it */
    /* private */
    enum s3_op op;
    char name[STORE_NAME_MAX + 1]; /* as the caller knows it; LIST: the prefix */
    uint64_t offset;
    size_t len;
    void *to; /* GET of a few bytes: where they go from answer, which has room for an error */
    bool conditional;    /* this PUT carries If-None-Match */
    bool maybe_executed; /* an earlier try may have been done by the server */
    unsigned tries;
    unsigned doubts; /* tries that ended with an answer that should not be */
    bool moved;      /* signed again for another region */
    uint64_t start_ms, deadline_ms, random;
    char path[S3_PATH_MAX], query[S3_QUERY_MAX], target[S3_PATH_MAX + S3_QUERY_MAX + 1];
    char payload_hash[SIGV4_HASH_LEN];
    char payload_md5[32]; /* base64, "" = not sent */
    /* Of a PUT, base64 of the same digest: what buckets with Object Lock ask for, where AWS takes
     * no other proof that the object arrived whole. Servers that do not know it ignore it. */
    char checksum[48];
    /* Of a PUT that locks: until lock_until_s, or lock_s after the try. */
    enum store_lock_mode lock_mode;
    int64_t lock_until_s;
    uint64_t lock_s;
    char retention[256]; /* body of a RETAIN */
    const char *headers[SIGV4_HEADERS_MAX + 2];
    char headers_text[S3_HEADERS_TEXT];
    char answer[S3_ANSWER_MAX]; /* of calls without an answer buffer of the caller's */
};

/* A whole object. Its SHA-256 is computed here, once for all tries, and signed: the server refuses
 * a body that was damaged on its way. With If-None-Match unless the service says that the server
 * does not know it. */
void s3_call_put(struct s3_call *call, const struct s3_service *service, const char *name,
                 const void *ptr, size_t len, uint64_t now_ms);

/* len bytes at offset into buf; a shorter object gives fewer (0 behind its end). buf may be written
 * by tries that fail. */
void s3_call_get(struct s3_call *call, const struct s3_service *service, const char *name,
                 uint64_t offset, void *buf, size_t len, uint64_t now_ms);

/* The first byte: S3_DONE with object_size, or S3_ABSENT. */
void s3_call_look(struct s3_call *call, const struct s3_service *service, const char *name,
                  uint64_t now_ms);

/* One page of the names that begin with prefix, into buf for s3_xml_list_parse(). token continues
 * the page before ("" = first). count ≤ S3_LIST_MAX. */
void s3_call_list(struct s3_call *call, const struct s3_service *service, const char *prefix,
                  const char *token, unsigned count, void *buf, size_t capacity, uint64_t now_ms);

void s3_call_delete(struct s3_call *call, const struct s3_service *service, const char *name,
                    uint64_t now_ms);

/* body is a <Delete> document (the caller keeps it), the answer goes to buf for
 * s3_xml_delete_parse(). */
void s3_call_delete_batch(struct s3_call *call, const struct s3_service *service, const void *body,
                          size_t body_len, void *buf, size_t capacity, uint64_t now_ms);

/* What the bucket says of itself, an XML document in call->answer: "object-lock", "versioning". */
void s3_call_ask(struct s3_call *call, const struct s3_service *service, const char *what,
                 uint64_t now_ms);

/* Locks the newest version of an object until then. */
void s3_call_retain(struct s3_call *call, const struct s3_service *service, const char *name,
                    enum store_lock_mode mode, int64_t until_s, uint64_t now_ms);

/* As s3_call_list(), of all versions, for s3_xml_versions_parse(); the markers are those of the
 * page before, or "". */
void s3_call_list_versions(struct s3_call *call, const struct s3_service *service,
                           const char *prefix, const char *key_marker, const char *version_marker,
                           void *buf, size_t capacity, uint64_t now_ms);

/* As s3_call_look(), at a version. */
void s3_call_look_version(struct s3_call *call, const struct s3_service *service, const char *name,
                          const char *version, uint64_t now_ms);

/* The lock of the object that the answer is about, as far as the server told it. */
void s3_call_read_lock(const struct s3_call *call, struct store_lock *ret);

/* "2026-11-26T15:00:00Z". */
enum { S3_DATE_LEN = 32 };
void s3_date_format(int64_t time_s, char ret[S3_DATE_LEN]);
/* The same, also with a fraction of a second, which is dropped. */
bool s3_date_parse(const char *text, int64_t *ret_s);

/* Fills exchange.method, target, headers, body and answer for the next try. */
void s3_call_sign(struct s3_call *call, const struct s3_service *service, time_t now_s);

/* The server's time in the answer to the last try. */
bool s3_call_date(const struct s3_call *call, time_t *ret_s);

/* True for a code that passes by itself ("SlowDown"), as they stand in errors of single keys. */
bool s3_code_passes(const char *code);

/* How long to wait after so many failed tries: exponential with full jitter. random is the state of
 * a generator. */
unsigned s3_backoff_ms(unsigned tries, uint64_t *random);

/* Reads exchange's outcome. *ret_delay_ms is set with S3_AGAIN, err with S3_FAILED and S3_ABSENT.
 */
enum s3_verdict s3_call_judge(struct s3_call *call, struct s3_service *service, uint64_t now_ms,
                              time_t now_s, unsigned *ret_delay_ms, struct err *err);

#endif
