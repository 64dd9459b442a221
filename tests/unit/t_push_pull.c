/* push and pull through a directory store: the same bytes come back, whatever the lanes, the chunk
 * size and the sink; an incremental stores what changed; damaged objects are named. */
#include "tests/lib/pipes.h"

enum { SIZE = 200 * 1024 * 1024 + 512 * 7 }; /* not whole chunks, not whole pages */

static const struct extent used[] = {
    {0, 9 << 20},
    {(10 << 20) + 4096, 12288}, /* small ones, not aligned to chunks */
    {(10 << 20) + 40960, 4096},
    {(20 << 20) + 8192, 30 << 20},
    {(64 << 20) - 8192, 16384}, /* over a region's edge */
    {130 << 20, 24 << 20},
    {SIZE - 100 * 1024, 100 * 1024},
};

/* A disk filesystem, and one without ZERO_RANGE (and without huge files). */
static const char *const bases[] = {"/var/tmp", "/dev/shm", "/dev/shm"};

/* What a restore must give: the extents' chunks, zeros elsewhere. */
static int make_expected(struct fixture *fixture, int image)
{
    int fd = image_create(fixture, "expected", SIZE, NULL, 0);
    uint32_t chunk_size = fixture->repo.chunk_size;
    static uint8_t chunk[65536];
    for (size_t i = 0; i < ARRAY_LEN(used); i++) {
        uint64_t first = used[i].offset / chunk_size;
        uint64_t last = (used[i].offset + used[i].len - 1) / chunk_size;
        for (uint64_t at = first; at <= last; at++) {
            size_t len = (size_t)min_u64(chunk_size, SIZE - at * chunk_size);
            if (pread(image, chunk, len, (off_t)(at * chunk_size)) != (ssize_t)len ||
                pwrite(fd, chunk, len, (off_t)(at * chunk_size)) != (ssize_t)len)
                abort();
        }
    }
    return fd;
}

/* A target with a stranger's bytes, of the volume's size. */
static int make_target(struct fixture *fixture, const char *name)
{
    int fd = image_create(fixture, name, SIZE, NULL, 0);
    static uint8_t junk[1 << 20];
    memset(junk, 0xee, sizeof(junk));
    for (uint64_t at = 0; at < SIZE; at += sizeof(junk)) {
        size_t len = (size_t)min_u64(sizeof(junk), SIZE - at);
        if (pwrite(fd, junk, len, (off_t)at) != (ssize_t)len)
            abort();
    }
    if (fsync(fd) < 0)
        abort();
    (void)close(fd);
    return open_direct(fixture, name, O_RDWR);
}

/* Through the page cache: any place, any length. */
static int open_plain(const struct fixture *fixture, const char *name)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", fixture->dir, name);
    return open(path, O_RDWR | O_CLOEXEC);
}

static void is_restored(const struct fixture *fixture, const struct pull *pull, const char *name,
                        int expected, const char *what)
{
    close_fd int plain = open_plain(fixture, name);
    ok(pwrite(plain, pull->head, PULL_HEAD_LEN, 0) == PULL_HEAD_LEN, "commit the head");
    ok(same_bytes(expected, pull->fd, SIZE), "%s", what);
}

static const struct lane_options two_lanes = {.lane_count = 2};

/* A snapshot, and its pull onto a stranger's bytes, which may be made twice. */
struct restore {
    struct shot shot;
    struct io_progress progress;
    struct pull pull;
    int target, plain; /* the same file */
};

static void restore_again(struct fixture *fixture, struct restore *restore)
{
    restore->progress = (struct io_progress){0};
    restore->pull =
        pull_of(fixture, &restore->shot, restore->target, &two_lanes, &restore->progress);
}

static void restore_open(struct fixture *fixture, int direct, struct restore *ret, struct err *err)
{
    is_good(
        shot_take(fixture, direct, SIZE, used, ARRAY_LEN(used), NULL, &two_lanes, &ret->shot, err),
        err, "push");
    ret->target = make_target(fixture, "target");
    ret->plain = open_plain(fixture, "target");
    restore_again(fixture, ret);
}

static void restore_close(struct restore *restore)
{
    (void)close(restore->target);
    (void)close(restore->plain);
    shot_close(&restore->shot);
}

