/* Child processes: fork + exec of another program, as another user, with nothing of ours but the
 * descriptors that are named. Never plain fork: libraries of ours have threads, so everything that
 * is not async-signal-safe (user lookup, environment) happens before the fork. One thread a child.
 *
 * The child gets: /, a clean environment (PATH, LANG, TZ, HOME, USER, LOGNAME and what options
 * add), default signal handlers, an empty mask, its own session, descriptors 0, 1, 2 and no other.
 */
#ifndef TIDEMARK_AGENT_PROCESS_H
#define TIDEMARK_AGENT_PROCESS_H

#include <stdatomic.h>
#include <sys/types.h>

#include "io/err.h"

struct process_options {
    const char *const *argv;    /* NULL-ended; argv[0] is a path, or a name found in PATH */
    const char *user;           /* NULL or "" = stay; ignored when we are not root */
    const char *const *env;     /* more "NAME=value", NULL-ended; may be NULL */
    int stdin_fd;               /* < 0 = /dev/null */
    int stdout_fd, stderr_fd;   /* < 0 = inherit ours (process_run: capture) */
    unsigned timeout_s;         /* process_run only; 0 = none */
    const _Atomic bool *cancel; /* process_run only; may be NULL */
    bool end_group; /* process_run: a time-out or cancel ends its process group, not it alone */
    bool keep_environment; /* pass our whole environment but the repository's keys */
    bool keep_keys;        /* with keep_environment: those as well; only for programs of ours */
};

#define PROCESS_OPTIONS_INIT                                                                       \
    {                                                                                              \
        .stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1                                           \
    }

/* The account `name`: ids and home directory. ERR_CONFIG when there is no such account. */
int process_user(const char *name, uid_t *ret_uid, gid_t *ret_gid, char ret_home[256],
                 struct err *err);

/* From here to process_fs_root() this thread opens, makes and replaces files with the rights of the
 * account and no more (fsuid(7)): root that follows a path in somebody's directory can be led
 * anywhere by a link. Nothing happens when we are not root. ERR_CONFIG as process_user(). */
int process_fs_user(const char *name, struct err *err);
void process_fs_root(void);

/* Starts; *ret_pid must be reaped by the caller. ERR_INTERNAL, or ERR_CONFIG when the program
 * cannot be executed. */
int process_start(const struct process_options *options, pid_t *ret_pid, struct err *err);

/* Starts, waits, collects: *ret_status is the exit status, or 128 + signal. ret_output: stdout as
 * malloc'ed text (may be NULL: dropped). errors: the last of stderr, one line, NUL-ended (may be
 * NULL). A child that leaves a background process holding the pipes does not hang us: the end of
 * the child is what counts. ERR_BUSY on timeout and ERR_CANCELLED: the child (with end_group,
 * its process group as well) got SIGTERM, then SIGKILL. */
int process_run(const struct process_options *options, int *ret_status, char **ret_output,
                char *errors, size_t errors_size, struct err *err);

/* Waits up to timeout_ms for our child; true when it is reaped. Then *ret_status as above. */
bool process_wait(pid_t pid, unsigned timeout_ms, int *ret_status);

/* True while pid exists and is not a zombie (zombies of strangers may stay for long: FACTS). */
bool process_alive(pid_t pid);

#endif
