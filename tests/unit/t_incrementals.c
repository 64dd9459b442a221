/* check: build=release timeout=600
 * Incrementals for ever: a volume changes and is snapshotted SNAPSHOTS times, each an incremental
 * of the one before. Sampled ones come back exactly; no one stores more than its changes and the
 * budget; and a restore of the last takes at most 1.5 times the requests and bytes that a full
 * snapshot of the same bytes takes. Then nobody writes any more, and rewriting comes to rest.
 *
 * Every eighth snapshot reads the whole volume, twice, as the passes of precopy do; the others read
 * what has changed, as with track = yes.
 *
 *     t_incrementals                                        the cases of `make check`
 *     t_incrementals SEED SIZE_MIB PATTERN PERMILLE BUDGET  one case, and its table, for
 *                                                           bench/incrementals
 */
#include "io/hash.h"
#include "tests/lib/pipes.h"

enum { BUDGET_MIN = 8 << 20, SNAPSHOTS = 60, REST = 12, PAGE = 8192, SAMPLES_MAX = 16 };

enum pattern { PATTERN_RANDOM, PATTERN_SKEWED, PATTERN_SWEEP };
static const char *const pattern_names[] = {"random", "skewed", "sweep"};

struct story {
    enum pattern pattern;
    unsigned permille; /* of the used bytes that a snapshot finds changed, in pages */
    unsigned budget;   /* percent */
    uint64_t size;
    uint64_t seed;
    bool bench; /* a table; what depends on the workload is not asserted */
    struct fixture fixture;
    struct extent_list used;
    int image, direct;
    uint8_t *written; /* a byte a chunk: this snapshot's changes */
    struct shot shots[SNAPSHOTS + REST + 1];
    uint8_t digests[SNAPSHOTS + REST + 1][FMT_DIGEST_LEN]; /* of the image at that time */
};

/* What a restore takes. */
struct cost {
    uint64_t requests, bytes;
};

/* What a snapshot stored, by its table and its parent's. */
struct stored {
    uint64_t changed_len, rewritten_len;
    bool right; /* whatever has changed was written */
};

/* --- the volume ------------------------------------------------------------------------------- */

static void make_used(struct story *story, struct err *err)
{
    uint64_t gap = story->size / 40;
    if (extent_list_add(&story->used, 0, story->size / 2 - gap, err) < 0 ||
        extent_list_add(&story->used, story->size / 2, story->size / 2 - gap, err) < 0)
        abort();
}

static void write_page(struct story *story, uint64_t page)
{
    static uint8_t bytes[PAGE];
    uint64_t offset = page * PAGE;
    if (!extent_list_overlaps(&story->used, offset, PAGE))
        return;
    fill_page(bytes, sizeof(bytes), &story->seed);
    if (pwrite(story->image, bytes, sizeof(bytes), (off_t)offset) != PAGE)
        abort();
    story->written[offset / story->fixture.repo.chunk_size] = 1;
}

static void change(struct story *story, unsigned snapshot)
{
    uint64_t pages = story->size / PAGE, count = pages * story->permille / 1000;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t random = next_random(&story->seed);
        uint64_t page = random % pages;
        if (story->pattern == PATTERN_SWEEP)
            page = (snapshot * count + i) % pages;
        if (story->pattern == PATTERN_SKEWED && random >> 32 & 7) /* 7 of 8 to a tenth */
            page = page / 10 + pages / 3;
        write_page(story, page);
    }
    if (fsync(story->image) < 0)
        abort();
}

static void digest_file(int fd, uint64_t size, uint64_t seed, uint8_t digest[FMT_DIGEST_LEN])
{
    static uint8_t buf[(1 << 20) + FMT_DIGEST_LEN];
    memset(buf, 0, FMT_DIGEST_LEN);
    for (uint64_t at = 0; at < size; at += 1 << 20) {
        size_t len = (size_t)min_u64(1 << 20, size - at);
        if (pread(fd, buf + FMT_DIGEST_LEN, len, (off_t)at) != (ssize_t)len)
            abort();
        hash_xxh3_128(buf, FMT_DIGEST_LEN + len, seed, digest);
        memcpy(buf, digest, FMT_DIGEST_LEN);
    }
}

