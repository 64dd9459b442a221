/* The routes of the API: see api.h. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "agent/api.h"
#include "agent/api_check.h"
#include "agent/api_cluster.h"
#include "agent/api_node.h"
#include "agent/api_patroni.h"
#include "agent/api_pin.h"
#include "agent/api_request.h"
#include "agent/catalog.h"
#include "agent/job_rules.h"
#include "agent/repository.h"
#include "agent/wal_ranges.h"

enum { PATH_PARTS_MAX = 3, KEY_LEN_MAX = 128 };

struct route {
    const char *method;
    const char *pattern; /* '*' stands for one component */
    int (*handle)(struct api *api, struct api_call *call, const char *arg, struct err *err);
    bool locks; /* holds api->mutex; some do so by themselves, where they do not wait */
};

/* --- answers -----------------------------------------------------------------------------------*/
static unsigned status_of(enum err_code code)
{
    switch (code) {
    case ERR_USAGE:
        return 400;
    case ERR_AUTH:
        return 403;
    case ERR_MISSING:
        return 404;
    case ERR_BUSY:
    case ERR_CANCELLED:
    case ERR_REFUSED:
    case ERR_PARTIAL:
        return 409;
    case ERR_STORE:
    case ERR_POSTGRES:
        return 502;
    case ERR_OK:
    case ERR_CONFIG:
    case ERR_DEVICE:
    case ERR_CORRUPT:
    case ERR_INTERNAL:
    case ERR_CODE_COUNT:
        break;
    }
    return 500;
}

static const char *title_of(enum err_code code)
{
    static const char *const titles[ERR_CODE_COUNT] = {
        [ERR_USAGE] = "The request is wrong",
        [ERR_CONFIG] = "The configuration is wrong",
        [ERR_DEVICE] = "A device or local file failed",
        [ERR_STORE] = "The repository failed",
        [ERR_AUTH] = "Not allowed",
        [ERR_CORRUPT] = "Stored bytes are damaged",
        [ERR_MISSING] = "Not found",
        [ERR_POSTGRES] = "PostgreSQL failed",
        [ERR_BUSY] = "Something else is running",
        [ERR_CANCELLED] = "Cancelled",
        [ERR_REFUSED] = "A safety check said no",
        [ERR_PARTIAL] = "A restore is not finished",
        [ERR_INTERNAL] = "Internal error",
    };
    return titles[code] ? titles[code] : titles[ERR_INTERNAL];
}

void api_problem_status(struct api_call *call, unsigned status, const struct err *err)
{
    json_decref(call->answer);
    call->status = status;
    call->answer =
        json_pack("{s:s, s:i, s:s, s:s, s:s}", "type", "about:blank", "status", (int)status, "code",
                  err_code_name(err->code), "title", title_of(err->code), "detail", err->text);
    if (!call->answer) /* a text that is not UTF-8 */
        call->answer =
            json_pack("{s:s, s:i, s:s, s:s}", "type", "about:blank", "status", (int)status, "code",
                      err_code_name(err->code), "title", title_of(err->code));
    if (err->hint[0])
        (void)json_object_set_new(call->answer, "hint", json_string(err->hint));
}

void api_problem(struct api_call *call, const struct err *err)
{
    api_problem_status(call, status_of(err->code), err);
}

static int answer_job(struct api_call *call, unsigned status, const char *id)
{
    call->status = status;
    call->answer = json_pack("{s:s}", "id", id);
    (void)snprintf(call->job, sizeof(call->job), "%s", id);
    return 0;
}

