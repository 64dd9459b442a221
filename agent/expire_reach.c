/* What the manifests reach that count: see expire.h. One entry an object, however many manifests
 * name it, 40 bytes each: 2.5 MB for a TiB in packs of 16 MiB. */
#include "agent/expire.h"

#include <stdio.h>

#include "agent/restore.h"
#include "agent/text.h"

enum { SORT_EVERY = 1 << 18 }; /* entries that may be doubles */

/* --- the set ---------------------------------------------------------------------------------- */

static int compare_refs(const void *a, const void *b)
{
    const struct expire_ref *left = a, *right = b;
    if (left->kind != right->kind)
        return left->kind < right->kind ? -1 : 1;
    int order = memcmp(left->volume, right->volume, ID_LEN);
    if (order == 0)
        order = memcmp(left->snapshot, right->snapshot, ID_LEN);
    return order ? order : (left->number > right->number) - (left->number < right->number);
}

static void sort_refs(struct expire_reach *reach)
{
    size_t kept = 0;
    if (reach->count)
        qsort(reach->refs, reach->count, sizeof(*reach->refs), compare_refs);
    for (size_t i = 0; i < reach->count; i++) {
        if (kept && compare_refs(&reach->refs[kept - 1], &reach->refs[i]) == 0) {
            struct expire_ref *same = &reach->refs[kept - 1];
            same->by |= reach->refs[i].by;
            if (same->until_s < reach->refs[i].until_s)
                same->until_s = reach->refs[i].until_s;
        } else
            reach->refs[kept++] = reach->refs[i];
    }
    reach->count = reach->sorted = kept;
}

static int add_ref(struct expire_reach *reach, const struct expire_ref *ref, struct err *err)
{
    if (reach->count >= 2 * reach->sorted + SORT_EVERY)
        sort_refs(reach);
    if (reach->count == reach->capacity) {
        size_t capacity = reach->capacity ? 2 * reach->capacity : 4096;
        struct expire_ref *refs = realloc(reach->refs, capacity * sizeof(*refs));
        if (!refs)
            return err_set(err, ERR_INTERNAL, "out of memory for %zu objects", capacity);
        reach->refs = refs;
        reach->capacity = capacity;
    }
    reach->refs[reach->count++] = *ref;
    return 0;
}

unsigned expire_reached(const struct expire_reach *reach, enum expire_kind kind,
                        const uint8_t volume[ID_LEN], const uint8_t snapshot[ID_LEN],
                        uint32_t number)
{
    struct expire_ref key = {.number = number, .kind = (uint16_t)kind};
    memcpy(key.volume, volume, ID_LEN);
    memcpy(key.snapshot, snapshot, ID_LEN);
    const struct expire_ref *found =
        reach->count ? bsearch(&key, reach->refs, reach->count, sizeof(key), compare_refs) : NULL;
    return found ? found->by : 0;
}

void expire_reach_release(struct expire_reach *reach)
{
    free(reach->manifests);
    free(reach->refs);
    *reach = (struct expire_reach){.refs = NULL};
}

/* --- manifests -------------------------------------------------------------------------------- */

static int note_manifest(void *ctx, const char *name, uint64_t size, struct err *err)
{
    struct expire_reach *reach = ctx;
    struct expire_manifest found;
    char volume[ID_TEXT_LEN] = "";
    const char *slash = strrchr(name, '/');
    (void)size;
    if (slash - name != (ptrdiff_t)strlen("volume/") + ID_TEXT_LEN - 1)
        return 0;
    memcpy(volume, slash - (ID_TEXT_LEN - 1), ID_TEXT_LEN - 1);
    if (!id_from_text(volume, found.volume) || !id_from_text(slash + 1, found.snapshot))
        return 0;
    if (reach->manifest_count == reach->manifest_capacity) {
        size_t capacity = reach->manifest_capacity ? 2 * reach->manifest_capacity : 64;
        struct expire_manifest *items = realloc(reach->manifests, capacity * sizeof(*items));
        if (!items)
            return err_set(err, ERR_INTERNAL, "out of memory for %zu manifests", capacity);
        reach->manifests = items;
        reach->manifest_capacity = capacity;
    }
    reach->manifests[reach->manifest_count++] = found;
    return 0;
}

static int add_all(struct expire_reach *reach, const struct fmt_manifest *manifest, unsigned by,
                   int64_t until_s, struct err *err)
{
    struct expire_ref ref = {.kind = EXPIRE_PACK, .by = (uint16_t)by, .until_s = until_s};
    int rc = 0;
    memcpy(ref.volume, manifest->volume, ID_LEN);
    for (uint32_t i = 0; rc == 0 && i < manifest->pack_count; i++) {
        memcpy(ref.snapshot, manifest->packs[i].snapshot, ID_LEN);
        ref.number = manifest->packs[i].number;
        rc = add_ref(reach, &ref, err);
    }
    ref.kind = EXPIRE_TABLE;
    for (uint32_t i = 0; rc == 0 && i < manifest->region_count; i++) {
        const struct fmt_manifest_region *region = &manifest->regions[i];
        if (i > 0 && region->number == ref.number &&
            memcmp(region->snapshot, ref.snapshot, ID_LEN) == 0)
            continue;
        memcpy(ref.snapshot, region->snapshot, ID_LEN);
        ref.number = region->number;
        rc = add_ref(reach, &ref, err);
    }
    return rc;
}

