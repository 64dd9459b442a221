/* Starting, stopping and looking at the server; programs of bin_directory; pg_control through
 * pg_controldata. The server is never killed harder than a fast stop, and what says that it runs is
 * postmaster.pid together with the process it names, never a tool's exit status. */
#include "agent/pg.h"
#include "agent/pg_pid_file.h"
#include "agent/process.h"
#include "agent/clock.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

enum {
    SYSTEMCTL_TIMEOUT_S = 60,
    TOOL_TIMEOUT_S = 60,
    START_WAIT_S = 30, /* until the first sign of a postmaster */
    POLL_MS = 20,
    LOG_TAIL = 4096,
};

/* --- state ------------------------------------------------------------------------------------ */

/* A postmaster's working directory is its data directory. That tells it from a process that was
 * given the same number after a crash, which kill(pid, 0) cannot. */
static bool lives_in(int pid, const char *directory)
{
    char path[64];
    struct stat cwd, data;
    (void)snprintf(path, sizeof(path), "/proc/%d/cwd", pid);
    if (stat(path, &cwd) < 0)
        return errno != ENOENT; /* not allowed to look: believe the file */
    return stat(directory, &data) == 0 && cwd.st_dev == data.st_dev && cwd.st_ino == data.st_ino;
}

int pg_server_state(const struct conf *conf, enum pg_state *ret, int *ret_pid, struct err *err)
{
    char path[CONF_PATH_MAX + 32];
    struct pg_pid_file file;
    (void)snprintf(path, sizeof(path), "%s/postmaster.pid", conf->data_directory);
    int rc = pg_pid_file_read(path, &file);
    if (rc < 0)
        return err_sys(err, ERR_POSTGRES, "read '%s'", path);
    bool there = rc == 0 && process_alive(file.pid) && lives_in(file.pid, conf->data_directory);
    bool ready = there && strcmp(file.status, "ready") == 0;
    *ret = !there ? PG_STOPPED : ready ? PG_RUNNING : PG_STARTING;
    if (ret_pid)
        *ret_pid = there ? file.pid : 0;
    return 0;
}

/* Waits for `stopped` (or its opposite). ERR_BUSY when the time is up. */
static int wait_for_state(const struct conf *conf, bool stopped, unsigned timeout_s,
                          struct err *err)
{
    uint64_t deadline = now_ms() + timeout_s * 1000ull;
    for (;;) {
        enum pg_state state;
        int rc = pg_server_state(conf, &state, NULL, err);
        if (rc < 0 || (state == PG_STOPPED) == stopped)
            return rc;
        if (now_ms() >= deadline)
            return err_set(err, ERR_BUSY, "timeout");
        pause_ms(POLL_MS);
    }
}

/* --- programs --------------------------------------------------------------------------------- */

static int bin_path(const struct conf *conf, const char *name, char *path, size_t size,
                    struct err *err)
{
    if (!conf->bin_directory[0])
        return err_set(err, ERR_CONFIG, "bin_directory is not set");
    (void)snprintf(path, size, "%s/%s", conf->bin_directory, name);
    return 0;
}

int pg_run_status(const struct conf *conf, const char *const *argv, const char *pg_options,
                  const _Atomic bool *cancel, int *ret_status, char **ret_output, char *errors,
                  size_t size, struct err *err)
{
    char path[CONF_PATH_MAX + 256];
    const char *with[64] = {path};
    int rc = bin_path(conf, argv[0], path, sizeof(path), err);
    if (rc < 0)
        return rc;
    for (size_t i = 1; argv[i]; i++) {
        if (i + 1 >= ARRAY_LEN(with))
            return err_set(err, ERR_INTERNAL, "too many arguments for %s", argv[0]);
        with[i] = argv[i];
    }
    char sessions[256];
    (void)snprintf(sessions, sizeof(sessions), "PGOPTIONS=%s", pg_options ? pg_options : "");
    const char *const env[] = {"LC_ALL=C", pg_options ? sessions : NULL, NULL};
    struct process_options options = PROCESS_OPTIONS_INIT;
    options.argv = with;
    options.user = conf->os_user;
    options.env = env;
    options.cancel = cancel;
    return process_run(&options, ret_status, ret_output, errors, size, err);
}

