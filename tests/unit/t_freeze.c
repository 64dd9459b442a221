/* io/freeze and tidemark-guardian on real ext4 and XFS volumes. The question of every case: is the
 * filesystem writable again in time, whoever died or stopped in whatever state? */
#include "io/freeze.h"

#include <errno.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>

#include "tests/unit/fixture.h"

/* How long what must happen may take on a machine that is busy with other things: only a failure
 * waits for it. */
enum { DEADLINE_MS = 700, PATIENCE_MS = 30000 };

static struct err err;
static int volume_fds[2];
static const char *rcu_path; /* stands for /sys/kernel/rcu_expedited */

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* True when not frozen: a probe that changes nothing of a frozen filesystem. EBUSY = frozen. */
static bool is_thawed(int fd)
{
    if (ioctl(fd, FIFREEZE, 0) < 0)
        return false;
    ioctl(fd, FITHAW, 0);
    return true;
}

static bool both_thawed(void)
{
    return is_thawed(volume_fds[0]) && is_thawed(volume_fds[1]);
}

/* A write from another process: the real thing. It hangs in D state while frozen. */
static pid_t start_writer(const struct fixture_volume *volume)
{
    pid_t pid = fork();
    if (pid == 0) {
        char path[256];
        snprintf(path, sizeof(path), "%s/written", volume->mount);
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        _exit(fd >= 0 && write(fd, "x", 1) == 1 && fsync(fd) == 0 ? 0 : 1);
    }
    return pid;
}

static bool has_ended(pid_t pid)
{
    int status;
    return waitpid(pid, &status, WNOHANG) == pid && status == 0;
}

static void test_normal(struct fixture_volume *volume)
{
    struct freeze freeze;
    bool expired = true;
    is_good(freeze_arm(&freeze, volume_fds, 2, DEADLINE_MS, NULL, &err), &err, "arm");
    ok(both_thawed(), "arming freezes nothing");
    for (int round = 0; round < 2; round++) {
        is_good(freeze_all(&freeze, &err), &err, "freeze");
        ok(!is_thawed(volume_fds[0]) && !is_thawed(volume_fds[1]), "both are frozen");
        pid_t writer = start_writer(volume);
        ok(!eventually(100, has_ended(writer)), "a writer waits");
        is_good(freeze_thaw(&freeze, &expired, &err), &err, "thaw");
        ok(!expired, "not expired");
        ok(eventually(PATIENCE_MS, has_ended(writer)), "the writer goes on");
        ok(freeze.stall_ns > 90000000u && freeze.stall_ns < PATIENCE_MS * 1000000ull,
           "the stall is measured");
    }
    freeze_disarm(&freeze);
    ok(kill(freeze.guardian_pid, 0) == 0 && freeze.guardian_pid == 0, "the guardian is reaped");
    freeze_disarm(&freeze);
    freeze_disarm(NULL);
    ok(both_thawed(), "all thawed");
}

static void test_deadline(void)
{
    struct freeze freeze;
    bool expired = false;
    freeze_arm(&freeze, volume_fds, 2, DEADLINE_MS, NULL, &err);
    int64_t start = now_ms(); /* before: the deadline counts from the first freeze */
    freeze_all(&freeze, &err);
    ok(eventually(PATIENCE_MS, both_thawed()), "thawed after the deadline");
    int64_t took = now_ms() - start;
    ok(took >= DEADLINE_MS - 5, "not before it: after %lld ms", (long long)took);
    is_good(freeze_thaw(&freeze, &expired, &err), &err, "thaw");
    ok(expired, "expired is reported");
    is_good(freeze_all(&freeze, &err), &err, "a new freeze after it");
    is_good(freeze_thaw(&freeze, &expired, &err), &err, "and its thaw");
    ok(!expired, "is a fresh one");
    freeze_disarm(&freeze);
}

static void test_busy(void)
{
    struct freeze freeze;
    ok(ioctl(volume_fds[1], FIFREEZE, 0) == 0, "somebody freezes the second volume");
    freeze_arm(&freeze, volume_fds, 2, DEADLINE_MS, NULL, &err);
    is_err(freeze_all(&freeze, &err), &err, ERR_BUSY, "frozen already", "a second freeze is busy");
    ok(is_thawed(volume_fds[0]), "the first volume is thawed again");
    freeze_disarm(&freeze);
    ok(!is_thawed(volume_fds[1]), "the foreign freeze is left alone");
    ok(ioctl(volume_fds[1], FITHAW, 0) == 0, "its owner thaws it");
}

