/* From a configured image to a server at its target. pg_ctl says "started" when a hot standby is
 * consistent, seconds before a FATAL ends it, so nothing is believed but the server's own answers:
 * in recovery or not, where replay is, on which timeline, paused or not. */
#include "agent/restore.h"
#include "agent/log.h"
#include "agent/pg.h"
#include "agent/pg_pid_file.h"
#include "agent/process.h"
#include "agent/clock.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

enum { POLL_MS = 100, QUERY_TIMEOUT_S = 30, GONE_POLLS = 3 };

struct recovery {
    struct restore *restore;
    struct server_log log;
    struct pg_session *session; /* NULL while there is none */
    unsigned gone;              /* polls in a row without a server */
    /* the last answer */
    bool in_recovery, paused;
    uint64_t replay_lsn;
    uint32_t timeline;
};

struct patience {
    uint64_t lsn, since_s; /* replay is there since then */
};

static uint64_t now_s(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec;
}

/* --- asking ----------------------------------------------------------------------------------- */

static const char *column(const json_t *rows, size_t index)
{
    const char *text = json_string_value(json_array_get(json_array_get(rows, 0), index));
    return text ? text : "";
}

/* pg_walfile_name() begins with the timeline that is written now; it is refused in recovery. */
static int ask(struct recovery *recovery, struct err *err)
{
    static const char sql[] =
        "select pg_is_in_recovery()::text, coalesce(pg_last_wal_replay_lsn()::text, ''), "
        "case when pg_is_in_recovery() then pg_get_wal_replay_pause_state() else '' end, "
        "case when pg_is_in_recovery() then '' "
        "else substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end";
    free_json json_t *rows = NULL;
    int rc = pg_query(recovery->session, sql, NULL, QUERY_TIMEOUT_S, &rows, err);
    if (rc < 0)
        return rc;
    recovery->in_recovery = strcmp(column(rows, 0), "true") == 0;
    recovery->replay_lsn = 0;
    (void)pg_lsn_parse(column(rows, 1), &recovery->replay_lsn);
    recovery->paused = strcmp(column(rows, 2), "paused") == 0;
    recovery->timeline = (uint32_t)strtoul(column(rows, 3), NULL, 16);
    return 0;
}

/* "standby": a hot standby takes connections. Asking earlier only fills the server's log with FATAL
 * lines. */
static bool takes_connections(const struct restore *restore)
{
    char path[CONF_PATH_MAX + 32];
    struct pg_pid_file file;
    (void)snprintf(path, sizeof(path), "%s/postmaster.pid", restore->data_directory);
    return pg_pid_file_read(path, &file) == 0 &&
           (strcmp(file.status, "ready") == 0 || strcmp(file.status, "standby") == 0);
}

/* False while the server cannot be asked: not consistent yet, or not there. */
static bool asked(struct recovery *recovery)
{
    struct err ignored;
    if (!recovery->session && !takes_connections(recovery->restore))
        return false;
    if (!recovery->session &&
        pg_open(&recovery->restore->conf, NULL, &recovery->session, &ignored) < 0)
        return false;
    if (ask(recovery, &ignored) == 0)
        return true;
    pg_close(recovery->session);
    recovery->session = NULL;
    return false;
}

/* --- following -------------------------------------------------------------------------------- */

/* Exclusive: the record before the target may end at the end of a page, in front of the header of
 * the next one. */
static bool is_at_target(const struct restore *restore, uint64_t lsn)
{
    enum { PAGE_HEADER_MAX = 40 };
    return lsn + (restore->request.exclusive ? PAGE_HEADER_MAX : 0) >= restore->target_lsn;
}

/* Shutdown at the target leaves a server that is "shut down in recovery". So does a person's stop
 * on the way; the server's own word tells them apart, or the minimum recovery point, which may stay
 * behind the last record. Where neither is known (a name, a log in syslog), only a person's stop
 * speaks against it. */
static bool is_shut_down_there(struct recovery *recovery)
{
    struct restore *restore = recovery->restore;
    struct pg_control control;
    struct err ignored;
    if (restore->request.action != ACTION_SHUTDOWN ||
        pg_control_read(&restore->conf, restore->data_directory, &control, &ignored) < 0 ||
        strcmp(control.state, "shut down in recovery") != 0)
        return false;
    if (server_log_has(restore, &recovery->log, "shutdown at recovery target"))
        return true;
    return restore->target_lsn ? is_at_target(restore, control.min_recovery_lsn)
                               : !server_log_has(restore, &recovery->log, "shutdown request");
}

