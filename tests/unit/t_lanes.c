/* check: build=tsan,asan timeout=300
 * Lanes side by side, for ThreadSanitizer: four of them push and pull one volume while another
 * thread reads the counters and cancels; errors of several lanes at once. (TSan cannot see an order
 * that goes through the kernel, so it judges what the lanes share among each other.) */
#include <pthread.h>

#include "tests/lib/pipes.h"

enum { SIZE = 8 * 64 * 1024 * 1024 };

static const struct extent used[] = {
    {0, 1 << 20},         {60 << 20, 8 << 20},   {200 << 20, 2 << 20},
    {318 << 20, 6 << 20}, {500 << 20, 12 << 20},
};

struct watcher {
    struct io_progress *progress;
    uint64_t cancel_at; /* bytes; 0 = never */
    atomic_bool stop;
    uint64_t seen;
};

static void *watch(void *arg)
{
    struct watcher *watcher = arg;
    while (!atomic_load(&watcher->stop)) {
        watcher->seen = atomic_load(&watcher->progress->bytes_done);
        if (watcher->cancel_at && watcher->seen >= watcher->cancel_at)
            atomic_store(&watcher->progress->cancel, true);
        (void)usleep(100);
    }
    return NULL;
}

static int pull_watched(struct pull *pull, uint64_t cancel_at, struct err *err)
{
    pthread_t thread;
    struct watcher watcher = {.progress = pull->progress, .cancel_at = cancel_at};
    if (pthread_create(&thread, NULL, watch, &watcher) != 0)
        abort();
    int rc = pull_run(pull, err);
    atomic_store(&watcher.stop, true);
    (void)pthread_join(thread, NULL);
    return rc;
}

static int acknowledged(void *ctx, const uint8_t *bitmap, size_t len, struct err *err)
{
    (void)err;
    memcpy(ctx, bitmap, len);
    return 0;
}

int main(void)
{
    struct err err = {0};
    struct fixture fixture;
    printf("# seed 99\n");
    is_good(fixture_open(&fixture, "/dev/shm", 32 << 10, 99, &err), &err, "repository");
    close_fd int image = image_create(&fixture, "image", SIZE, used, ARRAY_LEN(used));
    close_fd int fd = open_direct(&fixture, "image", O_RDONLY);
    struct lane_options options = {.lane_count = 4, .memory_max = 160 * MIB};
    struct shot full, next;
    is_good(shot_take(&fixture, fd, SIZE, used, ARRAY_LEN(used), NULL, &options, &full, &err), &err,
            "push with four lanes");
    options.rate_limit = 200 * MIB;
    is_good(shot_take(&fixture, fd, SIZE, used, ARRAY_LEN(used), &full, &options, &next, &err),
            &err, "incremental with a rate limit");
    is_u64(next.progress.chunks_stored, 0, "nothing changed");

    uint8_t bitmap[1] = {0};
    struct io_progress progress = {0};
    (void)close(image_create(&fixture, "target", SIZE, NULL, 0));
    close_fd int target = open_direct(&fixture, "target", O_RDWR);
    struct pull pull = pull_of(&fixture, &full, target, &options, &progress);
    pull.acknowledge = acknowledged;
    pull.acknowledge_ctx = bitmap;
    is_good(pull_watched(&pull, 0, &err), &err, "pull with four lanes");
    is_u64(bitmap[0], 0xff, "all regions are acknowledged");
    ok(pwrite(image, pull.head, PULL_HEAD_LEN, 0) == PULL_HEAD_LEN, "the head");

    progress = (struct io_progress){0};
    pull = pull_of(&fixture, &full, target, &options, &progress);
    pull.done_before = bitmap;
    is_good(pull_watched(&pull, 0, &err), &err, "pull again with read-back");
    progress = (struct io_progress){0};
    pull = pull_of(&fixture, &full, target, &options, &progress);
    int rc = pull_watched(&pull, 1, &err);
    ok(rc == 0 || rc == -ERR_CANCELLED, "cancelled from another thread: %d", rc);

    char command[128];
    snprintf(command, sizeof(command), "truncate -s 300 %s/repo/pack/*/*/*", fixture.dir);
    ok(system(command) == 0, "cut every pack");
    progress = (struct io_progress){0};
    pull = pull_of(&fixture, &full, -1, &options, &progress);
    is_err(pull_run(&pull, &err), &err, ERR_CORRUPT, "object 'pack/", "all lanes fail at once");
    shot_close(&full);
    shot_close(&next);
    fixture_close(&fixture);
    return done();
}
