/* io/gather on two files: what is read lies in the memory files at its places, and nothing else;
 * a deadline that has passed, a read that fails. */
/* check: build=asan,tsan timeout=60 */
#include "io/gather.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "tests/tap.h"

enum { SIZE = 8 << 20, BLOCK = 4096 };

static struct err err;
static struct gather *gather;

/* Every block holds its number and the file's. */
static int make_file(unsigned file)
{
    int fd = memfd_create("t_gather", MFD_CLOEXEC);
    uint32_t block[BLOCK / 4] = {0};
    for (unsigned i = 0; i < SIZE / BLOCK; i++) {
        block[0] = i + 1;
        block[1] = file;
        if (pwrite(fd, block, BLOCK, (off_t)i * BLOCK) != BLOCK)
            abort();
    }
    return fd;
}

static void add(struct extent_list *list, uint64_t block, uint64_t count)
{
    if (extent_list_add(list, block * BLOCK, count * BLOCK, &err) < 0)
        abort();
}

static bool holds(int fd, unsigned file, const struct extent_list *list)
{
    for (unsigned i = 0; i < SIZE / BLOCK; i++) {
        uint32_t block[BLOCK / 4];
        if (pread(fd, block, BLOCK, (off_t)i * BLOCK) != BLOCK)
            return false;
        bool wanted = extent_list_overlaps(list, (uint64_t)i * BLOCK, BLOCK);
        if (block[0] != (wanted ? i + 1 : 0) || block[1] != (wanted ? file : 0))
            return false;
    }
    return true;
}

static void test_read(const struct gather_source *sources, size_t count, const char *what)
{
    bool complete = false;
    is_good(gather_read(gather, sources, count, UINT64_MAX, &complete, &err), &err, "%s", what);
    ok(complete, "%s: all of it", what);
    for (size_t i = 0; i < count; i++) {
        int fd = -1;
        struct stat st;
        is_good(gather_to_memory_file(gather, i, SIZE, &fd, &err), &err, "%s: file %zu", what, i);
        ok(holds(fd, (unsigned)i + 1, sources[i].extents), "%s: has its extents alone", what);
        ok(fstat(fd, &st) == 0 &&
               (uint64_t)st.st_blocks * 512 == extent_list_bytes(sources[i].extents),
           "%s: and takes no more memory than they do", what);
        close(fd);
    }
}

int main(void)
{
    struct extent_list lists[3] = {0};
    struct gather_source sources[3];
    bool complete = true;
    add(&lists[0], 0, 1);
    add(&lists[0], 7, 3);
    add(&lists[0], 100, 600);
    add(&lists[0], SIZE / BLOCK - 1, 1);
    add(&lists[2], 5, 100);
    for (unsigned i = 0; i < 3; i++)
        sources[i] = (struct gather_source){
            .fd = make_file(i + 1), .request_max = i ? 65536 : 0, .extents = &lists[i]};
    is_good(gather_open(705 * BLOCK, &gather, &err), &err, "memory is taken");
    test_read(sources, 3, "three sources, one without extents");
    test_read(sources, 1, "and again, another number of them");
    is_good(gather_read(gather, sources, 3, 1, &complete, &err), &err, "a deadline in the past");
    ok(!complete, "is no error, but not complete");
    test_read(sources, 3, "after that, all of it");
    if (ftruncate(sources[2].fd, 10 * BLOCK) < 0)
        abort();
    is_err(gather_read(gather, sources, 3, UINT64_MAX, &complete, &err), &err, ERR_DEVICE,
           "read 65536 bytes at 20480: ", "a short device is an error");
    gather_close(gather);
    gather_close(NULL);
    for (unsigned i = 0; i < 3; i++) {
        close(sources[i].fd);
        extent_list_release(&lists[i]);
    }
    return done();
}
