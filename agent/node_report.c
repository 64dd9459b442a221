/* The report of a node: see node_report.h. One statement makes most of it, so that role, timeline
 * and position belong to one moment. */
#include "agent/node_report.h"

#include <stdio.h>

#include "agent/cluster_gate.h"
#include "agent/cluster_lock.h"
#include "agent/conninfo.h"
#include "agent/job_rules.h"
#include "agent/pg.h"
#include "agent/record.h"
#include "agent/restore.h"
#include "agent/volume.h"

enum { QUERY_TIMEOUT_S = 10 };

/* --- the server ------------------------------------------------------------------------------- */

/* A standby's timeline is what it receives, or what its last restartpoint was on: the control file
 * lags. $1: the settings that are wanted. */
static const char server_sql[] =
    "select json_build_object("
    "'role', case when standby then 'standby' else 'primary' end, "
    "'system_id', (select system_identifier::text from pg_control_system()), "
    "'timeline', case when standby then coalesce("
    "(select nullif(received_tli, 0) from pg_stat_wal_receiver), "
    "(select timeline_id from pg_control_checkpoint())) "
    "else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end, "
    "'lsn', case when standby then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, "
    "'pg_version', current_setting('server_version'), "
    "'primary_conninfo', current_setting('primary_conninfo'), "
    "'primary_slot', current_setting('primary_slot_name'), "
    "'settings', (select json_object_agg(name, setting) from pg_settings "
    "where name = any ($1::text[])), "
    "'slots', (select coalesce(json_agg(json_build_object('name', slot_name, 'type', slot_type, "
    "'plugin', plugin, 'database', database, 'temporary', temporary, 'active', active, "
    "'restart_lsn', restart_lsn) order by slot_name), '[]') from pg_replication_slots), "
    "'replication', (select coalesce(json_agg(json_build_object("
    "'application_name', application_name, 'client_addr', client_addr, 'state', state, "
    "'sync_state', sync_state, 'replay_lsn', replay_lsn) order by application_name), '[]') "
    "from pg_stat_replication), "
    "'receiver', (select json_build_object('status', status, 'timeline', received_tli, "
    "'slot', slot_name, 'host', sender_host, 'port', sender_port) from pg_stat_wal_receiver)"
    ")::text from (select pg_is_in_recovery() as standby) as now";

/* '{"max_connections",…}' */
static void wanted_settings(char *ret, size_t size)
{
    size_t len = (size_t)snprintf(ret, size, "{synchronous_standby_names");
    for (size_t i = 0; record_replay_settings[i]; i++)
        len += (size_t)snprintf(ret + len, size - len, ",%s", record_replay_settings[i]);
    (void)snprintf(ret + len, size - len, "}");
}

static void hide_password(json_t *report)
{
    char text[2 * CONF_PATH_MAX];
    const char *given = json_string_value(json_object_get(report, "primary_conninfo"));
    if (!given)
        return;
    bool known = conninfo_public(given, text, sizeof(text));
    (void)json_object_set_new(report, "primary_conninfo",
                              known && text[0] ? json_string(text) : json_null());
}

static int ask_server(const struct conf *conf, json_t *report, struct err *err)
{
    struct pg_session *session = NULL;
    char settings[512];
    const char *params[] = {settings, NULL};
    free_json json_t *rows = NULL;
    free_json json_t *answer = NULL;
    wanted_settings(settings, sizeof(settings));
    int rc = pg_open(conf, NULL, &session, err);
    if (rc == 0)
        rc = pg_query(session, server_sql, params, QUERY_TIMEOUT_S, &rows, err);
    pg_close(session);
    const char *text = json_string_value(json_array_get(json_array_get(rows, 0), 0));
    if (rc == 0 && !text)
        rc = err_set(err, ERR_POSTGRES, "the server did not say what it is");
    if (rc == 0)
        rc = json_parse(text, strlen(text), ERR_POSTGRES, &answer, err);
    if (rc < 0)
        return rc;
    hide_password(answer);
    (void)json_object_update(report, answer);
    return 0;
}

/* What pg_control says of a server that is down: where its last checkpoint was. */
static void read_control(const struct conf *conf, json_t *report)
{
    struct pg_control control;
    struct err ignored;
    char text[PG_LSN_TEXT], number[24];
    if (!conf->data_directory[0] ||
        pg_control_read(conf, conf->data_directory, &control, &ignored) < 0)
        return;
    (void)snprintf(number, sizeof(number), "%llu", (unsigned long long)control.system_id);
    pg_lsn_format(control.checkpoint_lsn, text);
    (void)json_object_set_new(report, "system_id", json_string(number));
    (void)json_object_set_new(report, "timeline", json_integer(control.timeline));
    (void)json_object_set_new(report, "lsn", json_string(text));
}

