/* agent/job, job_control, job_rules: with verbs of our own, that wait for a file or do what the
 * request's tag says. This program is also the job's process: a link "tidemark-agent" to it is put
 * where program_find() looks. */
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "agent/job.h"
#include "agent/job_rules.h"
#include "tests/tap.h"

static struct conf conf;
static struct err err;
static const struct job_asker person;
static char base[64];

/* --- the verbs ---------------------------------------------------------------------------------*/
static void nap(void)
{
    const struct timespec tick = {.tv_nsec = 10000000};
    (void)nanosleep(&tick, NULL);
}

static int wait_for_cancel(struct job *job, struct err *ret)
{
    for (unsigned i = 0; i < 6000; i++) {
        int rc = job_check_cancel(job, ret);
        if (rc < 0)
            return rc;
        atomic_fetch_add(&job->progress.bytes_done, 1000);
        nap();
    }
    return err_set(ret, ERR_INTERNAL, "nobody cancelled");
}

int snapshot_run(struct job *job, struct err *ret)
{
    const char *tag = json_string_value(json_object_get(job->request, "tag"));
    int rc = job_journal(job, NULL, "copying", ret);
    if (rc < 0)
        return rc;
    if (strcmp(tag, "fail") == 0) {
        (void)err_set(ret, ERR_STORE, "the store is full");
        return err_hint(ret, "make room");
    }
    if (strcmp(tag, "wait") == 0)
        return wait_for_cancel(job, ret);
    (void)json_object_set_new(job->journal, "result", json_pack("{s:s}", "snapshot", "xyz"));
    return 0;
}

/* A restore that stops at the step named by its "snapshot". */
int restore_run(struct job *job, struct err *ret)
{
    const char *what = json_string_value(json_object_get(job->request, "snapshot"));
    if (strcmp(job->goal, "abort") == 0)
        return err_set(ret, ERR_CANCELLED, "the fence is lifted");
    if (strcmp(job->goal, "prepare") == 0) {
        (void)json_object_set_new(job->journal, "step", json_string("planned"));
        return job_journal(job, "prepared", "plan", ret);
    }
    bool again = json_is_true(json_object_get(job->journal, "again"));
    if (!again) {
        (void)json_object_set_new(job->journal, "again", json_true());
        (void)json_object_set_new(job->journal, "step", json_string(what));
        int rc = job_journal(job, NULL, what, ret);
        return rc < 0 ? rc : wait_for_cancel(job, ret);
    }
    (void)json_object_set_new(job->journal, "step", json_string("complete"));
    return 0;
}

/* A coordinator's are not run here; theirs would need the agents of the nodes. */
int cluster_snapshot_run(struct job *job, struct err *ret)
{
    (void)job;
    return err_set(ret, ERR_INTERNAL, "not in this test");
}

int cluster_restore_run(struct job *job, struct err *ret)
{
    (void)job;
    return err_set(ret, ERR_INTERNAL, "not in this test");
}

int verification_run(struct job *job, struct err *ret)
{
    return wait_for_cancel(job, ret);
}

/* --- helpers -----------------------------------------------------------------------------------*/
static void create(const char *type, const char *key, const char *value, char id[ID_TEXT_LEN])
{
    free_json json_t *request = json_pack("{s:s, s:s}", "type", type, key, value);
    if (job_create(&conf, request, id, &err) < 0)
        abort();
}

static int start(const char *id)
{
    char dir[JOB_DIR_MAX];
    int pid = 0;
    job_dir(&conf, id, dir);
    err_clear(&err);
    int rc = job_start(dir, &pid, &err);
    return rc < 0 ? rc : pid;
}

static json_t *status(const char *id)
{
    json_t *ret = NULL;
    if (job_status(&conf, id, &ret, &err) < 0)
        abort();
    return ret;
}

static const char *state_of(const char *id)
{
    static char text[32];
    json_t *now = status(id);
    (void)snprintf(text, sizeof(text), "%s", json_string_value(json_object_get(now, "state")));
    json_decref(now);
    return text;
}

static bool running(const char *id)
{
    char dir[JOB_DIR_MAX];
    job_dir(&conf, id, dir);
    return job_is_running(dir, NULL);
}

static void wait_ended(const char *id)
{
    for (unsigned i = 0; running(id) && i < 2000; i++)
        nap();
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
}

