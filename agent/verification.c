/* `tidemark verify`: reads everything that a restore of a snapshot would read, from the repository
 * alone, and checks it: record, manifests, region tables, every chunk (decoded and digested,
 * through pull's null sink), pg_control against the record, every WAL segment from start to tag. Of
 * all snapshots of the cluster, what two of them share is read once.
 *
 * Damage ends nothing: all of it is listed, because what a person has to know is which snapshots
 * still restore. What can be read again after that is examined with tidemark-inspect. */
#include "agent/verification.h"

#include <inttypes.h>
#include <stdio.h>

#include "agent/log.h"
#include "agent/repository.h"
#include "agent/restore.h"

enum { KNOWN_TRIES = 16 }; /* records that are looked at for an earlier state of a volume */

/* --- volumes -----------------------------------------------------------------------------------
 */

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

/* The manifest of the last snapshot in the list before this one that has the volume. */
static void find_known(struct verification *own, const uint8_t *volume, void **ret_buf,
                       struct fmt_manifest *ret, const struct fmt_manifest **ret_known)
{
    struct record *record = calloc(1, sizeof(*record));
    struct err ignored;
    uint8_t id[ID_LEN];
    for (uint64_t i = own->at; record && i-- > 0 && own->at - i <= KNOWN_TRIES && !*ret_known;) {
        const json_t *entry = json_array_get(own->snapshots, (size_t)i);
        if (!id_from_text(json_str(entry, "id"), id) ||
            catalog_read(own->store, &own->repo, json_str(entry, "cluster"),
                         json_str(entry, "node"), id, record, &ignored) < 0)
            continue;
        for (size_t k = 0; k < record->volume_count && !*ret_known; k++)
            if (memcmp(record->volumes[k].id, volume, ID_LEN) == 0 &&
                catalog_manifest(own->store, &own->repo, record, k, ret_buf, ret, &ignored) == 0)
                *ret_known = ret;
        record_release(record);
        memset(record, 0, sizeof(*record));
    }
    free(record);
}

static void note_damage(void *ctx, const struct pull_damage *damage)
{
    (void)verification_note(ctx, damage->object, damage->chunk_count, damage->err);
}

static int save_regions(void *ctx, const uint8_t *bitmap, size_t len, struct err *err)
{
    int rc = verification_save(ctx, bitmap, len, err);
    if (rc == 0)
        restore_test_stop("verify-ack");
    return rc;
}

static int check_chunks(struct verification *own, const struct fmt_manifest *manifest,
                        const uint8_t *done_before, struct err *err)
{
    const struct conf *conf = &own->job->conf;
    struct fmt_manifest known;
    free_mem void *known_buf = NULL;
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
        .done_before = done_before,
        .acknowledge = save_regions,
        .acknowledge_ctx = own,
        .sample_percent = own->percent,
        .sample_seed = own->seed,
        .damaged = note_damage,
        .damaged_ctx = own,
    };
    find_known(own, manifest->volume, &known_buf, &known, &pull.known);
    int rc = pull_run(&pull, err);
    own->packs += rc == 0 ? pull.packs_checked : 0;
    own->table_packs += rc == 0 ? pull.tables_checked : 0;
    return rc;
}

/* done_before: regions of an earlier run, NULL = none. */
static int check_volume(struct verification *own, size_t index, const uint8_t *done_before,
                        size_t done_len, enum verification_reach *reach, struct err *err)
{
    const struct record_volume *volume = &own->record.volumes[index];
    char name[STORE_NAME_MAX + 1];
    free_mem void *buf = NULL;
    struct fmt_manifest manifest;
    repo_manifest_name(name, volume->id, own->record.id);
    (void)snprintf(own->where, sizeof(own->where), "volume '%s'", volume->name);
    int rc = job_check_cancel(own->job, err);
    if (rc == 0)
        rc = catalog_manifest(own->store, &own->repo, &own->record, index, &buf, &manifest, err);
    if (rc < 0)
        return verification_note(own, name, 0, err) ? 0 : rc;
    if (done_before && done_len != div_round_up(manifest.region_count, 8))
        done_before = NULL;
    rc = check_chunks(own, &manifest, done_before, err);
    if (rc == 0 && strcmp(volume->name, own->record.control_volume) == 0) {
        rc = check_control(own, &manifest, err);
        if (rc < 0 && verification_note(own, "pg_control", 0, err))
            rc = 0;
    }
    if (rc < 0)
        return err_prefix(err, "%s", own->where);
    own->manifests++;
    enum verification_reach found = verification_reach(own, &manifest);
    *reach = found > *reach ? found : *reach;
    return 0;
}

