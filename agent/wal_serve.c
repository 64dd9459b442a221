/* push and get of tidemark-wal-worker. What counts is the exit status (PostgreSQL:
 * RestoreArchivedFile() in xlogarchive.c, wait_error.c): restore_command's 1..125 mean "not there",
 * and recovery ends; more, or a signal, stops the server, which can be started again; only SIGTERM
 * ends it quietly, because then it is the server itself that stops. */
#include "agent/wal_serve.h"

#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/key_file.h"
#include "agent/log.h"
#include "agent/pg_names.h"
#include "agent/repository_access.h"
#include "agent/wal_launch.h"
#include "agent/wal_report.h"
#include "agent/wal_spool.h"
#include "agent/clock.h"
#include "io/format.h"

enum {
    BACKOFF_MIN_MS = 100,
    BACKOFF_MAX_MS = 5000,
    CORRUPT_RETRIES = 2,  /* a read error may pass, damaged bytes do not */
    DEVICE_RETRIES = 3,   /* a prefetcher may fill the last space for a moment */
    IN_FLIGHT_MAX_S = 60, /* for a segment that the prefetcher is fetching */
    IN_FLIGHT_POLL_MS = 1,
    STORE_RETRY_MAX_MS = 20000, /* within one try of get, which has its own loop */
    STORE_RETRY_MIN_MS = 1000,
};

/* --- the archive ------------------------------------------------------------------------------ */

/* New directories of a file:// repository inherit its group (setgid), so only root, who is outside
 * of it, has to set it. */
static int64_t store_group(const struct conf *conf)
{
    const char *name = conf->repository_group[0] ? conf->repository_group : "tidemark-repo";
    const struct group *group = geteuid() == 0 ? getgrnam(name) : NULL;
    return group ? (int64_t)group->gr_gid : -1;
}

int wal_identify(const struct wal_command *command, struct wal_connection *connection,
                 struct err *err)
{
    bool used_copy;
    int rc = repo_open(connection->archive.store, &connection->repo, &used_copy, err);
    if (rc < 0) {
        if (rc == -ERR_MISSING) /* an unmounted directory is empty: that is no absence */
            err->code = ERR_STORE;
        return -(int)err->code;
    }
    if (command->has_repository_id &&
        memcmp(connection->repo.id, command->repository_id, ID_LEN) != 0) {
        char have[ID_TEXT_LEN];
        id_to_text(connection->repo.id, have);
        return err_set(err, ERR_STORE, "%s is another repository (%s)",
                       command->conf.repository_url, have);
    }
    return key_file_unlock(&command->conf, REPOSITORY_WAL, connection->archive.store,
                           &connection->repo, err);
}

/* How long a request to an object store is repeated inside of one try: for push as configured (the
 * archiver calls again later); for get so short that get_timeout holds. */
static unsigned store_retry_ms(const struct wal_command *command)
{
    if (command->verb == WAL_PUSH)
        return 0;
    uint64_t quarter = command->conf.wal_get_timeout_s * 1000ull / 4;
    return (unsigned)max_u64(STORE_RETRY_MIN_MS, min_u64(STORE_RETRY_MAX_MS, quarter));
}

/* What a get tells while it waits: one line, whichever of its tries it is that waits. */
struct patience {
    const struct wal_command *command;
    uint64_t deadline_ms;
    bool told;
};

static void tell(struct patience *patience, const char *why)
{
    uint64_t now = now_ms();
    uint64_t left_ms = patience->deadline_ms - min_u64(now, patience->deadline_ms);
    if (!patience->told)
        log_warn("tidemark-wal get %s: %s; trying again for up to %llu s", patience->command->name,
                 why, (unsigned long long)div_round_up(left_ms, 1000));
    patience->told = true;
}

static void on_notice(void *ctx, const struct store_notice *notice)
{
    if (notice->failing) /* its end is told when the file is delivered */
        tell(ctx, notice->why);
}

