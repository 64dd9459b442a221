/* A standby of a restored cluster. It holds the same blocks as the new primary and replays the same
 * WAL, but it must leave the old timeline exactly where the primary did. The archive may hold the
 * old timeline's segment with the fork, full, and later ones: a standby that reads them has
 * replayed commits that the restored cluster does not have, and can never follow it
 * (XLogFileReadAnyTLI() tries the newest timeline first, but falls back to older ones and looks at
 * none's end). So it is started only when the new timeline's history and its segment with the fork
 * are archived, and its restore_command serves nothing of the old timeline from that segment on.
 *
 * It follows recovery_target_timeline = 'latest', because a number would pin it there and it could
 * not follow the next failover. While it is on its way `latest` must not mean a dead branch:
 * history files of later timelines are not served. Once it streams past the fork both limits go. */
#include "agent/restore.h"
#include "agent/clock.h"
#include "agent/log.h"
#include "agent/pg.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>

enum { RELOAD_POLL_MS = 100, RELOAD_TIMEOUT_MS = 30000, QUERY_TIMEOUT_S = 30 };

/* --- before the start ------------------------------------------------------------------------- */

static int check_history(struct restore *restore, struct err *err)
{
    struct wal_history *history = &restore->history;
    const struct restore_fork *fork = &restore->fork;
    int rc = wal_history_read(&restore->archive, fork->timeline, history, err);
    if (rc < 0)
        return err_prefix(err, "the new timeline");
    const struct wal_history_entry *last = &history->entries[history->count - 1];
    if (history->count > 0 && last->parent == fork->parent && last->switch_lsn == fork->lsn)
        return 0;
    return err_set(err, ERR_REFUSED,
                   "the archive's history of timeline %u does not say that it left timeline %u at "
                   "%X/%X",
                   fork->timeline, fork->parent, (unsigned)(fork->lsn >> 32), (unsigned)fork->lsn);
}

static int check_fork(struct restore *restore, struct err *err)
{
    const struct restore_fork *fork = &restore->fork;
    uint32_t segment_size = restore->record.segment_size;
    char name[PG_SEGMENT_TEXT];
    if (fork->timeline == 0)
        return err_set(err, ERR_USAGE,
                       "a standby has to know where its primary's new timeline "
                       "begins (field 'fork')");
    if (fork->parent != restore->target_timeline || fork->lsn < restore->record.stop_lsn)
        return err_set(err, ERR_REFUSED,
                       "the fork of timeline %u at %X/%X is not behind the snapshot on timeline %u",
                       fork->parent, (unsigned)(fork->lsn >> 32), (unsigned)fork->lsn,
                       restore->target_timeline);
    int rc = check_history(restore, err);
    pg_segment_name(fork->timeline, fork->lsn / segment_size, segment_size, name);
    if (rc == 0)
        rc = wal_check(&restore->archive, name, err);
    return rc;
}

int restore_standby_prepare(struct restore *restore, struct err *err)
{
    int rc = check_fork(restore, err);
    return rc < 0 ? rc : restore_write_settings(restore, err);
}

/* The lines are those of its start, which include the permit, even if it had attached before. */
int restore_standby_renew(struct restore *restore, int pid, struct err *err)
{
    if (!restore->conninfo_changed)
        return 0;
    int rc = restore_permit_grant(restore, err);
    if (rc == 0)
        rc = restore_write_settings(restore, err);
    if (rc < 0)
        return rc;
    if (kill(pid, SIGHUP) < 0 && errno != ESRCH)
        return err_sys(err, ERR_POSTGRES, "signal the server, process %d", pid);
    log_info("the standby that runs gets a new primary_conninfo: job=%s", restore->job->id);
    return 0;
}

/* --- attached --------------------------------------------------------------------------------- */

/* received_tli is the timeline of the last WAL that was received and flushed. */
int restore_standby_attached(const struct restore *restore, struct pg_session *session, bool *ret,
                             struct err *err)
{
    static const char sql[] =
        "select (exists (select from pg_stat_wal_receiver where status = 'streaming' "
        "and received_tli >= $1::int) and pg_last_wal_replay_lsn() > $2::pg_lsn)::text";
    char timeline[16], lsn[PG_LSN_TEXT];
    const char *params[] = {timeline, lsn, NULL};
    free_json json_t *rows = NULL;
    (void)snprintf(timeline, sizeof(timeline), "%u", restore->fork.timeline);
    pg_lsn_format(restore->fork.lsn, lsn);
    int rc = pg_query(session, sql, params, QUERY_TIMEOUT_S, &rows, err);
    if (rc < 0)
        return rc;
    const char *text = json_string_value(json_array_get(json_array_get(rows, 0), 0));
    *ret = text && strcmp(text, "true") == 0;
    return 0;
}

/* --- afterwards ------------------------------------------------------------------------------- */

/* The node's own restore_command, from its own files, wins over ours. */
static int has_own_command(struct pg_session *session, bool *ret, struct err *err)
{
    static const char sql[] =
        "select coalesce((select setting from pg_file_settings where name = 'restore_command' "
        "and sourcefile not like '%/postgresql.auto.conf' order by seqno desc limit 1), '')";
    free_mem char *text = NULL;
    int rc = pg_query_text(session, sql, NULL, &text, err);
    if (rc == 0)
        *ret = text && text[0];
    return rc;
}

/* restore_command, primary_conninfo and the slot's name take effect with a reload (PGC_SIGHUP). */
static int reload(struct restore *restore, struct pg_session *session, struct err *err)
{
    static const char sql[] = "select (current_setting('restore_command') like "
                              "'%--last-timeline=%')::text";
    int rc = pg_query(session, "select pg_reload_conf()", NULL, QUERY_TIMEOUT_S, NULL, err);
    for (unsigned waited_ms = 0; rc == 0; waited_ms += RELOAD_POLL_MS) {
        free_mem char *limited = NULL;
        rc = pg_query_text(session, sql, NULL, &limited, err);
        if (rc == 0 && limited && strcmp(limited, "false") == 0)
            return 0;
        if (rc == 0 && waited_ms >= RELOAD_TIMEOUT_MS)
            return err_set(err, ERR_POSTGRES,
                           "the standby does not take its new settings: its log "
                           "says why");
        if (rc == 0)
            rc = job_check_cancel(restore->job, err);
        pause_ms(RELOAD_POLL_MS);
    }
    return rc;
}

int restore_standby_finish(struct restore *restore, struct pg_session *session, struct err *err)
{
    bool own = false;
    free_mem char *lines = NULL;
    int rc = has_own_command(session, &own, err);
    if (rc == 0)
        rc = restore_standby_lines(restore, !own, &lines, err);
    if (rc == 0)
        rc = restore_replace_settings(restore, lines, err);
    restore_test_stop("standby-settings");
    if (rc == 0)
        rc = reload(restore, session, err);
    restore_test_stop("standby-reloaded");
    if (rc < 0)
        return err_prefix(err, "the standby's own settings");
    restore_permit_revoke(restore);
    json_object_set_new(restore->job->journal, "timeline", json_integer(restore->fork.timeline));
    log_info("standby follows its primary: timeline=%u", restore->fork.timeline);
    return 0;
}
