/* Where recovery ends, and on which timeline. `latest` is never given to PostgreSQL: after one
 * restore it means the branch that the restore made (FACTS). The timeline is a number found in the
 * history files: the lines that descend from the snapshot's (timeline, stop LSN) and contain the
 * target. When several do, only a person can say which. */
#include "agent/restore.h"
#include "agent/pg.h"

#include <stdio.h>
#include <time.h>

enum { LINES_MAX = 64 };

struct line {
    uint32_t timeline;
    uint64_t begin_lsn; /* where it left its parent; the snapshot's stop for its own timeline */
    uint64_t end_lsn;   /* end of its last archived segment; 0 = none */
    uint32_t parent;
};

/* --- what the archive has of a timeline ------------------------------------------------------- */

struct extent_of_line {
    uint32_t timeline, segment_size;
    uint64_t end_lsn, rank;         /* rank: a whole segment before any .partial of it */
    char partial[WAL_NAME_MAX + 1]; /* "" = whole */
};

static int each_wal_object(void *ctx, const char *name, uint64_t size, struct err *err)
{
    (void)size;
    (void)err;
    struct extent_of_line *line = ctx;
    const char *file = strrchr(name, '/');
    file = file ? file + 1 : name;
    char segment[25];
    enum wal_kind kind;
    uint32_t timeline;
    uint64_t number;
    if (!wal_name_parse(file, &kind, NULL) || (kind != WAL_SEGMENT && kind != WAL_PARTIAL))
        return 0;
    (void)snprintf(segment, sizeof(segment), "%.24s", file);
    if (!pg_segment_parse(segment, line->segment_size, &timeline, &number) ||
        timeline != line->timeline)
        return 0;
    uint64_t end_lsn = (number + 1) * line->segment_size;
    uint64_t rank = kind == WAL_SEGMENT ? UINT64_MAX : wal_partial_number(file);
    if (end_lsn < line->end_lsn || (end_lsn == line->end_lsn && rank < line->rank))
        return 0;
    line->end_lsn = end_lsn;
    line->rank = rank;
    (void)snprintf(line->partial, sizeof(line->partial), "%s", kind == WAL_PARTIAL ? file : "");
    return 0;
}

int restore_timeline_end(struct restore *restore, uint32_t timeline, uint64_t *ret_end_lsn,
                         char ret_partial[WAL_NAME_MAX + 1], struct err *err)
{
    struct extent_of_line line = {.timeline = timeline,
                                  .segment_size = restore->record.segment_size};
    char name[STORE_NAME_MAX + 1];
    repo_wal_name(name, restore->archive.cluster, restore->archive.system_id, timeline, "x");
    *(strrchr(name, '/') + 1) = '\0';
    int rc = store_list(restore->store, name, each_wal_object, &line, err);
    if (rc < 0)
        return rc;
    *ret_end_lsn = line.end_lsn;
    memcpy(ret_partial, line.partial, sizeof(line.partial));
    return 0;
}

/* --- the lines that can follow this snapshot -------------------------------------------------- */

static uint64_t base_lsn(const struct record *record)
{
    return record->stop_lsn ? record->stop_lsn : record->start_lsn;
}

/* True when history says that this line left the snapshot's timeline after the snapshot. */
static bool descends(const struct record *record, const struct wal_history *history)
{
    for (size_t i = 0; i < history->count; i++)
        if (history->entries[i].parent == record->timeline)
            return history->entries[i].switch_lsn >= base_lsn(record);
    return false;
}

static int add_line(struct restore *restore, uint32_t timeline, struct line *lines, size_t *count,
                    struct err *err)
{
    const struct record *record = &restore->record;
    struct line line = {.timeline = timeline, .begin_lsn = base_lsn(record)};
    char partial[WAL_NAME_MAX + 1];
    if (timeline != record->timeline) {
        struct wal_history history;
        int rc = wal_history_read(&restore->archive, timeline, &history, err);
        if (rc == -ERR_MISSING)
            return 0; /* nobody could recover along a line without its history */
        if (rc < 0)
            return rc;
        if (history.count == 0 || !descends(record, &history))
            return 0;
        line.begin_lsn = history.entries[history.count - 1].switch_lsn;
        line.parent = history.entries[history.count - 1].parent;
    }
    int rc = restore_timeline_end(restore, timeline, &line.end_lsn, partial, err);
    if (rc < 0)
        return rc;
    if (*count == LINES_MAX)
        return err_set(err, ERR_REFUSED, "more than %d timelines descend from this snapshot",
                       LINES_MAX);
    lines[(*count)++] = line;
    return 0;
}

