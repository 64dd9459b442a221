/* tidemark-guardian: thaws frozen filesystems when their freezer does not.
 *
 *     tidemark-guardian DEADLINE_MS COUNT      started by io/freeze.c with the fds of
 *                                              freeze_protocol.h, never by hand
 *
 * It exists as a program of its own so that nothing of the freezing process can hold it up: it has
 * static memory only, all of it locked before it says "ready" (a page fault on a frozen root
 * filesystem would never return), does no I/O to any disk, and the OOM killer passes it by. It
 * thaws when the deadline has passed since the first announced freeze, when the control socket ends
 * (the freezer died; a SIGKILL in the middle of FIFREEZE closes the socket only after the ioctl has
 * returned) and on SIGTERM.
 *
 * One thread a volume: FITHAW may wait for a FIFREEZE in progress on the same filesystem, for ever
 * on a sick device, and must not keep the others frozen. After the deadline each thread repeats
 * FITHAW until the freezer says that it has thawed, or has died: a freezer that was stopped in the
 * middle of its list goes on freezing when it is continued, and while FIFREEZE waits for writers
 * FITHAW says EINVAL at once. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "io/clock.h"
#include "io/freeze_protocol.h"

enum { REPEAT_MS = 20, STACK_LEN = 64 << 10, EXIT_USAGE = 2, EXIT_SETUP = 70 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool announced[GUARD_VOLUMES_MAX]; /* may be frozen: ours to thaw */
    bool firing;                       /* threads thaw what is announced */
    bool fired;                        /* they did so since the last GUARD_THAWED */
    bool orphaned;                     /* the freezer is gone: one good FITHAW ends it */
    bool expedited;                    /* rcu_expedited is ours to switch off */
    unsigned busy;                     /* threads inside FITHAW */
} state = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static alignas(4096) char stacks[GUARD_VOLUMES_MAX][STACK_LEN];

static int64_t now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Waits on state.changed, at the most until the next repetition is due. */
static void wait_changed(bool timed)
{
    if (!timed) {
        (void)pthread_cond_wait(&state.changed, &state.lock);
        return;
    }
    const struct timespec until = monotonic_until(REPEAT_MS);
    (void)pthread_cond_clockwait(&state.changed, &state.lock, CLOCK_MONOTONIC, &until);
}

/* True when the filesystem is not frozen now, unless a FIFREEZE is in progress. EINVAL: it was not
 * frozen. */
static bool thaw(int fd)
{
    return ioctl(fd, FITHAW, 0) == 0 || errno == EINVAL || errno == ENOTTY || errno == EOPNOTSUPP;
}

static void *watch_volume(void *arg)
{
    size_t index = (size_t)(uintptr_t)arg;
    (void)pthread_mutex_lock(&state.lock);
    for (;;) {
        if (!state.firing || !state.announced[index]) {
            wait_changed(false);
            continue;
        }
        state.busy++;
        bool last = state.orphaned; /* before the FITHAW: no FIFREEZE can follow it */
        (void)pthread_mutex_unlock(&state.lock);
        bool thawed = thaw(GUARD_VOLUMES_FD + (int)index);
        (void)pthread_mutex_lock(&state.lock);
        state.busy--;
        if (thawed && last)
            state.announced[index] = false;
        (void)pthread_cond_broadcast(&state.changed);
        if (state.announced[index])
            wait_changed(true);
    }
    return NULL;
}

static void fire(bool orphaned)
{
    (void)pthread_mutex_lock(&state.lock);
    if (state.expedited)
        (void)!pwrite(GUARD_RCU_FD, "0", 1, 0);
    state.firing = state.fired = true;
    state.orphaned = state.orphaned || orphaned;
    (void)pthread_cond_broadcast(&state.changed);
    (void)pthread_mutex_unlock(&state.lock);
}

/* The freezer is gone: thaw what it announced, then end. */
static _Noreturn void end_orphaned(void)
{
    fire(true);
    (void)pthread_mutex_lock(&state.lock);
    for (size_t i = 0; i < GUARD_VOLUMES_MAX;) {
        if (!state.announced[i]) {
            i++;
            continue;
        }
        wait_changed(false);
        i = 0;
    }
    _exit(0);
}

/* Nothing may thaw a later freeze by mistake: the answer waits for threads inside FITHAW. */
static void forget_all(void)
{
    state.firing = false;
    while (state.busy > 0)
        wait_changed(false);
    for (size_t i = 0; i < GUARD_VOLUMES_MAX; i++)
        state.announced[i] = false;
}

