/* Starting the worker: see wal_launch.h. */
#include "agent/wal_launch.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/program.h"

extern char **environ;

enum { ARGS_MAX = 64 };

int wal_launch_worker(char **argv, struct err *err)
{
    char path[PATH_MAX];
    int rc = program_find("tidemark-wal-worker", path, err);
    if (rc < 0)
        return rc;
    (void)execve(path, argv, environ);
    return err_sys(err, ERR_CONFIG, "execute '%s'", path);
}

/* Twice forked, so that nobody's child is left as a zombie: the startup process of PostgreSQL does
 * not expect any. stderr goes to /dev/null: a process that kept the pipe of the logging collector
 * open would keep the collector alive. */
static void become_detached(const char *path, char **argv, int stdin_fd)
{
    (void)setsid();
    if (fork() != 0)
        _exit(0);
    int null_fd = open("/dev/null", O_RDWR);
    (void)dup2(stdin_fd < 0 ? null_fd : stdin_fd, STDIN_FILENO);
    (void)dup2(null_fd, STDOUT_FILENO);
    (void)dup2(null_fd, STDERR_FILENO);
    (void)syscall(SYS_close_range, 3U, ~0U, 0U);
    (void)execve(path, argv, environ);
    _exit(127);
}

static bool launch(const char *verb, int argc, char **argv, int stdin_fd)
{
    char path[PATH_MAX], first[16];
    char *with[ARGS_MAX + 1];
    struct err ignored;
    if (argc > ARGS_MAX || program_find("tidemark-wal-worker", path, &ignored) < 0)
        return false;
    (void)snprintf(first, sizeof(first), "%s", verb);
    memcpy(with, argv, (size_t)argc * sizeof(*with));
    with[1] = first;
    with[argc] = NULL;
    pid_t pid = fork(); /* a plain process: one thread, a few pages */
    if (pid == 0)
        become_detached(path, with, stdin_fd);
    return pid > 0 && waitpid(pid, NULL, 0) == pid;
}

void wal_launch_prefetch(int argc, char **argv)
{
    (void)launch("prefetch", argc, argv, -1);
}

int wal_launch_push_ahead(int argc, char **argv)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return -1;
    close_fd int ours = ends[0], theirs = ends[1];
    return launch("push-ahead", argc, argv, theirs) ? take_fd(&ours) : -1;
}