static void test_foreign_freeze_survives_our_death(void)
{
    ok(ioctl(volume_fds[1], FIFREEZE, 0) == 0, "somebody freezes the second volume");
    pid_t pid = fork();
    if (pid == 0) {
        struct freeze freeze;
        freeze_arm(&freeze, volume_fds, 2, DEADLINE_MS, NULL, &err);
        freeze_all(&freeze, &err);
        raise(SIGKILL);
    }
    waitpid(pid, NULL, 0);
    ok(!eventually(2 * DEADLINE_MS, is_thawed(volume_fds[1])), "our death does not thaw it");
    ok(ioctl(volume_fds[1], FITHAW, 0) == 0, "its owner does");
}

/* The freezing process is a child that does `then` to itself; returns its pid once it is frozen. */
static pid_t freeze_in_child(int then, unsigned deadline_ms)
{
    int ready[2];
    if (pipe(ready) < 0)
        abort();
    pid_t pid = fork();
    if (pid == 0) {
        struct freeze freeze;
        bool expired = false;
        if (freeze_arm(&freeze, volume_fds, 2, deadline_ms, rcu_path, &err) < 0 ||
            freeze_all(&freeze, &err) < 0 || write(ready[1], "r", 1) != 1)
            _exit(9);
        raise(then);
        int rc = freeze_thaw(&freeze, &expired, &err);
        freeze_disarm(&freeze);
        _exit(rc < 0 ? 8 : expired ? 1 : 0);
    }
    char byte;
    close(ready[1]);
    ok(read(ready[0], &byte, 1) == 1, "a child has frozen");
    close(ready[0]);
    return pid;
}

static void test_killed(void)
{
    int64_t start = now_ms();
    pid_t pid = freeze_in_child(SIGKILL, 60000);
    ok(eventually(PATIENCE_MS, both_thawed()), "SIGKILL: thawed");
    ok(now_ms() - start < 60000, "before the deadline");
    waitpid(pid, NULL, 0);
}

static void test_stopped(void)
{
    pid_t pid = freeze_in_child(SIGSTOP, DEADLINE_MS);
    ok(eventually(PATIENCE_MS, both_thawed()), "SIGSTOP: thawed at the deadline");
    kill(pid, SIGCONT);
    int status = -1;
    ok(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 1,
       "when continued it learns that it expired (status %d)", status);
    ok(both_thawed(), "nothing is frozen");
}

static void test_guardian_killed(void)
{
    struct freeze freeze;
    bool expired = false;
    freeze_arm(&freeze, volume_fds, 2, DEADLINE_MS, NULL, &err);
    freeze_all(&freeze, &err);
    kill(freeze.guardian_pid, SIGKILL);
    is_err(freeze_thaw(&freeze, &expired, &err), &err, ERR_DEVICE, "guardian",
           "a killed guardian is reported by the thaw");
    ok(both_thawed(), "everything is thawed all the same");
    freeze_disarm(&freeze);
    freeze_arm(&freeze, volume_fds, 2, DEADLINE_MS, NULL, &err);
    kill(freeze.guardian_pid, SIGKILL);
    is_err(freeze_all(&freeze, &err), &err, ERR_DEVICE, "guardian", "and by the freeze");
    ok(both_thawed(), "which froze nothing");
    freeze_disarm(&freeze);
}

/* Stopped, it answers nothing and ends for no request. */
static void test_guardian_stopped(void)
{
    struct freeze freeze;
    bool expired = false;
    freeze_arm(&freeze, volume_fds, 2, 60000, NULL, &err);
    freeze_all(&freeze, &err);
    kill(freeze.guardian_pid, SIGSTOP);
    is_err(freeze_thaw(&freeze, &expired, &err), &err, ERR_DEVICE, "guardian",
           "a stopped guardian is reported by the thaw");
    ok(both_thawed(), "everything is thawed all the same");
    alarm(30);
    freeze_disarm(&freeze);
    alarm(0);
    ok(true, "and it is dismissed");
}

static void test_guardian_told_to_end(void)
{
    struct freeze freeze;
    bool expired = false;
    freeze_arm(&freeze, volume_fds, 2, 60000, NULL, &err);
    freeze_all(&freeze, &err);
    kill(freeze.guardian_pid, SIGTERM);
    ok(eventually(PATIENCE_MS, both_thawed()), "SIGTERM: the guardian thaws");
    is_good(freeze_thaw(&freeze, &expired, &err), &err, "thaw");
    ok(expired, "expired is reported");
    freeze_disarm(&freeze);
}

