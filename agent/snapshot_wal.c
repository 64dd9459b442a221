/* The WAL of a snapshot. A snapshot whose WAL from start to tag is not in the repository cannot be
 * restored, so (1) before the checkpoint the server has to prove that its archive is this
 * repository (archive_proof.h), and (2) the record is not written before every segment of start …
 * tag is there. */
#include "agent/snapshot.h"

#include <stdio.h>

#include "agent/archive_proof.h"
#include "agent/clock.h"
#include "agent/log.h"
#include "agent/mark.h"
#include "agent/wal_horizon.h"

enum { POLL_FIRST_MS = 20, POLL_MAX_MS = 200, REPORT_S = 10 };

static void begin_archive(struct snapshot *snapshot)
{
    struct wal_archive *archive = &snapshot->archive;
    archive->store = snapshot->store;
    archive->repo = &snapshot->repo;
    archive->system_id = snapshot->record.system_id;
    (void)snprintf(archive->cluster, sizeof(archive->cluster), "%s", snapshot->conf->cluster);
}

/* A server that was promoted before it archived here gave its history file to another archive, and
 * archives it once only. It never changes, so it is pushed from pg_wal. */
static int push_history(struct snapshot *snapshot, struct err *err)
{
    const struct record *record = &snapshot->record;
    char name[32], path[sizeof(record->wal_directory) + 32];
    if (record->timeline == 1)
        return 0;
    (void)snprintf(name, sizeof(name), "%08X.history", record->timeline);
    (void)snprintf(path, sizeof(path), "%s/%s", record->wal_directory, name);
    int rc = wal_check(&snapshot->archive, name, err);
    if (rc != -ERR_MISSING)
        return rc;
    if (access(path, F_OK) < 0) {
        (void)err_set(err, ERR_MISSING,
                      "%s is not in the repository, and not in '%s': nothing could be recovered "
                      "without it",
                      name, record->wal_directory);
        return err_hint(err, "`tidemark-wal push FILE` takes it from a standby or an old archive");
    }
    rc = wal_push(&snapshot->archive, path, name, err);
    if (rc == 0)
        log_info("snapshot=%s the archive lacked it, pushed: name=%s", snapshot->id_text, name);
    return rc;
}

static int pause_snapshot(void *ctx, unsigned pause_ms, struct err *err)
{
    return snapshot_pause(ctx, pause_ms, err);
}

static struct archive_proof proof_of(struct snapshot *snapshot)
{
    bool of_here = !snapshot->primary; /* why a push failed is known on the primary's host */
    return (struct archive_proof){.conf = snapshot->conf,
                                  .session = snapshot_writer(snapshot),
                                  .archive = &snapshot->archive,
                                  .wal_directory = of_here ? snapshot->record.wal_directory : "",
                                  .timeout_s = snapshot->conf->wal_archive_timeout_s,
                                  .pause = pause_snapshot,
                                  .ctx = snapshot};
}

int snapshot_prove_archive(struct snapshot *snapshot, struct err *err)
{
    struct archive_proof proof = proof_of(snapshot);
    begin_archive(snapshot);
    int rc = snapshot_phase(snapshot, "checking the archive", err);
    if (rc == 0)
        rc = archive_prove(&proof, err);
    if (rc == 0)
        rc = push_history(snapshot, err);
    return rc;
}

/* --- waiting for start … tag ------------------------------------------------------------------ */

static int check_range(struct snapshot *snapshot, struct err *err)
{
    const struct record *record = &snapshot->record;
    return wal_check_range(&snapshot->archive, record->timeline, record->start_lsn, record->tag_lsn,
                           record->segment_size, err);
}

static int timed_out(struct snapshot *snapshot, const char *missing, struct err *err)
{
    const struct archive_proof proof = proof_of(snapshot);
    struct archiver archiver;
    int rc = archiver_read(snapshot_writer(snapshot), &archiver, err);
    if (rc == 0)
        rc = archive_failed_push(&proof, &archiver, err);
    if (rc < 0)
        return rc;
    (void)err_set(err, ERR_POSTGRES,
                  "the WAL of the snapshot did not arrive in the repository within %u s: %.300s; "
                  "last_failed_wal of the server is %s, failed_count %llu",
                  snapshot->conf->wal_archive_timeout_s, missing,
                  archiver.last_failed[0] ? archiver.last_failed : "empty",
                  (unsigned long long)archiver.failed_count);
    return err_hint(err, "look into the server's log for what archive_command said");
}

int snapshot_wait_wal(struct snapshot *snapshot, struct err *err)
{
    int rc = snapshot_phase(snapshot, "waiting for WAL", err);
    uint64_t start_ms = now_ms(), reported_ms = start_ms;
    unsigned poll_ms = POLL_FIRST_MS;
    while (rc == 0 && (rc = check_range(snapshot, err)) == -ERR_MISSING) {
        uint64_t now = now_ms();
        char missing[sizeof(err->text)];
        (void)snprintf(missing, sizeof(missing), "%s", err->text);
        if (now - start_ms > snapshot->conf->wal_archive_timeout_s * 1000ull)
            return timed_out(snapshot, missing, err);
        if (now - reported_ms > REPORT_S * 1000) {
            log_info("snapshot=%s waiting for WAL: %s", snapshot->id_text, missing);
            reported_ms = now;
        }
        rc = snapshot_pause(snapshot, poll_ms, err);
        poll_ms = (unsigned)min_u64(2 * poll_ms, POLL_MAX_MS);
    }
    if (rc == 0)
        err_clear(err);
    return rc;
}

/* --- expire, at the same moment ----------------------------------------------------------------
 */

int snapshot_check_horizon(struct snapshot *snapshot, struct err *err)
{
    const struct record *record = &snapshot->record;
    return record->archived ? wal_horizon_check(&snapshot->archive, record->timeline,
                                                record->start_lsn, record->segment_size, err)
                            : 0;
}

int snapshot_check_horizon_again(struct snapshot *snapshot, struct err *err)
{
    struct err failed;
    int rc = snapshot_check_horizon(snapshot, err);
    if (rc == -ERR_BUSY &&
        mark_put(snapshot->store, &snapshot->repo, MARK_WITHDRAWN, snapshot->record.id,
                 mark_expired, snapshot->conf->node, &failed) < 0)
        log_error("snapshot=%s is shown and cannot be recovered, `tidemark expire --confirm` it: "
                  "it could not be withdrawn err=\"%s\"",
                  snapshot->id_text, failed.text);
    return rc;
}
