/* tidemark-agent: the daemon, and, by its first argument, the processes it is made of. Under the
 * name tidemark-coordinator it is the same daemon with the members of a cluster instead of a server
 * and volumes of its own. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "agent/api.h"
#include "agent/capture.h"
#include "agent/check.h"
#include "agent/cluster.h"
#include "agent/cluster_gate.h"
#include "agent/health.h"
#include "agent/job_rules.h"
#include "agent/log.h"
#include "agent/notify.h"
#include "agent/pg.h"
#include "agent/reading.h"
#include "agent/track.h"

enum { SWEEP_MS = 10000 };

static const char usage[] =
    "usage: tidemark-agent [--config=FILE] [--verbose]\n"
    "       tidemark-agent job DIR            run the job in DIR\n"
    "       tidemark-agent notify DIR         tell [notify] of the end of the job in DIR\n"
    "       tidemark-agent forget DIR         remove the marks that the job in DIR reads a "
    "snapshot\n"
    "       tidemark-agent check FILE         make the checks, with FILE's text on stdin\n"
    "       tidemark-agent --check-config     read the configuration and say what is wrong\n"
    "       tidemark-agent --print-sample     every option with its default\n"
    "       tidemark-agent --print-man        the options as roff, for tidemark.conf(5)\n"
    "       tidemark-agent --help | --version\n"
    "       tidemark-coordinator [--config=FILE] [--verbose]    for [coordinator] members\n";

struct options {
    const char *config;
    bool check;
};

/* --- the daemon --------------------------------------------------------------------------------*/
/* One agent a state_dir: two would resume the same jobs. */
static int lock_state(const struct conf *conf, int *ret_fd, struct err *err)
{
    char path[CONF_PATH_MAX + 32];
    if (mkdir(conf->state_dir, 0755) < 0 && errno != EEXIST)
        return err_sys(err, ERR_DEVICE, "create '%s'", conf->state_dir);
    (void)snprintf(path, sizeof(path), "%s/agent.lock", conf->state_dir);
    close_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK
                   ? err_set(err, ERR_BUSY, "another agent uses state_dir '%s'", conf->state_dir)
                   : err_sys(err, ERR_DEVICE, "lock '%s'", path);
    *ret_fd = take_fd(&fd);
    return 0;
}

static void log_running(const struct conf *conf)
{
    free_json json_t *jobs = NULL;
    struct err err;
    size_t i;
    json_t *job;
    if (job_list(conf, &jobs, &err) < 0)
        return;
    json_array_foreach(jobs, i, job)
    {
        if (json_is_true(json_object_get(job, "running")))
            log_info("job is running, attached to it: job=%s type=%s",
                     json_string_value(json_object_get(job, "id")),
                     json_string_value(json_object_get(job, "type")));
    }
}

/* Blocked before any thread is made, so that all of them inherit the mask. */
static int open_signals(struct err *err)
{
    sigset_t set;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGCHLD);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)signal(SIGHUP, SIG_IGN);
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? err_sys(err, ERR_INTERNAL, "signalfd") : fd;
}

/* sd_notify(3): systemd counts us as started once the socket is there, so that whoever is ordered
 * after us, or types `tidemark` next, finds it. */
static void tell_systemd(const char *socket_path, const char *text)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = socket_path ? strlen(socket_path) : 0;
    if (len < 2 || len >= sizeof(address.sun_path))
        return;
    memcpy(address.sun_path, socket_path, len);
    if (address.sun_path[0] == '@') /* the abstract namespace */
        address.sun_path[0] = '\0';
    close_fd int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    if (fd < 0 ||
        sendto(fd, text, strlen(text), MSG_NOSIGNAL, (const struct sockaddr *)&address, size) < 0)
        log_warn("systemd does not hear that the agent is ready: socket=%s", socket_path);
}

/* Reaps our jobs; true when SIGTERM or SIGINT came. */
static bool take_signals(int fd)
{
    struct signalfd_siginfo info;
    bool stop = false;
    while (read(fd, &info, sizeof(info)) == sizeof(info))
        stop = stop || info.ssi_signo != SIGCHLD;
    job_reap();
    return stop;
}

static void sweep(struct api *api, bool resume)
{
    (void)pthread_mutex_lock(&api->mutex);
    job_sweep(api->conf, resume);
    (void)pthread_mutex_unlock(&api->mutex);
}

static bool is_coordinator(void)
{
    return strcmp(program_invocation_short_name, "tidemark-coordinator") == 0;
}

/* Of a coordinator in a thread: members that do not answer take their time. */
struct self_check {
    const struct conf *conf;
    pthread_t thread;
    bool running;
};

static void *self_check_main(void *ctx)
{
    const struct self_check *check = ctx;
    free_json json_t *health =
        is_coordinator() ? cluster_health(check->conf) : health_report(check->conf, NULL);
    health_log(health);
    return NULL;
}

static void check_start(struct self_check *check, const struct conf *conf)
{
    *check = (struct self_check){.conf = conf};
    check->running =
        is_coordinator() && pthread_create(&check->thread, NULL, self_check_main, check) == 0;
    if (!check->running)
        (void)self_check_main(check);
}

static void check_stop(struct self_check *check)
{
    if (check->running)
        (void)pthread_join(check->thread, NULL);
}

/* Restores past `marked` are resumed once, here, at the start: one that dies again and again must
 * not be restarted in a circle. */
