/* The prefetcher: runs ahead of replay by wal_prefetch segments. It follows what get writes into
 * the spool's state file (inotify), keeps the segments behind the last delivered one and removes
 * all others, and ends when nothing was asked for IDLE_MS or when the server ends: the spool lies
 * on pg_wal's filesystem, which somebody may want to unmount then.
 *
 * One thread follows; FETCHERS_MAX at most fetch, each with its own connection. A fetcher claims a
 * segment by creating its temporary (O_EXCL), in the order in which replay will want them. */
#include "agent/wal_serve.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/pidfd.h>
#include <sys/statvfs.h>
#include <time.h>

#include "agent/pg_names.h"
#include "agent/pg_pid_file.h"
#include "agent/wal_spool.h"

enum {
    IDLE_MS = 10000,
    LOCK_TRIES = 20,
    FREE_SEGMENTS = 4, /* space that stays free for the server itself */
    FETCHERS_MAX = 8,
    /* Bytes: a fetcher holds a segment and its object at once, 2 x 16 MiB usually. */
    FETCHERS_MEMORY = 256 << 20,
};

struct prefetcher {
    struct wal_command command;
    struct wal_connection connection;
    char base[CONF_PATH_MAX + 1];
    int inotify_fd, server_fd; /* -1 = none */
    /* Everything below is under the lock. */
    pthread_mutex_t lock;
    pthread_cond_t moved;
    struct wal_spool spool; /* dir and state_fd never change once the fetchers run */
    uint32_t timeline, segment_size;
    uint64_t last;    /* number of the segment delivered last */
    uint64_t stop_at; /* absent or not to be had: not asked for again; 0 = none */
    bool stop;
};

/* Reads where replay is; *ret_moved: it is elsewhere than before. False when the state names
 * nothing to follow. */
static bool follow(struct prefetcher *p, bool *ret_moved)
{
    uint32_t timeline;
    uint64_t number;
    if (!wal_spool_load(&p->spool) ||
        !pg_segment_parse(p->spool.state.last, p->spool.state.segment_size, &timeline, &number))
        return false;
    *ret_moved = timeline != p->timeline || number != p->last;
    if (*ret_moved)
        p->stop_at = 0;
    p->timeline = timeline;
    p->last = number;
    p->segment_size = p->spool.state.segment_size;
    return true;
}

static void write_counters(struct prefetcher *p)
{
    size_t at = offsetof(struct wal_spool_state, prefetched);
    ssize_t ignored = pwrite(p->spool.state_fd, (const char *)&p->spool.state + at,
                             sizeof(p->spool.state) - at, (off_t)at);
    (void)ignored;
}

/* True for a segment ahead of replay, with or without the suffix of a temporary. */
static bool wanted(const struct prefetcher *p, const char *name, bool temporaries)
{
    char plain[PG_SEGMENT_TEXT] = "";
    uint32_t timeline;
    uint64_t number;
    memcpy(plain, name, strnlen(name, PG_SEGMENT_TEXT - 1));
    return pg_segment_parse(plain, p->segment_size, &timeline, &number) &&
           timeline == p->timeline && number > p->last &&
           number <= p->last + p->command.conf.wal_prefetch &&
           (strlen(name) == PG_SEGMENT_TEXT - 1 || temporaries);
}

/* Removes what is not ahead of replay: the spool holds wal_prefetch segments at most. Temporaries
 * of the fetchers stay; those that a killed prefetcher left go at the start. */
static void purge(struct prefetcher *p, bool temporaries)
{
    DIR *dir = opendir(p->spool.dir);
    uint64_t discarded = 0;
    if (!dir)
        return;
    for (const struct dirent *entry; (entry = readdir(dir));) {
        const char *name = entry->d_name;
        if (name[0] == '.' || strcmp(name, "state") == 0 || wanted(p, name, temporaries))
            continue;
        discarded += unlinkat(dirfd(dir), name, 0) == 0 && wal_name_valid(name, NULL);
    }
    (void)closedir(dir);
    p->spool.state.discarded += discarded;
    if (discarded) /* every write wakes us again */
        write_counters(p);
}

/* --- fetchers --------------------------------------------------------------------------------- */

static bool has_room(const struct prefetcher *p)
{
    struct statvfs vfs;
    return statvfs(p->spool.dir, &vfs) == 0 &&
           (uint64_t)vfs.f_bavail * vfs.f_frsize >= (uint64_t)FREE_SEGMENTS * p->segment_size;
}

