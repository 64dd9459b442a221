/* Timelines: the text of history files, and which segments a stretch of WAL consists of. See
 * wal.h; the rules are those of PostgreSQL's timeline.c. */
#include "agent/wal.h"

#include <inttypes.h>
#include <stdio.h>

#include "agent/pg_names.h"

/* One line "parent<TAB>LSN<TAB>reason"; blank lines and comments give false without an error. */
static int parse_line(const char *line, struct wal_history_entry *ret, bool *ret_entry,
                      struct err *err)
{
    unsigned parent, high, low;
    line += strspn(line, " \t\r\f\v");
    *ret_entry = *line != '\0' && *line != '#';
    if (!*ret_entry)
        return 0;
    if (*line < '0' || *line > '9' || sscanf(line, "%10u\t%8X/%8X", &parent, &high, &low) != 3)
        return err_set(err, ERR_CORRUPT, "malformed line '%.60s'", line);
    ret->parent = parent;
    ret->switch_lsn = (uint64_t)high << 32 | low;
    return 0;
}

/* A recovery along timeline 2 that ends before 2 begins, on its parent 1, writes "1 X, 2 Y" with Y
 * before X (StartupXLOG() gives the target's timeline, not the last record's): the new timeline
 * left 1 at Y, and nothing of 2 is in it. */
static int add_entry(struct wal_history *history, const struct wal_history_entry *entry,
                     struct err *err)
{
    const struct wal_history_entry *last =
        history->count ? &history->entries[history->count - 1] : NULL;
    if (history->count == WAL_HISTORY_MAX)
        return err_set(err, ERR_REFUSED, "more than %d ancestors", WAL_HISTORY_MAX);
    if (entry->parent == 0 || entry->parent >= history->timeline ||
        (last && entry->parent <= last->parent))
        return err_set(err, ERR_CORRUPT, "timeline %" PRIu32 " is out of order", entry->parent);
    struct wal_history_entry added = *entry;
    while (history->count && history->entries[history->count - 1].switch_lsn > added.switch_lsn)
        added.parent = history->entries[--history->count].parent;
    history->entries[history->count++] = added;
    return 0;
}

int wal_history_parse(uint32_t timeline, const char *text, size_t len, struct wal_history *ret,
                      struct err *err)
{
    char line[512];
    int rc = 0;
    if (memchr(text, '\0', len))
        return err_set(err, ERR_CORRUPT, "a history file holds binary data");
    ret->timeline = timeline;
    ret->count = 0;
    for (size_t at = 0; at < len && rc == 0;) {
        const char *end = memchr(text + at, '\n', len - at);
        size_t line_len = end ? (size_t)(end - text) - at : len - at;
        /* Only the reason at the end of a line can be long: it is cut. */
        size_t keep = min_u64(line_len, sizeof(line) - 1);
        struct wal_history_entry entry = {0};
        bool is_entry;
        memcpy(line, text + at, keep);
        line[keep] = '\0';
        rc = parse_line(line, &entry, &is_entry, err);
        if (rc == 0 && is_entry)
            rc = add_entry(ret, &entry, err);
        at += line_len + 1;
    }
    if (rc == 0 && ret->count == 0 && timeline > 1)
        rc = err_set(err, ERR_CORRUPT, "no ancestors");
    return rc < 0 ? err_prefix(err, "history of timeline %" PRIu32, timeline) : 0;
}

int wal_history_read(const struct wal_archive *archive, uint32_t timeline, struct wal_history *ret,
                     struct err *err)
{
    char name[WAL_NAME_MAX + 1];
    free_mem void *text = NULL;
    size_t len;
    if (timeline == 1) {
        ret->timeline = 1;
        ret->count = 0;
        return 0;
    }
    (void)snprintf(name, sizeof(name), "%08" PRIX32 ".history", timeline);
    int rc = wal_read(archive, name, &text, &len, err);
    return rc < 0 ? rc : wal_history_parse(timeline, text, len, ret, err);
}

uint32_t wal_history_owner(const struct wal_history *history, uint64_t lsn)
{
    for (size_t i = 0; i < history->count; i++)
        if (lsn < history->entries[i].switch_lsn)
            return history->entries[i].parent;
    return history->timeline;
}

/* --- a range ------------------------------------------------------------------------------------
 */

enum { LOOKUPS_MAX = 16 }; /* a listing costs about as much as so many lookups */

struct range {
    const struct wal_history *history;
    uint64_t end_lsn, first, last; /* numbers of segments, last included */
    uint32_t segment_size;
    uint8_t *seen; /* a bit a segment; NULL: nothing was listed */
};

/* The one that holds a fork is needed from the timeline that owns the last
 * byte wanted from it: the child begins with a copy of its parent's part. */
static uint32_t owner_of(const struct range *range, uint64_t number)
{
    uint64_t last_byte = number == range->last
                             ? range->end_lsn - 1
                             : number * range->segment_size + (range->segment_size - 1);
    return wal_history_owner(range->history, last_byte);
}

