/* See cluster_gate.h. Timelines decide which restore is the last: a promotion takes a number above
 * all that the archive has, and clocks may be wrong. */
#include "agent/cluster_gate.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "agent/cluster_archive.h"
#include "agent/log.h"
#include "agent/pg.h"
#include "agent/pg_names.h"
#include "agent/wal.h"

enum { LOOK_S = 300, LOOK_AGAIN_S = 20, HISTORY_LEN_MAX = 1 << 20 };

/* --- what is known ---------------------------------------------------------------------------- */

static void path_of(const struct conf *conf, char *ret, size_t size)
{
    (void)snprintf(ret, size, "%s/passed.json", conf->state_dir);
}

static uint64_t number_of(const json_t *json, const char *key)
{
    return strtoull(json_str(json, key), NULL, 10);
}

int cluster_gate_parse(const json_t *json, struct cluster_gate *ret, struct err *err)
{
    struct cluster_gate gate = {.closed = false};
    const char *job = "", *tag = "", *primary = "", *system_id = "";
    uint8_t id[ID_LEN];
    int rc = json_get_string(json, "job", ERR_CORRUPT, &job, err);
    if (rc == 0)
        rc = json_get_string(json, "tag", ERR_CORRUPT, &tag, err);
    if (rc == 0)
        rc = json_get_string(json, "primary", ERR_CORRUPT, &primary, err);
    if (rc == 0)
        rc = json_get_string(json, "system_id", ERR_CORRUPT, &system_id, err);
    if (rc == 0)
        rc = json_get_u64(json, "epoch", ERR_CORRUPT, &gate.epoch, err);
    if (rc == 0)
        rc = restore_fork_parse(json_object_get(json, "fork"), ERR_CORRUPT, &gate.fork, err);
    if (rc < 0)
        return rc;
    gate.system_id = number_of(json, "system_id");
    if (!id_from_text(job, id) || !repo_tag_valid(tag) ||
        !repo_name_valid(primary, CONF_NAME_MAX) || gate.system_id == 0)
        return err_set(err, ERR_CORRUPT, "passed.json names no cluster restore");
    (void)snprintf(gate.job, sizeof(gate.job), "%s", job);
    (void)snprintf(gate.tag, sizeof(gate.tag), "%s", tag);
    (void)snprintf(gate.primary, sizeof(gate.primary), "%s", primary);
    *ret = gate;
    return 0;
}

bool cluster_gate_follows(const struct restore_fork *fork, uint32_t timeline, const char *text,
                          size_t len)
{
    struct wal_history *history = calloc(1, sizeof(*history)); /* large */
    struct err ignored;
    bool parted = false, passed = timeline == fork->timeline;
    if (!history)
        abort();
    if (timeline >= fork->timeline && len > 0 &&
        wal_history_parse(timeline, text, len, history, &ignored) == 0) {
        for (size_t i = 0; i < history->count; i++) {
            passed |= history->entries[i].parent == fork->timeline;
            parted |= history->entries[i].parent == fork->parent &&
                      history->entries[i].switch_lsn != fork->lsn;
        }
        parted |= !passed;
    }
    free(history);
    return timeline >= fork->timeline && !parted;
}

/* The server's own file: the archive's may be of another branch with the same number. */
static bool follows(const struct conf *conf, const struct cluster_gate *gate, uint32_t timeline)
{
    char path[CONF_PATH_MAX + 64];
    free_mem char *text = NULL;
    size_t len = 0;
    struct err ignored;
    (void)snprintf(path, sizeof(path), "%s/pg_wal/%08" PRIX32 ".history", conf->data_directory,
                   timeline);
    if (restore_read_file(path, HISTORY_LEN_MAX, &text, &len, &ignored) < 0)
        len = 0;
    return cluster_gate_follows(&gate->fork, timeline, text ? text : "", len);
}

void cluster_gate_read(const struct conf *conf, struct cluster_gate *ret)
{
    char path[CONF_PATH_MAX + 64];
    free_json json_t *json = NULL;
    struct pg_control control;
    struct err err;
    memset(ret, 0, sizeof(*ret));
    path_of(conf, path, sizeof(path));
    if (access(path, F_OK) < 0 && errno == ENOENT)
        return;
    int rc = json_load_path(path, &json, &err);
    if (rc == 0 && !json_is(json, "cluster", conf->cluster))
        return; /* the node belongs to another one now */
    if (rc == 0)
        rc = cluster_gate_parse(json, ret, &err);
    if (rc == 0)
        rc = pg_control_read(conf, conf->data_directory, &control, &err);
    if (rc < 0) {
        log_debug("not known whether the cluster was restored without this node: %s", err.text);
        return;
    }
    ret->closed = control.system_id == ret->system_id && !follows(conf, ret, control.timeline);
}

int cluster_gate_check(const struct conf *conf, struct err *err)
{
    struct cluster_gate closed;
    const struct cluster_gate *gate = &closed;
    char lsn[PG_LSN_TEXT];
    cluster_gate_read(conf, &closed);
    if (!gate->closed)
        return 0;
    pg_lsn_format(gate->fork.lsn, lsn);
    (void)err_set(err, ERR_REFUSED,
                  "cluster restore %s (epoch %" PRIu64 ") went back to '%s' without this node: the "
                  "cluster is on timeline %" PRIu32 " since %s, with primary %s",
                  gate->job, gate->epoch, gate->tag, gate->fork.timeline, lsn, gate->primary);
    return err_hint(err,
                    "what is committed here since is not in the cluster; make it a standby of %s "
                    "with `tidemark cluster rejoin %s`, on the coordinator",
                    gate->primary, conf->node);
}

