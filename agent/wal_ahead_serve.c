/* The process that pushes ahead: answers archive_command over its socket, and ends when nobody has
 * asked for a while, after LIFE_MS (keys, certificates and addresses are read at the start), after
 * a failure, or with the server: pg_wal lies on a filesystem that somebody may want to unmount
 * then. See wal_ahead.h and wal_ahead_queue.h. The main thread only; the queue has others.
 *
 * One process for each data directory and configuration: who has bound the socket is it. Whether
 * somebody listens is looked at under a lock of the directory, so that no two of them remove the
 * other's. */
#include "agent/wal_serve.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <malloc.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "agent/clock.h"
#include "agent/pg_pid_file.h"
#include "agent/wal_ahead_queue.h"

enum {
    IDLE_MS = 10000,
    LIFE_MS = 300000,
    SCAN_MS = 100,     /* at most so often while files are asked for, */
    SCAN_ANSWERS = 16, /* unless so many were */
    ASKERS_MAX = 16,
    BACKLOG = 16,
};

struct asker {
    int fd; /* -1 = none */
    bool asked;
    bool scanned; /* since it has asked */
    uint64_t asked_ms;
    struct wal_ahead_ask ask;
};

struct server {
    char wal_path[PATH_MAX];
    struct ahead_queue *queue;
    uint64_t fingerprint;
    int wal_fd, base_fd, listen_fd, wake_fd, postmaster_fd; /* -1 = none */
    struct asker askers[ASKERS_MAX];
    uint64_t started_ms, asked_ms, scanned_ms, beat_ms;
    unsigned answers; /* since the last scan */
};

/* --- answering ----------------------------------------------------------------------------------
 */

static void drop(struct asker *asker)
{
    cleanup_close(&asker->fd);
    *asker = (struct asker){.fd = -1};
}

static void answer(struct server *server, struct asker *asker, const struct wal_ahead_answer *said)
{
    ahead_test_step();
    ssize_t sent = send(asker->fd, said, sizeof(*said), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (said->word == AHEAD_WORKING && sent == (ssize_t)sizeof(*said))
        return;
    ahead_test_step();
    server->answers++;
    drop(asker);
}

static void scan(struct server *server)
{
    ahead_queue_scan(server->queue);
    server->scanned_ms = now_ms();
    server->answers = 0;
    for (unsigned i = 0; i < ASKERS_MAX; i++)
        server->askers[i].scanned = true;
}

/* beat: also those who have to wait on. */
static void answer_all(struct server *server, bool beat)
{
    struct wal_ahead_answer said;
    bool known;
    for (unsigned i = 0; i < ASKERS_MAX; i++) {
        struct asker *asker = &server->askers[i];
        if (!asker->asked)
            continue;
        ahead_queue_judge(server->queue, &asker->ask, asker->asked_ms, &said, &known);
        if (!known && !asker->scanned) {
            scan(server);
            ahead_queue_judge(server->queue, &asker->ask, asker->asked_ms, &said, &known);
        }
        if (said.word != AHEAD_WORKING || beat)
            answer(server, asker, &said);
    }
}

static bool is_ours(int fd)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 && peer.uid == geteuid();
}

/* Who finds no place, or is another user, pushes by itself. */
static void admit(struct server *server, int fd)
{
    for (unsigned i = 0; fd >= 0 && is_ours(fd) && i < ASKERS_MAX; i++)
        if (server->askers[i].fd < 0) {
            server->askers[i].fd = take_fd(&fd);
            return;
        }
    cleanup_close(&fd);
}

static void hear(struct server *server, struct asker *asker)
{
    ssize_t len = recv(asker->fd, &asker->ask, sizeof(asker->ask), MSG_DONTWAIT);
    if (len < 0 && errno == EAGAIN)
        return;
    if (asker->asked || len != (ssize_t)sizeof(asker->ask) ||
        asker->ask.fingerprint != server->fingerprint ||
        !memchr(asker->ask.name, '\0', sizeof(asker->ask.name))) {
        drop(asker); /* it has ended, or another version asks */
        return;
    }
    asker->asked = true;
    asker->scanned = false;
    server->asked_ms = asker->asked_ms = now_ms();
}