/* The guardian must hold no descriptor but its own, nor be in our process group. */
static void test_guardian_hygiene(void)
{
    struct freeze freeze;
    char command[256], line[256];
    close_fd int inherited = open("/dev/null", O_RDONLY); /* without O_CLOEXEC, on purpose */
    freeze_arm(&freeze, volume_fds, 2, DEADLINE_MS, NULL, &err);
    snprintf(command, sizeof(command), "ls /proc/%d/fd | sort -n | tr '\\n' ' '",
             freeze.guardian_pid);
    ok(run_line(command, line, sizeof(line)), "descriptors of the guardian: %s", line);
    ok(strcmp(line, "0 1 2 3 4 5 6 7 ") == 0,
       "stdio, control, rcu_expedited, two volumes, the signalfd");
    ok(getsid(freeze.guardian_pid) == freeze.guardian_pid, "a session of its own");
    snprintf(command, sizeof(command), "grep VmRSS /proc/%d/status | tr -dc 0-9",
             freeze.guardian_pid);
    ok(run_line(command, line, sizeof(line)) && atoi(line) < 16384, "resident: %s kB", line);
    snprintf(command, sizeof(command), "cat /proc/%d/oom_score_adj", freeze.guardian_pid);
    ok(run_line(command, line, sizeof(line)), "oom_score_adj %s", line);
    freeze_disarm(&freeze);
}

static char rcu_value(void)
{
    char value = '?';
    close_fd int fd = open(rcu_path, O_RDONLY | O_CLOEXEC);
    return pread(fd, &value, 1, 0) == 1 ? value : '!';
}

static void set_rcu(const char *value)
{
    close_fd int fd = open(rcu_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ok(write(fd, value, 2) == 2, "rcu_expedited is %.1s", value);
}

/* Looks all the time whether it is 1. */
static _Atomic bool watching, seen_on;
static void *watch_rcu(void *arg)
{
    (void)arg;
    while (atomic_load(&watching))
        if (rcu_value() == '1')
            atomic_store(&seen_on, true);
    return NULL;
}

/* Grace periods are short while the volumes are being frozen, and no longer, whoever dies or stops.
 * A file stands for the host's switch, which other programs may turn meanwhile. */
static void test_rcu(void)
{
    struct freeze freeze;
    pthread_t watcher;
    bool expired = false, always_off = true;
    int status = -1;
    set_rcu("0\n");
    is_good(freeze_arm(&freeze, volume_fds, 2, 60000, rcu_path, &err), &err, "arm");
    ok(rcu_value() == '0', "armed: untouched");
    atomic_store(&watching, true);
    pthread_create(&watcher, NULL, watch_rcu, NULL);
    for (int round = 0; round < 500 && !atomic_load(&seen_on); round++) {
        freeze_all(&freeze, &err);
        always_off = always_off && rcu_value() == '0';
        freeze_thaw(&freeze, &expired, &err);
    }
    atomic_store(&watching, false);
    pthread_join(watcher, NULL);
    ok(atomic_load(&seen_on), "it is on while they are being frozen");
    ok(always_off && rcu_value() == '0', "frozen and thawed: off");
    ok(ioctl(volume_fds[1], FIFREEZE, 0) == 0, "somebody freezes the second volume");
    is_err(freeze_all(&freeze, &err), &err, ERR_BUSY, "frozen already", "a freeze that fails");
    ok(rcu_value() == '0', "leaves it off");
    ioctl(volume_fds[1], FITHAW, 0);

    set_rcu("1\n");
    is_good(freeze_all(&freeze, &err), &err, "somebody switches it on after arming: freeze");
    ok(rcu_value() == '1', "it stays on");
    freeze_thaw(&freeze, &expired, &err);
    freeze_disarm(&freeze);
    pid_t pid = freeze_in_child(SIGKILL, 60000);
    ok(eventually(PATIENCE_MS, both_thawed()), "SIGKILL: thawed");
    waitpid(pid, &status, 0);
    ok(rcu_value() == '1', "and what was not ours stays on");
    set_rcu("0\n");
    is_good(freeze_arm(&freeze, volume_fds, 2, DEADLINE_MS, "/nonexistent/rcu", &err), &err,
            "a kernel without the switch");
    is_good(freeze_all(&freeze, &err), &err, "freezes all the same");
    freeze_disarm(&freeze);
}

/* The second volume lies on the first, so that its freeze hangs when the first is frozen. */
static void test_rcu_killed(struct fixture_volume *outer)
{
    int saved = volume_fds[1];
    struct fixture_volume *inner = fixture_add_in(64 * MIB, outer->mount);
    fixture_mkfs(inner, "ext4");
    fixture_mount(inner, "rw");
    volume_fds[1] = fixture_open(inner);
    pid_t pid = fork();
    if (pid == 0) {
        struct freeze freeze;
        if (freeze_arm(&freeze, volume_fds, 2, DEADLINE_MS, rcu_path, &err) == 0)
            freeze_all(&freeze, &err);
        _exit(9);
    }
    ok(eventually(PATIENCE_MS, rcu_value() == '1'), "a freeze hangs: on");
    kill(pid, SIGKILL);
    ok(eventually(PATIENCE_MS, waitpid(pid, NULL, WNOHANG) == pid), "it is killed, and thawed");
    ok(eventually(PATIENCE_MS, rcu_value() == '0'), "and the guardian switches it off");
    ok(eventually(PATIENCE_MS, both_thawed()), "nothing is frozen");
    close(volume_fds[1]);
    volume_fds[1] = saved;
    fixture_umount(inner);
}

/* Killed at random moments around arm and freeze: never anything left. */
static void test_killed_anywhere(void)
{
    unsigned left = 0, seed = (unsigned)now_ms();
    const char *campaign = getenv("TIDEMARK_CAMPAIGN"), *given = getenv("TIDEMARK_SEED");
    int rounds = campaign && strcmp(campaign, "1") == 0 ? 200 : 12;
    if (given)
        seed = (unsigned)strtoul(given, NULL, 10);
    srand(seed);
    printf("# seed %u\n", seed);
    for (int i = 0; i < rounds; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            struct freeze freeze;
            bool expired;
            for (;;) {
                if (freeze_arm(&freeze, volume_fds, 2, DEADLINE_MS, rcu_path, &err) < 0)
                    _exit(9);
                if (freeze_all(&freeze, &err) == 0)
                    freeze_thaw(&freeze, &expired, &err);
                freeze_disarm(&freeze);
            }
        }
        nanosleep(&(struct timespec){.tv_nsec = rand() % 40000000}, NULL);
        kill(pid, i % 2 ? SIGKILL : SIGSTOP);
        left += !eventually(PATIENCE_MS, both_thawed());
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        left += !eventually(PATIENCE_MS, both_thawed() && rcu_value() == '0');
    }
    is_u64(left, 0,
           "%d kills and stops at random moments leave nothing frozen, and rcu_expedited off",
           rounds);
}