int pg_run(const struct conf *conf, const char *const *argv, char **ret_output, struct err *err)
{
    int status;
    char errors[512];
    char *output = NULL;
    int rc = pg_run_status(conf, argv, NULL, NULL, &status, &output, errors, sizeof(errors), err);
    if (rc < 0)
        return rc;
    if (status != 0) {
        free(output);
        return err_set(err, ERR_POSTGRES, "%s ended with status %d: %s", argv[0], status, errors);
    }
    if (ret_output)
        *ret_output = output;
    else
        free(output);
    return 0;
}

/* --- the managers ----------------------------------------------------------------------------- */

static int run_systemctl(const struct conf *conf, const char *verb, const char *flag,
                         int *ret_status, struct err *err)
{
    const char *argv[] = {"systemctl", verb, flag, "--", conf->manager_arg, NULL};
    struct process_options options = PROCESS_OPTIONS_INIT;
    char errors[512];
    options.argv = argv;
    options.timeout_s = (unsigned)max_u64(SYSTEMCTL_TIMEOUT_S, conf->start_timeout_s);
    int rc = process_run(&options, ret_status, NULL, errors, sizeof(errors), err);
    if (rc < 0)
        return rc;
    if (*ret_status != 0)
        return err_set(err, ERR_POSTGRES, "systemctl %s %s ended with status %d: %s", verb,
                       conf->manager_arg, *ret_status, errors);
    return 0;
}

/* `PREFIX start` or `PREFIX stop` through the shell, as ourselves (pg_ctlcluster and its like
 * change the user by themselves). */
static int run_command(const struct conf *conf, const char *verb, struct err *err)
{
    char line[CONF_PATH_MAX + 32], data[CONF_PATH_MAX + 64], errors[512];
    (void)snprintf(line, sizeof(line), "%s %s", conf->manager_arg, verb);
    (void)snprintf(data, sizeof(data), "TIDEMARK_DATA_DIRECTORY=%s", conf->data_directory);
    const char *argv[] = {"/bin/sh", "-c", line, NULL};
    const char *env[] = {data, NULL};
    struct process_options options = PROCESS_OPTIONS_INIT;
    int status;
    options.argv = argv;
    options.env = env;
    options.timeout_s = conf->start_timeout_s;
    int rc = process_run(&options, &status, NULL, errors, sizeof(errors), err);
    if (rc < 0)
        return rc;
    if (status != 0)
        return err_set(err, ERR_POSTGRES, "'%s' ended with status %d: %s", line, status, errors);
    return 0;
}

static int run_stop(const struct conf *conf, struct err *err)
{
    const char *argv[] = {"pg_ctl", "stop", "-D", conf->data_directory, "-m", "fast", "-W", NULL};
    int status;
    switch (conf->manager) {
    case MANAGER_PG_CTL:
    case MANAGER_PATRONI:
        return pg_run(conf, argv, NULL, err);
    case MANAGER_SYSTEMD:
        return run_systemctl(conf, "stop", "--no-block", &status, err);
    case MANAGER_COMMAND:
        return run_command(conf, "stop", err);
    }
    return err_set(err, ERR_INTERNAL, "unknown manager %d", (int)conf->manager);
}

bool pg_uses_pg_ctl(const struct conf *conf)
{
    return conf->manager == MANAGER_PG_CTL || conf->manager == MANAGER_PATRONI;
}

