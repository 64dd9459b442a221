/* io/marks on a loop device, its partition, and zram: a write of a known range marks exactly its
 * chunks, and the sums are the kernel's own. What a host can lack is named. */
/* check: build=asan,tsan timeout=60 */
#include "io/marks.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>

#include "agent/capture_precopy.h"
#include "io/device_sysfs.h"
#include "tests/unit/fixture.h"

enum { CHUNK = 32 << 10, SECTOR = 512 };

static struct err err;
static struct device_identity device;
static struct marks *marks;
static int fd;

static int open_marks(const char *path, uint64_t offset, uint64_t len)
{
    struct marks_place place = {.len = len};
    uint64_t disk_offset = 0;
    int rc = device_identify(path, &device, &err);
    if (rc < 0)
        return rc;
    if (!sysfs_place(&device, &place.disk_major, &place.disk_minor, &disk_offset))
        abort();
    place.offset = disk_offset + offset;
    fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    return marks_open(&place, CHUNK, &marks, &err);
}

static void close_marks(void)
{
    close(fd);
    marks_close(marks);
}

static void write_at(uint64_t offset, size_t len)
{
    static char buf[1 << 20] __attribute__((aligned(4096)));
    memset(buf, 'w', sizeof(buf));
    if (pwrite(fd, buf, len, (off_t)offset) != (ssize_t)len || fsync(fd) < 0)
        perror("write");
}

/* What is marked, as "first+count" of chunks. */
static const char *taken(void)
{
    static char text[256];
    struct extent_list list = {0};
    text[0] = '\0';
    if (marks_take(marks, &list, &err) < 0)
        return err.text;
    for (size_t i = 0; i < list.count; i++) {
        size_t at = strlen(text);
        snprintf(text + at, sizeof(text) - at, "%s%llu+%llu", i ? " " : "",
                 (unsigned long long)(list.items[i].offset / CHUNK),
                 (unsigned long long)div_round_up(list.items[i].len, CHUNK));
    }
    extent_list_release(&list);
    return text;
}

static uint64_t marked_bytes(void)
{
    struct extent_list list = {0};
    is_good(marks_peek(marks, &list, &err), &err, "a look at the marks");
    uint64_t bytes = extent_list_bytes(&list);
    extent_list_release(&list);
    return bytes;
}

static struct marks_counters counters(void)
{
    struct marks_counters ret = {0};
    if (marks_counters(marks, &ret, &err) < 0)
        printf("# %s\n", err.text);
    return ret;
}

static void test_writes(const char *path)
{
    struct sysfs_counters before, after;
    is_good(open_marks(path, 0, 64 * MIB), &err, "%s is watched", path);
    ok(sysfs_counters(&device, &before), "the kernel counts there");
    is_u64(marked_bytes(), 0, "nothing is marked");
    write_at(0, 4096);
    is_str(taken(), "0+1", "the first chunk");
    is_str(taken(), "", "once");
    write_at(CHUNK - 4096, 8192);
    is_str(taken(), "0+2", "a write over a boundary marks both");
    write_at(10 * CHUNK, CHUNK);
    is_str(taken(), "10+1", "a write that ends on one does not mark the next");
    write_at(62 * CHUNK, 4 * CHUNK);
    write_at(100 * CHUNK, 4096);
    is_u64(marked_bytes(), 5 * CHUNK, "a look at them shows them all");
    is_str(taken(), "62+4 100+1", "over a word of the map, and a second one");
    write_at(200 * CHUNK, MIB);
    is_str(taken(), "200+32", "a large write");
    struct marks_counters sums = counters();
    sysfs_counters(&device, &after);
    uint64_t sectors = (4096 + 8192 + CHUNK + 4 * CHUNK + 4096 + MIB) / SECTOR;
    is_u64(sums.written_sectors, sectors, "sectors are counted");
    is_u64(after.written_sectors - before.written_sectors, sectors, "as the kernel counts them");
    is_u64(sums.discarded_sectors, 0, "no discard was seen");
    is_u64(sums.missed, 0, "nothing was missed");
    char *buf = aligned_alloc(4096, 4096);
    ok(pread(fd, buf, 4096, 0) == 4096 && marked_bytes() == 0, "a read marks nothing");
    free(buf);
    close_marks();
}

static void test_discard(const char *path)
{
    struct sysfs_counters before, after;
    uint64_t range[2] = {5 * CHUNK, 40 * MIB};
    is_good(open_marks(path, 0, 64 * MIB), &err, "%s is watched again", path);
    sysfs_counters(&device, &before);
    ok(ioctl(fd, BLKDISCARD, range) == 0, "discard 40 MiB");
    is_str(taken(), "5+1280", "all its chunks are marked");
    struct marks_counters sums = counters();
    sysfs_counters(&device, &after);
    is_u64(sums.discarded_sectors, range[1] / SECTOR, "as discarded sectors");
    is_u64(after.discarded_sectors - before.discarded_sectors, range[1] / SECTOR,
           "which the kernel counts as well");
    is_u64(sums.written_sectors, 0, "not as written ones");
    if (ioctl(fd, BLKZEROOUT, range) == 0)
        is_str(taken(), "5+1280", "write zeroes mark the same");
    close_marks();
}

