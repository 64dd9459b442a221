/* Removing objects of an S3 bucket, one or a batch: client mode, see store_s3.h.
 *
 * The answer to a batch is 200 with an error for each key that is still there. Those that pass by
 * themselves (InternalError, SlowDown, …) are tried again, in batches of what is left, like any
 * request: with growing, random pauses for retry_timeout. */
#include "io/store_s3.h"

#include <stdio.h>

#include "io/clock.h"
#include "io/s3_request.h"
#include "io/s3_xml.h"

enum {
    ENTRY_MAX = 2400, /* one key, its version and their tags in a batch */
    ERROR_MAX = 3000, /* one that was not removed, with code and message, in the answer */
};

struct removal {
    struct store_s3 *s3;
    struct s3_target *targets; /* of this round; the first `failed` are to be tried again */
    size_t count, failed;
    bool may_refuse;
    struct s3_xml_error why; /* of the last that failed */
};

static int no_lock(void *ctx, const char *name, int64_t until_s, struct err *err)
{
    char date[S3_DATE_LEN];
    (void)ctx;
    if (until_s == STORE_LOCK_HELD)
        return err_set(err, ERR_REFUSED, "'%s' is under a legal hold", name);
    s3_date_format(until_s, date);
    (void)err_set(err, ERR_REFUSED, "'%s' is locked until %s", name, date);
    return err_hint(err,
                    "a default retention of the bucket locks marks, too: take it off, lock_days "
                    "does without");
}

int store_s3_remove(struct store *store, const char *name, struct err *err)
{
    struct store_s3 *s3 = CONTAINER_OF(store, struct store_s3, store);
    if (s3->keeps_versions)
        return store_s3_remove_versions(store, &name, 1, no_lock, NULL, err);
    s3_call_delete(s3->call, s3->service, name, monotonic_ms());
    return store_s3_perform(s3, err);
}

/* --- one round ---------------------------------------------------------------------------------*/
static int say(const char *key, const struct s3_xml_error *why, struct err *err)
{
    enum err_code code = strcmp(why->code, "AccessDenied") == 0 ? ERR_AUTH : ERR_STORE;
    return err_set(err, code, "remove '%.200s': the server answered %s (%s)", key, why->code,
                   why->message);
}

static const char *own_name(const struct removal *removal, const char *key)
{
    const char *own = removal->s3->service->prefix;
    size_t own_len = strlen(own);
    return strncmp(key, own, own_len) == 0 ? key + own_len : NULL;
}

/* Moves what has this name to those that are tried again, with versions all of them; false when
 * nobody asked for it. */
static bool mark_failed(struct removal *removal, const char *name)
{
    bool found = false;
    for (size_t i = 0; i < removal->count; i++) {
        struct s3_target target = removal->targets[i];
        if (strcmp(target.name, name) != 0)
            continue;
        found = true;
        if (i < removal->failed) /* the server says it twice */
            continue;
        removal->targets[i] = removal->targets[removal->failed];
        removal->targets[removal->failed++] = target;
    }
    return found;
}

static bool mark_refused(struct removal *removal, const char *name)
{
    bool found = false;
    for (size_t i = 0; i < removal->count; i++)
        if (strcmp(removal->targets[i].name, name) == 0)
            removal->targets[i].refused = found = true;
    return found;
}

static int not_removed(void *ctx, const char *key, const struct s3_xml_error *why, struct err *err)
{
    struct removal *removal = ctx;
    const char *name = own_name(removal, key);
    if (strcmp(why->code, "NoSuchKey") == 0 || strcmp(why->code, "NoSuchVersion") == 0)
        return 0;
    if (name && removal->may_refuse && strcmp(why->code, "AccessDenied") == 0 &&
        mark_refused(removal, name))
        return 0;
    if (!name || !s3_code_passes(why->code) || !mark_failed(removal, name))
        return say(key, why, err);
    removal->why = *why;
    return 0;
}