int pg_server_stop(const struct conf *conf, struct err *err)
{
    enum pg_state state;
    int rc = pg_server_state(conf, &state, NULL, err);
    if (rc < 0)
        return rc;
    /* A stopped server may still be an active or restarting unit: systemd must hear of it too. */
    if (state == PG_STOPPED && conf->manager != MANAGER_SYSTEMD)
        return 0;
    rc = run_stop(conf, err);
    if (rc < 0) {
        struct err ignored;
        bool gone = pg_server_state(conf, &state, NULL, &ignored) == 0 && state == PG_STOPPED;
        return gone && pg_uses_pg_ctl(conf) ? 0 : err_prefix(err, "stop PostgreSQL");
    }
    rc = wait_for_state(conf, true, conf->start_timeout_s, err);
    if (rc != -ERR_BUSY)
        return rc;
    err_set(err, ERR_POSTGRES, "PostgreSQL did not stop within %u s (start_timeout)",
            conf->start_timeout_s);
    return err_hint(err,
                    "look at its log and stop it by hand (%s), then try again; it is not killed",
                    conf->data_directory);
}

void pg_server_log(const struct conf *conf, char path[CONF_PATH_MAX + 1])
{
    if (conf->log_file[0])
        (void)snprintf(path, CONF_PATH_MAX + 1, "%s", conf->log_file);
    else
        (void)snprintf(path, CONF_PATH_MAX + 1, "%s/postgresql.log", conf->state_dir);
}

/* The last line of the log since `from` that says why, or the last line. "configuration file …
 * contains errors" does not: the line before it names the error. */
static void log_reason(const char *path, off_t from, char *to, size_t size)
{
    char text[LOG_TAIL + 1];
    (void)snprintf(to, size, "nothing");
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return;
    if (st.st_size - from > LOG_TAIL)
        from = st.st_size - LOG_TAIL;
    ssize_t len = pread(fd, text, LOG_TAIL, from);
    if (len <= 0)
        return;
    text[len] = '\0';
    char *state = NULL, *before = NULL;
    bool found = false;
    for (char *line = strtok_r(text, "\n", &state); line; line = strtok_r(NULL, "\n", &state)) {
        bool says_why = strstr(line, "FATAL:") || strstr(line, "PANIC:") || strstr(line, "ERROR:");
        bool of_before = before && strstr(line, "contains errors");
        if (says_why || !found)
            (void)snprintf(to, size, "%s%s%s", of_before ? before : "", of_before ? " | " : "",
                           line);
        found |= says_why;
        before = line;
    }
}

/* pg_ctl hands its -o text to a shell: every setting goes into single quotes. */
static int shell_options(const char *const *extra, char *to, size_t size, struct err *err)
{
    size_t len = 0;
    to[0] = '\0';
    for (size_t i = 0; extra && extra[i]; i++) {
        len += (size_t)snprintf(to + len, size - len, "%s-c '", len ? " " : "");
        for (const char *c = extra[i]; *c && len + 8 < size; c++)
            len += (size_t)snprintf(to + len, size - len, *c == '\'' ? "'\\''" : "%c", *c);
        if (len + 8 >= size)
            return err_set(err, ERR_INTERNAL, "the start options are too long");
        len += (size_t)snprintf(to + len, size - len, "'");
    }
    return 0;
}

/* The log is opened by us and inherited, so that the server's user needs no way into state_dir;
 * pg_ctl gives the postmaster a session of its own, stdin from /dev/null and stderr = stdout.
 * -t 1: pg_ctl watches the first second, which tells a server that refused its settings from one
 * that recovers. Its status says nothing else. *ret_dead: it saw the server end. */
static int run_pg_ctl_start(const struct conf *conf, const char *options_text, int log_fd,
                            bool *ret_dead, struct err *err)
{
    char path[CONF_PATH_MAX + 16], errors[512];
    int rc = bin_path(conf, "pg_ctl", path, sizeof(path), err);
    if (rc < 0)
        return rc;
    const char *argv[12] = {path, "start", "-D", conf->data_directory, "-w", "-t", "1", "-s"};
    if (*options_text) {
        argv[8] = "-o";
        argv[9] = options_text;
    }
    static const char *const env[] = {"LC_MESSAGES=C", NULL};
    struct process_options options = PROCESS_OPTIONS_INIT;
    int status;
    options.argv = argv;
    options.env = env;
    options.user = conf->os_user;
    options.stdout_fd = log_fd;
    options.timeout_s = TOOL_TIMEOUT_S;
    rc = process_run(&options, &status, NULL, errors, sizeof(errors), err);
    if (rc == 0)
        *ret_dead = status != 0 && strstr(errors, "could not start server");
    return rc;
}

