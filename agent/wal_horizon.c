/* See wal_horizon.h. The name says all: a mark that cannot be read only makes a snapshot fail. */
#include "agent/wal_horizon.h"

#include <stdio.h>

#include "agent/log.h"
#include "agent/mark.h"
#include "agent/pg_names.h"
#include "agent/wal_lineage.h"

enum { SEGMENT_LEN = 24, NAME_LEN = SEGMENT_LEN + 1 + ID_TEXT_LEN - 1 };

static void prefix_of(const struct wal_archive *archive, char ret[STORE_NAME_MAX + 1])
{
    (void)snprintf(ret, STORE_NAME_MAX + 1, "horizon/%s/%llu/", archive->cluster,
                   (unsigned long long)archive->system_id);
}

static void name_of(const struct wal_archive *archive, const char *segment, const char *job,
                    char ret[STORE_NAME_MAX + 1])
{
    char prefix[STORE_NAME_MAX + 1];
    prefix_of(archive, prefix);
    (void)snprintf(ret, STORE_NAME_MAX + 1, "%.200s%.24s-%.32s", prefix, segment, job);
}

int wal_horizon_put(const struct wal_archive *archive, const char *segment, const char *job,
                    const uint8_t because[ID_LEN], const char *by, struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    name_of(archive, segment, job, name);
    return mark_put_as(archive->store, archive->repo, name, because, NULL, by, err);
}

/* In a bucket with a default retention marks are locked, too: an older one goes another time. It
 * says less than the one that stays. */
static int remove_unlocked(struct store *store, const char *name, struct err *err)
{
    int rc = store_remove(store, name, err);
    if (rc != -ERR_REFUSED)
        return rc;
    log_info("a mark stays for now: the bucket has a default retention, which Tidemark does not "
             "need err=\"%s\"",
             err->text);
    err_clear(err);
    return 0;
}

int wal_horizon_remove(const struct wal_archive *archive, const char *segment, const char *job,
                       struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    name_of(archive, segment, job, name);
    return store_remove(archive->store, name, err);
}

/* --- all of a system -------------------------------------------------------------------------- */

static int list(const struct wal_archive *archive, struct mark_names *ret, struct err *err)
{
    char prefix[STORE_NAME_MAX + 1];
    prefix_of(archive, prefix);
    return mark_names(archive->store, prefix, ret, err);
}

/* Of two that say the same the name decides which stays, so that two expires do not remove each
 * other's. */
int wal_horizon_settle(const struct wal_archive *archive, const char *segment, const char *job,
                       struct err *err)
{
    struct mark_names all = {.items = NULL};
    char own[STORE_NAME_MAX + 1];
    enum { TIMELINE_LEN = 8 };
    name_of(archive, segment, job, own);
    size_t same = strlen(own) - NAME_LEN + TIMELINE_LEN;
    int rc = list(archive, &all, err);
    for (size_t i = 0; rc == 0 && i < all.count; i++)
        if (strncmp(all.items[i], own, same) == 0 && strcmp(all.items[i], own) < 0)
            rc = remove_unlocked(archive->store, all.items[i], err);
    free(all.items);
    return rc;
}

/* --- a snapshot's look ------------------------------------------------------------------------ */

static int read_history(const struct wal_archive *archive, uint32_t timeline,
                        struct wal_history **ret, struct err *err)
{
    free_mem struct wal_history *history = malloc(sizeof(*history));
    if (!history)
        return err_set(err, ERR_INTERNAL, "out of memory for a timeline");
    int rc = wal_history_read(archive, timeline, history, err);
    if (rc == 0)
        *ret = take_ptr(&history);
    return rc == -ERR_MISSING || rc == -ERR_CORRUPT || rc == -ERR_REFUSED ? 0 : rc;
}

/* Also of a timeline that has no WAL any more: wal_lineage_load() does not know it. */
static int needs(const struct wal_archive *archive, uint32_t gone, uint32_t timeline,
                 uint64_t start_lsn, bool *ret, struct err *err)
{
    uint32_t timelines[2] = {gone, timeline};
    struct wal_history *histories[2] = {NULL, NULL};
    const struct wal_lineage lineage = {
        .timelines = timelines, .histories = histories, .count = gone == timeline ? 1 : 2};
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < lineage.count && gone != timeline; i++)
        rc = read_history(archive, timelines[i], &histories[i], err);
    if (rc == 0)
        *ret = wal_lineage_needs(&lineage, 0, timeline, start_lsn);
    free(histories[0]);
    free(histories[1]);
    return rc;
}