/* --- jobs --------------------------------------------------------------------------------------*/
/* The job that an earlier request with this key made: *ret_id stays empty when there is none. */
static int find_key(struct api *api, const struct api_call *call, const json_t *request,
                    char ret_id[ID_TEXT_LEN], struct err *err)
{
    free_json json_t *jobs = NULL;
    int rc = job_list(api->conf, &jobs, err);
    size_t i;
    json_t *status;
    ret_id[0] = '\0';
    json_array_foreach(jobs, i, status)
    {
        const char *id = json_string_value(json_object_get(status, "id"));
        char dir[JOB_DIR_MAX], path[JOB_DIR_MAX + 32];
        free_json json_t *key = NULL;
        struct err ignored;
        job_dir(api->conf, id, dir);
        (void)snprintf(path, sizeof(path), "%s/key.json", dir);
        if (json_load_path(path, &key, &ignored) < 0)
            continue;
        const char *text = json_string_value(json_object_get(key, "key"));
        if (!text || strcmp(text, call->idempotency_key) != 0)
            continue;
        if (!json_equal(json_object_get(key, "request"), request))
            return err_set(err, ERR_USAGE, "this Idempotency-Key was used for another request");
        (void)snprintf(ret_id, ID_TEXT_LEN, "%s", id);
        return 0;
    }
    return rc;
}

static int save_key(struct api *api, const struct api_call *call, const json_t *request,
                    const char *id, struct err *err)
{
    char dir[JOB_DIR_MAX], path[JOB_DIR_MAX + 32];
    job_dir(api->conf, id, dir);
    (void)snprintf(path, sizeof(path), "%s/key.json", dir);
    free_json json_t *key =
        json_pack("{s:s, s:O}", "key", call->idempotency_key, "request", request);
    if (!key)
        return err_set(err, ERR_USAGE, "the Idempotency-Key is not UTF-8");
    return json_save(path, key, true, err);
}

static int check_key(const struct api_call *call, struct err *err)
{
    const char *key = call->idempotency_key;
    size_t len = key ? strlen(key) : 1;
    if (len < 1 || len > KEY_LEN_MAX)
        return err_set(err, ERR_USAGE, "an Idempotency-Key has 1 to %d bytes", KEY_LEN_MAX);
    return 0;
}

/* goal: of a restore, NULL for other jobs. Whoever does not want to read the plan first asks for
 * all in one run: one process, one plan. */
static int launch(struct api *api, struct api_call *call, const json_t *request, const char *goal,
                  struct err *err)
{
    char id[ID_TEXT_LEN], dir[JOB_DIR_MAX];
    int pid;
    if (json_is_true(json_object_get(request, "execute")))
        goal = "all";
    int rc = job_create(api->conf, request, id, err);
    if (rc < 0)
        return rc;
    job_dir(api->conf, id, dir);
    if (call->idempotency_key)
        rc = save_key(api, call, request, id, err);
    free_json json_t *options = json_pack("{s:i}", "caller", call->caller);
    if (rc == 0 && goal)
        rc = job_set_goal(api->conf, id, goal, options, err);
    if (rc == 0)
        rc = job_start(dir, &pid, err);
    if (rc < 0) {
        job_discard(api->conf, id);
        return rc;
    }
    return answer_job(call, 202, id);
}

/* *ret_done: an earlier request with this key made the job already, or it used the key for another
 * request; call is answered. */
static int answer_key(struct api *api, struct api_call *call, const json_t *request, bool *ret_done,
                      struct err *err)
{
    char id[ID_TEXT_LEN] = "";
    *ret_done = false;
    int rc = call->idempotency_key ? find_key(api, call, request, id, err) : 0;
    if (rc == -ERR_USAGE) {
        api_problem_status(call, 422, err);
        *ret_done = true;
        return 0;
    }
    if (rc == 0 && id[0]) {
        *ret_done = true;
        return answer_job(call, 202, id);
    }
    return rc;
}

static int post_job(struct api *api, struct api_call *call, const char *type, const char *goal,
                    int (*check)(struct api *api, const json_t *request, struct err *err),
                    struct err *err)
{
    free_json json_t *request = NULL;
    bool done = false;
    int rc = api_request_parse(type, call->body, call->body_len, &request, err);
    if (rc == 0)
        rc = check_key(call, err);
    if (rc == 0)
        rc = answer_key(api, call, request, &done, err);
    if (rc == 0 && !done && check)
        rc = check(api, request, err);
    if (rc < 0 || done)
        return rc;
    (void)pthread_mutex_lock(&api->mutex);
    rc = answer_key(api, call, request, &done, err); /* the same request may have come meanwhile */
    if (rc == 0 && !done)
        rc = launch(api, call, request, goal, err);
    (void)pthread_mutex_unlock(&api->mutex);
    return rc;
}

