/* The health of a node: see health.h. README has the table of its states. */
#include "agent/health.h"

#include <stdio.h>

#include "agent/cluster_gate.h"
#include "agent/cluster_lock.h"
#include "agent/history.h"
#include "agent/log.h"
#include "agent/node_report.h"
#include "agent/other_primary.h"
#include "agent/restore.h"

static bool is_ok(const struct health *health)
{
    return strcmp(health->status, "ok") == 0;
}

/* --- reservation, marks, fence ---------------------------------------------------------------- */

/* A file that cannot be read is not a free node, and its epoch is not known. */
static void check_reservation(const struct conf *conf, struct health *health)
{
    struct cluster_lock lock;
    struct err err;
    if (cluster_lock_read(conf, &lock, &err) == 0)
        return;
    health->status = "failed";
    health->why = err;
}

/* The mark on a device: 0, ERR_MISSING when there is none, ERR_CORRUPT when it is half written. */
static int read_mark(const char *path, char ret_id[ID_TEXT_LEN], struct err *err)
{
    struct device device;
    uint8_t id[ID_LEN];
    uint64_t size;
    int rc = device_open_read(path, &device, err);
    if (rc < 0)
        return rc;
    rc = device_read_mark(&device, id, &size, err);
    device_close(&device);
    if (rc == 0)
        id_to_text(id, ret_id);
    return rc;
}

static void found_mark(const struct conf *conf, const struct conf_volume *volume, const char *id,
                       struct health *health)
{
    free_json json_t *status = NULL;
    struct err ignored;
    bool known = id[0] && job_status(conf, id, &status, &ignored) == 0;
    health->status = "partial";
    (void)err_set(&health->why, ERR_PARTIAL,
                  "volume '%s': '%s' has the mark of %s%s, %s: it holds no data that can be used",
                  volume->name, volume->device, id[0] ? "restore " : "a restore", id,
                  known ? "which has ended" : "which is not known here");
    (void)err_hint(&health->why,
                   "restore a snapshot onto it with `tidemark restore TAG`, or attach "
                   "the right device");
}

/* No restore here says that it is unfinished; what can be mounted has no mark. */
static void check_marks(const struct conf *conf, struct health *health)
{
    struct mount_entry entry;
    struct err err;
    for (size_t i = 0; i < conf->volume_count && is_ok(health); i++) {
        const struct conf_volume *volume = &conf->volumes[i];
        char id[ID_TEXT_LEN] = "";
        if (!volume->device[0] || restore_find_mount(volume->mount, &entry))
            continue;
        int rc = read_mark(volume->device, id, &err);
        if (rc == 0 || rc == -ERR_CORRUPT)
            found_mark(conf, volume, id, health);
    }
}

/* The restore that stopped while it pulled: its marks are there, or somebody was. From `written` on
 * they give way to the filesystems. */
static void check_own_marks(const struct conf *conf, struct health *health)
{
    free_json json_t *status = NULL;
    struct err err;
    size_t i;
    json_t *volume;
    if (strcmp(health->step, "pulling") != 0 || health->given_up ||
        strcmp(health->status, "partial") != 0 || job_status(conf, health->job, &status, &err) < 0)
        return;
    json_array_foreach(json_object_get(json_object_get(status, "plan"), "volumes"), i, volume)
    {
        char id[ID_TEXT_LEN] = "";
        const char *path = json_str(volume, "device");
        int rc = read_mark(path, id, &err);
        if (rc == -ERR_CORRUPT || strcmp(id, health->job) == 0)
            continue;
        (void)err_set(&health->why, ERR_PARTIAL,
                      "restore %s stopped at step pulling, and '%s' of volume '%s' %s%s",
                      health->job, path, json_str(volume, "name"),
                      rc == 0              ? "has the mark of restore "
                      : rc == -ERR_MISSING ? "has lost its mark: it is another device, or somebody "
                                             "wrote to it"
                                           : "cannot be read",
                      id);
        (void)err_hint(&health->why,
                       "attach the right device and resume it, or give it up with `tidemark cancel "
                       "%s` and restore anew",
                       health->job);
        return;
    }
}

