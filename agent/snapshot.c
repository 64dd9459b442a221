/* The order of a snapshot. Every step that needs to fail early stands before the checkpoint, every
 * step that makes something visible after the last check, and the record is the last write:
 *
 *   (job.c holds the node's lock) → repository, tag free → volumes → server checks and facts →
 * layout → parent, tables → proof of archiving → pg_backup_start → capture, push, end of capture →
 * pg_backup_stop → restore point, WAL switch → seal → wait for WAL start … tag → locks → same
 * parent, not withdrawn → pg_control cut → same server → record → still not withdrawn → table
 * caches
 *
 * A live copy (provider precopy) does the bulk of it before pg_backup_start, so that the WAL that
 * belongs to the snapshot stays short; the checkpoint's writes are among what is copied again.
 *
 * A crash anywhere before the record leaves objects that no record names, and a working table. The
 * server leaves backup mode when the session's connection closes, and the guardian thaws. */
#include "agent/snapshot.h"
#include "agent/api_request.h"

#include <stdio.h>
#include <time.h>

#include "agent/log.h"
#include "agent/repository.h"
#include "agent/restore.h"

int snapshot_phase(struct snapshot *snapshot, const char *phase, struct err *err)
{
    int rc = job_check_cancel(snapshot->job, err);
    if (rc < 0)
        return rc;
    log_info("snapshot=%s tag=%s phase=\"%s\"", snapshot->id_text, snapshot->request.tag, phase);
    return job_journal(snapshot->job, NULL, phase, err);
}

int snapshot_pause(const struct snapshot *snapshot, unsigned pause_ms, struct err *err)
{
    struct timespec pause = {.tv_sec = pause_ms / 1000,
                             .tv_nsec = (long)(pause_ms % 1000) * 1000000};
    (void)nanosleep(&pause, NULL); /* a signal ends it early: then the check below tells */
    return job_check_cancel(snapshot->job, err);
}

/* --- request, repository, volumes ------------------------------------------------------------- */

static int read_request(struct snapshot *snapshot, struct err *err)
{
    static const char *const known[] = {"type",       "tag",         "full",
                                        "no_archive", "with_wal",    "checkpoint",
                                        "members",    "cluster_job", NULL};
    const json_t *json = snapshot->job->request;
    struct snapshot_request *request = &snapshot->request;
    const char *checkpoint = snapshot->conf->checkpoint_fast ? "fast" : "spread";
    int rc = json_check_keys(json, known, err);
    if (rc == 0)
        rc = json_get_string(json, "tag", ERR_USAGE, &request->tag, err);
    if (rc == 0)
        rc = json_opt_bool(json, "full", ERR_USAGE, &request->full, err);
    if (rc == 0)
        rc = json_opt_bool(json, "no_archive", ERR_USAGE, &request->no_archive, err);
    if (rc == 0)
        rc = json_opt_bool(json, "with_wal", ERR_USAGE, &request->with_wal, err);
    if (rc == 0)
        rc = json_opt_string(json, "checkpoint", ERR_USAGE, &checkpoint, err);
    if (rc < 0)
        return rc;
    request->checkpoint_fast = strcmp(checkpoint, "fast") == 0;
    if (!request->checkpoint_fast && strcmp(checkpoint, "spread") != 0)
        return err_set(err, ERR_USAGE, "checkpoint is 'fast' or 'spread', not '%.32s'", checkpoint);
    return api_request_check_tag(request->tag, err);
}

static int begin_record(struct snapshot *snapshot, struct err *err)
{
    struct record *record = &snapshot->record;
    int rc = id_random(record->id, err);
    if (rc < 0)
        return rc;
    id_to_text(record->id, snapshot->id_text);
    (void)snprintf(record->tag, sizeof(record->tag), "%s", snapshot->request.tag);
    (void)snprintf(record->cluster, sizeof(record->cluster), "%s", snapshot->conf->cluster);
    (void)snprintf(record->node, sizeof(record->node), "%s", snapshot->conf->node);
    (void)gethostname(record->host, sizeof(record->host) - 1);
    (void)snprintf(record->tidemark_version, sizeof(record->tidemark_version), "%s",
                   TIDEMARK_VERSION);
    record->started_s = time(NULL);
    return 0;
}