/* Between the two. */
static void spoil(const struct restore *restore, const off_t *places, size_t count, size_t len)
{
    static uint8_t junk[1 << 20];
    memset(junk, 0xdd, sizeof(junk));
    for (size_t i = 0; i < count; i++)
        ok(pwrite(restore->plain, junk, len, places[i]) == (ssize_t)len, "damage a place");
    ok(fsync(restore->plain) == 0, "flush");
}

static bool head_is_junk(int fd)
{
    static uint8_t head[4096] __attribute__((aligned(4096)));
    if (pread(fd, head, sizeof(head), 0) != (ssize_t)sizeof(head))
        return false;
    for (size_t i = 0; i < sizeof(head); i++)
        if (head[i] != 0xee)
            return false;
    return true;
}

static void test_lanes(struct fixture *fixture, int direct, int expected, struct err *err)
{
    struct shot first = {.table = {.fd = -1}};
    for (unsigned lanes = 1; lanes <= 4; lanes *= 2) {
        struct lane_options options = {.lane_count = lanes, .memory_max = 512 * MIB};
        struct shot shot;
        is_good(shot_take(fixture, direct, SIZE, used, ARRAY_LEN(used), NULL, &options, &shot, err),
                err, "push with %u lanes", lanes);
        is_u64(shot.progress.bytes_done, shot.progress.bytes_total, "all bytes are counted");
        printf("# %s\n", shot.push.memory_sum);
        if (lanes == 1) {
            first = shot;
        } else {
            uint64_t different = 0;
            for (uint64_t i = 0; i < shot.table.chunk_count; i++) {
                const struct fmt_entry *a = &first.table.entries[i], *b = &shot.table.entries[i];
                different += memcmp(a->digest, b->digest, 16) != 0 || a->len_flags != b->len_flags;
            }
            is_u64(different, 0, "digest, length and flags of every chunk with %u lanes", lanes);
        }
        struct io_progress progress = {0};
        close_fd int target = make_target(fixture, "target");
        struct pull pull = pull_of(fixture, &shot, target, &options, &progress);
        is_good(pull_run(&pull, err), err, "pull with %u lanes", lanes);
        is_u64(progress.bytes_done, SIZE, "all bytes are counted");
        ok(head_is_junk(target), "the head is not written");
        is_restored(fixture, &pull, "target", expected, "the bytes are right");
        progress = (struct io_progress){0};
        pull = pull_of(fixture, &shot, -1, &options, &progress);
        is_good(pull_run(&pull, err), err, "null sink with %u lanes", lanes);
        is_u64(progress.bytes_done, SIZE, "all bytes are counted");
        if (lanes > 1)
            shot_close(&shot);
    }
    shot_close(&first);
}

static void test_policies(struct fixture *fixture, int direct, int expected, struct err *err)
{
    struct shot shot;
    is_good(shot_take(fixture, direct, SIZE, used, ARRAY_LEN(used), NULL, &two_lanes, &shot, err),
            err, "push");
    struct io_progress progress = {0};

    /* pg_control-like: two withheld pieces, one of them in a free chunk. */
    static const struct extent withheld[] = {{(21 << 20) + 512, 8192}, {(100 << 20), 8192}};
    int target = make_target(fixture, "target");
    struct pull pull = pull_of(fixture, &shot, target, &two_lanes, &progress);
    pull.withheld = withheld;
    pull.withheld_count = ARRAY_LEN(withheld);
    pull.free_policy = PULL_FREE_LEAVE;
    pull.request_max = 128 << 10;
    is_good(pull_run(&pull, err), err, "pull with withheld extents, free space left alone");
    static uint8_t buf[1 << 20] __attribute__((aligned(4096))), want[1 << 20];
    ok(pread(target, buf, 65536, 100 << 20) == 65536, "read free space");
    ok(buf[0] == 0 && buf[8191] == 0, "withheld bytes in free space are zeros");
    ok(pread(target, buf, 65536, 110 << 20) == 65536 && buf[0] == 0xee && buf[65535] == 0xee,
       "other free space is left alone");
    ok(pread(target, buf, 65536, 21 << 20) == 65536 &&
           pread(expected, want, 65536, 21 << 20) == 65536,
       "read around the withheld extent");
    memset(want + 512, 0, 8192);
    ok(memcmp(buf, want, 65536) == 0, "the withheld extent is zeros, its neighbours are right");
    (void)close(target);

    target = image_create(fixture, "zero", SIZE, NULL, 0);
    (void)close(target);
    target = open_direct(fixture, "zero", O_RDWR);
    pull = pull_of(fixture, &shot, target, &two_lanes, &progress);
    pull.free_policy = PULL_FREE_KNOWN_ZERO;
    is_good(pull_run(&pull, err), err, "pull onto zeros");
    is_restored(fixture, &pull, "zero", expected, "the bytes are right");
    struct stat st;
    ok(fstat(target, &st) == 0 && (uint64_t)st.st_blocks * 512 < 100 * MIB, "and it stays sparse");
    (void)close(target);

    uint8_t cut[100000], plain[100000];
    is_good(pull_read(fixture->store, &fixture->repo, &shot.manifest, (20 << 20) + 5000, cut,
                      sizeof(cut), err),
            err, "pull_read");
    ok(pread(expected, plain, sizeof(plain), (20 << 20) + 5000) == sizeof(plain) &&
           memcmp(plain, cut, sizeof(cut)) == 0,
       "gives the same bytes");
    is_good(pull_read(fixture->store, &fixture->repo, &shot.manifest, SIZE - 100, cut, 100, err),
            err, "pull_read of the last bytes");
    is_err(pull_read(fixture->store, &fixture->repo, &shot.manifest, SIZE - 100, cut, 101, err),
           err, ERR_INTERNAL, "outside", "pull_read over the end");
    shot_close(&shot);
}