/* The fence of a restore whose journal is gone. */
static void check_fence(const struct conf *conf, struct health *health)
{
    char path[CONF_PATH_MAX + 32];
    (void)snprintf(path, sizeof(path), "%s/fence", conf->state_dir);
    if (access(path, F_OK) < 0)
        return;
    health->status = "partial";
    (void)err_set(&health->why, ERR_PARTIAL,
                  "'%s' keeps the server stopped, but no restore here is unfinished", path);
    (void)err_hint(&health->why, "restore a snapshot with `tidemark restore TAG`; or remove the "
                                 "file if the data directory is known to be whole");
}

/* The cluster was restored without this node. */
static void check_gate(const struct conf *conf, struct health *health)
{
    struct err err;
    if (cluster_gate_check(conf, &err) == 0)
        return;
    health->status = "diverged";
    health->since_s = 0;
    health->why = err;
}

/* Nobody said of which server this host is a node. */
static void check_known(const struct conf *conf, struct health *health)
{
    if (conf->file[0] || conf->data_directory[0] || conf->volume_count > 0)
        return;
    health->status = "failed";
    health->since_s = 0;
    (void)err_set(&health->why, ERR_CONFIG,
                  "there is no configuration file: nothing is known of a server here");
    (void)err_hint(&health->why, "`tidemark-agent --print-sample` prints one for "
                                 "/etc/tidemark/tidemark.conf");
}

/* --- the server ------------------------------------------------------------------------------- */

static void blame_server(struct health *health, const char *status, enum err_code code,
                         const char *cause, const json_t *server)
{
    const char *text = json_str(server, "error");
    health->status = status;
    health->since_s = 0;
    (void)err_set(&health->why, code, "%s%s%s", cause, text[0] ? ": " : "", text);
}

/* What a cluster restore made of this node: a server that has not been there is another cluster's
 * past, as an old image of the volume is. */
static void check_history(const struct conf *conf, const json_t *server, struct health *health)
{
    free_json json_t *last = NULL;
    struct err ignored;
    if (!health->last[0] || job_status(conf, health->last, &last, &ignored) < 0 ||
        !job_is_cluster_part(last) ||
        !json_equal(json_object_get(last, "system_id"), json_object_get(server, "system_id")))
        return;
    const json_t *fork = json_object_get(last, "fork");
    if (!history_misses_fork(server, fork))
        return;
    blame_server(health, "diverged", ERR_REFUSED, "", NULL);
    (void)err_set(
        &health->why, ERR_REFUSED,
        "the server is on timeline %lld and has never been on timeline %lld, which cluster "
        "restore %s began at %s",
        (long long)json_integer_value(json_object_get(server, "timeline")),
        (long long)json_integer_value(json_object_get(fork, "timeline")),
        json_str(json_object_get(last, "cluster"), "job"), json_str(fork, "lsn"));
    (void)err_hint(&health->why,
                   "stop it, and make it a standby of the cluster's primary (pg_basebackup, "
                   "pg_rewind) or restore the cluster");
}

/* A server whose restore had --action=shutdown shuts down at each start: recovery.signal stays
 * until it is promoted (xlogrecovery.c, PerformWalRecovery()). */
static bool shuts_down_again(const struct conf *conf, const struct health *health)
{
    char path[CONF_PATH_MAX + 32];
    free_json json_t *last = NULL;
    struct err ignored;
    (void)snprintf(path, sizeof(path), "%s/recovery.signal", conf->data_directory);
    return health->last[0] && job_status(conf, health->last, &last, &ignored) == 0 &&
           json_is(json_object_get(last, "plan"), "action", "shutdown") && access(path, F_OK) == 0;
}

/* An old primary, and one that was promoted runs; a standby is to be started beside it. */
static bool has_successor(const struct conf *conf, const json_t *server,
                          char ret[OTHER_PRIMARY_TEXT])
{
    char path[CONF_PATH_MAX + 32];
    (void)snprintf(path, sizeof(path), "%s/standby.signal", conf->data_directory);
    return access(path, F_OK) < 0 &&
           other_primary_find(conf, json_str(server, "system_id"), false, ret);
}