/* --- what the repository says ----------------------------------------------------------------- */

static const json_t *member_of(const json_t *copy, const char *key, const char *value)
{
    size_t i;
    json_t *member;
    json_array_foreach(json_object_get(json_object_get(copy, "plan"), "members"), i, member)
    {
        if (json_is(member, key, value))
            return member;
    }
    return NULL;
}

/* One that was given up made no cluster. */
const json_t *cluster_gate_choose(const json_t *copies, const char *node, uint64_t system_id,
                                  bool *ret_left_out)
{
    const json_t *found = NULL;
    json_int_t newest = 0;
    for (size_t i = 0; i < json_array_size(copies); i++) {
        const json_t *copy = json_array_get(copies, i), *fork = json_object_get(copy, "fork");
        json_int_t timeline = json_integer_value(json_object_get(fork, "timeline"));
        if (timeline <= newest || json_is(copy, "state", "cancelled") ||
            number_of(json_object_get(copy, "plan"), "system_id") != system_id)
            continue;
        found = copy;
        newest = timeline;
    }
    *ret_left_out = found && !member_of(found, "name", node);
    return found;
}

static json_t *passed_json(const struct conf *conf, const json_t *copy)
{
    const json_t *plan = json_object_get(copy, "plan");
    return json_pack("{s:s, s:O, s:O, s:O, s:O, s:s, s:O}", "cluster", conf->cluster, "job",
                     json_object_get(copy, "id"), "epoch", json_object_get(copy, "epoch"), "tag",
                     json_object_get(plan, "tag"), "system_id", json_object_get(plan, "system_id"),
                     "primary", json_str(member_of(copy, "role", "primary"), "name"), "fork",
                     json_object_get(copy, "fork"));
}

void cluster_gate_open(const struct conf *conf)
{
    char path[CONF_PATH_MAX + 64];
    struct err err;
    path_of(conf, path, sizeof(path));
    if (unlink(path) < 0 && errno != ENOENT && err_sys(&err, ERR_DEVICE, "remove '%s'", path) < 0)
        log_warn("%s", err.text);
}

int cluster_gate_look(const struct conf *conf, uint64_t *state, struct err *err)
{
    char path[CONF_PATH_MAX + 64];
    free_json json_t *copies = NULL;
    struct pg_control control;
    bool left_out;
    uint64_t now = *state;
    int rc = cluster_archive_watch(conf, &now, &copies, err);
    if (rc == 0 && json_array_size(copies) == 0)
        *state = now;
    if (rc < 0 || json_array_size(copies) == 0)
        return rc;
    rc = pg_control_read(conf, conf->data_directory, &control, err);
    if (rc < 0)
        return rc;
    const json_t *copy = cluster_gate_choose(copies, conf->node, control.system_id, &left_out);
    if (!left_out) {
        cluster_gate_open(conf);
        *state = now;
        return 0;
    }
    path_of(conf, path, sizeof(path));
    free_json json_t *passed = passed_json(conf, copy);
    rc = passed ? json_save(path, passed, true, err)
                : err_set(err, ERR_INTERNAL, "a journal without a plan");
    if (rc < 0)
        return rc;
    *state = now;
    if (cluster_gate_check(conf, err) < 0)
        log_warn("this node has diverged: %s; %s", err->text, err->hint);
    return 0;
}

/* --- the thread ------------------------------------------------------------------------------- */

/* False after that time, or at once when it is to stop. */
static bool wait_for_stop(struct cluster_gate_watch *watch, unsigned seconds)
{
    struct timespec until;
    int rc = 0;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += seconds;
    (void)pthread_mutex_lock(&watch->mutex);
    while (!watch->stop && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&watch->wake, &watch->mutex, &until);
    bool stop = watch->stop;
    (void)pthread_mutex_unlock(&watch->mutex);
    return stop;
}

/* A repository or a volume that is not there yet comes, and is not worth a line every time. */
static void *watch_main(void *ctx)
{
    struct cluster_gate_watch *watch = ctx;
    struct err err;
    uint64_t state = 0;
    int rc;
    do {
        rc = cluster_gate_look(watch->conf, &state, &err);
        if (rc < 0)
            log_debug("not known whether a cluster restore left this node out: %s", err.text);
    } while (!wait_for_stop(watch, rc < 0 ? LOOK_AGAIN_S : LOOK_S));
    return NULL;
}

static bool is_wanted(const struct conf *conf)
{
    char path[CONF_PATH_MAX + 64];
    (void)snprintf(path, sizeof(path), "%s/cluster.json", conf->state_dir);
    return !conf->coordinator_members[0] && conf->repository_url[0] && conf->data_directory[0] &&
           (conf->tls_listen[0] || access(path, F_OK) == 0);
}

void cluster_gate_start(struct cluster_gate_watch *watch, const struct conf *conf)
{
    *watch = (struct cluster_gate_watch){.conf = conf};
    if (!is_wanted(conf))
        return;
    (void)pthread_mutex_init(&watch->mutex, NULL);
    (void)pthread_cond_init(&watch->wake, NULL);
    watch->running = pthread_create(&watch->thread, NULL, watch_main, watch) == 0;
    if (!watch->running)
        log_error("no thread looks whether a cluster restore left this node out");
}

void cluster_gate_stop(struct cluster_gate_watch *watch)
{
    if (!watch->running)
        return;
    (void)pthread_mutex_lock(&watch->mutex);
    watch->stop = true;
    (void)pthread_cond_signal(&watch->wake);
    (void)pthread_mutex_unlock(&watch->mutex);
    (void)pthread_join(watch->thread, NULL);
}