static int keep_bitmap(void *ctx, const uint8_t *bitmap, size_t len, struct err *err)
{
    (void)err;
    memcpy(ctx, bitmap, len);
    return 0;
}

static void test_resume(struct fixture *fixture, int direct, int expected, struct err *err)
{
    static const off_t places[] = {25 << 20, 120 << 20}; /* data, free space */
    static const uint8_t done_before[] = {0x7};
    uint8_t bitmap[8] = {0};
    struct restore restore;
    restore_open(fixture, direct, &restore, err);
    struct pull *pull = &restore.pull;
    pull->acknowledge = keep_bitmap;
    pull->acknowledge_ctx = bitmap;
    is_good(pull_run(pull, err), err, "pull");
    is_u64(bitmap[0], 0xf, "all four regions are acknowledged");
    uint64_t whole = restore.progress.bytes_stored;
    /* Half of what was acknowledged is lost again. */
    spoil(&restore, places, ARRAY_LEN(places), 1 << 20);
    restore_again(fixture, &restore);
    pull->done_before = done_before;
    pull->acknowledge = keep_bitmap;
    pull->acknowledge_ctx = bitmap;
    is_good(pull_run(pull, err), err, "resume");
    is_u64(restore.progress.bytes_done, SIZE, "all bytes are counted");
    is_restored(fixture, pull, "target", expected, "the bytes are right");
    ok(restore.progress.bytes_stored < whole / 2, "less than half was fetched again (%llu of %llu)",
       (unsigned long long)restore.progress.bytes_stored, (unsigned long long)whole);
    restore_close(&restore);
}

/* restore --delta: onto a stranger's bytes, then onto a state that differs a little. */
static void test_compare(struct fixture *fixture, int direct, int expected, struct err *err)
{
    static const off_t places[] = {25 << 20, 120 << 20, (130 << 20) + 4096, SIZE - 65536};
    static const struct extent withheld[] = {{(21 << 20) + 512, 8192}};
    struct restore restore;
    restore_open(fixture, direct, &restore, err);
    struct pull *pull = &restore.pull;
    pull->compare = true;
    is_good(pull_run(pull, err), err, "compare with a stranger's bytes");
    is_u64(restore.progress.bytes_same, 0, "nothing of them was right");
    is_restored(fixture, pull, "target", expected, "the bytes are right");
    uint64_t whole = restore.progress.bytes_stored;
    spoil(&restore, places, ARRAY_LEN(places), 65536);
    restore_again(fixture, &restore);
    pull->compare = true;
    pull->withheld = withheld;
    pull->withheld_count = ARRAY_LEN(withheld);
    is_good(pull_run(pull, err), err, "compare again");
    is_u64(restore.progress.bytes_done, SIZE, "all bytes are counted");
    ok(restore.progress.bytes_stored < whole / 10, "little was fetched (%llu of %llu)",
       (unsigned long long)restore.progress.bytes_stored, (unsigned long long)whole);
    ok(restore.progress.bytes_same > SIZE - 20 * 65536, "the rest was right (%llu)",
       (unsigned long long)restore.progress.bytes_same);
    static const uint8_t zeros[8192];
    static uint8_t got[8192], want[8192];
    ok(pread(restore.plain, got, sizeof(got), (21 << 20) + 512) == sizeof(got) &&
           memcmp(got, zeros, sizeof(got)) == 0,
       "what is withheld is zeros");
    ok(pread(expected, want, sizeof(want), (21 << 20) + 512) == sizeof(want) &&
           pwrite(restore.plain, want, sizeof(want), (21 << 20) + 512) == sizeof(want) &&
           fsync(restore.plain) == 0,
       "write it as its owner does");
    ok(same_bytes(expected, restore.target, SIZE), "the bytes are right");
    restore_close(&restore);
}

