/* The WAL of a snapshot in `tidemark verify`: every segment from start to tag, decoded and compared
 * with its SHA-256, and the history of its timeline. */
#include <inttypes.h>
#include <stdio.h>

#include "agent/pg_names.h"
#include "agent/verification.h"
#include "agent/wal.h"

static int check_wal_header(const struct verification *own, const char *name,
                            const struct fmt_wal *wal, struct err *err)
{
    const struct record *record = &own->record;
    if (strcmp(wal->name, name) != 0 || strcmp(wal->cluster, record->cluster) != 0 ||
        wal->system_id != record->system_id || wal->timeline != record->timeline)
        return err_set(err, ERR_CORRUPT, "it is another WAL file: %s of cluster %s", wal->name,
                       wal->cluster);
    if (wal->raw_len != record->segment_size)
        return err_set(err, ERR_CORRUPT, "it has %" PRIu64 " bytes, a segment has %u", wal->raw_len,
                       record->segment_size);
    return 0;
}

static int check_segment_once(struct verification *own, const char *name, struct err *err)
{
    const struct record *record = &own->record;
    char object[STORE_NAME_MAX + 1];
    free_mem void *buf = NULL, *raw = NULL;
    struct fmt_wal wal;
    size_t len;
    repo_wal_name(object, record->cluster, record->system_id, record->timeline, name);
    int rc =
        store_get_all(own->store, object, fmt_wal_len_max(record->segment_size), &buf, &len, err);
    if (rc < 0)
        return rc;
    rc = fmt_wal_decode_header(buf, len, own->repo.id, &wal, err);
    if (rc == 0)
        rc = check_wal_header(own, name, &wal, err);
    if (rc == 0 && !(raw = malloc(record->segment_size)))
        rc = err_set(err, ERR_INTERNAL, "out of memory for a segment");
    if (rc == 0)
        rc = fmt_wal_decode_body(buf, len, &wal, raw, err);
    return rc < 0 ? err_prefix(err, "%s", object) : 0;
}

static int check_segment(struct verification *own, const char *name, struct err *err)
{
    int rc = -ERR_CORRUPT;
    for (unsigned i = 0; rc == -ERR_CORRUPT && i < STORE_READ_TRIES; i++)
        rc = check_segment_once(own, name, err);
    return rc;
}

int verification_wal(struct verification *own, struct err *err)
{
    const struct record *record = &own->record;
    uint64_t last = (record->tag_lsn - 1) / record->segment_size;
    for (uint64_t i = record->start_lsn / record->segment_size; i <= last; i++) {
        char name[PG_SEGMENT_TEXT];
        pg_segment_name(record->timeline, i, record->segment_size, name);
        int rc = job_check_cancel(own->job, err);
        if (rc == 0)
            rc = check_segment(own, name, err);
        if (rc == 0)
            own->wal_objects++;
        else if (!verification_note(own, name, 0, err))
            return rc;
    }
    if (record->timeline == 1)
        return 0;
    struct wal_archive archive = {
        .store = own->store, .repo = &own->repo, .system_id = record->system_id};
    struct wal_history history;
    (void)snprintf(archive.cluster, sizeof(archive.cluster), "%s", record->cluster);
    int rc = wal_history_read(&archive, record->timeline, &history, err);
    own->wal_objects += rc == 0;
    return rc < 0 && verification_note(own, "timeline history", 0, err) ? 0 : rc;
}
