/* Block devices: who they are, whether they are in use, and the few writes whose order decides
 * whether a half-restored volume can be mistaken for a whole one. libblkid is used only here. */
#include "io/device.h"

#include <assert.h>
#include <blkid/blkid.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#include "io/device_sysfs.h"
#include "io/format.h"
#include "io/mountinfo.h"

/* --- identity ------------------------------------------------------------------------------- */

static int read_geometry(int fd, struct device_identity *identity, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_sys(err, ERR_DEVICE, "stat '%s'", identity->path);
    identity->logical_sector = 512;
    identity->physical_sector = 4096;
    identity->request_max = (uint32_t)MIB;
    if (S_ISREG(st.st_mode)) {
        identity->size = (uint64_t)st.st_size;
        return 0;
    }
    if (!S_ISBLK(st.st_mode))
        return err_set(err, ERR_DEVICE, "'%s' is neither a block device nor a regular file",
                       identity->path);
    identity->is_block = true;
    identity->major = major(st.st_rdev);
    identity->minor = minor(st.st_rdev);
    int logical = 0;
    unsigned physical = 0;
    if (ioctl(fd, BLKGETSIZE64, &identity->size) < 0 || ioctl(fd, BLKSSZGET, &logical) < 0 ||
        ioctl(fd, BLKPBSZGET, &physical) < 0)
        return err_sys(err, ERR_DEVICE, "size of '%s'", identity->path);
    identity->logical_sector = (uint32_t)logical;
    identity->physical_sector = physical;
    if (ioctl(fd, BLKGETDISKSEQ, &identity->diskseq) < 0)
        identity->diskseq = 0; /* before 5.15 */
    identity->request_max = sysfs_request_max(identity);
    sysfs_hardware_ids(identity);
    return 0;
}

static void copy_value(blkid_probe probe, const char *name, char *ret, size_t ret_len)
{
    const char *value;
    if (blkid_probe_lookup_value(probe, name, &value, NULL) == 0)
        (void)snprintf(ret, ret_len, "%s", value);
}

static void read_probe_result(blkid_probe probe, int found, struct device_identity *identity)
{
    char usage[32] = "";
    identity->has_signature = true;
    if (found == -2) { /* two filesystems claim it: nobody can say which one is alive */
        (void)snprintf(identity->signature, sizeof(identity->signature), "several");
        return;
    }
    copy_value(probe, "USAGE", usage, sizeof(usage));
    copy_value(probe, "PTTYPE", identity->signature, sizeof(identity->signature));
    copy_value(probe, "TYPE", identity->signature, sizeof(identity->signature));
    if (strcmp(usage, "filesystem") != 0)
        return;
    copy_value(probe, "TYPE", identity->fs_type, sizeof(identity->fs_type));
    copy_value(probe, "UUID", identity->fs_uuid, sizeof(identity->fs_uuid));
    copy_value(probe, "LABEL", identity->fs_label, sizeof(identity->fs_label));
}

/* A probe of superblocks and partition tables; FORCE_GPT finds the backup header at the end of a
 * disk whose protective MBR is gone. NULL when the device is too small to hold anything. */
static blkid_probe new_probe(int fd, int superblock_flags)
{
    blkid_probe probe = blkid_new_probe();
    if (probe == NULL || blkid_probe_set_device(probe, fd, 0, 0) != 0 ||
        blkid_probe_enable_superblocks(probe, 1) != 0 ||
        blkid_probe_set_superblocks_flags(probe, superblock_flags) != 0 ||
        blkid_probe_enable_partitions(probe, 1) != 0 ||
        blkid_probe_set_partitions_flags(probe, BLKID_PARTS_MAGIC | BLKID_PARTS_FORCE_GPT) != 0) {
        blkid_free_probe(probe);
        return NULL;
    }
    return probe;
}

static int probe_signatures(int fd, struct device_identity *identity, struct err *err)
{
    if (identity->size < 4096)
        return 0;
    blkid_probe probe = new_probe(fd, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_UUID | BLKID_SUBLKS_LABEL |
                                          BLKID_SUBLKS_USAGE);
    if (probe == NULL)
        return err_set(err, ERR_DEVICE, "cannot probe '%s' for filesystems", identity->path);
    int found = blkid_do_safeprobe(probe);
    int rc = 0;
    if (found == 0 || found == -2)
        read_probe_result(probe, found, identity);
    else if (found < 0)
        rc = err_set(err, ERR_DEVICE, "read '%s' to look for filesystems failed", identity->path);
    blkid_free_probe(probe);
    return rc;
}

