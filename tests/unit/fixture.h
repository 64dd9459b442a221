/* Real volumes for unit tests: a sparse image in a directory of its own under /var/tmp, a loop
 * device on it, a filesystem, a mount. Everything is thawed, unmounted, detached and deleted when
 * the program ends, also by abort() and by a signal. Root and loop devices are needed: without them
 * fixture_start() says so and the test skips itself. */
#ifndef TIDEMARK_TESTS_FIXTURE_H
#define TIDEMARK_TESTS_FIXTURE_H

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/tap.h"

enum { FIXTURE_VOLUMES_MAX = 12 };

struct fixture_volume {
    char image[160], loop[64], mount[160];
    bool mounted;
};

static char fixture_dir[96];
static struct {
    struct fixture_volume volumes[FIXTURE_VOLUMES_MAX];
    size_t count;
    pid_t owner; /* forked children must not clean up */
} fixture;

/* Runs a shell command; its output goes to stderr. Returns the exit status. */
__attribute__((unused, format(printf, 1, 2))) static int run(const char *fmt, ...)
{
    char text[2048];
    va_list ap;
    va_start(ap, fmt);
    int len = vsnprintf(text, sizeof(text) - 8, fmt, ap);
    va_end(ap);
    strcpy(text + len, " 1>&2");
    int status = system(text);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

static bool run_line(const char *command, char *ret, size_t ret_len)
{
    FILE *pipe = popen(command, "re");
    bool good = pipe != NULL && fgets(ret, (int)ret_len, pipe) != NULL;
    if (good)
        ret[strcspn(ret, "\n")] = '\0';
    return pipe != NULL && pclose(pipe) == 0 && good;
}

__attribute__((unused)) static void fixture_umount(struct fixture_volume *volume)
{
    if (!volume->mounted)
        return;
    run("fsfreeze -u '%s' 2>/dev/null; umount '%s' || umount -l '%s'", volume->mount, volume->mount,
        volume->mount);
    volume->mounted = false;
}

static void fixture_cleanup(void)
{
    if (fixture.owner != getpid())
        return;
    for (size_t i = fixture.count; i-- > 0;) {
        fixture_umount(&fixture.volumes[i]);
        if (fixture.volumes[i].loop[0] != '\0')
            run("losetup -d %s", fixture.volumes[i].loop);
    }
    if (fixture_dir[0] != '\0')
        run("rm -rf '%s'", fixture_dir);
}

static void fixture_signal(int number)
{
    fixture_cleanup();
    signal(number, SIG_DFL);
    raise(number);
}

/* For tests/lib/reap.py, which cleans up after a test that got SIGKILL. */
static void write_owner(void)
{
    char path[160];
    snprintf(path, sizeof(path), "%s/.owner", fixture_dir);
    run("{ printf '%d '; awk '{printf $22 \" \"}' /proc/%d/stat; cat "
        "/proc/sys/kernel/random/boot_id; } >'%s' 2>/dev/null; :",
        getpid(), getpid(), path);
}

/* False: this host cannot run the test; *ret_why says it. */
__attribute__((unused)) static bool fixture_start(const char **ret_why)
{
    char line[64];
    *ret_why = geteuid() != 0 ? "must be root for loop devices" : "no free loop device";
    if (geteuid() != 0 || !run_line("losetup -f 2>/dev/null", line, sizeof(line)))
        return false;
    snprintf(fixture_dir, sizeof(fixture_dir), "/var/tmp/tidemark-device-XXXXXX");
    if (mkdtemp(fixture_dir) == NULL)
        abort();
    fixture.owner = getpid();
    write_owner();
    /* Who cleans when we are killed: tests/lib/reap.py. */
    run("exec > '%s/.owner'; echo $PPID $(cut -d' ' -f22 /proc/$PPID/stat)"
        " $(cat /proc/sys/kernel/random/boot_id); exec >&2; true",
        fixture_dir);
    atexit(fixture_cleanup);
    const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGABRT, SIGSEGV};
    for (size_t i = 0; i < ARRAY_LEN(signals); i++)
        signal(signals[i], fixture_signal);
    return true;
}

/* A loop device over a sparse image of `size` bytes in `dir`, not formatted. */
static struct fixture_volume *add_in(uint64_t size, const char *dir, const char *losetup_options)
{
    struct fixture_volume *volume = &fixture.volumes[fixture.count];
    char command[512];
    if (fixture.count >= FIXTURE_VOLUMES_MAX)
        abort();
    snprintf(volume->image, sizeof(volume->image), "%s/%zu.img", dir, fixture.count);
    snprintf(volume->mount, sizeof(volume->mount), "%s/mnt %zu", fixture_dir, fixture.count);
    if (mkdir(volume->mount, 0755) < 0 ||
        run("truncate -s %llu '%s'", (unsigned long long)size, volume->image) != 0)
        abort();
    snprintf(command, sizeof(command), "losetup -f --show --direct-io=on %s '%s'", losetup_options,
             volume->image);
    if (!run_line(command, volume->loop, sizeof(volume->loop)))
        abort();
    fixture.count++;
    return volume;
}

__attribute__((unused)) static struct fixture_volume *fixture_add(uint64_t size,
                                                                  const char *losetup_options)
{
    return add_in(size, fixture_dir, losetup_options);
}

__attribute__((unused)) static struct fixture_volume *fixture_add_in(uint64_t size, const char *dir)
{
    return add_in(size, dir, "");
}

__attribute__((unused)) static void fixture_mkfs(struct fixture_volume *volume, const char *fs)
{
    int rc = strcmp(fs, "xfs") == 0 ? run("mkfs.xfs -q -f %s", volume->loop)
                                    : run("mkfs.%s -q -F %s", fs, volume->loop);
    if (rc != 0)
        abort();
}

__attribute__((unused)) static bool fixture_mount(struct fixture_volume *volume,
                                                  const char *options)
{
    if (run("mount -o '%s' %s '%s'", options, volume->loop, volume->mount) != 0)
        return false;
    volume->mounted = true;
    return true;
}

__attribute__((unused)) static int fixture_open(const struct fixture_volume *volume)
{
    int fd = open(volume->mount, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        abort();
    return fd;
}

/* The guardian lies in the build directory: <build>/tests/unit/t_x → <build>/tidemark-guardian. */
__attribute__((unused)) static void fixture_set_guardian(void)
{
    char self[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 32);
    if (len < 0)
        abort();
    self[len] = '\0';
    for (int i = 0; i < 3; i++)
        *strrchr(self, '/') = '\0';
    strcat(self, "/tidemark-guardian");
    setenv("TIDEMARK_GUARDIAN", self, 1);
}

/* Polls until the condition holds or the time is over. */
#define eventually(timeout_ms, cond)                                                               \
    ({                                                                                             \
        bool eventually_ok = false;                                                                \
        for (int eventually_ms = 0; !(eventually_ok = (cond)) && eventually_ms < (timeout_ms);     \
             eventually_ms += 10)                                                                  \
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);                              \
        eventually_ok;                                                                             \
    })

#endif