static int refuse(const char *segment, uint64_t start_lsn, struct err *err)
{
    char lsn[PG_LSN_TEXT];
    pg_lsn_format(start_lsn, lsn);
    (void)err_set(err, ERR_BUSY,
                  "`tidemark expire` removes the WAL before %.24s, and the backup begins at %s: it "
                  "does not count as taken",
                  segment, lsn);
    return err_hint(err, "take it again; a standby that lags behind by more than [retention] grace "
                         "has to catch up first");
}

int wal_horizon_check(const struct wal_archive *archive, uint32_t timeline, uint64_t start_lsn,
                      uint32_t segment_size, struct err *err)
{
    struct mark_names all = {.items = NULL};
    int rc = list(archive, &all, err);
    for (size_t i = 0; rc == 0 && i < all.count; i++) {
        char segment[PG_SEGMENT_TEXT];
        uint32_t gone;
        uint64_t number;
        bool needed = false;
        (void)snprintf(segment, sizeof(segment), "%.24s", strrchr(all.items[i], '/') + 1);
        if (!pg_segment_parse(segment, segment_size, &gone, &number) ||
            number <= start_lsn / segment_size)
            continue;
        rc = needs(archive, gone, timeline, start_lsn, &needed, err);
        if (rc == 0 && needed)
            rc = refuse(segment, start_lsn, err);
    }
    free(all.items);
    return rc;
}

/* --- a restore's look ------------------------------------------------------------------------- */

struct replay {
    const struct wal_history *history;
    uint64_t from, end_lsn;
    uint32_t segment_size;
};

/* *ret: the first segment of the replay that goes. The one that holds a fork is read from the
 * timeline that owns the last byte wanted from it. */
static bool first_gone(const struct replay *replay, uint32_t gone, uint64_t below, uint64_t *ret)
{
    uint64_t last = (replay->end_lsn - 1) / replay->segment_size;
    for (uint64_t number = replay->from; number <= last && number < below; number++) {
        uint64_t last_byte = number * replay->segment_size + (replay->segment_size - 1);
        if (wal_history_owner(replay->history, min_u64(last_byte, replay->end_lsn - 1)) == gone) {
            *ret = number;
            return true;
        }
    }
    return false;
}

static int refuse_replay(const char *mark, uint64_t number, const struct replay *replay,
                         struct err *err)
{
    char lsn[PG_LSN_TEXT];
    pg_lsn_format(number * replay->segment_size, lsn);
    (void)err_set(err, ERR_BUSY,
                  "`tidemark expire` removes the WAL before %.24s, and the target needs it from %s "
                  "on",
                  strrchr(mark, '/') + 1, lsn);
    return err_hint(err,
                    "the snapshot's own tag needs none of it; if no expire is running, on any "
                    "host, it was killed: remove the object '%s', and try again",
                    mark);
}

static int check_replay(const struct mark_names *all, const struct replay *replay, struct err *err)
{
    for (size_t i = 0; i < all->count; i++) {
        char segment[PG_SEGMENT_TEXT];
        uint32_t gone;
        uint64_t below, number;
        (void)snprintf(segment, sizeof(segment), "%.24s", strrchr(all->items[i], '/') + 1);
        if (pg_segment_parse(segment, replay->segment_size, &gone, &below) &&
            first_gone(replay, gone, below, &number))
            return refuse_replay(all->items[i], number, replay, err);
    }
    return 0;
}

int wal_horizon_check_replay(const struct wal_archive *archive, uint32_t timeline, uint64_t from,
                             uint64_t end_lsn, uint32_t segment_size, struct err *err)
{
    struct mark_names all = {.items = NULL};
    if (end_lsn == 0 || (end_lsn - 1) / segment_size < from)
        return 0;
    free_mem struct wal_history *history = malloc(sizeof(*history));
    if (!history)
        return err_set(err, ERR_INTERNAL, "out of memory for a timeline");
    int rc = wal_history_read(archive, timeline, history, err);
    if (rc == 0)
        rc = list(archive, &all, err);
    if (rc == 0) {
        const struct replay replay = {
            .history = history, .from = from, .end_lsn = end_lsn, .segment_size = segment_size};
        rc = check_replay(&all, &replay, err);
    }
    free(all.items);
    return rc;
}
