/* Where an s3:// repository is and as whom it is used: URL, endpoint, addressing, credentials, and
 * what was learned about the server. A plain value: the store has one, every lane takes a copy
 * (s3_service_copy), nothing but the watch is shared between threads.
 *
 * It holds the secret key: it lives in memory of secret_alloc() only, which core dumps leave out,
 * and s3_service_close() overwrites it. */
#ifndef TIDEMARK_IO_S3_SERVICE_H
#define TIDEMARK_IO_S3_SERVICE_H

#include "io/store.h"

enum {
    S3_BUCKET_MAX = 63,
    S3_PREFIX_MAX = 255,
    S3_HOST_MAX = 255,
    S3_REGION_MAX = 63,
    S3_KEY_ID_MAX = 127,
    S3_SECRET_MAX = 255,
    S3_SESSION_MAX = 4096,
    S3_ORIGIN_MAX = S3_HOST_MAX + S3_BUCKET_MAX + 16,
};

/* Whether the server honours If-None-Match on PUT. */
enum s3_create_once {
    S3_CREATE_ONCE_UNKNOWN, /* send it, and look first */
    S3_CREATE_ONCE_YES,     /* proven by a 412: it alone is enough */
    S3_CREATE_ONCE_NO,      /* 501, or ignored: look first, leave it out */
};

struct s3_watch;

struct s3_service {
    char bucket[S3_BUCKET_MAX + 1];
    char prefix[S3_PREFIX_MAX + 2]; /* "" or "a/b/" */
    bool tls, is_aws;
    bool is_derived;            /* no endpoint was given: host is that of AWS in this region */
    char host[S3_HOST_MAX + 1]; /* of the endpoint: "s3.example.com:9000", as given */
    enum store_s3_addressing addressing; /* STORE_S3_PATH or STORE_S3_VIRTUAL */
    char region[S3_REGION_MAX + 1];
    char ca_file[1024];
    char access_key[S3_KEY_ID_MAX + 1];
    char secret_key[S3_SECRET_MAX + 1];
    char session_token[S3_SESSION_MAX + 1];
    unsigned connections;
    unsigned retry_timeout_ms, stall_timeout_ms;
    uint64_t seed; /* of jitter */
    /* Of what is put: STORE_LOCK_NONE = nothing; lock_until_s 0 = lock_s from the put on. */
    enum store_lock_mode lock_mode;
    uint64_t lock_s;
    int64_t lock_until_s;
    struct s3_watch *watch; /* the store's, shared with its lanes (s3_watch.h); NULL = none */
    /* learned */
    enum s3_create_once create_once;
    bool region_corrected;
    bool has_worked; /* some request was answered with success: credentials and region are right */
};

/* address is "bucket/prefix", the part of the URL behind "s3://". ERR_CONFIG when it or an option
 * is malformed, ERR_AUTH without credentials. */
int s3_service_open(const char *address, const struct store_s3_options *options,
                    struct s3_service **ret, struct err *err);
int s3_service_copy(const struct s3_service *from, struct s3_service **ret, struct err *err);
void s3_service_close(struct s3_service *service);

/* What http_open() and http_lane_open() want: "https://host:port", with the bucket in front of the
 * host for virtual-host addressing. */
void s3_service_origin(const struct s3_service *service, char ret[S3_ORIGIN_MAX]);

/* Value of the Host header. */
void s3_service_host(const struct s3_service *service, char ret[S3_ORIGIN_MAX]);

/* "s3://bucket/prefix at https://host" for messages. */
void s3_service_text(const struct s3_service *service, char *ret, size_t size);

#endif