/* A setting that is too low pauses as well, anywhere: then the server has warned. */
static int check_paused(struct recovery *recovery, bool *ret_reached, struct err *err)
{
    struct restore *restore = recovery->restore;
    bool there = restore->target_lsn
                     ? is_at_target(restore, recovery->replay_lsn)
                     : !server_log_has(restore, &recovery->log, "insufficient parameter settings");
    if (restore->request.action == ACTION_PAUSE && there) {
        *ret_reached = true;
        return 0;
    }
    char lsn[24], what[128];
    pg_lsn_format(recovery->replay_lsn, lsn);
    (void)snprintf(what, sizeof(what), "recovery paused at %s, before the target", lsn);
    return server_log_error(restore, &recovery->log, what, err);
}

/* A setting that is too low pauses a standby, too. */
static int look_at_standby(struct recovery *recovery, bool *ret_reached, struct err *err)
{
    struct restore *restore = recovery->restore;
    if (!recovery->in_recovery)
        return err_set(
            err, ERR_POSTGRES,
            "the standby was promoted, by somebody else, before it followed its primary");
    if (recovery->paused)
        return check_paused(recovery, ret_reached, err);
    return restore_standby_attached(restore, recovery->session, ret_reached, err);
}

/* One look. *ret_reached: the server is at its target, in the way that was asked for. */
static int look(struct recovery *recovery, bool *ret_reached, struct err *err)
{
    struct restore *restore = recovery->restore;
    enum pg_state state;
    int rc = pg_server_state(&restore->conf, &state, NULL, err);
    if (rc < 0)
        return rc;
    *ret_reached = false;
    if (state == PG_STOPPED) {
        if (++recovery->gone < GONE_POLLS)
            return 0; /* postmaster.pid may be between two states */
        *ret_reached = is_shut_down_there(recovery);
        return *ret_reached ? 0
                            : server_log_error(restore, &recovery->log,
                                               "the server ended before the target", err);
    }
    recovery->gone = 0;
    if (!asked(recovery))
        return 0;
    if (restore->request.standby)
        return look_at_standby(recovery, ret_reached, err);
    if (!recovery->in_recovery) {
        *ret_reached = true;
        return 0;
    }
    return recovery->paused ? check_paused(recovery, ret_reached, err) : 0;
}

/* A standby whose primary refuses it waits for ever: after a while without a byte somebody should
 * know. It goes on by itself when the primary lets it in. */
static int check_patience(struct recovery *recovery, struct patience *patience, struct err *err)
{
    struct restore *restore = recovery->restore;
    if (recovery->replay_lsn != patience->lsn) {
        patience->lsn = recovery->replay_lsn;
        patience->since_s = now_s();
    }
    if (!restore->request.standby || now_s() - patience->since_s < restore->conf.start_timeout_s)
        return 0;
    return server_log_error(restore, &recovery->log,
                            "the standby does not get on and does not stream from its primary",
                            err);
}

/* As long as it takes: replay may need hours. A person can cancel, and sees the LSN move. */
static int follow(struct recovery *recovery, struct err *err)
{
    struct job *job = recovery->restore->job;
    struct patience patience = {.since_s = now_s()};
    uint64_t shown_lsn = 0, shown_s = 0;
    for (;;) {
        bool reached;
        int rc = look(recovery, &reached, err);
        if (rc == 0 && !reached)
            rc = check_patience(recovery, &patience, err);
        if (rc == 0 && !reached)
            rc = job_check_cancel(job, err);
        if (rc < 0 || reached)
            return rc;
        if (recovery->replay_lsn != shown_lsn && now_s() >= shown_s + 5) {
            char lsn[24];
            pg_lsn_format(recovery->replay_lsn, lsn);
            log_info("replaying: lsn=%s", lsn);
            json_object_set_new(job->journal, "replay_lsn", json_string(lsn));
            shown_lsn = recovery->replay_lsn;
            shown_s = now_s();
        }
        pause_ms(POLL_MS);
    }
}

/* --- at the target ---------------------------------------------------------------------------- */

