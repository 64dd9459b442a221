/* Starting the worker: see wal_launch.h. */
#include "agent/wal_launch.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
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
 * not expect any. stderr goes to /dev/null: a prefetcher that kept the pipe of the logging
 * collector open would keep the collector alive. */
static void become_prefetcher(const char *path, char **argv)
{
    (void)setsid();
    if (fork() != 0)
        _exit(0);
    int null_fd = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3; i++)
        (void)dup2(null_fd, i);
    (void)syscall(SYS_close_range, 3U, ~0U, 0U);
    (void)execve(path, argv, environ);
    _exit(127);
}

void wal_launch_prefetch(int argc, char **argv)
{
    char path[PATH_MAX];
    char verb[] = "prefetch";
    char *with[ARGS_MAX + 1];
    struct err ignored;
    if (argc > ARGS_MAX || program_find("tidemark-wal-worker", path, &ignored) < 0)
        return;
    memcpy(with, argv, (size_t)argc * sizeof(*with));
    with[1] = verb;
    with[argc] = NULL;
    pid_t pid = fork(); /* a plain process: one thread, a few pages */
    if (pid == 0)
        become_prefetcher(path, with);
    if (pid > 0)
        (void)waitpid(pid, NULL, 0);
}