static void wait_phase(const char *id, const char *phase)
{
    for (unsigned i = 0; i < 2000; i++) {
        free_json json_t *now = status(id);
        if (strcmp(json_string_value(json_object_get(now, "phase")), phase) == 0)
            return;
        nap();
    }
    ok(false, "job reaches phase %s", phase);
}

static void kill_hard(int pid)
{
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
}

static const char *health(void)
{
    static struct health now;
    job_health(&conf, &now);
    return now.status;
}

/* --- tests -------------------------------------------------------------------------------------*/
static void test_run(void)
{
    char id[ID_TEXT_LEN];
    create("snapshot", "tag", "good", id);
    is_str(state_of(id), "created", "a new job");
    ok(!running(id), "does not run");
    ok(start(id) > 0, "it starts");
    job_pause(&conf, id, 600000); /* longer than a test may run */
    ok(!running(id), "a pause of ten minutes ends with it");
    wait_ended(id);
    free_json json_t *now = status(id);
    is_str(json_string_value(json_object_get(now, "state")), "complete", "complete");
    ok(json_is_null(json_object_get(now, "error")), "without an error");
    ok(json_is_false(json_object_get(now, "running")), "not running");
    is_str(json_string_value(json_object_get(json_object_get(now, "result"), "snapshot")), "xyz",
           "with its result");
    ok(json_object_get(now, "ended_s") && json_object_get(now, "started_s"), "with its times");
    is_str(json_string_value(json_object_get(json_object_get(now, "progress"), "phase")), "copying",
           "with its progress");
    is_err(job_cancel(&conf, id, &err), &err, ERR_MISSING, "is not running", "too late to cancel");
    is_err(job_end(&conf, id, "failed", NULL, &err), &err, ERR_REFUSED, "has ended already",
           "too late to end");
}

static void test_failure(void)
{
    char id[ID_TEXT_LEN];
    create("snapshot", "tag", "fail", id);
    (void)start(id);
    wait_ended(id);
    free_json json_t *now = status(id);
    const json_t *error = json_object_get(now, "error");
    is_str(json_string_value(json_object_get(now, "state")), "failed", "failed");
    is_str(json_string_value(json_object_get(error, "code")), "store", "with its code");
    is_str(json_string_value(json_object_get(error, "text")), "the store is full", "its text");
    is_str(json_string_value(json_object_get(error, "hint")), "make room", "and its hint");
}

static void test_cancel_and_busy(void)
{
    char id[ID_TEXT_LEN], other[ID_TEXT_LEN], verification[ID_TEXT_LEN];
    bool ended = true;
    create("snapshot", "tag", "wait", id);
    ok(start(id) > 0, "a long job starts");
    is_err(start(id), &err, ERR_BUSY, "is running", "not twice");
    create("restore", "snapshot", "planned", other);
    is_err(start(other), &err, ERR_BUSY, "a snapshot", "no restore beside a snapshot");
    is_str(state_of(other), "created", "the refused job is as it was");
    job_discard(&conf, other);
    json_t *none = NULL;
    is_err(job_status(&conf, other, &none, &err), &err, ERR_MISSING, "there is no job",
           "and can be discarded");
    create("verification", "snapshot", "x", verification);
    ok(start(verification) > 0, "a verification may run beside it");
    free_json json_t *list = NULL;
    is_good(job_list(&conf, &list, &err), &err, "list");
    is_u64(json_array_size(list), 4, "of all jobs");
    is_str(json_string_value(json_object_get(json_array_get(list, 3), "id")), verification,
           "oldest first");
    is_good(job_request_cancel(&conf, id, &person, &ended, &err), &err, "cancel");
    ok(!ended, "is asked for");
    is_good(job_request_cancel(&conf, verification, &person, &ended, &err), &err,
            "cancel the other");
    wait_ended(id);
    wait_ended(verification);
    is_str(state_of(id), "cancelled", "cancelled");
    is_str(state_of(verification), "cancelled", "cancelled too");
}

/* Between the lock and the write of the new pid the file holds that of the run before: the number
 * may be a stranger's. */
