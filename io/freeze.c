/* Freezing a group of filesystems. The order of every step is chosen so that a death between any
 * two of them leaves nothing frozen: a volume is announced to the guardian before FIFREEZE and
 * forgotten after FITHAW, and an answer is awaited each time. */
#include "io/freeze.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "io/clock.h"
#include "io/freeze_protocol.h"

static_assert((int)FREEZE_VOLUMES_MAX == (int)GUARD_VOLUMES_MAX, "one limit for both programs");

enum { READY_TIMEOUT_MS = 10000, ANSWER_TIMEOUT_MS = 5000, HIGH_FD = 100 };

/* --- starting the guardian -------------------------------------------------------------------- */

static bool is_program(const char *path)
{
    return access(path, X_OK) == 0;
}

static int find_guardian(char *ret, size_t ret_len, struct err *err)
{
    const char *given = getenv("TIDEMARK_GUARDIAN");
    if (given != NULL) {
        (void)snprintf(ret, ret_len, "%s", given);
        return 0;
    }
    char self[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (len < 0)
        return err_sys(err, ERR_INTERNAL, "readlink '/proc/self/exe'");
    self[len] = '\0';
    char *slash = strrchr(self, '/');
    if (slash != NULL)
        *slash = '\0';
    (void)snprintf(ret, ret_len, "%s/tidemark-guardian", self);
    if (is_program(ret))
        return 0;
    (void)snprintf(ret, ret_len, "%s/../lib/tidemark/tidemark-guardian", self);
    if (is_program(ret))
        return 0;
    err_set(err, ERR_INTERNAL, "the program tidemark-guardian is not beside '%s'", self);
    return err_hint(err, "the installation is incomplete");
}

/* Descriptors may lie anywhere, also on the numbers where the child wants them: copies far above
 * keep the dup2 calls of the child from overwriting one another. */
struct spawn_fds {
    int high[GUARD_VOLUMES_FD - GUARD_CONTROL_FD + FREEZE_VOLUMES_MAX];
    size_t count;
};

static void close_high(struct spawn_fds *fds)
{
    for (size_t i = 0; i < fds->count; i++)
        (void)close(fds->high[i]);
    fds->count = 0;
}

static int copy_high(struct spawn_fds *fds, int fd, struct err *err)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);
    if (copy < 0)
        return err_sys(err, ERR_INTERNAL, "duplicate a descriptor");
    fds->high[fds->count++] = copy;
    return 0;
}

/* posix_spawn execs without copying our memory, so a large process starts it as fast as a small
 * one. A session of its own: no terminal's signal reaches it. */
static int spawn(const char *program, const struct spawn_fds *fds, size_t volumes,
                 unsigned deadline_ms, int *ret_pid, struct err *err)
{
    char deadline[16], count[16];
    (void)snprintf(deadline, sizeof(deadline), "%u", deadline_ms);
    (void)snprintf(count, sizeof(count), "%zu", volumes);
    char name[] = "tidemark-guardian";
    char *argv[] = {name, deadline, count, NULL};
    char *envp[] = {NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, all;
    (void)sigemptyset(&none);
    (void)sigfillset(&all);
    if (posix_spawn_file_actions_init(&actions) != 0)
        return err_set(err, ERR_INTERNAL, "no memory to start the guardian");
    int rc = posix_spawnattr_init(&attr);
    for (size_t i = 0; rc == 0 && i < fds->count; i++)
        rc = posix_spawn_file_actions_adddup2(&actions, fds->high[i], GUARD_CONTROL_FD + (int)i);
    if (rc == 0)
        rc = posix_spawn_file_actions_addclosefrom_np(&actions, GUARD_CONTROL_FD + (int)fds->count);
    (void)posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                              POSIX_SPAWN_SETSID);
    (void)posix_spawnattr_setsigmask(&attr, &none);
    (void)posix_spawnattr_setsigdefault(&attr, &all);
    pid_t pid = -1;
    if (rc == 0)
        rc = posix_spawn(&pid, program, &actions, &attr, argv, envp);
    (void)posix_spawnattr_destroy(&attr);
    (void)posix_spawn_file_actions_destroy(&actions);
    if (rc != 0) {
        errno = rc;
        return err_sys(err, ERR_INTERNAL, "start '%s'", program);
    }
    *ret_pid = pid;
    return 0;
}

