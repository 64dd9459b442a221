/* See lock.h. */
#include "agent/lock.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "agent/store_threads.h"
#include "agent/wal.h"

int lock_list_add(struct lock_list *list, const char *name, int64_t until_s, bool optional,
                  struct err *err)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 256;
        struct lock_wish *grown = realloc(list->items, capacity * sizeof(*grown));
        if (!grown)
            return err_set(err, ERR_INTERNAL, "out of memory for %zu objects", capacity);
        list->items = grown;
        list->capacity = capacity;
    }
    char *copy = strdup(name);
    if (!copy)
        return err_set(err, ERR_INTERNAL, "out of memory for a list of objects");
    list->items[list->count++] =
        (struct lock_wish){.name = copy, .until_s = until_s, .optional = optional};
    return 0;
}

void lock_list_release(struct lock_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->items[i].name);
    free(list->items);
    *list = (struct lock_list){.items = NULL};
}

/* --- hidden ----------------------------------------------------------------------------------- */

static int compare_wishes(const void *a, const void *b)
{
    return strcmp(((const struct lock_wish *)a)->name, ((const struct lock_wish *)b)->name);
}

static int compare_name(const void *name, const void *wish)
{
    return strcmp(name, ((const struct lock_wish *)wish)->name);
}

/* "pack/<volume>/", "wal/<cluster>/": those beside each other are listed together. */
static size_t group_len(const char *name)
{
    size_t len = strcspn(name, "/");
    if (name[len] == '/')
        len += 1 + strcspn(name + len + 1, "/");
    return len;
}

static int fail_hidden(const char *object, bool removed, struct err *err)
{
    return err_set(err, removed ? ERR_MISSING : ERR_CORRUPT,
                   "somebody %s '%.150s' in the bucket, which still has it as an older version",
                   removed ? "removed" : "replaced", object);
}

bool lock_may_be_twice(const struct store *store, const struct store_hidden *hidden)
{
    return !hidden->removed && store_keys(store) && strncmp(hidden->name, "wal/", 4) == 0;
}

/* wal/<cluster>/<system identifier>/<timeline>/<file> */
static bool parse_wal_object(const char *object, struct wal_archive *ret, const char **ret_file)
{
    const char *cluster = object + strlen("wal/"), *slash = strchr(cluster, '/');
    char *end;
    if (!slash || (size_t)(slash - cluster) >= sizeof(ret->cluster))
        return false;
    (void)snprintf(ret->cluster, sizeof(ret->cluster), "%.*s", (int)(slash - cluster), cluster);
    ret->system_id = strtoull(slash + 1, &end, 10);
    *ret_file = strrchr(object, '/') + 1;
    return *end == '/' && wal_name_valid(*ret_file, NULL);
}

int lock_check_twice(struct store *store, const struct repo *repo, const char *object,
                     struct err *err)
{
    struct wal_archive archive = {.store = store, .repo = repo};
    free_mem void *raw = NULL;
    const char *file;
    size_t len;
    if (!parse_wal_object(object, &archive, &file))
        return fail_hidden(object, false, err);
    int rc = wal_read(&archive, file, &raw, &len, err);
    return rc == -ERR_CORRUPT || rc == -ERR_AUTH ? fail_hidden(object, false, err) : rc;
}

struct search {
    struct store *store;
    const struct lock_list *list;
    struct lock_list twice; /* what may be so */
};

static int refuse_hidden(void *ctx, const struct store_hidden *hidden, struct err *err)
{
    struct search *search = ctx;
    const struct lock_list *list = search->list;
    if (!bsearch(hidden->name, list->items, list->count, sizeof(*list->items), compare_name))
        return 0;
    return lock_may_be_twice(search->store, hidden)
               ? lock_list_add(&search->twice, hidden->name, 0, false, err)
               : fail_hidden(hidden->name, hidden->removed, err);
}

int lock_check_hidden(struct store *store, const struct repo *repo, struct lock_list *list,
                      struct err *err)
{
    struct search search = {.store = store, .list = list};
    int rc = 0;
    if (list->count == 0)
        return 0;
    qsort(list->items, list->count, sizeof(*list->items), compare_wishes);
    for (size_t i = 0, end; rc == 0 && i < list->count; i = end) {
        const char *first = list->items[i].name, *last = first;
        char prefix[STORE_NAME_MAX + 1];
        size_t group = group_len(first), len = 0;
        for (end = i + 1; end < list->count && group_len(list->items[end].name) == group &&
                          memcmp(list->items[end].name, first, group) == 0;
             end++)
            last = list->items[end].name;
        while (first[len] && first[len] == last[len])
            len++;
        (void)snprintf(prefix, sizeof(prefix), "%.*s", (int)len, first);
        rc = store_list_hidden(store, prefix, refuse_hidden, &search, err);
    }
    for (size_t i = 0; rc == 0 && i < search.twice.count; i++)
        rc = lock_check_twice(store, repo, search.twice.items[i].name, err);
    lock_list_release(&search.twice);
    return rc;
}

/* --- extending -------------------------------------------------------------------------------- */

/* What the threads share. */
struct extending {
    const struct lock_list *list;
    const _Atomic bool *cancel;
    atomic_size_t next;
    atomic_uint_fast64_t extended;
    atomic_bool failed; /* nothing more is needed */
    pthread_mutex_t lock;
    size_t first_failed; /* under the lock, and err */
    struct err err;
};

static void note_failure(struct extending *extending, size_t index, const struct err *err)
{
    (void)pthread_mutex_lock(&extending->lock);
    if (index < extending->first_failed) {
        extending->first_failed = index;
        extending->err = *err;
    }
    (void)pthread_mutex_unlock(&extending->lock);
    atomic_store(&extending->failed, true);
}

static void extend_some(void *ctx, struct store *store)
{
    struct extending *extending = ctx;
    const struct lock_list *list = extending->list;
    for (size_t i; !atomic_load(&extending->failed) &&
                   (i = atomic_fetch_add(&extending->next, 1)) < list->count;) {
        const struct lock_wish *wish = &list->items[i];
        struct err err;
        bool extended = false;
        int rc = extending->cancel && atomic_load(extending->cancel)
                     ? err_set(&err, ERR_CANCELLED, "cancelled")
                     : store_extend_lock(store, wish->name, wish->until_s, &extended, &err);
        if (rc < 0 && !(rc == -ERR_MISSING && wish->optional))
            note_failure(extending, i, &err);
        atomic_fetch_add(&extending->extended, extended && rc == 0);
    }
}

int lock_extend_all(struct store *store, const struct lock_list *list, const _Atomic bool *cancel,
                    uint64_t *ret_extended, struct err *err)
{
    struct extending extending = {.list = list,
                                  .cancel = cancel,
                                  .lock = PTHREAD_MUTEX_INITIALIZER,
                                  .first_failed = SIZE_MAX};
    store_threads_run(store, list->count, extend_some, &extending);
    *ret_extended = atomic_load(&extending.extended);
    if (extending.first_failed == SIZE_MAX)
        return 0;
    *err = extending.err;
    return -(int)err->code;
}
