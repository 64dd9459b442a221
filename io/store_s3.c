/* The repository in an S3 bucket, client mode: one blocking operation at a time over one kept
 * connection, see store_s3.h. The rules of retrying are s3_judge.c's. */
#include "io/store_s3.h"

#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

#include "io/clock.h"
#include "io/http.h"
#include "io/s3_request.h"
#include "io/s3_xml.h"

enum {
    CONNECT_TIMEOUT_MS = 10000,
    GET_LEN_MAX = 17 << 20,    /* of one request: a segment of WAL and its head */
    LIST_ANSWER_MAX = 4 << 20, /* 1000 keys of 1 KiB, every byte as %XX */
    LIST_TRIES = 3,            /* of a page that arrived but cannot be read */
    LIST_EMPTY_MAX = 1000,     /* pages in a row without a key that say that more follow */
};

/* Written by store_prepare_puts(); stays where the key may not remove it. */
static const char probe_object[] = "probe/create-once";
static const char probe_text[] = "Whether this server honours If-None-Match: * on PUT.\n";

static struct store_s3 *of(struct store *store)
{
    return CONTAINER_OF(store, struct store_s3, store);
}

/* --- one operation -----------------------------------------------------------------------------*/
struct http_endpoint store_s3_endpoint(const struct s3_service *service, const char *origin)
{
    return (struct http_endpoint){
        .origin = origin,
        .ca_file = service->ca_file[0] ? service->ca_file : NULL,
        .connect_timeout_ms = (unsigned)min_u64(CONNECT_TIMEOUT_MS, service->stall_timeout_ms),
        .stall_timeout_ms = service->stall_timeout_ms,
    };
}

/* The origin changes when the server names another region of AWS. */
static int connect_to_origin(struct store_s3 *s3, struct err *err)
{
    char origin[S3_ORIGIN_MAX];
    s3_service_origin(s3->service, origin);
    if (s3->http != NULL && strcmp(origin, s3->origin) == 0)
        return 0;
    const struct http_endpoint endpoint = store_s3_endpoint(s3->service, origin);
    http_close(s3->http);
    s3->http = NULL;
    memcpy(s3->origin, origin, sizeof(origin));
    return http_open(&endpoint, &s3->http, err);
}

static bool is_cancelled(const struct store_s3 *s3)
{
    return s3->store.cancel != NULL && atomic_load(s3->store.cancel);
}

bool store_s3_pause(const struct store_s3 *s3, uint64_t ms)
{
    uint64_t until_ms = monotonic_ms() + ms;
    for (uint64_t now; (now = monotonic_ms()) < until_ms && !is_cancelled(s3);) {
        uint64_t slice = min_u64(until_ms - now, 100);
        struct timespec pause = {.tv_nsec = (long)slice * 1000000};
        (void)nanosleep(&pause, NULL);
    }
    return !is_cancelled(s3);
}

/* err holds why the try failed that is not repeated. */
static enum s3_verdict fail_cancelled(struct err *err)
{
    err->code = ERR_CANCELLED;
    (void)err_prefix(err, "cancelled while the store failed");
    return S3_FAILED;
}

/* Sends s3->call until its verdict is another than S3_AGAIN. */
static enum s3_verdict perform(struct store_s3 *s3, struct err *err)
{
    for (;;) {
        unsigned delay_ms = 0;
        if (connect_to_origin(s3, err) < 0)
            return S3_FAILED;
        s3_call_sign(s3->call, s3->service, time(NULL));
        s3->call->exchange.hurry = s3->store.cancel;
        http_run(s3->http, &s3->call->exchange);
        enum s3_verdict verdict =
            s3_call_judge(s3->call, s3->service, monotonic_ms(), time(NULL), &delay_ms, err);
        if (verdict != S3_AGAIN)
            return verdict;
        if (!store_s3_pause(s3, delay_ms))
            return fail_cancelled(err);
    }
}

int store_s3_perform(struct store_s3 *s3, struct err *err)
{
    enum s3_verdict verdict = perform(s3, err);
    if (verdict == S3_DONE)
        return 0;
    if (verdict == S3_FAILED || verdict == S3_ABSENT)
        return -(int)err->code;
    return err_set(err, ERR_INTERNAL, "verdict %d of an S3 operation", (int)verdict);
}