static void test_cancel_spares_strangers(void)
{
    char id[ID_TEXT_LEN], dir[JOB_DIR_MAX], path[JOB_DIR_MAX + 32], text[32];
    create("snapshot", "tag", "wait", id);
    job_dir(&conf, id, dir);
    (void)snprintf(path, sizeof(path), "%s/lock", dir);
    pid_t stranger = fork();
    if (stranger == 0)
        for (;;)
            (void)pause();
    close_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
    int len = snprintf(text, sizeof(text), "%d\n", (int)stranger);
    ok(write(fd, text, (size_t)len) == len && fcntl(fd, F_OFD_SETLK, &lock) == 0,
       "a job that has its lock and has not written its pid yet");
    int pid = -1;
    ok(job_is_running(dir, &pid) && pid == 0, "runs, under no known pid");
    is_err(job_cancel(&conf, id, &err), &err, ERR_MISSING, "is not running", "cannot be cancelled");
    ok(waitpid(stranger, NULL, WNOHANG) == 0, "the stranger lives");
    (void)kill(stranger, SIGKILL);
    (void)waitpid(stranger, NULL, 0);
    cleanup_close(&fd);
    job_discard(&conf, id);
}

static void test_interrupted(void)
{
    char id[ID_TEXT_LEN], next[ID_TEXT_LEN];
    create("snapshot", "tag", "wait", id);
    int pid = start(id);
    wait_phase(id, "copying");
    kill_hard(pid);
    is_str(state_of(id), "interrupted", "kill -9 of a job: interrupted");
    create("snapshot", "tag", "good", next);
    ok(start(next) > 0, "its locks died with it");
    wait_ended(next);
    job_sweep(&conf, true);
    is_str(state_of(id), "failed", "the sweep ends it as failed");
}

static void test_restore_steps(void)
{
    char id[ID_TEXT_LEN];
    int pid = 0;
    bool ended = false;
    create("restore", "snapshot", "pulling", id);
    is_good(job_set_goal(&conf, id, "prepare", NULL, &err), &err, "goal prepare");
    ok(start(id) > 0, "prepare");
    wait_ended(id);
    is_str(state_of(id), "prepared", "prepared");
    is_str(health(), "ok", "nothing is touched: health is ok");
    is_err(job_continue(&conf, id, "verify", NULL, &pid, &err), &err, ERR_REFUSED, "is prepared",
           "not to be verified yet");
    is_good(job_continue(&conf, id, "execute", NULL, &pid, &err), &err, "execute");
    is_err(job_continue(&conf, id, "execute", NULL, &pid, &err), &err, ERR_BUSY, "is running",
           "not twice");
    wait_phase(id, "pulling");
    is_str(health(), "restoring", "health while it runs");
    kill_hard(pid);
    is_str(health(), "partial", "health after kill -9");
    job_sweep(&conf, false);
    is_str(state_of(id), "interrupted", "resume = wait leaves it");

    char other[ID_TEXT_LEN];
    create("snapshot", "tag", "good", other);
    is_err(start(other), &err, ERR_PARTIAL, "is not finished", "no snapshot of half a restore");
    job_discard(&conf, other);

    job_sweep(&conf, true);
    wait_ended(id);
    is_str(state_of(id), "complete", "resume = auto finishes it");
    is_str(health(), "ok", "health is ok");

    create("restore", "snapshot", "pulling", other);
    pid = start(other);
    wait_phase(other, "pulling");
    kill_hard(pid);
    is_good(job_request_cancel(&conf, other, &person, &ended, &err), &err,
            "give up a half restore");
    ok(ended, "ends at once");
    is_str(state_of(other), "cancelled", "cancelled");
    is_str(health(), "partial", "health stays partial until another restore");
    is_err(job_continue(&conf, other, "resume", NULL, &pid, &err), &err, ERR_REFUSED,
           "is cancelled", "it cannot be resumed");
    create("restore", "snapshot", "pulling", id);
    pid = start(id);
    ok(pid > 0, "another restore may start");
    wait_phase(id, "pulling");
    kill_hard(pid);
    is_good(job_continue(&conf, id, "resume", NULL, &pid, &err), &err, "resume by hand");
    wait_ended(id);
    is_str(state_of(id), "complete", "complete");
}

static void test_fenced(void)
{
    char id[ID_TEXT_LEN];
    create("restore", "snapshot", "fenced", id);
    int pid = start(id);
    wait_phase(id, "fenced");
    kill_hard(pid);
    is_str(health(), "partial", "a dead fenced restore is not healthy");
    job_sweep(&conf, true);
    wait_ended(id);
    is_str(state_of(id), "cancelled", "the sweep lifts its fence");
    is_str(health(), "ok", "health is ok");
    create("restore", "snapshot", "planned", id);
    pid = start(id);
    wait_phase(id, "planned");
    kill_hard(pid);
    job_sweep(&conf, true);
    is_str(state_of(id), "cancelled", "one that only planned ends as cancelled");
}

