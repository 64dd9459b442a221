/* Provider precopy: copies a volume while it is written, then what was written meanwhile, and so on
 * until the rest fits into a short freeze (DESIGN §4, the barrier protocol):
 *
 *   attach → B0: freeze; M := ∅; U0 := used blocks; thaw → pass 0: read U0, never clearing M
 *   → Bk: freeze; Hk := M; M := ∅; thaw → pass k: read Hk         until bytes(M) fit the budget
 *   → F:  freeze; read M into memory; nothing may have been marked; thaw
 *
 * The image is the last bytes read of every chunk. Why it is that of the instant F:
 *   - A freeze returns when every earlier write of the filesystem has completed, and none is queued
 *     until the thaw. M is cleared only then. So let r be the last read of a chunk, and w a write
 *     to it. If w was queued before the barrier that r follows, it was complete there: r saw it. If
 *     later, it set the chunk's bit, a later barrier took it, and the chunk was read again: r was
 *     not the last.
 *   - A chunk that was never read was free in U0 and never marked since. No file had data in it,
 *     and none has gained any; what is allocated later without a write reads as zeros by the
 *     filesystem's own books. U0 may therefore be of B0 or of any time after it, and no other map
 *     is ever looked at. A mark beats the map; so it does with WAL segments that are left out.
 *   - Left out are W, the blocks of WAL segment files a moment after B0 (snapshot_copy.c says why
 *     nobody needs them). They hold data, and can become another file's without a write: so F looks
 *     at them again, frozen, file by file. Of W stays left out what then belongs to a regular file
 *     with a segment's name in pg_wal that has one link and shares no extent: that file alone has
 *     it. The rest is read, at once if it fits in, else before the next barrier, like what pass 0
 *     reads late. Blocks are compared, not files. A segment that was recycled, which renames it,
 *     is one still. One that was removed is not found, whoever may have it open, and read: it may
 *     have had another link or a clone. Nor is one that was renamed to anything else (.partial) or
 *     moved elsewhere. A second link, and an extent that is shared since, show in the file; other
 *     extents (defragmented, exchanged) in the list. Names and times prove less: a clone changes
 *     neither ctime nor the link count of what it was made from.
 *   - That every write is marked is not believed but compared: at each barrier the kernel's own
 *     counters of the device (/sys/class/block/X/stat) must show no sector more than the marks
 *     have seen. Discards go on while frozen and are counted apart: they hit free blocks only.
 *
 * Each barrier is a try at F: when M turns out too large, or the time is over before all of it is
 * read, it was a barrier like the others and costs one more pass. */
#include "agent/capture_precopy.h"

#include <inttypes.h>
#include <time.h>

#include "agent/log.h"
#include "io/clock.h"

enum { BASE_TRIES = 5 }; /* of a moment at which no discard is on its way */

/* Frozen: how long what was queued before may take. */
static uint64_t settled_until_ns(const struct capture *capture)
{
    return capture->freeze.frozen_at_ns + capture_freeze_max_ns(capture) / 2;
}

void capture_precopy_end(struct capture *capture)
{
    struct precopy *precopy = capture->precopy;
    if (precopy == NULL)
        return;
    for (size_t i = 0; i < capture->group->count; i++) {
        extent_list_release(&capture->volumes[i].changed);
        capture->volumes[i].changed = (struct extent_list){0};
        cleanup_close(&precopy->memory_fds[i]);
        marks_close(precopy->marks[i]);
    }
    gather_close(precopy->gather);
    free(precopy);
    capture->precopy = NULL;
}

/* --- barriers --------------------------------------------------------------------------------- */

static int thaw(struct capture *capture, struct err *err)
{
    bool expired = false;
    int rc = freeze_thaw(&capture->freeze, &expired, err);
    uint64_t stall_ns = capture->freeze.stall_ns - capture->precopy->kept_ns;
    capture->precopy->kept_ns = 0;
    capture->stall_ns = max_u64(capture->stall_ns, stall_ns);
    capture->stall_sum_ns += stall_ns;
    if (rc == 0)
        rc = capture_keep_stall(stall_ns, err);
    if (rc < 0 || !expired)
        return rc;
    err_set(err, ERR_REFUSED, "the guardian thawed after %u ms: the snapshot is void",
            capture->conf->freeze_deadline_ms);
    return err_hint(err, "raise freeze_deadline, or find out what delays the host");
}

