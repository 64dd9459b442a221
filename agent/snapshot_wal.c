/* The WAL of a snapshot. A snapshot whose WAL from start to tag is not in the repository cannot be
 * restored, so (1) before the checkpoint the server has to prove that its archive is this
 * repository, with a segment that was written and switched for the purpose, and (2) the record is
 * not written before every segment of start … tag is there.
 *
 * The server's own word (pg_stat_archiver) is never the proof; it only says why we wait. */
#include "agent/snapshot.h"

#include <stdio.h>
#include <time.h>

#include "agent/clock.h"
#include "agent/log.h"
#include "agent/wal_report.h"

enum { POLL_MS = 200, REPORT_S = 10, FAILURES_MAX = 3 };

struct archiver {
    uint64_t failed_count;
    char last_archived[64], last_failed[64];
};

static void copy_cell(const json_t *rows, size_t column, char to[64])
{
    const char *text = json_string_value(json_array_get(json_array_get(rows, 0), column));
    (void)snprintf(to, 64, "%s", text ? text : "");
}

static int read_archiver(struct snapshot *snapshot, struct archiver *ret, struct err *err)
{
    static const char sql[] = "SELECT failed_count::text, last_archived_wal, last_failed_wal "
                              "FROM pg_stat_archiver";
    char failed_count[64];
    free_json json_t *rows = NULL;
    int rc = pg_query(snapshot->session, sql, NULL, 0, &rows, err);
    if (rc < 0)
        return rc;
    copy_cell(rows, 0, failed_count);
    copy_cell(rows, 1, ret->last_archived);
    copy_cell(rows, 2, ret->last_failed);
    ret->failed_count = strtoull(failed_count, NULL, 10);
    return 0;
}

/* --- proof ------------------------------------------------------------------------------------ */

static void begin_archive(struct snapshot *snapshot)
{
    struct wal_archive *archive = &snapshot->archive;
    archive->store = snapshot->store;
    archive->repo = &snapshot->repo;
    archive->system_id = snapshot->record.system_id;
    (void)snprintf(archive->cluster, sizeof(archive->cluster), "%s", snapshot->conf->cluster);
}

/* Writes a record, so that there is something to switch, and ends its segment. */
static int switch_wal(struct snapshot *snapshot, char name[64], struct err *err)
{
    static const char message_sql[] = "SELECT pg_logical_emit_message(false, 'tidemark', 'probe')";
    free_json json_t *rows = NULL;
    int rc = pg_query(snapshot->session, message_sql, NULL, 0, NULL, err);
    if (rc == 0)
        rc = pg_query(snapshot->session, "SELECT pg_walfile_name(pg_switch_wal())", NULL, 0, &rows,
                      err);
    if (rc < 0)
        return rc;
    copy_cell(rows, 0, name);
    return name[0] ? 0 : err_set(err, ERR_POSTGRES, "pg_switch_wal() gave no segment");
}

static int not_archiving(const struct archiver *archiver, const char *name, const char *why,
                         struct err *err)
{
    (void)err_set(err, ERR_REFUSED,
                  "the server does not archive to this repository: %s %s (last archived: %s, last "
                  "failed: %s)",
                  name, why, archiver->last_archived[0] ? archiver->last_archived : "none",
                  archiver->last_failed[0] ? archiver->last_failed : "none");
    return err_hint(err, "set archive_command = 'tidemark-wal push %%p', or ask for a snapshot "
                         "with --no-archive: it keeps the WAL in the image and offers only target "
                         "`snapshot`");
}

/* What archive_command said last of the file that the server names, if it told us; else 0. The code
 * is its own: a store that is full is no server that does not archive. */
static int failed_push(const struct snapshot *snapshot, const struct archiver *archiver,
                       struct err *err)
{
    struct err failure;
    if (!wal_report_read(snapshot->conf, snapshot->record.wal_directory, archiver->last_failed,
                         &failure))
        return 0;
    *err = failure;
    return err_prefix(err, "the server cannot archive");
}

static int failing_archiver(const struct snapshot *snapshot, const struct archiver *archiver,
                            const char *name, const char *why, struct err *err)
{
    int rc = failed_push(snapshot, archiver, err);
    return rc < 0 ? rc : not_archiving(archiver, name, why, err);
}

/* A server that says "archived" of a segment that is not here archives to some other place. Names
 * are compared as texts: same timeline, so their order is that of the LSNs. The name is looked up
 * once more after the server's word, because the segment may have arrived between the two looks. */
static int judge(struct snapshot *snapshot, const char *name, uint64_t failed_before,
                 struct err *err)
{
    struct archiver archiver;
    int rc = read_archiver(snapshot, &archiver, err);
    if (rc < 0)
        return rc;
    bool elsewhere = strncmp(archiver.last_archived, name, 24) >= 0;
    bool failing = archiver.failed_count >= failed_before + FAILURES_MAX;
    if (!elsewhere && !failing)
        return 0;
    rc = wal_check(&snapshot->archive, name, err);
    if (rc != -ERR_MISSING)
        return rc;
    if (elsewhere)
        return not_archiving(&archiver, name, "was archived, but is not here", err);
    return failing_archiver(snapshot, &archiver, name, "cannot be archived", err);
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

static int did_not_arrive(struct snapshot *snapshot, const char *name, struct err *err)
{
    struct archiver archiver;
    int rc = read_archiver(snapshot, &archiver, err);
    return rc < 0 ? rc : failing_archiver(snapshot, &archiver, name, "did not arrive", err);
}

int snapshot_prove_archive(struct snapshot *snapshot, struct err *err)
{
    char name[64];
    struct archiver before;
    begin_archive(snapshot);
    int rc = snapshot_phase(snapshot, "checking the archive", err);
    if (rc == 0)
        rc = read_archiver(snapshot, &before, err);
    if (rc == 0)
        rc = switch_wal(snapshot, name, err);
    if (rc < 0)
        return rc;
    uint64_t deadline_ms = now_ms() + snapshot->conf->wal_archive_timeout_s * 1000ull;
    while ((rc = wal_check(&snapshot->archive, name, err)) == -ERR_MISSING) {
        rc = judge(snapshot, name, before.failed_count, err);
        if (rc == 0 && now_ms() > deadline_ms)
            return did_not_arrive(snapshot, name, err);
        if (rc == 0)
            rc = snapshot_pause(snapshot, POLL_MS, err);
        if (rc < 0)
            return rc;
    }
    if (rc == 0) {
        err_clear(err);
        rc = push_history(snapshot, err);
    }
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
    struct archiver archiver;
    int rc = read_archiver(snapshot, &archiver, err);
    if (rc < 0)
        return rc;
    rc = failed_push(snapshot, &archiver, err);
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
        rc = snapshot_pause(snapshot, POLL_MS, err);
    }
    if (rc == 0)
        err_clear(err);
    return rc;
}
