/* io/device and io/mountinfo on real loop devices: identity, use, locks, marker, head. */
#include "io/device.h"

#include <sys/file.h>
#include <sys/sysmacros.h>

#include "io/mountinfo.h"
#include "tests/unit/fixture.h"

static struct err err;
static const uint8_t job_id[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

static void test_mountinfo(void)
{
    struct mount_entry entry;
    ok(mount_entry_parse("36 35 98:7 /a /mnt/x\\040y\\134 rw,noatime shared:1 master:2 - ext4 "
                         "/dev/sd\\011a rw,data=ordered",
                         &entry),
       "a line with optional fields and escapes");
    ok(entry.major == 98 && entry.minor == 7, "its device number");
    is_str(entry.mount_point, "/mnt/x y\\", "octal escapes in the mount point");
    is_str(entry.source, "/dev/sd\ta", "and in the source");
    is_str(entry.fs_type, "ext4", "its type");
    ok(!entry.read_only, "rw");
    ok(mount_entry_parse("1 2 0:1 / / ro - tmpfs none rw", &entry) && entry.read_only, "ro mount");
    ok(mount_entry_parse("1 2 0:1 / / rw - tmpfs none ro", &entry) && entry.read_only, "ro super");
    const char *bad[] = {"", "1", "1 2 x / / rw - ext4 a rw", "1 2 0:1 / / rw ext4 a rw",
                         "1 2 0:1 / / rw - ext4 a"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        ok(!mount_entry_parse(bad[i], &entry), "malformed: '%s'", bad[i]);
    ok(mount_has_option("rw,dax=always", "dax"), "an option with a value");
    ok(mount_has_option("rw,dax", "dax") && mount_has_option("dax", "dax"), "without one");
    ok(!mount_has_option("rw,nodax,daxx", "dax"), "not a part of another option");
}

static void test_identify(struct fixture_volume *volume, const char *fs)
{
    struct device_identity identity;
    struct device_use use;
    is_good(device_identify(volume->loop, &identity, &err), &err, "%s: identify", fs);
    is_str(identity.fs_type, fs, "%s: filesystem type", fs);
    ok(identity.has_signature && strlen(identity.fs_uuid) == 36, "%s: UUID %s", fs,
       identity.fs_uuid);
    is_u64(identity.size, 320 * MIB, "%s: size", fs);
    is_u64(identity.logical_sector, 512, "%s: logical sector", fs);
    ok(identity.is_block && identity.diskseq != 0, "%s: block device, diskseq", fs);
    ok(identity.request_max >= 4096 && identity.request_max <= MIB, "%s: request_max %u", fs,
       identity.request_max);
    is_good(device_check_use(&identity, &use, &err), &err, "%s: use", fs);
    ok(!use.mounted && !use.held, "%s: not in use", fs);

    fixture_mount(volume, "ro");
    is_good(device_check_use(&identity, &use, &err), &err, "%s: use while mounted", fs);
    ok(use.mounted && use.read_only && !use.held, "%s: mounted read-only", fs);
    is_str(use.mount_point, volume->mount, "%s: mount point with a blank", fs);
    struct device device;
    is_err(device_open_exclusive(volume->loop, &device, &err), &err, ERR_BUSY, "is mounted on",
           "%s: no exclusive open while mounted", fs);
    ok(strstr(err.hint, "unmount") != NULL, "%s: hint", fs);
    is_good(device_open_read(volume->loop, &device, &err), &err, "%s: read while mounted", fs);
    device_close(&device);
    fixture_umount(volume);
}

/* After a direct overwrite the cached page of an earlier buffered reader would still say ext4. */
static void test_no_stale_pages(struct fixture_volume *volume)
{
    struct device_identity identity;
    close_fd int reader = open(volume->loop, O_RDONLY | O_CLOEXEC);
    char page[4096];
    ok(read(reader, page, sizeof(page)) == sizeof(page), "a buffered reader caches the head");
    fixture_mkfs(volume, "xfs");
    is_good(device_identify(volume->loop, &identity, &err), &err, "identify after mkfs.xfs");
    is_str(identity.fs_type, "xfs", "the new filesystem is seen");
}

static void test_lock(struct fixture_volume *volume)
{
    struct device device, second;
    is_good(device_open_exclusive(volume->loop, &device, &err), &err, "exclusive open");
    close_fd int fd = open(volume->loop, O_RDONLY | O_CLOEXEC);
    ok(flock(fd, LOCK_SH | LOCK_NB) < 0, "udev's shared lock is refused while we hold the disk");
    ok(run("flock -n -s %s true", volume->loop) != 0, "flock(1) agrees");
    is_err(device_open_exclusive(volume->loop, &second, &err), &err, ERR_BUSY, "in use",
           "a second exclusive open is busy");
    ok(!fixture_mount(volume, "ro"), "and nobody can mount it");
    device_close(&device);
    ok(flock(fd, LOCK_EX | LOCK_NB) == 0, "close releases the lock");
    is_err(device_open_exclusive(volume->loop, &second, &err), &err, ERR_BUSY, "is locked",
           "a locked disk is busy");
    flock(fd, LOCK_UN);
    is_good(device_open_exclusive(volume->loop, &device, &err), &err, "free again");
    device_close(&device);
}

/* A partition's lock is the whole disk's. */
static void test_partition(void)
{
    struct fixture_volume *volume = fixture_add(64 * MIB, "-P");
    char node[96], line[64], command[256];
    unsigned dev_major, dev_minor;
    snprintf(node, sizeof(node), "%sp1", volume->loop);
    snprintf(command, sizeof(command), "cat /sys/class/block/%s/dev", node + 5);
    if (run("addpart %s 1 2048 32768", volume->loop) != 0 ||
        !run_line(command, line, sizeof(line)) ||
        sscanf(line, "%u:%u", &dev_major, &dev_minor) != 2) {
        skip("no partitions on loop devices here");
        return;
    }
    if (access(node, F_OK) != 0) /* no udevd in a container */
        mknod(node, S_IFBLK | 0600, makedev(dev_major, dev_minor));
    struct device device;
    is_good(device_open_exclusive(node, &device, &err), &err, "exclusive open of a partition");
    is_u64(device.identity.size, 32768 * 512, "its size");
    close_fd int fd = open(volume->loop, O_RDONLY | O_CLOEXEC);
    ok(flock(fd, LOCK_SH | LOCK_NB) < 0, "the whole disk is locked");
    device_close(&device);
    run("delpart %s 1; rm -f %s", volume->loop, node);
}

static bool same_mark(const char *path, uint64_t want_size)
{
    struct device device;
    uint8_t id[16];
    uint64_t size = 0;
    if (device_open_read(path, &device, &err) < 0)
        return false;
    int rc = device_read_mark(&device, id, &size, &err);
    device_close(&device);
    return rc == 0 && memcmp(id, job_id, 16) == 0 && size == want_size;
}

static void test_mark(struct fixture_volume *volume, const char *what)
{
    struct device device;
    uint8_t id[16];
    uint64_t size;
    is_good(device_open_exclusive(volume->loop, &device, &err), &err, "%s: open", what);
    ok(device.identity.has_signature, "%s: has a signature (%s)", what, device.identity.signature);
    is_err(device_read_mark(&device, id, &size, &err), &err, ERR_MISSING, "no device marker",
           "%s: no marker yet", what);
    is_good(device_mark(&device, job_id, 12345, &err), &err, "%s: mark", what);
    device_close(&device);
    ok(same_mark(volume->loop, 12345), "%s: the marker is read back", what);
    struct device_identity identity;
    is_good(device_identify(volume->loop, &identity, &err), &err, "%s: identify", what);
    ok(!identity.has_signature, "%s: no signature is left", what);
    char line[64], command[256];
    snprintf(command, sizeof(command), "wipefs -n %s | wc -l", volume->loop);
    ok(run_line(command, line, sizeof(line)) && atoi(line) == 0, "%s: wipefs finds nothing", what);
    const char *types[] = {"auto", "ext4", "xfs"};
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        ok(run("mount -t %s %s '%s' 2>/dev/null", types[i], volume->loop, volume->mount) != 0,
           "%s: cannot be mounted as %s", what, types[i]);
}

static void put_at(const struct fixture_volume *volume, uint64_t offset, const void *ptr,
                   size_t len)
{
    close_fd int fd = open(volume->loop, O_WRONLY | O_CLOEXEC);
    if (pwrite(fd, ptr, len, (off_t)offset) != (ssize_t)len || fsync(fd) < 0)
        abort();
}

static uint32_t crc32_ieee(const uint8_t *ptr, size_t len)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < len; i++) {
        crc ^= ptr[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0xedb88320u & (0u - (crc & 1)));
    }
    return ~crc;
}