static double ms(uint64_t from_ns, uint64_t to_ns)
{
    return (double)(to_ns - from_ns) / 1e6;
}

/* Freezes, runs what is to be done, thaws. The log says where the time went: a long freeze is the
 * filesystem's, whose dirty pages or disk are to blame; the rest is ours. */
static int with_freeze(struct capture *capture, struct capture_request *request,
                       int (*run)(struct capture *capture, struct capture_request *request,
                                  bool *ret, struct err *err),
                       bool *ret, struct err *err)
{
    struct err thaw_err;
    uint64_t start_ns = monotonic_ns();
    int rc = capture_freeze(capture, err);
    if (rc < 0)
        return rc;
    uint64_t frozen_at_ns = capture->freeze.frozen_at_ns, frozen_ns = monotonic_ns();
    rc = run(capture, request, ret, err);
    uint64_t ran_ns = monotonic_ns();
    int thaw_rc = thaw(capture, &thaw_err);
    uint64_t thawed_ns = frozen_at_ns + capture->freeze.stall_ns;
    log_info("precopy: stall=%.1f ms (freeze %.1f, work %.1f, thaw %.1f), synced before in %.1f ms",
             ms(frozen_at_ns, thawed_ns), ms(frozen_at_ns, frozen_ns), ms(frozen_ns, ran_ns),
             ms(ran_ns, thawed_ns), ms(start_ns, frozen_at_ns));
    if (thaw_rc == 0)
        return rc;
    *err = thaw_err; /* the cause of what else went wrong meanwhile */
    return thaw_rc;
}

/* Discards that were queued before B0 and end after it would be counted by the kernel alone. */
static int read_base(struct capture *capture, bool *ret_quiet, struct err *err)
{
    struct precopy *precopy = capture->precopy;
    uint64_t until_ns = settled_until_ns(capture);
    for (size_t i = 0; i < capture->group->count;) {
        int rc = capture_watch_sums(capture, i, &precopy->base[i], err);
        if (rc < 0)
            return rc;
        if (precopy->base[i].counted.writes_in_flight == 0)
            i++;
        else if (monotonic_ns() < until_ns)
            (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        else
            return 0;
    }
    *ret_quiet = true;
    return 0;
}

/* What was written before B0 concerns nobody but who counts from the parent's instant. */
static int drop_marks(struct capture *capture, struct err *err)
{
    struct precopy *precopy = capture->precopy;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < capture->group->count; i++) {
        struct extent_list dropped = {0};
        struct track *track = capture_track(capture, i);
        rc = track != NULL ? track_begin(track, &precopy->base[i], precopy->marks[i], err)
                           : marks_take(precopy->marks[i], &dropped, err);
        extent_list_release(&dropped);
    }
    return rc;
}

static int base_and_map(struct capture *capture, struct capture_request *request, bool *ret_quiet,
                        struct err *err)
{
    (void)request;
    int rc = read_base(capture, ret_quiet, err);
    if (rc == 0 && *ret_quiet)
        rc = drop_marks(capture, err);
    return rc < 0 || !*ret_quiet ? rc : capture_take_used(capture, err);
}

static int base_only(struct capture *capture, struct capture_request *request, bool *ret_quiet,
                     struct err *err)
{
    (void)request;
    int rc = read_base(capture, ret_quiet, err);
    return rc < 0 || !*ret_quiet ? rc : drop_marks(capture, err);
}

static int map_thawed(struct capture *capture, struct err *err)
{
    if (capture_breaks("slow-map"))
        (void)nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
    return capture_take_used(capture, err);
}

/* B0 and U0. Under the freeze every check of the map is exact, and warm it takes a millisecond; a
 * map that takes longer is one of the time right after. */