/* False when the guardian has gone or does not answer in time. */
static bool receive(int fd, int timeout_ms, unsigned char *ret_verb)
{
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    uint64_t until = monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
    for (;;) {
        uint64_t now = monotonic_ns();
        int left = now >= until ? 0 : (int)((until - now) / 1000000u) + 1;
        int rc = poll(&polled, 1, left);
        if (rc < 0 && errno == EINTR)
            continue;
        if (rc <= 0)
            return false;
        unsigned char msg[2];
        ssize_t len = recv(fd, msg, sizeof(msg), 0);
        if (len < 0 && errno == EINTR)
            continue;
        *ret_verb = msg[0];
        return len == sizeof(msg);
    }
}

static bool ask(const struct freeze *freeze, enum guard_verb verb, size_t index,
                unsigned char *ret_answer)
{
    unsigned char msg[2] = {(unsigned char)verb, (unsigned char)index};
    ssize_t len;
    do {
        len = send(freeze->control_fd, msg, sizeof(msg), MSG_NOSIGNAL);
    } while (len < 0 && errno == EINTR);
    return len == sizeof(msg) && receive(freeze->control_fd, ANSWER_TIMEOUT_MS, ret_answer);
}

static void reap(int pid)
{
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        continue;
}

int freeze_arm(struct freeze *freeze, const int *fds, size_t count, unsigned deadline_ms,
               const char *rcu_expedited, struct err *err)
{
    assert(count >= 1 && count <= FREEZE_VOLUMES_MAX);
    assert(deadline_ms >= 1);
    char program[PATH_MAX + 64];
    int pair[2];
    int rc = find_guardian(program, sizeof(program), err);
    if (rc < 0)
        return rc;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return err_sys(err, ERR_INTERNAL, "socketpair");
    close_fd int ours = pair[0];
    close_fd int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    close_fd int rcu = rcu_expedited == NULL ? -1 : open(rcu_expedited, O_RDWR | O_CLOEXEC);
    struct spawn_fds high = {0};
    rc = copy_high(&high, pair[1], err);
    (void)close(pair[1]);
    if (rc == 0)
        rc = copy_high(&high, rcu >= 0 ? rcu : nothing, err);
    for (size_t i = 0; rc == 0 && i < count; i++)
        rc = copy_high(&high, fds[i], err);
    int pid = -1;
    if (rc == 0)
        rc = spawn(program, &high, count, deadline_ms, &pid, err);
    close_high(&high); /* the guardian's end must be its alone, or its death would not show */
    if (rc < 0)
        return rc;
    unsigned char verb = 0;
    if (!receive(ours, READY_TIMEOUT_MS, &verb) || verb != GUARD_READY) {
        (void)kill(pid, SIGKILL);
        reap(pid);
        err_set(err, ERR_INTERNAL, "'%s' did not get ready", program);
        return err_hint(err, "it must lock a few MiB of memory (ulimit -l, CAP_IPC_LOCK)");
    }
    *freeze = (struct freeze){
        .count = count, .control_fd = take_fd(&ours), .rcu_fd = take_fd(&rcu), .guardian_pid = pid};
    memcpy(freeze->fds, fds, count * sizeof(fds[0]));
    return 0;
}

/* --- freezing and thawing --------------------------------------------------------------------- */

static int err_guardian(struct err *err)
{
    err_set(err, ERR_DEVICE, "the guardian of the freeze has gone");
    return err_hint(err, "somebody or the OOM killer ended tidemark-guardian; try again");
}

