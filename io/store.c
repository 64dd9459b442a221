/* What all stores share: URL schemes, names that cannot leave the root, whole-object reads. */
#include "io/store_ops.h"

#include <assert.h>

#include "io/seal.h"

static bool component_valid(const char *name, size_t len)
{
    if (len == 0 || (len == 1 && name[0] == '.') || (len == 2 && name[0] == '.' && name[1] == '.'))
        return false;
    for (size_t i = 0; i < len; i++) {
        char c = name[i];
        bool good = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                    c == '.' || c == '_' || c == '-';
        if (!good)
            return false;
    }
    return true;
}

bool store_name_valid(const char *name)
{
    if (strlen(name) > STORE_NAME_MAX)
        return false;
    for (;;) {
        size_t len = strcspn(name, "/");
        if (!component_valid(name, len))
            return false;
        if (name[len] == '\0')
            return true;
        name += len + 1;
    }
}

static int check_name(const struct store *store, const char *name, struct err *err)
{
    if (store_name_valid(name))
        return 0;
    return err_set(err, ERR_INTERNAL, "'%.64s' is not an object name (%s)", name, store->url);
}

/* A list prefix is "" or "a/b/": a name followed by '/'. */
static int check_prefix(const struct store *store, const char *prefix, struct err *err)
{
    size_t len = strlen(prefix);
    if (len == 0)
        return 0;
    char name[STORE_NAME_MAX + 1];
    if (len <= STORE_NAME_MAX && prefix[len - 1] == '/') {
        memcpy(name, prefix, len - 1);
        name[len - 1] = '\0';
        if (store_name_valid(name))
            return 0;
    }
    return err_set(err, ERR_INTERNAL, "'%.64s' is not a list prefix (%s)", prefix, store->url);
}

struct scheme {
    const struct store_ops *ops;
    int (*open)(const char *rest, const struct store_options *options, bool create,
                struct store **ret, struct err *err);
};

static const struct scheme *find_scheme(const char *url)
{
    static const struct scheme schemes[] = {{&store_file_ops, store_file_open},
                                            {&store_s3_ops, store_s3_open}};
    for (size_t i = 0; i < ARRAY_LEN(schemes); i++)
        if (strncmp(url, schemes[i].ops->scheme, strlen(schemes[i].ops->scheme)) == 0)
            return &schemes[i];
    return NULL;
}

static int finish_open(struct store *store, const char *url, const _Atomic bool *cancel,
                       struct store **ret, struct err *err)
{
    store->cancel = cancel;
    store->url = strdup(url);
    if (store->url == NULL) {
        store->ops->close(store);
        free(store);
        return err_set(err, ERR_INTERNAL, "out of memory");
    }
    *ret = store;
    return 0;
}

int store_open(const char *url, const struct store_options *options, bool create,
               struct store **ret, struct err *err)
{
    static const struct store_options none = {.group_id = -1};
    if (options == NULL)
        options = &none;
    const struct scheme *scheme = find_scheme(url);
    if (scheme == NULL) {
        (void)err_set(err, ERR_CONFIG, "repository URL '%s': unknown scheme", url);
        return err_hint(err, "write file:///absolute/directory or s3://bucket/prefix");
    }
    struct store *store;
    int rc = scheme->open(url + strlen(scheme->ops->scheme), options, create, &store, err);
    if (rc < 0)
        return rc;
    return finish_open(store, url, options->cancel, ret, err);
}

int store_clone(struct store *store, struct store **ret, struct err *err)
{
    struct store *clone;
    if (store->ops->clone == NULL)
        return err_set(err, ERR_INTERNAL, "%s: no second handle on it", store->url);
    int rc = store->ops->clone(store, &clone, err);
    if (rc < 0)
        return rc;
    clone->sealed = store->sealed;
    clone->keys = store->keys;
    return finish_open(clone, store->url, store->cancel, ret, err);
}

void store_close(struct store *store)
{
    if (store == NULL)
        return;
    if (store->owns_keys)
        keyring_free(store->keys);
    store->ops->close(store);
    free(store->url);
    free(store);
}

/* --- encrypted repositories ------------------------------------------------------------------- */

void store_set_sealed(struct store *store)
{
    store->sealed = true;
}

void store_give_keys(struct store *store, struct keyring *keys)
{
    if (store->owns_keys)
        keyring_free(store->keys);
    store->sealed = true;
    store->keys = keys;
    store->owns_keys = true;
}

const struct keyring *store_keys(const struct store *store)
{
    return store->keys;
}

/* 1: this object is sealed, and we have keys; 0: it is not. */
static int check_keys(const struct store *store, const char *name, struct err *err)
{
    if (!store->sealed || seal_exempts(name))
        return 0;
    if (store->keys != NULL)
        return 1;
    (void)err_set(err, ERR_AUTH, "%s is encrypted, and there is no key for it", store->url);
    return err_hint(err, "set key_file, or give --key-file=FILE");
}

/* --- objects ---------------------------------------------------------------------------------- */

const char *store_url(const struct store *store)
{
    return store->url;
}

static int put(struct store *store, const char *name, const void *ptr, size_t len, bool absent,
               struct err *err)
{
    free_mem uint8_t *sealed = NULL;
    int rc = check_name(store, name, err);
    if (rc == 0)
        rc = check_keys(store, name, err);
    if (rc > 0)
        rc = seal_object(store->keys, name, ptr, len, &sealed, &len, err);
    if (rc < 0)
        return rc;
    if (sealed != NULL)
        ptr = sealed;
    return absent && store->ops->put_absent != NULL
               ? store->ops->put_absent(store, name, ptr, len, err)
               : store->ops->put(store, name, ptr, len, err);
}

