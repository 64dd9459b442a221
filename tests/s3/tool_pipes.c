/* push and pull between a volume in a file and an s3:// repository:
 *     tool_pipes URL VERB MIB KEY=VALUE …
 * VERB round: one snapshot of MIB MiB, pulled into a file and compared, then verified.
 * VERB push: a snapshot only. VERB cancel: one that somebody cancels after cancel_ms.
 * VERB nth: push and verify with the Nth operation of the ring failing, N = 1, 2, 3 …
 * Lines begin with "ok", "not ok", "error NAME TEXT | HINT" or "#"; "# push" and "# pull" have
 * seconds, CPU-seconds, raw and stored bytes, and requests.
 * Keys: those of options.h, lanes, memory_mib, cancel_ms; random=1: bytes that do not compress. */
#include <pthread.h>
#include <sys/resource.h>

#include "io/clock.h"
#include "tests/lib/fds.h"
#include "tests/lib/pipes.h"
#include "tests/s3/options.h"
#include "tests/sim/faults.h"

static struct lane_options lanes = {.lane_count = 2};
static struct fixture fixture;
static struct extent used;
static uint64_t size;
static int image, image_target, device;
static unsigned cancel_ms, incompressible;

static double cpu_s(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static double start_s, start_cpu_s;

static void start_clock(void)
{
    start_s = (double)monotonic_ns() / 1e9;
    start_cpu_s = cpu_s();
}

static void report(const char *what, const struct io_progress *progress, const char *memory)
{
    printf("# %s seconds %.3f cpu %.3f raw %llu stored %llu requests %llu\n", what,
           (double)monotonic_ns() / 1e9 - start_s, cpu_s() - start_cpu_s, (unsigned long long)size,
           (unsigned long long)progress->bytes_stored, (unsigned long long)progress->objects);
    printf("# %s memory %s\n", what, memory);
}

static int take(struct shot *shot, struct err *err)
{
    start_clock();
    int rc = shot_open(&fixture, device, size, NULL, &lanes, shot, err);
    if (rc == 0)
        rc = push_run(&shot->push, &used, 1, err);
    if (rc == 0)
        report("push", &shot->progress, shot->push.memory_sum);
    return rc < 0 ? rc : shot_seal(&fixture, NULL, shot, err);
}

/* The head is the caller's to write: see pull.h. */
static int pull(const struct shot *shot, int fd, const char *what, struct err *err)
{
    struct io_progress progress = {0};
    struct pull pull = pull_of(&fixture, shot, fd, &lanes, &progress);
    start_clock();
    int rc = pull_run(&pull, err);
    if (rc == 0)
        report(what, &progress, pull.memory_sum);
    if (rc == 0 && fd >= 0 && pwrite(image_target, pull.head, PULL_HEAD_LEN, 0) != PULL_HEAD_LEN)
        rc = err_sys(err, ERR_DEVICE, "write the head");
    return rc;
}

static int do_round(struct err *err)
{
    struct shot shot;
    int rc = take(&shot, err);
    image_target = image_create(&fixture, "target", size, NULL, 0);
    /* As a device has it: a write into a hole would cost more than the rest. */
    if (posix_fallocate(image_target, 0, (off_t)size) != 0)
        rc = err_set(err, ERR_INTERNAL, "no space for the target");
    close_fd int direct = open_direct(&fixture, "target", O_RDWR);
    if (rc == 0)
        rc = pull(&shot, direct, "pull", err);
    if (rc == 0)
        ok(same_bytes(image, image_target, size), "the target equals the source");
    if (rc == 0)
        rc = pull(&shot, -1, "verify", err);
    if (rc == 0)
        ok(true, "and is verified");
    (void)close(image_target);
    shot_close(&shot);
    return rc;
}

static int do_push(struct err *err)
{
    struct shot shot;
    int rc = take(&shot, err);
    if (rc == 0)
        ok(true, "a snapshot");
    shot_close(&shot);
    return rc;
}

static void *cancel_later(void *progress)
{
    struct timespec pause = {.tv_sec = cancel_ms / 1000, .tv_nsec = cancel_ms % 1000 * 1000000};
    (void)nanosleep(&pause, NULL); /* somewhere in the middle, wherever that is */
    start_clock();
    atomic_store(&((struct io_progress *)progress)->cancel, true);
    return NULL;
}

static int do_cancel(struct err *err)
{
    struct shot shot;
    pthread_t thread;
    int rc = shot_open(&fixture, device, size, NULL, &lanes, &shot, err);
    if (rc < 0)
        return rc;
    if (pthread_create(&thread, NULL, cancel_later, &shot.progress) != 0)
        abort();
    rc = push_run(&shot.push, &used, 1, err);
    (void)pthread_join(thread, NULL);
    printf("# cancelled after %.3f\n", (double)monotonic_ns() / 1e9 - start_s);
    shot_close(&shot);
    return rc;
}

/* False when something is wrong, which it prints. */
static bool once(enum fault_kind kind, unsigned at, unsigned fds)
{
    struct err err = {0};
    struct shot shot;
    fault_arm(kind, at);
    int rc = take(&shot, &err);
    if (rc == 0)
        rc = pull(&shot, -1, "verify", &err);
    bool fired = fault.fired, harmless = fault_is_harmless();
    fault_arm(FAULT_NONE, 0);
    fault.fired = fired;
    bool good =
        rc == 0 || (fired && !harmless && (err.code == ERR_DEVICE || err.code == ERR_STORE));
    if (rc == 0) /* without faults: what was stored is right */
        good &= pull(&shot, -1, "verify", &err) == 0;
    shot_close(&shot);
    for (unsigned i = 0; i < 1000 && count_fds() != fds; i++)
        (void)usleep(1000); /* the kernel takes a closed ring apart later */
    good &= count_fds() == fds;
    if (!good)
        printf("# %s at %u: rc %d '%s', fds %u, now %u\n", fault_names[kind], at, rc, err.text, fds,
               count_fds());
    return good;
}

static int do_nth(struct err *err)
{
    static const enum fault_kind kinds[] = {FAULT_EIO, FAULT_EIO_ON, FAULT_EINTR, FAULT_EAGAIN,
                                            FAULT_SHORT};
    struct shot shot;
    int rc = take(&shot, err); /* opens the client's connection */
    shot_close(&shot);
    if (rc < 0)
        return rc;
    unsigned fds = count_fds();
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        unsigned bad = 0, at = 1;
        do
            bad += !once(kinds[i], at++, fds);
        while (fault.fired && bad < 5);
        ok(bad == 0, "%s at each of %u operations", fault_names[kinds[i]], at - 2);
    }
    return 0;
}