/* --- get, size ---------------------------------------------------------------------------------*/
static int s3_get(struct store *store, const char *name, uint64_t offset, void *buf, size_t len,
                  size_t *ret_len, uint64_t *ret_size, struct err *err)
{
    struct store_s3 *s3 = of(store);
    size_t got = 0;
    while (got < len) {
        size_t part = (size_t)min_u64(len - got, GET_LEN_MAX);
        s3_call_get(s3->call, s3->service, name, offset + got, (char *)buf + got, part,
                    monotonic_ms());
        int rc = store_s3_perform(s3, err);
        if (rc < 0)
            return rc;
        got += s3->call->got;
        if (ret_size != NULL)
            *ret_size = s3->call->object_size;
        if (s3->call->got < part)
            break;
    }
    *ret_len = got;
    return 0;
}

static int s3_size(struct store *store, const char *name, uint64_t *ret_size, struct err *err)
{
    struct store_s3 *s3 = of(store);
    s3_call_look(s3->call, s3->service, name, monotonic_ms());
    int rc = store_s3_perform(s3, err);
    if (rc == 0)
        *ret_size = s3->call->object_size;
    return rc;
}

static int s3_modified(struct store *store, const char *name, int64_t *ret_s, struct err *err)
{
    struct store_s3 *s3 = of(store);
    char text[64];
    struct tm utc = {0};
    s3_call_look(s3->call, s3->service, name, monotonic_ms());
    int rc = store_s3_perform(s3, err);
    if (rc < 0)
        return rc;
    if (http_header(&s3->call->exchange, "Last-Modified", text, sizeof(text)) == NULL ||
        strptime(text, "%a, %d %b %Y %H:%M:%S", &utc) == NULL)
        return err_set(err, ERR_STORE, "the server does not say how old '%s' is", name);
    *ret_s = (int64_t)timegm(&utc);
    return 0;
}

