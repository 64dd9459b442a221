/* A snapshot of a standby. Its blocks are captured and its backup mode protects them; WAL, restore
 * point and archive are its primary's:
 *
 *   primary: archive proved, CHECKPOINT → standby: has replayed it, pg_backup_start → capture →
 *   standby: pg_backup_stop → primary: restore point, WAL switch → standby: has replayed the
 *   restore point, on the same timeline
 *
 * The image is consistent where its own pg_control says (minimum recovery point): PostgreSQL writes
 * that before any page that needs it, and all volumes are of one instant. It is no later than what
 * pg_backup_stop() returns, and that no later than what the primary had written by then: so the
 * tag, which is made last, can be recovered to. That the tag is in this standby's history, and not
 * on a primary that others have left, is proved: the standby replays it. Only restartpoints begin a
 * backup of a standby, and those are its primary's checkpoints. */
#include "agent/snapshot.h"

#include <stdio.h>

#include "agent/clock.h"
#include "agent/log.h"

enum { POLL_MS = 200, RESTARTPOINTS_MAX = 5 };

/* --- the way to the primary ------------------------------------------------------------------- */

static int no_way(struct err *err)
{
    (void)err_set(
        err, ERR_REFUSED,
        "the server is in recovery: a snapshot of a standby needs its primary, and how to "
        "reach that is not known");
    return err_hint(err,
                    "set [postgresql] primary_connection, or take the snapshot on the primary");
}

/* Its own primary_conninfo names no database, or "replication". */
static int connect_primary(struct snapshot *snapshot, struct err *err)
{
    const char *given = snapshot->conf->primary_connection;
    char *conninfo = NULL;
    int rc = 0;
    if (!given[0])
        rc = pg_query_text(snapshot->session, "SELECT current_setting('primary_conninfo')", NULL,
                           &conninfo, err);
    if (rc == 0 && !given[0] && !(conninfo && conninfo[0]))
        rc = no_way(err);
    if (rc == 0)
        rc = pg_open_primary(snapshot->conf, given[0] ? given : conninfo,
                             given[0] ? NULL : "postgres", &snapshot->primary, err);
    free(conninfo);
    return rc;
}

static int check_primary(const json_t *there, const json_t *here, struct err *err)
{
    if (strcmp(snapshot_cell(there, 0, 0), snapshot_cell(here, 0, 0)) != 0) {
        (void)err_set(
            err, ERR_CONFIG,
            "the primary that was reached has system identifier %.24s, this standby %.24s",
            snapshot_cell(there, 0, 0), snapshot_cell(here, 0, 0));
        return err_hint(err, "correct [postgresql] primary_connection");
    }
    if (strcmp(snapshot_cell(there, 0, 1), "false") == 0)
        return 0;
    (void)err_set(err, ERR_REFUSED,
                  "what this standby follows is a standby itself: the restore point has to be made "
                  "on the primary");
    return err_hint(err, "set [postgresql] primary_connection so that it leads to the primary");
}

/* Before anything is done for it there. Which privilege a snapshot needs, README says. */
static int check_rights(struct snapshot *snapshot, struct err *err)
{
    static const char sql[] = "SELECT quote_ident(current_user), "
                              "(has_function_privilege('pg_create_restore_point(text)', 'EXECUTE') "
                              "AND has_function_privilege('pg_switch_wal()', 'EXECUTE'))::text";
    free_json json_t *rows = NULL;
    int rc = snapshot_query_row(snapshot->primary, sql, NULL, 2, &rows, err);
    if (rc < 0 || strcmp(snapshot_cell(rows, 0, 1), "true") == 0)
        return rc;
    const char *user = snapshot_cell(rows, 0, 0);
    (void)err_set(err, ERR_POSTGRES,
                  "node %s, a standby: user %.64s may not make the restore point on its primary, "
                  "or switch its WAL",
                  snapshot->conf->node, user);
    return err_hint(err,
                    "on the primary: GRANT EXECUTE ON FUNCTION pg_create_restore_point, "
                    "pg_switch_wal TO %.64s; GRANT pg_checkpoint TO %.64s",
                    user, user);
}