/* `latest` is not looked for: WAL that cannot be read would end it early and look like success. A
 * record may begin in the last complete segment and end in one that never came. */
static int check_latest(struct restore *restore, uint64_t fork_lsn, struct err *err)
{
    uint64_t end_lsn;
    char fork[24], end[24];
    int rc = restore_last_complete(restore, &end_lsn, err);
    if (rc < 0 || fork_lsn + restore->record.segment_size > end_lsn)
        return rc;
    pg_lsn_format(fork_lsn, fork);
    pg_lsn_format(end_lsn, end);
    (void)err_set(err, ERR_POSTGRES,
                  "recovery ended at %s, but the repository has WAL of timeline %u up to %s", fork,
                  restore->target_timeline, end);
    return err_hint(err, "the server is up without what was committed behind %s; its log says why",
                    fork);
}

/* The new timeline must begin where the target lies: a server that promoted at another place lost
 * commits or has too many. The history file that it archives says where. */
static int check_fork(struct recovery *recovery, struct err *err)
{
    struct restore *restore = recovery->restore;
    static struct wal_history history; /* 16 KiB */
    int rc = wal_history_read(&restore->archive, recovery->timeline, &history, err);
    if (rc < 0 || history.count == 0)
        return rc;
    const struct wal_history_entry *last = &history.entries[history.count - 1];
    char fork[24], target[24];
    pg_lsn_format(last->switch_lsn, fork);
    json_object_set_new(restore->job->journal, "fork_lsn", json_string(fork));
    json_object_set_new(restore->job->journal, "fork",
                        json_pack("{s:I, s:s, s:I}", "timeline", (json_int_t)recovery->timeline,
                                  "lsn", fork, "parent", (json_int_t)last->parent));
    bool exact = restore->target == TARGET_TAG;
    if (restore->target == TARGET_LATEST)
        return check_latest(restore, last->switch_lsn, err);
    if (restore->target_lsn == 0 || last->switch_lsn == restore->target_lsn ||
        (!exact && is_at_target(restore, last->switch_lsn)))
        return 0;
    pg_lsn_format(restore->target_lsn, target);
    return err_set(err, ERR_POSTGRES, "the server left timeline %u at %s, but the target is %s",
                   last->parent, fork, target);
}

static bool archives(struct recovery *recovery)
{
    char *mode = NULL, *command = NULL;
    struct err ignored;
    bool on = pg_query_text(recovery->session, "select current_setting('archive_mode')", NULL,
                            &mode, &ignored) == 0 &&
              mode && strcmp(mode, "off") != 0 &&
              pg_query_text(recovery->session, "select current_setting('archive_command')", NULL,
                            &command, &ignored) == 0 &&
              command && command[0] && strcmp(command, "(disabled)") != 0;
    free(mode);
    free(command);
    return on;
}

static int archived_yet(struct restore *restore, const char *history, const char *segment,
                        bool *ret, struct err *err)
{
    int rc = wal_check(&restore->archive, history, err);
    if (rc == 0)
        rc = wal_check(&restore->archive, segment, err);
    *ret = rc == 0;
    return rc == -ERR_MISSING ? 0 : rc;
}

/* What pg_stat_archiver says, for the message. */
static int archive_failed(struct recovery *recovery, const char *history, const char *segment,
                          uint64_t waited_s, struct err *err)
{
    static const char sql[] = "select coalesce(last_failed_wal, 'nothing') || ', ' || "
                              "failed_count || ' failures' from pg_stat_archiver";
    char *failed = NULL;
    struct err ignored;
    (void)pg_query_text(recovery->session, sql, NULL, &failed, &ignored);
    (void)err_set(err, ERR_POSTGRES,
                  "the server is up at the target, but %s and %s did not arrive in the repository "
                  "within %llu s (archiver failed with %s)",
                  history, segment, (unsigned long long)waited_s, failed ? failed : "nothing");
    free(failed);
    return err_hint(err, "correct archive_command, then resume");
}

/* Nobody configured this host, so its archive_command may find no repository; to wait for it would
 * not help. The counter began with this server. */
