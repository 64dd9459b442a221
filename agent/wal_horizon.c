/* See wal_horizon.h. The name says all: a mark that cannot be read only makes a snapshot fail. */
#include "agent/wal_horizon.h"

#include <stdio.h>

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
            rc = store_remove(archive->store, all.items[i], err);
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
