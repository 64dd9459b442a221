/* Every snapshot that has a record or a mark: see expire.h. */
#include "agent/expire.h"

#include <stdio.h>

#include "agent/log.h"
#include "agent/reading.h"
#include "agent/restore.h"

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

bool expire_is_ours(const struct expire *expire, const struct expire_item *item)
{
    return !item->has_record || strcmp(item->name.cluster, expire->conf->cluster) == 0;
}

/* One that cannot be read may be anybody's. It hides its snapshot, as it does for all readers. */
static int read_mark(struct expire *expire, struct expire_item *item, struct err *err)
{
    int rc = mark_read(expire->store, &expire->repo, MARK_WITHDRAWN, item->name.id, &item->mark_why,
                       err);
    if (rc != -ERR_CORRUPT && rc != -ERR_REFUSED)
        return rc;
    log_warn("a mark cannot be read: what its snapshot wrote stays err=\"%s\"", err->text);
    item->unreadable = true;
    expire->unreadable++;
    err_clear(err);
    return 0;
}

/* What another cluster withdrew has that one's grace: it counts until its own expire has removed
 * the record. */
static int take_mark(struct expire *expire, struct expire_item *item, struct err *err)
{
    int64_t modified_s;
    int rc = mark_modified(expire->store, MARK_WITHDRAWN, item->name.id, &modified_s, err);
    if (rc == 0 && expire_is_ours(expire, item))
        rc = read_mark(expire, item, err);
    if (rc == -ERR_MISSING) /* another expire has finished it */
        return 0;
    if (rc < 0)
        return rc;
    item->withdrawn = true;
    item->mark_age_s = expire->now_s - modified_s;
    item->dead =
        expire_is_ours(expire, item) && !item->unreadable && item->mark_age_s >= expire->grace_s;
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

/* When its lock ends is the store's to say, not the record's: see expire_lock.c. But a key that may
 * not see locks is shown none. */
static int take_record(struct expire *expire, const struct record *record, struct err *err)
{
    struct expire_item *item = expire_find(expire, record->id);
    if (!item)
        return 0;
    item->known = true;
    memcpy(item->tag, record->tag, sizeof(item->tag));
    item->captured_s = record->captured_s;
    item->committed_s = record->committed_s;
    for (size_t i = 0; i < record->volume_count; i++) {
        item->bytes_stored += record->volumes[i].bytes_stored;
        memcpy(item->volumes[i], record->volumes[i].id, ID_LEN);
    }
    item->volume_count = record->volume_count;
    item->archived = record->archived;
    item->system_id = record->system_id;
    item->start_lsn = record->start_lsn;
    item->tag_lsn = record->tag_lsn;
    item->timeline = record->timeline;
    item->segment_size = record->segment_size;
    if (record->locked_until_s <= expire->now_s || item->locked_until_s > 0)
        return 0;
    int rc = expire_lock_ask(expire, item, err);
    return rc == 0 && item->locked_until_s == 0 ? expire_lock_unseen(expire, item, err) : rc;
}

static int read_records(struct expire *expire, struct err *err)
{
    free_catalog_names struct catalog_names names = {0};
    free_catalog_records struct catalog_records records = {0};
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < expire->count; i++) {
        const struct expire_item *item = &expire->items[i];
        if (item->has_record && expire_is_ours(expire, item) && !item->dead)
            rc = catalog_names_add(&names, &item->name, err);
    }
    if (rc == 0)
        rc = catalog_load(expire->store, &expire->repo, names.items, names.count, &records, err);
    for (size_t i = 0; rc == 0 && i < records.count; i++)
        rc = take_record(expire, &records.items[i], err);
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

/* It keeps its snapshot whether it can be read or not. */
static int read_pin(struct expire *expire, const struct expire_item *item, struct err *err)
{
    const char *why;
    if (!item->pinned || !expire_is_ours(expire, item))
        return 0;
    int rc = mark_read(expire->store, &expire->repo, MARK_PIN, item->name.id, &why, err);
    bool unreadable = rc == -ERR_CORRUPT || rc == -ERR_REFUSED;
    if (unreadable)
        log_warn("a pin cannot be read: its snapshot stays, and `tidemark unpin` removes it "
                 "err=\"%s\"",
                 err->text);
    if (!unreadable && rc != -ERR_MISSING)
        return rc;
    err_clear(err);
    return 0;
}

/* See expire.h: a mark that was put at the same moment as a pin. Without a record nothing is left
 * that the pin could keep. */
static int judge_pin(struct expire *expire, struct expire_item *item, struct err *err)
{
    bool void_mark = false;
    if (!item->withdrawn || !item->pinned || !item->has_record || !expire_is_ours(expire, item))
        return 0;
    int rc = expire_pin_voids(expire, item->name.id, &void_mark, err);
    item->returns = rc == 0 && void_mark;
    item->dead = item->dead && !item->returns;
    return rc;
}

static int note_reading(void *ctx, const char *name, uint64_t size, struct err *err)
{
    uint8_t snapshot[ID_LEN];
    (void)size;
    return reading_parse(name, snapshot) ? expire_names_add(ctx, name, 0, err) : 0;
}

int expire_readings(const struct expire *expire, struct expire_names *ret,
                    struct expire_names *ret_old, struct err *err)
{
    struct expire_names names = {.names = NULL};
    int rc = store_list(expire->store, "reading/", note_reading, &names, err);
    restore_test_stop("expire-readings");
    for (size_t i = 0; rc == 0 && i < names.count; i++) {
        int64_t age_s = 0;
        rc = expire_age(expire, names.names[i], &age_s, err);
        if (age_s == INT64_MAX) /* it has just ended, or been put under another name */
            age_s = 0;
        if (rc == 0)
            rc = expire_names_add(age_s < READING_LIFE_S ? ret : ret_old, names.names[i], 0, err);
    }
    expire_names_release(&names);
    return rc;
}

/* Listed behind the marks of snapshots, see reading.h. */
static int take_readings(struct expire *expire, struct err *err)
{
    struct expire_names live = {.names = NULL};
    int rc = expire_readings(expire, &live, &expire->old_readings, err);
    for (size_t i = 0; rc == 0 && i < live.count; i++) {
        uint8_t snapshot[ID_LEN];
        struct expire_item *item =
            reading_parse(live.names[i], snapshot) ? expire_find(expire, snapshot) : NULL;
        if (item) {
            item->read = true;
            item->dead = false;
        }
    }
    expire_names_release(&live);
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
        rc = read_pin(expire, &expire->items[i], err);
        if (rc == 0)
            rc = judge_pin(expire, &expire->items[i], err);
    }
    if (rc == 0)
        rc = take_readings(expire, err);
    if (rc == 0)
        rc = expire_lock_revive(expire, err);
    return rc < 0 ? rc : read_records(expire, err);
}