/* Short grace periods, unless somebody has them on. The guardian knows first. */
static void expedite(struct freeze *freeze)
{
    char value = '\0';
    unsigned char answer = 0;
    if (freeze->rcu_fd < 0 || pread(freeze->rcu_fd, &value, 1, 0) != 1 || value != '0')
        return;
    freeze->expedited =
        ask(freeze, GUARD_EXPEDITE, 0, &answer) && pwrite(freeze->rcu_fd, "1", 1, 0) == 1;
}

static int freeze_one(struct freeze *freeze, size_t index, struct err *err)
{
    unsigned char answer = 0;
    if (!ask(freeze, GUARD_FREEZE, index, &answer))
        return err_guardian(err);
    if (answer != GUARD_OK)
        return err_set(err, ERR_BUSY,
                       "the guardian has thawed: the deadline passed while freezing");
    if (index == 0) /* its clock runs */
        expedite(freeze);
    int rc;
    do {
        rc = ioctl(freeze->fds[index], FIFREEZE, 0);
    } while (rc < 0 && errno == EINTR);
    if (rc == 0)
        return 0;
    int saved = errno;
    (void)ask(freeze, GUARD_FORGET, index, &answer); /* before anybody thaws what is not ours */
    errno = saved;
    if (saved != EBUSY) {
        err_sys(err, ERR_DEVICE, "freeze the filesystem (FIFREEZE)");
        return saved == EPERM ? err_hint(err, "the agent needs CAP_SYS_ADMIN for it") : -ERR_DEVICE;
    }
    err_set(err, ERR_BUSY, "the filesystem is frozen already");
    return err_hint(err, "another snapshot or fsfreeze(8) holds it; thaw it or wait");
}

/* Thaws what we froze, in reverse. False when one was not frozen any more. */
static bool thaw_frozen(struct freeze *freeze)
{
    bool all_ours = true;
    while (freeze->frozen > 0) {
        freeze->frozen--;
        int rc;
        do {
            rc = ioctl(freeze->fds[freeze->frozen], FITHAW, 0);
        } while (rc < 0 && errno == EINTR);
        all_ours = all_ours && rc == 0;
    }
    freeze->stall_ns = monotonic_ns() - freeze->frozen_at_ns;
    return all_ours;
}

static void expedite_no_more(struct freeze *freeze)
{
    if (freeze->expedited)
        (void)!pwrite(freeze->rcu_fd, "0", 1, 0);
    freeze->expedited = false;
}

int freeze_all(struct freeze *freeze, struct err *err)
{
    assert(freeze->frozen == 0);
    assert(freeze->control_fd >= 0);
    int rc = 0;
    freeze->frozen_at_ns = monotonic_ns();
    while (rc == 0 && freeze->frozen < freeze->count) {
        rc = freeze_one(freeze, freeze->frozen, err);
        freeze->frozen += rc == 0;
    }
    expedite_no_more(freeze);
    if (rc < 0) {
        unsigned char ignored;
        freeze->failed = freeze->frozen;
        (void)thaw_frozen(freeze);
        (void)ask(freeze, GUARD_THAWED, 0, &ignored);
    }
    return rc;
}

int freeze_thaw(struct freeze *freeze, bool *ret_expired, struct err *err)
{
    assert(freeze->frozen == freeze->count);
    bool all_ours = thaw_frozen(freeze);
    unsigned char answer = 0;
    if (!ask(freeze, GUARD_THAWED, 0, &answer))
        return err_guardian(err);
    *ret_expired = !all_ours || answer != GUARD_OK;
    return 0;
}

void freeze_disarm(struct freeze *freeze)
{
    if (freeze == NULL || freeze->guardian_pid <= 0)
        return;
    if (freeze->frozen > 0)
        (void)thaw_frozen(freeze);
    cleanup_close(&freeze->rcu_fd);
    freeze->rcu_fd = -1;
    /* Nothing is frozen any more, so it has nothing to lose; a request would wait for ever for one
     * that is stopped, or whose FITHAW hangs. */
    (void)kill(freeze->guardian_pid, SIGKILL);
    reap(freeze->guardian_pid);
    cleanup_close(&freeze->control_fd);
    freeze->control_fd = -1;
    freeze->guardian_pid = 0;
}
