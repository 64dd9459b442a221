/* Starting and collecting child processes: see process.h. The only fork() of the agent besides
 * job_start() is here, so that the rules for what a child may inherit are kept in one place. */
#include "agent/process.h"
#include "agent/clock.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <sys/fsuid.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

enum {
    ENV_MAX = 32,
    ENV_TEXT_MAX = 16384,
    GROUPS_MAX = 256,
    OUTPUT_MAX = 64 << 20, /* bytes of captured stdout; more is an error of the program */
    POLL_SLICE_MS = 100,
    KILL_GRACE_MS = 3000,
};

extern char **environ;

/* All that the child needs between fork and exec, prepared before the fork. */
struct child_plan {
    bool switch_user;
    uid_t uid;
    gid_t gid;
    gid_t groups[GROUPS_MAX];
    int group_count;
    char path[1024];
    char *env[ENV_MAX + 1];
    size_t env_count;
    char env_text[ENV_TEXT_MAX];
    size_t env_len;
    bool env_full;
    char *const *all_env; /* keep_environment */
    int fds[3];
    int report_fd; /* close-on-exec: errno of a failed exec travels here */
};

static int lookup_user(const char *name, struct passwd *ret, char *buf, size_t size,
                       struct err *err)
{
    struct passwd *found = NULL;
    int rc = getpwnam_r(name, ret, buf, size, &found);
    if (rc != 0 || !found)
        return err_set(err, ERR_CONFIG, "there is no account '%s'", name);
    return 0;
}

int process_user(const char *name, uid_t *ret_uid, gid_t *ret_gid, char ret_home[256],
                 struct err *err)
{
    struct passwd pw;
    char buf[4096];
    int rc = lookup_user(name, &pw, buf, sizeof(buf), err);
    if (rc < 0)
        return rc;
    *ret_uid = pw.pw_uid;
    *ret_gid = pw.pw_gid;
    (void)snprintf(ret_home, 256, "%s", pw.pw_dir);
    return 0;
}

/* The kernel takes the file capabilities (CAP_DAC_OVERRIDE and its like) away with fsuid 0 and
 * gives them back with it. Supplementary groups stay: root's own. */
int process_fs_user(const char *name, struct err *err)
{
    uid_t uid;
    gid_t gid;
    char home[256];
    int rc = process_user(name, &uid, &gid, home, err);
    if (rc < 0 || geteuid() != 0)
        return rc;
    (void)setfsgid(gid);
    (void)setfsuid(uid);
    if ((uid_t)setfsuid((uid_t)-1) != uid) { /* it cannot say so otherwise */
        process_fs_root();
        return err_set(err, ERR_INTERNAL, "take the file rights of user '%s'", name);
    }
    return 0;
}

void process_fs_root(void)
{
    if (geteuid() != 0)
        return;
    (void)setfsuid(0);
    (void)setfsgid(getegid());
}

static void add_env(struct child_plan *plan, const char *name, const char *value)
{
    if (!value)
        return;
    size_t room = sizeof(plan->env_text) - plan->env_len;
    char *at = plan->env_text + plan->env_len;
    int len = *name ? snprintf(at, room, "%s=%s", name, value) : snprintf(at, room, "%s", value);
    if (len < 0 || (size_t)len >= room || plan->env_count == ENV_MAX) {
        plan->env_full = true;
        return;
    }
    plan->env[plan->env_count++] = at;
    plan->env_len += (size_t)len + 1;
}

static int plan_user(struct child_plan *plan, const char *name, struct err *err)
{
    struct passwd pw;
    char buf[4096];
    int rc = lookup_user(name, &pw, buf, sizeof(buf), err);
    if (rc < 0)
        return rc;
    add_env(plan, "HOME", pw.pw_dir);
    add_env(plan, "USER", name);
    add_env(plan, "LOGNAME", name);
    plan->uid = pw.pw_uid;
    plan->gid = pw.pw_gid;
    plan->group_count = GROUPS_MAX;
    if (getgrouplist(name, pw.pw_gid, plan->groups, &plan->group_count) < 0)
        return err_set(err, ERR_CONFIG, "account '%s' is in more than %d groups", name, GROUPS_MAX);
    plan->switch_user = true;
    return 0;
}

/* exec() itself must not search PATH in the child: execvp allocates. */
static int plan_path(struct child_plan *plan, const char *program, struct err *err)
{
    if (strchr(program, '/')) {
        (void)snprintf(plan->path, sizeof(plan->path), "%s", program);
        return 0;
    }
    const char *search = getenv("PATH");
    if (!search || !*search)
        search = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    while (*search) {
        size_t len = strcspn(search, ":");
        (void)snprintf(plan->path, sizeof(plan->path), "%.*s/%s", (int)len, search, program);
        if (len && access(plan->path, X_OK) == 0)
            return 0;
        search += len + (search[len] == ':');
    }
    return err_set(err, ERR_CONFIG, "program '%s' is not in PATH", program);
}