/* patience: of a get, else NULL. */
static int open_store(const struct wal_command *command, struct patience *patience,
                      struct store **ret, struct err *err)
{
    struct repository_access access;
    int rc = repository_access_load(&command->conf, REPOSITORY_WAL, store_retry_ms(command),
                                    &access, err);
    if (rc < 0)
        return rc;
    access.options.group_id = store_group(&command->conf);
    if (patience) {
        access.options.notice = on_notice;
        access.options.notice_ctx = patience;
    }
    rc = store_open(command->conf.repository_url, &access.options, false, ret, err);
    repository_access_free(&access);
    return rc;
}

static int connect_with(const struct wal_command *command, struct patience *patience,
                        struct wal_connection *ret, struct err *err)
{
    memset(ret, 0, sizeof(*ret));
    int rc = wal_command_system_id(command, &ret->archive.system_id, err);
    if (rc == 0)
        rc = open_store(command, patience, &ret->archive.store, err);
    if (rc == 0)
        rc = wal_identify(command, ret, err);
    if (rc < 0) {
        wal_disconnect(ret);
        return rc;
    }
    ret->archive.repo = &ret->repo;
    (void)snprintf(ret->archive.cluster, sizeof(ret->archive.cluster), "%s", command->conf.cluster);
    return 0;
}

int wal_connect(const struct wal_command *command, struct wal_connection *ret, struct err *err)
{
    return connect_with(command, NULL, ret, err);
}

void wal_disconnect(struct wal_connection *connection)
{
    store_close(connection->archive.store);
    connection->archive.store = NULL;
}

unsigned wal_useful_threads(const struct conf *conf, unsigned wanted)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (repository_directory(conf) == NULL)
        return wanted;
    return (unsigned)min_u64(cores > 0 ? min_u64((uint64_t)cores, 4) : 1, wanted);
}

/* --- push ------------------------------------------------------------------------------------- */

/* For the agent, which cannot see why archive_command failed. */
static void leave_report(const struct wal_command *command, int rc, const struct err *err)
{
    char base[CONF_PATH_MAX + 1];
    if (!wal_command_spool(command, command->path, base))
        return;
    if (rc < 0)
        wal_report_write(base, command->name, err);
    else
        wal_report_clear(base);
}

int wal_serve_push(const struct wal_command *command)
{
    struct wal_connection connection;
    struct err err;
    int rc = wal_connect(command, &connection, &err);
    if (rc == 0) {
        rc = wal_push(&connection.archive, command->path, command->name, &err);
        wal_disconnect(&connection);
    }
    leave_report(command, rc, &err);
    if (rc == 0)
        return 0;
    (void)err_prefix(&err, "tidemark-wal push %s", command->name);
    log_err(&err);
    return err_exit_status(err.code);
}

/* --- get: signals ----------------------------------------------------------------------------- */

/* For the handler only: what to remove and what to say. Set once before the handlers. */
static char signal_temp[CONF_PATH_MAX + 16];
static char signal_text[128];

/* Says so and dies of the same signal: PostgreSQL ends quietly when its restore_command ended by
 * SIGTERM, and would call any exit status a failure of the archive. */
static void on_signal(int number)
{
    ssize_t ignored = write(STDERR_FILENO, signal_text, strlen(signal_text));
    (void)ignored;
    (void)unlink(signal_temp);
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

static void catch_signals(const struct wal_command *command)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    (void)snprintf(signal_temp, sizeof(signal_temp), "%s.tidemark", command->path);
    (void)snprintf(signal_text, sizeof(signal_text),
                   "tidemark-wal get %s: stopped by a signal, nothing was delivered\n",
                   command->name);
    (void)sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++)
        (void)sigaction(numbers[i], &action, NULL);
}

/* --- get: the spool ----------------------------------------------------------------------------
 */

/* The prefetcher may be fetching just this segment: then it is faster to wait for it than to fetch
 * it a second time. Its temporary is there from the beginning of a fetch to its end. */