static bool is_hopeless(struct recovery *recovery)
{
    static const char sql[] = "select 'yes' from pg_stat_archiver where failed_count >= 3";
    char *failed = NULL;
    struct err ignored;
    if (restore_host_is_configured(recovery->restore))
        return false;
    bool fails = pg_query_text(recovery->session, sql, NULL, &failed, &ignored) == 0 && failed;
    free(failed);
    return fails;
}

/* A later restore and every standby need the new timeline's history and first segment. */
static int wait_for_archive(struct recovery *recovery, uint64_t lsn, struct err *err)
{
    struct restore *restore = recovery->restore;
    uint32_t segment_size = restore->record.segment_size;
    char history[32], segment[25];
    (void)snprintf(history, sizeof(history), "%08X.history", recovery->timeline);
    pg_segment_name(recovery->timeline, lsn / segment_size, segment_size, segment);
    uint64_t begun_s = now_s();
    for (;;) {
        bool there;
        int rc = archived_yet(restore, history, segment, &there, err);
        if (rc == 0 && !there)
            rc = job_check_cancel(restore->job, err);
        if (rc < 0 || there)
            return rc;
        uint64_t waited_s = now_s() - begun_s;
        if (waited_s >= restore->conf.wal_archive_timeout_s || is_hopeless(recovery))
            return archive_failed(recovery, history, segment, waited_s, err);
        pause_ms(POLL_MS);
    }
}

/* The standbys of a cluster get the new timeline from the archive. */
static bool may_go_unarchived(const struct restore *restore)
{
    return !restore->request.cluster_job && !restore_host_is_configured(restore);
}

/* The server is right, but what it commits from now on stays on this host: said at the end, too. */
static int note_unarchived(struct restore *restore, const char *why)
{
    json_t *journal = restore->job->journal;
    char text[1024], advice[768] = "";
    if (!restore_host_is_configured(restore))
        restore_host_advice(restore, advice, sizeof(advice));
    (void)snprintf(text, sizeof(text), "the server does not archive: %s",
                   advice[0] ? advice : "its new timeline stays on this host only");
    log_warn("%s: %s", why, text);
    json_object_set_new(journal, "archived", json_false());
    json_object_set_new(journal, "warning", json_string(text));
    return 0;
}

/* The first segment of the new timeline holds the fork: it is the one that has to be archived. */
static int archive_timeline(struct recovery *recovery, struct err *err)
{
    struct restore *restore = recovery->restore;
    char *text = NULL;
    uint64_t lsn;
    if (!archives(recovery) && restore->request.cluster_job)
        return err_set(err, ERR_REFUSED,
                       "the new primary does not archive (archive_mode or "
                       "archive_command is off): its standbys could not follow");
    if (!archives(recovery))
        return note_unarchived(restore, "archive_mode or archive_command is off");
    int rc = job_journal(restore->job, NULL, "archiving", err);
    if (rc == 0)
        rc = pg_query_text(recovery->session, "select pg_switch_wal()", NULL, &text, err);
    bool good = rc == 0 && text && pg_lsn_parse(text, &lsn);
    free(text);
    if (!good)
        return rc < 0 ? rc : err_set(err, ERR_POSTGRES, "pg_switch_wal() gave no LSN");
    /* An LSN at a segment's very start is the end of the one before. */
    rc = wait_for_archive(recovery, lsn - 1, err);
    if (rc == -ERR_POSTGRES && may_go_unarchived(restore))
        return note_unarchived(restore, err->text);
    if (rc == 0)
        rc = check_fork(recovery, err);
    if (rc == 0)
        json_object_set_new(restore->job->journal, "archived", json_true());
    return rc;
}

static int finish_promotion(struct recovery *recovery, struct err *err)
{
    struct restore *restore = recovery->restore;
    json_object_set_new(restore->job->journal, "timeline", json_integer(recovery->timeline));
    restore->astray = recovery->timeline <= restore->target_timeline;
    if (restore->astray)
        return err_set(err, ERR_POSTGRES,
                       "the server is not in recovery but still on timeline %u: it did not recover "
                       "to the target",
                       recovery->timeline);
    int rc = archive_timeline(recovery, err);
    if (rc == 0)
        rc = restore_replace_settings(restore, "", err);
    if (rc < 0)
        return rc;
    restore_permit_revoke(restore);
    return restore_create_slots(restore, recovery->session, err);
}

