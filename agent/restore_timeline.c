/* On which timeline a restore recovers. `latest` is never given to PostgreSQL: after one restore it
 * means the branch that the restore made (FACTS). The timeline is a number found in the history
 * files: the lines that descend from the snapshot's (timeline, stop LSN) and contain the target.
 * When several do, only a person can say which; and a timeline whose history file is lost may be
 * one of them. */
#include "agent/restore.h"
#include "agent/pg.h"

#include <stdio.h>
#include <time.h>

enum { LINES_MAX = 64, WAL_ALIGN = 8 /* records begin at multiples of it */ };

struct line {
    uint32_t timeline;
    uint64_t begin_lsn; /* where it left its parent; the snapshot's stop for its own timeline */
    uint64_t end_lsn;   /* of what is archived: the last segment's, or of what a .partial holds */
    uint32_t parent;
};

struct lines {
    struct line items[LINES_MAX];
    size_t count;
    uint32_t lost; /* has WAL behind the snapshot, but no history file; 0 = none */
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

uint64_t restore_base_lsn(const struct record *record)
{
    return record->stop_lsn ? record->stop_lsn : record->start_lsn;
}

int restore_partial_end(struct restore *restore, const char *name, uint64_t segment_lsn,
                        uint64_t *ret_lsn, struct err *err)
{
    free_mem void *raw = NULL;
    size_t len;
    int rc = wal_read(&restore->archive, name, &raw, &len, err);
    if (rc == 0)
        *ret_lsn = segment_lsn + wal_partial_len(raw, len, segment_lsn);
    return rc;
}

/* A promotion leaves its parent's last segment as .partial: to its end it is no WAL of the parent,
 * and what lies there is on the child only. */
static int find_end(struct restore *restore, uint32_t timeline, uint64_t *ret_lsn, struct err *err)
{
    char partial[WAL_NAME_MAX + 1];
    uint64_t end_lsn, used_lsn;
    int rc = restore_timeline_end(restore, timeline, &end_lsn, partial, err);
    if (rc == 0 && partial[0]) {
        rc = restore_partial_end(restore, partial, end_lsn - restore->record.segment_size,
                                 &used_lsn, err);
        end_lsn = rc == 0 ? align_up(used_lsn, WAL_ALIGN) : 0;
    }
    if (rc == 0)
        *ret_lsn = end_lsn;
    return rc;
}

/* True when history says that this line left the snapshot's timeline after the snapshot. */
static bool descends(const struct record *record, const struct wal_history *history)
{
    for (size_t i = 0; i < history->count; i++)
        if (history->entries[i].parent == record->timeline)
            return history->entries[i].switch_lsn >= restore_base_lsn(record);
    return false;
}

/* A line of another timeline than the snapshot's. *ret_is: it descends from the snapshot. */
static int read_ancestors(struct restore *restore, struct line *line, bool *ret_is, struct err *err)
{
    free_mem struct wal_history *history = malloc(sizeof(*history));
    if (!history)
        return err_set(err, ERR_INTERNAL, "out of memory");
    int rc = wal_history_read(&restore->archive, line->timeline, history, err);
    if (rc < 0)
        return rc;
    *ret_is = history->count > 0 && descends(&restore->record, history);
    if (*ret_is) {
        line->begin_lsn = history->entries[history->count - 1].switch_lsn;
        line->parent = history->entries[history->count - 1].parent;
    }
    return 0;
}

static int add_line(struct restore *restore, uint32_t timeline, struct lines *lines,
                    struct err *err)
{
    const struct record *record = &restore->record;
    struct line line = {.timeline = timeline, .begin_lsn = restore_base_lsn(record)};
    bool is = true, lost = false;
    int rc = find_end(restore, timeline, &line.end_lsn, err);
    if (rc == 0 && timeline != record->timeline) {
        rc = read_ancestors(restore, &line, &is, err);
        lost = rc == -ERR_MISSING;
    }
    if (lost) {
        if (!lines->lost && line.end_lsn > line.begin_lsn)
            lines->lost = timeline;
        err_clear(err);
        return 0;
    }
    if (rc < 0 || !is)
        return rc;
    if (lines->count == LINES_MAX)
        return err_set(err, ERR_REFUSED, "more than %d timelines descend from this snapshot",
                       LINES_MAX);
    lines->items[lines->count++] = line;
    return 0;
}

static int find_lines(struct restore *restore, struct lines *ret, struct err *err)
{
    free_mem uint32_t *timelines = NULL;
    size_t timeline_count;
    *ret = (struct lines){.count = 0};
    int rc = wal_timelines(&restore->archive, &timelines, &timeline_count, err);
    bool own = false;
    for (size_t i = 0; rc == 0 && i < timeline_count; i++) {
        if (timelines[i] < restore->record.timeline)
            continue;
        own |= timelines[i] == restore->record.timeline;
        rc = add_line(restore, timelines[i], ret, err);
    }
    if (rc == 0 && !own)
        rc = add_line(restore, restore->record.timeline, ret, err);
    return rc;
}

/* A parent whose archive ends in the very segment where its child begins was left for good: a
 * server was promoted at its end. Then the child is the only continuation. */
static bool was_left(const struct lines *lines, const struct line *line, uint32_t segment_size)
{
    for (size_t i = 0; i < lines->count; i++) {
        const struct line *other = &lines->items[i];
        if (other->parent == line->timeline && other->timeline != line->timeline &&
            align_up(other->begin_lsn, segment_size) >= line->end_lsn)
            return true;
    }
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

static int refuse_ambiguous(const struct restore *restore, const struct lines *lines,
                            const bool *candidate, struct err *err)
{
    free_json json_t *jobs = NULL;
    struct err ignored;
    uint32_t current = current_timeline(restore);
    char list[384] = "";
    (void)job_list(&restore->job->conf, &jobs, &ignored);
    for (size_t i = 0; i < lines->count; i++) {
        const struct line *line = &lines->items[i];
        if (!candidate[i])
            continue;
        size_t len = strlen(list);
        char begin[24], end[24], origin[48];
        pg_lsn_format(line->begin_lsn, begin);
        pg_lsn_format(line->end_lsn, end);
        describe_origin(jobs, line->timeline, origin, sizeof(origin));
        (void)snprintf(list + len, sizeof(list) - len, "%stimeline %u (%s to %s%s%s)",
                       len ? ", " : "", line->timeline, begin, end, origin,
                       line->timeline == current ? ", the server's own now" : "");
    }
    (void)err_set(err, ERR_REFUSED, "several timelines contain the target: %s", list);
    return err_hint(err, "choose one with --target-timeline=N");
}

static int refuse_absent(const struct restore *restore, const struct lines *lines, struct err *err)
{
    size_t last = 0;
    char end[24];
    (void)err_set(err, ERR_MISSING,
                  "no timeline in the repository contains the target %s after this snapshot",
                  restore->target_value);
    for (size_t i = 1; i < lines->count; i++)
        if (lines->items[i].end_lsn > lines->items[last].end_lsn)
            last = i;
    if (lines->count == 0)
        return err_hint(err, "only --target=tag and --target=snapshot are possible");
    pg_lsn_format(lines->items[last].end_lsn, end);
    return err_hint(err, "the furthest is timeline %u, up to %s: choose a target up to there",
                    lines->items[last].timeline, end);
}

/* To leave out a timeline because nobody could recover along it would be a quiet way to lose what
 * was committed there. */
static int refuse_lost(const struct lines *lines, struct err *err)
{
    (void)err_set(
        err, ERR_MISSING,
        "timeline %u has WAL in the repository, but %08X.history is not there: whether it "
        "goes on from this snapshot cannot be told",
        lines->lost, lines->lost);
    return err_hint(err,
                    "a server of that timeline has it: `tidemark-wal push pg_wal/%08X.history`, as "
                    "the server's user; or choose another timeline with --target-timeline=N",
                    lines->lost);
}

/* recovery ends at a record that begins at the target or behind it. The segment in which a timeline
 * begins holds its parent's part, too: whole_segment, for an archive that lacks the parent's. */
static bool holds_lsn(const struct line *line, uint64_t lsn, uint64_t whole_segment)
{
    uint64_t begin = line->begin_lsn;
    if (whole_segment && line->parent)
        begin -= begin % whole_segment;
    return lsn >= begin && lsn < line->end_lsn;
}

static size_t find_candidates(const struct restore *restore, const struct lines *lines,
                              uint64_t whole_segment, bool *candidate, size_t *ret_last)
{
    uint32_t segment_size = restore->record.segment_size;
    size_t found = 0;
    for (size_t i = 0; i < lines->count; i++) {
        const struct line *line = &lines->items[i];
        candidate[i] =
            restore->target == TARGET_LSN
                ? lines->count == 1 || holds_lsn(line, restore->target_lsn, whole_segment)
                : !was_left(lines, line, segment_size);
        found += candidate[i];
        if (candidate[i])
            *ret_last = i;
    }
    return found;
}

static int choose_line(struct restore *restore, const struct lines *lines, struct err *err)
{
    bool candidate[LINES_MAX];
    size_t last = 0;
    if (lines->lost)
        return refuse_lost(lines, err);
    size_t found = find_candidates(restore, lines, 0, candidate, &last);
    if (found == 0)
        found = find_candidates(restore, lines, restore->record.segment_size, candidate, &last);
    if (found > 1)
        return refuse_ambiguous(restore, lines, candidate, err);
    if (found == 0)
        return refuse_absent(restore, lines, err);
    restore->target_timeline = lines->items[last].timeline;
    return 0;
}

/* --target-timeline: it must descend from the snapshot. */
static int take_line(struct restore *restore, struct err *err)
{
    struct line line = {.timeline = restore->request.target_timeline};
    bool is = line.timeline == restore->record.timeline;
    int rc = is ? 0 : read_ancestors(restore, &line, &is, err);
    if (rc == -ERR_MISSING) {
        (void)err_prefix(err, "timeline %u cannot be followed", line.timeline);
        return err_hint(err, "a server of that timeline has its history file: `tidemark-wal push "
                             "pg_wal/FILE`, as the server's user");
    }
    if (rc < 0)
        return rc;
    restore->target_timeline = line.timeline;
    if (is)
        return 0;
    (void)err_set(err, ERR_REFUSED, "timeline %u does not descend from the snapshot (timeline %u)",
                  line.timeline, restore->record.timeline);
    return err_hint(err, "by its history file it branched off before the snapshot's end, or from "
                         "another timeline: an older snapshot may lead there");
}

int restore_choose_timeline(struct restore *restore, struct err *err)
{
    struct lines lines;
    if (restore->request.target_timeline)
        return take_line(restore, err);
    int rc = find_lines(restore, &lines, err);
    return rc < 0 ? rc : choose_line(restore, &lines, err);
}
