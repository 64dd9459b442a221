/* The WAL that was acknowledged but never archived. A server's last commits are only in its pg_wal;
 * once the volume is overwritten they are gone, and no later point-in-time recovery reaches them.
 * So every segment that the repository lacks is pushed first, also from a server that will not
 * start.
 *
 * pg_wal also holds segments without content: preallocated, or recycled under a future name with
 * old bytes. A segment is real when its first page says so: long header, its own address, this
 * system (access/xlog_internal.h: magic 2, info 2, timeline 4, address 8, remaining 4, pad 4,
 * system id 8, segment size 4, block size 4). The last real one of a timeline is not complete and
 * goes as a .partial, unless the server itself called it ready. A fence that was lifted may have
 * pushed one before, which is shorter. */
#include "agent/restore.h"
#include "agent/log.h"
#include "agent/pg.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

enum { SALVAGE_MAX = 1 << 20, XLP_LONG_HEADER = 2 };

struct segment {
    uint32_t timeline;
    uint64_t number;
    char name[40];
};

struct salvage {
    struct restore *restore;
    const char *directory;
    struct segment *segments;
    size_t count, capacity;
    uint64_t pushed;
    bool found_archived; /* a segment of the timeline at hand: its name may not be durable */
    bool standby;        /* the old server was one: its primary has the same WAL, or more of it */
    /* With --discard-unarchived-wal one that cannot be saved keeps no other from it. */
    size_t lost_count;
    char lost[256];   /* the names, as many as fit */
    struct err first; /* why the first of them */
};

static int lose(struct salvage *salvage, const char *name, int rc, struct err *err)
{
    size_t len = strlen(salvage->lost);
    if (rc >= 0 || rc == -ERR_CANCELLED || !salvage->restore->request.discard_unarchived_wal)
        return rc;
    log_warn("WAL cannot be saved: name=%s err=\"%s\"", name, err->text);
    if (salvage->lost_count++ == 0)
        salvage->first = *err;
    if (len + strlen(name) + sizeof(", ") < sizeof(salvage->lost))
        (void)snprintf(salvage->lost + len, sizeof(salvage->lost) - len, "%s%s", len ? ", " : "",
                       name);
    err_clear(err);
    return 0;
}

static bool is_real(const struct salvage *salvage, const struct segment *segment, struct err *err)
{
    const struct record *record = &salvage->restore->record;
    char path[CONF_PATH_MAX + 64];
    uint8_t head[40];
    (void)snprintf(path, sizeof(path), "%s/%s", salvage->directory, segment->name);
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || pread(fd, head, sizeof(head), 0) != (ssize_t)sizeof(head)) {
        (void)err_sys(err, ERR_REFUSED, "read '%s'", path);
        return false;
    }
    uint16_t info;
    memcpy(&info, head + 2, sizeof(info));
    return (info & XLP_LONG_HEADER) &&
           get_le64(head + 8) == segment->number * record->segment_size &&
           get_le64(head + 24) == record->system_id;
}

static int add_segment(struct salvage *salvage, const struct segment *segment, struct err *err)
{
    if (salvage->count == salvage->capacity) {
        size_t capacity = salvage->capacity ? salvage->capacity * 2 : 64;
        struct segment *more = realloc(salvage->segments, capacity * sizeof(*more));
        if (!more || capacity > SALVAGE_MAX)
            return err_set(err, ERR_INTERNAL, "out of memory for the list of WAL segments");
        salvage->segments = more;
        salvage->capacity = capacity;
    }
    salvage->segments[salvage->count++] = *segment;
    return 0;
}

