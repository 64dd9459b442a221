/* Patroni's bootstrap and replica creation. Patroni runs as the server's user, who must not be able
 * to start a restore; so what it may ask for is this one kind: this node's own volumes, from a
 * snapshot of this cluster, while the data directory is empty, which is how Patroni calls its
 * methods. The job ends at `configured`: the server is left stopped, and Patroni starts it.
 *
 *     primary   recovery.signal and all recovery settings in postgresql.auto.conf, where Patroni
 *               (keep_existing_recovery_conf) lets them stand until the server is promoted
 *     replica   standby.signal and no recovery setting at all: Patroni writes its own
 *
 * What a failure leaves depends on how far it came: before `marked` the volumes are mounted and
 * empty as before, and Patroni's next method can use them. After it they are not mounted, and the
 * directories below are root's, so that a base backup cannot fill the filesystem below instead.
 *
 * Nobody tells the tool when Patroni is stopped; it dies of its parent's death, and this job of the
 * tool's: what nobody waits for any more must not overwrite what Patroni does next. */
#include "agent/restore.h"
#include "agent/clock.h"
#include "agent/log.h"
#include "agent/pg.h"
#include "agent/process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/pidfd.h>
#include <sys/stat.h>

enum { HISTORY_WAIT_MS = 30000, HISTORY_POLL_MS = 500 };

bool restore_is_handover(const struct restore *restore)
{
    return restore->request.handover_directory;
}

/* --- the caller ------------------------------------------------------------------------------- */

/* The signal is ours, as from `tidemark cancel`: the main thread is interrupted in what it does. */
static void *watch_main(void *ctx)
{
    int fd = *(int *)ctx;
    struct pollfd gone = {.fd = fd, .events = POLLIN};
    free(ctx);
    while (poll(&gone, 1, -1) < 0 && errno == EINTR)
        ;
    (void)close(fd);
    log_warn("whoever asked for this restore is gone: it is cancelled");
    (void)kill(getpid(), SIGTERM);
    return NULL;
}

static int start_watch(int fd, struct err *err)
{
    sigset_t all, old;
    pthread_t thread;
    int *ctx = malloc(sizeof(*ctx));
    if (!ctx)
        abort();
    *ctx = fd;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, &old);
    errno = pthread_create(&thread, NULL, watch_main, ctx);
    int failed = errno;
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed == 0) {
        (void)pthread_detach(thread); /* it ends with the process */
        return 0;
    }
    free(ctx);
    (void)close(fd);
    errno = failed;
    return err_sys(err, ERR_INTERNAL, "start the thread that watches the caller");
}

/* A run that a person resumes has no caller. */
int restore_handover_watch(struct restore *restore, struct err *err)
{
    json_int_t pid = json_integer_value(json_object_get(restore->job->goal_file, "caller"));
    if (!restore_is_handover(restore) || pid <= 0)
        return 0;
    int fd = pidfd_open((pid_t)pid, 0);
    if (fd < 0 && errno == ESRCH)
        return err_set(err, ERR_CANCELLED, "whoever asked for this restore is gone");
    return fd < 0 ? err_sys(err, ERR_INTERNAL, "watch process %lld", (long long)pid)
                  : start_watch(fd, err);
}

/* --- is it possible here ---------------------------------------------------------------------- */

/* With the server's user's rights: it may have put a link there, to a place of root's. */
static int open_theirs(const struct restore *restore, const char *path, DIR **ret, struct err *err)
{
    int rc = process_fs_user(restore->conf.os_user, err);
    if (rc < 0)
        return rc;
    *ret = opendir(path);
    if (!*ret && errno != ENOENT)
        rc = err_sys(err, ERR_REFUSED, "look into '%s'", path);
    process_fs_root();
    return rc;
}

/* As Patroni looks at it: hidden files and lost+found do not count. */
int restore_handover_check_empty(const struct restore *restore, struct err *err)
{
    const char *path = restore->data_directory;
    char found[256] = "";
    enum pg_state state;
    int pid;
    int rc = pg_server_state(&restore->conf, &state, &pid, err);
    if (rc < 0)
        return rc;
    if (state != PG_STOPPED)
        return err_set(err, ERR_REFUSED, "PostgreSQL runs in '%s' (pid %d)", path, pid);
    DIR *dir = NULL;
    rc = open_theirs(restore, path, &dir, err);
    if (rc < 0 || !dir)
        return rc;
    for (struct dirent *entry; !found[0] && (entry = readdir(dir));)
        if (entry->d_name[0] != '.' && strcmp(entry->d_name, "lost+found") != 0)
            (void)snprintf(found, sizeof(found), "%s", entry->d_name);
    (void)closedir(dir);
    if (!found[0])
        return 0;
    (void)err_set(err, ERR_REFUSED, "the data directory '%s' is not empty: it holds '%s'", path,
                  found);
    return err_hint(err, "Patroni empties it before it calls a method without keep_data; a server "
                         "that is there is restored with `tidemark restore`");
}

