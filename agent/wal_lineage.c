/* See wal_lineage.h. */
#include "agent/wal_lineage.h"

int wal_lineage_load(const struct wal_archive *archive, struct wal_lineage *ret, struct err *err)
{
    struct wal_lineage found = {.count = 0};
    int rc = wal_timelines(archive, &found.timelines, &found.count, err);
    if (rc < 0)
        return rc;
    found.histories = calloc(found.count + 1, sizeof(struct wal_history *));
    if (!found.histories)
        rc = err_set(err, ERR_INTERNAL, "out of memory for timelines");
    for (size_t i = 0; rc == 0 && i < found.count; i++) {
        struct wal_history *history = malloc(sizeof(*history));
        if (!history)
            rc = err_set(err, ERR_INTERNAL, "out of memory for timelines");
        else
            rc = wal_history_read(archive, found.timelines[i], history, err);
        if (rc == 0)
            found.histories[i] = history;
        else
            free(history);
        if (rc == -ERR_MISSING || rc == -ERR_CORRUPT || rc == -ERR_REFUSED)
            rc = 0;
    }
    if (rc < 0)
        wal_lineage_release(&found);
    else
        *ret = found;
    return rc;
}

void wal_lineage_release(struct wal_lineage *lineage)
{
    for (size_t i = 0; lineage->histories && i < lineage->count; i++)
        free(lineage->histories[i]);
    free(lineage->histories);
    free(lineage->timelines);
    *lineage = (struct wal_lineage){.count = 0};
}

static const struct wal_history *history_of(const struct wal_lineage *lineage, uint32_t timeline)
{
    for (size_t i = 0; i < lineage->count; i++)
        if (lineage->timelines[i] == timeline)
            return lineage->histories[i];
    return NULL;
}

/* A standby's backup may begin on an ancestor of its timeline: who owns the byte is what counts. */
bool wal_lineage_needs(const struct wal_lineage *lineage, size_t index, uint32_t timeline,
                       uint64_t start_lsn)
{
    const struct wal_history *mine = history_of(lineage, timeline);
    const struct wal_history *its = lineage->histories[index];
    uint32_t candidate = lineage->timelines[index];
    if (candidate == timeline || !mine || !its)
        return true;
    if (candidate > timeline)
        return wal_history_owner(its, start_lsn) == wal_history_owner(mine, start_lsn);
    for (size_t i = 0; i < mine->count; i++)
        if (mine->entries[i].parent == candidate)
            return mine->entries[i].switch_lsn > start_lsn;
    return false;
}