/* --- snapshots ---------------------------------------------------------------------------------
 */

static int check_parts(struct verification *own, uint8_t *bitmap, size_t bitmap_len,
                       enum verification_reach *reach, struct err *err)
{
    char phase[64];
    const struct record *record = &own->record;
    int rc = 0;
    for (; rc == 0 && own->volume < record->volume_count; own->volume++) {
        (void)snprintf(phase, sizeof(phase), "%s%svolume %.20s", own->what ? "" : record->tag,
                       own->what ? "" : " ", record->volumes[own->volume].name);
        rc = job_journal(own->job, NULL, phase, err);
        if (rc == 0)
            rc = check_volume(own, (size_t)own->volume, bitmap, bitmap_len, reach, err);
        bitmap = NULL;
        if (rc < 0)
            return rc;
    }
    own->where[0] = '\0';
    if (rc == 0 && record->archived) {
        rc = job_journal(own->job, NULL, "WAL", err);
        if (rc == 0)
            rc = verification_wal(own, err);
    }
    return rc;
}

/* ERR_MISSING: it was expired meanwhile. From here on what it needs stays. */
static int open_snapshot(struct verification *own, const json_t *entry, const uint8_t id[ID_LEN],
                         struct err *err)
{
    int rc = catalog_read(own->store, &own->repo, json_str(entry, "cluster"),
                          json_str(entry, "node"), id, &own->record, err);
    own->record_read = own->record_read || rc == 0;
    return rc < 0 ? rc
                  : reading_begin(&own->reading, own->store, &own->repo, own->job, &own->record,
                                  false, err);
}

static void close_snapshot(struct verification *own)
{
    if (own->reading.job[0])
        reading_end(&own->reading, own->store, own->job, own->record.id);
    record_release(&own->record);
    memset(&own->record, 0, sizeof(own->record));
}

static int check_snapshot(struct verification *own, uint8_t *bitmap, size_t bitmap_len,
                          struct err *err)
{
    json_t *entry = json_array_get(own->snapshots, (size_t)own->at);
    uint8_t id[ID_LEN];
    enum verification_reach reach = REACH_NONE;
    if (!id_from_text(json_str(entry, "id"), id))
        return err_set(err, ERR_CORRUPT, "the job's list of snapshots is not one");
    own->where[0] = '\0';
    int rc = open_snapshot(own, entry, id, err);
    if (rc < 0)
        close_snapshot(own);
    if (rc == -ERR_MISSING) {
        log_warn("snapshot is gone meanwhile: node=%s tag=%s", json_str(entry, "node"),
                 json_str(entry, "tag"));
        (void)json_array_append(own->gone, entry);
        return 0;
    }
    if (rc < 0 && verification_note(own, json_str(entry, "id"), 0, err)) {
        (void)json_array_append(own->affected, entry);
        return 0;
    }
    if (rc < 0)
        return rc;
    rc = check_parts(own, bitmap, bitmap_len, &reach, err);
    bool sure = own->met || reach == REACH_MISSING;
    if (rc == 0 && (sure || reach == REACH_DAMAGED))
        (void)json_array_append(sure ? own->affected : own->unsure, entry);
    close_snapshot(own);
    return rc;
}

static int check_all(struct verification *own, uint8_t *bitmap, size_t bitmap_len, struct err *err)
{
    int rc = 0;
    for (; rc == 0 && own->at < json_array_size(own->snapshots); own->at += rc == 0) {
        rc = check_snapshot(own, bitmap, bitmap_len, err);
        bitmap = NULL;
        if (rc == 0) {
            own->volume = 0;
            own->met = false;
        }
    }
    return rc;
}

/* --- beginning and end -------------------------------------------------------------------------
 */

static int add_snapshot(void *ctx, const struct record *record, struct err *err)
{
    char id[ID_TEXT_LEN];
    (void)err;
    id_to_text(record->id, id);
    (void)json_array_append_new(ctx, json_pack("{s:s,s:s,s:s,s:s}", "cluster", record->cluster,
                                               "node", record->node, "id", id, "tag", record->tag));
    return 0;
}

