/* `tidemark verify`: reads everything that a restore of one snapshot would read, from the
 * repository alone, and checks it: record, manifests, region tables, every chunk (decoded and
 * digested, through pull's null sink), pg_control against the record, every WAL segment from start
 * to tag (decoded and compared with its SHA-256).
 *
 * It stops at the first damage, with its full context and how many objects were good before: what a
 * person needs to know is whether this snapshot restores, and a damaged repository is examined with
 * tidemark-inspect. */
#include <inttypes.h>
#include <stdio.h>

#include "agent/catalog.h"
#include "agent/job.h"
#include "agent/log.h"
#include "agent/pg_names.h"
#include "agent/repository.h"
#include "agent/wal.h"
#include "io/pull.h"

struct verification {
    struct job *job;
    const char *what;
    struct store *store;
    struct repo repo;
    struct record record;
    /* objects that were read whole and are good */
    uint64_t manifests, table_packs, packs, wal_objects;
};

/* Region tables are written in order, so the table packs of a snapshot come in runs: a change of
 * (snapshot, number) from region to region is a new object often enough to count by a set. */
static int compare_ref(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct fmt_pack_ref));
}

static int count_table_packs(const struct fmt_manifest *manifest, uint64_t *ret, struct err *err)
{
    struct fmt_pack_ref *refs = calloc((size_t)manifest->region_count + 1, sizeof(*refs));
    if (!refs)
        return err_set(err, ERR_INTERNAL, "out of memory for %u regions", manifest->region_count);
    for (uint32_t i = 0; i < manifest->region_count; i++) {
        memcpy(refs[i].snapshot, manifest->regions[i].snapshot, ID_LEN);
        refs[i].number = manifest->regions[i].number;
    }
    qsort(refs, manifest->region_count, sizeof(*refs), compare_ref);
    uint64_t count = 0;
    for (uint32_t i = 0; i < manifest->region_count; i++)
        count += i == 0 || compare_ref(&refs[i], &refs[i - 1]) != 0;
    free(refs);
    *ret = count;
    return 0;
}

/* --- volumes ---------------------------------------------------------------------------------- */

/* The record's copy of pg_control is what restore writes last: it must be the image's. */
static int check_control(struct verification *own, const struct fmt_manifest *manifest,
                         struct err *err)
{
    const struct record *record = &own->record;
    uint8_t control[sizeof(record->control)];
    size_t have = 0;
    for (size_t i = 0; i < record->control_extent_count; i++) {
        const struct extent *extent = &record->control_extents[i];
        size_t len = (size_t)min_u64(extent->len, sizeof(control) - have);
        int rc =
            pull_read(own->store, &own->repo, manifest, extent->offset, control + have, len, err);
        if (rc < 0)
            return err_prefix(err, "pg_control");
        have += len;
    }
    if (memcmp(control, record->control, sizeof(control)) != 0)
        return err_set(err, ERR_CORRUPT, "pg_control in the record is not the one in the image");
    return 0;
}

static int check_chunks(struct verification *own, const struct fmt_manifest *manifest,
                        struct err *err)
{
    const struct conf *conf = &own->job->conf;
    struct pull pull = {
        .store = own->store,
        .repo = &own->repo,
        .manifest = manifest,
        .sink = PULL_TO_NULL,
        .fd = -1,
        .alignment = manifest->logical_sector,
        .free_policy = PULL_FREE_LEAVE,
        .options = {.lane_count = conf->lanes, .memory_max = conf->memory_max},
        .progress = &own->job->progress,
    };
    return pull_run(&pull, err);
}

static int check_volume(struct verification *own, size_t index, struct err *err)
{
    const struct record_volume *volume = &own->record.volumes[index];
    free_mem void *buf = NULL;
    struct fmt_manifest manifest;
    uint64_t table_packs = 0;
    int rc = job_check_cancel(own->job, err);
    if (rc == 0)
        rc = catalog_manifest(own->store, &own->repo, &own->record, index, &buf, &manifest, err);
    if (rc == 0)
        rc = count_table_packs(&manifest, &table_packs, err);
    if (rc == 0)
        rc = check_chunks(own, &manifest, err);
    if (rc == 0 && strcmp(volume->name, own->record.control_volume) == 0)
        rc = check_control(own, &manifest, err);
    if (rc < 0)
        return err_prefix(err, "volume '%s'", volume->name);
    own->manifests++;
    own->table_packs += table_packs;
    own->packs += manifest.pack_count;
    return 0;
}

