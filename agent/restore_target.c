/* What a restore recovers to: each kind of target, checked before anything is touched, and whether
 * its WAL is there. On which timeline: restore_timeline.c. */
#include "agent/restore.h"
#include "agent/pg.h"
#include "agent/wal_horizon.h"

#include <stdio.h>
#include <time.h>

/* --- the target itself ------------------------------------------------------------------------ */

static int refuse_too_early(const char *value, struct err *err)
{
    (void)err_set(err, ERR_REFUSED, "the target %s lies before the end of the snapshot", value);
    return err_hint(err, "recovery can only go forward: choose an older snapshot");
}

static int check_tag(struct restore *restore, struct err *err)
{
    const struct record *record = &restore->record;
    const char *value = restore->request.target_value;
    if (value[0] && strcmp(value, record->tag) != 0) {
        (void)err_set(err, ERR_USAGE, "the snapshot's tag is '%s', not '%s'", record->tag, value);
        return err_hint(err, "restore that tag's own snapshot, or use the target name");
    }
    if (!record->archived || !record->restore_point[0]) {
        (void)err_set(err, ERR_REFUSED,
                      "snapshot '%s' has no WAL in the repository (%s): only the target snapshot "
                      "is possible",
                      record->tag, record->online ? "--no-archive" : "taken offline");
        return err_hint(err, "say --target=snapshot");
    }
    (void)snprintf(restore->target_value, sizeof(restore->target_value), "%s",
                   record->restore_point);
    restore->target_lsn = record->tag_lsn;
    return 0;
}

static int check_snapshot(const struct restore *restore, struct err *err)
{
    if (restore->record.wal_in_image || !restore->record.online)
        return 0;
    (void)err_set(err, ERR_REFUSED,
                  "snapshot '%s' was taken without its WAL: the target snapshot needs it in the "
                  "image",
                  restore->record.tag);
    return err_hint(err, "take snapshots with --with-wal, or restore to the tag");
}

static int check_lsn(struct restore *restore, struct err *err)
{
    const char *value = restore->request.target_value;
    if (!pg_lsn_parse(value, &restore->target_lsn)) {
        (void)err_set(err, ERR_USAGE, "'%s' is not an LSN", value);
        return err_hint(err, "one looks like 0/3000148, as pg_current_wal_lsn() prints it");
    }
    if (restore->target_lsn < restore_base_lsn(&restore->record))
        return refuse_too_early(value, err);
    pg_lsn_format(restore->target_lsn, restore->target_value);
    return 0;
}

/* Recovery to a time ends before the first commit behind it; when that lies before the backup's
 * end, the server says "before consistent recovery point" and is gone, after its volumes were
 * written. Without such a commit it would go well, but only the WAL knows. */
static int check_time(struct restore *restore, struct err *err)
{
    int64_t time_us;
    int rc = restore_parse_time(restore->request.target_value, &time_us, restore->target_value,
                                sizeof(restore->target_value), err);
    if (rc < 0)
        return rc;
    if (time_us < restore->record.captured_s * 1000000 || time_us < restore->record.stopped_us)
        return refuse_too_early(restore->target_value, err);
    if (time_us / 1000000 <= (int64_t)time(NULL))
        return 0;
    (void)err_set(err, ERR_REFUSED, "the target %s lies in the future", restore->target_value);
    return err_hint(err, "recovery would reach the end of the WAL and fail: for all there is say "
                         "--target=latest");
}

/* What the server would not read is refused here: it would refuse when the old data is gone. */
static int check_plain(struct restore *restore, struct err *err)
{
    const char *value = restore->request.target_value;
    enum { XID_DIGITS_MAX = 19 }; /* fewer than 64 bits */
    if (restore->target == TARGET_XID &&
        (strspn(value, "0123456789") != strlen(value) || strlen(value) > XID_DIGITS_MAX))
        return err_set(err, ERR_USAGE, "'%s' is not a transaction id", value);
    if (strlen(value) > 63)
        return err_set(err, ERR_USAGE, "a restore point's name has at most 63 bytes");
    (void)snprintf(restore->target_value, sizeof(restore->target_value), "%s", value);
    return 0;
}

