/* Child processes: status, output, what they inherit, time-outs and cancelling. */
#include "agent/process.h"
#include "tests/tap.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

static struct err err;
static char errors[256];

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Runs a shell line; output is malloc'ed. */
static int shell(const char *line, struct process_options options, int *ret_status, char **ret)
{
    const char *argv[] = {"sh", "-c", line, NULL};
    options.argv = argv;
    return process_run(&options, ret_status, ret, errors, sizeof(errors), &err);
}

static void is_shell(const char *line, int want_status, const char *want_output)
{
    struct process_options options = PROCESS_OPTIONS_INIT;
    free_mem char *output = NULL;
    int status = -1;
    is_good(shell(line, options, &status, &output), &err, "run: %s", line);
    is_u64(status, want_status, "its status");
    is_str(output ? output : "(null)", want_output, "its output");
}

/* Files with the rights of an account, and root's again. */
static void test_file_rights(void)
{
    if (geteuid() != 0) {
        skip("only root can take another user's rights");
        return;
    }
    char path[] = "/tmp/tidemark-process-XXXXXX";
    close_fd int fd = mkstemp(path); /* 0600 of root */
    is_good(process_fs_user("nobody", &err), &err, "the rights of nobody");
    ok(open(path, O_RDONLY | O_CLOEXEC) < 0 && errno == EACCES, "root's file is closed to it");
    process_fs_root();
    close_fd int again = open(path, O_RDONLY | O_CLOEXEC);
    ok(again >= 0, "and open to root afterwards");
    is_err(process_fs_user("no-such-user", &err), &err, ERR_CONFIG, "no-such-user", "no account");
    (void)unlink(path);
}

static void test_results(void)
{
    is_shell("exit 0", 0, "");
    is_shell("printf 'a\\nb'; exit 7", 7, "a\nb");
    is_shell("kill -9 $$", 128 + 9, "");
    is_shell("echo one >&2; echo; echo 'two\tx' >&2", 0, "\n");
    is_str(errors, "one; two x", "stderr as one line");
    is_shell("pwd; echo $HOME$TIDEMARK_TEST", 0, "/\n/nowhere\n");
    is_shell("ls /proc/self/fd | wc -l", 0, "4\n"); /* 0 1 2 and ls's own */
    is_shell("trap", 0, "");
    is_shell("seq 1 200000 | tail -1", 0, "200000\n");
    struct process_options options = PROCESS_OPTIONS_INIT;
    free_mem char *output = NULL;
    int status;
    is_good(shell("head -c 3000000 /dev/zero | tr '\\0' x", options, &status, &output), &err,
            "a large output");
    ok(output && strlen(output) == 3000000, "is whole");
    static const char *const env[] = {"MORE=1", NULL};
    free_mem char *second = NULL;
    options.env = env;
    is_good(shell("echo $MORE", options, &status, &second), &err, "more environment");
    static char long_value[20000] = "LONG=";
    memset(long_value + 5, 'x', sizeof(long_value) - 6);
    const char *const long_env[] = {long_value, NULL};
    struct process_options too_much = options;
    too_much.env = long_env;
    char *nothing = NULL;
    is_err(shell("true", too_much, &status, &nothing), &err, ERR_CONFIG, "longer than",
           "an environment that does not fit is refused, not cut");
    is_str(second ? second : "", "1\n", "arrives");
    is_good(shell("head -c 9000 /dev/zero | tr '\\0' y >&2; echo END >&2", options, &status, NULL),
            &err, "much on stderr");
    ok(strlen(errors) > 200, "only its end is kept");
}

