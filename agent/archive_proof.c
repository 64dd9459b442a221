/* See archive_proof.h. */
#include "agent/archive_proof.h"

#include <stdio.h>

#include "agent/clock.h"
#include "agent/wal_report.h"

enum { POLL_FIRST_MS = 20, POLL_MAX_MS = 200, FAILURES_MAX = 3 };

static void copy_cell(const json_t *rows, size_t column, char to[64])
{
    const char *text = json_string_value(json_array_get(json_array_get(rows, 0), column));
    (void)snprintf(to, 64, "%s", text ? text : "");
}

int archiver_read(struct pg_session *session, struct archiver *ret, struct err *err)
{
    static const char sql[] = "SELECT failed_count::text, last_archived_wal, last_failed_wal "
                              "FROM pg_stat_archiver";
    char failed_count[64];
    free_json json_t *rows = NULL;
    int rc = pg_query(session, sql, NULL, 0, &rows, err);
    if (rc < 0)
        return rc;
    copy_cell(rows, 0, failed_count);
    copy_cell(rows, 1, ret->last_archived);
    copy_cell(rows, 2, ret->last_failed);
    ret->failed_count = strtoull(failed_count, NULL, 10);
    return 0;
}

/* Writes a record, so that there is something to switch, and ends its segment. */
static int switch_wal(struct archive_proof *proof, struct err *err)
{
    static const char message_sql[] = "SELECT pg_logical_emit_message(false, 'tidemark', 'probe')";
    free_json json_t *rows = NULL;
    int rc = pg_query(proof->session, message_sql, NULL, 0, NULL, err);
    if (rc == 0)
        rc = pg_query(proof->session, "SELECT pg_walfile_name(pg_switch_wal())", NULL, 0, &rows,
                      err);
    if (rc < 0)
        return rc;
    copy_cell(rows, 0, proof->segment);
    return proof->segment[0] ? 0 : err_set(err, ERR_POSTGRES, "pg_switch_wal() gave no segment");
}

static int not_archiving(const struct archive_proof *proof, const struct archiver *archiver,
                         const char *why, struct err *err)
{
    (void)err_set(err, ERR_REFUSED,
                  "the server does not archive to this repository: %s %s (last archived: %s, last "
                  "failed: %s)",
                  proof->segment, why,
                  archiver->last_archived[0] ? archiver->last_archived : "none",
                  archiver->last_failed[0] ? archiver->last_failed : "none");
    return err_hint(err, "set archive_command = 'tidemark-wal push %%p', or ask for a snapshot "
                         "with --no-archive: it keeps the WAL in the image and offers only target "
                         "`snapshot`");
}

/* The likely reason is another configuration file, or an option, in archive_command. */
static int archived_elsewhere(const struct archive_proof *proof, const struct archiver *archiver,
                              struct err *err)
{
    free_mem char *command = NULL;
    struct err ignored;
    (void)not_archiving(proof, archiver, "was archived, but is not here", err);
    if (pg_query_text(proof->session, "select current_setting('archive_command')", NULL, &command,
                      &ignored) < 0 ||
        !command || !strstr(command, "tidemark-wal"))
        return -(int)err->code;
    return err_hint(err,
                    "archive_command is '%.200s': does the configuration that it reads name this "
                    "[repository] url and this `cluster`?",
                    command);
}

int archive_failed_push(const struct archive_proof *proof, const struct archiver *archiver,
                        struct err *err)
{
    struct err failure;
    if (!wal_report_read(proof->conf, proof->wal_directory, archiver->last_failed, &failure))
        return 0;
    *err = failure;
    return err_prefix(err, "the server cannot archive");
}

static int failing_archiver(const struct archive_proof *proof, const struct archiver *archiver,
                            const char *why, struct err *err)
{
    int rc = archive_failed_push(proof, archiver, err);
    return rc < 0 ? rc : not_archiving(proof, archiver, why, err);
}

/* A server that says "archived" of a segment that is not here archives to some other place. Names
 * are compared as texts: same timeline, so their order is that of the LSNs. The name is looked up
 * once more after the server's word, because the segment may have arrived between the two looks. */
static int judge(const struct archive_proof *proof, uint64_t failed_before, struct err *err)
{
    struct archiver archiver;
    int rc = archiver_read(proof->session, &archiver, err);
    if (rc < 0)
        return rc;
    bool elsewhere = strncmp(archiver.last_archived, proof->segment, 24) >= 0;
    bool failing = archiver.failed_count >= failed_before + FAILURES_MAX;
    if (!elsewhere && !failing)
        return 0;
    rc = wal_check(proof->archive, proof->segment, err);
    if (rc != -ERR_MISSING)
        return rc;
    if (elsewhere)
        return archived_elsewhere(proof, &archiver, err);
    return failing_archiver(proof, &archiver, "cannot be archived", err);
}

static int did_not_arrive(const struct archive_proof *proof, struct err *err)
{
    struct archiver archiver;
    int rc = archiver_read(proof->session, &archiver, err);
    return rc < 0 ? rc : failing_archiver(proof, &archiver, "did not arrive", err);
}

/* Longer each time. */
static int wait_a_little(const struct archive_proof *proof, unsigned *poll_ms, struct err *err)
{
    unsigned wait_ms = *poll_ms;
    *poll_ms = (unsigned)min_u64(2 * wait_ms, POLL_MAX_MS);
    if (proof->pause)
        return proof->pause(proof->ctx, wait_ms, err);
    pause_ms(wait_ms);
    return 0;
}

int archive_prove(struct archive_proof *proof, struct err *err)
{
    struct archiver before;
    int rc = archiver_read(proof->session, &before, err);
    if (rc == 0)
        rc = switch_wal(proof, err);
    if (rc < 0)
        return rc;
    uint64_t deadline_ms = now_ms() + proof->timeout_s * 1000ull;
    unsigned poll_ms = POLL_FIRST_MS;
    while ((rc = wal_check(proof->archive, proof->segment, err)) == -ERR_MISSING) {
        rc = judge(proof, before.failed_count, err);
        if (rc == 0 && now_ms() > deadline_ms)
            return did_not_arrive(proof, err);
        if (rc == 0)
            rc = wait_a_little(proof, &poll_ms, err);
        if (rc < 0)
            return rc;
    }
    if (rc == 0)
        err_clear(err);
    return rc;
}