/* Handles one request; returns false when the freezer is gone. *deadline_at: -1 = clock stopped. */
static bool serve(int64_t deadline_ms, size_t count, int64_t *deadline_at)
{
    unsigned char msg[2];
    ssize_t len = recv(GUARD_CONTROL_FD, msg, sizeof(msg), 0);
    if (len < 0 && errno == EINTR)
        return true;
    if (len != sizeof(msg) || msg[1] >= count)
        return false;
    (void)pthread_mutex_lock(&state.lock);
    unsigned char answer[2] = {state.fired ? GUARD_EXPIRED : GUARD_OK, msg[1]};
    if (msg[0] == GUARD_FREEZE) {
        state.announced[msg[1]] = !state.fired; /* else the freezer leaves it alone */
        if (*deadline_at < 0)
            *deadline_at = now_ms() + deadline_ms;
    } else if (msg[0] == GUARD_EXPEDITE) {
        state.expedited = true;
    } else if (msg[0] == GUARD_FORGET) {
        state.announced[msg[1]] = false;
    } else if (msg[0] == GUARD_THAWED) {
        forget_all();
        answer[0] = state.fired ? GUARD_EXPIRED : GUARD_OK;
        state.fired = state.expedited = false;
        *deadline_at = -1;
    }
    (void)pthread_mutex_unlock(&state.lock);
    return send(GUARD_CONTROL_FD, answer, sizeof(answer), MSG_NOSIGNAL) == sizeof(answer);
}

static _Noreturn void guard(int64_t deadline_ms, size_t count, int signal_fd)
{
    int64_t deadline_at = -1;
    bool fired = false; /* for this deadline */
    for (;;) {
        struct pollfd polled[2] = {{.fd = GUARD_CONTROL_FD, .events = POLLIN},
                                   {.fd = signal_fd, .events = POLLIN}};
        int64_t left = deadline_at < 0 || fired ? -1 : deadline_at - now_ms();
        if (left < 0 && deadline_at >= 0 && !fired)
            left = 0;
        (void)poll(polled, 2, (int)left);
        if (polled[1].revents != 0) {
            struct signalfd_siginfo info;
            (void)!read(signal_fd, &info, sizeof(info));
            fire(false);
        }
        if (polled[0].revents != 0 && !serve(deadline_ms, count, &deadline_at))
            end_orphaned();
        if (deadline_at < 0)
            fired = false;
        else if (!fired && now_ms() >= deadline_at) {
            fired = true;
            fire(false);
        }
    }
}

static int start_threads(size_t count)
{
    for (size_t i = 0; i < count; i++) {
        pthread_attr_t attr;
        pthread_t thread;
        if (pthread_attr_init(&attr) != 0 ||
            pthread_attr_setstack(&attr, stacks[i], STACK_LEN) != 0 ||
            pthread_create(&thread, &attr, watch_volume, (void *)(uintptr_t)i) != 0)
            return -1;
        (void)pthread_detach(thread);
    }
    return 0;
}

/* A sanitizer's shadow is terabytes of address space: locking would populate it. */
static int lock_memory(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return 0;
#else
    return mlockall(MCL_CURRENT | MCL_FUTURE);
#endif
}

/* Best effort: without CAP_SYS_RESOURCE the kernel refuses, and the guardian is small anyway. */
static void avoid_oom_killer(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)!write(fd, "-1000", 5);
    (void)close(fd);
}

/* All signals that can be blocked are: SIGTERM comes by the signalfd, the others are not for us. */
static int take_signals(void)
{
    sigset_t all, term;
    (void)sigfillset(&all);
    (void)sigemptyset(&term);
    (void)sigaddset(&term, SIGTERM);
    if (sigprocmask(SIG_SETMASK, &all, NULL) < 0)
        return -1;
    return signalfd(-1, &term, SFD_CLOEXEC | SFD_NONBLOCK);
}

int main(int argc, char **argv)
{
    long deadline_ms = argc == 3 ? strtol(argv[1], NULL, 10) : 0;
    long count = argc == 3 ? strtol(argv[2], NULL, 10) : 0;
    if (deadline_ms < 1 || count < 1 || count > GUARD_VOLUMES_MAX)
        return EXIT_USAGE;
    int signal_fd = take_signals();
    if (signal_fd < 0 || chdir("/") < 0)
        return EXIT_SETUP;
    avoid_oom_killer();
    if (start_threads((size_t)count) < 0 || lock_memory() < 0)
        return EXIT_SETUP;
    unsigned char ready[2] = {GUARD_READY, 0};
    if (send(GUARD_CONTROL_FD, ready, sizeof(ready), MSG_NOSIGNAL) != sizeof(ready))
        return EXIT_SETUP;
    guard(deadline_ms, (size_t)count, signal_fd);
}