static int list_snapshots(struct verification *own, struct err *err)
{
    const struct conf *conf = &own->job->conf;
    size_t damaged = 0;
    own->snapshots = json_array();
    if (own->what) {
        int rc = catalog_find(own->store, &own->repo, conf->file[0] ? conf->cluster : NULL, NULL,
                              own->what, &own->record, &damaged, err);
        if (rc == 0)
            rc = add_snapshot(own->snapshots, &own->record, err);
        record_release(&own->record);
        memset(&own->record, 0, sizeof(own->record));
        return rc;
    }
    int rc = catalog_list(own->store, &own->repo, conf->file[0] ? conf->cluster : "", add_snapshot,
                          own->snapshots, &damaged, err);
    struct err broken;
    (void)err_set(&broken, ERR_CORRUPT, "%zu snapshot records are damaged", damaged);
    if (rc == 0 && damaged > 0)
        (void)verification_note(own, "snapshot records", 0, &broken);
    return rc;
}

static int parse_request(struct verification *own, struct err *err)
{
    static const char *const known[] = {"type", "snapshot", "all", "percent", "seed", NULL};
    const json_t *request = own->job->request;
    uint64_t percent = 0;
    uint8_t random[ID_LEN];
    int rc = json_check_keys(request, known, err);
    if (rc == 0)
        rc = json_opt_string(request, "snapshot", ERR_USAGE, &own->what, err);
    if (rc == 0)
        rc = json_opt_u64(request, "percent", ERR_USAGE, &percent, err);
    if (rc == 0)
        rc = id_random(random, err);
    own->seed = get_le32(random);
    if (rc == 0)
        rc = json_opt_u64(request, "seed", ERR_USAGE, &own->seed, err);
    own->percent = (unsigned)percent;
    return rc;
}

static int begin(struct verification *own, uint8_t **ret_bitmap, size_t *ret_len, struct err *err)
{
    bool resumed = false;
    char hint[96];
    int rc = parse_request(own, err);
    if (rc == 0)
        rc = repository_open(&own->job->conf, &own->job->progress.cancel, &own->store, &own->repo,
                             err);
    if (rc == 0)
        job_note_repository(own->job, &own->repo);
    if (rc == 0)
        rc = verification_load(own, &resumed, ret_bitmap, ret_len, err);
    if (rc == 0 && !resumed)
        rc = list_snapshots(own, err);
    own->met &= resumed; /* a damaged record is no snapshot's that is read */
    if (rc < 0 || resumed)
        return rc;
    (void)snprintf(hint, sizeof(hint), "`tidemark verify --resume=%s` goes on", own->job->id);
    (void)json_object_set_new(own->job->journal, "interrupted_hint", json_string(hint));
    return verification_save(own, NULL, 0, err);
}

/* What came to its end cannot be resumed; what was cut off can, with what it has found so far. */
static int end(struct verification *own, int rc, struct err *err)
{
    struct err failed;
    verification_set_result(own);
    if (rc < 0)
        return rc;
    (void)json_object_del(own->job->journal, "position");
    (void)json_object_del(own->job->journal, "interrupted_hint");
    (void)json_object_del(own->job->journal, "damaged");
    (void)json_object_del(own->job->journal, "affected");
    (void)json_object_del(own->job->journal, "unsure");
    if (job_journal(own->job, NULL, NULL, &failed) < 0)
        log_err(&failed);
    log_info("verification: objects=%" PRIu64 " damaged=%" PRIu64, verification_objects(own),
             own->damaged_count);
    return verification_outcome(own, err);
}

int verification_run(struct job *job, struct err *err)
{
    struct verification *own = calloc(1, sizeof(*own));
    uint8_t *bitmap = NULL;
    size_t bitmap_len = 0;
    if (!own)
        return err_set(err, ERR_INTERNAL, "out of memory for a verification");
    verification_open_notes(own, job);
    int rc = job_journal(job, NULL, "record", err);
    if (rc == 0)
        rc = begin(own, &bitmap, &bitmap_len, err);
    if (rc == 0)
        rc = end(own, check_all(own, bitmap, bitmap_len, err), err);
    free(bitmap);
    record_release(&own->record);
    verification_close_notes(own);
    store_close(own->store);
    free(own);
    return rc;
}