static int unreadable(const struct expire *expire, const struct expire_manifest *which,
                      struct expire_item *item, struct err *err)
{
    char id[ID_TEXT_LEN], date[TEXT_TIME_LEN];
    struct err ignored;
    bool by_id = item && (item->has_record || item->unreadable);
    id_to_text(which->snapshot, id);
    if (by_id && item->has_record) /* of a damaged record it is not known yet */
        (void)expire_lock_ask(expire, item, &ignored);
    (void)err_prefix(err, "nothing is removed, because it is not known what snapshot %s needs", id);
    if (!by_id)
        return err_hint(err, "it has no record: when its last object is as old as the grace period "
                             "it is given up, and another grace later the rest goes on");
    text_time(item->locked_until_s, date);
    if (!expire_is_ours(expire, item))
        return err_hint(err,
                        "it is of cluster '%s': `tidemark expire --confirm %s` on a host of that "
                        "cluster gives it up, and the rest goes on when an expire there has "
                        "removed it",
                        item->name.cluster, id);
    if (item->locked_until_s > 0)
        return err_hint(err,
                        "it cannot be restored, nor given up before its lock ends, %s: until then "
                        "nothing is removed; `tidemark check` says whether a newer version hides "
                        "a good one, which can be had back",
                        date);
    if (item->withdrawn && !item->unreadable)
        return err_hint(err, "it is withdrawn: when its grace is over the rest goes on");
    return err_hint(err,
                    "it cannot be restored as it is; `tidemark expire --confirm %s` gives it up, "
                    "and the rest goes on when its grace is over",
                    id);
}

/* A record is put behind its manifests and removed before them. So a withdrawn snapshot may be one
 * that another expire has just removed, if its record is gone, too, or came behind the mark
 * `abandoned`, and never counted; any other has lost what says which objects it needs: hidden
 * behind a delete marker, perhaps, or left out of a copy. */
static int missing(const struct expire *expire, const struct expire_manifest *which,
                   struct expire_item *item, struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    uint64_t size;
    int rc = 0;
    bool removed =
        item && item->withdrawn && (!item->has_record || item->mark_why == mark_abandoned);
    if (item && item->withdrawn && !removed) {
        repo_record_name(name, item->name.cluster, item->name.node, item->name.id);
        rc = store_size(expire->store, name, &size, err);
    }
    if (rc == -ERR_MISSING || removed) {
        err_clear(err);
        return 0;
    }
    if (rc < 0)
        return rc;
    repo_manifest_name(name, which->volume, which->snapshot);
    (void)err_set(err, ERR_CORRUPT, "its manifest '%s' is not there", name);
    return unreadable(expire, which, item, err);
}

static int add_manifest(struct expire *expire, struct expire_reach *reach,
                        const struct expire_manifest *which, struct err *err)
{
    struct expire_item *item = expire_find(expire, which->snapshot);
    unsigned by = item && item->dead ? 0 : REACHED_NOW;
    free_mem void *buf = NULL;
    struct fmt_manifest manifest;
    if (!item || item->returns || !(item->withdrawn || item->goes))
        by |= REACHED_LATER;
    if (by == 0)
        return 0;
    int rc = job_check_cancel(expire->job, err);
    restore_test_stop("expire-manifest");
    if (rc == 0)
        rc = catalog_manifest_alone(expire->store, &expire->repo, which->volume, which->snapshot,
                                    &buf, &manifest, err);
    if (rc == -ERR_MISSING)
        return missing(expire, which, item, err);
    if (rc == -ERR_CORRUPT || rc == -ERR_REFUSED)
        return unreadable(expire, which, item, err);
    return rc < 0 ? rc : add_all(reach, &manifest, by, item ? item->locked_until_s : 0, err);
}

static int compare_manifests(const void *a, const void *b)
{
    const struct expire_manifest *left = a, *right = b;
    int order = memcmp(left->volume, right->volume, ID_LEN);
    return order ? order : memcmp(left->snapshot, right->snapshot, ID_LEN);
}

/* Of the snapshots that were listed before the manifests. */
static int check_all_there(const struct expire *expire, const struct expire_reach *reach,
                           struct expire_item *item, struct err *err)
{
    struct expire_manifest key;
    int rc = 0;
    memcpy(key.snapshot, item->name.id, ID_LEN);
    for (size_t i = 0; rc == 0 && i < item->volume_count && !item->dead; i++) {
        memcpy(key.volume, item->volumes[i], ID_LEN);
        if (reach->manifest_count == 0 ||
            !bsearch(&key, reach->manifests, reach->manifest_count, sizeof(key), compare_manifests))
            rc = missing(expire, &key, item, err);
    }
    return rc;
}

int expire_reach_load(struct expire *expire, struct expire_reach *ret, struct err *err)
{
    int rc = store_list(expire->store, "volume/", note_manifest, ret, err);
    if (rc == 0 && ret->manifest_count)
        qsort(ret->manifests, ret->manifest_count, sizeof(*ret->manifests), compare_manifests);
    for (size_t i = 0; rc == 0 && i < expire->count; i++)
        rc = check_all_there(expire, ret, &expire->items[i], err);
    for (size_t i = 0; rc == 0 && i < ret->manifest_count; i++)
        rc = add_manifest(expire, ret, &ret->manifests[i], err);
    sort_refs(ret);
    return rc;
}
