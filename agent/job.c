/* Inside a job's process: locks, journal, progress, signals, the choice of the verb. See job.h. */
#include "agent/job.h"

#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/cluster_gate.h"
#include "agent/cluster_lock.h"
#include "agent/log.h"
#include "agent/node_lock.h"
#include "agent/notify.h"
#include "agent/restore.h"

enum { PROGRESS_MS = 500, RATE_WINDOW = 10 };

/* What the signal handler reaches; set once, before the handler is installed. */
static _Atomic bool *cancel_flag;

static void on_signal(int number)
{
    (void)number;
    atomic_store(cancel_flag, true);
}

static void install_signals(struct job *job)
{
    struct sigaction cancel = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    cancel_flag = &job->progress.cancel;
    (void)sigaction(SIGTERM, &cancel, NULL);
    (void)sigaction(SIGINT, &cancel, NULL);
    (void)sigaction(SIGHUP, &ignore, NULL);
    (void)sigaction(SIGPIPE, &ignore, NULL);
}

/* --- progress ----------------------------------------------------------------------------------*/
struct rate {
    uint64_t bytes[RATE_WINDOW]; /* bytes_done at the last ticks, a ring */
    unsigned count;
};

/* Bytes a second over the last five seconds; a new phase that starts again from 0 empties the
 * window. */
static uint64_t rate_update(struct rate *rate, uint64_t bytes_done)
{
    uint64_t last = rate->count ? rate->bytes[(rate->count - 1) % RATE_WINDOW] : 0;
    if (bytes_done < last)
        rate->count = 0;
    unsigned have = rate->count < RATE_WINDOW ? rate->count : RATE_WINDOW;
    uint64_t oldest = have ? rate->bytes[(rate->count - have) % RATE_WINDOW] : bytes_done;
    rate->bytes[rate->count++ % RATE_WINDOW] = bytes_done;
    return have ? (bytes_done - oldest) * 1000 / (have * PROGRESS_MS) : 0;
}

static void set_u64(json_t *json, const char *key, uint64_t value)
{
    (void)json_object_set_new(json, key, json_integer((json_int_t)value));
}

static void write_progress(struct job *job, struct rate *rate)
{
    struct io_progress *from = &job->progress;
    char path[JOB_DIR_MAX + 32], phase[sizeof(job->phase)];
    struct err err;
    (void)pthread_mutex_lock(&job->mutex);
    memcpy(phase, job->phase, sizeof(phase));
    (void)pthread_mutex_unlock(&job->mutex);
    free_json json_t *json = json_object();
    uint64_t done = atomic_load(&from->bytes_done), total = atomic_load(&from->bytes_total);
    uint64_t bytes_s = rate_update(rate, done);
    (void)json_object_set_new(json, "phase", json_string(phase));
    set_u64(json, "bytes_total", total);
    set_u64(json, "bytes_done", done);
    set_u64(json, "bytes_stored", atomic_load(&from->bytes_stored));
    set_u64(json, "chunks_stored", atomic_load(&from->chunks_stored));
    set_u64(json, "chunks_same", atomic_load(&from->chunks_same));
    set_u64(json, "bytes_same", atomic_load(&from->bytes_same));
    set_u64(json, "chunks_zero", atomic_load(&from->chunks_zero));
    set_u64(json, "objects", atomic_load(&from->objects));
    set_u64(json, "rate_bytes_s", bytes_s);
    if (bytes_s > 0 && total > done)
        set_u64(json, "left_s", (total - done) / bytes_s);
    set_u64(json, "updated_s", (uint64_t)time(NULL));
    (void)snprintf(path, sizeof(path), "%s/progress.json", job->dir);
    if (json_save(path, json, false, &err) < 0)
        log_debug("progress not written: %s", err.text); /* a full disk must not end the job */
}

static void *writer_main(void *ctx)
{
    struct job *job = ctx;
    struct rate rate = {0};
    do
        write_progress(job, &rate);
    while (!background_wait(&job->writer, PROGRESS_MS));
    write_progress(job, &rate);
    return NULL;
}

/* --- opening -----------------------------------------------------------------------------------*/
static int load(const char *dir, const char *name, json_t **ret, struct err *err)
{
    char path[JOB_DIR_MAX + 32];
    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    return json_load_path(path, ret, err);
}