static void test_errors(void)
{
    struct process_options options = PROCESS_OPTIONS_INIT;
    const char *argv[] = {"/nonexistent/program", NULL};
    int status;
    options.argv = argv;
    is_err(process_run(&options, &status, NULL, NULL, 0, &err), &err, ERR_CONFIG, "execute",
           "no such program");
    argv[0] = "nonexistent-program";
    is_err(process_run(&options, &status, NULL, NULL, 0, &err), &err, ERR_CONFIG, "not in PATH",
           "none in PATH");
    argv[0] = "/";
    is_err(process_run(&options, &status, NULL, NULL, 0, &err), &err, ERR_CONFIG, "execute",
           "no program");
    if (geteuid() != 0) {
        skip("needs root to change the user");
        return;
    }
    argv[0] = "id";
    options.user = "nobody-here";
    is_err(process_run(&options, &status, NULL, NULL, 0, &err), &err, ERR_CONFIG, "no account",
           "an unknown user");
    options.user = "nobody";
    free_mem char *output = NULL;
    is_good(process_run(&options, &status, &output, NULL, 0, &err), &err, "another user");
    ok(output && strstr(output, "(nobody)") && !strstr(output, "root"), "has no right of ours");
}

static void *set_later(void *arg)
{
    struct timespec pause = {.tv_nsec = 200000000};
    nanosleep(&pause, NULL);
    atomic_store((_Atomic bool *)arg, true);
    return NULL;
}

/* The child itself ends at SIGTERM; what it started does not listen. */
static void test_group(struct process_options options)
{
    char path[] = "/tmp/tidemark-process-XXXXXX", line[256];
    close_fd int fd = mkstemp(path);
    int status, pids[2] = {0, 0};
    FILE *file = fdopen(dup(fd), "r");
    (void)snprintf(line, sizeof(line),
                   "sleep 60 & echo $! >%s; (trap '' TERM; exec sleep 60) & echo $! >>%s; wait",
                   path, path);
    options.end_group = true;
    is_err(shell(line, options, &status, NULL), &err, ERR_BUSY, "within 1 s",
           "time-out of a group");
    ok(file && fscanf(file, "%d %d", &pids[0], &pids[1]) == 2, "it had two children");
    for (size_t i = 0; i < 2; i++)
        ok(pids[i] > 0 && !process_alive(pids[i]), "child %zu is gone", i);
    if (file)
        (void)fclose(file);
    (void)unlink(path);
}

static void test_ends(void)
{
    struct process_options options = PROCESS_OPTIONS_INIT;
    int status;
    uint64_t begin = now_ms();
    options.timeout_s = 1;
    is_err(shell("exec sleep 60", options, &status, NULL), &err, ERR_BUSY, "within 1 s", "timeout");
    is_err(shell("trap '' TERM; sleep 60 & wait; sleep 60", options, &status, NULL), &err, ERR_BUSY,
           "within 1 s", "also of one that ignores SIGTERM");
    test_group(options);
    options.timeout_s = 0;
    _Atomic bool cancel = false;
    pthread_t thread;
    options.cancel = &cancel;
    ok(pthread_create(&thread, NULL, set_later, &cancel) == 0, "cancel comes later");
    is_err(shell("exec sleep 60", options, &status, NULL), &err, ERR_CANCELLED, "by request",
           "cancel");
    pthread_join(thread, NULL);
    options.cancel = NULL;
    /* A daemon that keeps the pipes open does not keep us waiting. */
    is_good(shell("sleep 8 & echo started", options, &status, NULL), &err, "a background process");
    ok(now_ms() - begin < 20000, "no waiting for what is left behind");
    is_u64(waitpid(-1, NULL, WNOHANG), UINT64_MAX, "no zombie is left");
}

static void test_alive(void)
{
    ok(process_alive(getpid()), "this process is alive");
    ok(!process_alive(0) && !process_alive(-1), "0 and -1 are nobody");
    pid_t pid = fork();
    if (pid == 0)
        _exit(3);
    int status = -1;
    siginfo_t info;
    ok(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) == 0, "a child has ended");
    ok(!process_alive(pid), "a zombie is not alive");
    ok(process_wait(pid, 1000, &status) && status == 3, "and is reaped with its status");
    ok(!process_alive(pid), "nor is what has gone");
}

int main(void)
{
    setenv("TIDEMARK_TEST", "leaks", 1);
    setenv("HOME", "/nowhere", 1);
    int leak = open("/dev/null", O_RDONLY); /* not close-on-exec */
    signal(SIGPIPE, SIG_IGN);
    test_file_rights();
    test_results();
    test_errors();
    test_ends();
    test_alive();
    close(leak);
    return done();
}
