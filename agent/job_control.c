/* Jobs seen from outside: making, listing, cancelling, pruning (job_start.c starts). Used by the
 * agent and by the command line alike, so that a job without an agent obeys the same rules. See
 * job.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/cluster_lock.h"
#include "agent/job.h"
#include "agent/log.h"

enum { JOBS_MAX = 4096, UNBORN_MAX_S = 3600 };

void job_dir(const struct conf *conf, const char *id, char ret[JOB_DIR_MAX])
{
    (void)snprintf(ret, JOB_DIR_MAX, "%s/jobs/%s", conf->state_dir, id);
}

bool job_state_is_final(const char *state)
{
    return strcmp(state, "complete") == 0 || strcmp(state, "failed") == 0 ||
           strcmp(state, "cancelled") == 0 || strcmp(state, "taken_over") == 0;
}

int job_is_busy(const char *id, struct err *err)
{
    (void)err_set(err, ERR_BUSY, "job %s is running", id);
    return err_hint(err, "`tidemark jobs --follow %s` shows how it goes", id);
}

/* --- the lock ----------------------------------------------------------------------------------*/
/* Byte 0 of the file is locked while somebody runs the job or changes its journal; byte 1 as well
 * once the pid of a run is in the file. Without the second a reader could take the pid of the run
 * before, which may be a stranger's by now, for the holder's, or signal whoever is only writing. */
enum { LOCK_HELD, LOCK_PID };

static bool lock_byte(int fd, int byte)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

static bool is_locked(int fd, int byte)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static int hold(const char *dir, int *ret_fd, struct err *err)
{
    char path[JOB_DIR_MAX + 32];
    (void)snprintf(path, sizeof(path), "%s/lock", dir);
    close_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    if (!lock_byte(fd, LOCK_HELD)) {
        if (errno != EAGAIN && errno != EACCES)
            return err_sys(err, ERR_DEVICE, "lock '%s'", path);
        return job_is_busy(strrchr(dir, '/') + 1, err);
    }
    *ret_fd = take_fd(&fd);
    return 0;
}

int job_lock(const char *dir, int *ret_fd, struct err *err)
{
    char text[32];
    close_fd int fd = -1;
    int rc = hold(dir, &fd, err);
    if (rc < 0)
        return rc;
    int len = snprintf(text, sizeof(text), "%d\n", getpid());
    if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)len, 0) != len || !lock_byte(fd, LOCK_PID))
        return err_sys(err, ERR_DEVICE, "write '%s/lock'", dir);
    *ret_fd = take_fd(&fd);
    return 0;
}

bool job_is_running(const char *dir, int *ret_pid)
{
    char path[JOB_DIR_MAX + 32], text[32] = "";
    (void)snprintf(path, sizeof(path), "%s/lock", dir);
    close_fd int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || !is_locked(fd, LOCK_HELD))
        return false;
    if (ret_pid)
        *ret_pid = is_locked(fd, LOCK_PID) && pread(fd, text, sizeof(text) - 1, 0) > 0
                       ? (int)strtol(text, NULL, 10)
                       : 0;
    return true;
}

/* --- making ------------------------------------------------------------------------------------*/
static int make_directories(const struct conf *conf, struct err *err)
{
    char path[JOB_DIR_MAX];
    (void)snprintf(path, sizeof(path), "%s/jobs", conf->state_dir);
    for (char *at = path + 1; *at; at++) {
        if (*at != '/')
            continue;
        *at = '\0';
        if (mkdir(path, 0755) < 0 && errno != EEXIST)
            return err_sys(err, ERR_DEVICE, "create '%s'", path);
        *at = '/';
    }
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return err_sys(err, ERR_DEVICE, "create '%s'", path);
    return 0;
}

static int save_in(const char *dir, const char *name, const json_t *json, struct err *err)
{
    char path[JOB_DIR_MAX + 32];
    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    return json_save(path, json, true, err);
}