/* --- snapshots -------------------------------------------------------------------------------- */

static struct extent_list written_extents(const struct story *story, struct err *err)
{
    struct extent_list list = {0};
    uint32_t chunk_size = story->fixture.repo.chunk_size;
    for (uint64_t i = 0; i < story->size / chunk_size; i++)
        if (story->written[i] && extent_list_append(&list, i * chunk_size, chunk_size, err) < 0)
            abort();
    return list;
}

static int take(struct story *story, const struct shot *parent, bool tracked, struct shot *shot,
                struct err *err)
{
    struct lane_options options = {.lane_count = 2, .memory_max = 80 * MIB};
    struct extent_list changed = written_extents(story, err), read = {0};
    uint64_t kept;
    int rc = shot_open(&story->fixture, story->direct, story->size, parent, &options, shot, err);
    if (rc == 0 && parent != NULL)
        rc = push_rewrite(&shot->push, &story->used, &parent->manifest, story->budget, err);
    if (rc == 0 && parent != NULL && tracked)
        rc = push_keep(&shot->push, &story->used, &changed, &read, &kept, err);
    const struct extent_list *list = parent != NULL && tracked ? &read : &story->used;
    for (int pass = 0; rc == 0 && pass < (parent == NULL || tracked ? 1 : 2); pass++)
        rc = push_run(&shot->push, list->items, list->count, err);
    extent_list_release(&changed);
    extent_list_release(&read);
    return rc < 0 ? rc : shot_seal(&story->fixture, parent, shot, err);
}

static struct stored look(const struct story *story, const struct shot *parent,
                          const struct shot *shot)
{
    struct stored stored = {.right = true};
    const struct table *table = &shot->table;
    for (uint64_t i = 0; i < table->chunk_count; i++) {
        const struct fmt_entry *entry = &table->entries[i], *old = &parent->table.entries[i];
        bool same = memcmp(entry->digest, old->digest, FMT_DIGEST_LEN) == 0 &&
                    fmt_entry_flags(entry) == fmt_entry_flags(old);
        stored.right &= same || story->written[i];
        if (fmt_entry_flags(entry) & (FMT_ZERO | FMT_FREE) ||
            memcmp(table->packs[entry->pack].snapshot, table->snapshot, ID_LEN) != 0)
            continue;
        *(same ? &stored.rewritten_len : &stored.changed_len) += fmt_entry_len(entry);
    }
    return stored;
}

static uint64_t live_len(const struct fmt_manifest *manifest, uint64_t *ret_stored)
{
    uint64_t live = 0;
    *ret_stored = 0;
    for (uint32_t i = 0; i < manifest->pack_count; i++) {
        live += manifest->packs[i].live_len;
        *ret_stored += manifest->packs[i].stored_len;
    }
    return live;
}

/* Own packs of a snapshot as the manifest has them: a header each, and nothing but chunks. */
static uint64_t own_pack_bytes(const struct shot *shot)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < shot->push.pack_len_count; i++)
        if (shot->push.pack_len[i] > 0)
            bytes += shot->push.pack_len[i] - FMT_HEADER_LEN;
    return bytes;
}

static void check_cost(const struct story *story, unsigned number, const struct stored *stored)
{
    const struct shot *parent = &story->shots[number - 1], *shot = &story->shots[number];
    uint64_t total, budget = live_len(&parent->manifest, &total) * story->budget / 100;
    if (story->budget > 0)
        budget = max_u64(budget, BUDGET_MIN);
    bool right = stored->right && stored->rewritten_len <= budget &&
                 stored->rewritten_len == shot->progress.bytes_rewritten &&
                 own_pack_bytes(shot) == stored->changed_len + stored->rewritten_len;
    ok(right, "snapshot %u stores its changes and at most the budget", number);
    if (!right)
        printf("# changed %llu, rewritten %llu (counted %llu), budget %llu, packs %llu, %s\n",
               (unsigned long long)stored->changed_len, (unsigned long long)stored->rewritten_len,
               (unsigned long long)shot->progress.bytes_rewritten, (unsigned long long)budget,
               (unsigned long long)own_pack_bytes(shot),
               stored->right ? "what has changed was written" : "a chunk changed by itself");
}

