/* check: timeout=300
 * push and pull with everything drawn from a seed: sizes, chunk sizes, lanes, memory, request
 * sizes, extents, generations of a volume that grows and shrinks, several runs a snapshot, targets
 * with a stranger's bytes, withheld extents, restores that are cut off and resumed. A model in
 * memory says what must come back.
 *
 *     t_pipes_random [SEED [ROUNDS]]
 */
#include "tests/lib/pipes.h"

enum { SIZE_MAX_MIB = 160, GENERATIONS = 3, EXTENTS_MAX = 24 };

static uint64_t seed;

static uint64_t below(uint64_t limit)
{
    return next_random(&seed) % limit;
}

static bool chance(unsigned percent)
{
    return below(100) < percent;
}

/* What each chunk of the image must give back. */
enum model { MODEL_FREE, MODEL_CAPTURED };

struct volume {
    uint64_t size;
    int image;      /* the source, buffered */
    int captured;   /* what the snapshot must hold, sparse; buffered */
    uint8_t *model; /* enum model a chunk, of the newest snapshot */
    uint64_t chunk_count;
};

static uint64_t random_size(void)
{
    uint64_t size = 1 + below(SIZE_MAX_MIB * MIB);
    if (chance(20))
        size = (1 + below(2)) * FMT_REGION_SIZE + (chance(50) ? below(3) * 512 : 0);
    if (chance(10))
        size = 4096 + below(8) * 512;
    return max_u64(align_up(size, 512), 4096);
}

static void random_extents(uint64_t size, struct extent_list *list, struct err *err)
{
    size_t count = 1 + below(EXTENTS_MAX);
    for (size_t i = 0; i < count; i++) {
        uint64_t offset = below(size);
        uint64_t len = 1 + below(chance(20) ? 12 * MIB : 100 * KIB);
        if (chance(70)) {
            offset = align_down(offset, 4096);
            len = align_up(len, 4096);
        }
        if (extent_list_add(list, offset, min_u64(len, size - offset), err) < 0)
            abort();
    }
    if (chance(50) && extent_list_add(list, 0, min_u64(size, 4096), err) < 0)
        abort();
    if (chance(50) && extent_list_add(list, size - 1, 1, err) < 0)
        abort();
    extent_list_normalise(list);
}

/* Writes pages into some of the image, inside and outside of the extents. */
static void random_writes(struct volume *volume, const struct extent_list *used)
{
    static uint8_t page[65536];
    for (size_t i = 0; i < used->count; i++) {
        const struct extent *extent = &used->items[i];
        uint64_t share = chance(30) ? extent->len : min_u64(extent->len, 300 * KIB);
        for (uint64_t at = 0; at < share; at += sizeof(page)) {
            size_t len = (size_t)min_u64(sizeof(page), share - at);
            if (chance(20))
                continue;
            fill_page(page, len, &seed);
            if (pwrite(volume->image, page, len, (off_t)(extent->offset + at)) != (ssize_t)len)
                abort();
        }
    }
    if (fsync(volume->image) < 0)
        abort();
}

/* The chunks that touch the extents, as they are now. */
static void model_capture(struct volume *volume, const struct extent_list *used,
                          uint32_t chunk_size)
{
    static uint8_t chunk[65536];
    for (size_t i = 0; i < used->count; i++) {
        uint64_t last = (used->items[i].offset + used->items[i].len - 1) / chunk_size;
        for (uint64_t at = used->items[i].offset / chunk_size; at <= last; at++) {
            size_t len = (size_t)min_u64(chunk_size, volume->size - at * chunk_size);
            if (pread(volume->image, chunk, len, (off_t)(at * chunk_size)) != (ssize_t)len ||
                pwrite(volume->captured, chunk, len, (off_t)(at * chunk_size)) != (ssize_t)len)
                abort();
            volume->model[at] = MODEL_CAPTURED;
        }
    }
}

static struct lane_options random_options(void)
{
    struct lane_options options = {.lane_count = (unsigned)below(5)};
    if (chance(50))
        options.memory_max = (48 + below(100)) * MIB;
    if (chance(10))
        options.acceleration = (int)below(8);
    return options;
}

static uint32_t random_request_max(void)
{
    return chance(50) ? 0 : (uint32_t)(4096 * (1 + below(300)));
}