static void add_server(const struct conf *conf, json_t *report)
{
    static const char *const states[] = {
        [PG_STOPPED] = "stopped", [PG_STARTING] = "starting", [PG_RUNNING] = "running"};
    enum pg_state state = PG_STOPPED;
    struct err err;
    int rc = conf->data_directory[0] ? pg_server_state(conf, &state, NULL, &err)
                                     : err_set(&err, ERR_CONFIG, "no data_directory is configured");
    (void)json_object_set_new(report, "server", json_string(states[state]));
    if (rc == 0 && state != PG_STOPPED)
        rc = ask_server(conf, report, &err);
    if (rc == 0 && state != PG_STOPPED)
        return;
    if (rc < 0)
        (void)json_object_set_new(report, "error", json_string(err.text));
    read_control(conf, report);
}

/* --- volumes ---------------------------------------------------------------------------------- */

static json_t *volume_json(const struct volume *volume)
{
    char name[512];
    const struct device_identity *device = &volume->device;
    restore_device_name(device, name, sizeof(name));
    return json_pack("{s:s, s:s, s:b, s:s, s:s, s:I, s:s, s:s}", "name", volume->conf->name,
                     "mount", volume->mounted ? volume->mount_point : volume->conf->mount,
                     "mounted", volume->mounted, "device", device->path, "identity", name, "size",
                     (json_int_t)device->size, "fs_type", device->fs_type, "fs_uuid",
                     device->fs_uuid);
}

/* A volume that could not be captured as it is makes the whole group an error: the others are still
 * named, as configured. */
static void add_volumes(const struct conf *conf, json_t *report)
{
    struct volume_group *group = calloc(1, sizeof(*group)); /* large */
    json_t *volumes = json_array();
    struct err err;
    if (!group)
        abort();
    if (volume_group_open(conf, group, &err) == 0) {
        for (size_t i = 0; i < group->count; i++)
            (void)json_array_append_new(volumes, volume_json(&group->volumes[i]));
        volume_group_close(group);
    } else {
        for (size_t i = 0; i < conf->volume_count; i++)
            (void)json_array_append_new(
                volumes, json_pack("{s:s, s:s, s:s}", "name", conf->volumes[i].name, "mount",
                                   conf->volumes[i].mount, "device", conf->volumes[i].device));
        (void)json_object_set_new(report, "volumes_error", json_string(err.text));
    }
    free(group);
    (void)json_object_set_new(report, "volumes", volumes);
}

/* --- all of it -------------------------------------------------------------------------------- */

static void add_agent(const struct conf *conf, json_t *report)
{
    struct cluster_lock lock;
    struct health health;
    struct err err;
    job_health(conf, &health);
    bool left_out = strcmp(health.status, "ok") == 0 && cluster_gate_check(conf, &err) < 0;
    json_t *object = json_pack("{s:s}", "status", left_out ? "diverged" : health.status);
    if (left_out) {
        (void)json_object_set_new(object, "cause", json_string(err.text));
        (void)json_object_set_new(object, "hint", json_string(err.hint));
    }
    if (health.job[0]) {
        (void)json_object_set_new(object, "job", json_string(health.job));
        (void)json_object_set_new(object, "step", json_string(health.step));
    }
    (void)json_object_set_new(report, "health", object);
    if (cluster_lock_read(conf, &lock, &err) == 0 && lock.job[0])
        (void)json_object_set_new(report, "reservation", cluster_lock_json(&lock));
}

json_t *node_report(const struct conf *conf)
{
    json_t *report =
        json_pack("{s:s, s:s, s:s, s:s, s:n, s:n, s:n, s:n, s:n, s:n, s:[], s:[], s:n, s:{}, s:n}",
                  "node", conf->node, "cluster", conf->cluster, "version", TIDEMARK_VERSION, "role",
                  "down", "system_id", "timeline", "lsn", "pg_version", "primary_conninfo",
                  "primary_slot", "slots", "replication", "receiver", "settings", "reservation");
    if (!report)
        abort();
    add_server(conf, report);
    add_volumes(conf, report);
    add_agent(conf, report);
    return report;
}