static bool add_entry(const struct store_s3 *s3, const struct s3_target *target, char *body,
                      size_t size)
{
    char key[S3_PREFIX_MAX + STORE_NAME_MAX + 2];
    size_t at = strlen(body);
    (void)snprintf(key, sizeof(key), "%s%s", s3->service->prefix, target->name);
    (void)snprintf(body + at, size - at, "<Object><Key>");
    if (!s3_xml_escape(key, body, size))
        return false;
    at = strlen(body);
    (void)snprintf(body + at, size - at, "</Key>%s", target->version ? "<VersionId>" : "");
    if (target->version && !s3_xml_escape(target->version, body, size))
        return false;
    at = strlen(body);
    int len = snprintf(body + at, size - at, "%s</Object>", target->version ? "</VersionId>" : "");
    return len > 0 && (size_t)len < size - at;
}

/* Afterwards removal->failed says how many are left. */
static int round_of(struct removal *removal, struct err *err)
{
    struct store_s3 *s3 = removal->s3;
    size_t size = 64 + removal->count * ENTRY_MAX;
    size_t answer_size = 4096 + removal->count * ERROR_MAX;
    free_mem char *body = malloc(size);
    free_mem char *answer = malloc(answer_size);
    if (body == NULL || answer == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    (void)snprintf(body, size, "<Delete><Quiet>true</Quiet>");
    for (size_t i = 0; i < removal->count; i++)
        if (!add_entry(s3, &removal->targets[i], body, size))
            return err_set(err, ERR_INTERNAL, "a batch of deletes does not fit");
    size_t at = strlen(body);
    (void)snprintf(body + at, size - at, "</Delete>");
    s3_call_delete_batch(s3->call, s3->service, body, at + strlen("</Delete>"), answer, answer_size,
                         monotonic_ms());
    int rc = store_s3_perform(s3, err);
    return rc < 0 ? rc : s3_xml_delete_parse(answer, s3->call->got, not_removed, removal, err);
}

/* --- all of them -------------------------------------------------------------------------------*/
static int give_up(const struct removal *removal, unsigned tries, uint64_t took_ms, struct err *err)
{
    char key[S3_PREFIX_MAX + STORE_NAME_MAX + 2], reason[sizeof(err->text)];
    (void)snprintf(key, sizeof(key), "%s%s", removal->s3->service->prefix,
                   removal->targets[0].name);
    int rc = say(key, &removal->why, err);
    memcpy(reason, err->text, sizeof(reason));
    (void)snprintf(err->text, sizeof(err->text),
                   "%.500s; gave up with %zu objects left after %u tries in %.1f s", reason,
                   removal->failed, tries, (double)took_ms / 1000);
    (void)err_hint(err, "the server goes on failing: see its own log, or raise retry_timeout");
    return rc;
}

static int remove_batch(struct removal *removal, struct err *err)
{
    const struct s3_service *service = removal->s3->service;
    uint64_t start_ms = monotonic_ms(), random = service->seed ^ start_ms;
    for (unsigned tries = 1;; tries++) {
        removal->failed = 0;
        int rc = round_of(removal, err);
        if (rc < 0 || removal->failed == 0)
            return rc;
        uint64_t took_ms = monotonic_ms() - start_ms;
        if (took_ms >= service->retry_timeout_ms)
            return give_up(removal, tries, took_ms, err);
        removal->count = removal->failed;
        if (!store_s3_pause(removal->s3, min_u64(s3_backoff_ms(tries, &random),
                                                 service->retry_timeout_ms - took_ms)))
            return err_set(err, ERR_CANCELLED, "cancelled while objects were removed");
    }
}

int store_s3_remove_targets(struct store_s3 *s3, struct s3_target *targets, size_t count,
                            bool may_refuse, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < count; i += S3_BATCH_MAX) {
        struct removal removal = {.s3 = s3,
                                  .targets = targets + i,
                                  .count = (size_t)min_u64(count - i, S3_BATCH_MAX),
                                  .may_refuse = may_refuse};
        rc = remove_batch(&removal, err);
    }
    return rc;
}

int store_s3_remove_many(struct store *store, const char *const *names, size_t count,
                         struct err *err)
{
    struct store_s3 *s3 = CONTAINER_OF(store, struct store_s3, store);
    if (s3->keeps_versions)
        return store_s3_remove_versions(store, names, count, no_lock, NULL, err);
    free_mem struct s3_target *targets = calloc(count + 1, sizeof(*targets));
    if (targets == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    for (size_t i = 0; i < count; i++)
        targets[i].name = names[i];
    return store_s3_remove_targets(s3, targets, count, false, err);
}
