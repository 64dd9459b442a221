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
    ENTRY_MAX = 1200, /* one key and its tags in a batch, S3_KEY_MAX bytes of it the key */
    ERROR_MAX = 1800, /* one key that was not removed, with code and message, in the answer */
};

struct removal {
    struct store_s3 *s3;
    const char **names; /* of this round; the first `failed` are to be tried again */
    size_t count, failed;
    struct s3_xml_error why; /* of the last of them */
};

int store_s3_remove(struct store *store, const char *name, struct err *err)
{
    struct store_s3 *s3 = CONTAINER_OF(store, struct store_s3, store);
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

/* Moves the key to those that are tried again; false when nobody asked for it. */
static bool mark_failed(struct removal *removal, const char *key)
{
    const char *own = removal->s3->service->prefix;
    size_t own_len = strlen(own);
    if (strncmp(key, own, own_len) != 0)
        return false;
    for (size_t i = 0; i < removal->count; i++) {
        const char *name = removal->names[i];
        if (strcmp(name, key + own_len) != 0)
            continue;
        if (i < removal->failed) /* the server says it twice */
            return true;
        removal->names[i] = removal->names[removal->failed];
        removal->names[removal->failed++] = name;
        return true;
    }
    return false;
}

static int not_removed(void *ctx, const char *key, const struct s3_xml_error *why, struct err *err)
{
    struct removal *removal = ctx;
    if (strcmp(why->code, "NoSuchKey") == 0)
        return 0;
    if (!s3_code_passes(why->code) || !mark_failed(removal, key))
        return say(key, why, err);
    removal->why = *why;
    return 0;
}

static bool add_entry(const struct store_s3 *s3, const char *name, char *body, size_t size)
{
    char key[S3_PREFIX_MAX + STORE_NAME_MAX + 2];
    size_t at = strlen(body);
    (void)snprintf(key, sizeof(key), "%s%s", s3->service->prefix, name);
    (void)snprintf(body + at, size - at, "<Object><Key>");
    if (!s3_xml_escape(key, body, size))
        return false;
    at = strlen(body);
    int len = snprintf(body + at, size - at, "</Key></Object>");
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
        if (!add_entry(s3, removal->names[i], body, size))
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
    (void)snprintf(key, sizeof(key), "%s%s", removal->s3->service->prefix, removal->names[0]);
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

int store_s3_remove_many(struct store *store, const char *const *names, size_t count,
                         struct err *err)
{
    size_t batch_max = (size_t)min_u64(count, S3_BATCH_MAX);
    free_mem const char **batch = malloc((batch_max + 1) * sizeof(*batch));
    if (batch == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    for (size_t i = 0; i < count; i += S3_BATCH_MAX) {
        struct removal removal = {.s3 = CONTAINER_OF(store, struct store_s3, store),
                                  .names = batch,
                                  .count = (size_t)min_u64(count - i, S3_BATCH_MAX)};
        memcpy(batch, names + i, removal.count * sizeof(*batch));
        int rc = remove_batch(&removal, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}
