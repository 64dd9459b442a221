/* Provider precopy: that no write goes unseen. A probe when the marks are attached, a comparison
 * with the kernel's own counters at every barrier. */
#include "agent/capture_precopy.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <time.h>

#include "agent/log.h"
#include "io/clock.h"
#include "io/fsmap.h"

enum { PROBE_LEN = 128 << 10 };

/* --- no write goes unseen --------------------------------------------------------------------- */

struct track *capture_track(const struct capture *capture, size_t index)
{
    return capture->tracks != NULL && capture->tracks[index].wanted ? &capture->tracks[index]
                                                                    : NULL;
}

int capture_watch_sums(const struct capture *capture, size_t index, struct track_sums *ret,
                       struct err *err)
{
    int rc = marks_counters(capture->precopy->marks[index], &ret->seen, err);
    if (rc < 0)
        return rc;
    if (sysfs_counters(&capture->volumes[index].live.identity, &ret->counted))
        return 0;
    return err_set(err, ERR_REFUSED, "'%s' keeps no statistics",
                   capture->volumes[index].live.identity.path);
}

static int err_unseen(struct err *err, uint64_t counted, uint64_t seen)
{
    err_set(err, ERR_REFUSED,
            "writes went unseen: the kernel counted %" PRIu64 " sectors written, eBPF saw %" PRIu64,
            counted, seen);
    return err_hint(err, "the snapshot is void; does a program write to the block device, past the "
                         "file system? Else report it with the kernel's version, and use provider "
                         "command or freeze");
}

int capture_watch_compare(const struct track_sums *base, const struct track_sums *now,
                          struct watch_result *ret, struct err *err)
{
    uint64_t written_seen = now->seen.written_sectors - base->seen.written_sectors;
    uint64_t written = now->counted.written_sectors - base->counted.written_sectors;
    uint64_t discarded_seen = now->seen.discarded_sectors - base->seen.discarded_sectors;
    uint64_t discarded = now->counted.discarded_sectors - base->counted.discarded_sectors;
    if (now->seen.missed != base->seen.missed)
        return err_set(err, ERR_REFUSED, "%" PRIu64 " runs of the eBPF program were left out",
                       now->seen.missed - base->seen.missed);
    if (written > written_seen)
        return err_unseen(err, written, written_seen);
    *ret = (struct watch_result){.unfinished = written_seen - written,
                                 .stopped = written == 0 && written_seen > 0,
                                 .discards_unseen = discarded > discarded_seen,
                                 .discards_unfinished = discarded < discarded_seen};
    return 0;
}

/* The switch is that of the disk, of a partition's too. */
static int hint_counting(const struct capture *capture, size_t index, struct err *err)
{
    const struct device_identity *identity = &capture->volumes[index].live.identity;
    uint32_t disk_major, disk_minor;
    uint64_t offset;
    char value[16];
    if (sysfs_attribute(identity, "queue/iostats", value, sizeof(value)) &&
        strcmp(value, "0") == 0 && sysfs_place(identity, &disk_major, &disk_minor, &offset))
        return err_hint(err,
                        "its statistics are off: echo 1 >/sys/dev/block/%" PRIu32 ":%" PRIu32
                        "/queue/iostats, or use provider command or freeze",
                        disk_major, disk_minor);
    return err_hint(err, "writes of this device cannot be watched reliably; use provider command "
                         "or freeze");
}

static int err_unfinished(const struct capture *capture, size_t index,
                          const struct watch_result *result, struct err *err)
{
    if (result->stopped) {
        (void)err_set(err, ERR_REFUSED, "the kernel has stopped counting what is written to '%s'",
                      capture->volumes[index].live.identity.path);
        return hint_counting(capture, index, err);
    }
    err_set(err, ERR_REFUSED,
            "%" PRIu64 " sectors that were sent to it before the freeze have not been written yet",
            result->unfinished);
    return err_hint(err,
                    "the file system waits for its own writes: does a program write to '%s' "
                    "itself? take the snapshot without it",
                    capture->volumes[index].live.identity.path);
}

/* Under a freeze. Nothing may be on its way, but for discards: what was queued before the freeze by
 * whoever writes past the filesystem has a mark that is about to be cleared, and is not there to be
 * read yet. A write is seen before it is counted, so the kernel's sum is read before ours; at B0,
 * after. */