static void hint_stopped(const struct conf *conf, const json_t *server, struct health *health)
{
    char where[OTHER_PRIMARY_TEXT];
    if (has_successor(conf, server, where))
        (void)err_hint(
            &health->why,
            "do not start it as it is: another primary of this cluster runs, at %s; make "
            "this one a standby of it (pg_rewind, pg_basebackup)",
            where);
    else if (shuts_down_again(conf, health))
        (void)err_hint(&health->why,
                       "restore %s was to shut it down at its target, and so does each start: in "
                       "postgresql.auto.conf make recovery_target_action 'promote' (or 'pause', to "
                       "look first), then start it",
                       health->last);
    else
        (void)err_hint(&health->why, "start it; no restore stands in the way");
}

static void check_server(const struct conf *conf, const json_t *server, struct health *health)
{
    if (json_is(server, "server", "starting")) {
        blame_server(health, "recovering", ERR_BUSY, "PostgreSQL does not accept connections yet",
                     NULL);
    } else if (json_is(server, "server", "stopped")) {
        blame_server(health, "failed", ERR_POSTGRES, "PostgreSQL does not run", server);
        hint_stopped(conf, server, health);
    } else if (json_str(server, "error")[0]) {
        blame_server(health, "failed", ERR_POSTGRES, "PostgreSQL runs, but cannot be asked",
                     server);
        (void)err_hint(&health->why, "`tidemark check` tries the connection");
    } else {
        check_history(conf, server, health);
    }
}

/* --- all of it -------------------------------------------------------------------------------- */

static json_t *text_or_null(const char *text)
{
    return text[0] ? json_string(text) : json_null();
}

json_t *health_json(const struct health *health)
{
    json_t *json =
        json_pack("{s:s, s:o, s:o, s:o, s:b, s:o}", "status", health->status, "since_s",
                  health->since_s ? json_integer(health->since_s) : json_null(), "job",
                  text_or_null(health->job), "step", text_or_null(health->step), "given_up",
                  health->given_up, "cluster_job", text_or_null(health->cluster_job));
    (void)json_object_set_new(json, "code", json_string(err_code_name(health->why.code)));
    (void)json_object_set_new(json, "cause", text_or_null(health->why.text));
    (void)json_object_set_new(json, "hint", text_or_null(health->why.hint));
    return json;
}

json_t *health_report(const struct conf *conf, const json_t *server)
{
    struct health health;
    free_json json_t *asked = NULL;
    job_health(conf, &health);
    check_own_marks(conf, &health);
    if (is_ok(&health))
        check_reservation(conf, &health);
    if (is_ok(&health))
        check_marks(conf, &health);
    if (is_ok(&health))
        check_fence(conf, &health);
    if (is_ok(&health))
        check_gate(conf, &health);
    if (is_ok(&health))
        check_known(conf, &health);
    /* A restore that works with the volumes is left in peace. */
    bool quiet = strcmp(health.status, "restoring") == 0 || strcmp(health.status, "partial") == 0;
    if (!server && !quiet) {
        asked = node_server(conf);
        server = asked;
    }
    if (is_ok(&health) && conf->data_directory[0])
        check_server(conf, server, &health);
    json_t *json = health_json(&health);
    static const char *const of_server[] = {"role", "timeline", "archiving"};
    for (size_t i = 0; i < ARRAY_LEN(of_server); i++) {
        json_t *value = json_object_get(server, of_server[i]);
        (void)json_object_set(json, of_server[i], value ? value : json_null());
    }
    return json;
}

void health_log(const json_t *health)
{
    if (json_is(health, "status", "ok"))
        log_info("self-check: status=ok");
    else
        log_warn("self-check: status=%s job=%s cause=\"%s\" hint=\"%s\"",
                 json_str(health, "status"), json_str(health, "job"), json_str(health, "cause"),
                 json_str(health, "hint"));
}