/* The range is the middle of the device: nothing outside of it counts. */
static void test_range(const char *path)
{
    is_good(open_marks(path, 16 * MIB, 16 * MIB + 4096), &err, "a part of %s is watched", path);
    write_at(0, 4096);
    write_at(16 * MIB - 4096, 4096);
    write_at(32 * MIB + 4096, 4096);
    is_str(taken(), "", "writes before and behind it leave no mark");
    is_u64(counters().written_sectors, 0, "and are not counted");
    write_at(16 * MIB - 4096, 8192);
    is_str(taken(), "0+1", "one over its start marks what lies within");
    is_u64(counters().written_sectors, 4096 / SECTOR, "and counts so much");
    write_at(32 * MIB, 8192);
    struct extent_list list = {0};
    is_good(marks_take(marks, &list, &err), &err, "one over its end");
    ok(list.count == 1 && list.items[0].offset == 16 * MIB && list.items[0].len == 4096,
       "marks the short last chunk");
    extent_list_release(&list);
    close_marks();
}

static void test_partition(const struct fixture_volume *volume)
{
    char path[96];
    if (run("addpart %s 1 4096 65536", volume->loop) != 0) {
        skip("no partition on a loop device");
        return;
    }
    snprintf(path, sizeof(path), "%sp1", volume->loop);
    if (access(path, F_OK) < 0) /* no udev here */
        run("mknod %s b $(tr : ' ' </sys/class/block/%s/dev)", path, path + 5);
    is_good(open_marks(path, 0, 32 * MIB), &err, "a partition is watched");
    struct sysfs_counters before, after;
    sysfs_counters(&device, &before);
    write_at(3 * CHUNK, 4096);
    is_str(taken(), "3+1", "the place is that on the partition");
    sysfs_counters(&device, &after);
    is_u64(after.written_sectors - before.written_sectors, counters().written_sectors,
           "the partition's own counter says the same");
    close_marks();
    run("delpart %s 1; rm -f %s", volume->loop, path);
}

/* A bio-based driver: no request, no request queue. */
static void test_zram(void)
{
    char number[16];
    if (!run_line("cat /sys/class/zram-control/hot_add 2>/dev/null", number, sizeof(number))) {
        skip("no zram");
        return;
    }
    char path[64];
    snprintf(path, sizeof(path), "/dev/zram%s", number);
    run("echo 64M >/sys/block/zram%s/disksize; [ -e %s ] || mknod %s b $(tr : ' ' "
        "</sys/block/zram%s/dev)",
        number, path, path, number);
    test_writes(path);
    run("echo %s >/sys/class/zram-control/hot_remove; rm -f %s", number, path);
}

/* --- kept ------------------------------------------------------------------------------------- */

static int find_marks(const char *name, const char *path, uint64_t len, uint32_t chunk_size)
{
    struct marks_place place = {.len = len};
    struct device_identity identity;
    if (device_identify(path, &identity, &err) < 0 ||
        !sysfs_place(&identity, &place.disk_major, &place.disk_minor, &place.offset))
        abort();
    return marks_find(name, &place, chunk_size, &marks, &err);
}

/* The tracker outlives who started it; in a namespace of our own, with which it ends. */
static void test_kept(const char *path)
{
    static const char name[] = "0123456789abcdef0123456789abcdef";
    char first[MARKS_INSTANCE_LEN], again[MARKS_INSTANCE_LEN];
    if (unshare(CLONE_NEWNS) < 0 || mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("tmpfs", "/sys/fs/bpf", "tmpfs", 0, NULL) < 0)
        abort();
    is_good(open_marks(path, 0, 64 * MIB), &err, "%s is watched", path);
    is_err(marks_keep(marks, name, &err), &err, ERR_REFUSED, "no BPF file system is mounted",
           "without a BPF file system it is not kept");
    if (mount("bpf", "/sys/fs/bpf", "bpf", 0, NULL) < 0)
        abort();
    is_good(marks_keep(marks, name, &err), &err, "with one it is");
    is_good(marks_instance(marks, first, &err), &err, "it has a name");
    write_at(3 * CHUNK, 4096);
    marks_close(marks);
    write_at(7 * CHUNK, 4096);
    is_good(find_marks(name, path, 64 * MIB, CHUNK), &err, "it is found again");
    is_str(taken(), "3+1 7+1", "with what was written while nobody had it open");
    is_u64(counters().written_sectors, 2 * 4096 / SECTOR, "and counted");
    is_good(marks_instance(marks, again, &err), &err, "it has the same name");
    is_str(again, first, "as before");
    marks_close(marks);
    marks = NULL;
    is_err(find_marks(name, path, 64 * MIB, 2 * CHUNK), &err, ERR_REFUSED, "something else",
           "for other chunks it is not taken");
    is_err(find_marks(name, path, 32 * MIB, CHUNK), &err, ERR_REFUSED, "something else",
           "nor for another place");
    is_err(find_marks("another", path, 64 * MIB, CHUNK), &err, ERR_MISSING, "gone",
           "another one was never kept");
    close(fd);
    is_good(open_marks(path, 0, 64 * MIB), &err, "a new one");
    is_good(marks_keep(marks, name, &err), &err, "takes the place of the old one");
    is_good(marks_instance(marks, again, &err), &err, "it has a name of its own");
    ok(strcmp(first, again) != 0, "%s is not %s", again, first);
    close_marks();
    marks_forget(name);
    is_err(find_marks(name, path, 64 * MIB, CHUNK), &err, ERR_MISSING, "gone", "forgotten");
}

