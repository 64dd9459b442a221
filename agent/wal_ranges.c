/* See wal_ranges.h. */
#include "agent/wal_ranges.h"

#include <inttypes.h>
#include <stdio.h>

#include "agent/pg_names.h"
#include "agent/wal.h"

/* Names are listed in ascending order, so every timeline is one run of them. */
struct range {
    char cluster[64];
    uint64_t system_id, segments, bytes;
    char first[PG_SEGMENT_TEXT], last[PG_SEGMENT_TEXT];
};

struct survey {
    struct range *ranges;
    size_t count, capacity;
};

static bool belongs(const struct range *range, const char *cluster, uint64_t system_id,
                    const char *file)
{
    return strcmp(cluster, range->cluster) == 0 && system_id == range->system_id &&
           strncmp(file, range->first, 8) == 0;
}

static int begin(struct survey *survey, const struct range *range, struct err *err)
{
    if (!survey->ranges || survey->count == survey->capacity) {
        size_t capacity = survey->capacity ? 2 * survey->capacity : 16;
        struct range *ranges = realloc(survey->ranges, capacity * sizeof(*ranges));
        if (!ranges)
            return err_set(err, ERR_INTERNAL, "out of memory for %zu timelines", capacity);
        survey->ranges = ranges;
        survey->capacity = capacity;
    }
    survey->ranges[survey->count++] = *range;
    return 0;
}

/* "wal/<cluster>/<system id>/<timeline>/<file>"; history files and the like are no segments. */
static int note_file(void *ctx, const char *name, uint64_t size, struct err *err)
{
    struct survey *survey = ctx;
    struct range found = {.segments = 0};
    const char *file = strrchr(name, '/') + 1;
    enum wal_kind kind;
    if (sscanf(name, "wal/%63[^/]/%" SCNu64 "/", found.cluster, &found.system_id) != 2 ||
        !wal_name_parse(file, &kind, NULL) || kind != WAL_SEGMENT)
        return 0;
    struct range *at = survey->count ? &survey->ranges[survey->count - 1] : NULL;
    if (!at || !belongs(at, found.cluster, found.system_id, file)) {
        (void)snprintf(found.first, sizeof(found.first), "%s", file);
        int rc = begin(survey, &found, err);
        if (rc < 0)
            return rc;
        at = &survey->ranges[survey->count - 1];
    }
    (void)snprintf(at->last, sizeof(at->last), "%s", file);
    at->segments++;
    at->bytes += size;
    return 0;
}

/* How many a segment's size leaves room for between the first and the last. */
static json_t *missing_of(const struct wal_archive *archive, const struct range *range)
{
    uint32_t timeline;
    uint64_t size, first, last;
    struct err ignored;
    bool known = wal_size(archive, range->first, &size, &ignored) == 0 && size <= UINT32_MAX &&
                 pg_segment_size_valid((uint32_t)size) &&
                 pg_segment_parse(range->first, (uint32_t)size, &timeline, &first) &&
                 pg_segment_parse(range->last, (uint32_t)size, &timeline, &last);
    return known ? json_integer((json_int_t)(last - first + 1 - range->segments)) : json_null();
}

static json_t *to_json(const struct wal_archive *archive, const struct range *range)
{
    char system_id[24];
    uint32_t timeline = 0;
    (void)wal_name_valid(range->first, &timeline);
    (void)snprintf(system_id, sizeof(system_id), "%" PRIu64, range->system_id);
    return json_pack("{s:s,s:s,s:I,s:s,s:s,s:I,s:o,s:I}", "cluster", range->cluster, "system_id",
                     system_id, "timeline", (json_int_t)timeline, "first", range->first, "last",
                     range->last, "segments", (json_int_t)range->segments, "missing",
                     missing_of(archive, range), "bytes", (json_int_t)range->bytes);
}

int wal_ranges(struct store *store, const struct repo *repo, const char *cluster, json_t **ret,
               struct err *err)
{
    struct survey survey = {.count = 0};
    char prefix[STORE_NAME_MAX + 1];
    (void)snprintf(prefix, sizeof(prefix), "wal/%s%s", cluster, cluster[0] ? "/" : "");
    int rc = store_list(store, prefix, note_file, &survey, err);
    json_t *list = rc == 0 ? json_array() : NULL;
    for (size_t i = 0; rc == 0 && i < survey.count; i++) {
        struct wal_archive archive = {
            .store = store, .repo = repo, .system_id = survey.ranges[i].system_id};
        memcpy(archive.cluster, survey.ranges[i].cluster, sizeof(archive.cluster));
        (void)json_array_append_new(list, to_json(&archive, &survey.ranges[i]));
    }
    free(survey.ranges);
    if (rc == 0)
        *ret = list;
    return rc;
}