static int find_lines(struct restore *restore, struct line *lines, size_t *ret_count,
                      struct err *err)
{
    free_mem uint32_t *timelines = NULL;
    size_t timeline_count;
    *ret_count = 0;
    int rc = wal_timelines(&restore->archive, &timelines, &timeline_count, err);
    bool own = false;
    for (size_t i = 0; rc == 0 && i < timeline_count; i++) {
        if (timelines[i] < restore->record.timeline)
            continue;
        own |= timelines[i] == restore->record.timeline;
        rc = add_line(restore, timelines[i], lines, ret_count, err);
    }
    if (rc == 0 && !own)
        rc = add_line(restore, restore->record.timeline, lines, ret_count, err);
    return rc;
}

/* A parent whose archive ends in the very segment where its child begins was left for good: a
 * server was promoted at its end. Then the child is the only continuation. */
static bool was_left(const struct line *lines, size_t count, const struct line *line,
                     uint32_t segment_size)
{
    for (size_t i = 0; i < count; i++)
        if (lines[i].parent == line->timeline && lines[i].timeline != line->timeline &&
            align_up(lines[i].begin_lsn, segment_size) >= line->end_lsn)
            return true;
    return false;
}

/* --- choice ----------------------------------------------------------------------------------- */

/* ", made 2026-11-25 21:04:05 UTC": when a restore of this host made the timeline. */
static void describe_origin(const json_t *jobs, uint32_t timeline, char *ret, size_t size)
{
    size_t i;
    json_t *job;
    ret[0] = '\0';
    json_array_foreach((json_t *)(uintptr_t)jobs, i, job)
    {
        time_t ended_s = (time_t)json_integer_value(json_object_get(job, "ended_s"));
        struct tm when;
        if (json_integer_value(json_object_get(job, "timeline")) == timeline && ended_s > 0 &&
            gmtime_r(&ended_s, &when))
            (void)strftime(ret, size, ", made %Y-%m-%d %H:%M:%S UTC", &when);
    }
}

/* The timeline that the server here is on; 0 = its volume is not mounted, or not whole. */
static uint32_t current_timeline(const struct restore *restore)
{
    struct pg_control control;
    struct err ignored;
    return pg_control_read(&restore->conf, restore->data_directory, &control, &ignored) < 0
               ? 0
               : control.timeline;
}

static int refuse_ambiguous(const struct restore *restore, const struct line *lines, size_t count,
                            const bool *candidate, struct err *err)
{
    free_json json_t *jobs = NULL;
    struct err ignored;
    uint32_t current = current_timeline(restore);
    char list[384] = "";
    (void)job_list(&restore->job->conf, &jobs, &ignored);
    for (size_t i = 0; i < count; i++) {
        if (!candidate[i])
            continue;
        size_t len = strlen(list);
        char begin[24], end[24], origin[48];
        pg_lsn_format(lines[i].begin_lsn, begin);
        pg_lsn_format(lines[i].end_lsn, end);
        describe_origin(jobs, lines[i].timeline, origin, sizeof(origin));
        (void)snprintf(list + len, sizeof(list) - len, "%stimeline %u (%s to %s%s%s)",
                       len ? ", " : "", lines[i].timeline, begin, end, origin,
                       lines[i].timeline == current ? ", the server's own now" : "");
    }
    (void)err_set(err, ERR_REFUSED, "several timelines contain the target: %s", list);
    return err_hint(err, "choose one with --target-timeline=N");
}

static int refuse_absent(const struct restore *restore, const struct line *lines, size_t count,
                         struct err *err)
{
    size_t last = 0;
    char end[24];
    (void)err_set(err, ERR_MISSING,
                  "no timeline in the repository contains the target %s after this snapshot",
                  restore->target_value);
    for (size_t i = 1; i < count; i++)
        if (lines[i].end_lsn > lines[last].end_lsn)
            last = i;
    if (count == 0)
        return err_hint(err, "only --target=tag and --target=snapshot are possible");
    pg_lsn_format(lines[last].end_lsn, end);
    return err_hint(err, "the furthest is timeline %u, up to %s: choose a target up to there",
                    lines[last].timeline, end);
}

