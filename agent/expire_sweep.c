/* What dead snapshots wrote and nobody reaches is removed, in the order record, manifests, tables,
 * packs, mark; and what writers left that died before their record is withdrawn. See expire.h.
 *
 * An interrupted run leaves nothing visible behind, and the next one finds the rest by the mark. */
#include "agent/expire.h"

#include <assert.h>
#include <stdio.h>

#include "agent/log.h"
#include "agent/restore.h"

/* Objects of one (volume, snapshot) that has neither record nor mark: a snapshot under way, or what
 * is left of one. */
struct stray {
    uint8_t snapshot[ID_LEN];
    char last[STORE_NAME_MAX + 1]; /* the object with the highest number */
    uint64_t bytes;
    bool abandoned;  /* by this run */
    int64_t since_s; /* there was no mark then */
};

struct sweep {
    struct expire *expire;
    const struct expire_reach *reach; /* NULL: nothing is removed */
    struct expire_names names;        /* to be removed */
    struct stray *strays;
    size_t stray_count, stray_capacity;
};

/* --- listing ---------------------------------------------------------------------------------- */

struct parsed {
    uint8_t volume[ID_LEN], snapshot[ID_LEN];
    uint32_t number;
};

/* "<kind>/<volume>/<snapshot>[/<number>]" */
static bool parse(const char *name, bool numbered, struct parsed *ret)
{
    char text[ID_TEXT_LEN] = "";
    const char *at = strchr(name, '/') + 1;
    enum { DIGITS = ID_TEXT_LEN - 1, NUMBER_LEN = 8 };
    if (strlen(at) != (size_t)(2 * DIGITS + 1 + (numbered ? NUMBER_LEN + 1 : 0)) ||
        at[DIGITS] != '/')
        return false;
    memcpy(text, at, DIGITS);
    if (!id_from_text(text, ret->volume))
        return false;
    at += DIGITS + 1;
    memcpy(text, at, DIGITS);
    if (!id_from_text(text, ret->snapshot))
        return false;
    at += DIGITS;
    ret->number = numbered ? (uint32_t)strtoul(at + 1, NULL, 16) : 0;
    return !numbered || (at[0] == '/' && strspn(at + 1, "0123456789abcdef") == NUMBER_LEN);
}

static struct stray *new_stray(struct sweep *sweep, const struct parsed *object, struct err *err)
{
    if (sweep->stray_count == sweep->stray_capacity) {
        size_t capacity = sweep->stray_capacity ? 2 * sweep->stray_capacity : 16;
        struct stray *strays = realloc(sweep->strays, capacity * sizeof(*strays));
        if (!strays) {
            (void)err_set(err, ERR_INTERNAL, "out of memory for a list of objects");
            return NULL;
        }
        sweep->strays = strays;
        sweep->stray_capacity = capacity;
    }
    assert(sweep->strays);
    struct stray *stray = &sweep->strays[sweep->stray_count++];
    *stray = (struct stray){.bytes = 0};
    memcpy(stray->snapshot, object->snapshot, ID_LEN);
    return stray;
}

/* A listing has the objects of one snapshot in a row, ascending. */
static int add_stray(struct sweep *sweep, const struct parsed *object, const char *name,
                     uint64_t size, struct err *err)
{
    struct stray *stray = sweep->stray_count ? &sweep->strays[sweep->stray_count - 1] : NULL;
    size_t own_len = strlen(name) - strlen(strrchr(name, '/'));
    if (!stray || memcmp(stray->snapshot, object->snapshot, ID_LEN) != 0 ||
        strncmp(stray->last, name, own_len) != 0)
        stray = new_stray(sweep, object, err);
    if (!stray)
        return -ERR_INTERNAL;
    (void)snprintf(stray->last, sizeof(stray->last), "%s", name);
    stray->bytes += size;
    return 0;
}

static int take(struct sweep *sweep, const struct parsed *object, unsigned reached,
                const char *name, uint64_t size, struct err *err)
{
    struct expire_item *item = expire_find(sweep->expire, object->snapshot);
    if (!item)
        return add_stray(sweep, object, name, size, err);
    if (!sweep->reach)
        return 0;
    if ((item->withdrawn || item->goes) && !(reached & REACHED_LATER))
        sweep->expire->later_bytes += size;
    if (!item->dead)
        return 0;
    if (!(reached & REACHED_NOW))
        return expire_names_add(&sweep->names, name, size, err);
    item->left++;
    return 0;
}

