/* See cluster_archive.h. Names are never written twice: a copy has a number of its own, and where
 * two coordinators have the same epoch their names differ by the writer. */
#include "agent/cluster_archive.h"

#include <inttypes.h>
#include <stdio.h>

#include "agent/log.h"
#include "agent/repository.h"
#include "io/format.h"
#include "io/hash.h"

enum { NOTE_TIMEOUT_S = 10, NAME_TRIES = 64 };

/* --- writing ---------------------------------------------------------------------------------- */

/* Its name and its bytes are taken together: copies do not overtake one another. */
static void take_copy(struct cluster_restore *all, const char *state, bool over,
                      struct cluster_copy_id *ret_id, json_t **ret)
{
    json_t *journal = all->job->journal;
    (void)pthread_mutex_lock(&all->mutex);
    json_int_t number = json_integer_value(json_object_get(journal, "copies")) + 1;
    (void)json_object_set_new(journal, "copies", json_integer(number));
    *ret_id = (struct cluster_copy_id){.epoch = (uint32_t)all->epoch,
                                       .number = over ? CLUSTER_COPY_OVER : (uint32_t)number};
    (void)snprintf(ret_id->job, sizeof(ret_id->job), "%s", all->job->id);
    (void)snprintf(ret_id->writer, sizeof(ret_id->writer), "%.*s", CLUSTER_WRITER_LEN, all->token);
    free_json json_t *told = json_copy(journal);
    (void)json_object_set_new(told, "state", json_string(state));
    if (!json_object_get(told, "step"))
        (void)json_object_set_new(told, "step", json_string("none"));
    *ret = cluster_copy_make(ret_id, all->job->conf.cluster, all->coordinator, all->job->request,
                             told);
    (void)pthread_mutex_unlock(&all->mutex);
}

/* A name that is there already is that of a copy which our own journal does not know any more: we
 * died before it was written. */
static int put(struct store *store, const struct repo *repo, const char *cluster,
               struct cluster_copy_id *id, const json_t *copy, struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    uint8_t snapshot[ID_LEN] = {0};
    free_mem char *text = json_text(copy);
    size_t len = strlen(text);
    free_mem uint8_t *object = malloc(FMT_HEADER_LEN + len);
    if (!object || !id_from_text(json_str(json_object_get(copy, "plan"), "snapshot"), snapshot))
        return err_set(err, ERR_INTERNAL, "no plan to copy, or out of memory");
    fmt_json_encode(FMT_JSON_JOB, repo->id, snapshot, text, len, object);
    for (unsigned tries = 0; tries < NAME_TRIES; tries++) {
        cluster_copy_name(name, cluster, id);
        int rc = store_put(store, name, object, FMT_HEADER_LEN + len, err);
        if (rc != STORE_EXISTS || id->number == CLUSTER_COPY_OVER)
            return rc < 0 ? rc : 0;
        id->number++;
    }
    return err_set(err, ERR_STORE, "%s: the name is taken, and so are those after it", name);
}

static int write_copy(struct cluster_restore *all, const struct conf *conf, const char *state,
                      bool over, struct err *err)
{
    struct store *store = NULL;
    struct repo repo;
    struct cluster_copy_id id;
    free_json json_t *copy = NULL;
    if (all->alone)
        return 0;
    if (!state)
        state = strcmp(all->job->goal, "prepare") == 0 ? "prepared" : "running";
    (void)pthread_mutex_lock(&all->copying);
    int rc = repository_open(conf, &all->job->progress.cancel, &store, &repo, err);
    if (rc == 0) {
        take_copy(all, state, over, &id, &copy);
        rc = put(store, &repo, conf->cluster, &id, copy, err);
        store_close(store);
    }
    (void)pthread_mutex_unlock(&all->copying);
    if (rc == 0)
        log_info("journal copied to the repository: job=%s epoch=%" PRIu32 " number=%" PRIu32
                 " state=%s",
                 id.job, id.epoch, id.number, state);
    return rc;
}

int cluster_archive_write(struct cluster_restore *all, const char *state, bool over,
                          struct err *err)
{
    return write_copy(all, &all->job->conf, state, over, err);
}

