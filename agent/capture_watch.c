/* Provider precopy: that no write goes unseen. A probe when the marks are attached, a comparison
 * with the kernel's own counters at every barrier. */
#include "agent/capture_precopy.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>

#include "io/fsmap.h"

enum { PROBE_LEN = 128 << 10 };

/* --- no write goes unseen --------------------------------------------------------------------- */

int capture_watch_counters(const struct capture *capture, size_t index, struct marks_counters *seen,
                           struct sysfs_counters *counted, struct err *err)
{
    int rc = marks_counters(capture->precopy->marks[index], seen, err);
    if (rc < 0)
        return rc;
    if (sysfs_counters(&capture->volumes[index].live.identity, counted))
        return 0;
    return err_set(err, ERR_REFUSED, "'%s' keeps no statistics",
                   capture->volumes[index].live.identity.path);
}

static int err_unseen(struct err *err, uint64_t counted, uint64_t seen, const char *what)
{
    err_set(err, ERR_REFUSED,
            "writes went unseen: the kernel counted %" PRIu64 " sectors %s, eBPF saw %" PRIu64,
            counted, what, seen);
    return err_hint(err, "the snapshot is void; use provider command or freeze, and report it with "
                         "the kernel's version");
}

/* Under a freeze: everything queued has completed, so both sums are final, but for discards. */
static int compare_counters(const struct capture *capture, size_t index, struct err *err)
{
    const struct marks_counters *seen0 = &capture->precopy->seen[index];
    const struct sysfs_counters *counted0 = &capture->precopy->counted[index];
    struct marks_counters seen;
    struct sysfs_counters counted;
    int rc = capture_watch_counters(capture, index, &seen, &counted, err);
    if (rc < 0)
        return rc;
    uint64_t written_seen = seen.written_sectors - seen0->written_sectors;
    uint64_t written = counted.written_sectors - counted0->written_sectors;
    uint64_t discarded_seen = seen.discarded_sectors - seen0->discarded_sectors;
    uint64_t discarded = counted.discarded_sectors - counted0->discarded_sectors;
    if (seen.missed != seen0->missed)
        return err_set(err, ERR_REFUSED, "%" PRIu64 " runs of the eBPF program were left out",
                       seen.missed - seen0->missed);
    if (written > written_seen)
        return err_unseen(err, written, written_seen, "written");
    if (discarded > discarded_seen)
        return err_unseen(err, discarded, discarded_seen, "discarded");
    if (written == 0 && written_seen > 0)
        return err_set(err, ERR_REFUSED, "the kernel has stopped counting (queue/iostats)");
    return 0;
}

int capture_watch_check(const struct capture *capture, struct err *err)
{
    for (size_t i = 0; i < capture->group->count; i++) {
        int rc = compare_counters(capture, i, err);
        if (rc < 0)
            return err_prefix(err, "volume %s", capture_volume_name(capture, i));
    }
    if (capture_unchanged(capture, false))
        return 0;
    return err_set(err, ERR_REFUSED, "a volume of the group was replaced or mounted anew");
}

/* --- start-up probe --------------------------------------------------------------------------- */

/* A file without a name: nothing of it is left, however we end. */
static int write_probe(const struct volume *volume, struct extent_list *ret, struct err *err)
{
    close_fd int fd = openat(volume->mount_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
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
    return err_hint(err, "writes of this device cannot be watched reliably (queue/iostats off?); "
                         "use provider command or freeze");
}

/* Is a write seen by the marks, at its place, and by the kernel's counters? */
static int probe(struct capture *capture, size_t index, struct err *err)
{
    struct marks_counters seen0, seen;
    struct sysfs_counters counted0, counted;
    struct extent_list written = {0}, marked = {0}, unmarked = {0};
    int rc = capture_watch_counters(capture, index, &seen0, &counted0, err);
    if (rc == 0)
        rc = write_probe(&capture->group->volumes[index], &written, err);
    if (rc == 0)
        rc = capture_watch_counters(capture, index, &seen, &counted, err);
    if (rc == 0) /* cleared without a freeze: nothing relies on marks before B0 */
        rc = marks_take(capture->precopy->marks[index], &marked, err);
    extent_list_normalise(&written);
    if (rc == 0)
        rc = extent_list_subtract(&written, &marked, &unmarked, err);
    if (rc == 0 && (unmarked.count > 0 || extent_list_bytes(&written) < PROBE_LEN))
        rc = err_probe(capture, index, "marked where it lies", err);
    else if (rc == 0 && seen.written_sectors - seen0.written_sectors < PROBE_LEN / 512)
        rc = err_probe(capture, index, "seen", err);
    else if (rc == 0 && counted.written_sectors - counted0.written_sectors < PROBE_LEN / 512)
        rc = err_probe(capture, index, "counted by the kernel", err);
    extent_list_release(&written);
    extent_list_release(&marked);
    extent_list_release(&unmarked);
    return rc;
}

int capture_watch_attach(struct capture *capture, size_t index, struct err *err)
{
    const struct device_identity *identity = &capture->volumes[index].live.identity;
    struct marks_place place = {.len = identity->size};
    if (!sysfs_place(identity, &place.disk_major, &place.disk_minor, &place.offset))
        return err_set(err, ERR_REFUSED, "sysfs does not say on which disk '%s' lies",
                       identity->path);
    int rc = marks_open(&place, capture->precopy->chunk_size, &capture->precopy->marks[index], err);
    if (rc == 0)
        rc = probe(capture, index, err);
    return rc < 0 ? err_prefix(err, "provider precopy") : 0;
}
