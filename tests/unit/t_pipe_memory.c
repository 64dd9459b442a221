/* check: build=release timeout=600
 * Peak memory of push and pull, measured: below memory_max + 64 MiB (the mapped table aside),
 * the same for a volume of 1 GiB and a sparse one of 8 GiB. Sanitizers have memory of their own, so
 * this one is for the release build. */
#include <sys/resource.h>
#include <sys/wait.h>

#include "tests/lib/pipes.h"

static const uint64_t memory_max = 128 * MIB;

struct answer {
    int rc;
    uint64_t peak; /* bytes */
    uint64_t table_len;
    char text[256];
};

static void child(struct fixture *fixture, int fd, uint64_t size, int answer_fd)
{
    struct lane_options options = {.lane_count = 2, .memory_max = memory_max};
    struct answer answer = {0};
    struct err err = {0};
    struct shot shot;
    const struct extent whole = {0, size};
    answer.rc = shot_take(fixture, fd, size, &whole, 1, NULL, &options, &shot, &err);
    struct io_progress progress = {0};
    struct pull pull = pull_of(fixture, &shot, -1, &options, &progress);
    if (answer.rc == 0)
        answer.rc = pull_run(&pull, &err);
    (void)close(image_create(fixture, "target", size, NULL, 0));
    close_fd int target = open_direct(fixture, "target", O_RDWR);
    pull = pull_of(fixture, &shot, target, &options, &progress);
    pull.free_policy = PULL_FREE_KNOWN_ZERO;
    if (answer.rc == 0)
        answer.rc = pull_run(&pull, &err);
    struct rusage usage;
    (void)getrusage(RUSAGE_SELF, &usage);
    answer.peak = (uint64_t)usage.ru_maxrss * 1024;
    answer.table_len = shot.table.map_len;
    snprintf(answer.text, sizeof(answer.text), "%s", answer.rc == 0 ? pull.memory_sum : err.text);
    (void)!write(answer_fd, &answer, sizeof(answer));
    shot_close(&shot);
    _exit(0);
}

static void measure(uint64_t size, const char *name, struct err *err)
{
    struct fixture fixture;
    is_good(fixture_open(&fixture, "/var/tmp", 32 << 10, 5, err), err, "repository");
    struct extent used[16];
    for (size_t i = 0; i < ARRAY_LEN(used); i++)
        used[i] = (struct extent){i * (size / ARRAY_LEN(used)), 8 * MIB};
    close_fd int image = image_create(&fixture, "image", size, used, ARRAY_LEN(used));
    close_fd int fd = open_direct(&fixture, "image", O_RDONLY);
    int pipes[2];
    if (pipe(pipes) < 0)
        abort();
    pid_t pid = fork();
    if (pid == 0)
        child(&fixture, fd, size, pipes[1]);
    (void)close(pipes[1]);
    struct answer answer = {.rc = -1};
    ok(read(pipes[0], &answer, sizeof(answer)) == sizeof(answer), "%s: the child answers", name);
    (void)close(pipes[0]);
    (void)waitpid(pid, NULL, 0);
    ok(answer.rc == 0, "%s: push and pull (%s)", name, answer.text);
    uint64_t peak = answer.peak - answer.table_len;
    ok(peak < memory_max + 64 * MIB,
       "%s: peak %llu MiB + %llu MiB of mapped table, limit %llu + 64 MiB", name,
       (unsigned long long)(peak / MIB), (unsigned long long)(answer.table_len / MIB),
       (unsigned long long)(memory_max / MIB));
    ok(peak > memory_max / 4, "%s: which was measured", name);
    fixture_close(&fixture);
}

int main(void)
{
    struct err err = {0};
    measure(GIB, "1 GiB", &err);
    measure(8 * GIB, "8 GiB", &err);
    return done();
}