static uint64_t now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static int fill_directory(const char *dir, const char *id, const struct conf *conf,
                          const json_t *request, const json_t *more, struct err *err)
{
    free_json json_t *journal = json_pack("{s:s, s:O, s:s, s:s, s:I, s:n}", "id", id, "type",
                                          json_object_get(request, "type"), "state", "created",
                                          "phase", "", "created_ms", (json_int_t)now_ms(), "error");
    if (!journal)
        return err_set(err, ERR_INTERNAL, "request without a type");
    static const char *const parts[] = {"cluster", "handover"};
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        if (json_object_get(request, parts[i]))
            (void)json_object_set(journal, parts[i], json_object_get(request, parts[i]));
    if (more)
        (void)json_object_update(journal, (json_t *)(uintptr_t)more);
    int rc = job_write_conf(dir, conf, err);
    if (rc == 0)
        rc = save_in(dir, "request.json", request, err);
    if (rc == 0)
        rc = save_in(dir, "journal.json", journal, err);
    return rc;
}

/* Only plain files are ever in a job's directory. */
static void remove_directory(const char *dir)
{
    DIR *entries = opendir(dir);
    if (!entries)
        return;
    for (struct dirent *entry; (entry = readdir(entries));)
        if (entry->d_name[0] != '.')
            (void)unlinkat(dirfd(entries), entry->d_name, 0);
    (void)closedir(entries);
    (void)rmdir(dir);
}

void job_discard(const struct conf *conf, const char *id)
{
    char dir[JOB_DIR_MAX];
    job_dir(conf, id, dir);
    if (!job_is_running(dir, NULL))
        remove_directory(dir);
}

