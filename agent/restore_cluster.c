/* One node's part of a cluster restore: what its coordinator's call adds to a run, the holds, and
 * the slots of the new primary. The rest of a part is an ordinary restore; see restore.h. */
#include "agent/restore.h"
#include "agent/clock.h"
#include "agent/cluster_gate.h"
#include "agent/log.h"
#include "agent/pg.h"
#include "agent/pg_pid_file.h"

#include <stdio.h>

enum { SLOT_TIMEOUT_S = 60, POLL_MS = 100 };

/* In the place of the one it was reserved with; NULL: there is no other. */
static int take_conninfo(struct restore *restore, const char *text, struct err *err)
{
    struct pg_conninfo ignored;
    if (!text)
        return 0;
    if (!restore->request.standby)
        return err_set(err, ERR_USAGE, "primary_conninfo is for the standbys of a cluster");
    restore->conninfo_changed = strcmp(text, restore->request.primary_conninfo) != 0;
    restore->request.primary_conninfo = text;
    if (!restore->conninfo_changed || pg_conninfo_read(text, &ignored, err) == 0)
        return 0;
    (void)err_prefix(err, "primary_conninfo");
    return err_hint(err, "correct [coordinator] primary_conninfo");
}

int restore_cluster_load(struct restore *restore, struct err *err)
{
    const json_t *call = restore->job->goal_file;
    json_t *journal = restore->job->journal;
    restore->hold = restore_is_handover(restore) ? STEP_CONFIGURED : STEP_COMPLETE;
    if (!restore->request.cluster_job)
        return 0;
    json_t *cluster = json_object_get(journal, "cluster");
    if (json_object_get(call, "epoch"))
        (void)json_object_set(cluster, "epoch", json_object_get(call, "epoch"));
    restore->hold = restore_hold_step(json_string_value(json_object_get(call, "until")));
    if (json_object_get(call, "fork"))
        (void)json_object_set(journal, "fork", json_object_get(call, "fork"));
    int rc =
        take_conninfo(restore, json_string_value(json_object_get(call, "primary_conninfo")), err);
    if (rc < 0)
        return rc;
    if (!restore->request.standby || !json_object_get(journal, "fork"))
        return 0;
    return restore_fork_parse(json_object_get(journal, "fork"), ERR_USAGE, &restore->fork, err);
}

int restore_cluster_check(const struct restore *restore, struct err *err)
{
    char number[24];
    if (!restore->request.cluster_job)
        return cluster_gate_check(&restore->conf, err);
    (void)snprintf(number, sizeof(number), "%llu", (unsigned long long)restore->record.system_id);
    json_object_set_new(restore->job->journal, "system_id", json_string(number));
    if (restore->record.archived)
        return 0;
    (void)err_set(err, ERR_REFUSED,
                  "the snapshot was taken without archiving: standbys could not "
                  "follow a primary that is restored from it");
    return err_hint(err, "restore a tag of a server that archives, or each node by itself");
}

/* --- holds ------------------------------------------------------------------------------------ */

void restore_cluster_hold(struct restore *restore)
{
    static const char *const names[STEP_COUNT] = {[STEP_FENCED] = "fenced",
                                                  [STEP_CONFIGURED] = "configured",
                                                  [STEP_RECOVERING] = "recovered"};
    char point[32];
    const char *name = names[restore->hold];
    (void)snprintf(point, sizeof(point), "held-%s", name);
    restore_test_stop(point);
    log_info("held for the other nodes: job=%s at=%s", restore->job->id, name);
    json_object_set_new(restore->job->journal, "held_at", json_string(name));
    json_object_set_new(restore->job->journal, "state", json_string("held"));
}

bool restore_keeps_fence(const struct restore *restore)
{
    return restore->request.cluster_job && json_object_get(restore->job->journal, "held_at");
}

/* --- the server at its target ----------------------------------------------------------------- */

/* True when it takes connections, or has ended. */
static bool has_settled(const struct restore *restore, enum pg_state *state)
{
    char path[CONF_PATH_MAX + 32];
    struct pg_pid_file file;
    struct err ignored;
    (void)snprintf(path, sizeof(path), "%s/postmaster.pid", restore->data_directory);
    if (pg_server_state(&restore->conf, state, NULL, &ignored) < 0)
        return false;
    return *state != PG_STARTING ||
           (pg_pid_file_read(path, &file) == 0 && strcmp(file.status, "standby") == 0);
}