/* The first request brings the size and, of most objects, everything. */
static int s3_get_all(struct store *store, const char *name, size_t len_max, void **ret_buf,
                      size_t *ret_len, struct err *err)
{
    struct store_s3 *s3 = of(store);
    size_t first = (size_t)max_u64(1, min_u64(len_max, GET_LEN_MAX)), rest = 0;
    free_mem char *buf = malloc(first);
    if (buf == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory for object '%s'", name);
    s3_call_get(s3->call, s3->service, name, 0, buf, first, monotonic_ms());
    int rc = store_s3_perform(s3, err);
    uint64_t size = s3->call->object_size;
    size_t got = s3->call->got;
    if (rc < 0)
        return rc;
    if (size > len_max)
        return store_too_long(name, size, len_max, err);
    char *sized = realloc(buf, (size_t)size + 1);
    if (sized == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory for object '%s'", name);
    (void)take_ptr(&buf);
    buf = sized;
    if (got < size)
        rc = s3_get(store, name, got, buf + got, (size_t)size - got, &rest, NULL, err);
    if (rc < 0)
        return rc;
    if (got + rest != size)
        return err_set(err, ERR_STORE, "object '%s' became shorter while it was read", name);
    *ret_buf = take_ptr(&buf);
    *ret_len = (size_t)size;
    return 0;
}

/* --- put ---------------------------------------------------------------------------------------*/
/* 0 when the object holds exactly these bytes, STORE_EXISTS when it holds others. */
static int compare(struct store_s3 *s3, const char *name, const void *ptr, size_t len,
                   struct err *err)
{
    uint64_t size;
    free_mem uint8_t *buf = malloc(STORE_S3_COMPARE_LEN);
    if (buf == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    int rc = s3_size(&s3->store, name, &size, err);
    if (rc < 0)
        return rc;
    if (size != len)
        return STORE_EXISTS;
    for (size_t at = 0; at < len;) {
        size_t part = (size_t)min_u64(len - at, STORE_S3_COMPARE_LEN), got;
        rc = s3_get(&s3->store, name, at, buf, part, &got, NULL, err);
        if (rc < 0)
            return rc;
        if (got != part || memcmp(buf, (const uint8_t *)ptr + at, part) != 0)
            return STORE_EXISTS;
        at += part;
    }
    return 0;
}

/* 0 when there is no such object, STORE_EXISTS, or an error. */
static int look_first(struct store_s3 *s3, const char *name, struct err *err)
{
    uint64_t size;
    int rc = s3_size(&s3->store, name, &size, err);
    if (rc == -ERR_MISSING)
        return 0;
    return rc == 0 ? STORE_EXISTS : rc;
}

/* looked: the object was absent a moment ago. */
static int put(struct store_s3 *s3, const char *name, const void *ptr, size_t len, bool looked,
               struct err *err)
{
    for (;; looked = true) {
        bool sure = looked || s3->service->create_once == S3_CREATE_ONCE_YES;
        int rc = sure ? 0 : look_first(s3, name, err);
        if (rc != 0)
            return rc;
        s3_call_put(s3->call, s3->service, name, ptr, len, monotonic_ms());
        switch (perform(s3, err)) {
        case S3_DONE:
            return 0;
        case S3_COMPARE:
            rc = compare(s3, name, ptr, len, err);
            err->maybe_done = rc < 0; /* an object is there */
            return rc;
        case S3_UNCONDITIONAL:
            break; /* once: create_once is NO now */
        case S3_ABSENT:
        case S3_AGAIN:
        case S3_FAILED:
            return -(int)err->code;
        }
    }
}

static int s3_put(struct store *store, const char *name, const void *ptr, size_t len,
                  struct err *err)
{
    return put(of(store), name, ptr, len, false, err);
}

static int s3_put_absent(struct store *store, const char *name, const void *ptr, size_t len,
                         struct err *err)
{
    return put(of(store), name, ptr, len, true, err);
}

/* (Not in a bucket that locks: it would keep every probe, and radosgw honours the condition only
 * where no versions are kept.) Two PUTs of one name: a 412 proves that the server honours the
 * condition, a 501 that it does not know it. Where both succeed, or the key may not write here, the
 * question stays open and every put looks first. Somebody else's probe at the same moment cannot
 * make a wrong proof. */
static int s3_prepare_puts(struct store *store, struct err *err)
{
    struct store_s3 *s3 = of(store);
    struct err ignored;
    enum s3_verdict verdict = S3_DONE;
    bool ours = false;
    if (s3->probed || s3->service->lock_s > 0 || s3->service->create_once != S3_CREATE_ONCE_UNKNOWN)
        return 0;
    for (int i = 0; i < 2 && verdict == S3_DONE; i++) {
        s3_call_put(s3->call, s3->service, probe_object, probe_text, sizeof(probe_text) - 1,
                    monotonic_ms());
        verdict = perform(s3, err);
        ours = ours || verdict == S3_DONE;
    }
    if (verdict == S3_FAILED)
        return err->code == ERR_AUTH ? 0 : -(int)err->code;
    s3->probed = true;
    if (ours)
        (void)store_s3_remove(store, probe_object, &ignored);
    return 0;
}

/* Every answer has it, also that of an object which is not there. */
static int s3_clock(struct store *store, int64_t *ret_ms, struct err *err)
{
    struct store_s3 *s3 = of(store);
    time_t date;
    s3_call_look(s3->call, s3->service, "tidemark.repo", monotonic_ms());
    int rc = store_s3_perform(s3, err);
    if (rc < 0 && rc != -ERR_MISSING)
        return rc;
    *ret_ms = s3_call_date(s3->call, &date) ? (int64_t)date * 1000 : 0;
    return 0;
}

/* --- list --------------------------------------------------------------------------------------*/
struct listing {
    struct store_s3 *s3;
    const char *prefix;
    char last[STORE_NAME_MAX + 1]; /* the last name that was handed on */
    unsigned key_count;            /* of the page */
    int (*each)(void *ctx, const char *name, uint64_t size, struct err *err);
    void *ctx;
};

/* The key without the repository's prefix; NULL for a key that was not asked for. */
static const char *strip(const struct listing *listing, const char *key)
{
    const char *own = listing->s3->service->prefix;
    size_t len = strlen(own);
    if (strncmp(key, own, len) != 0)
        return NULL;
    return strncmp(key + len, listing->prefix, strlen(listing->prefix)) == 0 ? key + len : NULL;
}

static int check_key(void *ctx, const char *key, uint64_t size, struct err *err)
{
    struct listing *listing = ctx;
    (void)size;
    listing->key_count++;
    if (strip(listing, key) != NULL)
        return 0;
    return err_set(err, ERR_STORE, "the server lists '%.200s', which was not asked for", key);
}

/* What is not a name of ours was put there by somebody else. */
static int take_key(void *ctx, const char *key, uint64_t size, struct err *err)
{
    struct listing *listing = ctx;
    const char *name = strip(listing, key);
    if (name == NULL || !store_name_valid(name))
        return 0;
    if (strcmp(name, listing->last) <= 0)
        return err_set(err, ERR_STORE, "the server lists '%s' after '%s': not in order", name,
                       listing->last);
    (void)snprintf(listing->last, sizeof(listing->last), "%s", name);
    return listing->each(listing->ctx, name, size, err);
}

/* One page into buf, whole and readable before the first name is handed on. */
static int fetch_page(struct listing *listing, const char *token, char *buf,
                      struct s3_xml_page *ret, struct err *err)
{
    struct store_s3 *s3 = listing->s3;
    int rc = 0;
    for (int i = 0; i < LIST_TRIES; i++) {
        s3_call_list(s3->call, s3->service, listing->prefix, token, S3_LIST_MAX, buf,
                     LIST_ANSWER_MAX, monotonic_ms());
        rc = store_s3_perform(s3, err);
        if (rc < 0)
            return rc;
        listing->key_count = 0;
        rc = s3_xml_list_parse(buf, s3->call->got, check_key, listing, ret, err);
        if (rc == 0)
            break;
    }
    return rc;
}

static int list_pages(struct listing *listing, char *buf, struct s3_xml_page *page, struct err *err)
{
    char token[S3_TOKEN_MAX + 1] = "";
    unsigned empty_count = 0;
    do {
        int rc = fetch_page(listing, token, buf, page, err);
        if (rc < 0)
            return rc;
        empty_count = listing->key_count > 0 ? 0 : empty_count + 1;
        rc = s3_xml_list_parse(buf, listing->s3->call->got, take_key, listing, page, err);
        if (rc != 0)
            return rc;
        if (page->truncated && (strcmp(page->token, token) == 0 || empty_count >= LIST_EMPTY_MAX))
            return err_set(err, ERR_STORE, "the server's list of '%s' does not go on",
                           listing->prefix);
        memcpy(token, page->token, sizeof(token));
    } while (page->truncated);
    return 0;
}

/* each() may use another store, but not this one: the page is s3->call's. */
static int s3_list(struct store *store, const char *prefix,
                   int (*each)(void *ctx, const char *name, uint64_t size, struct err *err),
                   void *ctx, struct err *err)
{
    struct listing listing = {.s3 = of(store), .prefix = prefix, .each = each, .ctx = ctx};
    free_mem char *buf = malloc(LIST_ANSWER_MAX);
    free_mem struct s3_xml_page *page = malloc(sizeof(*page));
    if (buf == NULL || page == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    return list_pages(&listing, buf, page, err);
}

/* --- open, close -------------------------------------------------------------------------------*/
static void s3_close(struct store *store)
{
    struct store_s3 *s3 = of(store);
    http_close(s3->http);
    s3_service_close(s3->service);
    free(s3->call);
}

/* With all that is known about the server, and a connection of its own. */
static int s3_clone(struct store *store, struct store **ret, struct err *err)
{
    struct store_s3 *clone = calloc(1, sizeof(*clone));
    if (clone == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    clone->store.ops = &store_s3_ops;
    clone->call = calloc(1, sizeof(*clone->call));
    int rc = clone->call ? s3_service_copy(of(store)->service, &clone->service, err)
                         : err_set(err, ERR_INTERNAL, "out of memory");
    if (rc < 0) {
        free(clone->call);
        free(clone);
        return rc;
    }
    *ret = &clone->store;
    return 0;
}

const struct store_ops store_s3_ops = {
    .scheme = "s3://",
    .put = s3_put,
    .put_absent = s3_put_absent,
    .get = s3_get,
    .get_all = s3_get_all,
    .size = s3_size,
    .modified = s3_modified,
    .list = s3_list,
    .remove = store_s3_remove,
    .remove_many = store_s3_remove_many,
    .clone = s3_clone,
    .prepare_puts = s3_prepare_puts,
    .clock = s3_clock,
    .lock = &store_s3_lock_ops,
    .close = s3_close,
    .lane_depth = 32,
    .lane_shape = store_s3_lane_shape,
    .lane_open = store_s3_lane_open,
    .lane_stop = store_s3_lane_stop,
    .lane_close = store_s3_lane_close,
    .lane_put = store_s3_lane_put,
    .lane_get = store_s3_lane_get,
};

int store_s3_open(const char *address, const struct store_options *options, bool create,
                  struct store **ret, struct err *err)
{
    (void)create; /* making buckets needs other rights than using them */
    struct store_s3 *s3 = calloc(1, sizeof(*s3));
    if (s3 == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    s3->store.ops = &store_s3_ops;
    s3->call = calloc(1, sizeof(*s3->call));
    int rc = s3->call ? s3_service_open(address, options->s3, &s3->service, err)
                      : err_set(err, ERR_INTERNAL, "out of memory");
    if (rc < 0) {
        free(s3->call);
        free(s3);
        return rc;
    }
    s3->watch.notice = options->notice;
    s3->watch.notice_ctx = options->notice_ctx;
    s3->service->watch = &s3->watch;
    *ret = &s3->store;
    return 0;
}
