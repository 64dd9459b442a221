/* The repository as named objects. One implementation a URL scheme behind one table of
 * operations: `file:///DIR`, `s3://BUCKET/PREFIX`. Names are '/'-separated relative paths
 * of [A-Za-z0-9._-] components (FORMAT.md). No operation replaces an object.
 *
 * Two modes. The client mode below blocks and needs no ring: control objects, WAL, small reads.
 * The lane mode (store_lane.h) moves payloads on a lane's ring.
 *
 * A struct store may be used by one thread at a time in client mode; every lane opens its own
 * store_lane. */
#ifndef TIDEMARK_IO_STORE_H
#define TIDEMARK_IO_STORE_H

#include "io/err.h"

struct store;

enum { STORE_NAME_MAX = 511 };

/* Returned by store_put() when the object is already there; nothing was written. */
enum { STORE_EXISTS = 1 };

/* How a bucket is addressed: http://host/bucket/name or http://bucket.host/name. */
enum store_s3_addressing {
    STORE_S3_AUTO, /* virtual for AWS, path for everybody else */
    STORE_S3_PATH,
    STORE_S3_VIRTUAL,
};

/* How locked objects are (store_lock.h): nobody can remove them before the date, or nobody without
 * a permission of its own. */
enum store_lock_mode { STORE_LOCK_NONE, STORE_LOCK_COMPLIANCE, STORE_LOCK_GOVERNANCE };

/* For s3://. The strings are copied by store_open(), keys into memory that core dumps leave out
 * (secret.h). */
struct store_s3_options {
    const char *endpoint; /* "https://host[:port]"; NULL or "" = AWS, of the region */
    const char *region;   /* NULL or "" = us-east-1 */
    enum store_s3_addressing addressing;
    const char *ca_file; /* PEM; NULL or "" = the system's */
    const char *access_key, *secret_key;
    const char *session_token;      /* NULL or "" = none */
    unsigned connections;           /* of all lanes together; 0 = 32 */
    unsigned retry_timeout_ms;      /* from the first try of an operation to the last; 0 = 2 min */
    unsigned stall_timeout_ms;      /* of one try without a byte moved; 0 = 30 s */
    uint64_t seed;                  /* of the jitter of retries; 0 = random */
    enum store_lock_mode lock_mode; /* of what is put from now on; store_lock.h */
    uint64_t lock_s;                /* for so long; 0 = not */
};

/* What somebody who waits for a store should know. failing: it has not worked for since_ms and is
 * tried again for up to left_ms more; why is the last error's text. Otherwise it works again. */
struct store_notice {
    bool failing;
    uint64_t since_ms, left_ms;
    const char *why;
};

struct store_options {
    /* Owner of new directories and objects in file:// (group tidemark-repo); -1 = leave. */
    int64_t group_id;
    const struct store_s3_options *s3; /* needed for s3:// */
    /* s3:// in client mode: once it is true no failing operation is tried again, it ends with
     * ERR_CANCELLED instead. What works goes on working: whoever cancels has to clean up. NULL =
     * never. */
    const _Atomic bool *cancel;
    /* s3://: called once when retries take longer than a few seconds, and once when the store works
     * again; by whichever thread uses it, lanes included, in the middle of its work: it must not
     * wait and not use the store. NULL = nobody wants to know. */
    void (*notice)(void *ctx, const struct store_notice *notice);
    void *notice_ctx;
};

/* A bit can flip on the way, where only our own checksums notice it: a reader calls an object
 * damaged (ERR_CORRUPT) when so many tries have read it as damaged. */
enum { STORE_READ_TRIES = 3 };

/* Opens url. options may be NULL for file://. create makes the directory of file:// (mode 2770)
 * and gives an empty one that is there to the group; a bucket must exist. s3:// is not contacted
 * yet: the first operation does that. ERR_CONFIG for a malformed URL or option or an unknown
 * scheme, ERR_AUTH without credentials, ERR_STORE when a directory cannot be reached. */
int store_open(const char *url, const struct store_options *options, bool create,
               struct store **ret, struct err *err);