static void test_no_guardian(void)
{
    struct freeze freeze;
    char saved[PATH_MAX];
    snprintf(saved, sizeof(saved), "%s", getenv("TIDEMARK_GUARDIAN"));
    setenv("TIDEMARK_GUARDIAN", "/nonexistent/guardian", 1);
    is_err(freeze_arm(&freeze, volume_fds, 1, DEADLINE_MS, NULL, &err), &err, ERR_INTERNAL, "start",
           "no guardian program");
    setenv("TIDEMARK_GUARDIAN", "/bin/true", 1);
    is_err(freeze_arm(&freeze, volume_fds, 1, DEADLINE_MS, NULL, &err), &err, ERR_INTERNAL, "ready",
           "a program that does not say ready");
    unsetenv("TIDEMARK_GUARDIAN");
    is_err(freeze_arm(&freeze, volume_fds, 1, DEADLINE_MS, NULL, &err), &err, ERR_INTERNAL,
           "not beside", "not installed");
    setenv("TIDEMARK_GUARDIAN", saved, 1);
    close_fd int proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fds[2] = {volume_fds[0], proc};
    is_good(freeze_arm(&freeze, fds, 2, DEADLINE_MS, NULL, &err), &err,
            "arm with a strange volume");
    is_err(freeze_all(&freeze, &err), &err, ERR_DEVICE, "FIFREEZE", "which cannot be frozen");
    ok(both_thawed(), "the first is thawed again");
    freeze_disarm(&freeze);
}

int main(void)
{
    const char *why;
    if (!fixture_start(&why)) {
        skip(why);
        return done();
    }
    fixture_set_guardian();
    struct fixture_volume *ext4 = fixture_add(64 * MIB, "");
    struct fixture_volume *xfs = fixture_add(320 * MIB, "");
    fixture_mkfs(ext4, "ext4");
    fixture_mkfs(xfs, "xfs");
    fixture_mount(ext4, "rw");
    fixture_mount(xfs, "rw");
    volume_fds[0] = fixture_open(ext4);
    volume_fds[1] = fixture_open(xfs);
    test_normal(ext4);
    test_normal(xfs);
    test_deadline();
    test_busy();
    test_foreign_freeze_survives_our_death();
    test_killed();
    test_stopped();
    test_guardian_killed();
    test_guardian_stopped();
    test_guardian_told_to_end();
    test_guardian_hygiene();
    char path[sizeof(fixture_dir) + 16];
    snprintf(path, sizeof(path), "%s/rcu_expedited", fixture_dir);
    rcu_path = path;
    test_rcu();
    test_rcu_killed(ext4);
    test_no_guardian();
    test_killed_anywhere();
    close(volume_fds[0]);
    close(volume_fds[1]);
    return done();
}