static int check_directory(const struct restore *restore, struct err *err)
{
    char asked[PATH_MAX], here[PATH_MAX];
    const char *wanted = restore->request.handover_directory;
    if (wanted[0] != '/')
        return err_set(err, ERR_USAGE, "handover: '%s' is not an absolute path", wanted);
    path_resolve(wanted, asked);
    path_resolve(restore->conf.data_directory, here);
    if (strcmp(asked, here) != 0)
        return err_set(err, ERR_REFUSED,
                       "Patroni's data directory '%s' is not this node's data_directory '%s'",
                       wanted, restore->conf.data_directory);
    if (strcmp(restore->data_directory, restore->conf.data_directory) == 0)
        return 0;
    (void)err_set(err, ERR_REFUSED, "the snapshot's data directory would be '%s' here, not '%s'",
                  restore->data_directory, restore->conf.data_directory);
    return err_hint(err, "it lies below the mount point of its volume as on the node of the "
                         "snapshot");
}

/* --- a replica -------------------------------------------------------------------------------- */

/* Right after a promotion the history file is on its way to the archive. */
static int read_history(struct restore *restore, struct wal_history *ret, struct err *err)
{
    for (unsigned waited_ms = 0;; waited_ms += HISTORY_POLL_MS) {
        int rc = wal_history_read(&restore->archive, restore->request.leader_timeline, ret, err);
        if (rc != -ERR_MISSING || waited_ms >= HISTORY_WAIT_MS)
            return rc;
        rc = job_check_cancel(restore->job, err);
        if (rc < 0)
            return rc;
        pause_ms(HISTORY_POLL_MS);
    }
}

/* The leader's timeline goes through the end of the snapshot. */
static int check_timeline(struct restore *restore, struct err *err)
{
    static struct wal_history history; /* 16 KiB */
    const struct record *record = &restore->record;
    uint32_t timeline = restore->request.leader_timeline;
    uint64_t end_lsn = max_u64(record->stop_lsn, record->tag_lsn);
    if (timeline == 0 || timeline == record->timeline)
        return 0;
    int rc = timeline > record->timeline ? read_history(restore, &history, err) : 0;
    if (rc < 0)
        return err_prefix(err, "the leader's timeline %u", timeline);
    if (timeline > record->timeline)
        for (size_t i = 0; i < history.count; i++)
            if (history.entries[i].parent == record->timeline &&
                history.entries[i].switch_lsn >= end_lsn)
                return 0;
    (void)err_set(
        err, ERR_REFUSED,
        "the leader is on timeline %u, which does not contain snapshot '%s' (timeline %u)",
        timeline, record->tag, record->timeline);
    return err_hint(err, "take a snapshot of the leader, or name one that it descends from");
}

static int check_leader(struct restore *restore, struct err *err)
{
    const struct record *record = &restore->record;
    uint64_t leader = restore->request.leader_system;
    if (!restore->request.replica)
        return 0;
    if (leader && leader != record->system_id) {
        (void)err_set(err, ERR_REFUSED,
                      "snapshot '%s' is of another database cluster than the leader: system "
                      "identifier %llu, the leader has %llu",
                      record->tag, (unsigned long long)record->system_id,
                      (unsigned long long)leader);
        return err_hint(err, "take a snapshot of the leader");
    }
    if (!record->archived)
        return err_set(err, ERR_REFUSED,
                       "snapshot '%s' was taken without archiving: a replica could not follow "
                       "its leader from there",
                       record->tag);
    return check_timeline(restore, err);
}

int restore_handover_check(struct restore *restore, struct err *err)
{
    if (!restore_is_handover(restore))
        return 0;
    int rc = check_directory(restore, err);
    if (rc == 0)
        rc = restore_handover_check_empty(restore, err);
    return rc < 0 ? rc : check_leader(restore, err);
}

/* --- steps ------------------------------------------------------------------------------------ */

/* Only what is that user's own: nothing else is reached through a link. */
static int take_directory(const char *path, uid_t from, struct err *err)
{
    struct stat st;
    close_fd int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : err_sys(err, ERR_DEVICE, "open the mount point '%s'", path);
    if (fstat(fd, &st) == 0 && st.st_uid != from)
        return 0;
    if (fchown(fd, 0, 0) < 0 || fchmod(fd, 0755) < 0)
        return err_sys(err, ERR_DEVICE, "change the owner of the mount point '%s'", path);
    log_info("the directory below the mount point is root's now: path=%s", path);
    return 0;
}

int restore_handover_shut(const struct restore *restore, struct err *err)
{
    struct mount_entry entry;
    char home[256];
    uid_t uid;
    gid_t gid;
    int rc = process_user(restore->conf.os_user, &uid, &gid, home, err);
    for (size_t i = 0; rc == 0 && i < restore->volume_count; i++) {
        const char *path = restore->volumes[i].mount_point;
        if (restore_find_mount(path, &entry))
            return err_set(err, ERR_BUSY, "'%s' is mounted on '%s' again", entry.source, path);
        rc = take_directory(path, uid, err);
    }
    return rc;
}

/* State and step in one write: what is complete must not look interrupted. */
int restore_handover_finish(struct restore *restore, struct err *err)
{
    log_info("handed over, the server is left stopped: data_directory=%s", restore->data_directory);
    (void)json_object_set_new(restore->job->journal, "state", json_string("complete"));
    return restore_enter(restore, STEP_COMPLETE, err);
}