/* Creates the temporary that wal_get() writes into: the other fetchers leave the segment alone, and
 * get sees that it is on its way. */
static bool claim(const struct prefetcher *p, const char *name)
{
    char path[sizeof(p->spool.dir) + 64];
    wal_spool_path(&p->spool, name, "", path, sizeof(path));
    if (access(path, F_OK) == 0)
        return false;
    wal_spool_path(&p->spool, name, ".tidemark", path, sizeof(path));
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd >= 0)
        (void)close(fd);
    return fd >= 0;
}

/* Claims the first segment that is missing in the spool; false when it is full or the archive's end
 * is reached. */
static bool claim_next(const struct prefetcher *p, char name[PG_SEGMENT_TEXT], uint64_t *ret_number)
{
    for (uint64_t n = p->last + 1; n <= p->last + p->command.conf.wal_prefetch; n++) {
        if (p->stop_at && n >= p->stop_at)
            return false;
        pg_segment_name(p->timeline, n, p->segment_size, name);
        if (wal_command_withholds(&p->command, name) || !has_room(p))
            return false;
        if (!claim(p, name))
            continue;
        *ret_number = n;
        return true;
    }
    return false;
}

/* The repository may have been unmounted and be back: a store that is open keeps the old one. */
static void reconnect(const struct prefetcher *p, struct wal_connection *connection)
{
    struct wal_connection fresh;
    struct err ignored;
    if (wal_connect(&p->command, &fresh, &ignored) < 0)
        return; /* the old one is tried again then */
    wal_disconnect(connection);
    *connection = fresh;
    connection->archive.repo = &connection->repo; /* not that of the copied struct */
}

/* Fetches a claimed segment, without the lock. An error is left to the get that will want this
 * segment: it retries and reports. */
static int fetch(const struct prefetcher *p, struct wal_connection *connection, const char *name)
{
    char path[sizeof(p->spool.dir) + 64];
    struct err ignored;
    wal_spool_path(&p->spool, name, "", path, sizeof(path));
    int rc = wal_get(&connection->archive, name, path, true, &ignored);
    if (rc < 0) {
        wal_spool_path(&p->spool, name, ".tidemark", path, sizeof(path));
        (void)unlink(path); /* also when wal_get() did not come to write it */
        reconnect(p, connection);
    }
    return rc;
}

static void count(struct prefetcher *p, uint64_t number, int rc)
{
    p->spool.state.prefetched += rc == 0;
    p->spool.state.failed += rc < 0 && rc != -ERR_MISSING;
    if (rc < 0 && (p->stop_at == 0 || number < p->stop_at))
        p->stop_at = number;
    write_counters(p);
}

static void *fetcher_main(void *arg)
{
    struct prefetcher *p = arg;
    struct wal_connection connection;
    struct err ignored;
    char name[PG_SEGMENT_TEXT];
    uint64_t number;
    if (wal_connect(&p->command, &connection, &ignored) < 0)
        return NULL;
    (void)pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        if (!claim_next(p, name, &number)) {
            (void)pthread_cond_wait(&p->moved, &p->lock);
            continue;
        }
        (void)pthread_mutex_unlock(&p->lock);
        int rc = fetch(p, &connection, name);
        (void)pthread_mutex_lock(&p->lock);
        count(p, number, rc);
    }
    (void)pthread_mutex_unlock(&p->lock);
    wal_disconnect(&connection);
    return NULL;
}

static unsigned fetcher_count(const struct prefetcher *p)
{
    uint64_t useful = wal_useful_threads(&p->command.conf, FETCHERS_MAX);
    uint64_t fit = FETCHERS_MEMORY / (2 * (uint64_t)p->segment_size);
    uint64_t fetchers = min_u64(useful, fit);
    return (unsigned)max_u64(1, min_u64(fetchers, p->command.conf.wal_prefetch));
}

/* --- following ---------------------------------------------------------------------------------
 */

/* Waits until get moves on. False when it is time to end. */
static bool wait_for_request(struct prefetcher *p)
{
    char events[4096];
    struct pollfd fds[2] = {{.fd = p->inotify_fd, .events = POLLIN},
                            {.fd = p->server_fd, .events = POLLIN}};
    int ready = poll(fds, 2, IDLE_MS);
    if (ready <= 0 || fds[1].revents)
        return false;
    return read(p->inotify_fd, events, sizeof(events)) > 0;
}

