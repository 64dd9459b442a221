/* Every snapshot that has a record or a mark: see expire.h. */
#include "agent/expire.h"

#include <stdio.h>

static int compare_items(const void *a, const void *b)
{
    const struct expire_item *left = a, *right = b;
    return memcmp(left->name.id, right->name.id, ID_LEN);
}

struct expire_item *expire_find(const struct expire *expire, const uint8_t id[ID_LEN])
{
    struct expire_item key;
    memcpy(key.name.id, id, ID_LEN);
    return expire->count ? bsearch(&key, expire->items, expire->count, sizeof(key), compare_items)
                         : NULL;
}

static int add_item(struct expire *expire, const struct catalog_name *name, struct err *err)
{
    if (expire->count == expire->capacity) {
        size_t capacity = expire->capacity ? 2 * expire->capacity : 64;
        struct expire_item *items = realloc(expire->items, capacity * sizeof(*items));
        if (!items)
            return err_set(err, ERR_INTERNAL, "out of memory for the list of snapshots");
        expire->items = items;
        expire->capacity = capacity;
    }
    expire->items[expire->count++] = (struct expire_item){.name = *name};
    return 0;
}

static int add_records(struct expire *expire, struct err *err)
{
    free_catalog_names struct catalog_names names = {0};
    int rc = catalog_names_all(expire->store, &names, err);
    for (size_t i = 0; rc == 0 && i < names.count; i++) {
        rc = add_item(expire, &names.items[i], err);
        if (rc == 0)
            expire->items[expire->count - 1].has_record = true;
    }
    if (rc == 0 && expire->count)
        qsort(expire->items, expire->count, sizeof(*expire->items), compare_items);
    return rc;
}

static bool is_ours(const struct expire *expire, const struct expire_item *item)
{
    return !item->has_record || strcmp(item->name.cluster, expire->conf->cluster) == 0;
}

/* What another cluster withdrew has that one's grace: it counts until its own expire has removed
 * the record. */
static int take_mark(struct expire *expire, struct expire_item *item, struct err *err)
{
    int64_t modified_s;
    int rc = mark_modified(expire->store, MARK_WITHDRAWN, item->name.id, &modified_s, err);
    if (rc == -ERR_MISSING) /* another expire has finished it */
        return 0;
    if (rc < 0)
        return rc;
    item->withdrawn = true;
    item->mark_age_s = expire->now_s - modified_s;
    item->dead =
        is_ours(expire, item) && item->mark_age_s >= (int64_t)expire->conf->retention_grace_s;
    return 0;
}

/* Marks are listed before anything that they decide about. */
static int take_marks(struct expire *expire, const struct mark_list *marks, struct err *err)
{
    int rc = 0;
    size_t known = expire->count;
    for (size_t i = 0; rc == 0 && i < marks->count; i++) {
        struct catalog_name name = {.cluster = ""};
        memcpy(name.id, marks->ids[i], ID_LEN);
        const struct expire key = {.items = expire->items, .count = known};
        if (!expire_find(&key, name.id))
            rc = add_item(expire, &name, err);
    }
    if (rc == 0 && expire->count)
        qsort(expire->items, expire->count, sizeof(*expire->items), compare_items);
    for (size_t i = 0; rc == 0 && i < marks->count; i++)
        rc = take_mark(expire, expire_find(expire, marks->ids[i]), err);
    return rc;
}

static void take_record(struct expire *expire, const struct record *record)
{
    struct expire_item *item = expire_find(expire, record->id);
    if (!item)
        return;
    item->known = true;
    memcpy(item->tag, record->tag, sizeof(item->tag));
    item->captured_s = record->captured_s;
    for (size_t i = 0; i < record->volume_count; i++)
        item->bytes_stored += record->volumes[i].bytes_stored;
    item->archived = record->archived;
    item->system_id = record->system_id;
    item->start_lsn = record->start_lsn;
    item->tag_lsn = record->tag_lsn;
    item->timeline = record->timeline;
    item->segment_size = record->segment_size;
}

static int read_records(struct expire *expire, struct err *err)
{
    free_catalog_names struct catalog_names names = {0};
    free_catalog_records struct catalog_records records = {0};
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < expire->count; i++) {
        const struct expire_item *item = &expire->items[i];
        if (item->has_record && is_ours(expire, item) && !item->dead)
            rc = catalog_names_add(&names, &item->name, err);
    }
    if (rc == 0)
        rc = catalog_load(expire->store, &expire->repo, names.items, names.count, &records, err);
    for (size_t i = 0; rc == 0 && i < records.count; i++)
        take_record(expire, &records.items[i]);
    expire->damaged = records.damaged;
    memcpy(expire->first_damaged, records.first_damaged, sizeof(expire->first_damaged));
    return rc;
}

/* Once, at the beginning: everything is a little older than it seems. */
static int read_clock(struct expire *expire, struct err *err)
{
    int64_t now_ms = 0;
    int rc = store_clock(expire->store, &now_ms, err);
    if (rc == 0 && now_ms == 0)
        rc = err_set(err, ERR_STORE, "the store does not tell the time");
    expire->now_s = now_ms / 1000;
    return rc;
}

/* See expire.h: a mark that was put at the same moment as a pin. Without a record nothing is left
 * that the pin could keep. */
static int judge_pin(struct expire *expire, struct expire_item *item, struct err *err)
{
    bool void_mark = false;
    if (!item->withdrawn || !item->pinned || !item->has_record || !is_ours(expire, item))
        return 0;
    int rc = expire_pin_voids(expire, item->name.id, &void_mark, err);
    item->returns = rc == 0 && void_mark;
    item->dead = item->dead && !item->returns;
    return rc;
}

int expire_load(struct expire *expire, struct err *err)
{
    free_mark_list struct mark_list withdrawn = {0};
    free_mark_list struct mark_list pins = {0};
    int rc = read_clock(expire, err);
    if (rc == 0)
        rc = mark_list(expire->store, MARK_WITHDRAWN, &withdrawn, err);
    if (rc == 0)
        rc = add_records(expire, err);
    if (rc == 0)
        rc = take_marks(expire, &withdrawn, err);
    if (rc == 0)
        rc = mark_list(expire->store, MARK_PIN, &pins, err);
    for (size_t i = 0; rc == 0 && i < expire->count; i++) {
        expire->items[i].pinned = mark_list_has(&pins, expire->items[i].name.id);
        rc = judge_pin(expire, &expire->items[i], err);
    }
    return rc < 0 ? rc : read_records(expire, err);
}