static int compare_counters(const struct capture *capture, size_t index, uint64_t until_ns,
                            struct err *err)
{
    struct precopy *precopy = capture->precopy;
    struct track *track = capture_track(capture, index);
    struct watch_result result = {0};
    for (;;) {
        struct track_sums now;
        int rc = capture_watch_sums(capture, index, &now, err);
        if (rc == 0)
            rc = marks_counters(precopy->marks[index], &now.seen, err);
        if (rc == 0)
            rc = capture_watch_compare(&precopy->base[index], &now, &result, err);
        if (rc < 0)
            return rc;
        if (result.unfinished == 0)
            break;
        if (monotonic_ns() >= until_ns)
            return err_unfinished(capture, index, &result, err);
        (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    if (result.discards_unseen)
        precopy->discards_unseen[index] = true;
    if (result.discards_unseen && track != NULL)
        track_give_up(track, "the kernel counted discards that eBPF did not see");
    return 0;
}

int capture_watch_check(const struct capture *capture, uint64_t until_ns, struct err *err)
{
    for (size_t i = 0; i < capture->group->count; i++) {
        int rc = compare_counters(capture, i, until_ns, err);
        if (rc < 0)
            return err_prefix(err, "volume %s", capture_volume_name(capture, i));
    }
    return capture_check_unchanged(capture, false, err);
}

void capture_watch_warn(const struct capture *capture)
{
    struct precopy *precopy = capture->precopy;
    for (size_t i = 0; i < capture->group->count; i++) {
        if (precopy->discards_unseen[i] && !precopy->discards_warned[i])
            log_warn("volume=%s the kernel counted discards that eBPF did not see: they hit free "
                     "blocks; the marks are not kept for the next snapshot",
                     capture_volume_name(capture, i));
        precopy->discards_warned[i] = precopy->discards_unseen[i];
    }
}

/* --- start-up probe --------------------------------------------------------------------------- */

/* A file without a name: nothing of it is left, however we end. Where the server makes its own, as
 * what a new file is like (DAX) comes from its directory. */
static int write_probe(const struct conf *conf, const struct volume *volume,
                       struct extent_list *ret, struct err *err)
{
    const char *directory = ".";
    if (access(conf->data_directory, F_OK) == 0 && volume_holds_path(volume, conf->data_directory))
        directory = conf->data_directory;
    close_fd int fd = openat(volume->mount_fd, directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    free_mem char *bytes = malloc(PROBE_LEN);
    if (fd < 0 || bytes == NULL) {
        err_sys(err, fd < 0 && errno == EROFS ? ERR_REFUSED : ERR_DEVICE,
                "make a file on '%s' to see its write", volume->mount_point);
        return err_hint(err, "a volume that is mounted read-only: provider = offline");
    }
    memset(bytes, 'p', PROBE_LEN);
    if (write(fd, bytes, PROBE_LEN) != PROBE_LEN || fsync(fd) < 0) {
        err_sys(err, ERR_DEVICE, "write %d KiB on '%s' to see the write", PROBE_LEN >> 10,
                volume->mount_point);
        return err_hint(err, "is the filesystem full?");
    }
    unsigned flags = 0;
    return fsmap_file(fd, ret, &flags, err);
}

static int err_probe(const struct capture *capture, size_t index, const char *why, struct err *err)
{
    err_set(err, ERR_REFUSED, "volume %s: a write of our own was not %s on '%s'",
            capture_volume_name(capture, index), why, capture->volumes[index].live.identity.path);
    return hint_counting(capture, index, err);
}

/* Is a write seen by the marks, at its place, and by the kernel's counters? */
static int probe(struct capture *capture, size_t index, struct err *err)
{
    struct track_sums before, after;
    struct extent_list written = {0}, marked = {0}, unmarked = {0};
    struct track *track = capture_track(capture, index);
    int rc = capture_watch_sums(capture, index, &before, err);
    if (rc == 0)
        rc = write_probe(capture->conf, &capture->group->volumes[index], &written, err);
    if (rc == 0)
        rc = capture_watch_sums(capture, index, &after, err);
    if (rc == 0) /* cleared without a freeze: nothing relies on marks before B0 */
        rc = track_take(track, capture->precopy->marks[index], &marked, err);
    extent_list_normalise(&written);
    if (rc == 0)
        rc = extent_list_subtract(&written, &marked, &unmarked, err);
    if (rc == 0 && (unmarked.count > 0 || extent_list_bytes(&written) < PROBE_LEN))
        rc = err_probe(capture, index, "marked where it lies", err);
    else if (rc == 0 && after.seen.written_sectors - before.seen.written_sectors < PROBE_LEN / 512)
        rc = err_probe(capture, index, "seen", err);
    else if (rc == 0 &&
             after.counted.written_sectors - before.counted.written_sectors < PROBE_LEN / 512)
        rc = err_probe(capture, index, "counted by the kernel", err);
    extent_list_release(&written);
    extent_list_release(&marked);
    extent_list_release(&unmarked);
    return rc;
}

static int attach(struct capture *capture, size_t index, struct err *err)
{
    const struct device_identity *identity = &capture->volumes[index].live.identity;
    struct marks_place place = {.len = identity->size};
    if (!sysfs_place(identity, &place.disk_major, &place.disk_minor, &place.offset))
        return err_set(err, ERR_REFUSED, "sysfs does not say on which disk '%s' lies",
                       identity->path);
    struct track *track = capture_track(capture, index);
    struct marks **marks = &capture->precopy->marks[index];
    uint32_t chunk_size = capture->precopy->chunk_size;
    int rc = track != NULL ? track_attach(track, identity, &place, chunk_size, marks, err)
                           : marks_open(&place, chunk_size, marks, err);
    bool broken = capture_breaks("barrier") || capture_breaks("map") || capture_breaks("wal");
    if (rc == 0 && (broken || marks_are_lossy(*marks)))
        log_warn("volume=%s a TIDEMARK_TEST_ variable damages this snapshot on purpose: never "
                 "restore it",
                 capture_volume_name(capture, index));
    if (rc == 0)
        rc = probe(capture, index, err);
    return rc < 0 ? err_prefix(err, "provider precopy") : 0;
}

int capture_watch_attach(struct capture *capture, uint32_t chunk_size, struct err *err)
{
    struct precopy *precopy = calloc(1, sizeof(*precopy));
    if (precopy == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    precopy->chunk_size = chunk_size;
    for (size_t i = 0; i < CONF_VOLUMES_MAX; i++)
        precopy->memory_fds[i] = -1;
    capture->precopy = precopy;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < capture->group->count; i++)
        rc = attach(capture, i, err);
    return rc;
}