static int start_again(struct restore *restore, struct err *err)
{
    struct start_options options;
    enum pg_state state = PG_STARTING;
    log_warn("the restored server does not run, it is started again: job=%s", restore->job->id);
    int rc = restore_mount(restore, err);
    if (rc == 0)
        rc = restore_gate_open(restore, err);
    if (rc == 0)
        rc = pg_server_start(&restore->conf, restore_start_options(restore, &options), err);
    while (rc == 0 && !has_settled(restore, &state)) { /* crash recovery takes what it takes */
        rc = job_check_cancel(restore->job, err);
        pause_ms(POLL_MS);
    }
    if (rc == 0 && state == PG_STOPPED) {
        (void)err_set(err, ERR_POSTGRES, "the restored server ended when it was started again");
        rc = err_hint(err, "its log says why");
    }
    return rc;
}

/* The lines that an attached standby keeps, once more. */
static int renew_conninfo(struct restore *restore, struct err *err)
{
    struct pg_session *session = NULL;
    int rc = pg_open(&restore->conf, NULL, &session, err);
    if (rc == 0)
        rc = restore_standby_finish(restore, session, err);
    pg_close(session);
    return rc;
}

/* It is a server like any other by now, with its own settings; a standby that has to follow it, or
 * the verification, would wait for it in vain. */
int restore_cluster_server(struct restore *restore, struct err *err)
{
    enum pg_state state;
    if (!restore->request.cluster_job)
        return 0;
    int rc = pg_server_state(&restore->conf, &state, NULL, err);
    if (rc == 0 && state == PG_STOPPED)
        rc = start_again(restore, err);
    return rc < 0 || !restore->conninfo_changed ? rc : renew_conninfo(restore, err);
}

/* --- slots ------------------------------------------------------------------------------------ */

/* "physical", "logical", or "" when there is no such slot. */
static int slot_type(struct pg_session *session, const char *name, char *ret, size_t size,
                     struct err *err)
{
    static const char sql[] =
        "select coalesce((select slot_type from pg_replication_slots where slot_name = $1), '')";
    const char *params[] = {name, NULL};
    free_mem char *type = NULL;
    int rc = pg_query_text(session, sql, params, &type, err);
    if (rc == 0)
        (void)snprintf(ret, size, "%s", type ? type : "");
    return rc;
}

/* reserve: WAL is kept from now on, because the standby that will use it may start late. */
static int create_slot(struct pg_session *session, const char *name, bool reserve, struct err *err)
{
    const char *params[] = {name, reserve ? "true" : "false", NULL};
    char type[16];
    int rc = slot_type(session, name, type, sizeof(type), err);
    if (rc < 0 || strcmp(type, "physical") == 0)
        return rc;
    if (type[0])
        return err_set(err, ERR_REFUSED, "slot '%s' is there and is %s", name, type);
    rc = pg_query(session, "select pg_create_physical_replication_slot($1, $2::boolean)", params,
                  SLOT_TIMEOUT_S, NULL, err);
    if (rc == 0)
        log_info("physical slot created: slot=%s", name);
    return rc < 0 ? err_prefix(err, "create slot '%s'", name) : 0;
}

static int create_listed(struct restore *restore, struct pg_session *session, const char *key,
                         bool reserve, struct err *err)
{
    json_t *slots = json_object_get(restore->job->goal_file, key);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < json_array_size(slots); i++) {
        const char *name = json_string_value(json_array_get(slots, i));
        rc = name ? create_slot(session, name, reserve, err)
                  : err_set(err, ERR_USAGE, "the name of a slot is not a text");
    }
    if (rc == 0 && slots)
        (void)json_object_set(restore->job->journal, key, slots);
    return rc;
}

int restore_create_slots(struct restore *restore, struct pg_session *session, struct err *err)
{
    int rc = create_listed(restore, session, "slots", true, err);
    return rc < 0 ? rc : create_listed(restore, session, "idle_slots", false, err);
}