static bool wait_in_flight(const struct wal_spool *spool, const char *name)
{
    char temp[sizeof(spool->dir) + 128], path[sizeof(spool->dir) + 128];
    uint64_t deadline = now_ms() + IN_FLIGHT_MAX_S * 1000;
    wal_spool_path(spool, name, ".tidemark", temp, sizeof(temp));
    wal_spool_path(spool, name, "", path, sizeof(path));
    while (now_ms() < deadline) {
        if (access(path, F_OK) == 0)
            return true;
        if (access(temp, F_OK) < 0 || !wal_spool_busy(spool))
            return access(path, F_OK) == 0;
        pause_ms(IN_FLIGHT_POLL_MS);
    }
    return false;
}

/* SPOOL_MISS: fetch it. */
static enum wal_spool_event take_from_spool(const struct wal_connection *connection,
                                            const struct wal_command *command,
                                            struct wal_spool *spool, uint32_t *ret_size)
{
    uint64_t system_id = connection->archive.system_id;
    if (wal_spool_take(spool, command->name, system_id, command->path, ret_size))
        return SPOOL_HIT;
    if (wait_in_flight(spool, command->name) &&
        wal_spool_take(spool, command->name, system_id, command->path, ret_size))
        return SPOOL_WAIT;
    return SPOOL_MISS;
}

/* --- get: the repository ------------------------------------------------------------------------
 */

static uint32_t file_size(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && st.st_size <= FMT_WAL_RAW_MAX ? (uint32_t)st.st_size : 0;
}

static int fetch_segment(const struct wal_connection *connection, const struct wal_command *command,
                         int argc, char **argv, struct err *err)
{
    char base[CONF_PATH_MAX + 1];
    struct wal_spool spool;
    uint32_t size = 0;
    if (command->conf.wal_prefetch == 0 || !wal_command_spool(command, command->path, base) ||
        !wal_spool_open(base, connection->archive.system_id, connection->repo.id, true, &spool))
        return wal_get(&connection->archive, command->name, command->path, false, err);
    enum wal_spool_event event = take_from_spool(connection, command, &spool, &size);
    int rc = 0;
    if (event == SPOOL_MISS)
        rc = wal_get(&connection->archive, command->name, command->path, false, err);
    if (rc == 0) {
        wal_spool_delivered(&spool, command->name, size ? size : file_size(command->path), event);
        if (!wal_spool_busy(&spool))
            wal_launch_prefetch(argc, argv);
    }
    wal_spool_close(&spool);
    return rc;
}

/* --timeline-limit=latest: the newest timeline as PostgreSQL finds it for recovery_target_timeline
 * = 'latest' (findNewestTimeLine() in timeline.c), one number after the other. An old timeline's
 * segment with the fork, and later ones, hold commits that the new one does not have: a standby
 * that gets them, because the new timeline's own segment is not archived yet, has replayed past the
 * fork and can never follow it. It gets the rest from its primary. ERR_MISSING: withheld. */
static int check_latest(const struct wal_connection *connection, const struct wal_command *command,
                        struct err *err)
{
    static struct wal_history history; /* 16 KiB */
    uint32_t timeline = 0, newest;
    uint64_t number = 0;
    if (!command->limit_latest ||
        !pg_segment_parse(command->name, command->segment_size, &timeline, &number))
        return 0;
    for (newest = timeline; newest < UINT32_MAX; newest++) {
        int rc = wal_history_read(&connection->archive, newest + 1, &history, err);
        if (rc == -ERR_MISSING)
            break;
        if (rc < 0)
            return rc;
    }
    err_clear(err);
    for (size_t i = 0; newest > timeline && i < history.count; i++)
        if (history.entries[i].parent == timeline &&
            (number + 1) * command->segment_size > history.entries[i].switch_lsn)
            return err_set(err, ERR_MISSING, "withheld: timeline %u has left timeline %u in it",
                           newest, timeline);
    return 0;
}

/* One try, with a store opened anew: a repository that was unmounted and is back is another
 * directory. */