static int plan_make(struct child_plan *plan, const struct process_options *options,
                     struct err *err)
{
    memset(plan, 0, sizeof(*plan));
    plan->report_fd = -1;
    int rc = plan_path(plan, options->argv[0], err);
    if (rc < 0)
        return rc;
    if (geteuid() == 0 && options->user && *options->user) {
        rc = plan_user(plan, options->user, err);
        if (rc < 0)
            return rc;
    } else {
        add_env(plan, "HOME", getenv("HOME"));
        add_env(plan, "USER", getenv("USER"));
        add_env(plan, "LOGNAME", getenv("LOGNAME"));
    }
    const char *path = getenv("PATH");
    add_env(plan, "PATH", path ? path : "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin");
    add_env(plan, "LANG", getenv("LANG"));
    add_env(plan, "TZ", getenv("TZ"));
    for (size_t i = 0; options->env && options->env[i]; i++)
        add_env(plan, "", options->env[i]);
    if (plan->env_full && !options->keep_environment)
        return err_set(err, ERR_CONFIG, "the environment for '%s' is longer than %d bytes",
                       plan->path, ENV_TEXT_MAX);
    return 0;
}

/* The helpers below run in the forked child: raw system calls only. glibc's setuid() signals the
 * threads that the parent had; the child has one thread and must not. */
static bool child_become(const struct child_plan *plan)
{
    return syscall(SYS_setgroups, (size_t)plan->group_count, plan->groups) == 0 &&
           syscall(SYS_setresgid, plan->gid, plan->gid, plan->gid) == 0 &&
           syscall(SYS_setresuid, plan->uid, plan->uid, plan->uid) == 0;
}

/* fds may overlap 0..2: move them out of the way first. */
static bool child_descriptors(const struct child_plan *plan)
{
    int moved[3];
    for (int i = 0; i < 3; i++) {
        int from = plan->fds[i];
        if (from < 0 && i == 0)
            from = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (from < 0)
            from = i;
        moved[i] = fcntl(from, F_DUPFD_CLOEXEC, 10);
        if (moved[i] < 0)
            return false;
    }
    for (int i = 0; i < 3; i++)
        if (dup2(moved[i], i) < 0)
            return false;
    return syscall(SYS_close_range, 3U, ~0U, (unsigned)CLOSE_RANGE_CLOEXEC) == 0;
}