static void fill_random(void)
{
    static uint64_t words[8192];
    for (uint64_t at = 0; at < size; at += sizeof(words)) {
        for (size_t i = 0; i < ARRAY_LEN(words); i++)
            words[i] = next_random(&fixture.seed);
        if (pwrite(image, words, sizeof(words), (off_t)at) != sizeof(words))
            abort();
    }
    if (fsync(image) < 0)
        abort();
}

static int open_all(const char *url, const struct store_s3_options *s3, struct err *err)
{
    struct store_options options = {.group_id = -1, .s3 = s3};
    int rc = fixture_open(&fixture, "/var/tmp", 64 << 10, monotonic_ns(), err);
    if (rc < 0)
        return rc;
    store_close(fixture.store);
    rc = store_open(url, &options, false, &fixture.store, err);
    if (rc == 0)
        rc = store_prepare_puts(fixture.store, err);
    if (rc == 0)
        rc = repo_create(fixture.store, 64 << 10, &fixture.repo, err);
    used = (struct extent){0, size};
    image = image_create(&fixture, "image", size, &used, 1);
    if (incompressible)
        fill_random();
    device = open_direct(&fixture, "image", O_RDONLY);
    return rc;
}

static void read_words(int count, char **words)
{
    for (int i = 0; i < count; i++) {
        unsigned number;
        if (sscanf(words[i], "lanes=%u", &number) == 1)
            lanes.lane_count = number;
        else if (sscanf(words[i], "memory_mib=%u", &number) == 1)
            lanes.memory_max = number * MIB;
        else if (sscanf(words[i], "cancel_ms=%u", &number) == 1)
            cancel_ms = number;
        else if (sscanf(words[i], "random=%u", &number) == 1)
            incompressible = number;
    }
}

int main(int argc, char **argv)
{
    struct err err = {0};
    struct store_s3_options s3;
    if (argc < 4)
        return 2;
    read_words(argc - 4, argv + 4);
    options_read(&s3, argc - 4, argv + 4);
    size = strtoull(argv[3], NULL, 10) * MIB;
    int rc = open_all(argv[1], &s3, &err);
    const char *verb = argv[2];
    if (rc == 0)
        rc = strcmp(verb, "round") == 0    ? do_round(&err)
             : strcmp(verb, "push") == 0   ? do_push(&err)
             : strcmp(verb, "cancel") == 0 ? do_cancel(&err)
                                           : do_nth(&err);
    if (rc < 0)
        printf("error %s %s | %s\n", err_code_name(err.code), err.text, err.hint);
    (void)close(device);
    (void)close(image);
    fixture_close(&fixture);
    return rc < 0 || tap_failed;
}