static int open_repository(struct snapshot *snapshot, struct err *err)
{
    const struct conf *conf = snapshot->conf;
    int rc = repository_open(conf, &snapshot->job->progress.cancel, &snapshot->store,
                             &snapshot->repo, err);
    if (rc == 0) /* now: not while a filesystem is frozen */
        rc = store_prepare_puts(snapshot->store, err);
    if (rc == 0)
        rc = snapshot_lock_begin(snapshot, err);
    if (rc < 0)
        return rc;
    return catalog_check_tag(snapshot->store, &snapshot->repo, conf->cluster, conf->node,
                             snapshot->request.tag, err);
}

static int open_volumes(struct snapshot *snapshot, struct err *err)
{
    const struct conf *conf = snapshot->conf;
    if (conf->volume_count == 0) {
        (void)err_set(err, ERR_CONFIG, "no volume is configured");
        return err_hint(err, "add a [volume NAME] section for every filesystem of the server");
    }
    int rc = capture_check_providers(conf, err);
    if (rc < 0)
        return rc;
    snapshot->offline = conf->volumes[0].provider == PROVIDER_OFFLINE;
    snapshot->live = conf->volumes[0].provider == PROVIDER_PRECOPY;
    rc = snapshot->offline ? snapshot_offline_mount(snapshot, err) : 0;
    return rc < 0 ? rc : volume_group_open(conf, &snapshot->group, err);
}

/* --- record, result --------------------------------------------------------------------------- */

static const char *provider_name(enum conf_provider provider)
{
    switch (provider) {
    case PROVIDER_FREEZE:
        return "freeze";
    case PROVIDER_COMMAND:
        return "command";
    case PROVIDER_OFFLINE:
        return "offline";
    case PROVIDER_PRECOPY:
        return "precopy";
    }
    abort();
}

static void fill_record_volume(struct snapshot *snapshot, size_t index)
{
    const struct volume *volume = &snapshot->group.volumes[index];
    const struct snapshot_volume *own = &snapshot->volumes[index];
    struct record_volume *to = &snapshot->record.volumes[index];
    (void)snprintf(to->name, sizeof(to->name), "%s", volume->conf->name);
    memcpy(to->id, own->id, ID_LEN);
    to->size = volume->device.size;
    to->logical_sector = volume->device.logical_sector;
    to->physical_sector = volume->device.physical_sector;
    (void)snprintf(to->fs_type, sizeof(to->fs_type), "%s", volume->device.fs_type);
    (void)snprintf(to->fs_uuid, sizeof(to->fs_uuid), "%s", volume->device.fs_uuid);
    (void)snprintf(to->fs_label, sizeof(to->fs_label), "%s", volume->device.fs_label);
    (void)snprintf(to->mount_point, sizeof(to->mount_point), "%s", volume->mount_point);
    if (!snapshot->offline) /* else it is our own read-only mount, or one for our sake */
        (void)snprintf(to->mount_options, sizeof(to->mount_options), "%s", volume->mount_options);
    (void)snprintf(to->provider, sizeof(to->provider), "%s", provider_name(volume->conf->provider));
    memcpy(to->manifest_sha256, own->result.manifest_sha256, FMT_SHA256_LEN);
    to->bytes_read = own->bytes_read;
    to->bytes_stored = own->bytes_stored + own->result.table_bytes + own->result.manifest_len;
    to->bytes_free = to->size - min_u64(to->size, extent_list_bytes(&own->used));
    to->chunks_stored = own->chunks_stored;
    to->chunks_same = own->chunks_same;
    to->chunks_rewritten = own->chunks_rewritten;
    to->bytes_rewritten = own->bytes_rewritten;
    snapshot_track_describe(snapshot, index, to);
}