static int load_goal(struct job *job, struct err *err)
{
    int rc = load(job->dir, "goal.json", &job->goal_file, err);
    if (rc == 0)
        return job_goal_parse(job->goal_file, job->goal, err);
    if (rc == -ERR_MISSING)
        (void)snprintf(job->goal, sizeof(job->goal), "all");
    return rc == -ERR_MISSING ? 0 : rc;
}

/* While a restore is unfinished its volumes hold nothing that a snapshot or another restore should
 * build on; the person decides what becomes of it first. */
static int check_partial(const struct job *job, struct err *err)
{
    free_json json_t *jobs = NULL;
    int rc = job_list(&job->conf, &jobs, err);
    if (rc < 0)
        return rc;
    size_t i;
    json_t *other;
    json_array_foreach(jobs, i, other)
    {
        const char *id = json_string_value(json_object_get(other, "id"));
        if (!id || strcmp(id, job->id) == 0 || !job_is_partial(other))
            continue;
        char command[JOB_COMMAND_MAX];
        job_resume_command(other, command);
        (void)err_set(err, ERR_PARTIAL, "restore %s is not finished", id);
        return err_hint(err, "finish it with `%s`, or give it up with `tidemark cancel %s`",
                        command, id);
    }
    return 0;
}

/* *ret_wanted: the job is a restore that is to hold the node for its cluster restore. A dry run
 * holds nothing. The shape of the request was checked by api_request_parse(). */
static int wanted_lock(const struct job *job, struct cluster_lock *ret, bool *ret_wanted,
                       struct err *err)
{
    const json_t *cluster = json_object_get(job->request, "cluster");
    const char *text;
    memset(ret, 0, sizeof(*ret));
    *ret_wanted = cluster && !json_is_true(json_object_get(job->request, "dry_run"));
    if (!*ret_wanted)
        return 0;
    int rc = json_get_string(cluster, "job", ERR_CORRUPT, &text, err);
    if (rc == 0)
        rc = json_get_u64(cluster, "epoch", ERR_CORRUPT, &ret->epoch, err);
    if (rc < 0)
        return rc;
    (void)snprintf(ret->job, sizeof(ret->job), "%s", text);
    (void)snprintf(ret->restore, sizeof(ret->restore), "%s", job->id);
    return 0;
}

/* The first run reserves. Later ones were let in by job_continue(), which has the caller's epoch;
 * what takes the restore back needs no reservation. */
static int lock_cluster(struct job *job, struct err *err)
{
    struct cluster_lock want, have;
    bool wanted;
    int rc = wanted_lock(job, &want, &wanted, err);
    if (rc < 0 || strcmp(job->goal, "abort") == 0)
        return rc;
    bool first = !json_object_get(job->journal, "started_s");
    if (!wanted || first)
        rc = cluster_lock_check(&job->conf, wanted ? &want : NULL, err);
    else
        rc = cluster_lock_read(&job->conf, &have, err);
    if (rc == 0 && wanted && !first && (!have.held || strcmp(have.restore, job->id) != 0))
        rc = err_set(err, ERR_REFUSED, "restore %s does not hold the reservation of this node",
                     job->id);
    if (rc == 0)
        rc = check_partial(job, err);
    return rc == 0 && wanted && first ? cluster_lock_reserve(&job->conf, &want, err) : rc;
}

static int lock_node(struct job *job, struct err *err)
{
    if (strcmp(job->type, "verification") == 0 || strcmp(job->type, "expiration") == 0 ||
        strcmp(job->type, "export") == 0)
        return 0;
    int rc = node_lock(&job->conf, job->type, job->id, &job->node_lock_fd, err);
    return rc < 0 ? rc : lock_cluster(job, err);
}

static int open_files(struct job *job, struct err *err)
{
    int rc = load(job->dir, "request.json", &job->request, err);
    if (rc == 0)
        rc = json_get_string(job->request, "type", ERR_CORRUPT, &job->type, err);
    if (rc == 0)
        rc = job_load_conf(job->dir, &job->conf, err);
    if (rc == 0)
        rc = load_goal(job, err);
    if (rc == 0)
        rc = load(job->dir, "journal.json", &job->journal, err);
    return rc;
}

/* A cluster restore that failed and could not give a node back. */
static bool keeps_nodes(const struct job *job)
{
    return json_is_true(json_object_get(job->journal, "not_released"));
}