static void child_signals(void)
{
    struct sigaction standard = {.sa_handler = SIG_DFL};
    for (int i = 1; i < NSIG; i++)
        (void)sigaction(i, &standard, NULL);
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

static void child_main(struct child_plan *plan, const struct process_options *options)
{
    child_signals();
    (void)setsid();
    if (chdir("/") == 0 && child_descriptors(plan) && (!plan->switch_user || child_become(plan))) {
        union { /* exec takes char *const[] for historical reasons only and changes nothing */
            const char *const *in;
            char *const *out;
        } argv = {.in = options->argv};
        (void)execve(plan->path, argv.out, plan->all_env ? plan->all_env : plan->env);
    }
    int cause = errno;
    ssize_t ignored = write(plan->report_fd, &cause, sizeof(cause));
    (void)ignored;
    _exit(127);
}

static bool is_secret(const char *variable)
{
    static const char *const endings[] = {"_ACCESS_KEY_ID", "_SECRET_ACCESS_KEY", "_SESSION_TOKEN"};
    size_t len = strcspn(variable, "=");
    for (size_t i = 0; i < ARRAY_LEN(endings); i++) {
        size_t end = strlen(endings[i]);
        if (len >= end && strncmp(variable + len - end, endings[i], end) == 0)
            return true;
    }
    return false;
}

/* Our environment without the repository's keys: the child may become the server's user. */
static char **environment_without_keys(void)
{
    size_t count = 0, kept = 0;
    while (environ[count])
        count++;
    char **env = calloc(count + 1, sizeof(*env));
    for (size_t i = 0; env && i < count; i++)
        if (!is_secret(environ[i]))
            env[kept++] = environ[i];
    return env;
}

int process_start(const struct process_options *options, pid_t *ret_pid, struct err *err)
{
    struct child_plan plan;
    int rc = plan_make(&plan, options, err);
    if (rc < 0)
        return rc;
    bool without_keys = options->keep_environment && !options->keep_keys;
    free_mem char **all_env = without_keys ? environment_without_keys() : NULL;
    if (without_keys && !all_env)
        return err_set(err, ERR_INTERNAL, "out of memory");
    plan.all_env = options->keep_environment && options->keep_keys ? environ : all_env;
    plan.fds[0] = options->stdin_fd;
    plan.fds[1] = options->stdout_fd;
    plan.fds[2] = options->stderr_fd;
    int report[2];
    if (pipe2(report, O_CLOEXEC) < 0)
        return err_sys(err, ERR_INTERNAL, "make a pipe for '%s'", plan.path);
    close_fd int report_read = report[0];
    plan.report_fd = report[1];
    pid_t pid = fork();
    if (pid == 0)
        child_main(&plan, options);
    (void)close(report[1]);
    if (pid < 0)
        return err_sys(err, ERR_INTERNAL, "start '%s'", plan.path);
    int cause = 0;
    ssize_t len;
    do
        len = read(report_read, &cause, sizeof(cause));
    while (len < 0 && errno == EINTR);
    if (len > 0) {
        (void)waitpid(pid, NULL, 0);
        errno = cause;
        return err_sys(err, ERR_CONFIG, "execute '%s'%s%s", plan.path,
                       plan.switch_user ? " as " : "", plan.switch_user ? options->user : "");
    }
    *ret_pid = pid;
    return 0;
}

static int status_of(int wait_status)
{
    return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

bool process_wait(pid_t pid, unsigned timeout_ms, int *ret_status)
{
    uint64_t deadline = now_ms() + timeout_ms;
    close_fd int fd = pidfd_open(pid, 0);
    for (;;) {
        int wait_status;
        pid_t got = waitpid(pid, &wait_status, WNOHANG);
        if (got == pid || (got < 0 && errno == ECHILD)) {
            *ret_status = got == pid ? status_of(wait_status) : 0;
            return true;
        }
        uint64_t now = now_ms();
        if (now >= deadline)
            return false;
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        (void)poll(&poll_fd, 1, (int)min_u64(deadline - now, fd < 0 ? 20 : 1000));
    }
}

/* What a running child has said so far. */
struct capture_state {
    int fds[2]; /* read ends of stdout and stderr, -1 after EOF */
    char *output;
    size_t output_len, output_size;
    bool keep_output, too_long;
    char errors[2048];
    size_t errors_len;
};

static void keep_output(struct capture_state *state, const char *buf, size_t len)
{
    if (!state->keep_output || state->too_long)
        return;
    if (state->output_len + len > OUTPUT_MAX) {
        state->too_long = true;
        return;
    }
    if (state->output_len + len + 1 > state->output_size) {
        state->output_size = (state->output_len + len + 1) * 2;
        state->output = realloc(state->output, state->output_size);
        if (!state->output)
            abort();
    }
    memcpy(state->output + state->output_len, buf, len);
    state->output_len += len;
    state->output[state->output_len] = '\0';
}

/* Keeps the end: the last line of stderr is the one that says why. */
static void keep_errors(struct capture_state *state, const char *buf, size_t len)
{
    size_t size = sizeof(state->errors) - 1;
    if (len > size) {
        buf += len - size;
        len = size;
    }
    if (state->errors_len + len > size) {
        size_t drop = state->errors_len + len - size;
        memmove(state->errors, state->errors + drop, state->errors_len - drop);
        state->errors_len -= drop;
    }
    memcpy(state->errors + state->errors_len, buf, len);
    state->errors_len += len;
    state->errors[state->errors_len] = '\0';
}

static void drain(struct capture_state *state, int which)
{
    char buf[16384];
    while (state->fds[which] >= 0) {
        ssize_t len = read(state->fds[which], buf, sizeof(buf));
        if (len < 0 && errno == EINTR)
            continue;
        if (len < 0 && errno == EAGAIN)
            return;
        if (len <= 0) {
            (void)close(state->fds[which]);
            state->fds[which] = -1;
            return;
        }
        if (which == 0)
            keep_output(state, buf, (size_t)len);
        else
            keep_errors(state, buf, (size_t)len);
    }
}

/* SIGTERM, then SIGKILL: only ever to a child that process_run() started (never a postmaster,
 * which pg_ctl leaves as a stranger's child). */
static void end_child(pid_t pid)
{
    int ignored;
    (void)kill(pid, SIGTERM);
    if (process_wait(pid, KILL_GRACE_MS, &ignored))
        return;
    (void)kill(pid, SIGKILL);
    (void)process_wait(pid, KILL_GRACE_MS, &ignored);
}

/* The child leads a group of its own (setsid). The number of a group is not given away while it has
 * members, so what is left after the child itself was reaped can still be reached. */
static void end_group(pid_t pid)
{
    static const int signals[] = {SIGTERM, SIGKILL};
    for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
        uint64_t deadline = now_ms() + KILL_GRACE_MS;
        int ignored;
        (void)kill(-pid, signals[i]);
        (void)process_wait(pid, KILL_GRACE_MS, &ignored);
        while (kill(-pid, 0) == 0 && now_ms() < deadline)
            pause_ms(POLL_SLICE_MS / 5);
        if (kill(-pid, 0) < 0)
            return;
    }
}

static void end(const struct process_options *options, pid_t pid)
{
    if (options->end_group)
        end_group(pid);
    else
        end_child(pid);
}

static int collect(const struct process_options *options, pid_t pid, struct capture_state *state,
                   int *ret_status, struct err *err)
{
    uint64_t deadline = options->timeout_s ? now_ms() + options->timeout_s * 1000ull : UINT64_MAX;
    close_fd int fd = pidfd_open(pid, 0);
    while (!process_wait(pid, 0, ret_status)) {
        struct pollfd fds[3] = {{.fd = state->fds[0], .events = POLLIN},
                                {.fd = state->fds[1], .events = POLLIN},
                                {.fd = fd, .events = POLLIN}};
        (void)poll(fds, 3, POLL_SLICE_MS);
        drain(state, 0);
        drain(state, 1);
        if (options->cancel && atomic_load(options->cancel)) {
            end(options, pid);
            return err_set(err, ERR_CANCELLED, "cancelled by request");
        }
        if (now_ms() >= deadline) {
            end(options, pid);
            return err_set(err, ERR_BUSY, "'%s' did not end within %u s", options->argv[0],
                           options->timeout_s);
        }
    }
    drain(state, 0);
    drain(state, 1);
    if (state->too_long)
        return err_set(err, ERR_INTERNAL, "'%s' printed more than %d bytes", options->argv[0],
                       OUTPUT_MAX);
    return 0;
}

/* "a\nb\n" → "a; b", so that an error stays one line. */
static void copy_one_line(const char *from, char *to, size_t size)
{
    size_t len = 0;
    for (; *from && len + 3 < size; from++) {
        bool last = from[strspn(from, "\n")] == '\0';
        if (*from != '\n') {
            to[len++] = *from == '\t' ? ' ' : *from;
        } else if (!last) {
            to[len++] = ';';
            to[len++] = ' ';
        }
    }
    to[len] = '\0';
}

static int capture_pipe(int *ret_read, int *ret_write, struct err *err)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_sys(err, ERR_INTERNAL, "make a pipe");
    (void)fcntl(fds[0], F_SETFL, O_NONBLOCK);
    *ret_read = fds[0];
    *ret_write = fds[1];
    return 0;
}

