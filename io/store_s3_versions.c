/* Buckets that keep versions: removing all of an object, and finding what is hidden. Client mode,
 * see store_lock.h. */
#include "io/store_s3.h"

#include <stdio.h>

#include "io/clock.h"
#include "io/s3_request.h"
#include "io/s3_xml.h"

enum {
    PAGE_ANSWER_MAX = 4 << 20, /* 1000 versions */
    PAGE_TRIES = 3,            /* of a page that arrived but cannot be read */
};

static struct store_s3 *of(struct store *store)
{
    return CONTAINER_OF(store, struct store_s3, store);
}

/* "" and "Suspended": versions there are may be old ones, but nothing can be locked. */
int store_s3_prepare_removes(struct store *store, struct err *err)
{
    struct store_s3 *s3 = of(store);
    char status[16];
    if (s3->asked_versions)
        return 0;
    s3_call_ask(s3->call, s3->service, "versioning", monotonic_ms());
    int rc = store_s3_perform(s3, err);
    if (rc < 0)
        return rc;
    if (!s3_xml_text_parse(s3->call->answer, s3->call->got, "VersioningConfiguration/Status",
                           status, sizeof(status)))
        return err_set(err, ERR_STORE, "the server's answer about versions cannot be read");
    s3->asked_versions = true;
    s3->keeps_versions = strcmp(status, "Enabled") == 0;
    return 0;
}

/* --- listing ---------------------------------------------------------------------------------- */

/* Of one repository; names are ours, what is not one of ours is left out. */
struct walk {
    struct store_s3 *s3;
    int (*each)(void *ctx, const char *name, const struct s3_xml_version *version, struct err *err);
    void *ctx;
};

static int walk_one(void *ctx, const struct s3_xml_version *version, struct err *err)
{
    const struct walk *walk = ctx;
    const char *own = walk->s3->service->prefix;
    size_t own_len = strlen(own);
    if (strncmp(version->key, own, own_len) != 0 || !store_name_valid(version->key + own_len))
        return 0;
    return walk->each(walk->ctx, version->key + own_len, version, err);
}

static int skip(void *ctx, const struct s3_xml_version *version, struct err *err)
{
    (void)ctx, (void)version, (void)err;
    return 0;
}

static int fetch_page(struct walk *walk, const char *prefix,
                      const struct s3_xml_versions_page *before, char *buf,
                      struct s3_xml_versions_page *ret, struct err *err)
{
    struct store_s3 *s3 = walk->s3;
    int rc = 0;
    for (int i = 0; i < PAGE_TRIES; i++) {
        s3_call_list_versions(s3->call, s3->service, prefix, before->key_marker,
                              before->version_marker, buf, PAGE_ANSWER_MAX, monotonic_ms());
        rc = store_s3_perform(s3, err);
        if (rc < 0)
            return rc;
        rc = s3_xml_versions_parse(buf, s3->call->got, skip, NULL, ret, err);
        if (rc == 0)
            break;
    }
    return rc;
}

