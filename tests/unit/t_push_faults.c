/* check: timeout=600
 * push under the Nth-failure loop: fail the Nth I/O operation, N = 1, 2, 3 … until a run meets no
 * fault. Each run ends with a snapshot of the right bytes or with a clean error: no manifest, no
 * open descriptor left, nothing hanging (and, under ASan, nothing leaked). */
#include "tests/lib/fds.h"
#include "tests/lib/pipes.h"
#include "tests/sim/faults.h"

enum { SIZE = 66 * 1024 * 1024 };

static const struct extent used[] = {{0, 1 << 20}, {30 << 20, 5 << 20}, {65 << 20, 1 << 20}};

static uint64_t count_different(const struct table *a, const struct table *b)
{
    uint64_t different = 0;
    for (uint64_t i = 0; i < a->chunk_count; i++)
        different += memcmp(a->entries[i].digest, b->entries[i].digest, FMT_DIGEST_LEN) != 0 ||
                     a->entries[i].len_flags != b->entries[i].len_flags;
    return different;
}

/* One run; returns false after a problem, which it printed. */
static bool run_once(struct fixture *fixture, int fd, const struct shot *reference,
                     const struct shot *parent, enum fault_kind kind, unsigned at)
{
    struct lane_options options = {.lane_count = 1, .memory_max = 40 * MIB};
    struct err err = {0};
    struct shot shot;
    unsigned before = count_fds();
    fault_arm(kind, at);
    int rc = shot_open(fixture, fd, SIZE, parent, &options, &shot, &err);
    if (rc == 0)
        rc = push_run(&shot.push, used, ARRAY_LEN(used), &err);
    struct push_identity identity = {.logical_sector = 512,
                                     .parent_manifest = parent ? &parent->manifest : NULL};
    if (rc == 0)
        rc = push_seal(&shot.push, &identity, &shot.result, &err);
    bool fired = fault.fired, harmless = fault_is_harmless();
    fault_arm(FAULT_NONE, 0);
    bool good = true;
    if (rc == 0) {
        good = (!fired || harmless) && shot_load_manifest(fixture, &shot, &err) == 0 &&
               count_different(&shot.table, &reference->table) == 0;
        struct io_progress progress = {0};
        struct pull pull = pull_of(fixture, &shot, -1, &options, &progress);
        if (good && pull_run(&pull, &err) < 0)
            good = false;
    } else {
        char name[STORE_NAME_MAX + 1];
        uint64_t size;
        struct err ignored;
        repo_manifest_name(name, shot.table.volume, shot.table.snapshot);
        good = fired && !harmless && (err.code == ERR_DEVICE || err.code == ERR_STORE) &&
               store_size(fixture->store, name, &size, &ignored) == -ERR_MISSING;
        if (kind == FAULT_ENOSPC && strstr(err.text, "write object"))
            good &= strstr(err.text, "is full") != NULL;
    }
    shot_close(&shot);
    if (count_fds() != before)
        good = false;
    if (!good)
        printf("# %s at %u: rc %d '%s', fired %d, fds %u before, %u now\n", fault_names[kind], at,
               rc, err.text, fired, before, count_fds());
    fault.fired = fired;
    return good;
}

static void loop(struct fixture *fixture, int fd, const struct shot *reference,
                 const struct shot *parent, const char *what)
{
    for (int kind = FAULT_EIO; kind < FAULT_KIND_COUNT; kind++) {
        unsigned bad = 0, at = 1;
        do
            bad += !run_once(fixture, fd, reference, parent, (enum fault_kind)kind, at++);
        while (fault.fired && bad < 5);
        ok(bad == 0, "%s: %s at each of %u operations", what, fault_names[kind], at - 2);
        ok(at > 10, "there are operations");
    }
}

int main(void)
{
    struct err err = {0};
    struct fixture fixture;
    uint64_t seed = 4711;
    printf("# seed %llu\n", (unsigned long long)seed);
    is_good(fixture_open(&fixture, "/dev/shm", 32 << 10, seed, &err), &err, "repository");
    fixture.store = fault_store_wrap(fixture.store);
    int image = image_create(&fixture, "image", SIZE, used, ARRAY_LEN(used));
    int fd = open_direct(&fixture, "image", O_RDONLY);
    struct lane_options options = {.lane_count = 1, .memory_max = 40 * MIB};
    struct shot full, changed;
    is_good(shot_take(&fixture, fd, SIZE, used, ARRAY_LEN(used), NULL, &options, &full, &err), &err,
            "a full snapshot without faults");
    loop(&fixture, fd, &full, NULL, "full");
    uint8_t page[8192];
    memset(page, 0x77, sizeof(page));
    ok(pwrite(image, page, sizeof(page), 31 << 20) == sizeof(page), "change a chunk");
    is_good(shot_take(&fixture, fd, SIZE, used, ARRAY_LEN(used), &full, &options, &changed, &err),
            &err, "an incremental without faults");
    loop(&fixture, fd, &changed, &full, "incremental");
    shot_close(&full);
    shot_close(&changed);
    (void)close(fd);
    (void)close(image);
    fixture_close(&fixture);
    return done();
}