static void test_incremental(struct fixture *fixture, int image, int direct, struct err *err)
{
    struct shot full, half, next;
    is_good(shot_take(fixture, direct, SIZE, used, ARRAY_LEN(used), NULL, &two_lanes, &full, err),
            err, "full");
    is_good(shot_take(fixture, direct, SIZE, used, ARRAY_LEN(used), &full, &two_lanes, &half, err),
            err, "incremental without a change");
    is_u64(half.progress.chunks_stored, 0, "stores no chunk");
    is_u64(half.result.table_bytes, 0, "and no table");
    uint64_t changed = 0;
    uint8_t page[8192];
    for (uint64_t at = 21 << 20; at < 49 << 20; at += 7 << 20, changed++) {
        for (size_t i = 0; i < sizeof(page); i++)
            page[i] = (uint8_t)next_random(&fixture->seed);
        if (pwrite(image, page, sizeof(page), (off_t)at) != sizeof(page))
            abort();
    }
    if (fsync(image) < 0)
        abort();
    is_good(shot_open(fixture, direct, SIZE, &half, &two_lanes, &next, err), err, "incremental");
    is_good(push_run(&next.push, used, ARRAY_LEN(used), err), err, "first run");
    is_u64(next.progress.chunks_stored, changed, "stores only the chunks that changed");
    memset(page, 0x5a, sizeof(page));
    ok(pwrite(image, page, sizeof(page), 21 << 20) == sizeof(page) && fsync(image) == 0,
       "one chunk changes again while the snapshot is taken");
    is_good(push_run(&next.push, used + 3, 1, err), err, "second run");
    is_u64(next.progress.chunks_stored, changed + 1, "stores only that");
    is_good(shot_seal(fixture, &half, &next, err), err, "seal");
    ok(next.result.table_bytes < 160 * KIB, "one region table is new");
    uint64_t live = 0;
    for (uint32_t i = 0; i < next.manifest.pack_count; i++) {
        ok(next.manifest.packs[i].live_len < next.manifest.packs[i].stored_len,
           "live bytes of pack %u are fewer than stored ones", i);
        live += next.manifest.packs[i].live_len;
    }
    ok(live > 0, "live bytes are counted");
    close_fd int expected = make_expected(fixture, image);
    close_fd int target = make_target(fixture, "target");
    struct io_progress progress = {0};
    struct pull pull = pull_of(fixture, &next, target, &two_lanes, &progress);
    is_good(pull_run(&pull, err), err, "pull the incremental");
    is_restored(fixture, &pull, "target", expected, "the bytes are right");
    shot_close(&full);
    shot_close(&half);
    shot_close(&next);
}

/* Chunks that are known not to have changed are not read: a change that is kept from push_keep()
 * does not get into the snapshot. */
