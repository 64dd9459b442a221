/* Following a job: a progress line on a terminal, one line a phase on a pipe, both on stderr. The
 * job is a process of its own; what happens to this one does not stop it, except that Ctrl-C asks
 * it to. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>

#include "agent/job.h"
#include "tools/cmd.h"
#include "agent/clock.h"

enum { REPEAT_MS = 500 };

/* Counts Ctrl-C and SIGTERM; the only globals, as handlers need them. */
static volatile sig_atomic_t interrupts;
/* 1: a request is on its way, and whether a job comes of it is not known yet; 2: and there was an
 * interrupt, at asking_ms. */
static volatile sig_atomic_t asking;
static volatile uint64_t asking_ms;

struct view {
    struct cmd *cmd;
    struct client *client;
    const char *id;
    bool terminal, line_open;
    bool partial;          /* past `marked`: neither the old nor the new data is there */
    bool cancelling;       /* asked already */
    sig_atomic_t answered; /* interrupts that were dealt with */
    uint64_t asked_ms;     /* when cancelling began */
};

static void say(const char *text)
{
    ssize_t written = write(STDERR_FILENO, text, strlen(text));
    (void)written;
}

static void on_interrupt(int number)
{
    (void)number;
    interrupts++;
    if (asking == 1) { /* the answer has the id with which the job is cancelled */
        asking = 2;
        asking_ms = now_ms();
        say("\nwaiting for the job's id; press Ctrl-C again to leave without it\n");
    } else if (asking == 2 && now_ms() - asking_ms >= REPEAT_MS) {
        say("\nerror: left before the answer: a job may have been started\n"
            "hint: `tidemark jobs` shows it, `tidemark cancel JOB` ends it\n");
        _exit(err_exit_status(ERR_CANCELLED));
    }
}

static void catch_interrupts(void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler};
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
}

static uint64_t number_of(const json_t *json, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(json, key));
    return value > 0 ? (uint64_t)value : 0;
}

/* --- showing -----------------------------------------------------------------------------------*/
static void clear_line(struct view *view)
{
    if (view->line_open)
        (void)fputs("\r\033[K", stderr);
    view->line_open = false;
}

static void show_bar(struct view *view, const json_t *progress, const char *phase)
{
    char done[24], total[24], rate[24], line[160];
    uint64_t bytes_done = number_of(progress, "bytes_done");
    uint64_t bytes_total = number_of(progress, "bytes_total");
    uint64_t left_s = number_of(progress, "left_s");
    cmd_format_size(bytes_done, done);
    cmd_format_size(bytes_total, total);
    cmd_format_size(number_of(progress, "rate_bytes_s"), rate);
    int len = snprintf(line, sizeof(line), "%s", phase);
    /* The numbers may still be those of the phase before. Once all is copied the rate says nothing:
     * what a recovery does is not counted. */
    bool current = strcmp(cmd_text(progress, "phase"), phase) == 0;
    if (current && bytes_done < bytes_total && len > 0 && (size_t)len < sizeof(line))
        len += snprintf(line + len, sizeof(line) - (size_t)len, "  %" PRIu64 " %%  %s of %s  %s/s",
                        bytes_done * 100 / bytes_total, done, total, rate);
    if (current && left_s > 0 && len > 0 && (size_t)len < sizeof(line))
        (void)snprintf(line + len, sizeof(line) - (size_t)len, "  %" PRIu64 ":%02" PRIu64 " left",
                       left_s / 60, left_s % 60);
    (void)fprintf(stderr, "\r\033[K%.*s", (int)cmd_columns(STDERR_FILENO) - 1, line);
    (void)fflush(stderr);
    view->line_open = true;
}

static void show(void *ctx, const json_t *status)
{
    struct view *view = ctx;
    const char *phase = cmd_text(status, "phase");
    view->partial = job_is_partial(status);
    if (view->cmd->on_status) {
        clear_line(view);
        view->cmd->on_status(view->cmd, status);
    }
    if (view->cmd->quiet)
        return;
    if (phase[0] && strcmp(phase, view->cmd->last_phase) != 0) {
        (void)snprintf(view->cmd->last_phase, sizeof(view->cmd->last_phase), "%s", phase);
        if (!view->terminal)
            (void)fprintf(stderr, "%s\n", phase);
    }
    if (view->terminal && json_is_true(json_object_get(status, "running")))
        show_bar(view, json_object_get(status, "progress"), phase);
}