static int on_manifest(void *ctx, const char *name, uint64_t size, struct err *err)
{
    struct parsed object;
    return parse(name, false, &object) ? take(ctx, &object, 0, name, size, err) : 0;
}

static int on_numbered(struct sweep *sweep, enum expire_kind kind, const char *name, uint64_t size,
                       struct err *err)
{
    struct parsed object;
    if (!parse(name, true, &object))
        return 0;
    unsigned reached = sweep->reach ? expire_reached(sweep->reach, kind, object.volume,
                                                     object.snapshot, object.number)
                                    : 0;
    return take(sweep, &object, reached, name, size, err);
}

static int on_table(void *ctx, const char *name, uint64_t size, struct err *err)
{
    return on_numbered(ctx, EXPIRE_TABLE, name, size, err);
}

static int on_pack(void *ctx, const char *name, uint64_t size, struct err *err)
{
    return on_numbered(ctx, EXPIRE_PACK, name, size, err);
}

/* --- removing --------------------------------------------------------------------------------- */

static int sweep_prefix(struct sweep *sweep, const char *prefix,
                        int (*each)(void *ctx, const char *name, uint64_t size, struct err *err),
                        struct err *err)
{
    struct expire *expire = sweep->expire;
    int rc = store_list(expire->store, prefix, each, sweep, err);
    if (rc == 0)
        rc = expire_remove(expire, &sweep->names, err);
    if (rc == 0) {
        expire->objects += sweep->names.count;
        expire->bytes += sweep->names.bytes;
    }
    expire_names_release(&sweep->names);
    return rc;
}

/* First: a record that is there while its objects go would be a snapshot to whoever does not know
 * of marks. */
static int remove_records(struct expire *expire, struct err *err)
{
    struct expire_names names = {.names = NULL};
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < expire->count; i++) {
        const struct expire_item *item = &expire->items[i];
        char name[STORE_NAME_MAX + 1];
        if (!item->dead || !item->has_record)
            continue;
        repo_record_name(name, item->name.cluster, item->name.node, item->name.id);
        rc = expire_names_add(&names, name, 0, err);
    }
    if (rc == 0)
        rc = expire_remove(expire, &names, err);
    if (rc == 0)
        expire->objects += names.count;
    expire_names_release(&names);
    return rc;
}

/* Of snapshots of which nothing is left. That of an abandoned one stays, see expire.h. */
static int remove_marks(struct expire *expire, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < expire->count; i++) {
        const struct expire_item *item = &expire->items[i];
        if (!item->dead || item->left > 0 || expire->dry_run || item->mark_why != mark_expired)
            continue;
        rc = mark_remove(expire->store, MARK_WITHDRAWN, item->name.id, err);
        if (rc == 0 && item->pinned)
            rc = mark_remove(expire->store, MARK_PIN, item->name.id, err);
    }
    return rc;
}

/* --- writers that died ------------------------------------------------------------------------ */

static int compare_strays(const void *a, const void *b)
{
    const struct stray *left = a, *right = b;
    return memcmp(left->snapshot, right->snapshot, ID_LEN);
}

/* *ret: somebody else has marked it, and looks behind that mark himself. */
static int is_marked(const struct expire *expire, struct stray *stray, bool *ret, struct err *err)
{
    int64_t now_ms = 0;
    int rc = store_clock(expire->store, &now_ms, err);
    stray->since_s = now_ms / 1000;
    if (rc == 0)
        rc = mark_check(expire->store, MARK_WITHDRAWN, stray->snapshot, err);
    *ret = rc == 0;
    if (rc == -ERR_MISSING)
        err_clear(err);
    return rc == -ERR_MISSING ? 0 : rc;
}

static int abandon(struct expire *expire, struct stray *stray, struct err *err)
{
    char id[ID_TEXT_LEN];
    bool marked = false;
    id_to_text(stray->snapshot, id);
    int rc = expire->dry_run ? 0 : is_marked(expire, stray, &marked, err);
    restore_test_stop("expire-abandoning");
    if (rc == 0 && !marked && !expire->dry_run)
        rc = mark_put_new(expire->store, &expire->repo, MARK_WITHDRAWN, stray->snapshot,
                          mark_abandoned, expire->conf->node, err);
    restore_test_stop("expire-abandoned");
    if (rc < 0 || marked || rc == STORE_EXISTS)
        return rc < 0 ? rc : 0;
    expire->abandoned++;
    stray->abandoned = !expire->dry_run;
    if (stray->abandoned)
        log_info("snapshot=%s has no record and was last written to more than the grace period "
                 "ago: withdrawn",
                 id);
    return 0;
}