/* The backup of a GPT (UEFI §5.3): 128 empty entries, then the header in the last sector. */
static void put_gpt_backup(const struct fixture_volume *volume, uint64_t size)
{
    static uint8_t tail[33 * 512];
    uint8_t *header = tail + 32 * 512;
    uint64_t last = size / 512 - 1;
    memset(tail, 0, sizeof(tail));
    memcpy(header, "EFI PART", 8);
    put_le32(header + 8, 0x00010000);
    put_le32(header + 12, 92);
    put_le64(header + 24, last);
    put_le64(header + 32, 1);
    put_le64(header + 40, 34);
    put_le64(header + 48, last - 33);
    memset(header + 56, 0x77, 16);
    put_le64(header + 72, last - 32);
    put_le32(header + 80, 128);
    put_le32(header + 84, 128);
    put_le32(header + 88, crc32_ieee(tail, 128 * 128));
    put_le32(header + 16, crc32_ieee(header, 92));
    put_at(volume, size - sizeof(tail), tail, sizeof(tail));
}

/* Places that zeroing the head would miss. */
static void test_mark_tails(struct fixture_volume *volume)
{
    run("dd if=/dev/zero of=%s bs=64k count=1 conv=notrunc,fsync 2>/dev/null", volume->loop);
    put_gpt_backup(volume, 320 * MIB);
    test_mark(volume, "GPT backup at the end");

    /* md 1.0: magic at the 4 KiB boundary at least 8 KiB before the end (md(4), super1.c) */
    uint8_t super[256] = {0xfc, 0x4e, 0x2b, 0xa9, 1};
    uint64_t sector = align_down(320 * MIB / 512 - 16, 8);
    put_le64(super + 128 + 16, sector); /* super_offset */
    run("dd if=/dev/zero of=%s bs=64k count=1 conv=notrunc,fsync 2>/dev/null", volume->loop);
    put_at(volume, sector * 512, super, sizeof(super));
    test_mark(volume, "md 1.0 at the end");

    run("dd if=/dev/zero of=%s bs=64k count=1 conv=notrunc,fsync 2>/dev/null", volume->loop);
    if (run("mkswap -q %s 2>/dev/null", volume->loop) == 0)
        test_mark(volume, "swap");
    else
        skip("mkswap failed");
}