static void snapshot(struct fixture *fixture, struct volume *volume, const struct shot *parent,
                     struct shot *shot, struct err *err)
{
    struct lane_options options = random_options();
    char name[32];
    snprintf(name, sizeof(name), "captured-%u", fixture->snapshot_number);
    volume->captured = image_create(fixture, name, volume->size, NULL, 0);
    volume->chunk_count = div_round_up(volume->size, fixture->repo.chunk_size);
    volume->model = calloc(volume->chunk_count, 1);
    close_fd int direct = open_direct(fixture, "image", O_RDONLY);
    int rc = shot_open(fixture, direct, volume->size, parent, &options, shot, err);
    for (size_t runs = 1 + below(3); rc == 0 && runs > 0; runs--) {
        struct extent_list used = {0};
        random_extents(volume->size, &used, err);
        random_writes(volume, &used);
        model_capture(volume, &used, fixture->repo.chunk_size);
        shot->push.request_max = random_request_max();
        shot->push.options = random_options();
        rc = push_run(&shot->push, used.items, used.count, err);
        extent_list_release(&used);
    }
    is_u64(shot->progress.bytes_done, shot->progress.bytes_total, "all bytes are counted");
    is_good(rc == 0 ? shot_seal(fixture, parent, shot, err) : rc, err, "snapshot");
}

/* --- restore ------------------------------------------------------------------------------- */

static void make_target(struct fixture *fixture, uint64_t size, bool zeros)
{
    close_fd int fd = image_create(fixture, "target", size, NULL, 0);
    static uint8_t junk[1 << 20];
    memset(junk, 0xee, sizeof(junk));
    for (uint64_t at = 0; !zeros && at < size; at += sizeof(junk))
        if (pwrite(fd, junk, (size_t)min_u64(sizeof(junk), size - at), (off_t)at) < 0)
            abort();
    if (fsync(fd) < 0)
        abort();
}

static struct extent_list random_withheld(uint64_t size, struct err *err)
{
    struct extent_list list = {0};
    for (size_t i = below(4); i > 0 && size > 16384; i--) {
        uint64_t offset = align_down(4096 + below(size - 12288), 512);
        uint64_t len = 512 * (1 + below(chance(50) ? 16 : 400));
        if (extent_list_add(&list, offset, min_u64(len, align_down(size - offset, 512)), err) < 0)
            abort();
    }
    extent_list_normalise(&list);
    return list;
}

static bool chunk_is_right(const struct volume *volume, const uint8_t *got, const uint8_t *want,
                           uint64_t at, size_t len, uint32_t chunk_size,
                           const struct extent_list *withheld, enum pull_free policy)
{
    for (size_t i = 0; i < len; i++) {
        uint64_t offset = at + i;
        bool is_free = volume->model[offset / chunk_size] == MODEL_FREE;
        bool is_withheld = extent_list_overlaps(withheld, offset, 1);
        uint8_t right = is_withheld ? 0 : want[i];
        bool left = is_free && policy == PULL_FREE_LEAVE && got[i] == 0xee && !is_withheld;
        if (got[i] != right && !left && offset >= PULL_HEAD_LEN) {
            printf("# byte %llu is %02x, want %02x, %s%s\n", (unsigned long long)offset, got[i],
                   right, is_free ? "free" : "captured", is_withheld ? ", withheld" : "");
            return false;
        }
    }
    return true;
}

static bool target_is_right(struct fixture *fixture, const struct volume *volume,
                            const struct pull *pull, const struct extent_list *withheld)
{
    char path[128];
    static uint8_t got[65536], want[65536];
    uint32_t chunk_size = fixture->repo.chunk_size;
    snprintf(path, sizeof(path), "%s/target", fixture->dir);
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != volume->size) {
        printf("# the target has %llu bytes, want %llu\n", (unsigned long long)st.st_size,
               (unsigned long long)volume->size);
        return false;
    }
    for (uint64_t at = 0; at < volume->size; at += sizeof(got)) {
        size_t len = (size_t)min_u64(sizeof(got), volume->size - at);
        if (pread(fd, got, len, (off_t)at) != (ssize_t)len ||
            pread(volume->captured, want, len, (off_t)at) != (ssize_t)len)
            abort();
        if (at == 0 && memcmp(want, pull->head, PULL_HEAD_LEN) != 0) {
            printf("# the head is wrong\n");
            return false;
        }
        if (memcmp(got, want, len) != 0 &&
            !chunk_is_right(volume, got, want, at, len, chunk_size, withheld, pull->free_policy))
            return false;
    }
    return true;
}

static int keep_bitmap(void *ctx, const uint8_t *bitmap, size_t len, struct err *err)
{
    (void)err;
    memcpy(ctx, bitmap, len);
    return 0;
}

/* Damages what an earlier run wrote: not acknowledged regions, and acknowledged ones as well, since
 * whoever resumes digests them again. */