static int first_barrier(struct capture *capture, struct capture_request *request, bool map_later,
                         struct err *err)
{
    bool quiet = false;
    int rc = 0;
    for (int i = 0; rc == 0 && !quiet && i < BASE_TRIES; i++)
        rc = with_freeze(capture, request, map_later ? base_only : base_and_map, &quiet, err);
    if (rc == 0 && !quiet)
        rc = err_set(err, ERR_BUSY,
                     "discards, or writes past the file system, keep running while "
                     "the volumes are frozen");
    if (rc == 0 && map_later)
        rc = map_thawed(capture, err);
    if (rc == 0)
        rc = capture_take_wal(capture, request, err);
    for (size_t i = 0; rc == 0 && i < capture->group->count; i++) {
        if (!capture->volumes[i].used_trusted)
            log_warn("volume=%s its free space is not known for sure: all of it is read%s",
                     capture_volume_name(capture, i),
                     map_later ? " (its map takes longer than a quarter of freeze_max, so it was "
                                 "made while files changed; a longer freeze_max helps)"
                               : "");
        rc = capture_keep_extents(capture, i, "used", &capture->volumes[i].used, err);
        if (rc < 0 || request->wal_directory == NULL)
            continue;
        extent_list_normalise(&request->ret_wal[i]);
        rc = capture_keep_extents(capture, i, "wal", &request->ret_wal[i], err);
    }
    return rc;
}

/* Too long for a freeze? */
static int time_map(struct capture *capture, bool *ret_slow, struct err *err)
{
    uint64_t start_ns = monotonic_ns();
    int rc = capture_take_used(capture, err);
    if (rc == 0)
        *ret_slow = monotonic_ns() - start_ns > capture_freeze_max_ns(capture) / 4;
    return rc;
}

int capture_precopy_begin(struct capture *capture, struct capture_request *request, struct err *err)
{
    bool slow = false;
    int rc = capture_watch_attach(capture, request->chunk_size, err);
    if (rc == 0)
        rc = time_map(capture, &slow, err);
    if (rc == 0) /* samples what is used */
        rc = capture_budget_take(capture, request, err);
    if (rc == 0 && slow) /* of reading the bitmaps? Now they are in the cache */
        rc = time_map(capture, &slow, err);
    slow = slow || capture_breaks("slow-map");
    return rc < 0 ? rc : first_barrier(capture, request, slow, err);
}

/* --- passes ----------------------------------------------------------------------------------- */

/* For a test: what was free in U0 is taken for free still. */
static int believe_map(struct extent_list *changed, const struct extent_list *used, struct err *err)
{
    struct extent_list was_free = {0}, believed = {0};
    int rc = extent_list_subtract(changed, used, &was_free, err);
    if (rc == 0)
        rc = extent_list_subtract(changed, &was_free, &believed, err);
    extent_list_release(&was_free);
    extent_list_release(changed);
    *changed = believed;
    return rc;
}