static int compare_segments(const void *a, const void *b)
{
    const struct segment *x = a, *y = b;
    if (x->timeline != y->timeline)
        return x->timeline < y->timeline ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

static int pushed(struct salvage *salvage, const char *name, int rc, struct err *err)
{
    if (rc < 0)
        return err_prefix(err, "push '%s' before it is overwritten", name);
    log_info("pushed WAL that was not archived: name=%s", name);
    salvage->pushed++;
    return 0;
}

static int push(struct salvage *salvage, const char *file, const char *name, struct err *err)
{
    char path[CONF_PATH_MAX + 64];
    (void)snprintf(path, sizeof(path), "%s/%s", salvage->directory, file);
    return pushed(salvage, name, wal_push(&salvage->restore->archive, path, name, err), err);
}

static int is_archived(const struct salvage *salvage, const char *name, bool *ret, struct err *err)
{
    int rc = wal_check(&salvage->restore->archive, name, err);
    if (rc < 0 && rc != -ERR_MISSING)
        return rc;
    *ret = rc == 0;
    return 0;
}

/* --- one segment ------------------------------------------------------------------------------ */

/* Ready: the server finished it and waits for archive_command. */
static bool is_complete(const struct salvage *salvage, size_t index)
{
    const struct segment *segment = &salvage->segments[index];
    char path[CONF_PATH_MAX + 96];
    (void)snprintf(path, sizeof(path), "%s/archive_status/%s.ready", salvage->directory,
                   segment->name);
    if (access(path, F_OK) == 0)
        return true;
    for (size_t i = index + 1; i < salvage->count; i++)
        if (salvage->segments[i].timeline == segment->timeline)
            return true; /* a later real one: this one was left full */
    return false;
}

static int push_partial(struct salvage *salvage, const struct segment *segment, struct err *err)
{
    char path[CONF_PATH_MAX + 64], name[WAL_NAME_MAX + 1] = "";
    (void)snprintf(path, sizeof(path), "%s/%s", salvage->directory, segment->name);
    int rc = wal_partial_push(&salvage->restore->archive, path, segment->name, salvage->standby,
                              name, err);
    return rc == 0 && !name[0] ? 0 : pushed(salvage, name[0] ? name : segment->name, rc, err);
}

static int salvage_segment(struct salvage *salvage, size_t index, struct err *err)
{
    const struct segment *segment = &salvage->segments[index];
    bool archived;
    int rc = is_archived(salvage, segment->name, &archived, err);
    salvage->found_archived |= rc == 0 && archived;
    if (rc < 0 || archived)
        return rc;
    return is_complete(salvage, index) ? push(salvage, segment->name, segment->name, err)
                                       : push_partial(salvage, segment, err);
}

/* History files and segments that the server itself renamed to .partial go as they are. */
static int salvage_other(struct salvage *salvage, const char *name, struct err *err)
{
    enum wal_kind kind;
    bool wanted = wal_name_parse(name, &kind, NULL) && (kind == WAL_HISTORY || kind == WAL_PARTIAL);
    bool archived = true;
    int rc = wanted ? is_archived(salvage, name, &archived, err) : 0;
    if (rc < 0 || !wanted)
        return rc;
    return archived ? wal_flush_name(&salvage->restore->archive, name, err)
                    : push(salvage, name, name, err);
}

/* What was found in the archive lets the only other copy be overwritten, so it must not go with the
 * repository's power: whoever pushed it may have died before its name was durable. Once for all
 * segments of a timeline, behind its last. */
static int flush_found(struct salvage *salvage, size_t index, struct err *err)
{
    const struct segment *segment = &salvage->segments[index];
    bool last = index + 1 == salvage->count || segment[1].timeline != segment->timeline;
    if (!last || !salvage->found_archived)
        return 0;
    salvage->found_archived = false;
    return wal_flush_name(&salvage->restore->archive, segment->name, err);
}

static int each_name(struct salvage *salvage, const char *name, struct err *err)
{
    struct segment segment;
    (void)snprintf(segment.name, sizeof(segment.name), "%s", name);
    if (strlen(name) >= sizeof(segment.name) ||
        !pg_segment_parse(name, salvage->restore->record.segment_size, &segment.timeline,
                          &segment.number))
        return salvage_other(salvage, name, err);
    err_clear(err);
    if (is_real(salvage, &segment, err))
        return add_segment(salvage, &segment, err);
    return err->code ? -(int)err->code : 0;
}

static int read_directory(struct salvage *salvage, struct err *err)
{
    DIR *dir = opendir(salvage->directory);
    if (!dir)
        return err_sys(err, ERR_REFUSED, "read the WAL directory '%s'", salvage->directory);
    int rc = 0;
    for (struct dirent *entry; rc == 0 && (entry = readdir(dir));)
        if (entry->d_name[0] != '.')
            rc = lose(salvage, entry->d_name, each_name(salvage, entry->d_name, err), err);
    (void)closedir(dir);
    return rc;
}

bool restore_wal_is_local(struct restore *restore, uint32_t timeline, uint64_t lsn)
{
    char directory[CONF_PATH_MAX + 16];
    uint32_t segment_size = restore->record.segment_size;
    struct salvage salvage = {.restore = restore, .directory = directory};
    struct segment segment = {.timeline = timeline, .number = (lsn - 1) / segment_size};
    struct err ignored;
    (void)snprintf(directory, sizeof(directory), "%s/pg_wal", restore->data_directory);
    pg_segment_name(timeline, segment.number, segment_size, segment.name);
    return is_real(&salvage, &segment, &ignored);
}

int restore_salvage(struct restore *restore, const char *directory, uint64_t *ret_pushed,
                    struct err *err)
{
    struct salvage salvage = {.restore = restore, .directory = directory};
    char signal[CONF_PATH_MAX + 32];
    (void)snprintf(signal, sizeof(signal), "%s/standby.signal", restore->data_directory);
    salvage.standby = access(signal, F_OK) == 0;
    int rc = read_directory(&salvage, err);
    if (rc == 0 && salvage.count > 0)
        qsort(salvage.segments, salvage.count, sizeof(*salvage.segments), compare_segments);
    for (size_t i = 0; rc == 0 && i < salvage.count; i++) {
        rc = lose(&salvage, salvage.segments[i].name, salvage_segment(&salvage, i, err), err);
        if (rc == 0)
            rc = lose(&salvage, salvage.segments[i].name, flush_found(&salvage, i, err), err);
        if (rc == 0)
            rc = job_check_cancel(restore->job, err);
    }
    free(salvage.segments);
    *ret_pushed = salvage.pushed;
    if (rc < 0 || salvage.lost_count == 0)
        return rc;
    return err_set(err, salvage.first.code, "%zu of the old WAL's files cannot be saved (%s): %s",
                   salvage.lost_count, salvage.lost, salvage.first.text);
}
