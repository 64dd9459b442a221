/* Private to io/store_s3*.c: the parts of the S3 store that its client mode and its lane mode
 * share.
 *
 * Creating an object once (store_put() never replaces): where the server honours If-None-Match on
 * PUT, that is atomic. Where it does not (Swift: 501; others ignore it) a look comes first: of two
 * writers at the same moment the later one wins. Names of packs, tables, manifests and records are
 * random, so only two servers that archive WAL under one cluster and system id can meet like that.
 * While it is not known (nobody has seen a 412 yet) both are done. */
#ifndef TIDEMARK_IO_STORE_S3_H
#define TIDEMARK_IO_STORE_S3_H

#include "io/http.h"
#include "io/s3_service.h"
#include "io/s3_watch.h"
#include "io/store_lock.h"
#include "io/store_ops.h"

enum { STORE_S3_COMPARE_LEN = 1 << 20 }; /* of one read while an object is compared */

struct store_s3 {
    struct store store;
    /* Changed by client mode only; a lane takes a copy when it is opened. A lane signs again for
     * another region, but stays with its origin, which depends on the region where no endpoint is
     * configured (AWS): everybody reads tidemark.repo in client mode before lanes are opened, and
     * the first answer settles both. */
    struct s3_service *service;
    struct s3_watch watch; /* the service's, lanes included */
    struct http *http;
    struct s3_call *call; /* of the one operation at a time in client mode */
    char origin[S3_ORIGIN_MAX];
    bool probed; /* for If-None-Match, once a store */
    /* store_s3_versions.c */
    bool asked_versions, keeps_versions; /* the latter: and what is removed goes with all of them */
};

/* Where and how to connect; borrows origin and the service's ca_file. */
struct http_endpoint store_s3_endpoint(const struct s3_service *service, const char *origin);

/* Sends s3->call, again where that helps, in operations that know only success, absence and
 * failure. */
int store_s3_perform(struct store_s3 *s3, struct err *err);
/* Waits; false as soon as the store is cancelled. */
bool store_s3_pause(const struct store_s3 *s3, uint64_t ms);

/* store_s3_remove.c */
int store_s3_remove(struct store *store, const char *name, struct err *err);
int store_s3_remove_many(struct store *store, const char *const *names, size_t count,
                         struct err *err);

/* What is to be removed; version NULL: by its name alone. */
struct s3_target {
    const char *name;
    char *version;
    bool is_marker;
    bool refused; /* out: the server said AccessDenied, of some version of this name */
};
/* In batches; sorts them anew. Those that are refused are an error unless may_refuse. */
int store_s3_remove_targets(struct store_s3 *s3, struct s3_target *targets, size_t count,
                            bool may_refuse, struct err *err);

/* store_s3_lock.c, store_s3_versions.c */
extern const struct store_lock_ops store_s3_lock_ops;
int store_s3_prepare_removes(struct store *store, struct err *err);
int store_s3_remove_versions(struct store *store, const char *const *names, size_t count,
                             int (*locked)(void *ctx, const char *name, int64_t until_s,
                                           struct err *err),
                             void *ctx, struct err *err);
int store_s3_list_hidden(struct store *store, const char *prefix,
                         int (*each)(void *ctx, const struct store_hidden *hidden, struct err *err),
                         void *ctx, struct err *err);

/* store_s3_lane.c */
void store_s3_lane_shape(struct store *store, struct store_lane_shape *shape);
int store_s3_lane_open(struct store *store, struct ring *ring, unsigned lane_index,
                       unsigned lane_count, unsigned request_count, struct store_lane **ret,
                       struct err *err);
void store_s3_lane_stop(struct store_lane *lane);
void store_s3_lane_close(struct store_lane *lane);
void store_s3_lane_put(struct store_lane *lane, struct store_request *request);
void store_s3_lane_get(struct store_lane *lane, struct store_request *request);

#endif