/* A person ends this recovery when nothing of ours runs, so our settings stay where they are. */
static void note_waiting(struct restore *restore)
{
    enum restore_action action = restore->request.action;
    log_info("the server waits at the target: action=%s", restore_action_name(action));
    json_t *warning = json_sprintf(
        "%sits recovery settings stay in postgresql.auto.conf: once it is promoted, remove the "
        "lines from `# tidemark restore begin` to `# tidemark restore end` there",
        action == ACTION_SHUTDOWN
            ? "each start ends in a shutdown at the target until recovery_target_action in "
              "postgresql.auto.conf is 'promote', or 'pause' to look first; "
            : "");
    json_object_set_new(restore->job->journal, "warning", warning);
}

/* --- start ------------------------------------------------------------------------------------ */

/* A private socket directory of the recorded host may be missing here. */
static void make_socket_directory(struct restore *restore)
{
    const char *setting = restore_setting(restore, "unix_socket_directories");
    char home[256], value[CONF_PATH_MAX + 1], inside[CONF_PATH_MAX + 8];
    struct err ignored;
    uid_t uid;
    gid_t gid;
    if (!setting)
        return;
    (void)snprintf(value, sizeof(value), "%s", setting);
    value[strcspn(value, ",")] = '\0';
    if (value[0] != '/' || access(value, F_OK) == 0 ||
        process_user(restore->conf.os_user, &uid, &gid, home, &ignored) < 0)
        return;
    (void)snprintf(inside, sizeof(inside), "%s/x", value);
    if (restore_make_parents(inside, &ignored) == 0 && chown(value, uid, gid) == 0)
        log_info("socket directory made: path=%s", value);
}

/* A server that runs already was started by an interrupted run or by a person: it recovers with the
 * settings that we wrote, or could not have started. */
static int start_server(struct recovery *recovery, struct err *err)
{
    struct restore *restore = recovery->restore;
    struct start_options options;
    enum pg_state state;
    int pid;
    int rc = restore_mount(restore, err);
    if (rc == 0)
        rc = pg_server_state(&restore->conf, &state, &pid, err);
    if (rc < 0)
        return rc;
    server_log_begin(restore, &recovery->log);
    if (state != PG_STOPPED) {
        rc = restore_standby_renew(restore, pid, err);
        return rc < 0 ? rc : restore_gate_open(restore, err);
    }
    rc = restore->request.standby ? restore_standby_prepare(restore, err)
                                  : restore_second_recheck(restore, err);
    if (rc == 0)
        rc = restore_permit_grant(restore, err);
    if (rc == 0)
        rc = restore_check_isolation(restore, err);
    if (rc == 0)
        rc = restore_gate_open(restore, err);
    if (rc < 0)
        return rc;
    make_socket_directory(restore);
    rc = pg_server_start(&restore->conf, restore_start_options(restore, &options), err);
    restore_test_stop("recovering-started");
    /* A short recovery may be over, well or not, before pg_server_start() has looked twice. */
    return rc == -ERR_POSTGRES && server_log_has(restore, &recovery->log, "starting PostgreSQL")
               ? 0
               : rc;
}

/* What keeps us from starting the server, another primary perhaps, keeps others from it as well. */
static void hold_back(const struct restore *restore)
{
    enum pg_state state;
    struct err ignored;
    if (pg_server_state(&restore->conf, &state, NULL, &ignored) == 0 && state == PG_STOPPED)
        restore_permit_revoke(restore);
}

int restore_recover(struct restore *restore, struct err *err)
{
    struct recovery recovery = {.restore = restore};
    int rc = start_server(&recovery, err);
    if (rc == 0)
        rc = follow(&recovery, err);
    restore_test_stop("recovering-reached");
    if (rc == 0 && recovery.replay_lsn) {
        char lsn[24];
        pg_lsn_format(recovery.replay_lsn, lsn);
        json_object_set_new(restore->job->journal, "replay_lsn", json_string(lsn));
    }
    if (rc == 0 && restore->request.standby)
        rc = restore_standby_finish(restore, recovery.session, err);
    else if (rc == 0 && recovery.session && !recovery.in_recovery)
        rc = finish_promotion(&recovery, err);
    if (rc == 0 && restore->request.action != ACTION_PROMOTE)
        note_waiting(restore);
    pg_close(recovery.session);
    if (rc < 0)
        hold_back(restore);
    return rc;
}