static const char standby_sql[] = "SELECT system_identifier::text, pg_is_in_recovery()::text, "
                                  "extract(epoch FROM pg_postmaster_start_time())::text "
                                  "FROM pg_control_system()";

int snapshot_standby_open(struct snapshot *snapshot, struct err *err)
{
    free_json json_t *there = NULL, *here = NULL;
    int rc = connect_primary(snapshot, err);
    if (rc < 0)
        return rc;
    if (snapshot->job)
        pg_set_cancel(snapshot->primary, &snapshot->job->progress.cancel);
    rc = snapshot_query_row(snapshot->primary, standby_sql, NULL, 3, &there, err);
    if (rc == 0)
        rc = snapshot_query_row(snapshot->session, standby_sql, NULL, 3, &here, err);
    if (rc == 0)
        rc = check_primary(there, here, err);
    return rc < 0 ? rc : check_rights(snapshot, err);
}

int snapshot_standby_identity(struct snapshot *snapshot, char *identity, size_t size,
                              struct err *err)
{
    free_json json_t *rows = NULL;
    int rc = snapshot_query_row(snapshot->session, standby_sql, NULL, 3, &rows, err);
    if (rc < 0)
        return rc;
    bool promoted = strcmp(snapshot_cell(rows, 0, 1), "true") != 0;
    size_t len = strlen(identity);
    (void)snprintf(identity + len, size - len, ", its standby's postmaster of %.40s%s",
                   snapshot_cell(rows, 0, 2), promoted ? ", promoted" : "");
    return 0;
}

/* --- replay ----------------------------------------------------------------------------------- */

struct replay {
    bool in_recovery, paused;
    uint64_t lsn;
};

static int read_replay(struct snapshot *snapshot, struct replay *ret, struct err *err)
{
    static const char sql[] =
        "SELECT pg_is_in_recovery()::text, coalesce(pg_last_wal_replay_lsn(), '0/0')::text, "
        "CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() ELSE '' END";
    free_json json_t *rows = NULL;
    int rc = snapshot_query_row(snapshot->session, sql, NULL, 3, &rows, err);
    if (rc < 0)
        return rc;
    ret->in_recovery = strcmp(snapshot_cell(rows, 0, 0), "true") == 0;
    ret->paused = strcmp(snapshot_cell(rows, 0, 2), "paused") == 0;
    return snapshot_parse_lsn(snapshot_cell(rows, 0, 1), &ret->lsn, err);
}

static int is_behind(const struct snapshot *snapshot, const struct replay *replay, uint64_t lsn,
                     struct err *err)
{
    char at[PG_LSN_TEXT], wanted[PG_LSN_TEXT];
    pg_lsn_format(replay->lsn, at);
    pg_lsn_format(lsn, wanted);
    if (replay->paused) {
        (void)err_set(err, ERR_REFUSED, "replay on this standby is paused at %s", at);
        return err_hint(err, "pg_wal_replay_resume() lets it go on");
    }
    (void)err_set(err, ERR_POSTGRES,
                  "the standby did not replay what its primary has written within %u s: it is at "
                  "%s, the primary was at %s",
                  snapshot->conf->wal_archive_timeout_s, at, wanted);
    return err_hint(err, "does it follow the primary that was asked, and has it no "
                         "recovery_min_apply_delay? pg_stat_wal_receiver and its log tell; [wal] "
                         "archive_timeout is how long a snapshot waits");
}

static int was_promoted(struct err *err)
{
    (void)err_set(err, ERR_POSTGRES, "the standby was promoted during the snapshot");
    return err_hint(err, "nothing was kept: take the snapshot again");
}

static int wait_replay(struct snapshot *snapshot, uint64_t lsn, struct err *err)
{
    uint64_t deadline_ms = now_ms() + snapshot->conf->wal_archive_timeout_s * 1000ull;
    for (;;) {
        struct replay replay;
        int rc = read_replay(snapshot, &replay, err);
        if (rc == 0 && !replay.in_recovery)
            rc = was_promoted(err);
        if (rc < 0 || replay.lsn >= lsn)
            return rc;
        if (replay.paused || now_ms() > deadline_ms)
            return is_behind(snapshot, &replay, lsn, err);
        rc = snapshot_pause(snapshot, POLL_MS, err);
        if (rc < 0)
            return rc;
    }
}