static void test_damaged_mark(struct fixture_volume *volume)
{
    struct device device;
    uint8_t id[16], byte = 0x55;
    uint64_t size;
    put_at(volume, 40, &byte, 1);
    is_good(device_open_read(volume->loop, &device, &err), &err, "open a damaged marker");
    is_err(device_read_mark(&device, id, &size, &err), &err, ERR_CORRUPT, "wrong checksum",
           "a damaged marker is corrupt");
    device_close(&device);
}

static void test_commit_head(struct fixture_volume *volume)
{
    struct device device;
    uint8_t head[4096], back[4096];
    fixture_mkfs(volume, "ext4");
    close_fd int fd = open(volume->loop, O_RDONLY | O_CLOEXEC);
    ok(read(fd, head, sizeof(head)) == sizeof(head), "the head of an ext4");
    is_good(device_open_exclusive(volume->loop, &device, &err), &err, "open");
    memset(back, 0, sizeof(back));
    is_good(device_commit_head(&device, back, &err), &err, "a zero head");
    ok(run("mount %s '%s' 2>/dev/null", volume->loop, volume->mount) != 0, "is not mountable");
    is_good(device_commit_head(&device, head, &err), &err, "the real head");
    device_close(&device);
    ok(fixture_mount(volume, "rw"), "mounts again, through no stale page");
    fixture_umount(volume);
}

static void test_files(void)
{
    char path[200];
    struct device device;
    snprintf(path, sizeof(path), "%s/file", fixture_dir);
    is_err(device_open_file(path, MIB, false, &device, &err), &err, ERR_DEVICE, "open",
           "a file that is not there");
    is_good(device_open_file(path, MIB, true, &device, &err), &err, "create a file");
    is_u64(device.identity.size, MIB, "its size");
    ok(!device.identity.is_block && !device.identity.has_signature, "no device, no signature");
    is_good(device_mark(&device, job_id, 7, &err), &err, "files can be marked");
    is_good(device_flush(&device, &err), &err, "and flushed");
    device_close(&device);
    ok(same_mark(path, 7), "and read back");
    is_err(device_open_exclusive(path, &device, &err), &err, ERR_DEVICE, "not a block device",
           "exclusive open is for block devices");
    is_err(device_open_read("/nonexistent", &device, &err), &err, ERR_DEVICE, "open",
           "no such device");
    is_err(device_open_read("/dev/null", &device, &err), &err, ERR_DEVICE, "", "not a device");
    struct device_identity identity;
    is_err(device_identify("/dev/null", &identity, &err), &err, ERR_DEVICE, "neither a block",
           "a character device is refused");
}

int main(void)
{
    const char *why;
    test_mountinfo();
    if (!fixture_start(&why)) {
        skip(why);
        return done();
    }
    struct fixture_volume *volume = fixture_add(320 * MIB, "");
    fixture_mkfs(volume, "ext4");
    test_identify(volume, "ext4");
    test_no_stale_pages(volume);
    test_identify(volume, "xfs");
    test_lock(volume);
    test_mark(volume, "xfs");
    test_damaged_mark(volume);
    test_mark_tails(volume);
    fixture_mkfs(volume, "ext4");
    test_mark(volume, "ext4");
    test_commit_head(volume);
    test_partition();
    test_files();
    return done();
}
