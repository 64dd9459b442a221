/* The repository as named objects. One implementation a URL scheme behind one table of
 * operations; `file://DIR` here, `s3://` beside it later. Names are '/'-separated relative paths
 * of [A-Za-z0-9._-] components (FORMAT.md). No operation ever replaces an object.
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

struct store_options {
    /* Owner of new directories and objects in file:// (group tidemark-repo); -1 = leave. */
    int64_t group_id;
};

/* Opens url ("file:///abs/dir"). options may be NULL. create makes the directory (mode 2770).
 * ERR_CONFIG for a malformed URL or unknown scheme, ERR_STORE when it cannot be reached. */
int store_open(const char *url, const struct store_options *options, bool create,
               struct store **ret, struct err *err);
void store_close(struct store *store);

/* The URL as given, for messages. */
const char *store_url(const struct store *store);

/* Writes a whole object durably (data and name survive a power cut when it returns 0).
 * Returns 0, STORE_EXISTS, or an error (ERR_STORE; a full store says so in its text). */
int store_put(struct store *store, const char *name, const void *ptr, size_t len, struct err *err);

/* Reads len bytes at offset; ret_len is less only at the end of the object. ERR_MISSING only when
 * the store itself is there and confirms the absence of the object. */
int store_get(struct store *store, const char *name, uint64_t offset, void *buf, size_t len,
              size_t *ret_len, struct err *err);

/* Reads a whole object of at most len_max bytes into malloc'ed memory owned by the caller
 * (free()). ERR_CORRUPT when it is longer. */
int store_get_all(struct store *store, const char *name, size_t len_max, void **ret_buf,
                  size_t *ret_len, struct err *err);

/* Size in bytes; ERR_MISSING as in store_get(). */
int store_size(struct store *store, const char *name, uint64_t *ret_size, struct err *err);

/* Calls each() for every object whose name begins with prefix (a whole "dir/" prefix), in
 * ascending byte order of names; a non-zero return stops and is returned. */
int store_list(struct store *store, const char *prefix,
               int (*each)(void *ctx, const char *name, uint64_t size, struct err *err), void *ctx,
               struct err *err);

/* Removes an object; absent is fine. Used for probes and, later, by expire. */
int store_remove(struct store *store, const char *name, struct err *err);

#endif