/* --- the loop -----------------------------------------------------------------------------------
 */

static bool anyone_asks(const struct server *server)
{
    for (unsigned i = 0; i < ASKERS_MAX; i++)
        if (server->askers[i].asked)
            return true;
    return false;
}

/* Waits for anything, at most wait_ms. False when the server has ended. */
static bool wait_for_events(struct server *server, int wait_ms)
{
    enum { LISTEN, WAKE, POSTMASTER, FIXED };
    struct pollfd fds[FIXED + ASKERS_MAX] = {
        [LISTEN] = {.fd = server->listen_fd, .events = POLLIN},
        [WAKE] = {.fd = server->wake_fd, .events = POLLIN},
        [POSTMASTER] = {.fd = server->postmaster_fd, .events = POLLIN}};
    uint64_t ignored;
    for (unsigned i = 0; i < ASKERS_MAX; i++)
        fds[FIXED + i] = (struct pollfd){.fd = server->askers[i].fd, .events = POLLIN};
    if (poll(fds, ARRAY_LEN(fds), wait_ms) < 0)
        return true;
    if (fds[WAKE].revents && read(server->wake_fd, &ignored, sizeof(ignored)) < 0)
        return true;
    for (unsigned i = 0; i < ASKERS_MAX; i++)
        if (fds[FIXED + i].revents)
            hear(server, &server->askers[i]);
    if (fds[LISTEN].revents)
        admit(server, accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC));
    return !fds[POSTMASTER].revents;
}

/* Whether it is time for another look at what is ready. */
static bool wants_scan(const struct server *server, const struct ahead_queue_state *state)
{
    uint64_t since = now_ms() - server->scanned_ms;
    if (state->stopped)
        return false;
    if (state->waiting >
        0) /* unless nothing moves: what they wait for may have been pushed by others */
        return state->at_work == 0 && since >= SCAN_MS;
    return server->answers >= SCAN_ANSWERS || (server->answers > 0 && since >= SCAN_MS) ||
           since >= AHEAD_BEAT_MS;
}

static bool is_over(const struct server *server, const struct ahead_queue_state *state)
{
    if (state->at_work > 0 || anyone_asks(server))
        return false;
    return state->stopped || now_ms() - server->asked_ms >= IDLE_MS;
}

/* False when the server has ended. */
static bool run(struct server *server)
{
    for (;;) {
        bool fast = server->answers > 0;
        if (!wait_for_events(server, fast ? SCAN_MS : AHEAD_BEAT_MS))
            return false;
        bool beat = now_ms() - server->beat_ms >= AHEAD_BEAT_MS;
        if (beat)
            server->beat_ms = now_ms();
        answer_all(server, beat);
        struct ahead_queue_state state = ahead_queue_look(server->queue);
        if (wants_scan(server, &state))
            scan(server);
        if (now_ms() - server->started_ms >= LIFE_MS)
            ahead_queue_stop(server->queue);
        if (is_over(server, &state))
            return true;
    }
}

/* --- start and end ------------------------------------------------------------------------------
 */

static bool somebody_listens(const struct sockaddr_un *address)
{
    close_fd int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 ||
           (errno != ECONNREFUSED && errno != ENOENT);
}

static bool bind_socket(struct server *server)
{
    struct sockaddr_un address;
    wal_ahead_address(server->base_fd, server->fingerprint, &address);
    if (somebody_listens(&address))
        return false;
    (void)umask(077);
    server->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return server->listen_fd >= 0 &&
           bind(server->listen_fd, (const struct sockaddr *)&address, sizeof(address)) == 0 &&
           listen(server->listen_fd, BACKLOG) == 0;
}