/* --- start ------------------------------------------------------------------------------------ */

/* Without it the WAL of the snapshot begins at the last checkpoint that there was: longer, but as
 * good. */
static void checkpoint_primary(struct snapshot *snapshot)
{
    struct err err;
    if (pg_query(snapshot->primary, "CHECKPOINT", NULL, 0, NULL, &err) < 0)
        log_warn("snapshot=%s the primary makes no checkpoint for it, going on with its last "
                 "one: err=\"%s\"",
                 snapshot->id_text, err.text);
}

int snapshot_standby_catch_up(struct snapshot *snapshot, struct err *err)
{
    free_json json_t *rows = NULL;
    uint64_t lsn;
    if (snapshot->request.checkpoint_fast)
        checkpoint_primary(snapshot);
    int rc = snapshot_query_row(snapshot->primary, "SELECT pg_current_wal_lsn()::text", NULL, 1,
                                &rows, err);
    if (rc == 0)
        rc = snapshot_parse_lsn(snapshot_cell(rows, 0, 0), &lsn, err);
    return rc < 0 ? rc : wait_replay(snapshot, lsn, err);
}

int snapshot_standby_check_start(struct snapshot *snapshot, struct err *err)
{
    free_json json_t *rows = NULL;
    int rc = snapshot_query_row(snapshot->session,
                                "SELECT timeline_id::text FROM pg_control_checkpoint()", NULL, 1,
                                &rows, err);
    if (rc < 0)
        return rc;
    uint32_t timeline = (uint32_t)strtoul(snapshot_cell(rows, 0, 0), NULL, 10);
    if (timeline == snapshot->record.timeline)
        return 0;
    (void)err_set(
        err, ERR_REFUSED,
        "the standby's last restartpoint is on timeline %u, its primary is on timeline %u",
        timeline, snapshot->record.timeline);
    return err_hint(err, "CHECKPOINT on the primary, and try again once the standby has replayed "
                         "it; a standby that stays on the old timeline follows nobody");
}

/* --- the tag ---------------------------------------------------------------------------------- */

/* The control file says on which timeline the standby has replayed how far, but it lags: a
 * restartpoint that finds nothing to do brings it up to date (CreateRestartPoint()). */
static int read_recovery_point(struct snapshot *snapshot, uint64_t *ret_lsn, uint32_t *ret_timeline,
                               struct err *err)
{
    static const char sql[] = "SELECT min_recovery_end_lsn::text, min_recovery_end_timeline::text "
                              "FROM pg_control_recovery()";
    free_json json_t *rows = NULL;
    int rc = pg_query(snapshot->session, "CHECKPOINT", NULL, 0, NULL, err);
    if (rc == 0)
        rc = snapshot_query_row(snapshot->session, sql, NULL, 2, &rows, err);
    if (rc < 0)
        return rc;
    *ret_timeline = (uint32_t)strtoul(snapshot_cell(rows, 0, 1), NULL, 10);
    return snapshot_parse_lsn(snapshot_cell(rows, 0, 0), ret_lsn, err);
}

int snapshot_standby_prove_tag(struct snapshot *snapshot, struct err *err)
{
    const struct record *record = &snapshot->record;
    uint64_t lsn = 0;
    uint32_t timeline = 0;
    if (record->tag_lsn < record->stop_lsn)
        return err_set(err, ERR_POSTGRES,
                       "the standby is ahead of its primary: it does not follow the one that was "
                       "asked");
    int rc = snapshot_phase(snapshot, "waiting for replay", err);
    if (rc == 0)
        rc = wait_replay(snapshot, record->tag_lsn, err);
    for (unsigned i = 0; rc == 0 && lsn < record->tag_lsn && i < RESTARTPOINTS_MAX; i++)
        rc = read_recovery_point(snapshot, &lsn, &timeline, err);
    if (rc < 0)
        return rc;
    if (lsn >= record->tag_lsn && timeline == record->timeline)
        return 0;
    (void)err_set(err, ERR_POSTGRES,
                  "the standby left timeline %u during the snapshot: it replays timeline %u, and "
                  "the tag is not in it",
                  record->timeline, timeline);
    return err_hint(err, "nothing was kept: take the snapshot again once the failover is over");
}