static void fill_record(struct snapshot *snapshot)
{
    struct record *record = &snapshot->record;
    record->volume_count = snapshot->group.count;
    for (size_t i = 0; i < snapshot->group.count; i++)
        fill_record_volume(snapshot, i);
    if (snapshot->has_parent)
        memcpy(record->parent, snapshot->parent.id, ID_LEN);
    /* A clock that was set back must not make the record invalid: the order is what counts. */
    if (record->captured_s < record->started_s)
        record->captured_s = record->started_s;
    record->committed_s = time(NULL);
    if (record->committed_s < record->captured_s)
        record->committed_s = record->captured_s;
}

static void set_lsn(json_t *json, const char *key, uint64_t lsn)
{
    char text[PG_LSN_TEXT];
    pg_lsn_format(lsn, text);
    json_object_set_new(json, key, json_string(text));
}

static void set_result(struct snapshot *snapshot)
{
    const struct record *record = &snapshot->record;
    uint64_t bytes_read = 0, bytes_stored = 0, chunks_stored = 0, chunks_same = 0;
    uint64_t bytes_rewritten = 0;
    char parent[ID_TEXT_LEN];
    for (size_t i = 0; i < record->volume_count; i++) {
        bytes_read += record->volumes[i].bytes_read;
        bytes_stored += record->volumes[i].bytes_stored;
        chunks_stored += record->volumes[i].chunks_stored;
        chunks_same += record->volumes[i].chunks_same;
        bytes_rewritten += record->volumes[i].bytes_rewritten;
    }
    json_t *result = json_pack(
        "{s:s,s:s,s:b,s:b,s:I,s:I,s:I,s:I,s:I,s:f,s:I}", "snapshot", snapshot->id_text, "tag",
        record->tag, "archived", record->archived, "wal_in_image", record->wal_in_image,
        "bytes_read", (json_int_t)bytes_read, "bytes_stored", (json_int_t)bytes_stored,
        "bytes_rewritten", (json_int_t)bytes_rewritten, "chunks_stored", (json_int_t)chunks_stored,
        "chunks_same", (json_int_t)chunks_same, "freeze_ms", (double)record->freeze_ns / 1e6,
        "seconds", (json_int_t)(record->committed_s - record->started_s));
    id_to_text(record->parent, parent);
    json_object_set_new(result, "parent",
                        id_is_zero(record->parent) ? json_null() : json_string(parent));
    snapshot_track_result(snapshot, result);
    set_lsn(result, "start_lsn", record->start_lsn);
    set_lsn(result, "tag_lsn", record->tag_lsn);
    json_object_set_new(snapshot->job->journal, "result", result);
}

/* --- the order -------------------------------------------------------------------------------- */

static int prepare(struct snapshot *snapshot, struct err *err)
{
    int rc = snapshot_phase(snapshot, "checking", err);
    if (rc == 0)
        rc = open_repository(snapshot, err);
    if (rc == 0)
        rc = open_volumes(snapshot, err);
    if (rc == 0)
        rc = snapshot->offline ? snapshot_offline_open(snapshot, err)
                               : snapshot_pg_open(snapshot, err);
    if (rc == 0)
        rc = snapshot_check_layout(snapshot, err);
    if (rc == 0)
        rc = snapshot_find_parent(snapshot, err);
    if (rc == 0)
        rc = snapshot_open_tables(snapshot, err);
    if (rc == 0 && snapshot->record.archived)
        rc = snapshot_prove_archive(snapshot, err);
    return rc;
}

static int take(struct snapshot *snapshot, struct err *err)
{
    int rc = 0;
    if (snapshot->live)
        rc = snapshot_copy_live(snapshot, err);
    if (rc == 0 && !snapshot->offline)
        rc = snapshot_pg_start_backup(snapshot, err);
    if (rc == 0)
        rc = snapshot->live ? snapshot_copy_rest(snapshot, err) : snapshot_capture(snapshot, err);
    if (rc == 0 && !snapshot->offline)
        rc = snapshot_pg_stop_backup(snapshot, err);
    restore_test_stop("snapshot-sealing");
    if (rc == 0)
        rc = snapshot_seal(snapshot, err);
    if (rc == 0 && snapshot->record.archived)
        rc = snapshot_wait_wal(snapshot, err);
    restore_test_stop("snapshot-locking");
    return rc < 0 ? rc : snapshot_lock(snapshot, err);
}

