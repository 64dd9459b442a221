/* io/fsmap on real ext4 and XFS volumes: no block of a file may be called free, the map must be
 * believed when it is right and not when it is damaged. */
#include "io/fsmap.h"

#include <linux/fs.h>
#include <sys/ioctl.h>

#include "io/device.h"
#include "tests/unit/fixture.h"

static struct err err;

/* Files of many sizes with holes between them: some deleted again. */
static void fill(const struct fixture_volume *volume)
{
    run("cd '%s' && mkdir -p d && for i in $(seq 1 120); do head -c $((i * 3001)) /dev/urandom "
        ">d/f$i; done && rm d/f*3 && truncate -s 5M d/sparse && head -c 65536 /dev/urandom | dd "
        "of=d/sparse bs=64k seek=40 conv=notrunc 2>/dev/null && fallocate -l 1M d/prealloc && sync",
        volume->mount);
}

static bool covers(const struct extent_list *used, const struct extent_list *file)
{
    for (size_t i = 0; i < file->count; i++) {
        bool inside = false;
        for (size_t k = 0; k < used->count && !inside; k++)
            inside = file->items[i].offset >= used->items[k].offset &&
                     file->items[i].offset + file->items[i].len <=
                         used->items[k].offset + used->items[k].len;
        if (!inside)
            return false;
    }
    return true;
}

/* Every extent of every file lies in the used list. */
static void test_files_are_used(const struct fixture_volume *volume, const char *fs,
                                const struct extent_list *used)
{
    char command[256], path[512];
    snprintf(command, sizeof(command), "find '%s' -xdev -type f", volume->mount);
    FILE *pipe = popen(command, "re");
    unsigned file_count = 0, bad = 0;
    while (pipe != NULL && fgets(path, sizeof(path), pipe) != NULL) {
        path[strcspn(path, "\n")] = '\0';
        close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
        struct extent_list extents = {0};
        unsigned flags;
        if (fd < 0 || fsmap_file(fd, &extents, &flags, &err) < 0 || !covers(used, &extents))
            bad++;
        extent_list_release(&extents);
        file_count++;
    }
    pclose(pipe);
    ok(file_count > 100 && bad == 0, "%s: %u files lie in used blocks (%u do not)", fs, file_count,
       bad);
}

/* Reads a file's bytes through the device at its extents: the map and FIEMAP agree with reality. */
static void test_place(const struct fixture_volume *volume, const char *fs, int device_fd)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/d/f77", volume->mount);
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct extent_list extents = {0};
    unsigned flags;
    is_good(fsmap_file(fd, &extents, &flags, &err), &err, "%s: extents of a file", fs);
    is_u64(flags, FSMAP_PLAIN, "%s: plain", fs);
    static uint8_t want[4096], got[4096];
    uint8_t *buf = aligned_alloc(4096, 4096);
    ok(pread(fd, want, sizeof(want), 0) == 4096 && extents.count > 0 &&
           pread(device_fd, buf, 4096, (off_t)extents.items[0].offset) == 4096,
       "%s: read both", fs);
    memcpy(got, buf, sizeof(got));
    free(buf);
    ok(memcmp(want, got, sizeof(want)) == 0, "%s: the first extent holds the file's bytes", fs);
    extent_list_release(&extents);
}

static void test_flags(const struct fixture_volume *volume, const char *fs)
{
    char path[256];
    struct extent_list extents = {0};
    unsigned flags = 0;
    snprintf(path, sizeof(path), "%s/d/prealloc", volume->mount);
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    is_good(fsmap_file(fd, &extents, &flags, &err), &err, "%s: a preallocated file", fs);
    is_u64(flags, FSMAP_UNWRITTEN, "%s: is unwritten", fs);
    is_u64(extent_list_bytes(&extents), MIB, "%s: its size", fs);
    extent_list_release(&extents);
    snprintf(path, sizeof(path), "%s/d/empty", volume->mount);
    close_fd int empty = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    extents = (struct extent_list){0};
    is_good(fsmap_file(empty, &extents, &flags, &err), &err, "%s: an empty file", fs);
    ok(extents.count == 0 && flags == 0, "%s: has no extents", fs);
    /* delayed allocation: written, not yet synced */
    ok(write(empty, path, sizeof(path)) == sizeof(path), "%s: write", fs);
    is_good(fsmap_file(empty, &extents, &flags, &err), &err, "%s: a file just written", fs);
    ok(extents.count == 1 && flags == 0, "%s: has a place already", fs);
    extent_list_release(&extents);
    if (strcmp(fs, "xfs") != 0)
        return;
    run("cp --reflink=always '%s/d/f78' '%s/d/clone' && sync -f '%s'", volume->mount, volume->mount,
        volume->mount);
    snprintf(path, sizeof(path), "%s/d/clone", volume->mount);
    close_fd int clone = open(path, O_RDONLY | O_CLOEXEC);
    extents = (struct extent_list){0};
    is_good(fsmap_file(clone, &extents, &flags, &err), &err, "a reflinked file");
    ok(flags & FSMAP_SHARED, "is shared");
    extent_list_release(&extents);
}

