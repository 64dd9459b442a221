/* `tidemark expire`: see expire.h for the two phases and why nothing reachable goes. A run first
 * withdraws what no rule keeps, or what was asked for, and then finishes what was withdrawn a grace
 * ago. */
#include "agent/expire.h"

#include <stdio.h>

#include "agent/log.h"
#include "agent/repository.h"
#include "agent/restore.h"

enum { REMOVE_BATCH = 1000 };

/* --- for all parts ---------------------------------------------------------------------------- */

static int may_not(struct err *err)
{
    (void)err_prefix(err, "the key of this host may not delete");
    return err_hint(err, "run `tidemark expire` where [repository] credentials_file has a key that "
                         "may; snapshots that were withdrawn stay so, and go then");
}

/* A test that dies at the Nth removal wants them one by one. */
static size_t batch_max(void)
{
    return getenv("TIDEMARK_TEST_STOP") ? 1 : REMOVE_BATCH;
}

int expire_remove(struct expire *expire, struct expire_names *names, struct err *err)
{
    int rc = 0;
    for (size_t i = 0, len; rc == 0 && i < names->count && !expire->dry_run;) {
        size_t before = names->count;
        char point[48];
        len = min_u64(names->count - i, batch_max());
        (void)snprintf(point, sizeof(point), "expire-remove-%u", expire->removals++);
        restore_test_stop(point);
        rc = job_check_cancel(expire->job, err);
        if (rc == 0)
            rc = expire_lock_remove(expire, names, i, len, err);
        i += len - (before - names->count);
    }
    return rc == -ERR_AUTH ? may_not(err) : rc;
}

int expire_names_add(struct expire_names *names, const char *name, uint64_t size, struct err *err)
{
    if (names->count == names->capacity) {
        size_t capacity = names->capacity ? 2 * names->capacity : 256;
        char **grown = realloc(names->names, capacity * sizeof(*grown));
        if (!grown)
            return err_set(err, ERR_INTERNAL, "out of memory for %zu objects", capacity);
        names->names = grown;
        uint64_t *sizes = realloc(names->sizes, capacity * sizeof(*sizes));
        if (!sizes)
            return err_set(err, ERR_INTERNAL, "out of memory for %zu objects", capacity);
        names->sizes = sizes;
        names->capacity = capacity;
    }
    char *copy = strdup(name);
    if (!copy)
        return err_set(err, ERR_INTERNAL, "out of memory for a list of objects");
    names->sizes[names->count] = size;
    names->names[names->count++] = copy;
    names->bytes += size;
    return 0;
}

void expire_names_release(struct expire_names *names)
{
    for (size_t i = 0; i < names->count; i++)
        free(names->names[i]);
    free(names->names);
    free(names->sizes);
    *names = (struct expire_names){.names = NULL};
}

int expire_age(const struct expire *expire, const char *object, int64_t *ret_s, struct err *err)
{
    int64_t modified_s;
    int rc = store_modified(expire->store, object, &modified_s, err);
    if (rc == -ERR_MISSING)
        *ret_s = INT64_MAX;
    else if (rc == 0)
        *ret_s = expire->now_s - modified_s;
    return rc == -ERR_MISSING ? 0 : rc;
}

static int modified(const struct expire *expire, enum mark mark, const uint8_t id[ID_LEN],
                    int64_t *ret_s, bool *there, struct err *err)
{
    int rc = mark_modified(expire->store, mark, id, ret_s, err);
    *there = rc == 0;
    if (rc == -ERR_MISSING)
        err_clear(err);
    return rc == -ERR_MISSING ? 0 : rc;
}

int expire_pin_voids(const struct expire *expire, const uint8_t id[ID_LEN], bool *ret,
                     struct err *err)
{
    int64_t pinned_s = 0, withdrawn_s = 0;
    bool pinned = false, withdrawn = false;
    int rc = modified(expire, MARK_PIN, id, &pinned_s, &pinned, err);
    if (rc == 0 && pinned)
        rc = modified(expire, MARK_WITHDRAWN, id, &withdrawn_s, &withdrawn, err);
    if (rc == 0)
        *ret = pinned && withdrawn && pinned_s - withdrawn_s < expire->margin_s;
    return rc;
}

int expire_take_back(const struct expire *expire, const uint8_t id[ID_LEN], const char *why,
                     struct err *err)
{
    char text[ID_TEXT_LEN];
    id_to_text(id, text);
    int rc = mark_remove(expire->store, MARK_WITHDRAWN, id, err);
    if (rc == 0)
        log_info("snapshot=%s stays, its mark is taken back: %s", text, why);
    else
        (void)err_prefix(err, "withdrawn/%s has to be removed (%s)", text, why);
    return rc == -ERR_AUTH ? may_not(err) : rc;
}

/* --- the order -------------------------------------------------------------------------------- */

static int phase(struct expire *expire, const char *name, struct err *err)
{
    int rc = job_check_cancel(expire->job, err);
    return rc < 0 ? rc : job_journal(expire->job, NULL, name, err);
}

