/* WAL that no snapshot needs. What counts are the snapshots that are visible or withdrawn for less
 * than the grace period. Of each timeline WAL is kept without a gap from the lowest start of those
 * that are not pinned and may recover along it (wal_lineage.h); of a pinned one start … tag. The
 * newest snapshot of a node, and one that a job reads, count as not pinned.
 *
 * Always kept: history files; timelines newer than those of all snapshots; everything of a system
 * of which there is no snapshot, because its first one may be under way; everything while a record
 * is damaged, which might need it; what is younger than the grace period, but for what arrived
 * after WAL that follows it. */
#include "agent/expire.h"

#include <stdio.h>

#include "agent/log.h"
#include "agent/pg_names.h"
#include "agent/reading.h"
#include "agent/repository_access.h"
#include "agent/restore.h"
#include "agent/wal_horizon.h"
#include "agent/wal_lineage.h"

struct wal_sweep {
    struct expire *expire;
    struct wal_archive archive;
    uint32_t segment_size;
    struct wal_lineage lineage;
    uint32_t newest_timeline; /* of a snapshot */
    uint64_t from;            /* number of the first segment needed of the timeline at hand */
    const struct expire_item *because; /* that snapshot, or else any that counts */
    struct expire_names names;
};

static bool counts(const struct wal_sweep *sweep, const struct expire_item *item)
{
    return item->known && item->archived && item->system_id == sweep->archive.system_id;
}

static bool is_continuous(const struct expire_item *item)
{
    return !item->pinned || item->is_newest || item->read;
}

/* UINT64_MAX: none. */
static uint64_t first_needed(struct wal_sweep *sweep, size_t index)
{
    const struct expire *expire = sweep->expire;
    uint64_t lowest = UINT64_MAX;
    if (sweep->lineage.timelines[index] > sweep->newest_timeline)
        return 0;
    for (size_t i = 0; i < expire->count; i++) {
        const struct expire_item *item = &expire->items[i];
        if (counts(sweep, item) && is_continuous(item) &&
            wal_lineage_needs(&sweep->lineage, index, item->timeline, item->start_lsn) &&
            item->start_lsn / sweep->segment_size < lowest) {
            lowest = item->start_lsn / sweep->segment_size;
            sweep->because = item;
        }
    }
    return lowest;
}

static bool is_pinned(const struct wal_sweep *sweep, uint64_t number)
{
    const struct expire *expire = sweep->expire;
    for (size_t i = 0; i < expire->count; i++) {
        const struct expire_item *item = &expire->items[i];
        if (counts(sweep, item) && item->pinned && item->tag_lsn > item->start_lsn &&
            number >= item->start_lsn / sweep->segment_size &&
            number <= (item->tag_lsn - 1) / sweep->segment_size)
            return true;
    }
    return false;
}

static int on_file(void *ctx, const char *name, uint64_t size, struct err *err)
{
    struct wal_sweep *sweep = ctx;
    char segment[PG_SEGMENT_TEXT];
    enum wal_kind kind;
    uint32_t timeline;
    uint64_t number;
    const char *base = strrchr(name, '/') + 1;
    if (!wal_name_parse(base, &kind, NULL) || kind == WAL_HISTORY)
        return 0;
    (void)snprintf(segment, sizeof(segment), "%.24s", base);
    if (!pg_segment_parse(segment, sweep->segment_size, &timeline, &number))
        return 0;
    return number >= sweep->from || is_pinned(sweep, number)
               ? 0
               : expire_names_add(&sweep->names, name, size, err);
}

/* They were written in the order of their names, but for a few: the first that is too young is
 * searched for. With lock_days they are locked for as long from their arrival. */
static int count_old(struct wal_sweep *sweep, size_t *ret, struct err *err)
{
    const struct expire *expire = sweep->expire;
    int64_t old_s = (int64_t)max_u64((uint64_t)expire->grace_s, repository_lock_s(expire->conf));
    size_t low = 0, high = sweep->names.count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int64_t age_s = 0;
        int rc = expire_age(sweep->expire, sweep->names.names[middle], &age_s, err);
        if (rc < 0)
            return rc;
        if (age_s >= old_s)
            low = middle + 1;
        else
            high = middle;
    }
    *ret = low;
    return 0;
}