static void test_many_extents(const struct fixture_volume *volume, const char *fs)
{
    run("cd '%s' && : >many && for i in $(seq 0 2 1200); do printf x | dd of=many bs=4096 seek=$i "
        "conv=notrunc 2>/dev/null; done && sync -f .",
        volume->mount);
    char path[256];
    snprintf(path, sizeof(path), "%s/many", volume->mount);
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct extent_list extents = {0};
    unsigned flags;
    is_good(fsmap_file(fd, &extents, &flags, &err), &err, "%s: a file with 601 extents", fs);
    ok(extents.count >= 601, /* XFS preallocates between them */
       "%s: all of them, over several calls (%zu)", fs, extents.count);
    extent_list_release(&extents);
}

static void test_filesystem(const char *fs, const char *mkfs_options)
{
    struct fixture_volume *volume = fixture_add(512 * MIB, "");
    run("mkfs.%s -q %s %s", fs, mkfs_options, volume->loop);
    fixture_mount(volume, "rw");
    fill(volume);
    int mount_fd = fixture_open(volume);
    int device_fd = open(volume->loop, O_RDONLY | O_DIRECT | O_CLOEXEC);
    struct extent_list used = {0};
    bool trusted = false;
    uint64_t size = 512 * MIB;
    test_flags(volume, fs);
    test_many_extents(volume, fs);
    test_place(volume, fs, device_fd);

    ok(ioctl(mount_fd, FIFREEZE, 0) == 0, "%s: freeze", fs);
    is_good(fsmap_used(mount_fd, device_fd, size, &used, &trusted, &err), &err, "%s: used, frozen",
            fs);
    ok(ioctl(mount_fd, FITHAW, 0) == 0, "%s: thaw", fs);
    ok(trusted, "%s: the map is trusted under a freeze", fs);
    ok(extent_list_bytes(&used) > 20 * MIB && extent_list_bytes(&used) < 300 * MIB,
       "%s: %llu MiB are used", fs, (unsigned long long)(extent_list_bytes(&used) / MIB));
    ok(extent_list_overlaps(&used, 0, 4096), "%s: the head is used", fs);
    test_files_are_used(volume, fs, &used);
    extent_list_release(&used);

    used = (struct extent_list){0};
    is_good(fsmap_used(mount_fd, device_fd, size / 2, &used, &trusted, &err), &err,
            "%s: a device smaller than the filesystem", fs);
    ok(!trusted && used.count == 1 && used.items[0].offset == 0 && used.items[0].len == size / 2,
       "%s: is not trusted and used as a whole", fs);
    extent_list_release(&used);
    if (strcmp(fs, "xfs") == 0) {
        used = (struct extent_list){0};
        is_good(fsmap_used(mount_fd, -1, size, &used, &trusted, &err), &err, "xfs: no device");
        ok(!trusted, "xfs: nothing to check against is not trusted");
        extent_list_release(&used);
    }
    close(mount_fd);
    close(device_fd);
    fixture_umount(volume);
}

static void test_other_filesystem(void)
{
    close_fd int fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct extent_list used = {0};
    bool trusted = true;
    is_good(fsmap_used(fd, -1, MIB, &used, &trusted, &err), &err, "a filesystem without a map");
    ok(!trusted && used.count == 1 && used.items[0].len == MIB, "is used as a whole");
    extent_list_release(&used);
    struct extent_list extents = {0};
    unsigned flags;
    is_err(fsmap_file(fd, &extents, &flags, &err), &err, ERR_DEVICE, "FIEMAP",
           "and its files have no place");
}

int main(void)
{
    const char *why;
    test_other_filesystem();
    if (!fixture_start(&why)) {
        skip(why);
        return done();
    }
    test_filesystem("ext4", "-F");
    test_filesystem("ext4", "-F -b 1024");
    test_filesystem("xfs", "-f");
    test_filesystem("xfs", "-f -m rmapbt=1");
    return done();
}