int process_run(const struct process_options *options, int *ret_status, char **ret_output,
                char *errors, size_t errors_size, struct err *err)
{
    struct process_options with = *options;
    struct capture_state state = {.fds = {-1, -1}, .keep_output = ret_output != NULL};
    close_fd int out = -1, errors_fd = -1;
    int rc = 0, status = 0;
    pid_t pid = -1;
    if (with.stdout_fd < 0) {
        rc = capture_pipe(&state.fds[0], &out, err);
        with.stdout_fd = out;
    }
    if (rc == 0 && with.stderr_fd < 0) {
        rc = capture_pipe(&state.fds[1], &errors_fd, err);
        with.stderr_fd = errors_fd;
    }
    if (rc == 0)
        rc = process_start(&with, &pid, err);
    if (rc == 0) {
        if (out >= 0)
            (void)close(take_fd(&out));
        if (errors_fd >= 0)
            (void)close(take_fd(&errors_fd));
        rc = collect(&with, pid, &state, &status, err);
    }
    cleanup_close(&state.fds[0]);
    cleanup_close(&state.fds[1]);
    if (errors && errors_size)
        copy_one_line(state.errors, errors, errors_size);
    if (rc < 0) {
        free(state.output);
        return rc;
    }
    keep_output(&state, "", 0); /* an empty output is "" and not NULL */
    *ret_status = status;
    if (ret_output)
        *ret_output = state.output;
    return 0;
}

bool process_alive(pid_t pid)
{
    if (pid <= 0 || (kill(pid, 0) < 0 && errno == ESRCH))
        return false;
    char path[64], buf[512];
    (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno != ENOENT;
    ssize_t len = read(fd, buf, sizeof(buf) - 1);
    if (len <= 0)
        return false; /* ESRCH: it went away between open and read */
    buf[len] = '\0';
    const char *state = strrchr(buf, ')'); /* the command name may hold anything, also ')' */
    return !state || strlen(state) < 3 || (state[2] != 'Z' && state[2] != 'X');
}