/* --- the second look, see wal_horizon.h ------------------------------------------------------- */

static bool is_needed_from(const struct wal_sweep *sweep, size_t index, uint64_t below,
                           uint32_t timeline, uint64_t start_lsn)
{
    return start_lsn / sweep->segment_size < below &&
           wal_lineage_needs(&sweep->lineage, index, timeline, start_lsn);
}

static bool is_needed_by(const struct wal_sweep *sweep, size_t index, uint64_t below,
                         const struct record *record)
{
    return record->archived && record->system_id == sweep->archive.system_id &&
           is_needed_from(sweep, index, below, record->timeline, record->start_lsn);
}

/* Of a pinned snapshot all WAL from its start on is wanted once somebody reads it. A dead one that
 * is read was begun earlier: what it needs is not known. */
static bool is_read(const struct wal_sweep *sweep, size_t index, uint64_t below, const char *mark)
{
    const struct expire *expire = sweep->expire;
    uint8_t snapshot[ID_LEN];
    const struct expire_item *item =
        reading_parse(mark, snapshot) ? expire_find(expire, snapshot) : NULL;
    if (!item || !item->has_record || !expire_is_ours(expire, item))
        return false;
    return !item->known || (counts(sweep, item) &&
                            is_needed_from(sweep, index, below, item->timeline, item->start_lsn));
}

/* *ret: a job that has begun to read since the readers were listed needs some of it. */
static int look_for_readers(const struct wal_sweep *sweep, size_t index, uint64_t below, bool *ret,
                            struct err *err)
{
    struct expire_names live = {.names = NULL}, old = {.names = NULL};
    int rc = expire_readings(sweep->expire, &live, &old, err);
    bool needed = false;
    for (size_t i = 0; rc == 0 && i < live.count; i++)
        needed = needed || is_read(sweep, index, below, live.names[i]);
    expire_names_release(&live);
    expire_names_release(&old);
    if (rc == 0)
        *ret = needed;
    return rc;
}

/* *ret: a snapshot that was committed since the records were listed needs some of it, or it cannot
 * be told. */
static int look_again(const struct wal_sweep *sweep, size_t index, uint64_t below, bool *ret,
                      struct err *err)
{
    const struct expire *expire = sweep->expire;
    free_catalog_names struct catalog_names all = {0};
    free_catalog_names struct catalog_names later = {0};
    free_catalog_records struct catalog_records records = {0};
    int rc = catalog_names_all(expire->store, &all, err);
    for (size_t i = 0; rc == 0 && i < all.count; i++) {
        /* One known by its mark only may have been committed, and its mark taken back, since. */
        const struct expire_item *known = expire_find(expire, all.items[i].id);
        if ((!known || !known->has_record) &&
            strcmp(all.items[i].cluster, expire->conf->cluster) == 0)
            rc = catalog_names_add(&later, &all.items[i], err);
    }
    if (rc == 0 && later.count)
        rc = catalog_load(expire->store, &expire->repo, later.items, later.count, &records, err);
    bool needed = records.damaged > 0;
    for (size_t i = 0; rc == 0 && i < records.count; i++)
        needed = needed || is_needed_by(sweep, index, below, &records.items[i]);
    if (rc == 0)
        *ret = needed;
    return rc;
}

/* The first segment behind those that are to go. */
static uint64_t horizon(const struct wal_sweep *sweep, size_t index, char ret[PG_SEGMENT_TEXT])
{
    uint32_t timeline;
    uint64_t number = 0;
    char last[PG_SEGMENT_TEXT];
    const char *name = sweep->names.names[sweep->names.count - 1];
    (void)snprintf(last, sizeof(last), "%.24s", strrchr(name, '/') + 1);
    (void)pg_segment_parse(last, sweep->segment_size, &timeline, &number);
    pg_segment_name(sweep->lineage.timelines[index], number + 1, sweep->segment_size, ret);
    return number + 1;
}

