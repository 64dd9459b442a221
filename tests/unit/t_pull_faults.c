/* check: timeout=600
 * pull under the Nth-failure loop (see t_push_faults.c). A run that fails is resumed without
 * faults from what it acknowledged, and must then give the right bytes. pull_read() of bytes that
 * are damaged on their way. */
#include "io/store_ops.h"
#include "tests/lib/fds.h"
#include "tests/lib/pipes.h"
#include "tests/sim/faults.h"

enum { SIZE = 66 * 1024 * 1024 };

static const struct extent used[] = {{0, 1 << 20}, {30 << 20, 5 << 20}, {65 << 20, 1 << 20}};

static int keep_bitmap(void *ctx, const uint8_t *bitmap, size_t len, struct err *err)
{
    (void)err;
    memcpy(ctx, bitmap, len);
    return 0;
}

struct scene {
    struct fixture fixture;
    struct shot shot;
    int image;
    int target;
    bool null;
};

/* The target is the image, but for its head. */
static bool target_is_right(struct scene *scene, const struct pull *pull)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/target", scene->fixture.dir);
    close_fd int plain = open(path, O_RDWR);
    return pwrite(plain, pull->head, PULL_HEAD_LEN, 0) == PULL_HEAD_LEN &&
           same_bytes(scene->image, plain, SIZE);
}

static void soil_target(struct scene *scene)
{
    static uint8_t junk[1 << 20];
    char path[128];
    memset(junk, 0xee, sizeof(junk));
    snprintf(path, sizeof(path), "%s/target", scene->fixture.dir);
    close_fd int plain = open(path, O_RDWR);
    /* In every region, in data, zeros and free space. */
    for (uint64_t at = 0; at < SIZE; at += 13 << 20)
        if (pwrite(plain, junk, sizeof(junk), (off_t)at) != sizeof(junk))
            abort();
}

static bool run_once(struct scene *scene, enum fault_kind kind, unsigned at)
{
    struct lane_options options = {.lane_count = 1, .memory_max = 34 * MIB};
    struct io_progress progress = {0};
    struct err err = {0};
    uint8_t bitmap[8] = {0}, before_bitmap[8];
    unsigned before = count_fds();
    if (!scene->null)
        soil_target(scene);
    struct pull pull = pull_of(&scene->fixture, &scene->shot, scene->null ? -1 : scene->target,
                               &options, &progress);
    if (!scene->null) {
        pull.acknowledge = keep_bitmap;
        pull.acknowledge_ctx = bitmap;
    }
    fault_arm(kind, at);
    int rc = pull_run(&pull, &err);
    bool fired = fault.fired, harmless = fault_is_harmless();
    fault_arm(FAULT_NONE, 0);
    bool good;
    if (rc == 0) {
        good = (!fired || harmless) && (scene->null || target_is_right(scene, &pull)) &&
               progress.bytes_done == SIZE;
    } else {
        struct err resume_err = {0};
        good = fired && !harmless && (err.code == ERR_DEVICE || err.code == ERR_STORE);
        memcpy(before_bitmap, bitmap, sizeof(bitmap));
        pull.done_before = before_bitmap;
        if (good && (pull_run(&pull, &resume_err) < 0 ||
                     (!scene->null && !target_is_right(scene, &pull)))) {
            printf("# resume: %s\n", resume_err.text);
            good = false;
        }
    }
    good &= count_fds() == before;
    if (!good)
        printf("# %s at %u: rc %d '%s', fired %d, fds %u before, %u now\n", fault_names[kind], at,
               rc, err.text, fired, before, count_fds());
    fault.fired = fired;
    return good;
}

static void loop(struct scene *scene, const char *what)
{
    for (int kind = FAULT_EIO; kind < FAULT_KIND_COUNT; kind++) {
        unsigned bad = 0, at = 1;
        do
            bad += !run_once(scene, (enum fault_kind)kind, at++);
        while (fault.fired && bad < 5);
        ok(bad == 0, "%s: %s at each of %u operations", what, fault_names[kind], at - 2);
        ok(at > 10, "there are operations");
    }
}

/* --- damage on the way ------------------------------------------------------------------------ */
static const struct store_ops *sound_ops;
static unsigned flips_left, gets;

/* Flips a bit of the first flips_left reads of packs. */
static int flipping_get(struct store *store, const char *name, uint64_t offset, void *buf,
                        size_t len, size_t *ret_len, uint64_t *ret_size, struct err *err)
{
    int rc = sound_ops->get(store, name, offset, buf, len, ret_len, ret_size, err);
    if (rc < 0 || strncmp(name, "pack/", 5) != 0)
        return rc;
    gets++;
    if (flips_left > 0) {
        flips_left--;
        ((uint8_t *)buf)[*ret_len / 2] ^= 1;
    }
    return rc;
}

static void test_damaged_read(struct scene *scene)
{
    struct store *store = scene->fixture.store;
    struct store_ops ops = *store->ops;
    struct err err = {0};
    uint8_t got[4096], want[4096];
    sound_ops = store->ops;
    ops.get = flipping_get;
    store->ops = &ops;
    ok(pread(scene->image, want, sizeof(want), 30 << 20) == sizeof(want), "what is in the image");
    for (unsigned flips = 0; flips <= STORE_READ_TRIES; flips++) {
        flips_left = flips;
        gets = 0;
        memset(got, 0, sizeof(got));
        int rc = pull_read(store, &scene->fixture.repo, &scene->shot.manifest, 30 << 20, got,
                           sizeof(got), &err);
        if (flips < STORE_READ_TRIES)
            ok(rc == 0 && memcmp(got, want, sizeof(got)) == 0,
               "pull_read, damaged %u times on the way: right in the end", flips);
        else
            is_err(rc, &err, ERR_CORRUPT, "chunk", "damaged as often as it is read: it says so");
        is_u64(gets, min_u64(flips + 1, STORE_READ_TRIES), "with as many reads as it takes");
    }
    store->ops = sound_ops;
}

int main(void)
{
    struct err err = {0};
    struct scene scene = {0};
    struct fixture *fixture = &scene.fixture;
    uint64_t seed = 1147;
    printf("# seed %llu\n", (unsigned long long)seed);
    is_good(fixture_open(fixture, "/dev/shm", 32 << 10, seed, &err), &err, "repository");
    fixture->store = fault_store_wrap(fixture->store);
    scene.image = image_create(fixture, "image", SIZE, used, ARRAY_LEN(used));
    int fd = open_direct(fixture, "image", O_RDONLY);
    struct lane_options options = {.lane_count = 1, .memory_max = 40 * MIB};
    is_good(shot_take(fixture, fd, SIZE, used, ARRAY_LEN(used), NULL, &options, &scene.shot, &err),
            &err, "a snapshot");
    (void)close(image_create(fixture, "target", SIZE, NULL, 0));
    scene.target = open_direct(fixture, "target", O_RDWR);
    test_damaged_read(&scene);
    loop(&scene, "restore");
    scene.null = true;
    loop(&scene, "verify");
    shot_close(&scene.shot);
    (void)close(scene.target);
    (void)close(scene.image);
    (void)close(fd);
    fixture_close(fixture);
    return done();
}
