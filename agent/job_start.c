/* Starting a job's process, and reaping it. See job.h. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>

#include "agent/job.h"
#include "agent/program.h"

enum { READY_FD = 3 };

/* Between fork and exec of a threaded process only async-signal-safe calls are allowed. */
_Noreturn static void exec_job(const char *program, const char *verb, const char *dir, int log_fd,
                               int ready_fd)
{
    char ready_option[] = "--ready-fd=3";
    char *argv[] = {(char *)(uintptr_t)program, (char *)(uintptr_t)verb, (char *)(uintptr_t)dir,
                    ready_option, NULL};
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)setsid();
    int null_fd = open("/dev/null", O_RDONLY);
    /* Out of the way first: one of them may be 0–3 itself. */
    log_fd = fcntl(log_fd, F_DUPFD, 10);
    ready_fd = fcntl(ready_fd, F_DUPFD, 10);
    if (null_fd >= 0 && log_fd >= 0 && ready_fd >= 0 && dup2(null_fd, 0) == 0 &&
        dup2(log_fd, 1) == 1 && dup2(log_fd, 2) == 2 && dup2(ready_fd, READY_FD) == READY_FD &&
        close_range(READY_FD + 1, ~0U, 0) == 0)
        (void)execv(program, argv);
    _exit(127);
}

/* Waits for "ok" or the error of the child, see job_report_ready(). */
static int read_ready(int fd, const char *dir, struct err *err)
{
    char text[sizeof(err->text) + sizeof(err->hint) + 64];
    size_t len = 0;
    for (;;) {
        ssize_t n = read(fd, text + len, sizeof(text) - 1 - len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        len += (size_t)n;
    }
    text[len] = '\0';
    if (strcmp(text, "ok") == 0)
        return 0;
    char *code = text, *message = strchr(text, '\n');
    if (!message)
        return err_set(err, ERR_INTERNAL, "the job's process did not start; see '%s/log'", dir);
    *message++ = '\0';
    char *hint = strchr(message, '\n');
    if (hint)
        *hint++ = '\0';
    (void)err_set(err, err_code_from_name(code), "%s", message);
    return err_hint(err, "%s", hint ? hint : "");
}

/* Our children, until they are reaped; more than these stay zombies until we end. */
static struct {
    pthread_mutex_t mutex;
    int pids[64];
} children = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void note_child(int pid)
{
    (void)pthread_mutex_lock(&children.mutex);
    for (size_t i = 0; i < ARRAY_LEN(children.pids); i++)
        if (children.pids[i] == 0) {
            children.pids[i] = pid;
            break;
        }
    (void)pthread_mutex_unlock(&children.mutex);
}

void job_reap(void)
{
    (void)pthread_mutex_lock(&children.mutex);
    for (size_t i = 0; i < ARRAY_LEN(children.pids); i++)
        if (children.pids[i] > 0 && waitpid(children.pids[i], NULL, WNOHANG) != 0)
            children.pids[i] = 0;
    (void)pthread_mutex_unlock(&children.mutex);
}

static int start(const char *verb, const char *dir, int *ret_pid, struct err *err)
{
    char program[PATH_MAX], path[JOB_DIR_MAX + 32];
    int ready[2];
    int rc = program_find("tidemark-agent", program, err);
    if (rc < 0)
        return rc;
    (void)snprintf(path, sizeof(path), "%s/log", dir);
    close_fd int log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    if (pipe2(ready, O_CLOEXEC) < 0)
        return err_sys(err, ERR_INTERNAL, "pipe");
    int pid = fork();
    if (pid == 0)
        exec_job(program, verb, dir, log_fd, ready[1]);
    (void)close(ready[1]);
    rc = pid < 0 ? err_sys(err, ERR_INTERNAL, "fork") : read_ready(ready[0], dir, err);
    (void)close(ready[0]);
    if (rc < 0 && pid > 0)
        (void)waitpid(pid, NULL, 0); /* it reported and exits */
    if (rc == 0) {
        note_child(pid);
        *ret_pid = pid;
    }
    return rc;
}

int job_start(const char *dir, int *ret_pid, struct err *err)
{
    return start("job", dir, ret_pid, err);
}

int job_start_notify(const char *dir, struct err *err)
{
    int pid;
    return start("notify", dir, &pid, err);
}

int job_start_forget(const char *dir, struct err *err)
{
    int pid;
    return start("forget", dir, &pid, err);
}