struct mount_search {
    const struct device_identity *identity;
    struct mount_entry found;
    bool hit;
};

static int match_mount(void *ctx, const struct mount_entry *entry)
{
    struct mount_search *search = ctx;
    const struct device_identity *identity = search->identity;
    bool same = entry->major == identity->major && entry->minor == identity->minor;
    struct stat st; /* btrfs files carry an anonymous device number: compare what was mounted */
    if (!same && entry->major == 0 && entry->source[0] == '/')
        same = stat(entry->source, &st) == 0 && S_ISBLK(st.st_mode) &&
               major(st.st_rdev) == identity->major && minor(st.st_rdev) == identity->minor;
    if (!same)
        return 0;
    search->found = *entry;
    search->hit = true;
    return 1;
}

static int find_mount(const struct device_identity *identity, struct mount_search *ret,
                      struct err *err)
{
    *ret = (struct mount_search){.identity = identity};
    if (!identity->is_block)
        return 0;
    int rc = mount_each(match_mount, ret, err);
    return rc < 0 ? rc : 0;
}

/* fd may be O_DIRECT: probing opens the device once more, buffered. */
static int identify(int fd, const char *path, struct device_identity *ret, struct err *err)
{
    struct device_identity identity = {0};
    char resolved[PATH_MAX];
    if (realpath(path, resolved) == NULL)
        return err_sys(err, ERR_DEVICE, "resolve '%s'", path);
    if (strlen(resolved) >= sizeof(identity.path))
        return err_set(err, ERR_DEVICE, "the path '%.64s…' is too long", resolved);
    (void)snprintf(identity.path, sizeof(identity.path), "%s", resolved);
    int rc = read_geometry(fd, &identity, err);
    struct mount_search mount;
    if (rc < 0 || (rc = find_mount(&identity, &mount, err)) < 0)
        return rc;
    char again[64];
    (void)snprintf(again, sizeof(again), "/proc/self/fd/%d", fd);
    close_fd int probe_fd = open(again, O_RDONLY | O_CLOEXEC);
    if (probe_fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    /* Pages cached by an earlier buffered reader stay for ever once direct writes have passed them
     * by (measured); under a mounted filesystem the flush would sync the whole of it. */
    if (identity.is_block && !mount.hit && ioctl(probe_fd, BLKFLSBUF, 0) < 0)
        return err_sys(err, ERR_DEVICE, "drop cached pages of '%s'", path);
    rc = probe_signatures(probe_fd, &identity, err);
    if (rc < 0)
        return rc;
    *ret = identity;
    return 0;
}

int device_identify(const char *path, struct device_identity *ret, struct err *err)
{
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    return identify(fd, path, ret, err);
}

int device_check_use(const struct device_identity *identity, struct device_use *ret,
                     struct err *err)
{
    struct device_use use = {0};
    struct mount_search mount;
    int rc = find_mount(identity, &mount, err);
    if (rc < 0)
        return rc;
    if (mount.hit) {
        use.mounted = true;
        use.read_only = mount.found.read_only;
        (void)snprintf(use.mount_point, sizeof(use.mount_point), "%s", mount.found.mount_point);
    }
    if (identity->is_block) {
        close_fd int fd = open(identity->path, O_RDONLY | O_EXCL | O_CLOEXEC);
        if (fd < 0 && errno != EBUSY)
            return err_sys(err, ERR_DEVICE, "open '%s'", identity->path);
        use.held = (fd < 0 && !mount.hit) || sysfs_has_holders(identity);
    }
    *ret = use;
    return 0;
}

/* --- opening -------------------------------------------------------------------------------- */

int device_open_read(const char *path, struct device *ret, struct err *err)
{
    struct device device = {.fd = -1, .lock_fd = -1};
    close_fd int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    int rc = identify(fd, path, &device.identity, err);
    if (rc < 0)
        return rc;
    device.fd = take_fd(&fd);
    *ret = device;
    return 0;
}

static void sleep_ms(unsigned ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    (void)nanosleep(&time, NULL);
}

/* udev holds a shared lock while it probes, for some milliseconds: wait a little before giving up
 * (systemd.io/BLOCK_DEVICE_LOCKING). */
enum { LOCK_TRIES = 40, LOCK_PAUSE_MS = 50 };

static int lock_whole_disk(const struct device_identity *identity, int *ret_fd, struct err *err)
{
    char name[128];
    dev_t disk;
    if (blkid_devno_to_wholedisk(makedev(identity->major, identity->minor), name, sizeof(name),
                                 &disk) != 0)
        return err_set(err, ERR_DEVICE, "cannot find the whole disk of '%s'", identity->path);
    free_mem char *node = blkid_devno_to_devname(disk);
    if (node == NULL)
        return err_set(err, ERR_DEVICE, "disk '%s' has no node in /dev", name);
    close_fd int fd = open(node, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", node);
    for (int i = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; i++) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return err_sys(err, ERR_DEVICE, "lock '%s'", node);
        if (i >= LOCK_TRIES) {
            err_set(err, ERR_BUSY, "'%s' is locked by another program", node);
            return err_hint(err, "a partitioning tool, mkfs or another restore works on it");
        }
        sleep_ms(LOCK_PAUSE_MS);
    }
    *ret_fd = take_fd(&fd);
    return 0;
}

static int err_in_use(const char *path, struct err *err)
{
    struct device_identity identity;
    struct device_use use = {0};
    struct err ignored;
    if (device_identify(path, &identity, &ignored) == 0)
        (void)device_check_use(&identity, &use, &ignored);
    if (use.mounted) {
        err_set(err, ERR_BUSY, "'%s' is mounted on '%s'", path, use.mount_point);
        return err_hint(err, "unmount it first");
    }
    err_set(err, ERR_BUSY, "'%s' is in use", path);
    return err_hint(err, "swap, device mapper, RAID, or a mount in another namespace holds it");
}

int device_open_exclusive(const char *path, struct device *ret, struct err *err)
{
    struct device device = {.fd = -1, .lock_fd = -1, .exclusive = true};
    struct stat st;
    if (stat(path, &st) < 0)
        return err_sys(err, ERR_DEVICE, "stat '%s'", path);
    if (!S_ISBLK(st.st_mode)) /* O_EXCL means nothing else than a block device here (open(2)) */
        return err_set(err, ERR_DEVICE, "'%s' is not a block device", path);
    close_fd int fd = open(path, O_RDWR | O_DIRECT | O_EXCL | O_CLOEXEC);
    if (fd < 0 && errno == EBUSY)
        return err_in_use(path, err);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s' for writing", path);
    int rc = identify(fd, path, &device.identity, err);
    if (rc < 0)
        return rc;
    close_fd int lock_fd = -1;
    rc = lock_whole_disk(&device.identity, &lock_fd, err);
    if (rc < 0)
        return rc;
    device.fd = take_fd(&fd);
    device.lock_fd = take_fd(&lock_fd);
    *ret = device;
    return 0;
}

int device_open_file(const char *path, uint64_t size, bool create, struct device *ret,
                     struct err *err)
{
    struct device device = {.fd = -1, .lock_fd = -1};
    int flags = O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0);
    close_fd int fd = open(path, flags | O_DIRECT, 0600);
    if (fd < 0 && errno == EINVAL) /* a filesystem without direct I/O */
        fd = open(path, flags, 0600);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_sys(err, ERR_DEVICE, "stat '%s'", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_DEVICE, "'%s' is not a regular file", path);
    if (size != 0 && (uint64_t)st.st_size != size && ftruncate(fd, (off_t)size) < 0)
        return err_sys(err, ERR_DEVICE, "set the size of '%s' to %llu bytes", path,
                       (unsigned long long)size);
    int rc = identify(fd, path, &device.identity, err);
    if (rc < 0)
        return rc;
    device.fd = take_fd(&fd);
    *ret = device;
    return 0;
}