static int check_value(struct restore *restore, struct err *err)
{
    switch (restore->target) {
    case TARGET_TAG:
        return check_tag(restore, err);
    case TARGET_SNAPSHOT:
        return check_snapshot(restore, err);
    case TARGET_LSN:
        return check_lsn(restore, err);
    case TARGET_TIME:
        return check_time(restore, err);
    case TARGET_NAME:
    case TARGET_XID:
    case TARGET_LATEST:
        return check_plain(restore, err);
    case TARGET_TYPE_COUNT:
        break;
    }
    return err_set(err, ERR_INTERNAL, "target type %d", (int)restore->target);
}

/* A snapshot without WAL in the repository has only one target; taking it unasked is said aloud. */
static void choose_default(struct restore *restore, json_t *warnings)
{
    const struct record *record = &restore->record;
    restore->target = restore->request.target;
    if (restore->request.target_given || (record->archived && record->restore_point[0]))
        return;
    restore->target = TARGET_SNAPSHOT;
    json_append_text(warnings,
                     "the snapshot has no WAL in the repository: its target is the instant "
                     "of the snapshot itself");
}

/* Without a recovery_target PostgreSQL ignores recovery_target_action and promotes at the end of
 * the WAL ("recovery_target_action" in its documentation, validateRecoveryParameters()). */
static int check_action(const struct restore *restore, struct err *err)
{
    bool ends = restore->target == TARGET_LATEST || restore->target == TARGET_SNAPSHOT;
    if (!ends || restore->request.action == ACTION_PROMOTE)
        return 0;
    (void)err_set(err, ERR_REFUSED,
                  "at the end of the %s there is no point to pause or to shut down at: PostgreSQL "
                  "would promote itself",
                  restore->target == TARGET_LATEST ? "WAL" : "snapshot's own WAL");
    return err_hint(err,
                    "choose the tag, a time, an LSN, a name or a transaction as the target; or "
                    "--action=promote");
}

int restore_resolve_target(struct restore *restore, json_t *warnings, struct err *err)
{
    choose_default(restore, warnings);
    int rc = check_value(restore, err);
    if (rc == 0)
        rc = check_action(restore, err);
    if (rc < 0)
        return rc;
    restore->target_timeline = restore->record.timeline;
    bool given = restore->request.target_timeline != 0;
    if (restore->target == TARGET_SNAPSHOT || (restore->target == TARGET_TAG && !given))
        return 0; /* the restore point was written on the snapshot's own timeline */
    if (!restore->record.archived)
        return err_set(err, ERR_REFUSED,
                       "snapshot '%s' has no WAL in the repository: only the target snapshot is "
                       "possible",
                       restore->record.tag);
    return restore_choose_timeline(restore, err);
}

/* The history says where the timeline left its parent, but the parent's segment goes on behind that
 * point: without a segment of its own, replay would follow the parent. */
static int check_own_wal(struct restore *restore, uint64_t end_lsn, struct err *err)
{
    uint32_t timeline = restore->target_timeline;
    if (timeline == restore->record.timeline)
        return 0;
    free_mem struct wal_history *history = malloc(sizeof(*history));
    if (!history)
        return err_set(err, ERR_INTERNAL, "out of memory");
    int rc = wal_history_read(&restore->archive, timeline, history, err);
    if (rc < 0 || history->count == 0 || end_lsn > history->entries[history->count - 1].switch_lsn)
        return rc;
    char fork[24];
    pg_lsn_format(history->entries[history->count - 1].switch_lsn, fork);
    (void)err_set(err, ERR_MISSING,
                  "timeline %u begins at %s, and the repository has no WAL of it from there on",
                  timeline, fork);
    return err_hint(err, "choose its parent with --target-timeline, and a target up to %s", fork);
}

int restore_last_complete(struct restore *restore, uint64_t *ret_lsn, struct err *err)
{
    char partial[WAL_NAME_MAX + 1] = "";
    int rc = restore_timeline_end(restore, restore->target_timeline, ret_lsn, partial, err);
    if (rc == 0)
        rc = check_own_wal(restore, *ret_lsn, err);
    if (rc == 0 && partial[0])
        *ret_lsn -= restore->record.segment_size;
    return rc;
}

/* --- is its WAL there ------------------------------------------------------------------------- */

/* A target before the fork, in the fork's segment: the child's copy of that segment has it as well
 * (XLogFileReadAnyTLI() asks for that one first). Behind the fork the child owns it. */