static void test_keep(struct fixture *fixture, int image, int direct, struct err *err)
{
    struct shot full, next;
    /* The parent lacks one used extent, its second half of another, and looked at no free block. */
    struct extent first[ARRAY_LEN(used) - 1];
    memcpy(first, used, sizeof(first));
    first[3].len /= 2;
    struct extent_list wanted = {0}, changed = {0}, read = {0};
    uint64_t kept = 0, chunk_size = fixture->repo.chunk_size;
    is_good(shot_take(fixture, direct, SIZE, first, ARRAY_LEN(first), NULL, &two_lanes, &full, err),
            err, "full");
    for (size_t i = 0; i < ARRAY_LEN(used); i++)
        if (extent_list_add(&wanted, used[i].offset, used[i].len, err) < 0)
            abort();
    if (extent_list_add(&changed, 22 << 20, 3 * chunk_size, err) < 0 ||
        extent_list_add(&changed, 100 << 20, 8 * chunk_size, err) < 0)
        abort();
    static uint8_t page[8192];
    memset(page, 0x77, sizeof(page));
    ok(pwrite(image, page, sizeof(page), 22 << 20) == sizeof(page) && fsync(image) == 0,
       "a chunk that is marked changes");
    close_fd int expected = make_expected(fixture, image);
    ok(pwrite(image, page, sizeof(page), 1 << 20) == sizeof(page) && fsync(image) == 0,
       "and one that is not");
    is_good(shot_open(fixture, direct, SIZE, &full, &two_lanes, &next, err), err, "incremental");
    is_good(push_keep(&next.push, &wanted, &changed, &read, &kept, err), err, "keep");
    ok(!extent_list_overlaps(&read, 0, 20 << 20) && extent_list_overlaps(&read, 22 << 20, 1) &&
           !extent_list_overlaps(&read, (22 << 20) + 3 * chunk_size, 1 << 20),
       "of what is used and known, only marked chunks are read");
    ok(extent_list_overlaps(&read, 49 << 20, 1) && extent_list_overlaps(&read, SIZE - 1, 1) &&
           !extent_list_overlaps(&read, 100 << 20, 1 << 20),
       "what the parent did not have is read, what is not used is not");
    uint64_t chunks = 0, next_chunk = 0;
    for (size_t i = 0; i < wanted.count; i++) {
        uint64_t from = max_u64(wanted.items[i].offset / chunk_size, next_chunk);
        next_chunk = (wanted.items[i].offset + wanted.items[i].len - 1) / chunk_size + 1;
        chunks += next_chunk - from;
    }
    is_u64(kept + div_round_up(extent_list_bytes(&read), chunk_size), chunks,
           "every chunk is kept or read, none twice");
    is_good(push_run(&next.push, read.items, read.count, err), err, "run");
    is_u64(next.progress.bytes_done, extent_list_bytes(&read), "so much is read");
    is_good(shot_seal(fixture, &full, &next, err), err, "seal");
    close_fd int target = make_target(fixture, "target");
    struct io_progress progress = {0};
    struct pull pull = pull_of(fixture, &next, target, &two_lanes, &progress);
    is_good(pull_run(&pull, err), err, "pull");
    is_restored(fixture, &pull, "target", expected,
                "the bytes are those of before the hidden change");
    extent_list_release(&wanted);
    extent_list_release(&changed);
    extent_list_release(&read);
    shot_close(&full);
    shot_close(&next);
}

/* --- damage ------------------------------------------------------------------------------- */

static char victim[STORE_NAME_MAX + 1];

static int pick_first(void *ctx, const char *name, uint64_t size, struct err *err)
{
    (void)ctx, (void)size, (void)err;
    snprintf(victim, sizeof(victim), "%s", name);
    return 1;
}

static void damage(const struct fixture *fixture, const char *how)
{
    char command[1000];
    snprintf(command, sizeof(command), "cd %s/repo && V=%s && %s", fixture->dir, victim, how);
    if (system(command) != 0)
        printf("# failed: %s\n", command);
}