static bool move(struct prefetcher *p, bool first)
{
    bool moved;
    (void)pthread_mutex_lock(&p->lock);
    bool going = follow(p, &moved);
    if (going && (moved || first))
        purge(p, !first);
    if (!going)
        p->stop = true;
    (void)pthread_cond_broadcast(&p->moved);
    (void)pthread_mutex_unlock(&p->lock);
    return going;
}

static void run(struct prefetcher *p)
{
    pthread_t threads[FETCHERS_MAX];
    unsigned started = 0, fetchers = 0;
    bool going = move(p, true);
    if (going)
        fetchers = fetcher_count(p);
    while (started < fetchers && pthread_create(&threads[started], NULL, fetcher_main, p) == 0)
        started++;
    while (going && started > 0 && wait_for_request(p))
        going = move(p, false);
    (void)pthread_mutex_lock(&p->lock);
    p->stop = true;
    (void)pthread_cond_broadcast(&p->moved);
    (void)pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < started; i++)
        (void)pthread_join(threads[i], NULL);
}

/* --- start ------------------------------------------------------------------------------------ */

/* The postmaster of the working directory; when it ends, so do we. */
static int watch_server(void)
{
    struct pg_pid_file file;
    return pg_pid_file_read("postmaster.pid", &file) == 0 ? pidfd_open(file.pid, 0) : -1;
}

/* Spools of other servers or repositories below the same base that nobody uses: a restore leaves
 * them behind. */
static void remove_stale(const struct prefetcher *p)
{
    const char *own = strrchr(p->spool.dir, '/') + 1;
    DIR *dir = opendir(p->base);
    if (!dir)
        return;
    for (const struct dirent *entry; (entry = readdir(dir));) {
        struct prefetcher other = {.spool = {.state_fd = -1}};
        char path[sizeof(other.spool.dir) + 16];
        if (entry->d_name[0] == '.' || strcmp(entry->d_name, own) == 0)
            continue;
        (void)snprintf(other.spool.dir, sizeof(other.spool.dir), "%s/%s", p->base, entry->d_name);
        wal_spool_path(&other.spool, "state", "", path, sizeof(path));
        other.spool.state_fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        if (other.spool.state_fd >= 0 && !wal_spool_busy(&other.spool)) {
            other.command = p->command;
            other.segment_size = 16 << 20;
            purge(&other, false);
            (void)unlink(path);
            (void)rmdir(other.spool.dir);
        }
        wal_spool_close(&other.spool);
    }
    (void)closedir(dir);
}

/* One prefetcher a spool. get looks at the lock for a moment: hence a few tries. */
static bool take_lock(int fd)
{
    struct timespec pause = {.tv_nsec = 5000000};
    for (int i = 0; i < LOCK_TRIES; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return true;
        (void)nanosleep(&pause, NULL);
    }
    return false;
}

static bool prepare(struct prefetcher *p, struct err *err)
{
    char path[sizeof(p->spool.dir) + 16];
    if (!wal_command_spool(&p->command, p->command.path, p->base) ||
        wal_connect(&p->command, &p->connection, err) < 0)
        return false;
    /* For reconnecting, when the working directory is not the data directory any more. */
    p->command.has_system_id = true;
    p->command.system_id = p->connection.archive.system_id;
    p->server_fd = watch_server();
    if (!wal_spool_open(p->base, p->connection.archive.system_id, p->connection.repo.id, false,
                        &p->spool) ||
        !take_lock(p->spool.state_fd))
        return false;
    wal_spool_path(&p->spool, "state", "", path, sizeof(path));
    p->inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    return p->inotify_fd >= 0 && inotify_add_watch(p->inotify_fd, path, IN_MODIFY) >= 0 &&
           chdir("/") == 0;
}

int wal_serve_prefetch(const struct wal_command *command)
{
    struct prefetcher p = {.command = *command,
                           .lock = PTHREAD_MUTEX_INITIALIZER,
                           .moved = PTHREAD_COND_INITIALIZER,
                           .spool = {.state_fd = -1},
                           .inotify_fd = -1,
                           .server_fd = -1};
    struct err err;
    bool ready = prepare(&p, &err);
    if (ready) {
        remove_stale(&p);
        run(&p);
    }
    wal_spool_close(&p.spool);
    wal_disconnect(&p.connection);
    cleanup_close(&p.inotify_fd);
    cleanup_close(&p.server_fd);
    return ready ? 0 : err_exit_status(ERR_BUSY);
}