static int try_get(const struct wal_command *command, struct patience *patience, int argc,
                   char **argv, struct err *err)
{
    struct wal_connection connection;
    enum wal_kind kind;
    int rc = connect_with(command, patience, &connection, err);
    if (rc < 0)
        return rc;
    (void)wal_name_parse(command->name, &kind, NULL);
    if (kind == WAL_SEGMENT)
        rc = check_latest(&connection, command, err);
    if (rc == 0 && kind == WAL_SEGMENT)
        rc = fetch_segment(&connection, command, argc, argv, err);
    else if (rc == 0)
        rc = wal_get(&connection.archive, command->name, command->path, false, err);
    wal_disconnect(&connection);
    return rc;
}

static bool may_pass(const struct err *err, unsigned tries)
{
    switch (err->code) {
    case ERR_USAGE:
    case ERR_CONFIG:
    case ERR_REFUSED:
    case ERR_INTERNAL:
        return false;
    case ERR_CORRUPT:
        return tries < CORRUPT_RETRIES;
    case ERR_DEVICE: /* of the file to be written */
        return tries < DEVICE_RETRIES;
    case ERR_OK:
    case ERR_STORE:
    case ERR_AUTH:
    case ERR_MISSING:
    case ERR_POSTGRES:
    case ERR_BUSY:
    case ERR_CANCELLED:
    case ERR_PARTIAL:
    case ERR_CODE_COUNT:
        break;
    }
    return true;
}

/* Exponential, with jitter, so that many standbys do not come back at the same moment. */
static uint64_t backoff_ms(unsigned tries)
{
    uint64_t longest = min_u64(BACKOFF_MAX_MS, (uint64_t)BACKOFF_MIN_MS << min_u64(tries, 10));
    uint32_t random = 0;
    if (getrandom(&random, sizeof(random), GRND_NONBLOCK) < 0)
        random = 0; /* then without jitter */
    return longest / 2 + random % (longest / 2 + 1);
}

/* Tries until the time is over. 0, ERR_MISSING (confirmed), or the last error. */
static int get_with_retries(const struct wal_command *command, int argc, char **argv,
                            struct err *err)
{
    uint64_t deadline = now_ms() + command->conf.wal_get_timeout_s * 1000ull;
    struct patience patience = {.command = command, .deadline_ms = deadline};
    for (unsigned tries = 1;; tries++) {
        int rc = try_get(command, &patience, argc, argv, err);
        if (patience.told && (rc == 0 || rc == -ERR_MISSING))
            log_info("tidemark-wal get %s: the repository answers again", command->name);
        if (rc == 0 || rc == -ERR_MISSING || !may_pass(err, tries))
            return rc;
        uint64_t now = now_ms(), pause = backoff_ms(tries);
        if (now >= deadline)
            return rc;
        if (err->code != ERR_DEVICE)
            tell(&patience, err->text);
        pause_ms(min_u64(pause, deadline - now));
    }
}

int wal_serve_get(const struct wal_command *command, int argc, char **argv)
{
    struct err err;
    if (wal_command_withholds(command, command->name)) {
        log_info("tidemark-wal get %s: withheld, as the options say", command->name);
        return WAL_EXIT_ABSENT;
    }
    catch_signals(command);
    int rc = get_with_retries(command, argc, argv, &err);
    if (rc == 0)
        return 0;
    if (rc == -ERR_MISSING)
        return WAL_EXIT_ABSENT;
    (void)err_prefix(&err, "tidemark-wal get %s", command->name);
    log_err(&err);
    /* A standby asks again and never ends its recovery: for it a repository that does not answer is
     * as good as an absent file, and so is a full disk: its next restartpoint may make room. What
     * no waiting mends stays fatal. */
    bool full = err.code == ERR_DEVICE && (err.sys_errno == ENOSPC || err.sys_errno == EDQUOT);
    return command->retry_as_absent && (full || may_pass(&err, UINT_MAX)) ? WAL_EXIT_ABSENT
                                                                          : WAL_EXIT_FAILED;
}