static void test_damage(int direct, struct fixture *fixture, struct err *err)
{
    static const struct {
        const char *prefix, *how, *text;
        enum err_code code;
    } cases[] = {
        {"pack/", "printf x | dd of=$V bs=1 seek=5000 conv=notrunc status=none", "chunk",
         ERR_CORRUPT},
        {"pack/", "printf x | dd of=$V bs=1 seek=20 conv=notrunc status=none", "pack", ERR_CORRUPT},
        {"pack/", "truncate -s -1 $V", "is cut", ERR_CORRUPT},
        {"pack/", "chmod u+w $V && printf x >>$V", "its header promises", ERR_CORRUPT},
        {"pack/", "rm -f $V", "does not exist", ERR_MISSING},
        {"table/", "printf x | dd of=$V bs=1 seek=5000 conv=notrunc status=none", "region",
         ERR_CORRUPT},
        {"table/", "printf x | dd of=$V bs=1 seek=20 conv=notrunc status=none", "table",
         ERR_CORRUPT},
        {"table/", "truncate -s -1 $V", "is cut", ERR_CORRUPT},
        {"table/", "chmod u+w $V && printf x >>$V", "its header promises", ERR_CORRUPT},
        {"table/", "rm -f $V", "does not exist", ERR_MISSING},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct shot shot;
        is_good(
            shot_take(fixture, direct, SIZE, used, ARRAY_LEN(used), NULL, &two_lanes, &shot, err),
            err, "push");
        struct io_progress progress = {0};
        struct pull pull = pull_of(fixture, &shot, -1, &two_lanes, &progress);
        is_good(pull_run(&pull, err), err, "the intact snapshot is good");
        char prefix[100], hex[ID_TEXT_LEN], volume[ID_TEXT_LEN];
        id_to_text(shot.table.volume, volume);
        id_to_text(shot.table.snapshot, hex);
        snprintf(prefix, sizeof(prefix), "%s%s/%s/", cases[i].prefix, volume, hex);
        is_u64(store_list(fixture->store, prefix, pick_first, NULL, err), 1, "find an object");
        damage(fixture, cases[i].how);
        pull = pull_of(fixture, &shot, -1, &two_lanes, &progress);
        int rc = pull_run(&pull, err);
        is_err(rc, err, cases[i].code, cases[i].text, "verify after: %s", cases[i].how);
        ok(strstr(err->text, victim) != NULL, "the object is named: %s", err->text);
        close_fd int target = make_target(fixture, "target");
        pull = pull_of(fixture, &shot, target, &two_lanes, &progress);
        rc = pull_run(&pull, err);
        if (strstr(cases[i].how, ">>") != NULL)
            is_good(rc, err, "a restore needs nothing behind the end of an object");
        else if (strstr(cases[i].how, "seek=20 ") == NULL || strcmp(cases[i].prefix, "pack/") == 0)
            is_err(rc, err, cases[i].code, cases[i].text, "restore after: %s", cases[i].how);
        shot_close(&shot);
    }
}

static void test_limits(struct fixture *fixture, int direct, struct err *err)
{
    struct lane_options options = {.lane_count = 4, .memory_max = 30 * MIB};
    struct shot shot;
    is_err(shot_take(fixture, direct, SIZE, used, ARRAY_LEN(used), NULL, &options, &shot, err), err,
           ERR_CONFIG, "1 lanes x (8 read buffers x 1024 KiB + 2 pack buffers x 16384 KiB",
           "memory_max too small for push: %s", err->text);
    shot_close(&shot);
    options.memory_max = 40 * MIB;
    is_good(shot_take(fixture, direct, SIZE, used, ARRAY_LEN(used), NULL, &options, &shot, err),
            err, "the least memory is enough");
    printf("# %s\n", shot.push.memory_sum);
    struct io_progress progress = {0};
    options.memory_max = 10 * MIB;
    struct pull pull = pull_of(fixture, &shot, -1, &options, &progress);
    is_err(pull_run(&pull, err), err, ERR_CONFIG, "memory_max", "memory_max too small for pull");
    options.memory_max = 34 * MIB;
    pull = pull_of(fixture, &shot, -1, &options, &progress);
    is_good(pull_run(&pull, err), err, "the least memory is enough");
    printf("# %s\n", pull.memory_sum);
    uint32_t pack_count = shot.manifest.pack_count--;
    is_err(pull_run(&pull, err), err, ERR_CORRUPT, "does not list",
           "a pack is missing in the list");
    shot.manifest.pack_count = pack_count;
    progress.cancel = true;
    is_err(pull_run(&pull, err), err, ERR_CANCELLED, "cancelled", "a cancelled pull");
    shot.progress.cancel = true;
    is_err(push_run(&shot.push, used, ARRAY_LEN(used), err), err, ERR_CANCELLED, "cancelled",
           "a cancelled push");
    shot_close(&shot);
}

/* --- a real block device: a loop over a file of its own --------------------------------------- */

