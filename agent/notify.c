/* Sending what is told of a job's end, see notify.h. */
#include "agent/notify.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "agent/clock.h"
#include "agent/job.h"
#include "agent/log.h"
#include "agent/process.h"
#include "io/file.h"
#include "io/http.h"

enum { PAUSE_MAX_MS = 30000 };

/* --- the command ------------------------------------------------------------------------------ */

/* In memory: a command that does not read it, or only later, is not waited for. */
static int body_fd(const char *text, int *ret_fd, struct err *err)
{
    close_fd int fd = memfd_create("notification", MFD_CLOEXEC);
    if (fd < 0 || write_all(fd, text, strlen(text)) < 0 || lseek(fd, 0, SEEK_SET) < 0)
        return err_sys(err, ERR_INTERNAL, "keep the notification in memory");
    *ret_fd = take_fd(&fd);
    return 0;
}

static int run_command(const struct conf *conf, const json_t *body, const char *text,
                       struct err *err)
{
    static const char *const facts[][2] = {
        {"EVENT", "event"}, {"STATE", "state"}, {"JOB", "job"},          {"CLUSTER", "cluster"},
        {"NODE", "node"},   {"TAG", "tag"},     {"SNAPSHOT", "snapshot"}};
    char lines[ARRAY_LEN(facts)][512];
    const char *env[ARRAY_LEN(facts) + 1] = {NULL};
    for (size_t i = 0; i < ARRAY_LEN(facts); i++) {
        const char *value = json_string_value(json_object_get(body, facts[i][1]));
        (void)snprintf(lines[i], sizeof(lines[i]), "TIDEMARK_%s=%s", facts[i][0],
                       value ? value : "");
        env[i] = lines[i];
    }
    const char *argv[] = {"/bin/sh", "-c", conf->notify_command, NULL};
    struct process_options options = PROCESS_OPTIONS_INIT;
    close_fd int fd = -1;
    int rc = body_fd(text, &fd, err);
    if (rc < 0)
        return rc;
    options.argv = argv;
    options.env = env;
    options.stdin_fd = fd;
    options.timeout_s = conf->notify_timeout_s;
    options.end_group = true;
    char errors[256] = "";
    int status = 0;
    rc = process_run(&options, &status, NULL, errors, sizeof(errors), err);
    if (rc == 0 && status != 0)
        rc = err_set(err, ERR_DEVICE, "exit status %d%s%s", status, errors[0] ? ": " : "", errors);
    return rc;
}

/* --- the webhook ------------------------------------------------------------------------------ */

/* *ret_again: another try may do better. */
static int post_once(const struct http_post *post, bool *ret_again, struct err *err)
{
    unsigned status = 0;
    int rc = http_post(post, &status, err);
    *ret_again = rc < 0 ? rc == -ERR_DEVICE : status >= 500 || status == 408 || status == 429;
    if (rc < 0)
        return rc;
    return status >= 200 && status < 300
               ? 0
               : err_set(err, ERR_DEVICE, "the server answered with status %u", status);
}

static int run_webhook(const struct conf *conf, const char *text, struct err *err)
{
    const struct http_post post = {.url = conf->notify_webhook,
                                   .body = text,
                                   .body_len = strlen(text),
                                   .timeout_ms = conf->notify_timeout_s * 1000};
    uint64_t wait_ms = 1000;
    for (unsigned tries = 1;; tries++) {
        bool again = false;
        int rc = post_once(&post, &again, err);
        if (rc == 0)
            return 0;
        if (!again || tries > conf->notify_retries)
            return tries == 1 ? rc : err_prefix(err, "%u tries", tries);
        pause_ms(wait_ms);
        wait_ms = min_u64(wait_ms * 2, PAUSE_MAX_MS);
    }
}

/* --- both ------------------------------------------------------------------------------------- */

static void note(json_t *notified, const char *job, const char *hook, int rc, const struct err *err)
{
    (void)json_object_set_new(notified, hook, json_string(rc == 0 ? "ok" : err->text));
    if (rc == 0)
        log_info("told of the end: job=%s hook=%s", job, hook);
    else
        log_warn("not told of the end, the job stays what it is: job=%s hook=%s err=\"%s\"", job,
                 hook, err->text);
}

static void save(const char *dir, const json_t *journal, json_t *notified)
{
    char path[JOB_DIR_MAX + 32];
    struct err err;
    (void)snprintf(path, sizeof(path), "%s/notified.json", dir);
    free_json json_t *file =
        json_pack("{s:O, s:O}", "ended_s", job_told_time(journal), "notified", notified);
    if (!file || json_save(path, file, true, &err) < 0)
        log_warn("what came of notifications is not kept: job=%s", strrchr(dir, '/') + 1);
}

void notify_send(const struct conf *conf, const char *dir, const json_t *request,
                 const json_t *journal)
{
    struct err err;
    free_json json_t *jobs = NULL;
    if (!notify_wanted(conf, journal))
        return;
    const char *job = strrchr(dir, '/') + 1;
    if (job_list(conf, &jobs, &err) < 0)
        log_warn("the last good verification is not known: err=\"%s\"", err.text);
    free_json json_t *body = notify_body(conf, request, journal, jobs);
    free_json json_t *notified = json_object();
    free_mem char *text = json_text(body);
    if (conf->notify_command[0])
        note(notified, job, "command", run_command(conf, body, text, &err), &err);
    if (conf->notify_webhook[0])
        note(notified, job, "webhook", run_webhook(conf, text, &err), &err);
    save(dir, journal, notified);
}

/* --- the process ------------------------------------------------------------------------------ */

int notify_main(const char *dir, int ready_fd)
{
    static struct conf conf; /* large; one a process */
    free_json json_t *request = NULL, *journal = NULL;
    int status = job_open_ended(dir, ready_fd, &conf, &request, &journal);
    if (status == 0)
        notify_send(&conf, dir, request, journal);
    return status;
}