/* --- restores --------------------------------------------------------------------------------- */

static struct cost restore(struct story *story, const struct shot *shot,
                           const uint8_t digest[FMT_DIGEST_LEN], const char *name, struct err *err)
{
    struct lane_options options = {.lane_count = 2, .memory_max = 80 * MIB};
    struct io_progress progress = {0};
    uint8_t got[FMT_DIGEST_LEN];
    close_fd int plain = image_create(&story->fixture, "target", story->size, NULL, 0);
    close_fd int target = open_direct(&story->fixture, "target", O_RDWR);
    struct pull pull = pull_of(&story->fixture, shot, target, &options, &progress);
    pull.free_policy = PULL_FREE_KNOWN_ZERO;
    is_good(pull_run(&pull, err), err, "restore %s", name);
    if (pwrite(plain, pull.head, PULL_HEAD_LEN, 0) != PULL_HEAD_LEN || fsync(plain) < 0)
        abort();
    digest_file(plain, story->size, story->fixture.repo.digest_seed, got);
    ok(memcmp(got, digest, sizeof(got)) == 0, "%s comes back as it was", name);
    return (struct cost){progress.objects, progress.bytes_stored};
}

static bool is_sampled(unsigned number)
{
    return number == 0 || number == 7 || number == SNAPSHOTS - 13 || number % 20 == 0;
}

/* Of the newest, against a full snapshot of the same bytes. */
static void check_restores(struct story *story, struct err *err)
{
    struct shot full;
    struct cost costs[SNAPSHOTS + 1] = {0};
    char name[32];
    for (unsigned i = 0; i <= SNAPSHOTS; i++) {
        snprintf(name, sizeof(name), "#%u", i);
        if (is_sampled(i))
            costs[i] = restore(story, &story->shots[i], story->digests[i], name, err);
    }
    is_good(take(story, NULL, false, &full, err), err, "a full snapshot of the same");
    struct cost fresh = restore(story, &full, story->digests[SNAPSHOTS], "the full one", err);
    shot_close(&full);
    double requests = 0, bytes = 0;
    for (unsigned i = 0; i <= SNAPSHOTS; i++) {
        if (!is_sampled(i))
            continue;
        requests = (double)costs[i].requests / (double)fresh.requests;
        bytes = (double)costs[i].bytes / (double)fresh.bytes;
        printf("# restore #%u: %llu GETs, %.1f MB: %.2f and %.2f of a full one's\n", i,
               (unsigned long long)costs[i].requests, (double)costs[i].bytes / 1e6, requests,
               bytes);
    }
    if (!story->bench && story->budget == 0) /* or the two below could not fail */
        ok(requests > 1.5, "without a budget the last takes more than 1.5 times the requests");
    if (!story->bench && story->budget > 0)
        ok(requests <= 1.5 && bytes <= 1.5, "the last takes at most 1.5 times of a full one");
}

/* --- the story -------------------------------------------------------------------------------- */

static void row(const struct story *story, unsigned number, const struct stored *stored)
{
    const struct shot *shot = &story->shots[number];
    uint64_t total, live = live_len(&shot->manifest, &total);
    printf("# %2u changed %8.2f MB  rewritten %7.2f MB  tables %5.2f MB  objects %2llu  reaches %3u"
           " packs, %.2f live\n",
           number, (double)stored->changed_len / 1e6, (double)stored->rewritten_len / 1e6,
           (double)shot->result.table_bytes / 1e6, (unsigned long long)shot->progress.objects,
           shot->result.pack_count, (double)live / (double)total);
}

static void snapshot(struct story *story, unsigned number, bool changing, struct err *err)
{
    memset(story->written, 0, story->size / story->fixture.repo.chunk_size);
    if (changing)
        change(story, number);
    int rc = take(story, &story->shots[number - 1], number % 8 != 0, &story->shots[number], err);
    is_good(rc, err, "snapshot %u", number);
    struct stored stored = look(story, &story->shots[number - 1], &story->shots[number]);
    check_cost(story, number, &stored);
    if (story->bench || number % 10 == 0)
        row(story, number, &stored);
    if (is_sampled(number))
        digest_file(story->image, story->size, story->fixture.repo.digest_seed,
                    story->digests[number]);
}