/* --- Ctrl-C ------------------------------------------------------------------------------------*/
static void ask_to_cancel(struct view *view)
{
    char path[96];
    json_t *answer = NULL;
    struct err err;
    clear_line(view);
    (void)snprintf(path, sizeof(path), "/jobs/%s", view->id);
    if (client_call(view->client, "DELETE", path, NULL, &answer, &err) < 0)
        (void)fprintf(stderr, "not cancelled: %s\n", err.text);
    else
        (void)fputs("cancelling; press Ctrl-C again to leave without waiting\n", stderr);
    json_decref(answer);
    view->cancelling = true;
    view->asked_ms = now_ms();
}

/* True: leave, the job goes on. Past `marked` cancelling would only leave a server that cannot
 * start, so the first Ctrl-C detaches there. libcurl is not re-entrant: the cancel request is made
 * in between, see follow(). */
static bool stop(void *ctx)
{
    struct view *view = ctx;
    /* timeout(1) and some shells send a signal to the process and to its group: twice is once. */
    if (view->cancelling && now_ms() - view->asked_ms < REPEAT_MS)
        view->answered = interrupts;
    return interrupts > view->answered;
}

static int detached(const struct view *view, struct err *err)
{
    if (view->partial) {
        (void)err_set(err, ERR_PARTIAL, "left restore %s running: it is not finished", view->id);
        return err_hint(err,
                        "`tidemark jobs --follow %s` follows it; `tidemark cancel %s` stops it",
                        view->id, view->id);
    }
    (void)err_set(err, ERR_CANCELLED, "left job %s running", view->id);
    return err_hint(err, "`tidemark jobs --follow %s` follows it", view->id);
}

/* What was shown last may be old: whether the volumes are marked must be known now. */
static void refresh(struct view *view)
{
    char path[96];
    free_json json_t *status = NULL;
    struct err ignored;
    (void)snprintf(path, sizeof(path), "/jobs/%s", view->id);
    if (client_call(view->client, "GET", path, NULL, &status, &ignored) == 0)
        view->partial = job_is_partial(status);
}

static int follow(struct view *view, json_t **ret, struct err *err)
{
    const struct client_follow how = {.each = show, .stop = stop, .ctx = view};
    for (;;) {
        int rc = client_follow(view->client, view->id, &how, ret, err);
        if (rc != -ERR_CANCELLED || interrupts == view->answered)
            return rc;
        view->answered = interrupts;
        refresh(view);
        if (view->partial || view->cancelling) {
            clear_line(view);
            return detached(view, err);
        }
        ask_to_cancel(view);
    }
}

/* --- the outcome -------------------------------------------------------------------------------*/
static int outcome(const struct cmd *cmd, const json_t *status, const char *id, struct err *err)
{
    const char *state = cmd_text(status, "state");
    const json_t *error = json_object_get(status, "error");
    if (strcmp(state, "complete") == 0 || strcmp(state, "prepared") == 0 ||
        strcmp(state, "executed") == 0 || strcmp(state, "held") == 0)
        return 0;
    if (json_is_object(error)) {
        enum err_code code = err_code_from_name(cmd_text(error, "code"));
        (void)err_set(err, code == ERR_OK ? ERR_INTERNAL : code, "%s", cmd_text(error, "text"));
        if (cmd_text(error, "hint")[0])
            (void)err_hint(err, "%s", cmd_text(error, "hint"));
    } else {
        (void)err_set(err, job_is_partial(status) ? ERR_PARTIAL : ERR_INTERNAL,
                      "the process of job %s ended without a word", id);
        if (cmd_text(status, "interrupted_hint")[0])
            (void)err_hint(err, "%s", cmd_text(status, "interrupted_hint"));
        else if (!job_is_partial(status))
            (void)err_hint(err,
                           "start it again; its log is %s/jobs/%s/log, and dmesg says whether "
                           "memory ran out",
                           cmd->agent ? "the agent's state_dir" : cmd->conf.state_dir, id);
    }
    if (!err->hint[0] && (job_is_partial(status) || job_is_cluster_part(status))) {
        char command[JOB_COMMAND_MAX];
        job_resume_command(status, command);
        (void)err_hint(err, "`%s` goes on", command);
    }
    return -(int)err->code;
}