/* A tag that is taken is refused before the work, not after; the commit checks again. */
static int check_tag_free(struct api *api, const json_t *request, struct err *err)
{
    const char *tag = json_string_value(json_object_get(request, "tag"));
    struct store *store;
    struct repo repo;
    int rc = repository_open(api->conf, NULL, &store, &repo, err);
    if (rc < 0)
        return rc;
    rc = catalog_check_tag(store, &repo, api->conf->cluster, api->conf->node, tag, err);
    store_close(store);
    return rc;
}

static int post_snapshot(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    (void)arg;
    return post_job(api, call, "snapshot", NULL, check_tag_free, err);
}

static int post_restore(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    (void)arg;
    return post_job(api, call, "restore", "prepare", api_check_handover, err);
}

static int post_cluster_snapshot(struct api *api, struct api_call *call, const char *arg,
                                 struct err *err)
{
    (void)arg;
    return post_job(api, call, "cluster_snapshot", NULL, api_check_coordinator, err);
}

static int post_cluster_restore(struct api *api, struct api_call *call, const char *arg,
                                struct err *err)
{
    (void)arg;
    return post_job(api, call, "cluster_restore", "prepare", api_check_coordinator, err);
}

static int post_verification(struct api *api, struct api_call *call, const char *arg,
                             struct err *err)
{
    (void)arg;
    return post_job(api, call, "verification", NULL, NULL, err);
}

static int post_expiration(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    (void)arg;
    return post_job(api, call, "expiration", NULL, NULL, err);
}

/* Whoever is let in by the TCP port may restore what is configured here, not write any file. */
static int post_export(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    (void)arg;
    if (!call->asker.remote)
        return post_job(api, call, "export", NULL, NULL, err);
    (void)err_set(err, ERR_REFUSED, "an export writes a file of its host");
    return err_hint(err, "run `tidemark export` there, or anywhere with --repository");
}

static int continue_restore(struct api *api, struct api_call *call, const char *id,
                            const char *verb, struct err *err)
{
    free_json json_t *request = NULL;
    int pid;
    int rc = api_request_parse(verb, call->body, call->body_len, &request, err);
    if (rc == 0 && json_is_true(json_object_get(request, "verify")))
        verb = "execute and verify";
    if (rc == 0)
        rc = job_continue(api->conf, id, verb, request, &pid, err);
    return rc < 0 ? rc : answer_job(call, 202, id);
}

static int post_execute(struct api *api, struct api_call *call, const char *id, struct err *err)
{
    return continue_restore(api, call, id, "execute", err);
}

static int post_verify(struct api *api, struct api_call *call, const char *id, struct err *err)
{
    return continue_restore(api, call, id, "verify", err);
}

static int post_resume(struct api *api, struct api_call *call, const char *id, struct err *err)
{
    if (api_is_elsewhere(api, id))
        return api_take_over(api, call, id, "all", err);
    (void)pthread_mutex_lock(&api->mutex);
    int rc = continue_restore(api, call, id, "resume", err);
    (void)pthread_mutex_unlock(&api->mutex);
    return rc;
}

static int post_resume_verification(struct api *api, struct api_call *call, const char *id,
                                    struct err *err)
{
    int rc = job_resume_verification(api->conf, id, err);
    return rc < 0 ? rc : answer_job(call, 202, id);
}

static int get_jobs(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    free_json json_t *jobs = NULL;
    (void)arg;
    int rc = job_list(api->conf, &jobs, err);
    if (rc < 0)
        return rc;
    call->status = 200;
    call->answer = json_pack("{s:O}", "jobs", jobs);
    return 0;
}

static int get_job(struct api *api, struct api_call *call, const char *id, struct err *err)
{
    int rc = job_status(api->conf, id, &call->answer, err);
    if (rc < 0)
        return rc;
    call->status = 200;
    api_note_heard(api, id, call->asker.epoch);
    if (call->follow)
        (void)snprintf(call->follow_id, sizeof(call->follow_id), "%s", id);
    return 0;
}