static int take_marks(struct capture *capture, struct err *err)
{
    for (size_t i = 0; i < capture->group->count; i++) {
        struct extent_list *changed = &capture->volumes[i].changed;
        changed->count = 0;
        int rc = track_take(capture_track(capture, i), capture->precopy->marks[i], changed, err);
        if (rc == 0)
            rc = capture_keep_extents(capture, i, "changed", changed, err);
        if (rc == 0 && capture_breaks("map"))
            rc = believe_map(changed, &capture->volumes[i].used, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static uint64_t changed_bytes(const struct capture *capture)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < capture->group->count; i++)
        sum += extent_list_bytes(&capture->volumes[i].changed);
    return sum;
}

/* What was left out and is no segment file's own any more is read like what has changed. */
static int recheck_wal(struct capture *capture, struct capture_request *request,
                       uint64_t deadline_ns, struct err *err)
{
    struct precopy *precopy = capture->precopy;
    struct extent_list lost = {0};
    bool any = false;
    for (size_t i = 0; request->wal_directory != NULL && i < capture->group->count; i++)
        any = any || request->ret_wal[i].count > 0;
    if (!any)
        return 0;
    uint64_t chunk_size = precopy->chunk_size, start_ns = monotonic_ns();
    uint64_t until_ns = min_u64(start_ns + capture_freeze_max_ns(capture) / 4, deadline_ns);
    size_t index = 0;
    int rc = capture_recheck_wal(capture, request, until_ns, &index, &lost, err);
    struct capture_volume *volume = &capture->volumes[index];
    for (size_t i = 0; rc == 0 && i < lost.count; i++) {
        uint64_t from = align_down(lost.items[i].offset, chunk_size);
        uint64_t to = align_up(lost.items[i].offset + lost.items[i].len, chunk_size);
        rc = extent_list_add(&volume->changed, from, min_u64(to, volume->live.identity.size) - from,
                             err);
    }
    extent_list_normalise(&volume->changed);
    if (rc == 0)
        rc = capture_keep_extents(capture, index, "changed", &lost, err);
    precopy->wal_lost = extent_list_bytes(&lost);
    precopy->wal_ns = monotonic_ns() - start_ns;
    extent_list_release(&lost);
    return rc;
}

/* For a test: the frozen devices, and what was discarded meanwhile. */
static int keep_evidence(struct capture *capture, struct err *err)
{
    uint64_t start_ns = monotonic_ns();
    int rc = capture_keep_devices(capture, err);
    for (size_t i = 0; rc == 0 && i < capture->group->count; i++) {
        struct extent_list late = {0};
        rc = marks_peek(capture->precopy->marks[i], &late, err);
        if (rc == 0)
            rc = capture_keep_extents(capture, i, "late", &late, err);
        extent_list_release(&late);
    }
    capture->precopy->kept_ns = monotonic_ns() - start_ns;
    return rc;
}

/* Reads what has changed while nothing changes. Not complete when the time is over, or when WAL
 * that was left out has become too much. */
static int read_frozen(struct capture *capture, struct capture_request *request, bool *ret_complete,
                       struct err *err)
{
    struct precopy *precopy = capture->precopy;
    struct gather_source sources[CONF_VOLUMES_MAX];
    uint64_t deadline_ns = capture->freeze.frozen_at_ns + capture_freeze_max_ns(capture);
    if (monotonic_ns() >= deadline_ns)
        return 0;
    int rc = capture_breaks("wal") ? 0 : recheck_wal(capture, request, deadline_ns, err);
    precopy->changed = changed_bytes(capture);
    if (rc < 0 || precopy->changed > precopy->budget)
        return rc;
    for (size_t i = 0; i < capture->group->count; i++)
        sources[i] = capture_gather_source(capture, i, &capture->volumes[i].changed);
    rc = gather_read(precopy->gather, sources, capture->group->count, deadline_ns, ret_complete,
                     err);
    if (rc < 0 || !*ret_complete)
        return rc;
    rc = capture_take_files(capture, request, err);
    if (rc == 0 && capture_keeps())
        rc = keep_evidence(capture, err);
    return rc < 0 ? rc : capture_watch_check(capture, 0, err);
}

static int read_seen(const struct capture *capture, struct marks_counters *ret, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < capture->group->count; i++)
        rc = marks_counters(capture->precopy->marks[i], &ret[i], err);
    return rc;
}

/* A write that came while its mark was taken would have lost it. */
static int check_still(const struct capture *capture, const struct marks_counters *before,
                       struct err *err)
{
    struct marks_counters now[CONF_VOLUMES_MAX];
    int rc = read_seen(capture, now, err);
    for (size_t i = 0; rc == 0 && i < capture->group->count; i++)
        if (now[i].written_sectors != before[i].written_sectors)
            rc = err_set(err, ERR_REFUSED, "volume %s was written to while it was frozen",
                         capture_volume_name(capture, i));
    return rc != -ERR_REFUSED ? rc
                              : err_hint(err, "a program writes to the block device, past the file "
                                              "system, or somebody thawed it");
}

/* Both sums of one moment: whatever was seen by then has been counted. Not with discards going on,
 * which are seen before they are counted. */