static bool loop_attach(const struct fixture *fixture, const char *name, char path[64])
{
    char command[256];
    snprintf(command, sizeof(command),
             "losetup -f --show --direct-io=on '%s/%s' 2>/dev/null || "
             "losetup -f --show '%s/%s' 2>/dev/null",
             fixture->dir, name, fixture->dir, name);
    FILE *file = popen(command, "r");
    bool good = file != NULL && fgets(path, 64, file) != NULL;
    if (file != NULL && pclose(file) != 0)
        good = false;
    path[strcspn(path, "\n")] = '\0';
    return good;
}

static void loop_detach(const char *path)
{
    char command[128];
    snprintf(command, sizeof(command), "losetup -d %s", path);
    if (system(command) != 0)
        printf("# cannot detach %s\n", path);
}

/* Source and target are loop devices; the target holds a stranger's bytes. Compares through the
 * file below, which also shows what was released. */
static void test_loop(const char *where, struct err *err)
{
    static const struct extent some[] = {{0, 2 << 20}, {33 << 20, 4096}, {70 << 20, 9 << 20}};
    const uint64_t size = 96 << 20;
    struct fixture fixture;
    char source[64], target[64];
    is_good(fixture_open(&fixture, where, 32 << 10, 77, err), err, "repository in %s", where);
    close_fd int image = image_create(&fixture, "image", size, some, ARRAY_LEN(some));
    close_fd int below = image_create(&fixture, "below", size, NULL, 0);
    static uint8_t junk[1 << 20];
    memset(junk, 0xee, sizeof(junk));
    for (uint64_t at = 0; at < size; at += sizeof(junk))
        if (pwrite(below, junk, sizeof(junk), (off_t)at) != sizeof(junk))
            abort();
    if (fsync(below) < 0 || !loop_attach(&fixture, "image", source)) {
        skip("no loop devices");
        fixture_close(&fixture);
        return;
    }
    if (!loop_attach(&fixture, "below", target)) {
        skip("no second loop device");
        loop_detach(source);
        fixture_close(&fixture);
        return;
    }
    int from = open(source, O_RDONLY | O_DIRECT), to = open(target, O_RDWR | O_DIRECT);
    struct shot shot;
    is_good(shot_take(&fixture, from, size, some, ARRAY_LEN(some), NULL, &two_lanes, &shot, err),
            err, "push from a loop device");
    struct io_progress progress = {0};
    struct pull pull = pull_of(&fixture, &shot, to, &two_lanes, &progress);
    pull.sink = PULL_TO_DEVICE;
    is_good(pull_run(&pull, err), err, "pull to a loop device");
    is_u64(progress.bytes_done, size, "all bytes are counted");
    ok(head_is_junk(below), "the head is not written");
    (void)close(from);
    (void)close(to);
    loop_detach(target);
    loop_detach(source);
    ok(pwrite(below, pull.head, PULL_HEAD_LEN, 0) == PULL_HEAD_LEN, "commit the head");
    ok(same_bytes(image, below, size), "the bytes are right");
    shot_close(&shot);
    fixture_close(&fixture);
}

int main(void)
{
    struct err err = {0};
    test_loop("/var/tmp", &err);
    test_loop("/dev/shm", &err);
    static const uint32_t chunk_sizes[] = {32 << 10, 16 << 10, 64 << 10};
    for (size_t i = 0; i < ARRAY_LEN(chunk_sizes); i++) {
        struct fixture fixture;
        uint64_t seed = 20261125 + i;
        printf("# chunk size %u, seed %llu\n", chunk_sizes[i], (unsigned long long)seed);
        is_good(fixture_open(&fixture, bases[i], chunk_sizes[i], seed, &err), &err, "repository");
        close_fd int image = image_create(&fixture, "image", SIZE, used, ARRAY_LEN(used));
        close_fd int direct = open_direct(&fixture, "image", O_RDONLY);
        close_fd int expected = make_expected(&fixture, image);
        test_lanes(&fixture, direct, expected, &err);
        if (i == 0) {
            test_policies(&fixture, direct, expected, &err);
            test_compare(&fixture, direct, expected, &err);
            test_resume(&fixture, direct, expected, &err);
            test_damage(direct, &fixture, &err);
            test_limits(&fixture, direct, &err);
        }
        test_incremental(&fixture, image, direct, &err);
        test_keep(&fixture, image, direct, &err);
        fixture_close(&fixture);
    }
    return done();
}