static int serve(const struct conf *conf, int signal_fd, struct err *err)
{
    struct api api;
    struct api_server *server = NULL;
    struct cluster_gate_watch gate;
    struct self_check check;
    const char *given = getenv("NOTIFY_SOCKET");
    free_mem char *notify = given ? strdup(given) : NULL;
    (void)unsetenv("NOTIFY_SOCKET"); /* not for jobs, and no thread runs yet */
    api_init(&api, conf);
    log_running(conf);
    capture_cleanup_stale(conf);
    track_cleanup(conf);
    sweep(&api, conf->resume == RESUME_AUTO);
    int rc = api_serve(&api, &server, err);
    if (rc < 0)
        return rc;
    log_info("agent serves: socket=%s tls=%s state_dir=%s cluster=%s node=%s version=%s",
             conf->socket, conf->tls_listen[0] ? conf->tls_listen : "-", conf->state_dir,
             conf->cluster, conf->node, TIDEMARK_VERSION);
    tell_systemd(notify, "READY=1");
    cluster_gate_start(&gate, conf);
    check_start(&check, conf);
    struct pollfd wait = {.fd = signal_fd, .events = POLLIN};
    for (bool stop = false; !stop;) {
        (void)poll(&wait, 1, SWEEP_MS);
        stop = take_signals(signal_fd);
        if (!stop)
            sweep(&api, false);
    }
    log_info("agent stops; jobs go on");
    tell_systemd(notify, "STOPPING=1");
    cluster_gate_stop(&gate);
    check_stop(&check);
    api_server_stop(server);
    return 0;
}

/* A coordinator's jobs would wait for the lock of the node whose state_dir they shared. */
static int load_conf(const struct options *options, struct conf *ret, struct err *err)
{
    static const char usual[] = "/etc/tidemark/coordinator.conf";
    struct cluster cluster;
    const char *file = options->config;
    if (!file && is_coordinator() && !getenv("TIDEMARK_CONFIG") && access(usual, F_OK) == 0)
        file = usual;
    int rc = conf_load(file, ret, err);
    if (rc < 0)
        return rc;
    if (is_coordinator())
        return cluster_members(ret, &cluster, err);
    if (!ret->coordinator_members[0])
        return 0;
    (void)err_set(err, ERR_CONFIG, "[coordinator] members stands in the configuration of an agent");
    return err_hint(err, "give tidemark-coordinator a file, a state_dir and a socket of its own");
}

static int run_daemon(const struct options *options, struct err *err)
{
    static struct conf conf; /* large; one a process */
    int rc = load_conf(options, &conf, err);
    if (rc == 0 && options->check && !conf.repository_url[0])
        log_warn("[repository] url is not set: nothing can be stored");
    if (rc < 0 || options->check)
        return rc;
    log_add_times();
    if (geteuid() != 0)
        log_warn("not running as root: jobs will not reach devices");
    close_fd int lock_fd = -1;
    rc = lock_state(&conf, &lock_fd, err);
    if (rc < 0)
        return rc;
    close_fd int signal_fd = open_signals(err);
    return signal_fd < 0 ? signal_fd : serve(&conf, signal_fd, err);
}

/* --- arguments ---------------------------------------------------------------------------------*/
static int usage_error(void)
{
    (void)fputs(usage, stderr);
    return err_exit_status(ERR_USAGE);
}

static int main_job(int argc, char **argv, int (*run)(const char *dir, int ready_fd))
{
    int ready_fd = -1;
    if (argc == 4 && strncmp(argv[3], "--ready-fd=", 11) == 0)
        ready_fd = (int)strtol(argv[3] + 11, NULL, 10);
    else if (argc != 3)
        return usage_error();
    return run(argv[2], ready_fd);
}

static int print(void (*to_stream)(FILE *to))
{
    to_stream(stdout);
    return fflush(stdout) == 0 ? 0 : err_exit_status(ERR_DEVICE);
}

static void print_help(FILE *to)
{
    (void)fputs(usage, to);
    (void)fputs("\nOptions of the configuration, see tidemark.conf(5):\n", to);
    conf_print_help(to);
}

/* Negative: go on as the daemon. */
static int parse_options(int argc, char **argv, struct options *ret)
{
    static const struct option long_options[] = {
        {"config", required_argument, NULL, 'c'}, {"verbose", no_argument, NULL, 'v'},
        {"check-config", no_argument, NULL, 'C'}, {"print-sample", no_argument, NULL, 's'},
        {"print-man", no_argument, NULL, 'm'},    {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},      {NULL, 0, NULL, 0}};
    for (int c; (c = getopt_long(argc, argv, "c:vhV", long_options, NULL)) != -1;) {
        if (c == 'c')
            ret->config = optarg;
        else if (c == 'v')
            log_set_level(LOG_DEBUG);
        else if (c == 'C')
            ret->check = true;
        else if (c == 's')
            return print(conf_print_sample);
        else if (c == 'm')
            return print(conf_print_man);
        else if (c == 'h')
            return print(print_help);
        else if (c == 'V')
            return puts("tidemark-agent " TIDEMARK_VERSION) < 0 ? 1 : 0;
        else
            return usage_error();
    }
    return optind < argc ? usage_error() : -1;
}

int main(int argc, char **argv)
{
    struct options options = {0};
    struct err err;
    if (argc > 1 && strcmp(argv[1], "job") == 0)
        return main_job(argc, argv, job_main);
    if (argc > 1 && strcmp(argv[1], "notify") == 0)
        return main_job(argc, argv, notify_main);
    if (argc > 1 && strcmp(argv[1], "forget") == 0)
        return main_job(argc, argv, reading_forget_main);
    if (argc > 1 && strcmp(argv[1], "check") == 0)
        return argc == 3 ? check_main(argv[2]) : usage_error();
    if (argc > 1 && strcmp(argv[1], "pg-session") == 0)
        return pg_session_main(argc - 1, argv + 1);
    int status = parse_options(argc, argv, &options);
    if (status >= 0)
        return status;
    err_clear(&err);
    if (run_daemon(&options, &err) == 0)
        return 0;
    log_err(&err);
    return err_exit_status(err.code);
}