int device_check_same(const struct device *device, struct err *err)
{
    const struct device_identity *identity = &device->identity;
    struct stat now, opened;
    uint64_t size = 0, diskseq = 0;
    close_fd int fd = open(identity->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &now) < 0 || fstat(device->fd, &opened) < 0)
        return err_sys(err, ERR_DEVICE, "open '%s' again", identity->path);
    bool same = identity->is_block ? now.st_rdev == opened.st_rdev : now.st_ino == opened.st_ino;
    if (same && identity->is_block)
        same = ioctl(fd, BLKGETSIZE64, &size) == 0 && size == identity->size &&
               (ioctl(fd, BLKGETDISKSEQ, &diskseq) < 0 || diskseq == identity->diskseq);
    if (!same)
        return err_set(err, ERR_DEVICE, "'%s' is another disk now", identity->path);
    return 0;
}

void device_close(struct device *device)
{
    if (device == NULL)
        return;
    cleanup_close(&device->fd);
    cleanup_close(&device->lock_fd);
    device->fd = device->lock_fd = -1;
}

/* --- writes whose order matters --------------------------------------------------------------- */

static int write_at(struct device *device, const void *ptr, size_t len, uint64_t offset,
                    struct err *err)
{
    for (size_t done = 0; done < len;) {
        ssize_t n =
            pwrite(device->fd, (const char *)ptr + done, len - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_sys(err, ERR_DEVICE, "write '%s' at %llu", device->identity.path,
                           (unsigned long long)(offset + done));
        done += (size_t)n;
    }
    return 0;
}

static int read_head(struct device *device, void *ptr, struct err *err)
{
    ssize_t n;
    do {
        n = pread(device->fd, ptr, DEVICE_MARK_LEN, 0);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return err_sys(err, ERR_DEVICE, "read the head of '%s'", device->identity.path);
    if (n != DEVICE_MARK_LEN)
        return err_set(err, ERR_DEVICE, "'%s' is shorter than %d bytes", device->identity.path,
                       DEVICE_MARK_LEN);
    return 0;
}

/* Aligned for direct I/O on any sector size. */
static void *alloc_aligned(size_t len)
{
    void *ptr = aligned_alloc(4096, len);
    if (ptr == NULL)
        abort(); /* 64 KiB: nothing useful can be done without them */
    memset(ptr, 0, len);
    return ptr;
}

int device_flush(struct device *device, struct err *err)
{
    if (fsync(device->fd) < 0) /* never repeated: a second fsync would report success */
        return err_sys(err, ERR_DEVICE, "flush '%s'", device->identity.path);
    return 0;
}

/* libblkid writes through its own, buffered descriptor; its fsync makes the wipe durable. The loop
 * ends because do_wipe() steps back and finds the next signature until there is none. */
static int wipe_signatures(struct device *device, struct err *err)
{
    char again[64];
    (void)snprintf(again, sizeof(again), "/proc/self/fd/%d", device->fd);
    close_fd int fd = open(again, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", device->identity.path);
    blkid_probe probe =
        new_probe(fd, BLKID_SUBLKS_MAGIC | BLKID_SUBLKS_TYPE | BLKID_SUBLKS_BADCSUM);
    if (probe == NULL)
        return err_set(err, ERR_DEVICE, "cannot probe '%s'", device->identity.path);
    int rc = 0;
    enum { WIPE_MAX = 256 };
    for (int i = 0; rc == 0 && blkid_do_probe(probe) == 0; i++)
        if (i >= WIPE_MAX || blkid_do_wipe(probe, 0) != 0)
            rc = err_set(err, ERR_DEVICE, "cannot wipe the signatures of '%s'",
                         device->identity.path);
    blkid_free_probe(probe);
    if (rc == 0 && fsync(fd) < 0)
        rc = err_sys(err, ERR_DEVICE, "flush '%s'", device->identity.path);
    if (rc == 0 && device->identity.is_block && ioctl(fd, BLKFLSBUF, 0) < 0)
        rc = err_sys(err, ERR_DEVICE, "drop cached pages of '%s'", device->identity.path);
    return rc;
}

static_assert((int)DEVICE_MARK_LEN == (int)FMT_MARKER_LEN, "the marker is the head");

/* A sector is written whole or not at all; 4 KiB may tear. The head has two sectors that decide:
 * the first, with the marker's magic and the superblock of XFS, and the one with the magic of
 * ext4's superblock (1080 bytes in). Half marked, XFS would mount without its allocation group
 * headers, and ext4 without checksums with half of its superblock zero (both seen). So these two
 * are written by themselves: first when marking, last when committing. On 4 KiB sectors, and in
 * files, whose filesystem may ask for more than a sector, they are one and the whole head. */
struct head_sectors {
    size_t len; /* of a sector */
    size_t magic_at[2];
};

static struct head_sectors head_sectors(const struct device *device)
{
    enum { EXT4_MAGIC_AT = 1024 + 56 };
    const struct device_identity *identity = &device->identity;
    size_t len = identity->is_block ? (size_t)min_u64(identity->logical_sector, DEVICE_MARK_LEN)
                                    : DEVICE_MARK_LEN;
    return (struct head_sectors){.len = len, .magic_at = {0, align_down(EXT4_MAGIC_AT, len)}};
}

/* One deciding sector of the head, flushed. */
static int write_magic(struct device *device, const struct head_sectors *sectors, int which,
                       const uint8_t *head, struct err *err)
{
    size_t at = sectors->magic_at[which];
    int rc = write_at(device, head + at, sectors->len, at, err);
    return rc < 0 ? rc : device_flush(device, err);
}

/* All sectors of the head that do not decide, flushed. */
static int write_others(struct device *device, const struct head_sectors *sectors,
                        const uint8_t *head, struct err *err)
{
    int rc = 0;
    for (size_t at = 0; rc == 0 && at < DEVICE_MARK_LEN; at += sectors->len)
        if (at != sectors->magic_at[0] && at != sectors->magic_at[1])
            rc = write_at(device, head + at, sectors->len, at, err);
    return rc < 0 ? rc : device_flush(device, err);
}

int device_mark(struct device *device, const uint8_t job_id[16], uint64_t volume_size,
                struct err *err)
{
    size_t wipe_len = (size_t)min_u64(DEVICE_WIPE_LEN, align_down(device->identity.size, 4096));
    if (wipe_len < DEVICE_MARK_LEN)
        return err_set(err, ERR_DEVICE, "'%s' is too small to be marked", device->identity.path);
    free_mem uint8_t *head = alloc_aligned(DEVICE_WIPE_LEN);
    fmt_marker_encode(job_id, volume_size, head);
    int rc;
    struct head_sectors sectors = head_sectors(device);
    if ((rc = write_magic(device, &sectors, 0, head, err)) < 0 ||
        (rc = write_magic(device, &sectors, 1, head, err)) < 0 ||
        (rc = write_others(device, &sectors, head, err)) < 0 ||
        (rc = write_at(device, head, wipe_len, 0, err)) < 0 ||
        (rc = device_flush(device, err)) < 0 || (rc = wipe_signatures(device, err)) < 0)
        return rc;
    struct device_identity after;
    rc = device_identify(device->identity.path, &after, err);
    if (rc == 0 && after.has_signature)
        rc = err_set(err, ERR_DEVICE, "a signature (%s) on '%s' cannot be wiped", after.signature,
                     device->identity.path);
    return rc;
}

int device_read_mark(struct device *device, uint8_t ret_job_id[16], uint64_t *ret_volume_size,
                     struct err *err)
{
    free_mem uint8_t *head = alloc_aligned(DEVICE_MARK_LEN);
    int rc = read_head(device, head, err);
    if (rc < 0)
        return rc;
    rc = fmt_marker_decode(head, DEVICE_MARK_LEN, ret_job_id, ret_volume_size, err);
    return rc < 0 ? err_prefix(err, "'%s'", device->identity.path) : 0;
}

int device_commit_head(struct device *device, const uint8_t head[4096], struct err *err)
{
    free_mem uint8_t *buf = alloc_aligned(DEVICE_MARK_LEN);
    memcpy(buf, head, DEVICE_MARK_LEN);
    struct head_sectors sectors = head_sectors(device);
    int rc;
    if ((rc = device_flush(device, err)) < 0 ||
        (rc = write_others(device, &sectors, buf, err)) < 0 ||
        (rc = write_magic(device, &sectors, 1, buf, err)) < 0 ||
        (rc = write_magic(device, &sectors, 0, buf, err)) < 0)
        return rc;
    memset(buf, 0, DEVICE_MARK_LEN);
    rc = read_head(device, buf, err);
    if (rc < 0)
        return rc;
    if (memcmp(buf, head, DEVICE_MARK_LEN) != 0)
        return err_set(err, ERR_DEVICE, "'%s' does not return what was written to its head",
                       device->identity.path);
    /* Direct writes may have fallen back to buffered ones (EBUSY on invalidation), and a mount
     * must not see the marker in a cached page. */
    if (device->identity.is_block && ioctl(device->fd, BLKFLSBUF, 0) < 0)
        return err_sys(err, ERR_DEVICE, "drop cached pages of '%s'", device->identity.path);
    return 0;
}
