/* Private to io/store*.c and to test stores: the table that every URL scheme fills. Names arrive
 * validated; the rules of store.h (no replacing, confirmed absence, durability) are the
 * implementation's to keep. */
#ifndef TIDEMARK_IO_STORE_OPS_H
#define TIDEMARK_IO_STORE_OPS_H

#include "io/store_lane.h"

struct store_lock;
struct store_hidden;

/* Of a store that can lock; as their namesakes in store_lock.h. */
struct store_lock_ops {
    int (*check)(struct store *store, struct err *err);
    void (*until)(struct store *store, int64_t until_s);
    int (*read)(struct store *store, const char *name, struct store_lock *ret, struct err *err);
    int (*extend)(struct store *store, const char *name, int64_t until_s, bool *ret_extended,
                  struct err *err);
    int (*prepare_removes)(struct store *store, struct err *err);
    int (*remove)(struct store *store, const char *const *names, size_t count,
                  int (*locked)(void *ctx, const char *name, int64_t until_s, struct err *err),
                  void *ctx, struct err *err);
    int (*list_hidden)(struct store *store, const char *prefix,
                       int (*each)(void *ctx, const struct store_hidden *hidden, struct err *err),
                       void *ctx, struct err *err);
};

struct store_ops {
    const char *scheme; /* "file://" */
    int (*put)(struct store *store, const char *name, const void *ptr, size_t len, struct err *err);
    int (*get)(struct store *store, const char *name, uint64_t offset, void *buf, size_t len,
               size_t *ret_len, uint64_t *ret_size, struct err *err); /* ret_size may be NULL */
    int (*size)(struct store *store, const char *name, uint64_t *ret_size, struct err *err);
    int (*modified)(struct store *store, const char *name, int64_t *ret_s, struct err *err);
    int (*list)(struct store *store, const char *prefix,
                int (*each)(void *ctx, const char *name, uint64_t size, struct err *err), void *ctx,
                struct err *err);
    int (*remove)(struct store *store, const char *name, struct err *err);
    /* May be NULL: then it is put. As store_put_absent(). */
    int (*put_absent)(struct store *store, const char *name, const void *ptr, size_t len,
                      struct err *err);
    /* May be NULL where what can be read is durable. As store_flush_name(). */
    int (*flush_name)(struct store *store, const char *name, struct err *err);
    /* May be NULL: then size and get do it. As store_get_all(). */
    int (*get_all)(struct store *store, const char *name, size_t len_max, void **ret_buf,
                   size_t *ret_len, struct err *err);
    /* May be NULL: then names are removed one by one. */
    int (*remove_many)(struct store *store, const char *const *names, size_t count,
                       struct err *err);
    /* As store_clone(), without what is in struct store; may be NULL. */
    int (*clone)(struct store *store, struct store **ret, struct err *err);
    int (*prepare_puts)(struct store *store, struct err *err);           /* may be NULL */
    int (*clock)(struct store *store, int64_t *ret_ms, struct err *err); /* may be NULL */
    const struct store_lock_ops *lock;  /* NULL where nothing can be locked */
    void (*close)(struct store *store); /* releases everything but url, and the struct itself */
    /* Lane mode; store is only read, by several threads at once. */
    unsigned lane_depth;
    /* Changes what follows from lane_depth; may be NULL. */
    void (*lane_shape)(struct store *store, struct store_lane_shape *shape);
    int (*lane_open)(struct store *store, struct ring *ring, unsigned lane_index,
                     unsigned lane_count, unsigned request_count, struct store_lane **ret,
                     struct err *err);
    void (*lane_stop)(struct store_lane *lane); /* NULL where requests end by themselves soon */
    void (*lane_close)(struct store_lane *lane);
    void (*lane_put)(struct store_lane *lane, struct store_request *request);
    void (*lane_get)(struct store_lane *lane, struct store_request *request);
};

/* First member of every implementation's own lane. */
struct store_lane {
    const struct store_ops *ops;
};

/* First member of every implementation's own struct. */
struct store {
    const struct store_ops *ops;
    char *url; /* malloc'ed, freed by store_close() */
    const _Atomic bool *cancel;
    /* Of an encrypted repository (seal.h). A clone has its original's. */
    bool sealed;
    struct keyring *keys;
    bool owns_keys;
};

/* file://: path is the part of the URL after the scheme. */
extern const struct store_ops store_file_ops;
int store_file_open(const char *path, const struct store_options *options, bool create,
                    struct store **ret, struct err *err);

/* s3://: address is "bucket/prefix". */
extern const struct store_ops store_s3_ops;
int store_s3_open(const char *address, const struct store_options *options, bool create,
                  struct store **ret, struct err *err);

/* ERR_CORRUPT: an object that is longer than what it can be. */
int store_too_long(const char *name, uint64_t size, size_t len_max, struct err *err);

/* True when name is a sequence of [A-Za-z0-9._-] components, none of them "." or "..", of at most
 * STORE_NAME_MAX bytes: nothing that can leave the root. */
bool store_name_valid(const char *name);

#endif
