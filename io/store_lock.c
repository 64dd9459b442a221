/* Object lock, for stores that have it: see store_lock.h. */
#include "io/store_lock.h"

#include "io/store_ops.h"

static int check_name(const struct store *store, const char *name, struct err *err)
{
    return store_name_valid(name)
               ? 0
               : err_set(err, ERR_INTERNAL, "'%.64s' is not an object name (%s)", name, store->url);
}

bool store_locks(const char *name)
{
    static const char *const prefixes[] = {"pack/", "table/", "volume/",      "snapshot/",
                                           "wal/",  "key/",   "tidemark.repo"};
    for (size_t i = 0; i < ARRAY_LEN(prefixes); i++)
        if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    return false;
}

int store_check_lock(struct store *store, struct err *err)
{
    if (store->ops->lock != NULL)
        return store->ops->lock->check(store, err);
    (void)err_set(err, ERR_CONFIG, "%s cannot lock objects", store->url);
    return err_hint(err, "lock_days needs an s3:// bucket that was made with object lock");
}

void store_lock_until(struct store *store, int64_t until_s)
{
    if (store->ops->lock != NULL)
        store->ops->lock->until(store, until_s);
}

int store_read_lock(struct store *store, const char *name, struct store_lock *ret, struct err *err)
{
    uint64_t size;
    int rc = check_name(store, name, err);
    if (rc == 0 && store->ops->lock != NULL)
        return store->ops->lock->read(store, name, ret, err);
    if (rc == 0)
        rc = store_size(store, name, &size, err);
    if (rc == 0)
        *ret = (struct store_lock){.until_s = 0};
    return rc;
}

int store_extend_lock(struct store *store, const char *name, int64_t until_s, bool *ret_extended,
                      struct err *err)
{
    int rc = check_name(store, name, err);
    if (rc == 0 && store->ops->lock == NULL)
        rc = store_check_lock(store, err);
    return rc < 0 ? rc : store->ops->lock->extend(store, name, until_s, ret_extended, err);
}

int store_prepare_removes(struct store *store, struct err *err)
{
    return store->ops->lock != NULL ? store->ops->lock->prepare_removes(store, err) : 0;
}

int store_remove_versions(struct store *store, const char *const *names, size_t count,
                          int (*locked)(void *ctx, const char *name, int64_t until_s,
                                        struct err *err),
                          void *ctx, struct err *err)
{
    int rc = 0;
    if (store->ops->lock == NULL)
        return store_remove_many(store, names, count, err);
    for (size_t i = 0; rc == 0 && i < count; i++)
        rc = check_name(store, names[i], err);
    return rc < 0 ? rc : store->ops->lock->remove(store, names, count, locked, ctx, err);
}

int store_list_hidden(struct store *store, const char *prefix,
                      int (*each)(void *ctx, const struct store_hidden *hidden, struct err *err),
                      void *ctx, struct err *err)
{
    return store->ops->lock != NULL ? store->ops->lock->list_hidden(store, prefix, each, ctx, err)
                                    : 0;
}