static int keep_pinned(struct expire *expire, struct expire_item *item, struct err *err)
{
    int rc = expire_take_back(expire, item->name.id, "it is pinned", err);
    if (rc < 0)
        return rc;
    item->pinned = true;
    item->goes = item->returns = item->withdrawn = false;
    item->why = "pinned";
    return 0;
}

static int withdraw_one(struct expire *expire, struct expire_item *item, struct err *err)
{
    char id[ID_TEXT_LEN];
    bool void_mark = false;
    id_to_text(item->name.id, id);
    restore_test_stop("expire-withdrawing");
    int rc = item->unreadable ? mark_remove(expire->store, MARK_WITHDRAWN, item->name.id, err) : 0;
    if (rc == 0)
        rc = mark_put(expire->store, &expire->repo, MARK_WITHDRAWN, item->name.id,
                      item->has_record ? mark_expired : mark_abandoned, expire->conf->node, err);
    restore_test_stop("expire-withdrawn");
    if (rc == 0) /* it may have been pinned since the pins were listed */
        rc = expire_pin_voids(expire, item->name.id, &void_mark, err);
    if (rc == 0 && void_mark)
        return keep_pinned(expire, item, err);
    if (rc == 0)
        log_info("snapshot=%s tag=%s withdrawn: %s", id, item->tag, item->why);
    return rc;
}

static int withdraw(struct expire *expire, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < expire->count && !expire->dry_run; i++) {
        struct expire_item *item = &expire->items[i];
        if (item->goes)
            rc = withdraw_one(expire, item, err);
        else if (item->returns)
            rc = keep_pinned(expire, item, err);
    }
    return rc;
}

static int open_all(struct expire *expire, struct err *err)
{
    static const char *const known[] = {"type", "snapshots", "dry_run", NULL};
    const json_t *request = expire->job->request;
    int rc = json_check_keys(request, known, err);
    if (rc == 0)
        rc = json_opt_bool(request, "dry_run", ERR_USAGE, &expire->dry_run, err);
    if (rc < 0)
        return rc;
    expire->wanted = json_object_get(request, "snapshots");
    (void)json_object_set_new(expire->job->journal, "dry_run", json_boolean(expire->dry_run));
    rc = repository_open(expire->conf, &expire->job->progress.cancel, &expire->store, &expire->repo,
                         err);
    return rc < 0 ? rc : expire_lock_prepare(expire, err);
}

/* A manifest that counts cannot be read. Its snapshot may be the newest, and the one before it the
 * newest that can be restored: by no rule does one go, only by its name. */
static int go_on_blind(struct expire *expire, struct err *err)
{
    struct err other = {.code = 0};
    for (size_t i = 0; i < expire->count && !expire->wanted; i++)
        if (expire->items[i].goes) {
            expire->items[i].goes = false;
            expire->items[i].why = "a manifest cannot be read: no rule decides";
        }
    int rc = withdraw(expire, &other);
    if (rc == 0)
        rc = expire_sweep(expire, NULL, &other);
    if (rc < 0)
        log_warn("what can be withdrawn all the same could not be err=\"%s\"", other.text);
    return -(int)err->code;
}

static int finish(struct expire *expire, const struct expire_reach *reach, struct err *err)
{
    int rc = expire_lock_extend(expire, reach, err);
    if (rc == 0)
        rc = phase(expire, "removing", err);
    if (rc == 0)
        rc = expire_sweep(expire, reach, err);
    if (rc == 0)
        rc = phase(expire, "WAL", err);
    return rc < 0 ? rc : expire_wal(expire, err);
}

static int choose(struct expire *expire, struct err *err)
{
    int rc = phase(expire, "reading records", err);
    if (rc == 0)
        rc = open_all(expire, err);
    if (rc == 0)
        rc = expire_load(expire, err);
    if (rc == 0)
        rc = expire_choose(expire, err);
    return rc < 0 ? rc : expire_lock_keep(expire, err);
}

static int run(struct expire *expire, struct err *err)
{
    struct expire_reach reach = {.refs = NULL};
    int rc = choose(expire, err);
    if (rc == 0)
        rc = phase(expire, "reading manifests", err);
    if (rc == 0) {
        rc = expire_reach_load(expire, &reach, err);
        /* By name one may go whatever it was that could not be read: a bad block, a permission. */
        if (rc == -ERR_CORRUPT || rc == -ERR_REFUSED ||
            (expire->wanted && (rc == -ERR_STORE || rc == -ERR_AUTH)))
            rc = go_on_blind(expire, err);
        else if (rc == 0)
            rc = withdraw(expire, err);
    }
    if (rc == 0)
        rc = finish(expire, &reach, err);
    expire_reach_release(&reach);
    return rc;
}

/* --- the result ------------------------------------------------------------------------------- */

static const char *action_of(const struct expire_item *item)
{
    if (item->dead)
        return "remove";
    if (item->returns)
        return "keep";
    if (item->goes)
        return "withdraw";
    return item->withdrawn ? "wait" : "keep";
}