/* conf with less patience; malloc'ed, it is large. */
static struct conf *hasty(const struct conf *conf)
{
    struct conf *copy = malloc(sizeof(*copy));
    if (!copy)
        abort();
    *copy = *conf;
    copy->repository_retry_timeout_s =
        (unsigned)min_u64(conf->repository_retry_timeout_s, NOTE_TIMEOUT_S);
    return copy;
}

void cluster_archive_note(struct cluster_restore *all, const char *state, bool over)
{
    struct err err;
    if (cluster_is_dry_run(all))
        return; /* nobody has to go on with it */
    free_mem struct conf *conf = hasty(&all->job->conf);
    if (write_copy(all, conf, state, over, &err) < 0)
        log_warn("the journal is not copied to the repository, the restore goes on: another "
                 "coordinator that takes it over asks the agents: job=%s err=\"%s\"",
                 all->job->id, err.text);
}

/* --- reading ---------------------------------------------------------------------------------- */

struct ids {
    const char *cluster;
    struct cluster_copy_id *items; /* in the order of names: by job, then by age */
    size_t count, capacity;
};

static void cleanup_ids(struct ids *ids)
{
    free(ids->items);
}

static int note_id(void *ctx, const char *name, uint64_t size, struct err *err)
{
    struct ids *ids = ctx;
    struct cluster_copy_id id;
    (void)size;
    if (!cluster_copy_name_parse(name, ids->cluster, &id))
        return 0;
    if (ids->count == ids->capacity) {
        size_t capacity = ids->capacity ? 2 * ids->capacity : 64;
        struct cluster_copy_id *items = realloc(ids->items, capacity * sizeof(*items));
        if (!items)
            return err_set(err, ERR_INTERNAL, "out of memory for the list of journals");
        ids->items = items;
        ids->capacity = capacity;
    }
    ids->items[ids->count++] = id;
    return 0;
}

static int list_ids(struct store *store, struct ids *ids, struct err *err)
{
    char prefix[CONF_NAME_MAX + 8];
    (void)snprintf(prefix, sizeof(prefix), "job/%s/", ids->cluster);
    return store_list(store, prefix, note_id, ids, err);
}

static int read_copy(struct store *store, const struct repo *repo, const char *cluster,
                     const struct cluster_copy_id *id, json_t **ret, struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    int rc = -ERR_CORRUPT;
    cluster_copy_name(name, cluster, id);
    for (unsigned tries = 0; rc == -ERR_CORRUPT && tries < STORE_READ_TRIES; tries++) {
        free_mem void *buf = NULL;
        size_t len;
        rc = store_get_all(store, name, CLUSTER_COPY_LEN_MAX, &buf, &len, err);
        if (rc == 0)
            rc = cluster_copy_parse(buf, len, repo, cluster, id, ret, err);
    }
    return rc < 0 ? err_prefix(err, "%s", name) : 0;
}

/* Of the copies [begin, end) of one job: the newest that can be read. */
static int read_newest(struct store *store, const struct repo *repo, const struct ids *ids,
                       size_t begin, size_t end, json_t **ret, struct err *err)
{
    int rc = -ERR_CORRUPT;
    for (size_t i = end; rc == -ERR_CORRUPT && i-- > begin;) {
        rc = read_copy(store, repo, ids->cluster, &ids->items[i], ret, err);
        if (rc == -ERR_CORRUPT)
            log_warn("a copy of a journal is damaged, the one before is taken: %s", err->text);
    }
    return rc;
}

static size_t end_of_job(const struct ids *ids, size_t begin)
{
    size_t end = begin;
    while (end < ids->count && strcmp(ids->items[end].job, ids->items[begin].job) == 0)
        end++;
    return end;
}

static int find(struct store *store, const struct repo *repo, const struct ids *ids,
                const char *job, struct cluster_copy_id *ret_id, json_t **ret, struct err *err)
{
    size_t begin = ids->count;
    for (size_t i = 0; i < ids->count; i = end_of_job(ids, i)) {
        if (strncmp(ids->items[i].job, job, strlen(job)) != 0)
            continue;
        if (begin < ids->count)
            return err_set(err, ERR_USAGE, "several jobs begin with '%s': %s, %s", job,
                           ids->items[begin].job, ids->items[i].job);
        begin = i;
    }
    if (begin == ids->count)
        return err_set(err, ERR_MISSING, "there is no job '%.64s', here or in the repository", job);
    size_t end = end_of_job(ids, begin);
    *ret_id = ids->items[end - 1];
    return read_newest(store, repo, ids, begin, end, ret, err);
}