/* Sockets that killed processes have left, of other configurations, too. */
static void remove_stale(const struct server *server)
{
    struct sockaddr_un address;
    uint64_t fingerprint;
    int copy = openat(server->base_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    if (!dir)
        return;
    for (const struct dirent *entry; (entry = readdir(dir));) {
        if (sscanf(entry->d_name, "push-%16" SCNx64, &fingerprint) != 1)
            continue;
        wal_ahead_address(server->base_fd, fingerprint, &address);
        if (!somebody_listens(&address))
            (void)unlink(address.sun_path);
    }
    (void)closedir(dir);
}

static bool become_the_one(struct server *server)
{
    if (flock(server->base_fd, LOCK_EX) < 0)
        return false;
    remove_stale(server);
    bool ours = bind_socket(server);
    (void)flock(server->base_fd, LOCK_UN);
    return ours;
}

/* Who connects until then reads the end of the stream, and pushes by itself. */
static void give_up_socket(struct server *server)
{
    struct sockaddr_un address;
    if (server->listen_fd < 0)
        return;
    wal_ahead_address(server->base_fd, server->fingerprint, &address);
    (void)flock(server->base_fd, LOCK_EX);
    (void)unlink(address.sun_path);
    cleanup_close(&server->listen_fd);
    (void)flock(server->base_fd, LOCK_UN);
}

static bool open_directories(const struct wal_command *command, struct server *server)
{
    char base[CONF_PATH_MAX + 1], path[PATH_MAX];
    const char *slash = strrchr(command->path, '/');
    (void)snprintf(path, sizeof(path), "%.*s", slash ? (int)(slash - command->path) + 1 : 1,
                   slash ? command->path : ".");
    if (!realpath(path, server->wal_path) || !wal_command_spool(command, command->path, base))
        return false;
    (void)mkdir(base, 0700);
    server->wal_fd = open(server->wal_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    server->base_fd = open(base, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    return server->wal_fd >= 0 && server->base_fd >= 0;
}

static bool prepare(struct wal_command *command, struct server *server)
{
    struct err ignored;
    struct pg_pid_file file;
    if (!open_directories(command, server) ||
        wal_command_system_id(command, &command->system_id, &ignored) < 0)
        return false;
    server->fingerprint = wal_ahead_fingerprint(command, command->system_id);
    command->has_system_id = true; /* the working directory changes */
    if (pg_pid_file_read("postmaster.pid", &file) == 0)
        server->postmaster_fd = pidfd_open(file.pid, 0);
    server->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (server->wake_fd < 0 || !become_the_one(server) || chdir("/") < 0)
        return false;
    ahead_test_step();
    server->queue = ahead_queue_make(command, server->wal_path, server->wal_fd, server->wake_fd);
    return server->queue != NULL;
}

static void close_all(struct server *server)
{
    for (unsigned i = 0; i < ASKERS_MAX; i++)
        drop(&server->askers[i]);
    cleanup_close(&server->wal_fd);
    cleanup_close(&server->base_fd);
    cleanup_close(&server->listen_fd);
    cleanup_close(&server->wake_fd);
    cleanup_close(&server->postmaster_fd);
}

/* Segments come and go: without this each one's buffers are given back to the kernel and cleared
 * anew, which costs as much as compressing them. One arena: with one a thread, each would keep what
 * its last push took, also while the queue lets no more of them work at once. */
static void keep_buffers(void)
{
    (void)mallopt(M_ARENA_MAX, 1);
    (void)mallopt(M_MMAP_THRESHOLD, 32 << 20);
    (void)mallopt(M_TRIM_THRESHOLD, 512 << 20);
}

int wal_serve_push_ahead(const struct wal_command *command)
{
    struct wal_command own = *command;
    struct server server = {
        .wal_fd = -1, .base_fd = -1, .listen_fd = -1, .wake_fd = -1, .postmaster_fd = -1};
    server.started_ms = server.asked_ms = server.beat_ms = now_ms();
    for (unsigned i = 0; i < ASKERS_MAX; i++)
        server.askers[i].fd = -1;
    keep_buffers();
    bool ready = prepare(&own, &server);
    if (ready) {
        admit(&server, dup(STDIN_FILENO)); /* who has started us, if a socket */
        (void)close(STDIN_FILENO);
        scan(&server);
        bool ended = ahead_queue_start(server.queue) && !run(&server);
        give_up_socket(&server);
        if (ended) /* the server: what is at work is nobody's any more, and must not hold pg_wal */
            _exit(0);
    }
    ahead_queue_free(server.queue);
    close_all(&server);
    return ready ? 0 : err_exit_status(ERR_BUSY);
}
