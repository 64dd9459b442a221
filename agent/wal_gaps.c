/* See wal_gaps.h. The same rules as in expire_wal.c, which removes what is not needed. */
#include "agent/wal_gaps.h"

#include <stdio.h>
#include <time.h>

#include "agent/catalog.h"
#include "agent/mark.h"
#include "agent/pg_names.h"
#include "agent/wal_lineage.h"

enum { TRIES = 5 }; /* a second apart */

/* A snapshot whose WAL has to go on from its start. */
struct start {
    char tag[64], node[64];
    uint64_t system_id, lsn;
    uint32_t timeline, segment_size;
    bool pinned;
};

struct survey {
    struct store *store;
    const struct repo *repo;
    const char *cluster;
    struct mark_list pins;
    struct start *starts; /* oldest snapshot first */
    size_t count, capacity;
};

static int note_record(void *ctx, const struct record *record, struct err *err)
{
    struct survey *survey = ctx;
    if (!record->archived)
        return 0;
    if (survey->count == survey->capacity) {
        size_t capacity = survey->capacity ? 2 * survey->capacity : 64;
        struct start *starts = realloc(survey->starts, capacity * sizeof(*starts));
        if (!starts)
            return err_set(err, ERR_INTERNAL, "out of memory for %zu snapshots", capacity);
        survey->starts = starts;
        survey->capacity = capacity;
    }
    struct start *start = &survey->starts[survey->count++];
    *start = (struct start){.system_id = record->system_id,
                            .lsn = record->start_lsn,
                            .timeline = record->timeline,
                            .segment_size = record->segment_size,
                            .pinned = mark_list_has(&survey->pins, record->id)};
    (void)snprintf(start->tag, sizeof(start->tag), "%s", record->tag);
    (void)snprintf(start->node, sizeof(start->node), "%s", record->node);
    return 0;
}

/* The newest of a node counts, pinned or not. */
static bool is_continuous(const struct survey *survey, size_t index)
{
    bool newest = true;
    for (size_t i = index + 1; newest && i < survey->count; i++)
        newest = strcmp(survey->starts[i].node, survey->starts[index].node) != 0;
    return newest || !survey->starts[index].pinned;
}

/* The one with the lowest start that needs the timeline; NULL = none. */
static const struct start *lowest_start(const struct survey *survey, uint64_t system_id,
                                        const struct wal_lineage *lineage, size_t index)
{
    const struct start *lowest = NULL;
    for (size_t i = 0; i < survey->count; i++) {
        const struct start *start = &survey->starts[i];
        if (start->system_id == system_id && is_continuous(survey, i) &&
            (!lowest || start->lsn < lowest->lsn) &&
            wal_lineage_needs(lineage, index, start->timeline, start->lsn))
            lowest = start;
    }
    return lowest;
}

struct last {
    uint32_t segment_size;
    bool any;
    uint64_t number;
};

static int note_last(void *ctx, const char *name, uint64_t size, struct err *err)
{
    struct last *last = ctx;
    uint32_t timeline;
    uint64_t number;
    (void)size, (void)err;
    if (pg_segment_parse(strrchr(name, '/') + 1, last->segment_size, &timeline, &number)) {
        last->any = true;
        last->number = number; /* they ascend */
    }
    return 0;
}

static int check_patiently(const struct wal_archive *archive, uint32_t timeline, uint64_t from,
                           uint64_t to, uint32_t segment_size, struct err *err)
{
    int rc = wal_check_range(archive, timeline, from, to, segment_size, err);
    for (unsigned tries = 1; rc == -ERR_MISSING && tries < TRIES; tries++) {
        const struct timespec pause = {.tv_sec = 1};
        (void)nanosleep(&pause, NULL);
        rc = wal_check_range(archive, timeline, from, to, segment_size, err);
    }
    return rc;
}

static int check_timeline(const struct survey *survey, const struct wal_archive *archive,
                          const struct wal_lineage *lineage, size_t index, struct wal_gaps *ret,
                          struct err *err)
{
    char prefix[STORE_NAME_MAX + 1];
    const struct start *start = lowest_start(survey, archive->system_id, lineage, index);
    if (!start)
        return 0;
    struct last last = {.segment_size = start->segment_size};
    repo_wal_name(prefix, archive->cluster, archive->system_id, lineage->timelines[index], "x");
    strrchr(prefix, '/')[1] = '\0';
    int rc = store_list(archive->store, prefix, note_last, &last, err);
    if (rc < 0 || !last.any)
        return rc;
    ret->timelines++;
    memcpy(ret->oldest, start->tag, sizeof(ret->oldest));
    rc = check_patiently(archive, lineage->timelines[index], start->lsn,
                         (last.number + 1) * start->segment_size, start->segment_size, err);
    if (rc == -ERR_MISSING) {
        (void)err_prefix(err, "the WAL from snapshot '%s' on has a gap", start->tag);
        return err_hint(err, "no recovery passes it: push the file with `tidemark-wal push` from "
                             "wherever it still is; or take a new snapshot, then give up those "
                             "from before the gap with `tidemark expire TAG... --confirm`");
    }
    return rc;
}

static int check_system(const struct survey *survey, uint64_t system_id, struct wal_gaps *ret,
                        struct err *err)
{
    struct wal_archive archive = {
        .store = survey->store, .repo = survey->repo, .system_id = system_id};
    struct wal_lineage lineage = {.count = 0};
    (void)snprintf(archive.cluster, sizeof(archive.cluster), "%s", survey->cluster);
    int rc = wal_lineage_load(&archive, &lineage, err);
    for (size_t i = 0; rc == 0 && i < lineage.count; i++)
        rc = check_timeline(survey, &archive, &lineage, i, ret, err);
    wal_lineage_release(&lineage);
    return rc;
}

static bool is_first_of_system(const struct survey *survey, size_t index)
{
    for (size_t i = 0; i < index; i++)
        if (survey->starts[i].system_id == survey->starts[index].system_id)
            return false;
    return true;
}

int wal_gaps(struct store *store, const struct repo *repo, const char *cluster,
             struct wal_gaps *ret, struct err *err)
{
    struct survey survey = {.store = store, .repo = repo, .cluster = cluster};
    struct wal_gaps found = {.timelines = 0};
    int rc = mark_list(store, MARK_PIN, &survey.pins, err);
    if (rc == 0)
        rc = catalog_list(store, repo, cluster, note_record, &survey, NULL, err);
    for (size_t i = 0; rc == 0 && i < survey.count; i++)
        if (is_first_of_system(&survey, i))
            rc = check_system(&survey, survey.starts[i].system_id, &found, err);
    mark_list_release(&survey.pins);
    free(survey.starts);
    if (rc == 0)
        *ret = found;
    return rc;
}