static int note_segment(void *ctx, const char *name, uint64_t size, struct err *err)
{
    const struct range *range = ctx;
    uint32_t timeline;
    uint64_t number;
    (void)size, (void)err;
    const char *slash = strrchr(name, '/');
    if (slash && pg_segment_parse(slash + 1, range->segment_size, &timeline, &number) &&
        number >= range->first && number <= range->last && owner_of(range, number) == timeline)
        range->seen[(number - range->first) / 8] |= (uint8_t)(1U << ((number - range->first) % 8));
    return 0;
}

/* Every timeline that owns a part of the range, once: they follow one another. */
static int list_range(const struct wal_archive *archive, struct range *range, struct err *err)
{
    char prefix[STORE_NAME_MAX + 1];
    uint32_t listed = 0;
    int rc = 0;
    range->seen = calloc((range->last - range->first) / 8 + 1, 1);
    if (!range->seen)
        return err_set(err, ERR_INTERNAL, "out of memory");
    for (uint64_t number = range->first; rc == 0 && number <= range->last; number++) {
        uint32_t timeline = owner_of(range, number);
        if (timeline == listed)
            continue;
        listed = timeline;
        repo_wal_name(prefix, archive->cluster, archive->system_id, timeline, "x");
        strrchr(prefix, '/')[1] = '\0';
        rc = store_list(archive->store, prefix, note_segment, range, err);
    }
    return rc;
}

static bool was_seen(const struct range *range, uint64_t number)
{
    uint64_t at = number - range->first;
    return range->seen && (range->seen[at / 8] >> (at % 8)) & 1;
}

/* What a listing did not show is looked up: whether it is missing must be certain. */
static int check_segments(const struct wal_archive *archive, struct range *range, struct err *err)
{
    int rc = range->last - range->first < LOOKUPS_MAX ? 0 : list_range(archive, range, err);
    for (uint64_t number = range->first; rc == 0 && number <= range->last; number++) {
        char name[PG_SEGMENT_TEXT];
        pg_segment_name(owner_of(range, number), number, range->segment_size, name);
        rc = was_seen(range, number) ? 0 : wal_check(archive, name, err);
    }
    free(range->seen);
    return rc;
}

int wal_check_range(const struct wal_archive *archive, uint32_t timeline, uint64_t start_lsn,
                    uint64_t end_lsn, uint32_t segment_size, struct err *err)
{
    if (!pg_segment_size_valid(segment_size))
        return err_set(err, ERR_CORRUPT, "impossible WAL segment size %" PRIu32, segment_size);
    if (start_lsn >= end_lsn)
        return 0;
    struct wal_history *history = malloc(sizeof(*history));
    if (!history)
        return err_set(err, ERR_INTERNAL, "out of memory");
    int rc = wal_history_read(archive, timeline, history, err);
    struct range range = {.history = history,
                          .end_lsn = end_lsn,
                          .first = start_lsn / segment_size,
                          .last = (end_lsn - 1) / segment_size,
                          .segment_size = segment_size};
    if (rc == 0)
        rc = check_segments(archive, &range, err);
    free(history);
    return rc;
}

/* --- timelines -------------------------------------------------------------------------------- */

struct timeline_list {
    uint32_t *timelines;
    size_t count, size;
};

static int note_timeline(void *ctx, const char *name, uint64_t size, struct err *err)
{
    struct timeline_list *list = ctx;
    uint32_t timeline;
    (void)size;
    const char *slash = strrchr(name, '/');
    if (!slash || !wal_name_valid(slash + 1, &timeline))
        return 0; /* not ours; nothing is guessed from it */
    if (list->count && list->timelines[list->count - 1] == timeline)
        return 0;
    if (list->count == list->size) {
        list->size = list->size ? list->size * 2 : 16;
        uint32_t *grown = realloc(list->timelines, list->size * sizeof(*grown));
        if (!grown)
            return err_set(err, ERR_INTERNAL, "out of memory");
        list->timelines = grown;
    }
    list->timelines[list->count++] = timeline;
    return 0;
}

/* The listing ascends by name, and names begin with the timeline in fixed width: each timeline
 * comes in one run. */
int wal_timelines(const struct wal_archive *archive, uint32_t **ret, size_t *ret_count,
                  struct err *err)
{
    char prefix[STORE_NAME_MAX + 1];
    struct timeline_list list = {0};
    repo_wal_name(prefix, archive->cluster, archive->system_id, 1, "x");
    *strrchr(prefix, '/') = '\0';
    strrchr(prefix, '/')[1] = '\0'; /* "wal/<cluster>/<system id>/" */
    int rc = store_list(archive->store, prefix, note_timeline, &list, err);
    if (rc < 0) {
        free(list.timelines);
        return rc;
    }
    *ret = list.timelines;
    *ret_count = list.count;
    return 0;
}