int store_put(struct store *store, const char *name, const void *ptr, size_t len, struct err *err)
{
    return put(store, name, ptr, len, false, err);
}

int store_put_absent(struct store *store, const char *name, const void *ptr, size_t len,
                     struct err *err)
{
    return put(store, name, ptr, len, true, err);
}

int store_flush_name(struct store *store, const char *name, struct err *err)
{
    int rc = check_name(store, name, err);
    return rc < 0 || store->ops->flush_name == NULL ? rc : store->ops->flush_name(store, name, err);
}

int store_get(struct store *store, const char *name, uint64_t offset, void *buf, size_t len,
              size_t *ret_len, struct err *err)
{
    int rc = check_name(store, name, err);
    return rc < 0 ? rc : store->ops->get(store, name, offset, buf, len, ret_len, NULL, err);
}

int store_get_head(struct store *store, const char *name, void *buf, size_t len, size_t *ret_len,
                   uint64_t *ret_size, struct err *err)
{
    uint8_t head[SEAL_WAL_HEAD_LEN];
    size_t got;
    uint64_t size;
    int rc = check_name(store, name, err);
    if (rc == 0)
        rc = check_keys(store, name, err);
    if (rc == 0)
        return store->ops->get(store, name, 0, buf, len, ret_len, ret_size, err);
    if (rc < 0)
        return rc;
    assert(len == FMT_HEADER_LEN + FMT_WAL_FIXED_LEN);
    rc = store->ops->get(store, name, 0, head, sizeof(head), &got, &size, err);
    if (rc == 0)
        rc = seal_open_wal_head(store->keys, name, head, got, buf, err);
    if (rc < 0)
        return rc;
    *ret_len = len;
    *ret_size = size - SEAL_WAL_OVERHEAD;
    return 0;
}

int store_size(struct store *store, const char *name, uint64_t *ret_size, struct err *err)
{
    int rc = check_name(store, name, err);
    return rc < 0 ? rc : store->ops->size(store, name, ret_size, err);
}

int store_modified(struct store *store, const char *name, int64_t *ret_s, struct err *err)
{
    int rc = check_name(store, name, err);
    return rc < 0 ? rc : store->ops->modified(store, name, ret_s, err);
}

int store_too_long(const char *name, uint64_t size, size_t len_max, struct err *err)
{
    return err_set(err, ERR_CORRUPT, "object '%s' has %llu bytes, at most %zu are possible", name,
                   (unsigned long long)size, len_max);
}

/* As it is stored. */
static int get_whole(struct store *store, const char *name, size_t len_max, void **ret_buf,
                     size_t *ret_len, struct err *err)
{
    uint64_t size;
    if (store->ops->get_all != NULL)
        return store->ops->get_all(store, name, len_max, ret_buf, ret_len, err);
    int rc = store_size(store, name, &size, err);
    if (rc < 0)
        return rc;
    if (size > len_max)
        return store_too_long(name, size, len_max, err);
    free_mem void *buf = malloc((size_t)size + 1); /* never malloc(0) */
    if (buf == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory for object '%s'", name);
    size_t len;
    rc = store_get(store, name, 0, buf, (size_t)size, &len, err);
    if (rc < 0)
        return rc;
    if (len != size)
        return err_set(err, ERR_STORE, "object '%s' became shorter while it was read", name);
    *ret_buf = take_ptr(&buf);
    *ret_len = len;
    return 0;
}

int store_get_all(struct store *store, const char *name, size_t len_max, void **ret_buf,
                  size_t *ret_len, struct err *err)
{
    free_mem void *sealed = NULL;
    uint8_t *plain;
    size_t len;
    int rc = check_name(store, name, err);
    if (rc == 0)
        rc = check_keys(store, name, err);
    if (rc == 0)
        return get_whole(store, name, len_max, ret_buf, ret_len, err);
    if (rc > 0)
        rc = get_whole(store, name, len_max + SEAL_OVERHEAD_MAX, &sealed, &len, err);
    if (rc == 0)
        rc = seal_open_object(store->keys, name, sealed, len, &plain, ret_len, err);
    if (rc == 0)
        *ret_buf = plain;
    return rc;
}

int store_list(struct store *store, const char *prefix,
               int (*each)(void *ctx, const char *name, uint64_t size, struct err *err), void *ctx,
               struct err *err)
{
    int rc = check_prefix(store, prefix, err);
    return rc < 0 ? rc : store->ops->list(store, prefix, each, ctx, err);
}

int store_remove(struct store *store, const char *name, struct err *err)
{
    int rc = check_name(store, name, err);
    return rc < 0 ? rc : store->ops->remove(store, name, err);
}

int store_clock(struct store *store, int64_t *ret_ms, struct err *err)
{
    *ret_ms = 0;
    return store->ops->clock ? store->ops->clock(store, ret_ms, err) : 0;
}

int store_remove_many(struct store *store, const char *const *names, size_t count, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < count; i++)
        rc = check_name(store, names[i], err);
    if (rc == 0 && store->ops->remove_many != NULL)
        return store->ops->remove_many(store, names, count, err);
    for (size_t i = 0; rc == 0 && i < count; i++)
        rc = store->ops->remove(store, names[i], err);
    return rc;
}

int store_prepare_puts(struct store *store, struct err *err)
{
    return store->ops->prepare_puts != NULL ? store->ops->prepare_puts(store, err) : 0;
}