/* Nobody writes any more. */
static void come_to_rest(struct story *story, struct err *err)
{
    for (unsigned i = SNAPSHOTS + 1; i <= SNAPSHOTS + REST; i++)
        snapshot(story, i, false, err);
    if (!story->bench)
        is_u64(story->shots[SNAPSHOTS + REST].progress.bytes_rewritten, 0,
               "a volume that does not change is not rewritten for ever");
    (void)restore(story, &story->shots[SNAPSHOTS + REST], story->digests[SNAPSHOTS],
                  "the last one at rest", err);
}

static void tell(const char *base, struct story *story, struct err *err)
{
    printf("# %s changes of %u per mille, budget %u %%, %llu MiB, seed %llu\n",
           pattern_names[story->pattern], story->permille, story->budget,
           (unsigned long long)(story->size / MIB), (unsigned long long)story->seed);
    is_good(fixture_open(&story->fixture, base, 32 * KIB, story->seed, err), err, "repository");
    make_used(story, err);
    story->image =
        image_create(&story->fixture, "image", story->size, story->used.items, story->used.count);
    story->direct = open_direct(&story->fixture, "image", O_RDONLY);
    story->written = calloc(story->size / story->fixture.repo.chunk_size, 1);
    is_good(take(story, NULL, false, &story->shots[0], err), err, "the full snapshot");
    digest_file(story->image, story->size, story->fixture.repo.digest_seed, story->digests[0]);
    for (unsigned i = 1; i <= SNAPSHOTS; i++)
        snapshot(story, i, true, err);
    check_restores(story, err);
    come_to_rest(story, err);
    for (unsigned i = 0; i <= SNAPSHOTS + REST; i++)
        shot_close(&story->shots[i]);
    extent_list_release(&story->used);
    free(story->written);
    (void)close(story->direct);
    (void)close(story->image);
    fixture_close(&story->fixture);
}

static enum pattern pattern_of(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(pattern_names); i++)
        if (strcmp(pattern_names[i], name) == 0)
            return (enum pattern)i;
    printf("Bail out! unknown pattern %s\n", name);
    exit(2);
}

int main(int argc, char **argv)
{
    static const struct {
        enum pattern pattern;
        unsigned permille, budget, size_mib;
    } cases[] = {
        {PATTERN_RANDOM, 5, 5, 512},   {PATTERN_RANDOM, 3, 0, 192},
        {PATTERN_RANDOM, 3, 5, 1024}, /* this and what follows: TIDEMARK_CAMPAIGN=1 */
        {PATTERN_RANDOM, 10, 5, 1024}, {PATTERN_SKEWED, 8, 5, 1024},
        {PATTERN_SWEEP, 20, 5, 1024},  {PATTERN_RANDOM, 3, 5, 384},
        {PATTERN_RANDOM, 1, 5, 96},
    };
    struct err err = {0};
    uint8_t id[ID_LEN];
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 0;
    if (seed == 0 && id_random(id, &err) == 0)
        seed = get_le64(id) | 1;
    static struct story story; /* its shots point to one another */
    if (argc == 6) {
        story = (struct story){.pattern = pattern_of(argv[3]),
                               .permille = (unsigned)atoi(argv[4]),
                               .budget = (unsigned)atoi(argv[5]),
                               .size = strtoull(argv[2], NULL, 10) * MIB,
                               .seed = seed,
                               .bench = true};
        tell(getenv("TMPDIR") ? getenv("TMPDIR") : "/var/tmp", &story, &err);
        return done();
    }
    size_t count = getenv("TIDEMARK_CAMPAIGN") ? ARRAY_LEN(cases) : 2;
    for (size_t i = 0; i < count; i++) {
        story = (struct story){.pattern = cases[i].pattern,
                               .permille = cases[i].permille,
                               .budget = cases[i].budget,
                               .size = cases[i].size_mib * MIB,
                               .seed = seed + i};
        tell("/dev/shm", &story, &err);
    }
    return done();
}