/* --- why there is nothing to count from ------------------------------------------------------- */

/* One snapshot's part of it, up to the record; why it reads everything. */
static const char *tracked(struct track *track, const char *parent, const char *path)
{
    struct marks_place place = {.len = 64 * MIB};
    *track = (struct track){.wanted = true, .name = "00000000000000000000000000000001"};
    snprintf(track->parent, sizeof(track->parent), "%s", parent);
    snprintf(track->state_path, sizeof(track->state_path), "%s/track", fixture_dir);
    marks = NULL;
    if (device_identify(path, &device, &err) < 0 ||
        !sysfs_place(&device, &place.disk_major, &place.disk_minor, &place.offset) ||
        track_attach(track, &device, &place, CHUNK, &marks, &err) < 0)
        printf("# %s\n", err.text);
    marks_close(marks);
    return track->why;
}

/* A device that is not mounted is never tracked: the next snapshot says why, and so it does when
 * this one has given up. */
static void test_lost(const char *path)
{
    struct track track;
    is_str(tracked(&track, "", path), "there is no snapshot to compare with", "the first");
    ok(!track_counts(&track), "nothing is taken from a parent");
    track_commit(&track, "a");
    is_str(tracked(&track, "a", path),
           "the marks were not kept after the parent: sysfs does not say whether it stayed mounted",
           "the next knows why");
    track_give_up(&track, "a reason");
    track_commit(&track, "b");
    is_str(tracked(&track, "b", path), "the marks were not kept after the parent: a reason",
           "and why that one gave up");
    is_str(tracked(&track, "b", path), "the snapshot before this one did not end well",
           "one that failed and had nothing to give back");
    ok(!track_drop(&track), "no tracker was left");
    is_str(tracked(&track, "b", path), "it was not tracked until now", "nothing is known any more");
}

/* One variable of a test alone damages nothing. */
static void test_lossy(const char *path)
{
    setenv("TIDEMARK_TEST_MARKS_DROP", "1", 1);
    is_good(open_marks(path, 0, 64 * MIB), &err, "asked to lose marks, without evidence");
    write_at(3 * CHUNK, 4096);
    is_str(taken(), "3+1", "none is lost");
    ok(!marks_are_lossy(marks), "and it does not say so");
    close_marks();
    setenv("TIDEMARK_TEST_PRECOPY_KEEP", fixture_dir, 1);
    is_good(open_marks(path, 0, 64 * MIB), &err, "asked to lose marks, with evidence");
    write_at(3 * CHUNK, 4096);
    is_str(taken(), "", "all are lost");
    ok(marks_are_lossy(marks), "and it says so");
    close_marks();
    unsetenv("TIDEMARK_TEST_MARKS_DROP");
    unsetenv("TIDEMARK_TEST_PRECOPY_KEEP");
}

/* The same chunks at every barrier take no more memory than once. */
static void test_since(const char *path)
{
    enum { BARRIERS = 200, RANGES = 1024 };
    struct track track = {.wanted = true, .unbroken = true};
    struct extent_list odd = {0}, got = {0};
    int rc = open_marks(path, 0, 64 * MIB);
    for (uint64_t i = 0; rc == 0 && i < RANGES; i++)
        rc = extent_list_add(&odd, (2 * i + 1) * CHUNK, CHUNK, &err);
    for (int i = 0; rc == 0 && i < BARRIERS; i++) {
        marks_return(marks, &odd);
        got.count = 0;
        rc = track_take(&track, marks, &got, &err);
    }
    is_good(rc, &err, "every second chunk is taken, %d times", BARRIERS);
    is_u64(got.count, RANGES, "all are there");
    ok(track.since.capacity * sizeof(struct extent) <= MIB, "and remembered in %zu ranges",
       track.since.count);
    extent_list_normalise(&track.since);
    is_u64(extent_list_bytes(&track.since), RANGES * CHUNK, "all of them");
    extent_list_release(&odd);
    extent_list_release(&got);
    track_release(&track);
    close_marks();
}