static json_t *item_json(const struct expire *expire, const struct expire_item *item)
{
    char id[ID_TEXT_LEN];
    id_to_text(item->name.id, id);
    json_t *json =
        json_pack("{s:s, s:s, s:s, s:s, s:b}", "id", id, "node", item->name.node, "action",
                  action_of(item), "why", item->why ? item->why : "", "pinned", item->pinned);
    if (item->known) {
        (void)json_object_set_new(json, "tag", json_string(item->tag));
        (void)json_object_set_new(json, "captured_s", json_integer(item->captured_s));
        (void)json_object_set_new(json, "bytes_stored",
                                  json_integer((json_int_t)item->bytes_stored));
    }
    if (item->locked_until_s > 0)
        (void)json_object_set_new(json, "locked_until_s", json_integer(item->locked_until_s));
    if (item->withdrawn && !item->dead && !item->returns && !item->unreadable && !item->read &&
        item->locked_until_s == 0 && !item->held)
        (void)json_object_set_new(json, "left_s",
                                  json_integer((json_int_t)expire->grace_s - item->mark_age_s));
    return json;
}

static int compare_age(const void *a, const void *b)
{
    return expire_compare_age(*(struct expire_item *const *)a, *(struct expire_item *const *)b);
}

/* Those of this cluster, oldest first. */
static json_t *snapshots_json(const struct expire *expire)
{
    json_t *list = json_array();
    const struct expire_item **sorted = malloc((expire->count + 1) * sizeof(void *));
    size_t count = 0;
    if (!sorted)
        abort();
    for (size_t i = 0; i < expire->count; i++)
        if (expire->items[i].has_record &&
            strcmp(expire->items[i].name.cluster, expire->conf->cluster) == 0)
            sorted[count++] = &expire->items[i];
    qsort(sorted, count, sizeof(void *), compare_age);
    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(list, item_json(expire, sorted[i]));
    free(sorted);
    return list;
}

/* Those of which nobody has been told yet what to do: not named, and not withdrawn. */
static size_t damaged_left(const struct expire *expire)
{
    size_t known = 0;
    for (size_t i = 0; i < expire->count; i++) {
        const struct expire_item *item = &expire->items[i];
        known += item->has_record && !item->known && !item->dead &&
                 strcmp(item->name.cluster, expire->conf->cluster) == 0 &&
                 (item->withdrawn || item->goes);
    }
    return expire->damaged - (size_t)min_u64(known, expire->damaged);
}

/* Of marks that nobody has given up by name. */
static size_t unreadable_left(const struct expire *expire)
{
    size_t count = 0;
    for (size_t i = 0; i < expire->count; i++)
        count += expire->items[i].unreadable && !expire->items[i].goes;
    return count;
}

static void set_result(struct expire *expire)
{
    json_t *result = json_pack(
        "{s:b, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "dry_run", expire->dry_run,
        "snapshots", snapshots_json(expire), "objects", (json_int_t)expire->objects, "bytes",
        (json_int_t)expire->bytes, "wal_objects", (json_int_t)expire->wal_objects, "wal_bytes",
        (json_int_t)expire->wal_bytes, "later_bytes", (json_int_t)expire->later_bytes, "abandoned",
        (json_int_t)expire->abandoned, "damaged", (json_int_t)damaged_left(expire), "grace_s",
        (json_int_t)expire->grace_s);
    (void)json_object_set_new(result, "unreadable_marks",
                              json_integer((json_int_t)unreadable_left(expire)));
    (void)json_object_set_new(result, "locked_objects",
                              json_integer((json_int_t)expire->locked_objects));
    (void)json_object_set_new(result, "locks_extended",
                              json_integer((json_int_t)expire->locks_extended));
    (void)json_object_set_new(expire->job->journal, "result", result);
}

/* Tests do not wait for ten minutes where they cannot set the store's clock. */
static int64_t grace_of(const struct conf *conf)
{
    const char *test = getenv("TIDEMARK_TEST_GRACE_S");
    if (test)
        log_warn("the grace is %s s, for a test", test);
    return test ? atoll(test) : (int64_t)conf->retention_grace_s;
}

int expire_run(struct job *job, struct err *err)
{
    struct expire *expire = calloc(1, sizeof(*expire));
    if (!expire)
        return err_set(err, ERR_INTERNAL, "out of memory for an expire");
    expire->job = job;
    expire->conf = &job->conf;
    expire->grace_s = grace_of(&job->conf);
    expire->margin_s =
        expire->grace_s < RETENTION_GRACE_MIN_S ? expire->grace_s / 2 : RETENTION_GRACE_MIN_S / 2;
    int rc = run(expire, err);
    set_result(expire);
    if (rc == 0)
        log_info("expire: objects=%llu bytes=%llu", (unsigned long long)expire->objects,
                 (unsigned long long)expire->bytes);
    free(expire->items);
    expire_names_release(&expire->old_readings);
    store_close(expire->store);
    free(expire);
    return rc;
}