/* each() may not use this store: the page is s3->call's. */
static int list_versions(struct walk *walk, const char *prefix, struct err *err)
{
    free_mem char *buf = malloc(PAGE_ANSWER_MAX);
    free_mem struct s3_xml_versions_page *pages = calloc(2, sizeof(*pages));
    if (buf == NULL || pages == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    do {
        int rc = fetch_page(walk, prefix, &pages[0], buf, &pages[1], err);
        if (rc == 0)
            rc = s3_xml_versions_parse(buf, walk->s3->call->got, walk_one, walk, &pages[1], err);
        if (rc != 0)
            return rc;
        if (pages[1].truncated && strcmp(pages[0].key_marker, pages[1].key_marker) == 0 &&
            strcmp(pages[0].version_marker, pages[1].version_marker) == 0)
            return err_set(err, ERR_STORE, "the server's list of versions does not go on");
        pages[0] = pages[1];
    } while (pages[0].truncated);
    return 0;
}

/* --- removing --------------------------------------------------------------------------------- */

struct collection {
    const char **names; /* sorted */
    size_t name_count;
    struct s3_target *targets;
    size_t count, capacity;
};

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int collect(void *ctx, const char *name, const struct s3_xml_version *version,
                   struct err *err)
{
    struct collection *all = ctx;
    const char **found =
        bsearch(&name, all->names, all->name_count, sizeof(*all->names), compare_names);
    if (found == NULL)
        return 0;
    if (all->count == all->capacity) {
        size_t capacity = all->capacity ? 2 * all->capacity : 256;
        struct s3_target *grown = realloc(all->targets, capacity * sizeof(*grown));
        if (grown == NULL)
            return err_set(err, ERR_INTERNAL, "out of memory for %zu versions", capacity);
        all->targets = grown;
        all->capacity = capacity;
    }
    char *copy = strdup(version->version);
    if (copy == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    all->targets[all->count++] =
        (struct s3_target){.name = *found, .version = copy, .is_marker = version->is_marker};
    return 0;
}

static void common_prefix(const struct collection *all, char ret[STORE_NAME_MAX + 1])
{
    const char *first = all->names[0], *last = all->names[all->name_count - 1];
    size_t len = 0;
    while (first[len] && first[len] == last[len])
        len++;
    (void)snprintf(ret, STORE_NAME_MAX + 1, "%.*s", (int)len, first);
}

/* When the last lock of this name, one of all->names, ends (STORE_LOCK_HELD); 0: none of its
 * versions has one. What other names point to may be gone by now. */
static int read_locks(struct store_s3 *s3, const struct collection *all, const char *name,
                      int64_t *ret_s, struct err *err)
{
    *ret_s = 0;
    for (size_t i = 0; i < all->count; i++) {
        const struct s3_target *target = &all->targets[i];
        struct store_lock lock;
        if (target->name != name || target->is_marker)
            continue;
        s3_call_look_version(s3->call, s3->service, name, target->version, monotonic_ms());
        int rc = store_s3_perform(s3, err);
        if (rc == -ERR_MISSING) /* it was not this one */
            continue;
        if (rc < 0)
            return rc;
        s3_call_read_lock(s3->call, &lock);
        if (lock.held)
            lock.until_s = STORE_LOCK_HELD;
        if (lock.until_s > *ret_s)
            *ret_s = lock.until_s;
    }
    return 0;
}

static int judge_refused(struct store_s3 *s3, const struct collection *all,
                         int (*locked)(void *ctx, const char *name, int64_t until_s,
                                       struct err *err),
                         void *ctx, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < all->name_count; i++) {
        bool refused = false;
        int64_t until_s;
        for (size_t j = 0; j < all->count && !refused; j++)
            refused = all->targets[j].refused && all->targets[j].name == all->names[i];
        if (!refused)
            continue;
        rc = read_locks(s3, all, all->names[i], &until_s, err);
        if (rc == 0 && until_s == 0)
            rc = err_set(err, ERR_AUTH,
                         "remove '%.200s' with its versions: the server answered AccessDenied, and "
                         "no lock is to be seen",
                         all->names[i]);
        else if (rc == 0)
            rc = locked(ctx, all->names[i], until_s, err);
    }
    return rc;
}

int store_s3_remove_versions(struct store *store, const char *const *names, size_t count,
                             int (*locked)(void *ctx, const char *name, int64_t until_s,
                                           struct err *err),
                             void *ctx, struct err *err)
{
    struct store_s3 *s3 = of(store);
    char prefix[STORE_NAME_MAX + 1];
    if (count == 0)
        return 0;
    if (!s3->keeps_versions)
        return store_s3_remove_many(store, names, count, err);
    free_mem const char **sorted = malloc(count * sizeof(*sorted));
    if (sorted == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    memcpy(sorted, names, count * sizeof(*sorted));
    qsort(sorted, count, sizeof(*sorted), compare_names);
    struct collection all = {.names = sorted, .name_count = count};
    struct walk walk = {.s3 = s3, .each = collect, .ctx = &all};
    common_prefix(&all, prefix);
    int rc = list_versions(&walk, prefix, err);
    if (rc == 0)
        rc = store_s3_remove_targets(s3, all.targets, all.count, true, err);
    if (rc == 0)
        rc = judge_refused(s3, &all, locked, ctx, err);
    for (size_t i = 0; i < all.count; i++)
        free(all.targets[i].version);
    free(all.targets);
    return rc;
}

/* --- what is hidden --------------------------------------------------------------------------- */

struct hiding {
    char name[STORE_NAME_MAX + 1]; /* the one at hand, "" = none */
    bool newest_is_marker;
    bool has_object, differ; /* some version is no marker; the oldest such is not as the newest */
    char etag[64];           /* of the newest that is none */
    int (*each)(void *ctx, const struct store_hidden *hidden, struct err *err);
    void *ctx;
};

/* The same bytes twice come from a put whose answer was lost, or were put over what hid them. */
static int tell_hidden(struct hiding *hiding, struct err *err)
{
    struct store_hidden hidden = {.name = hiding->name, .removed = hiding->newest_is_marker};
    if ((hiding->newest_is_marker ? hiding->has_object : hiding->differ) &&
        store_locks(hiding->name))
        return hiding->each(hiding->ctx, &hidden, err);
    return 0;
}

static int note_version(void *ctx, const char *name, const struct s3_xml_version *version,
                        struct err *err)
{
    struct hiding *hiding = ctx;
    int rc = 0;
    if (strcmp(name, hiding->name) != 0) {
        rc = tell_hidden(hiding, err);
        (void)snprintf(hiding->name, sizeof(hiding->name), "%s", name);
        hiding->newest_is_marker = version->is_marker;
        hiding->has_object = hiding->differ = false;
    }
    if (version->is_marker)
        return rc;
    if (!hiding->has_object)
        memcpy(hiding->etag, version->etag, sizeof(hiding->etag));
    hiding->differ = hiding->has_object &&
                     (version->etag[0] == '\0' || strcmp(version->etag, hiding->etag) != 0);
    hiding->has_object = true;
    return rc;
}

int store_s3_list_hidden(struct store *store, const char *prefix,
                         int (*each)(void *ctx, const struct store_hidden *hidden, struct err *err),
                         void *ctx, struct err *err)
{
    struct store_s3 *s3 = of(store);
    struct hiding hiding = {.each = each, .ctx = ctx};
    struct walk walk = {.s3 = s3, .each = note_version, .ctx = &hiding};
    int rc = list_versions(&walk, prefix, err);
    return rc == 0 ? tell_hidden(&hiding, err) : rc;
}