static int remove_below(struct wal_sweep *sweep, size_t index, struct err *err)
{
    struct expire *expire = sweep->expire;
    char segment[PG_SEGMENT_TEXT];
    uint64_t below = horizon(sweep, index, segment);
    bool needed = false;
    restore_test_stop("expire-wal-listed");
    int rc = wal_horizon_put(&sweep->archive, segment, expire->job->id, sweep->because->name.id,
                             expire->conf->node, err);
    if (rc == 0)
        rc = look_again(sweep, index, below, &needed, err);
    if (rc == 0 && !needed)
        rc = look_for_readers(sweep, index, below, &needed, err);
    restore_test_stop("expire-wal-looked");
    if (rc == 0 && needed) {
        log_info("WAL before %s stays: a snapshot was committed, or is read, that may need it",
                 segment);
        expire_names_release(&sweep->names);
        return wal_horizon_remove(&sweep->archive, segment, expire->job->id, err);
    }
    if (rc == 0)
        rc = expire_remove(expire, &sweep->names, err);
    return rc < 0 ? rc : wal_horizon_settle(&sweep->archive, segment, expire->job->id, err);
}

/* --- timelines, systems ----------------------------------------------------------------------- */

static int sweep_timeline(struct wal_sweep *sweep, size_t index, struct err *err)
{
    struct expire *expire = sweep->expire;
    char prefix[STORE_NAME_MAX + 1];
    size_t old = 0;
    sweep->from = first_needed(sweep, index);
    if (sweep->from == 0)
        return 0;
    repo_wal_name(prefix, sweep->archive.cluster, sweep->archive.system_id,
                  sweep->lineage.timelines[index], "x");
    strrchr(prefix, '/')[1] = '\0';
    int rc = store_list(expire->store, prefix, on_file, sweep, err);
    if (rc == 0)
        rc = count_old(sweep, &old, err);
    while (rc == 0 && sweep->names.count > old)
        free(sweep->names.names[--sweep->names.count]);
    if (rc == 0 && sweep->names.count && !expire->dry_run)
        rc = remove_below(sweep, index, err);
    for (size_t i = 0; rc == 0 && i < sweep->names.count; i++) {
        expire->wal_objects++;
        expire->wal_bytes += sweep->names.sizes[i];
    }
    expire_names_release(&sweep->names);
    return rc;
}

/* The snapshots of one system: false when its WAL has to stay. */
static bool survey(struct wal_sweep *sweep)
{
    const struct expire *expire = sweep->expire;
    bool any = false;
    for (size_t i = 0; i < expire->count; i++) {
        const struct expire_item *item = &expire->items[i];
        if (!counts(sweep, item))
            continue;
        if (sweep->segment_size && sweep->segment_size != item->segment_size)
            return false;
        sweep->segment_size = item->segment_size;
        if (item->timeline > sweep->newest_timeline)
            sweep->newest_timeline = item->timeline;
        any = any || is_continuous(item);
        sweep->because = item;
    }
    return any && pg_segment_size_valid(sweep->segment_size);
}

static int sweep_system(struct expire *expire, uint64_t system_id, struct err *err)
{
    struct wal_sweep sweep = {
        .expire = expire,
        .archive = {.store = expire->store, .repo = &expire->repo, .system_id = system_id}};
    (void)snprintf(sweep.archive.cluster, sizeof(sweep.archive.cluster), "%s",
                   expire->conf->cluster);
    if (!survey(&sweep))
        return 0;
    int rc = wal_lineage_load(&sweep.archive, &sweep.lineage, err);
    for (size_t i = 0; rc == 0 && i < sweep.lineage.count; i++)
        rc = sweep_timeline(&sweep, i, err);
    wal_lineage_release(&sweep.lineage);
    return rc;
}

static bool seen_before(const struct expire *expire, size_t index)
{
    for (size_t i = 0; i < index; i++)
        if (expire->items[i].known && expire->items[i].archived &&
            expire->items[i].system_id == expire->items[index].system_id)
            return true;
    return false;
}

int expire_wal(struct expire *expire, struct err *err)
{
    int rc = 0;
    if (expire->damaged) {
        log_warn("no WAL is removed: %zu records are damaged, the first: %s", expire->damaged,
                 expire->first_damaged);
        return 0;
    }
    for (size_t i = 0; rc == 0 && i < expire->count; i++) {
        const struct expire_item *item = &expire->items[i];
        if (item->known && item->archived && !seen_before(expire, i))
            rc = sweep_system(expire, item->system_id, err);
    }
    return rc;
}