void store_close(struct store *store);

/* Another handle on the same repository, for another thread; the caller closes it, before the one
 * it was made of: they share who listens and who cancels. Not while that one is in use.
 * ERR_INTERNAL where the store has no such thing. */
int store_clone(struct store *store, struct store **ret, struct err *err);

/* The repository is encrypted: without keys nothing but what leads to them is read or written from
 * now on (ERR_AUTH). With them store_put(), store_get_all() and store_get_head() seal and open by
 * themselves; packs and table packs are sealed by whoever builds them (seal.h). */
struct keyring;
void store_set_sealed(struct store *store);
/* The store frees them; clones made from now on use them. Replaces those it had. */
void store_give_keys(struct store *store, struct keyring *keys);
/* NULL for a plain repository. */
const struct keyring *store_keys(const struct store *store);

/* The URL as given, for messages. */
const char *store_url(const struct store *store);

/* Writes a whole object durably (data and name survive a power cut when it returns 0).
 * Returns 0, STORE_EXISTS, or an error (ERR_STORE; a full store says so in its text). */
int store_put(struct store *store, const char *name, const void *ptr, size_t len, struct err *err);

/* As store_put(), for a caller that has looked just before and found no such object: a server that
 * may not create once is not asked a second time. */
int store_put_absent(struct store *store, const char *name, const void *ptr, size_t len,
                     struct err *err);

/* Makes durable the name of an object that was found, and with it those of all others that were
 * there in its directory: who put it may have died, or may be about to, before it flushed that.
 * For a caller who promises somebody that the object stays and has not put it itself. Content is
 * durable before its name can be seen. Does nothing on s3://, where what can be read is durable. */
int store_flush_name(struct store *store, const char *name, struct err *err);

/* Reads len bytes at offset; ret_len is less only at the end of the object. ERR_MISSING only when
 * the store itself is there and confirms the absence of the object. */
int store_get(struct store *store, const char *name, uint64_t offset, void *buf, size_t len,
              size_t *ret_len, struct err *err);

/* The same from offset 0, with the size of the object: one request instead of two. In an encrypted
 * repository for the heads of WAL objects only, which it opens: head and size are the plain one's.
 * store_get() opens nothing. */
int store_get_head(struct store *store, const char *name, void *buf, size_t len, size_t *ret_len,
                   uint64_t *ret_size, struct err *err);

/* Reads a whole object of at most len_max bytes into malloc'ed memory owned by the caller
 * (free()). ERR_CORRUPT when it is longer. */
int store_get_all(struct store *store, const char *name, size_t len_max, void **ret_buf,
                  size_t *ret_len, struct err *err);

/* Size in bytes; ERR_MISSING as in store_get(). */
int store_size(struct store *store, const char *name, uint64_t *ret_size, struct err *err);

/* When the object was written, by the store's own clock (store_clock()), Unix seconds. ERR_MISSING
 * as in store_get(). */
int store_modified(struct store *store, const char *name, int64_t *ret_s, struct err *err);

/* Calls each() for every object whose name begins with prefix (a whole "dir/" prefix), in
 * ascending byte order of names; a non-zero return stops and is returned. */
int store_list(struct store *store, const char *prefix,
               int (*each)(void *ctx, const char *name, uint64_t size, struct err *err), void *ctx,
               struct err *err);

/* Removes an object; absent is fine. */
int store_remove(struct store *store, const char *name, struct err *err);

/* Removes many, in as few requests as the store can. After an error some may be gone. */
int store_remove_many(struct store *store, const char *const *names, size_t count, struct err *err);

/* To be called before many puts, lanes included: finds out what saves a request for each of them
 * (on s3://, whether the server itself refuses to replace an object). May write one tiny object. */
int store_prepare_puts(struct store *store, struct err *err);

/* The time by the store's own clock, milliseconds since 1970: s3:// tells whole seconds. In file://
 * it is that of a file which has no name or lies in tmp/ for a moment. 0 = it does not tell. */
int store_clock(struct store *store, int64_t *ret_ms, struct err *err);

#endif