static int delete_job(struct api *api, struct api_call *call, const char *id, struct err *err)
{
    bool ended;
    if (api_is_elsewhere(api, id))
        return api_take_over(api, call, id, "abort", err);
    (void)pthread_mutex_lock(&api->mutex);
    int rc = job_request_cancel(api->conf, id, &call->asker, &ended, err);
    (void)pthread_mutex_unlock(&api->mutex);
    return rc < 0 ? rc : answer_job(call, ended ? 200 : 202, id);
}

/* --- snapshots ---------------------------------------------------------------------------------*/
static int add_snapshot(void *ctx, const struct record *record, struct err *err)
{
    (void)err;
    (void)json_array_append_new(ctx, record_to_public_json(record));
    return 0;
}

static int get_snapshots(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    struct store *store;
    struct repo repo;
    size_t damaged = 0;
    (void)arg;
    int rc = repository_open(api->conf, NULL, &store, &repo, err);
    if (rc < 0)
        return rc;
    json_t *list = json_array();
    /* With the default cluster name a foreign repository is still readable: it lists all. */
    rc = catalog_list(store, &repo, api->conf->file[0] ? api->conf->cluster : "", add_snapshot,
                      list, &damaged, err);
    if (rc == 0)
        rc = api_show_pins(store, list, err);
    store_close(store);
    if (rc < 0) {
        json_decref(list);
        return rc;
    }
    call->status = 200;
    call->answer = json_pack("{s:o, s:I}", "snapshots", list, "damaged", (json_int_t)damaged);
    return 0;
}

static int get_wal(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    struct store *store;
    struct repo repo;
    json_t *ranges = NULL;
    (void)arg;
    int rc = repository_open(api->conf, NULL, &store, &repo, err);
    if (rc < 0)
        return rc;
    rc = wal_ranges(store, &repo, api->conf->file[0] ? api->conf->cluster : "", &ranges, err);
    store_close(store);
    if (rc < 0)
        return rc;
    call->status = 200;
    call->answer = json_pack("{s:o}", "wal", ranges);
    return 0;
}

/* This node's own, else another's: a cluster's snapshot is every node's. A coordinator has none. */
static int find_snapshot(const struct conf *conf, const char *what, struct api_snapshot *ret,
                         struct err *err)
{
    const char *cluster = conf->file[0] ? conf->cluster : "";
    bool has_own = conf->file[0] && !conf->coordinator_members[0];
    int rc = -ERR_MISSING;
    if (has_own)
        rc =
            catalog_find(ret->store, &ret->repo, cluster, conf->node, what, ret->record, NULL, err);
    return rc == -ERR_MISSING
               ? catalog_find(ret->store, &ret->repo, cluster, NULL, what, ret->record, NULL, err)
               : rc;
}

int api_snapshot_open(const struct conf *conf, const char *what, struct api_snapshot *ret,
                      struct err *err)
{
    int rc = repository_open(conf, NULL, &ret->store, &ret->repo, err);
    if (rc < 0)
        return rc;
    ret->record = calloc(1, sizeof(*ret->record));
    if (!ret->record)
        abort();
    rc = find_snapshot(conf, what, ret, err);
    if (rc < 0) {
        free(ret->record);
        store_close(ret->store);
    }
    return rc;
}

void api_snapshot_close(struct api_snapshot *snapshot)
{
    record_release(snapshot->record);
    free(snapshot->record);
    store_close(snapshot->store);
}

static int get_snapshot(struct api *api, struct api_call *call, const char *what, struct err *err)
{
    struct api_snapshot snapshot;
    int rc = api_snapshot_open(api->conf, what, &snapshot, err);
    if (rc < 0)
        return rc;
    free_json json_t *list = json_pack("[o]", record_to_public_json(snapshot.record));
    rc = api_show_pins(snapshot.store, list, err);
    api_snapshot_close(&snapshot);
    if (rc < 0)
        return rc;
    call->status = 200;
    call->answer = json_incref(json_array_get(list, 0));
    return 0;
}

