/* check: build=asan timeout=60 */
/* Whole writes and durable entries: interrupted, cut, refused. */
#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "tests/tap.h"

enum { LEN = 4 << 20, LIMIT = 1 << 20 };
static uint8_t bytes[LEN], got[LEN];
static pthread_t writer;

static void on_signal(int number)
{
    (void)number;
}

/* Reads slowly enough that the writer's buffer is full, and interrupts it in between. */
static void *reader_main(void *ctx)
{
    const int *fd = ctx;
    size_t len = 0;
    while (len < LEN) {
        ssize_t n = read(*fd, got + len, min_u64(LEN - len, 70001));
        if (n <= 0)
            break;
        len += (size_t)n;
        (void)pthread_kill(writer, SIGUSR1);
    }
    return NULL;
}

static void test_interrupted(void)
{
    struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART: short writes, EINTR */
    int pair[2];
    pthread_t reader;
    (void)sigaction(SIGUSR1, &action, NULL);
    writer = pthread_self();
    for (size_t i = 0; i < LEN; i++)
        bytes[i] = (uint8_t)(i * 7 + i / 4096);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0 ||
        pthread_create(&reader, NULL, reader_main, &pair[1]) != 0)
        abort();
    ok(write_all(pair[0], bytes, LEN) == 0, "4 MiB through a small buffer, with signals");
    (void)close(pair[0]);
    (void)pthread_join(reader, NULL);
    (void)close(pair[1]);
    ok(memcmp(bytes, got, LEN) == 0, "every byte arrived once");
}

static void test_refused(const char *dir)
{
    char path[256];
    struct stat st;
    struct rlimit old, limit;
    (void)snprintf(path, sizeof(path), "%s/file", dir);
    close_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    close_fd int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    errno = 0;
    ok(write_all(full, bytes, LEN) < 0 && errno == ENOSPC, "a full disk is an error");
    (void)signal(SIGXFSZ, SIG_IGN);
    (void)getrlimit(RLIMIT_FSIZE, &old);
    limit = (struct rlimit){.rlim_cur = LIMIT, .rlim_max = old.rlim_max};
    (void)setrlimit(RLIMIT_FSIZE, &limit);
    errno = 0;
    ok(write_all(fd, bytes, LEN) < 0 && errno == EFBIG, "a write that can only be cut is an error");
    (void)setrlimit(RLIMIT_FSIZE, &old);
    ok(fstat(fd, &st) == 0 && st.st_size == LIMIT, "after what fits");
    ok(write_all(fd, bytes, 0) == 0, "nothing is written whole");
    (void)unlink(path);
}

static void test_directories(const char *dir)
{
    char path[256];
    struct err err;
    ok(sync_directory(dir, &err) == 0, "a directory");
    (void)snprintf(path, sizeof(path), "%s/entry", dir);
    ok(sync_parent(path, &err) == 0, "the parent of an entry");
    ok(sync_parent("/entry", &err) == 0 && sync_parent("entry", &err) == 0, "/ and .");
    (void)snprintf(path, sizeof(path), "%s/absent/entry", dir);
    ok(sync_parent(path, &err) == -ERR_DEVICE && strstr(err.text, "/absent'"), "none: %s",
       err.text);
}

int main(void)
{
    char dir[] = "/tmp/tidemark-file-XXXXXX";
    if (!mkdtemp(dir))
        abort();
    test_interrupted();
    test_refused(dir);
    test_directories(dir);
    (void)rmdir(dir);
    return done();
}