static void random_damage(struct fixture *fixture, uint64_t size)
{
    char path[128];
    static uint8_t junk[100000];
    snprintf(path, sizeof(path), "%s/target", fixture->dir);
    close_fd int fd = open(path, O_RDWR | O_CLOEXEC);
    memset(junk, 0xee, sizeof(junk));
    for (size_t i = below(6); i > 0; i--) {
        uint64_t at = below(size);
        size_t len = (size_t)min_u64(1 + below(sizeof(junk)), size - at);
        if (pwrite(fd, junk, len, (off_t)at) != (ssize_t)len)
            abort();
    }
    if (fsync(fd) < 0)
        abort();
}

static void restore(struct fixture *fixture, const struct volume *volume, const struct shot *shot,
                    struct err *err)
{
    struct lane_options options = random_options();
    struct io_progress progress = {0};
    enum pull_free policy = (enum pull_free)below(3);
    uint8_t acknowledged[64] = {0};
    make_target(fixture, volume->size, policy == PULL_FREE_KNOWN_ZERO);
    struct extent_list withheld = random_withheld(volume->size, err);
    close_fd int target = open_direct(fixture, "target", O_RDWR);
    struct pull pull = pull_of(fixture, shot, target, &options, &progress);
    pull.request_max = random_request_max();
    pull.free_policy = policy;
    pull.withheld = withheld.items;
    pull.withheld_count = withheld.count;
    pull.acknowledge = keep_bitmap;
    pull.acknowledge_ctx = acknowledged;
    is_good(pull_run(&pull, err), err, "pull, policy %d", policy);
    is_u64(progress.bytes_done, volume->size, "all bytes are counted");
    ok(target_is_right(fixture, volume, &pull, &withheld), "the target is right");
    if (policy != PULL_FREE_KNOWN_ZERO) {
        random_damage(fixture, volume->size);
        uint8_t before[64];
        memcpy(before, acknowledged, sizeof(before));
        before[0] &= (uint8_t)below(256);
        pull.done_before = before;
        progress = (struct io_progress){0};
        memset(pull.head, 0, sizeof(pull.head));
        is_good(pull_run(&pull, err), err, "resume");
        is_u64(progress.bytes_done, volume->size, "all bytes are counted");
        ok(target_is_right(fixture, volume, &pull, &withheld), "the target is right");
    }
    progress = (struct io_progress){0};
    struct pull null = pull_of(fixture, shot, -1, &options, &progress);
    is_good(pull_run(&null, err), err, "null sink");
    is_u64(progress.bytes_done, volume->size, "all bytes are counted");
    extent_list_release(&withheld);
}

static void round_of(const char *base, struct err *err)
{
    struct fixture fixture;
    struct shot shots[GENERATIONS];
    bool sealed = below(2);
    is_good(fixture_open_as(&fixture, base, (uint32_t)(16 * KIB) << below(3), next_random(&seed),
                            sealed, err),
            err, "%s repository in %s", sealed ? "encrypted" : "plain", base);
    struct volume volume = {.size = random_size()};
    struct extent_list first = {0};
    random_extents(volume.size, &first, err);
    volume.image = image_create(&fixture, "image", volume.size, first.items, first.count);
    extent_list_release(&first);
    for (int i = 0; i < GENERATIONS; i++) {
        if (i > 0 && chance(30)) {
            volume.size = random_size();
            if (ftruncate(volume.image, (off_t)volume.size) < 0)
                abort();
        }
        printf("# generation %d: %llu bytes, chunks of %u\n", i, (unsigned long long)volume.size,
               fixture.repo.chunk_size);
        snapshot(&fixture, &volume, i > 0 && chance(80) ? &shots[i - 1] : NULL, &shots[i], err);
        restore(&fixture, &volume, &shots[i], err);
        close(volume.captured);
        free(volume.model);
    }
    for (int i = 0; i < GENERATIONS; i++)
        shot_close(&shots[i]);
    close(volume.image);
    fixture_close(&fixture);
}

int main(int argc, char **argv)
{
    struct err err = {0};
    unsigned rounds = argc > 2                      ? (unsigned)strtoul(argv[2], NULL, 10)
                      : getenv("TIDEMARK_CAMPAIGN") ? 60
                                                    : 3;
    uint8_t id[ID_LEN];
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 0;
    if (seed == 0 && id_random(id, &err) == 0)
        seed = get_le64(id) | 1;
    printf("# seed %llu\n", (unsigned long long)seed);
    for (unsigned i = 0; i < rounds; i++)
        round_of(i % 4 == 3 ? "/var/tmp" : "/dev/shm", &err);
    return done();
}
