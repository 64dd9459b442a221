/* Object lock: buckets in which an object, once written, cannot be removed or replaced before a
 * date, with no key of the host that wrote it. Such a bucket keeps versions: a plain removal hides
 * an object behind a marker, a second put hides it behind another object, and what is hidden is
 * still there. Readers see the newest version only (FORMAT.md §14).
 *
 * What is put with store_s3_options.lock_s is locked from the moment that it is there: packs,
 * tables, manifests, records, WAL, tidemark.repo and the key ring. Marks, probes and journals are
 * not: they have to go. file:// can lock nothing: store_check_lock() says so.
 *
 * Dates are Unix seconds. When one is over, the store says, by its own clock; who chooses one from
 * the time of a host (a snapshot does: when it began, and lock_days) locks for as much less, or
 * more, as that clock is behind, or ahead. Client mode; the threads of store.h. */
#ifndef TIDEMARK_IO_STORE_LOCK_H
#define TIDEMARK_IO_STORE_LOCK_H

#include "io/store.h"

struct store_lock {
    enum store_lock_mode mode;
    int64_t until_s; /* 0 = not locked */
    bool held;       /* a legal hold: whatever the date, until somebody takes it off */
};

/* A date that only the end of a legal hold brings. */
#define STORE_LOCK_HELD INT64_MAX

/* 0: the store locks. ERR_CONFIG: it cannot, or the bucket was made without. */
int store_check_lock(struct store *store, struct err *err);

/* What is put from now on, by lanes and clones made from now on as well, is locked until then and
 * not for lock_s from its put. Nothing happens without lock_s. */
void store_lock_until(struct store *store, int64_t until_s);

/* True for an object that is locked when it is put. */
bool store_locks(const char *name);

/* Until when an object is locked, as far as this key may know: until_s 0 also when it may not.
 * ERR_MISSING as in store_get(). */
int store_read_lock(struct store *store, const char *name, struct store_lock *ret, struct err *err);

/* The object is locked until then, at the least; a later date stays. *ret_extended: it was not so.
 * ERR_MISSING as in store_get(). */
int store_extend_lock(struct store *store, const char *name, int64_t until_s, bool *ret_extended,
                      struct err *err);

/* Before objects are removed for good: finds out whether the bucket keeps versions. From then on
 * store_remove() removes all of them, too. */
int store_prepare_removes(struct store *store, struct err *err);

/* As store_remove_many(), and with all versions, in a bucket that keeps them: else their bytes stay
 * for ever. What a lock keeps is left as it is, not hidden either, and told to locked(), with
 * STORE_LOCK_HELD for a legal hold; an error of it ends all. */
int store_remove_versions(struct store *store, const char *const *names, size_t count,
                          int (*locked)(void *ctx, const char *name, int64_t until_s,
                                        struct err *err),
                          void *ctx, struct err *err);

/* An object of which readers see something else than its first version. */
struct store_hidden {
    const char *name;
    bool removed; /* behind a marker; else behind another object */
};

/* Calls each() for those whose names begin with prefix and that store_locks(), ascending; it may
 * not use this store. Reads all of that list of versions, which a store that locks always keeps
 * (store_check_lock()): a request for each 1000. Nothing for a store that does not. */
int store_list_hidden(struct store *store, const char *prefix,
                      int (*each)(void *ctx, const struct store_hidden *hidden, struct err *err),
                      void *ctx, struct err *err);

#endif