/* A snapshot is as old as the youngest of its objects. */
static int judge_strays(struct sweep *sweep, struct err *err)
{
    struct expire *expire = sweep->expire;
    int rc = 0;
    if (sweep->stray_count)
        qsort(sweep->strays, sweep->stray_count, sizeof(*sweep->strays), compare_strays);
    for (size_t i = 0, end; rc == 0 && i < sweep->stray_count; i = end) {
        int64_t age_s = INT64_MAX, one_s = 0;
        uint64_t bytes = 0;
        for (end = i; rc == 0 && end < sweep->stray_count &&
                      compare_strays(&sweep->strays[i], &sweep->strays[end]) == 0;
             end++) {
            rc = expire_age(expire, sweep->strays[end].last, &one_s, err);
            age_s = one_s < age_s ? one_s : age_s;
            bytes += sweep->strays[end].bytes;
        }
        if (rc < 0 || age_s < expire->grace_s)
            continue;
        expire->later_bytes += bytes;
        rc = abandon(expire, &sweep->strays[i], err);
    }
    return rc;
}

static struct stray *find_abandoned(const struct sweep *sweep, const uint8_t id[ID_LEN])
{
    for (size_t i = 0; i < sweep->stray_count; i++)
        if (sweep->strays[i].abandoned && memcmp(sweep->strays[i].snapshot, id, ID_LEN) == 0)
            return &sweep->strays[i];
    return NULL;
}

/* A mark of this run that is younger than any host's grace has cost the snapshot nothing yet. Where
 * a store does not create once a put may have replaced an older mark of somebody else: so the time
 * counts when there was none. */
static int return_one(struct expire *expire, const struct stray *stray, struct err *err)
{
    char id[ID_TEXT_LEN];
    int64_t modified_s = 0, now_ms = 0;
    id_to_text(stray->snapshot, id);
    int rc = mark_modified(expire->store, MARK_WITHDRAWN, stray->snapshot, &modified_s, err);
    if (rc == -ERR_MISSING) { /* somebody has removed it by hand */
        err_clear(err);
        rc = 0;
    } else if (rc == 0) {
        rc = store_clock(expire->store, &now_ms, err);
        int64_t first_s = stray->since_s < modified_s ? stray->since_s : modified_s;
        if (rc == 0 && now_ms / 1000 - first_s >= expire->margin_s) {
            log_warn("snapshot=%s has a record, but was withdrawn %lld s ago: it stays so", id,
                     (long long)(now_ms / 1000 - first_s));
            return 0;
        }
    }
    if (rc == 0)
        rc = expire_take_back(expire, stray->snapshot, "it was committed meanwhile", err);
    if (rc == 0)
        expire->abandoned--;
    return rc;
}

/* The records were listed before: whose writer has woken up since and found no mark is committed.
 */
static int return_committed(struct sweep *sweep, struct err *err)
{
    struct expire *expire = sweep->expire;
    free_catalog_names struct catalog_names names = {0};
    int rc = 0;
    if (expire->abandoned && !expire->dry_run)
        rc = catalog_names_all(expire->store, &names, err);
    for (size_t i = 0; rc == 0 && i < names.count; i++) {
        const struct stray *stray = find_abandoned(sweep, names.items[i].id);
        if (stray)
            rc = return_one(expire, stray, err);
    }
    return rc;
}

int expire_sweep(struct expire *expire, const struct expire_reach *reach, struct err *err)
{
    struct sweep sweep = {.expire = expire, .reach = reach};
    int rc = reach ? remove_records(expire, err) : 0;
    if (rc == 0)
        rc = sweep_prefix(&sweep, "volume/", on_manifest, err);
    if (rc == 0)
        rc = sweep_prefix(&sweep, "table/", on_table, err);
    if (rc == 0)
        rc = sweep_prefix(&sweep, "pack/", on_pack, err);
    if (rc == 0 && reach)
        rc = remove_marks(expire, err);
    if (rc == 0 && reach)
        rc = expire_remove(expire, &expire->old_readings, err);
    if (rc == 0)
        rc = judge_strays(&sweep, err);
    if (rc == 0)
        rc = return_committed(&sweep, err);
    free(sweep.strays);
    return rc;
}