static int start_by_pg_ctl(const struct conf *conf, const char *const *extra, struct err *err)
{
    char log[CONF_PATH_MAX + 1], text[8192], reason[512];
    int rc = shell_options(extra, text, sizeof(text), err);
    if (rc < 0)
        return rc;
    pg_server_log(conf, log);
    close_fd int log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    if (log_fd < 0)
        return err_sys(err, ERR_POSTGRES, "open the server's log '%s'", log);
    off_t from = lseek(log_fd, 0, SEEK_END);
    bool dead = false;
    unsigned wait_s = (unsigned)min_u64(conf->start_timeout_s, START_WAIT_S);
    rc = run_pg_ctl_start(conf, text, log_fd, &dead, err);
    if (rc == 0)
        rc = wait_for_state(conf, false, dead ? 0 : wait_s, err);
    if (rc == 0)
        return 0;
    log_reason(log, from, reason, sizeof(reason));
    if (rc == -ERR_BUSY)
        err_set(err, ERR_POSTGRES, "the server ended right after its start");
    char what[sizeof(err->text)];
    (void)snprintf(what, sizeof(what), "%s", err->text);
    err_set(err, ERR_POSTGRES, "start PostgreSQL: %s; it said: %s", what, reason);
    return err_hint(err, "the server's log is %s", log);
}

/* --no-block: a unit of type forking or notify is not "started" before the server is consistent,
 * and following the recovery is the caller's business. */
static int start_by_systemd(const struct conf *conf, struct err *err)
{
    struct err ignored;
    int status;
    (void)run_systemctl(conf, "reset-failed", "--quiet", &status, &ignored); /* the start limit */
    int rc = run_systemctl(conf, "start", "--no-block", &status, err);
    uint64_t deadline = now_ms() + conf->start_timeout_s * 1000ull;
    while (rc == 0) {
        rc = wait_for_state(conf, false, 1, err);
        if (rc != -ERR_BUSY)
            return rc;
        bool failed = run_systemctl(conf, "is-failed", "--quiet", &status, &ignored) == 0;
        if (!failed && now_ms() < deadline) {
            rc = 0;
            continue;
        }
        err_set(err, ERR_POSTGRES, failed ? "unit %s failed" : "unit %s did not start PostgreSQL",
                conf->manager_arg);
        return err_hint(err, "journalctl -u %s says why", conf->manager_arg);
    }
    return rc;
}

static int start_by_command(const struct conf *conf, struct err *err)
{
    int rc = run_command(conf, "start", err);
    if (rc == 0)
        rc = wait_for_state(conf, false, conf->start_timeout_s, err);
    if (rc == -ERR_BUSY)
        return err_set(err, ERR_POSTGRES, "'%s start' did not start PostgreSQL in '%s'",
                       conf->manager_arg, conf->data_directory);
    return rc;
}

int pg_server_start(const struct conf *conf, const char *const *extra, struct err *err)
{
    enum pg_state state;
    int pid;
    int rc = pg_server_state(conf, &state, &pid, err);
    if (rc < 0)
        return rc;
    if (state != PG_STOPPED)
        return err_set(err, ERR_BUSY, "PostgreSQL runs already in '%s' (pid %d)",
                       conf->data_directory, pid);
    if (extra && extra[0] && !pg_uses_pg_ctl(conf))
        return err_set(err, ERR_CONFIG, "start options need manager = pg_ctl");
    switch (conf->manager) {
    case MANAGER_PG_CTL:
    case MANAGER_PATRONI:
        return start_by_pg_ctl(conf, extra, err);
    case MANAGER_SYSTEMD:
        return start_by_systemd(conf, err);
    case MANAGER_COMMAND:
        return start_by_command(conf, err);
    }
    return err_set(err, ERR_INTERNAL, "unknown manager %d", (int)conf->manager);
}