static int begin(struct job *job, struct err *err)
{
    if (!json_object_get(job->journal, "started_s"))
        set_u64(job->journal, "started_s", (uint64_t)time(NULL));
    (void)json_object_set_new(job->journal, "error", json_null());
    (void)json_object_del(job->journal, "interrupted_s");
    if (!keeps_nodes(job)) /* else it has ended already, and is tried again */
        (void)json_object_del(job->journal, "ended_s");
    install_signals(job);
    int rc = job_journal(job, "running", NULL, err);
    return rc < 0 ? rc : background_start(&job->writer, writer_main, job, err);
}

static void release(struct job *job)
{
    background_stop(&job->writer);
    json_decref(job->request);
    json_decref(job->journal);
    json_decref(job->goal_file);
    cleanup_close(&job->node_lock_fd);
    cleanup_close(&job->lock_fd);
    (void)pthread_mutex_destroy(&job->mutex);
}

int job_open(const char *dir, struct job *ret, struct err *err)
{
    memset(ret, 0, sizeof(*ret));
    ret->lock_fd = ret->node_lock_fd = -1;
    (void)pthread_mutex_init(&ret->mutex, NULL);
    const char *slash = strrchr(dir, '/');
    uint8_t id[ID_LEN];
    if (dir[0] != '/' || strlen(dir) >= sizeof(ret->dir) || !id_from_text(slash + 1, id))
        return err_set(err, ERR_USAGE, "'%s' is not the directory of a job", dir);
    (void)snprintf(ret->dir, sizeof(ret->dir), "%s", dir);
    (void)snprintf(ret->id, sizeof(ret->id), "%s", slash + 1);
    int rc = job_lock(dir, &ret->lock_fd, err);
    if (rc == 0)
        rc = open_files(ret, err);
    if (rc == 0)
        rc = lock_node(ret, err);
    if (rc == 0)
        rc = begin(ret, err);
    if (rc < 0)
        release(ret);
    return rc;
}

/* --- steps -------------------------------------------------------------------------------------*/
int job_journal(struct job *job, const char *state, const char *phase, struct err *err)
{
    char path[JOB_DIR_MAX + 32];
    assert(job->lock_fd >= 0);
    if (state)
        (void)json_object_set_new(job->journal, "state", json_string(state));
    if (phase) {
        if (!json_is(job->journal, "phase", phase))
            set_u64(job->journal, "phase_s", (uint64_t)time(NULL));
        (void)json_object_set_new(job->journal, "phase", json_string(phase));
        (void)pthread_mutex_lock(&job->mutex);
        (void)snprintf(job->phase, sizeof(job->phase), "%s", phase);
        (void)pthread_mutex_unlock(&job->mutex);
    }
    (void)snprintf(path, sizeof(path), "%s/journal.json", job->dir);
    return json_save(path, job->journal, true, err);
}

void job_note_repository(struct job *job, const struct repo *repo)
{
    char id[ID_TEXT_LEN];
    id_to_text(repo->id, id);
    (void)json_object_set_new(job->journal, "repository", json_string(id));
}

int job_check_cancel(const struct job *job, struct err *err)
{
    if (!atomic_load(&job->progress.cancel))
        return 0;
    return err_set(err, ERR_CANCELLED, "cancelled by request");
}

static json_t *error_to_json(const struct err *err)
{
    return json_pack("{s:s, s:s, s:s}", "code", err_code_name(err->code), "text", err->text, "hint",
                     err->hint);
}

/* Whoever looks sees that its restore is over; the file shall say so, too. */
static void release_cluster(const struct job *job)
{
    struct err err;
    if (job_is_cluster_part(job->journal) && job_is_over(job->journal) &&
        cluster_lock_release(&job->conf, job->id, &err) < 0)
        log_err(&err);
    if (job_is_cluster_part(job->journal) && json_is(job->journal, "state", "complete"))
        cluster_gate_open(&job->conf);
}

