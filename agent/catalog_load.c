/* See catalog_load.h. */
#include "agent/catalog_load.h"

#include <pthread.h>
#include <stdatomic.h>

#include "agent/store_threads.h"

/* --- one record --------------------------------------------------------------------------------*/
/* The object's bytes must be an envelope of this repository and snapshot around a good record of
 * this cluster and node. */
static int decode_record(const void *buf, size_t len, const struct repo *repo,
                         const struct catalog_name *name, struct record *ret, struct err *err)
{
    struct fmt_header header;
    const char *text;
    size_t text_len;
    int rc = fmt_json_decode(buf, len, FMT_JSON_RECORD, repo->id, &header, &text, &text_len, err);
    if (rc < 0)
        return rc;
    if (memcmp(header.snapshot, name->id, ID_LEN) != 0)
        return err_set(err, ERR_CORRUPT, "the object belongs to another snapshot");
    free_json json_t *json = NULL;
    rc = json_parse(text, text_len, ERR_CORRUPT, &json, err);
    if (rc < 0)
        return rc;
    rc = record_from_json(json, ret, err);
    if (rc < 0)
        return rc;
    if (memcmp(ret->id, name->id, ID_LEN) == 0 && strcmp(ret->cluster, name->cluster) == 0 &&
        strcmp(ret->node, name->node) == 0)
        return 0;
    record_release(ret);
    return err_set(err, ERR_CORRUPT, "the record is another snapshot's");
}

static int read_record_once(struct store *store, const struct repo *repo,
                            const struct catalog_name *name, struct record *ret, struct err *err)
{
    char object[STORE_NAME_MAX + 1];
    free_mem void *buf = NULL;
    size_t len;
    repo_record_name(object, name->cluster, name->node, name->id);
    int rc = store_get_all(store, object, CATALOG_RECORD_LEN_MAX, &buf, &len, err);
    if (rc < 0)
        return rc;
    rc = decode_record(buf, len, repo, name, ret, err);
    if (rc == -ERR_CORRUPT)
        (void)err_hint(err, "this snapshot cannot be restored; `tidemark list` shows the others");
    return rc < 0 ? err_prefix(err, "%s", object) : 0;
}

int catalog_read_record(struct store *store, const struct repo *repo,
                        const struct catalog_name *name, struct record *ret, struct err *err)
{
    int rc = -ERR_CORRUPT;
    for (unsigned i = 0; rc == -ERR_CORRUPT && i < STORE_READ_TRIES; i++)
        rc = read_record_once(store, repo, name, ret, err);
    return rc;
}

/* --- many records ------------------------------------------------------------------------------*/
void catalog_records_release(struct catalog_records *records)
{
    for (size_t i = 0; i < records->count; i++)
        record_release(&records->items[i]);
    free(records->items);
    records->items = NULL;
    records->count = 0;
}

static struct record_age age_of(const struct record *record)
{
    return (struct record_age){record->captured_s, record->timeline, record->tag_lsn,
                               record->committed_s};
}

static int compare_age(const void *a, const void *b)
{
    const struct record *left = a, *right = b;
    struct record_age left_age = age_of(left), right_age = age_of(right);
    int order = record_age_compare(&left_age, &right_age);
    return order ? order : memcmp(left->id, right->id, ID_LEN);
}

/* What the threads share; results[i] and records[i] belong to whoever took i. */
struct loading {
    const struct repo *repo;
    const struct catalog_name *names;
    size_t count;
    struct record *records;
    int *results;
    atomic_size_t next;
    atomic_bool failed; /* nothing more is needed */
    pthread_mutex_t lock;
    /* under the lock */
    size_t damaged, first_damaged, first_failed; /* the latter two: index, SIZE_MAX = none */
    char damaged_text[sizeof(((struct err *)0)->text)];
    struct err err;
};

/* Which error is told does not depend on the order of the threads, as far as that can be. */
static void note_failure(struct loading *loading, size_t index, int rc, const struct err *err)
{
    (void)pthread_mutex_lock(&loading->lock);
    if (rc == -ERR_CORRUPT || rc == -ERR_REFUSED) {
        loading->damaged++;
        if (index < loading->first_damaged) {
            loading->first_damaged = index;
            memcpy(loading->damaged_text, err->text, sizeof(loading->damaged_text));
        }
    } else if (index < loading->first_failed) {
        loading->first_failed = index;
        loading->err = *err;
        atomic_store(&loading->failed, true);
    }
    (void)pthread_mutex_unlock(&loading->lock);
}

static void load_some(void *ctx, struct store *store)
{
    struct loading *loading = ctx;
    for (size_t i; !atomic_load(&loading->failed) &&
                   (i = atomic_fetch_add(&loading->next, 1)) < loading->count;) {
        struct err err;
        int rc = catalog_read_record(store, loading->repo, &loading->names[i], &loading->records[i],
                                     &err);
        loading->results[i] = rc;
        if (rc < 0 && rc != -ERR_MISSING)
            note_failure(loading, i, rc, &err);
    }
}

/* Good records to the front, oldest first. */
static void collect(struct loading *loading, struct catalog_records *ret)
{
    for (size_t i = 0; i < loading->count; i++)
        if (loading->results[i] == 0)
            loading->records[ret->count++] = loading->records[i];
    ret->items = loading->records;
    ret->damaged = loading->damaged;
    memcpy(ret->first_damaged, loading->damaged_text, sizeof(ret->first_damaged));
    qsort(ret->items, ret->count, sizeof(*ret->items), compare_age);
}

int catalog_load(struct store *store, const struct repo *repo, const struct catalog_name *names,
                 size_t count, struct catalog_records *ret, struct err *err)
{
    struct loading loading = {.repo = repo,
                              .names = names,
                              .count = count,
                              .lock = PTHREAD_MUTEX_INITIALIZER,
                              .first_damaged = SIZE_MAX,
                              .first_failed = SIZE_MAX};
    free_mem int *results = malloc((count + 1) * sizeof(*results));
    loading.records = calloc(count + 1, sizeof(*loading.records));
    loading.results = results;
    if (!results || !loading.records) {
        free(loading.records);
        return err_set(err, ERR_INTERNAL, "out of memory for %zu snapshot records", count);
    }
    for (size_t i = 0; i < count; i++)
        results[i] = -ERR_MISSING; /* not taken */
    store_threads_run(store, count, load_some, &loading);
    collect(&loading, ret);
    if (loading.first_failed == SIZE_MAX) {
        err_clear(err);
        return 0;
    }
    catalog_records_release(ret);
    *err = loading.err;
    return -(int)err->code;
}