/* --- routing -----------------------------------------------------------------------------------*/
static const struct route routes[] = {
    {"GET", "", api_get_page, false},
    {"GET", "health", api_get_health, false},
    {"GET", "node", api_get_node, false},
    {"POST", "node/claim", api_post_claim, true},
    {"GET", "version", api_get_version, false},
    {"POST", "checks", api_post_checks, false},
    {"GET", "jobs", get_jobs, false},
    {"GET", "jobs/*", get_job, false},
    {"DELETE", "jobs/*", delete_job, false},
    {"GET", "snapshots", get_snapshots, false},
    {"POST", "snapshots", post_snapshot, false},
    {"GET", "snapshots/*", get_snapshot, false},
    {"GET", "wal", get_wal, false},
    {"POST", "restores", post_restore, false},
    {"POST", "restores/*/execute", post_execute, true},
    {"POST", "restores/*/verify", post_verify, true},
    {"POST", "restores/*/resume", post_resume, false},
    {"POST", "verifications", post_verification, false},
    {"POST", "verifications/*/resume", post_resume_verification, true},
    {"POST", "expirations", post_expiration, false},
    {"POST", "snapshots/*/pin", api_post_pin, false},
    {"DELETE", "snapshots/*/pin", api_delete_pin, false},
    {"POST", "exports", post_export, false},
    {"GET", "cluster", api_get_cluster, false},
    {"POST", "cluster/snapshots", post_cluster_snapshot, false},
    {"POST", "cluster/restores", post_cluster_restore, false},
};

/* Matches path ("/jobs/x") with a pattern; '*' is copied to arg. */
static bool match(const char *path, const char *pattern, char arg[STORE_NAME_MAX + 1])
{
    if (*path++ != '/')
        return false;
    for (; *pattern; pattern++) {
        if (*pattern != '*') {
            if (*path++ != *pattern)
                return false;
            continue;
        }
        size_t len = strcspn(path, "/");
        if (len == 0 || len > STORE_NAME_MAX)
            return false;
        memcpy(arg, path, len);
        arg[len] = '\0';
        path += len;
    }
    return *path == '\0';
}

static const struct route *find_route(struct api_call *call, char arg[STORE_NAME_MAX + 1])
{
    call->allow[0] = '\0';
    for (size_t i = 0; i < ARRAY_LEN(routes); i++) {
        if (!match(call->path, routes[i].pattern, arg))
            continue;
        if (strcmp(call->method, routes[i].method) == 0)
            return &routes[i];
        size_t len = strlen(call->allow);
        (void)snprintf(call->allow + len, sizeof(call->allow) - len, "%s%s", len ? ", " : "",
                       routes[i].method);
    }
    return NULL;
}

static void no_route(struct api_call *call)
{
    struct err err;
    if (call->allow[0]) {
        (void)err_set(&err, ERR_USAGE, "%.16s is not possible on %.200s", call->method, call->path);
        (void)err_hint(&err, "allowed: %s", call->allow);
        api_problem_status(call, 405, &err);
        return;
    }
    (void)err_set(&err, ERR_MISSING, "there is no %.200s", call->path);
    api_problem_status(call, 404, &err);
}

void api_init(struct api *api, const struct conf *conf)
{
    api->conf = conf;
    api->conf_changed = api_conf_changed(conf);
    (void)pthread_mutex_init(&api->mutex, NULL);
    (void)pthread_mutex_init(&api->check_mutex, NULL);
    (void)pthread_mutex_init(&api->heard_mutex, NULL);
    api->heard = (struct api_heard){.epoch = 0};
}

void api_handle(struct api *api, struct api_call *call)
{
    char arg[STORE_NAME_MAX + 1] = "";
    struct err err;
    err_clear(&err);
    const struct route *route = find_route(call, arg);
    if (!route) {
        no_route(call);
        return;
    }
    if (route->locks)
        (void)pthread_mutex_lock(&api->mutex);
    int rc = route->handle(api, call, arg, &err);
    if (route->locks)
        (void)pthread_mutex_unlock(&api->mutex);
    if (rc < 0)
        api_problem(call, &err);
    assert(call->status >= 200);
    assert(call->answer || call->html);
}