void job_close(struct job *job, int rc, const struct err *err)
{
    struct err failed;
    const char *state = json_string_value(json_object_get(job->journal, "state"));
    background_stop(&job->writer);
    if (rc == 0 && state && strcmp(state, "running") == 0)
        state = "complete";
    if (rc < 0) {
        state = json_is_true(json_object_get(job->journal, "taken_over")) ? "taken_over"
                : rc == -ERR_CANCELLED                                    ? "cancelled"
                                                                          : "failed";
        (void)json_object_set_new(job->journal, "error", error_to_json(err));
    }
    /* Its end was told. It is tried every minute, which is no news before it succeeds. */
    bool again = keeps_nodes(job) && json_object_get(job->journal, "ended_s");
    if (state && job_state_is_final(state))
        set_u64(job->journal, again ? "tried_s" : "ended_s", (uint64_t)time(NULL));
    bool durable = job_journal(job, state, NULL, &failed) == 0;
    if (!durable)
        log_err(&failed); /* the state stays "running", which readers see as interrupted */
    else
        release_cluster(job);
    free_json json_t *request = json_incref(job->request);
    free_json json_t *journal = json_incref(job->journal);
    release(job);
    if (durable && !again) /* over for everybody: nobody waits for what is told of it */
        notify_send(&job->conf, job->dir, request, journal);
}

/* --- the process -------------------------------------------------------------------------------*/
static int run_verb(struct job *job, struct err *err)
{
    if (strcmp(job->type, "snapshot") == 0)
        return snapshot_run(job, err);
    if (strcmp(job->type, "restore") == 0)
        return restore_run(job, err);
    if (strcmp(job->type, "verification") == 0)
        return verification_run(job, err);
    if (strcmp(job->type, "expiration") == 0)
        return expire_run(job, err);
    if (strcmp(job->type, "export") == 0)
        return export_run(job, err);
    if (strcmp(job->type, "cluster_snapshot") == 0)
        return cluster_snapshot_run(job, err);
    if (strcmp(job->type, "cluster_restore") == 0)
        return cluster_restore_run(job, err);
    return err_set(err, ERR_CORRUPT, "job of unknown type '%s'", job->type);
}

void job_keep_ready(int ready_fd)
{
    if (ready_fd >= 0)
        (void)fcntl(ready_fd, F_SETFD, FD_CLOEXEC);
}

/* "ok", or code, text and hint on lines of their own; then the descriptor is closed. */
void job_report_ready(int ready_fd, int rc, const struct err *err)
{
    char text[sizeof(err->text) + sizeof(err->hint) + 64];
    if (ready_fd < 0)
        return;
    if (rc == 0)
        (void)snprintf(text, sizeof(text), "ok");
    else
        (void)snprintf(text, sizeof(text), "%s\n%s\n%s", err_code_name(err->code), err->text,
                       err->hint);
    ssize_t written = write(ready_fd, text, strlen(text));
    (void)written; /* whoever started us may be gone; the job goes on */
    (void)close(ready_fd);
}

int job_main(const char *dir, int ready_fd)
{
    static struct job job; /* large; one a process */
    struct err err;
    err_clear(&err);
    (void)umask(077);
    log_add_times();
    job_keep_ready(ready_fd);
    int rc = job_open(dir, &job, &err);
    if (rc == 0)
        restore_test_stop("job-ready"); /* it runs, and whoever asked for it does not know yet */
    job_report_ready(ready_fd, rc, &err);
    if (rc == 0) {
        log_info("job starts: job=%s type=%s goal=%s", job.id, job.type, job.goal);
        rc = run_verb(&job, &err);
        if (rc < 0)
            log_err(&err);
        else
            log_info("job ends well: job=%s", job.id);
        job_close(&job, rc, &err);
    } else {
        log_err(&err);
    }
    return rc == 0 ? 0 : err_exit_status(err.code);
}

int job_open_ended(const char *dir, int ready_fd, struct conf *ret_conf, json_t **ret_request,
                   json_t **ret_journal)
{
    struct err err;
    err_clear(&err);
    (void)umask(077);
    (void)signal(SIGPIPE, SIG_IGN);
    log_add_times();
    job_keep_ready(ready_fd);
    int rc = 0;
    if (dir[0] != '/' || strlen(dir) >= JOB_DIR_MAX)
        rc = err_set(&err, ERR_USAGE, "'%s' is not the directory of a job", dir);
    if (rc == 0)
        rc = job_load_conf(dir, ret_conf, &err);
    if (rc == 0)
        rc = load(dir, "request.json", ret_request, &err);
    if (rc == 0)
        rc = load(dir, "journal.json", ret_journal, &err);
    job_report_ready(ready_fd, rc, &err);
    if (rc == 0)
        return 0;
    log_err(&err);
    return err_exit_status(err.code);
}