static int read_quiet(const struct capture *capture, size_t index, struct track_sums *ret,
                      bool *ret_quiet, struct err *err)
{
    struct watch_result result = {0};
    struct marks_counters seen;
    int rc = capture_watch_sums(capture, index, ret, err);
    if (rc == 0)
        rc = marks_counters(capture->precopy->marks[index], &seen, err);
    if (rc == 0)
        rc = capture_watch_compare(&capture->precopy->base[index], ret, &result, err);
    *ret_quiet = rc == 0 && seen.discarded_sectors == ret->seen.discarded_sectors &&
                 !result.discards_unseen && !result.discards_unfinished;
    return rc;
}

/* The marks are empty, so from here on they are those since this instant. The sums are those of B0
 * when discards are on their way. */
static int note_instant(struct capture *capture, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < capture->group->count; i++) {
        struct track *track = capture_track(capture, i);
        struct track_sums sums;
        bool quiet = false;
        for (int j = 0; rc == 0 && track != NULL && !quiet && j < BASE_TRIES; j++)
            rc = read_quiet(capture, i, &sums, &quiet, err);
        if (rc == 0 && track != NULL)
            track_instant(track, quiet ? &sums : &capture->precopy->base[i]);
    }
    return rc;
}

static int at_barrier(struct capture *capture, struct capture_request *request, bool *ret_last,
                      struct err *err)
{
    struct marks_counters before[CONF_VOLUMES_MAX];
    int rc = read_seen(capture, before, err);
    if (rc == 0)
        rc = capture_watch_check(capture, settled_until_ns(capture), err);
    if (rc == 0)
        rc = take_marks(capture, err);
    if (rc < 0)
        return rc;
    if (capture_budget_allows(capture->precopy, changed_bytes(capture)))
        rc = read_frozen(capture, request, ret_last, err);
    if (rc == 0)
        rc = check_still(capture, before, err);
    return rc == 0 && *ret_last ? note_instant(capture, err) : rc;
}

/* Thawed: what was read moves into files in memory, which push reads like a device. */
static int keep_in_memory(struct capture *capture, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < capture->group->count; i++) {
        struct capture_volume *volume = &capture->volumes[i];
        rc = gather_to_memory_file(capture->precopy->gather, i, volume->live.identity.size,
                                   &capture->precopy->memory_fds[i], err);
        volume->changed_fd = capture->precopy->memory_fds[i];
    }
    return rc;
}

int capture_pass(struct capture *capture, struct capture_request *request, bool *ret_last,
                 struct err *err)
{
    struct precopy *precopy = capture->precopy;
    bool last = false;
    if (precopy->passes == PRECOPY_PASSES_MAX) {
        err_set(
            err, ERR_BUSY,
            "after %u passes more than %" PRIu64 " KiB are still written between two of them, or "
            "freezing alone takes longer than freeze_max (%u ms; the longest took %" PRIu64 " ms)",
            precopy->passes, precopy->budget / KIB, capture->conf->freeze_max_ms,
            capture->stall_ns / 1000000);
        return err_hint(err, "raise freeze_max or memory_max, or take the snapshot when less is "
                             "written");
    }
    int rc = precopy->passes > 0 ? capture_budget_again(capture, request, err) : 0;
    if (rc < 0)
        return rc;
    precopy->passes++;
    precopy->wal_ns = 0;
    rc = precopy->passes == 1 && capture_breaks("barrier")
             ? take_marks(capture, err)
             : with_freeze(capture, request, at_barrier, &last, err);
    capture_watch_warn(capture); /* not while frozen: the log may be slow */
    if (rc == 0)
        log_info("precopy: barrier=%u changed=%" PRIu64 " KiB", precopy->passes,
                 precopy->changed / KIB);
    if (rc == 0 && precopy->wal_ns > 0)
        log_info("precopy: WAL that is left out was looked at in %.1f ms: %" PRIu64
                 " KiB of it are read after all",
                 ms(0, precopy->wal_ns), precopy->wal_lost / KIB);
    for (size_t i = 0; rc == 0 && i < capture->group->count; i++)
        capture->volumes[i].changed_fd = capture->volumes[i].device.fd;
    if (rc == 0 && last)
        rc = keep_in_memory(capture, err);
    if (rc == 0)
        *ret_last = last;
    return rc;
}