/* --- compared with the kernel's --------------------------------------------------------------- */

static struct watch_result compare(const struct track_sums *base, uint64_t written_seen,
                                   uint64_t written, uint64_t discarded_seen, uint64_t discarded)
{
    const struct track_sums now = {
        .seen = {.written_sectors = base->seen.written_sectors + written_seen,
                 .discarded_sectors = base->seen.discarded_sectors + discarded_seen},
        .counted = {.written_sectors = base->counted.written_sectors + written,
                    .discarded_sectors = base->counted.discarded_sectors + discarded,
                    .writes_in_flight = 1}};
    struct watch_result result = {0};
    is_good(capture_watch_compare(base, &now, &result, &err), &err, "%d seen, %d counted",
            (int)written_seen, (int)written);
    return result;
}

/* What the kernel's counters and ours say of each other. */
static void test_counters(void)
{
    const struct track_sums base = {
        .seen = {.written_sectors = 5000, .discarded_sectors = 70},
        .counted = {.written_sectors = 123456, .discarded_sectors = 999}};
    struct watch_result result = compare(&base, 64, 64, 0, 0);
    ok(result.unfinished == 0 && !result.stopped, "every write has ended");
    ok(compare(&base, 64, 56, 0, 0).unfinished == 8, "a write that was queued before has not");
    result = compare(&base, 64, 0, 0, 0);
    ok(result.unfinished == 64 && result.stopped, "none is counted any more");
    result = compare(&base, 64, 64, 128, 0);
    ok(result.unfinished == 0 && result.discards_unfinished && !result.discards_unseen,
       "a discard may go on");
    result = compare(&base, 64, 64, 0, 128);
    ok(result.discards_unseen, "one that was queued before the start is no reason to refuse");
    struct track_sums now = base;
    now.counted.written_sectors += 8;
    is_err(capture_watch_compare(&base, &now, &result, &err), &err, ERR_REFUSED,
           "writes went unseen: the kernel counted 8 sectors written, eBPF saw 0",
           "a write that was not seen is one");
}

/* --- what can be missing ---------------------------------------------------------------------- */

static int in_child(void (*take_away)(void))
{
    pid_t pid = fork();
    if (pid == 0) {
        struct marks_place place = {.disk_major = 7, .len = MIB};
        struct marks *none;
        take_away();
        int rc = marks_open(&place, CHUNK, &none, &err);
        printf("# %s; %s\n", err.text, err.hint);
        fflush(stdout);
        _exit(rc != -ERR_REFUSED || !strstr(err.hint, "freeze, command") ? 1
              : strstr(err.text, "CAP_BPF")                              ? 2
              : strstr(err.text, "has no BTF")                           ? 3
              : strstr(err.text, "no tracepoint")                        ? 4
                                                                         : 5);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return WEXITSTATUS(status);
}

static void drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {0};
    if (syscall(SYS_capset, &header, none) < 0)
        abort();
}

static void hide_btf(void)
{
    if (unshare(CLONE_NEWNS) < 0 || mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("tmpfs", "/sys/kernel/btf", "tmpfs", 0, NULL) < 0)
        abort();
}

static void hide_tracepoint(void)
{
    if (unshare(CLONE_NEWNS) < 0 || mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        run("LC_ALL=C sed s/btf_trace_block_bio_queue/btf_trace_block_bio_weird/ "
            "/sys/kernel/btf/vmlinux >'%s/btf' && mount --bind '%s/btf' /sys/kernel/btf/vmlinux",
            fixture_dir, fixture_dir) != 0)
        abort();
}

static void test_missing(void)
{
    is_u64(in_child(drop_capabilities), 2, "without capabilities the error names them");
    is_u64(in_child(hide_btf), 3, "without BTF it names that");
    is_u64(in_child(hide_tracepoint), 4, "without the tracepoint, that");
}

int main(void)
{
    const char *why;
    test_counters();
    if (!fixture_start(&why)) {
        skip(why);
        return done();
    }
    if (access("/sys/kernel/btf/vmlinux", R_OK) < 0) {
        skip("this kernel has no BTF");
        return done();
    }
    struct fixture_volume *volume = fixture_add(64 * MIB, "");
    test_writes(volume->loop);
    test_discard(volume->loop);
    test_range(volume->loop);
    test_partition(fixture_add(64 * MIB, ""));
    test_zram();
    test_lossy(volume->loop);
    test_since(volume->loop);
    test_missing();
    test_kept(volume->loop);
    test_lost(volume->loop);
    return done();
}