int cluster_archive_find(const struct conf *conf, const char *job, struct cluster_copy_id *ret_id,
                         json_t **ret, struct err *err)
{
    __attribute__((cleanup(cleanup_ids))) struct ids ids = {.cluster = conf->cluster};
    struct store *store;
    struct repo repo;
    int rc = repository_open(conf, NULL, &store, &repo, err);
    if (rc < 0)
        return rc;
    rc = list_ids(store, &ids, err);
    if (rc == 0)
        rc = find(store, &repo, &ids, job, ret_id, ret, err);
    store_close(store);
    return rc;
}

int cluster_archive_touched(const struct cluster_restore *all, bool *ret, struct err *err)
{
    const struct conf *conf = &all->job->conf;
    __attribute__((cleanup(cleanup_ids))) struct ids ids = {.cluster = conf->cluster};
    struct store *store;
    struct repo repo;
    bool touched = false;
    int rc = repository_open(conf, &all->job->progress.cancel, &store, &repo, err);
    if (rc < 0)
        return rc;
    rc = list_ids(store, &ids, err);
    for (size_t i = 0; rc == 0 && !touched && i < ids.count; i++) {
        free_json json_t *copy = NULL;
        if (strcmp(ids.items[i].job, all->job->id) != 0)
            continue;
        rc = read_copy(store, &repo, conf->cluster, &ids.items[i], &copy, err);
        touched = rc == -ERR_CORRUPT || json_is_true(json_object_get(copy, "touched"));
        rc = touched ? 0 : rc;
    }
    store_close(store);
    if (rc == 0)
        *ret = touched;
    return rc;
}

static int collect(struct store *store, const struct repo *repo, const struct ids *ids, bool over,
                   json_t *list, struct err *err)
{
    int rc = 0;
    for (size_t begin = 0, end; rc == 0 && begin < ids->count; begin = end) {
        json_t *copy = NULL;
        end = end_of_job(ids, begin);
        if (!over && ids->items[end - 1].number == CLUSTER_COPY_OVER)
            continue;
        rc = read_newest(store, repo, ids, begin, end, &copy, err);
        if (rc == 0)
            (void)json_array_append_new(list, copy);
        if (rc == -ERR_CORRUPT || rc == -ERR_REFUSED)
            rc = 0; /* it was logged, and the others are as good as before */
    }
    return rc;
}

/* Never 0. Names only come, none is written twice. */
static uint64_t state_of(const struct ids *ids)
{
    uint8_t digest[FMT_DIGEST_LEN];
    char name[STORE_NAME_MAX + 1];
    uint64_t state = 0;
    for (size_t i = 0; i < ids->count; i++) {
        cluster_copy_name(name, ids->cluster, &ids->items[i]);
        hash_xxh3_128(name, strlen(name), state, digest);
        memcpy(&state, digest, sizeof(state));
    }
    return state | 1;
}

/* state: NULL = does not matter. */
static int list_copies(const struct conf *conf, bool over, uint64_t *state, json_t **ret,
                       struct err *err)
{
    __attribute__((cleanup(cleanup_ids))) struct ids ids = {.cluster = conf->cluster};
    free_json json_t *list = json_array();
    free_mem struct conf *soon = hasty(conf);
    struct store *store;
    struct repo repo;
    int rc = repository_open(soon, NULL, &store, &repo, err);
    if (rc < 0)
        return rc;
    rc = list_ids(store, &ids, err);
    uint64_t now = rc == 0 ? state_of(&ids) : 0;
    bool same = state && *state == now;
    if (rc == 0 && !same)
        rc = collect(store, &repo, &ids, over, list, err);
    store_close(store);
    if (rc < 0)
        return rc;
    *ret = same ? NULL : json_incref(list);
    if (state)
        *state = now;
    return 0;
}

int cluster_archive_list(const struct conf *conf, bool over, json_t **ret, struct err *err)
{
    return list_copies(conf, over, NULL, ret, err);
}

int cluster_archive_watch(const struct conf *conf, uint64_t *state, json_t **ret, struct err *err)
{
    return list_copies(conf, true, state, ret, err);
}