/* --- WAL -------------------------------------------------------------------------------------- */

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

static int check_wal(struct verification *own, struct err *err)
{
    const struct record *record = &own->record;
    uint64_t last = (record->tag_lsn - 1) / record->segment_size;
    for (uint64_t i = record->start_lsn / record->segment_size; i <= last; i++) {
        char name[PG_SEGMENT_TEXT];
        pg_segment_name(record->timeline, i, record->segment_size, name);
        int rc = job_check_cancel(own->job, err);
        if (rc == 0)
            rc = check_segment(own, name, err);
        if (rc < 0)
            return rc;
        own->wal_objects++;
    }
    if (record->timeline == 1)
        return 0;
    struct wal_archive archive = {
        .store = own->store, .repo = &own->repo, .system_id = record->system_id};
    struct wal_history history;
    (void)snprintf(archive.cluster, sizeof(archive.cluster), "%s", record->cluster);
    int rc = wal_history_read(&archive, record->timeline, &history, err);
    own->wal_objects += rc == 0;
    return rc;
}

/* --- the whole -------------------------------------------------------------------------------- */

static uint64_t object_count(const struct verification *own)
{
    bool has_record = own->record.volume_count > 0;
    return has_record + own->manifests + own->table_packs + own->packs + own->wal_objects;
}

static void set_result(struct verification *own)
{
    char id[ID_TEXT_LEN];
    id_to_text(own->record.id, id);
    json_t *result = json_pack(
        "{s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "snapshot", id, "tag", own->record.tag, "objects",
        (json_int_t)object_count(own), "manifests", (json_int_t)own->manifests, "table_packs",
        (json_int_t)own->table_packs, "packs", (json_int_t)own->packs, "wal_objects",
        (json_int_t)own->wal_objects, "bytes_read", (json_int_t)own->job->progress.bytes_done,
        "bytes_stored", (json_int_t)own->job->progress.bytes_stored);
    json_object_set_new(own->job->journal, "result", result);
}

static int open_snapshot(struct verification *own, struct err *err)
{
    static const char *const known[] = {"type", "snapshot", NULL};
    const struct conf *conf = &own->job->conf;
    size_t damaged = 0;
    int rc = json_check_keys(own->job->request, known, err);
    if (rc == 0)
        rc = json_get_string(own->job->request, "snapshot", ERR_USAGE, &own->what, err);
    if (rc == 0)
        rc = job_journal(own->job, NULL, "record", err);
    if (rc == 0)
        rc = repository_open(conf, &own->job->progress.cancel, &own->store, &own->repo, err);
    if (rc == 0)
        rc = catalog_find(own->store, &own->repo, conf->cluster, NULL, own->what, &own->record,
                          &damaged, err);
    return rc;
}

static int check_all(struct verification *own, struct err *err)
{
    char phase[32];
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < own->record.volume_count; i++) {
        (void)snprintf(phase, sizeof(phase), "volume %.20s", own->record.volumes[i].name);
        rc = job_journal(own->job, NULL, phase, err);
        if (rc == 0)
            rc = check_volume(own, i, err);
    }
    if (rc == 0 && own->record.archived) {
        rc = job_journal(own->job, NULL, "WAL", err);
        if (rc == 0)
            rc = check_wal(own, err);
    }
    return rc;
}

/* How far it came belongs to what a person is told about damage. */
static int report(struct verification *own, int rc, struct err *err)
{
    set_result(own);
    if (rc == 0) {
        log_info("verification of '%s': %" PRIu64 " objects, all good", own->what,
                 object_count(own));
        return 0;
    }
    if (rc == -ERR_CORRUPT || rc == -ERR_MISSING)
        (void)err_hint(err,
                       "%" PRIu64
                       " object%s good before it; this snapshot cannot be restored, take "
                       "a new one",
                       object_count(own), object_count(own) == 1 ? " was" : "s were");
    return rc;
}

int verification_run(struct job *job, struct err *err)
{
    struct verification *own = calloc(1, sizeof(*own));
    if (!own)
        return err_set(err, ERR_INTERNAL, "out of memory for a verification");
    own->job = job;
    int rc = open_snapshot(own, err);
    if (rc == 0)
        rc = report(own, check_all(own, err), err);
    record_release(&own->record);
    store_close(own->store);
    free(own);
    return rc;
}