/* answered: interrupts that were before this job. */
static int follow_job(struct cmd *cmd, struct client *client, const char *id, sig_atomic_t answered,
                      json_t **ret, struct err *err)
{
    struct view view = {.cmd = cmd, .client = client, .id = id, .answered = answered};
    view.terminal = isatty(STDERR_FILENO);
    json_t *status = NULL;
    int rc = follow(&view, &status, err);
    clear_line(&view);
    if (rc == 0)
        rc = outcome(cmd, status, id, err);
    if (rc < 0 && status && cmd->json && cmd->verb->tells_failed)
        cmd_print_json(status);
    bool prepared = rc == 0 && strcmp(cmd_text(status, "state"), "prepared") == 0;
    /* The plan was ready before the cancel arrived: nobody may go on to execute it. */
    if (prepared && interrupts != answered) {
        ask_to_cancel(&view);
        rc = err_set(err, ERR_CANCELLED, "cancelled: nothing was touched");
    }
    if (rc < 0 || !prepared)
        catch_interrupts(SIG_DFL);
    if (rc < 0)
        json_decref(status);
    else
        *ret = status;
    return rc;
}

int cmd_follow_job(struct cmd *cmd, struct client *client, const char *id, json_t **ret,
                   struct err *err)
{
    catch_interrupts(on_interrupt);
    return follow_job(cmd, client, id, interrupts, ret, err);
}

int cmd_run_job(struct cmd *cmd, struct client *client, const char *path, const json_t *body,
                json_t **ret, struct err *err)
{
    free_json json_t *answer = NULL;
    const char *id = NULL;
    sig_atomic_t answered = interrupts;
    asking = 1;
    catch_interrupts(on_interrupt);
    int rc = client_call(client, "POST", path, body, &answer, err);
    if (rc == 0)
        rc = json_get_string(answer, "id", ERR_INTERNAL, &id, err);
    asking = 0;
    if (rc == 0)
        return follow_job(cmd, client, id, answered, ret, err);
    catch_interrupts(SIG_DFL);
    return rc;
}

int cmd_run_one_job(struct cmd *cmd, const char *path, const json_t *body, json_t **ret,
                    struct err *err)
{
    struct client *client;
    int rc = cmd_open(cmd, &client, err);
    if (rc < 0)
        return rc;
    rc = cmd_run_job(cmd, client, path, body, ret, err);
    client_close(client);
    return rc;
}

/* --- the question ------------------------------------------------------------------------------*/
/* Signals come only while nothing is read yet: none is missed between a look and the wait. */
static bool read_words(const char *words)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    char line[32] = "";
    sigset_t all, old;
    (void)sigfillset(&all);
    (void)sigprocmask(SIG_BLOCK, &all, &old);
    while (interrupts == 0 && ppoll(&input, 1, NULL, &old) < 0 && errno == EINTR)
        ;
    size_t len = strlen(words);
    bool yes = interrupts == 0 && fgets(line, sizeof(line), stdin) &&
               strncmp(line, words, len) == 0 && strcmp(line + len, "\n") == 0;
    (void)sigprocmask(SIG_SETMASK, &old, NULL);
    if (!strchr(line, '\n'))
        (void)fputc('\n', stderr);
    return yes && interrupts == 0;
}

bool cmd_asks(const struct cmd *cmd)
{
    return !cmd->yes && isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
}

bool cmd_confirm(const struct cmd *cmd, const char *question)
{
    return cmd_confirm_words(cmd, question, "yes");
}

bool cmd_confirm_words(const struct cmd *cmd, const char *question, const char *words)
{
    const struct sigaction hangup = {.sa_handler = on_interrupt};
    struct sigaction before;
    bool yes = interrupts == 0;
    if (yes && cmd_asks(cmd)) {
        catch_interrupts(on_interrupt);
        (void)sigaction(SIGHUP, &hangup, &before);
        (void)fprintf(stderr, "%s Type %s: ", question, words);
        yes = read_words(words);
        (void)sigaction(SIGHUP, &before, NULL); /* a job that runs does not mind a lost terminal */
    }
    catch_interrupts(SIG_DFL);
    return yes;
}