static void test_prune(void)
{
    char id[ID_TEXT_LEN];
    for (unsigned i = 0; i < JOBS_ENDED_MAX + 10; i++) {
        create("snapshot", "tag", "x", id);
        if (job_end(&conf, id, "failed", NULL, &err) < 0)
            abort();
    }
    create("snapshot", "tag", "x", id);
    free_json json_t *list = NULL;
    (void)job_list(&conf, &list, &err);
    is_u64(json_array_size(list), JOBS_ENDED_MAX + 1, "the newest 100 ended jobs stay");
    job_discard(&conf, id);
}

/* Makers that died before the journal was there: one long ago, one just now. */
static void test_unborn(void)
{
    static const char *const ids[] = {"000102030405060708090a0b0c0d0e0f",
                                      "100102030405060708090a0b0c0d0e0f"};
    const struct timespec old[2] = {{.tv_sec = time(NULL) - 7200}, {.tv_sec = time(NULL) - 7200}};
    char id[ID_TEXT_LEN], dir[JOB_DIR_MAX], path[JOB_DIR_MAX + 32];
    for (size_t i = 0; i < 2; i++) {
        job_dir(&conf, ids[i], dir);
        (void)snprintf(path, sizeof(path), "%s/conf", dir);
        if (mkdir(dir, 0700) < 0 || close(creat(path, 0600)) < 0)
            abort();
    }
    job_dir(&conf, ids[0], dir);
    ok(utimensat(AT_FDCWD, dir, old, 0) == 0, "one is two hours old");
    create("snapshot", "tag", "x", id);
    ok(access(dir, F_OK) < 0, "it is removed when a job is made");
    ok(access(path, F_OK) == 0, "the young one is not: it may be in the making");
    job_discard(&conf, ids[1]);
    job_discard(&conf, id);
}

/* A journal that a power cut or a person damaged is listed, not hidden and not fatal. */
static void test_damaged(void)
{
    char id[ID_TEXT_LEN], dir[JOB_DIR_MAX], path[JOB_DIR_MAX + 32];
    create("snapshot", "tag", "x", id);
    job_dir(&conf, id, dir);
    (void)snprintf(path, sizeof(path), "%s/journal.json", dir);
    if (truncate(path, 3) < 0)
        abort();
    json_t *none = NULL;
    is_err(job_status(&conf, id, &none, &err), &err, ERR_CORRUPT, path, "a damaged journal");
    is_err(start(id), &err, ERR_CORRUPT, path, "does not start");
    free_json json_t *list = NULL;
    is_good(job_list(&conf, &list, &err), &err, "but the list is there");
    is_str(json_string_value(json_object_get(json_array_get(list, 0), "id")), id,
           "with the damaged job");
    is_err(job_status(&conf, "nonsense", &none, &err), &err, ERR_MISSING,
           "'nonsense' is not the id of a job", "a bad id");
}

static void set_up(void)
{
    char self[512], link[128], state[128];
    ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);
    (void)snprintf(base, sizeof(base), "/tmp/t_job.XXXXXX");
    if (len < 0 || !mkdtemp(base))
        abort();
    self[len] = '\0';
    (void)snprintf(link, sizeof(link), "%s/tidemark-agent", base);
    (void)snprintf(state, sizeof(state), "%s/state", base);
    if (symlink(self, link) < 0 || setenv("TIDEMARK_PROGRAMS", base, 1) < 0)
        abort();
    if (conf_parse("t", "", 0, &conf, &err) < 0 ||
        conf_set(&conf, "tidemark.state_dir", state, &err) < 0)
        abort();
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "job") == 0)
        return job_main(argv[2], (int)strtol(argv[3] + 11, NULL, 10));
    if (argc > 1) /* "forget", of a job that has ended */
        return 0;
    set_up();
    test_run();
    test_failure();
    test_cancel_and_busy();
    test_cancel_spares_strangers();
    test_interrupted();
    test_restore_steps();
    test_fenced();
    test_damaged();
    test_prune();
    test_unborn();
    char command[128];
    (void)snprintf(command, sizeof(command), "rm -rf %s", base);
    ok(system(command) == 0, "clean up");
    return done();
}
