/* Object lock of an S3 bucket: see store_lock.h. What is put is locked by the headers of its PUT
 * (s3_request.h), so that it is never there without. */
#include "io/store_s3.h"

#include "io/clock.h"
#include "io/s3_request.h"
#include "io/s3_xml.h"

static struct store_s3 *of(struct store *store)
{
    return CONTAINER_OF(store, struct store_s3, store);
}

static int lock_check(struct store *store, struct err *err)
{
    struct store_s3 *s3 = of(store);
    char enabled[16];
    s3_call_ask(s3->call, s3->service, "object-lock", monotonic_ms());
    int rc = store_s3_perform(s3, err);
    if (rc < 0 && rc != -ERR_MISSING)
        return rc;
    if (rc == 0 &&
        !s3_xml_text_parse(s3->call->answer, s3->call->got,
                           "ObjectLockConfiguration/ObjectLockEnabled", enabled, sizeof(enabled)))
        return err_set(err, ERR_STORE, "the server's answer about object lock cannot be read");
    if (rc == 0 && strcmp(enabled, "Enabled") == 0)
        return 0;
    (void)err_set(err, ERR_CONFIG, "lock_days is set, but bucket '%s' has no object lock",
                  s3->service->bucket);
    return err_hint(err, "object lock is chosen when a bucket is made: take one that was made with "
                         "it, or take lock_days out");
}

static void lock_until(struct store *store, int64_t until_s)
{
    of(store)->service->lock_until_s = until_s;
}

static int lock_read(struct store *store, const char *name, struct store_lock *ret, struct err *err)
{
    struct store_s3 *s3 = of(store);
    s3_call_look(s3->call, s3->service, name, monotonic_ms());
    int rc = store_s3_perform(s3, err);
    if (rc == 0)
        s3_call_read_lock(s3->call, ret);
    return rc;
}

/* Never weaker than it is: servers differ in whether they would refuse that. */
static int lock_extend(struct store *store, const char *name, int64_t until_s, bool *ret_extended,
                       struct err *err)
{
    struct store_s3 *s3 = of(store);
    struct store_lock lock;
    int rc = lock_read(store, name, &lock, err);
    if (rc < 0)
        return rc;
    *ret_extended = lock.until_s < until_s;
    if (!*ret_extended)
        return 0;
    enum store_lock_mode mode = s3->service->lock_mode;
    if (mode == STORE_LOCK_NONE || lock.mode == STORE_LOCK_COMPLIANCE)
        mode = lock.mode;
    if (mode == STORE_LOCK_NONE)
        return err_set(err, ERR_INTERNAL, "lock '%s': no mode is configured", name);
    s3_call_retain(s3->call, s3->service, name, mode, until_s, monotonic_ms());
    rc = store_s3_perform(s3, err);
    if (rc != -ERR_AUTH)
        return rc;
    /* Another node may have set a later date since, which ours would shorten. */
    struct err ignored;
    if (lock_read(store, name, &lock, &ignored) < 0 || lock.until_s < until_s)
        return rc;
    *ret_extended = false;
    err_clear(err);
    return 0;
}

const struct store_lock_ops store_s3_lock_ops = {
    .check = lock_check,
    .until = lock_until,
    .read = lock_read,
    .extend = lock_extend,
    .prepare_removes = store_s3_prepare_removes,
    .remove = store_s3_remove_versions,
    .list_hidden = store_s3_list_hidden,
};