/* `tidemark expire` takes a snapshot that writes nothing for as long as the grace period for one
 * that died, and withdraws it: from then on its record is ignored, and its objects go. See
 * expire.h for why looking before and after the record is enough, for the parent even once. */
static int check_own(struct snapshot *snapshot, struct err *err)
{
    int rc = catalog_check_withdrawn(snapshot->store, snapshot->record.id, err);
    if (rc != -ERR_MISSING)
        return rc;
    (void)err_set(err, ERR_BUSY,
                  "the snapshot took so long that `tidemark expire` gave it up: it does not count "
                  "as taken");
    return err_hint(err, "take it again; if it was not suspended, raise [retention] grace on the "
                         "host that expires");
}

/* It may have slept between the look and the record. That this look fails is no failure to store:
 * the record is there. */
static int check_committed(struct snapshot *snapshot, struct err *err)
{
    int rc = check_own(snapshot, err);
    if (rc == 0)
        rc = snapshot_check_horizon_again(snapshot, err);
    if (rc == 0 || rc == -ERR_BUSY)
        return rc;
    (void)err_prefix(err, "the snapshot is stored; whether it still counts is not known");
    return err_hint(err, "when `tidemark list` shows it, it is whole: `tidemark expire` has not "
                         "given it up meanwhile");
}

static int commit(struct snapshot *snapshot, struct err *err)
{
    int rc = snapshot_phase(snapshot, "committing", err);
    if (rc < 0)
        return rc;
    fill_record(snapshot);
    rc = snapshot_check_parent(snapshot, err);
    if (rc == 0)
        rc = check_own(snapshot, err);
    if (rc == 0)
        rc = snapshot_check_horizon(snapshot, err);
    if (rc == 0)
        rc = snapshot_cut_control(snapshot, err);
    if (rc == 0 && !snapshot->offline)
        rc = snapshot_pg_check_identity(snapshot, err);
    if (rc == 0)
        rc = job_check_cancel(snapshot->job, err);
    restore_test_stop("snapshot-committing");
    if (rc == 0)
        rc = catalog_commit(snapshot->store, &snapshot->repo, &snapshot->record, err);
    restore_test_stop("snapshot-committed");
    if (rc == 0)
        rc = check_committed(snapshot, err);
    if (rc < 0)
        return rc;
    snapshot_install_tables(snapshot);
    snapshot_track_commit(snapshot);
    set_result(snapshot);
    log_info("snapshot=%s tag=%s committed", snapshot->id_text, snapshot->request.tag);
    return 0;
}

/* The thaw comes first: everything else can wait. */
static void release(struct snapshot *snapshot)
{
    snapshot_copy_release(snapshot);
    pg_close(snapshot->session);
    pg_close(snapshot->primary);
    volume_group_close(&snapshot->group);
    record_release(&snapshot->record);
    record_release(&snapshot->parent);
    store_close(snapshot->store);
    free(snapshot);
}

int snapshot_run(struct job *job, struct err *err)
{
    struct snapshot *snapshot = calloc(1, sizeof(*snapshot));
    if (!snapshot)
        return err_set(err, ERR_INTERNAL, "out of memory for a snapshot");
    snapshot->job = job;
    snapshot->conf = &job->conf;
    for (size_t i = 0; i < CONF_VOLUMES_MAX; i++)
        snapshot->volumes[i].work.fd = snapshot->volumes[i].parent_table.fd = -1;
    int rc = read_request(snapshot, err);
    if (rc == 0)
        rc = begin_record(snapshot, err);
    if (rc == 0)
        rc = prepare(snapshot, err);
    if (rc == 0)
        rc = take(snapshot, err);
    if (rc == 0)
        rc = commit(snapshot, err);
    if (rc < 0)
        snapshot_track_abort(snapshot);
    release(snapshot);
    return rc;
}