/* A directory without a journal is a job that is being made, or whose maker died. */
static void prune_unborn(const struct conf *conf)
{
    char path[JOB_DIR_MAX], journal[ID_TEXT_LEN + 32];
    uint8_t id[ID_LEN];
    struct stat st;
    (void)snprintf(path, sizeof(path), "%s/jobs", conf->state_dir);
    DIR *entries = opendir(path);
    for (struct dirent *entry; entries && (entry = readdir(entries));) {
        if (!id_from_text(entry->d_name, id))
            continue;
        (void)snprintf(journal, sizeof(journal), "%s/journal.json", entry->d_name);
        if (faccessat(dirfd(entries), journal, F_OK, 0) < 0 && errno == ENOENT &&
            fstatat(dirfd(entries), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            time(NULL) - st.st_mtime > UNBORN_MAX_S)
            job_discard(conf, entry->d_name);
    }
    if (entries)
        (void)closedir(entries);
}

/* jobs is sorted, oldest first: the newest ended ones stay. */
static void prune(const struct conf *conf)
{
    prune_unborn(conf);
    free_json json_t *jobs = NULL;
    struct err err;
    if (job_list(conf, &jobs, &err) < 0)
        return;
    size_t ended = 0;
    for (size_t i = json_array_size(jobs); i-- > 0;) {
        json_t *job = json_array_get(jobs, i);
        const char *id = json_string_value(json_object_get(job, "id"));
        if (!id || !job_is_over(job))
            continue;
        if (++ended > JOBS_ENDED_MAX)
            job_discard(conf, id);
    }
}

int job_create_as(const struct conf *conf, const char *id, const json_t *request,
                  const json_t *more, struct err *err)
{
    char dir[JOB_DIR_MAX];
    int rc = make_directories(conf, err);
    if (rc < 0)
        return rc;
    prune(conf);
    job_dir(conf, id, dir);
    if (mkdir(dir, 0700) < 0)
        return err_sys(err, ERR_DEVICE, "create '%s'", dir);
    rc = fill_directory(dir, id, conf, request, more, err);
    if (rc < 0)
        remove_directory(dir);
    return rc;
}

int job_create(const struct conf *conf, const json_t *request, char ret_id[ID_TEXT_LEN],
               struct err *err)
{
    uint8_t id[ID_LEN];
    char text[ID_TEXT_LEN];
    int rc = id_random(id, err);
    if (rc < 0)
        return rc;
    id_to_text(id, text);
    rc = job_create_as(conf, text, request, NULL, err);
    if (rc == 0)
        (void)snprintf(ret_id, ID_TEXT_LEN, "%s", text);
    return rc;
}

int job_set_goal(const struct conf *conf, const char *id, const char *goal, const json_t *options,
                 struct err *err)
{
    char dir[JOB_DIR_MAX];
    job_dir(conf, id, dir);
    if (job_is_running(dir, NULL))
        return job_is_busy(id, err);
    free_json json_t *json = json_pack("{s:s}", "goal", goal);
    if (options)
        (void)json_object_update_missing(json, (json_t *)(uintptr_t)options);
    return save_in(dir, "goal.json", json, err);
}

/* --- looking -----------------------------------------------------------------------------------*/
/* The steps of a restore from which on the device is neither old nor new. */
bool job_is_partial(const json_t *status)
{
    static const char *const steps[] = {"marked",     "pulling",   "written", "configured",
                                        "recovering", "verifying", NULL};
    const char *step = json_string_value(json_object_get(status, "step"));
    const char *state = json_string_value(json_object_get(status, "state"));
    if (!step || !state || strcmp(state, "complete") == 0 || strcmp(state, "taken_over") == 0 ||
        json_is_true(json_object_get(status, "given_up")))
        return false;
    for (size_t i = 0; steps[i]; i++)
        if (strcmp(step, steps[i]) == 0)
            return true;
    return false;
}

bool job_is_cluster_part(const json_t *status)
{
    return json_is_object(json_object_get(status, "cluster"));
}

bool job_is_handover(const json_t *status)
{
    return json_is_object(json_object_get(status, "handover"));
}

void job_resume_command(const json_t *status, char ret[JOB_COMMAND_MAX])
{
    const char *whole = json_str(json_object_get(status, "cluster"), "job");
    bool cluster = whole[0] || json_is(status, "type", "cluster_restore");
    (void)snprintf(ret, JOB_COMMAND_MAX, "tidemark %s %s",
                   cluster ? "cluster resume" : "restore --resume",
                   whole[0] ? whole : json_str(status, "id"));
}

bool job_is_over(const json_t *status)
{
    const char *state = json_string_value(json_object_get(status, "state"));
    const char *step = json_string_value(json_object_get(status, "step"));
    bool keeps_fence = json_object_get(status, "held_at") && state &&
                       strcmp(state, "failed") == 0 && step && strcmp(step, "fenced") == 0;
    bool keeps_nodes = json_is_true(json_object_get(status, "not_released"));
    return state && job_state_is_final(state) && !job_is_partial(status) && !keeps_fence &&
           !keeps_nodes;
}

json_t *job_told_time(const json_t *journal)
{
    json_t *interrupted = json_object_get(journal, "interrupted_s");
    return interrupted ? interrupted : json_object_get(journal, "ended_s");
}

/* What was told of an end before the last is about another run. */
static void add_notified(const char *dir, json_t *status)
{
    char path[JOB_DIR_MAX + 32];
    free_json json_t *file = NULL;
    struct err ignored;
    (void)snprintf(path, sizeof(path), "%s/notified.json", dir);
    json_t *ended = job_told_time(status);
    if (ended && json_load_path(path, &file, &ignored) == 0 &&
        json_equal(json_object_get(file, "ended_s"), ended))
        (void)json_object_set(status, "notified", json_object_get(file, "notified"));
}

/* The lock is asked first: the last journal is written before the lock is released, so "not locked"
 * followed by "running" in the journal means that the process died. */
int job_status(const struct conf *conf, const char *id, json_t **ret, struct err *err)
{
    char dir[JOB_DIR_MAX], path[JOB_DIR_MAX + 32];
    uint8_t bytes[ID_LEN];
    if (!id_from_text(id, bytes))
        return err_set(err, ERR_MISSING, "'%.64s' is not the id of a job", id);
    job_dir(conf, id, dir);
    bool running = job_is_running(dir, NULL);
    free_json json_t *journal = NULL, *progress = NULL;
    (void)snprintf(path, sizeof(path), "%s/journal.json", dir);
    int rc = json_load_path(path, &journal, err);
    if (rc == -ERR_MISSING)
        return err_set(err, ERR_MISSING, "there is no job %s", id);
    if (rc < 0)
        return rc;
    const char *state = json_string_value(json_object_get(journal, "state"));
    if (!state)
        return err_set(err, ERR_CORRUPT, "'%s' has no state", path);
    if (!running && strcmp(state, "running") == 0)
        (void)json_object_set_new(journal, "state", json_string("interrupted"));
    (void)json_object_set_new(journal, "running", json_boolean(running));
    (void)json_object_del(journal, "token"); /* with it a coordinator claims its nodes */
    (void)snprintf(path, sizeof(path), "%s/progress.json", dir);
    struct err ignored;
    if (json_load_path(path, &progress, &ignored) == 0)
        (void)json_object_set(journal, "progress", progress);
    add_notified(dir, journal);
    *ret = json_incref(journal);
    return 0;
}

/* Looking at the lock is three system calls; only a restore's start notices less than END_LOOK_MS.
 */
void job_pause(const struct conf *conf, const char *id, unsigned timeout_ms)
{
    enum { END_LOOK_MS = 5 };
    char dir[JOB_DIR_MAX];
    job_dir(conf, id, dir);
    struct timespec look = {.tv_nsec = END_LOOK_MS * 1000000L};
    for (unsigned waited_ms = 0; waited_ms < timeout_ms; waited_ms += END_LOOK_MS)
        if (nanosleep(&look, NULL) < 0 || !job_is_running(dir, NULL))
            return;
}

static json_t *damaged_status(const char *id, const struct err *err)
{
    return json_pack("{s:s, s:s, s:s, s:b, s:{s:s, s:s, s:s}}", "id", id, "type", "unknown",
                     "state", "failed", "running", 0, "error", "code", err_code_name(err->code),
                     "text", err->text, "hint", err->hint);
}

static int compare_created(const void *a, const void *b)
{
    const json_t *const *left = a, *const *right = b;
    json_int_t x = json_integer_value(json_object_get(*left, "created_ms"));
    json_int_t y = json_integer_value(json_object_get(*right, "created_ms"));
    return x < y ? -1 : x > y;
}

static size_t collect(const struct conf *conf, DIR *entries, json_t **jobs)
{
    size_t count = 0;
    uint8_t bytes[ID_LEN];
    for (struct dirent *entry; count < JOBS_MAX && (entry = readdir(entries));) {
        struct err err;
        if (!id_from_text(entry->d_name, bytes))
            continue;
        int rc = job_status(conf, entry->d_name, &jobs[count], &err);
        if (rc == -ERR_MISSING)
            continue; /* being made or removed */
        if (rc < 0)
            jobs[count] = damaged_status(entry->d_name, &err);
        count++;
    }
    return count;
}

int job_list(const struct conf *conf, json_t **ret, struct err *err)
{
    char path[JOB_DIR_MAX];
    (void)snprintf(path, sizeof(path), "%s/jobs", conf->state_dir);
    DIR *entries = opendir(path);
    if (!entries && errno != ENOENT)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    json_t *array = json_array();
    if (entries) {
        json_t **jobs = calloc(JOBS_MAX, sizeof(json_t *));
        if (!jobs)
            abort();
        size_t count = collect(conf, entries, jobs);
        (void)closedir(entries);
        qsort(jobs, count, sizeof(json_t *), compare_created);
        for (size_t i = 0; i < count; i++)
            (void)json_array_append_new(array, jobs[i]);
        free(jobs);
    }
    *ret = array;
    return 0;
}

/* --- ending ------------------------------------------------------------------------------------*/
/* A pidfd first, then the lock again: the signal cannot hit a stranger that got the number. */
int job_cancel(const struct conf *conf, const char *id, struct err *err)
{
    char dir[JOB_DIR_MAX];
    int pid = 0;
    job_dir(conf, id, dir);
    if (!job_is_running(dir, &pid) || pid <= 0)
        return err_set(err, ERR_MISSING, "job %s is not running", id);
    close_fd int fd = pidfd_open(pid, 0);
    int again = 0;
    if (fd < 0 || !job_is_running(dir, &again) || again != pid)
        return err_set(err, ERR_MISSING, "job %s is not running", id);
    if (pidfd_send_signal(fd, SIGTERM, NULL, 0) < 0)
        return err_sys(err, errno == EPERM ? ERR_AUTH : ERR_INTERNAL, "signal process %d", pid);
    return 0;
}

/* In a process of its own: whoever ends jobs has others to look after. */
static void start_notify(const struct conf *conf, const char *dir)
{
    struct err err;
    if ((conf->notify_command[0] || conf->notify_webhook[0]) && job_start_notify(dir, &err) < 0)
        log_warn("nobody is told of the end of a job: job=%s err=\"%s\"", strrchr(dir, '/') + 1,
                 err.text);
}

/* What it read may go. A verification is gone on with, and of a handover Patroni's server recovers
 * yet. */
static void start_forget(const char *dir, const json_t *journal)
{
    struct err err;
    bool reads = json_is(journal, "type", "restore") || json_is(journal, "type", "export");
    if (reads && !job_is_handover(journal) && job_start_forget(dir, &err) < 0)
        log_warn("the mark that a job reads a snapshot stays: job=%s err=\"%s\"",
                 strrchr(dir, '/') + 1, err.text);
}

/* The journal of a job whose process is gone, for a change: nobody starts it before *ret_fd is
 * closed. */
static int open_journal(const char *dir, char path[JOB_DIR_MAX + 32], json_t **ret, int *ret_fd,
                        struct err *err)
{
    json_t *journal = NULL;
    (void)snprintf(path, JOB_DIR_MAX + 32, "%s/journal.json", dir);
    int rc = json_load_path(path, &journal, err); /* no lock file where there is no job */
    json_decref(take_ptr(&journal));
    if (rc == 0)
        rc = hold(dir, ret_fd, err);
    return rc < 0 ? rc : json_load_path(path, ret, err);
}

static void set_error(json_t *journal, const struct err *why)
{
    (void)json_object_set_new(journal, "error",
                              json_pack("{s:s, s:s, s:s}", "code", err_code_name(why->code), "text",
                                        why->text, "hint", why->hint));
}

int job_end(const struct conf *conf, const char *id, const char *state, const struct err *why,
            struct err *err)
{
    char dir[JOB_DIR_MAX], path[JOB_DIR_MAX + 32];
    free_json json_t *journal = NULL;
    close_fd int lock_fd = -1;
    job_dir(conf, id, dir);
    int rc = open_journal(dir, path, &journal, &lock_fd, err);
    if (rc < 0)
        return rc;
    bool partial = job_is_partial(journal);
    const char *old = json_string_value(json_object_get(journal, "state"));
    if (!partial && old && job_state_is_final(old))
        return err_set(err, ERR_REFUSED, "job %s has ended already: %s", id, old);
    if (partial)
        (void)json_object_set_new(journal, "given_up", json_true());
    (void)json_object_del(journal, "interrupted_s");
    (void)json_object_set_new(journal, "state", json_string(state));
    (void)json_object_set_new(journal, "ended_s", json_integer(time(NULL)));
    if (why)
        set_error(journal, why);
    rc = json_save(path, journal, true, err);
    if (rc < 0)
        return rc;
    start_notify(conf, dir);
    start_forget(dir, journal);
    return job_is_cluster_part(journal) ? cluster_lock_release(conf, id, err) : 0;
}

int job_note_interrupted(const struct conf *conf, const char *id, const struct err *why,
                         struct err *err)
{
    char dir[JOB_DIR_MAX], path[JOB_DIR_MAX + 32];
    free_json json_t *journal = NULL;
    close_fd int lock_fd = -1;
    job_dir(conf, id, dir);
    int rc = open_journal(dir, path, &journal, &lock_fd, err);
    const char *state = json_string_value(json_object_get(journal, "state"));
    if (rc == 0 && (!state || strcmp(state, "running") != 0))
        rc = err_set(err, ERR_REFUSED, "job %s is not interrupted", id);
    if (rc < 0)
        return rc;
    (void)json_object_set_new(journal, "interrupted_s", json_integer(time(NULL)));
    set_error(journal, why);
    rc = json_save(path, journal, true, err);
    if (rc == 0)
        start_notify(conf, dir);
    return rc;
}