static int lift_over_fork(const struct restore *restore, uint64_t *lsn, struct err *err)
{
    free_mem struct wal_history *history = malloc(sizeof(*history));
    if (!history)
        return err_set(err, ERR_INTERNAL, "out of memory");
    int rc = wal_history_read(&restore->archive, restore->target_timeline, history, err);
    if (rc < 0 || history->count == 0)
        return rc;
    uint64_t fork = history->entries[history->count - 1].switch_lsn;
    uint32_t segment_size = restore->record.segment_size;
    if (*lsn > 0 && *lsn <= fork && (*lsn - 1) / segment_size == fork / segment_size)
        *lsn = fork + 1;
    return 0;
}

/* Of a pinned snapshot only start to tag stays. Expire looks for our mark behind its own, and we
 * for its mark behind ours (wal_horizon.h). */
static int check_horizon(const struct restore *restore, uint64_t last, struct err *err)
{
    const struct record *record = &restore->record;
    uint64_t from = record->tag_lsn > record->start_lsn
                        ? (record->tag_lsn - 1) / record->segment_size + 1
                        : record->start_lsn / record->segment_size;
    return wal_horizon_check_replay(&restore->archive, restore->target_timeline, from, last,
                                    record->segment_size, err);
}

/* Where a time, a name or a transaction is in the WAL shows only when it is reached, so all of it
 * has to be there. An LSN between the snapshot and a gap needs nothing behind itself. */
static int hint_gap(const struct restore *restore, struct err *err)
{
    const struct record *record = &restore->record;
    struct err ignored;
    bool lsn_helps = restore->target != TARGET_LSN &&
                     wal_check_range(&restore->archive, record->timeline, record->start_lsn,
                                     record->stop_lsn, record->segment_size, &ignored) == 0;
    return err_hint(err,
                    "whoever still has it gives it with `tidemark-wal push pg_wal/FILE`, as the "
                    "server's user; %sor choose another snapshot",
                    lsn_helps ? "a point before it is reached with --target-lsn; " : "");
}

static int check_range(const struct restore *restore, uint64_t end_lsn, struct err *err)
{
    const struct record *record = &restore->record;
    uint64_t last = max_u64(end_lsn, record->stop_lsn);
    int rc = restore->target_timeline == record->timeline ? 0 : lift_over_fork(restore, &last, err);
    if (rc == 0)
        rc = wal_check_range(&restore->archive, restore->target_timeline, record->start_lsn, last,
                             record->segment_size, err);
    if (rc == -ERR_MISSING && !err->hint[0])
        (void)hint_gap(restore, err);
    return rc < 0 ? err_prefix(err, "WAL for the target") : check_horizon(restore, last, err);
}

static int hint_missing(const struct restore *restore, uint64_t end_lsn, struct err *err)
{
    char end[24];
    pg_lsn_format(end_lsn, end);
    if (restore->target_lsn < end_lsn)
        return err_hint(err,
                        "it was never archived: choose a target before it, or a later snapshot");
    return err_hint(err,
                    "the repository has timeline %u up to %s: choose a target before that, or "
                    "--target=latest for all of it",
                    restore->target_timeline, end);
}

/* An LSN that the complete segments do not reach. Recovery ends at the first record that begins at
 * the target or behind it, so there must be something behind it. */
static int check_last_segment(struct restore *restore, struct err *err)
{
    struct err cause = *err;
    uint64_t end_lsn;
    char partial[WAL_NAME_MAX + 1];
    int rc = restore_timeline_end(restore, restore->target_timeline, &end_lsn, partial, err);
    if (rc < 0)
        return rc;
    uint64_t segment_lsn = end_lsn - restore->record.segment_size;
    if (partial[0] && restore->target_lsn > segment_lsn) {
        rc = restore_partial_end(restore, partial, segment_lsn, &end_lsn, err);
        if (rc < 0)
            return rc;
        if (restore->target_lsn < end_lsn) { /* restore_configure puts it into pg_wal */
            rc = check_range(restore, segment_lsn, err);
            return rc == -ERR_MISSING ? hint_missing(restore, end_lsn, err) : rc;
        }
    }
    *err = cause;
    return hint_missing(restore, end_lsn, err);
}

int restore_check_wal(struct restore *restore, struct err *err)
{
    if (restore->target == TARGET_SNAPSHOT)
        return 0;
    uint64_t end_lsn = restore->target_lsn;
    int rc = end_lsn == 0 ? restore_last_complete(restore, &end_lsn, err) : 0;
    if (rc == 0)
        rc = check_range(restore, end_lsn, err);
    return rc == -ERR_MISSING && restore->target == TARGET_LSN ? check_last_segment(restore, err)
                                                               : rc;
}