static int choose_line(struct restore *restore, const struct line *lines, size_t count,
                       struct err *err)
{
    bool candidate[LINES_MAX] = {false};
    size_t found = 0, last = 0;
    for (size_t i = 0; i < count; i++) {
        if (restore->target == TARGET_LSN)
            candidate[i] = restore->target_lsn > lines[i].begin_lsn &&
                           (restore->target_lsn <= lines[i].end_lsn || count == 1);
        else
            candidate[i] = !was_left(lines, count, &lines[i], restore->record.segment_size);
        if (candidate[i]) {
            found++;
            last = i;
        }
    }
    if (found > 1)
        return refuse_ambiguous(restore, lines, count, candidate, err);
    if (found == 0)
        return refuse_absent(restore, lines, count, err);
    restore->target_timeline = lines[last].timeline;
    return 0;
}

/* --target-timeline: it must descend from the snapshot. */
static int take_line(struct restore *restore, const struct line *lines, size_t count,
                     struct err *err)
{
    uint32_t wanted = restore->request.target_timeline;
    for (size_t i = 0; i < count; i++)
        if (lines[i].timeline == wanted) {
            restore->target_timeline = wanted;
            return 0;
        }
    (void)err_set(err, ERR_REFUSED, "timeline %u does not descend from the snapshot (timeline %u)",
                  wanted, restore->record.timeline);
    return err_hint(err, "its history file is not in the repository, or it branched off before "
                         "the snapshot's end");
}

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
    if (!pg_lsn_parse(value, &restore->target_lsn))
        return err_set(err, ERR_USAGE, "'%s' is not an LSN", value);
    if (restore->target_lsn < base_lsn(&restore->record))
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
    return 0;
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

int restore_resolve_target(struct restore *restore, json_t *warnings, struct err *err)
{
    struct line lines[LINES_MAX];
    size_t count;
    choose_default(restore, warnings);
    int rc = check_value(restore, err);
    if (rc < 0)
        return rc;
    restore->target_timeline = restore->record.timeline;
    bool any = restore->request.target_timeline != 0;
    if (restore->target == TARGET_SNAPSHOT || (restore->target == TARGET_TAG && !any))
        return 0; /* the restore point was written on the snapshot's own timeline */
    if (!restore->record.archived)
        return err_set(err, ERR_REFUSED,
                       "snapshot '%s' has no WAL in the repository: only the target snapshot is "
                       "possible",
                       restore->record.tag);
    rc = find_lines(restore, lines, &count, err);
    if (rc < 0)
        return rc;
    return any ? take_line(restore, lines, count, err) : choose_line(restore, lines, count, err);
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

static int check_range(const struct restore *restore, uint64_t end_lsn, struct err *err)
{
    const struct record *record = &restore->record;
    int rc = wal_check_range(&restore->archive, restore->target_timeline, record->start_lsn,
                             max_u64(end_lsn, record->stop_lsn), record->segment_size, err);
    if (rc == -ERR_MISSING && !err->hint[0])
        (void)err_hint(err, "whoever still has it gives it with `tidemark-wal push pg_wal/FILE`, "
                            "as the server's user; or choose another snapshot");
    return rc < 0 ? err_prefix(err, "WAL for the target") : 0;
}

/* The end of what the timeline's last segment holds where it is there as .partial only, because its
 * server crashed or a standby of it was promoted. */
static int read_partial_end(struct restore *restore, const char *name, uint64_t segment_lsn,
                            uint64_t *ret_lsn, struct err *err)
{
    free_mem void *raw = NULL;
    size_t len;
    int rc = wal_read(&restore->archive, name, &raw, &len, err);
    if (rc == 0)
        *ret_lsn = segment_lsn + wal_partial_len(raw, len, segment_lsn);
    return rc;
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
        rc = read_partial_end(restore, partial, segment_lsn, &end_lsn, err);
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
