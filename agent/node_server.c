/* What PostgreSQL says of itself: see node_report.h. One statement makes most of it, so that role,
 * timeline and position belong to one moment. */
#include "agent/node_report.h"

#include <fcntl.h>
#include <stdio.h>

#include "agent/archive_lag.h"
#include "agent/conninfo.h"
#include "agent/pg.h"
#include "agent/record.h"
#include "agent/wal.h"

enum { QUERY_TIMEOUT_S = 10 };

/* --- a server that runs ----------------------------------------------------------------------- */

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
    "'slot', slot_name, 'host', sender_host, 'port', sender_port, 'application_name', coalesce("
    "substring(' ' || conninfo || ' x=' from ' application_name=(.*?) [a-z_]+='), "
    "substring(' ' || conninfo || ' x=' from ' fallback_application_name=(.*?) [a-z_]+='))) "
    "from pg_stat_wal_receiver), "
    "'startup', (select pid from pg_stat_activity where backend_type = 'startup')"
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

/* A standby that receives nothing: the process that replays names the segment it reads, and with it
 * the timeline, in its title. 0 = it does not tell. */
static uint32_t replayed_timeline(int pid)
{
    char path[64], title[256];
    uint32_t timeline = 0;
    (void)snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t len = fd < 0 ? -1 : read(fd, title, sizeof(title) - 1);
    if (len <= 0)
        return 0;
    title[len] = '\0';
    size_t end = strlen(title);
    while (end > 0 && title[end - 1] == ' ')
        title[--end] = '\0';
    const char *name = strrchr(title, ' ');
    return name && wal_name_valid(name + 1, &timeline) ? timeline : 0;
}

/* *ret_known: the report's timeline is the one that is replayed or written now. */
static void settle_timeline(json_t *report, bool *ret_known)
{
    int pid = (int)json_integer_value(json_object_get(report, "startup"));
    bool streams = json_is_object(json_object_get(report, "receiver"));
    *ret_known = json_is(report, "role", "primary") || streams;
    uint32_t timeline = *ret_known || pid <= 0 ? 0 : replayed_timeline(pid);
    if (timeline) {
        *ret_known = true;
        (void)json_object_set_new(report, "timeline", json_integer(timeline));
    }
    (void)json_object_del(report, "startup");
}

static json_t *history_json(const struct wal_history *history)
{
    json_t *array = json_array();
    for (size_t i = 0; i < history->count; i++) {
        char lsn[PG_LSN_TEXT];
        pg_lsn_format(history->entries[i].switch_lsn, lsn);
        (void)json_array_append_new(array,
                                    json_pack("{s:I, s:s}", "timeline",
                                              (json_int_t)history->entries[i].parent, "lsn", lsn));
    }
    return array;
}

/* The timelines before this one and where each was left: "history", null when it is not known. */
static void add_history(struct pg_session *session, json_t *report)
{
    static const char sql[] =
        "select pg_read_file('pg_wal/' || $1 || '.history', 0, 1048576, true)";
    char name[16];
    const char *params[] = {name, NULL};
    struct wal_history *history = calloc(1, sizeof(*history)); /* large */
    free_json json_t *rows = NULL;
    struct err ignored;
    if (!history)
        abort();
    history->timeline = (uint32_t)json_integer_value(json_object_get(report, "timeline"));
    (void)snprintf(name, sizeof(name), "%08X", history->timeline);
    if (history->timeline > 1)
        (void)pg_query(session, sql, params, QUERY_TIMEOUT_S, &rows, &ignored);
    const char *text = json_string_value(json_array_get(json_array_get(rows, 0), 0));
    bool known =
        text && wal_history_parse(history->timeline, text, strlen(text), history, &ignored) == 0;
    if (known || history->timeline == 1)
        (void)json_object_set_new(report, "history", history_json(history));
    free(history);
}

static int ask(struct pg_session *session, json_t *report, struct err *err)
{
    char settings[512];
    const char *params[] = {settings, NULL};
    free_json json_t *rows = NULL;
    free_json json_t *answer = NULL;
    bool known = false;
    wanted_settings(settings, sizeof(settings));
    int rc = pg_query(session, server_sql, params, QUERY_TIMEOUT_S, &rows, err);
    const char *text = json_string_value(json_array_get(json_array_get(rows, 0), 0));
    if (rc == 0 && !text)
        rc = err_set(err, ERR_POSTGRES, "the server did not say what it is");
    if (rc == 0)
        rc = json_parse(text, strlen(text), ERR_POSTGRES, &answer, err);
    if (rc < 0)
        return rc;
    hide_password(answer);
    (void)json_object_update(report, answer);
    settle_timeline(report, &known);
    if (known)
        add_history(session, report);
    return 0;
}

static int ask_server(const struct conf *conf, json_t *report, struct err *err)
{
    struct pg_session *session = NULL;
    json_t *archiving = NULL;
    struct err ignored;
    int rc = pg_open(conf, NULL, &session, err);
    if (rc == 0)
        rc = ask(session, report, err);
    if (rc == 0 && archive_lag_read(conf, session, &archiving, &ignored) == 0)
        (void)json_object_set_new(report, "archiving", archiving);
    pg_close(session);
    return rc;
}

/* --- one that does not ------------------------------------------------------------------------ */

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

json_t *node_server(const struct conf *conf)
{
    static const char *const states[] = {
        [PG_STOPPED] = "stopped", [PG_STARTING] = "starting", [PG_RUNNING] = "running"};
    enum pg_state state = PG_STOPPED;
    struct err err;
    json_t *report = json_pack(
        "{s:s, s:n, s:n, s:n, s:n, s:n, s:n, s:n, s:n, s:[], s:[], s:n, s:{}}", "role", "down",
        "system_id", "timeline", "lsn", "archiving", "history", "pg_version", "primary_conninfo",
        "primary_slot", "slots", "replication", "receiver", "settings");
    if (!report)
        abort();
    int rc = conf->data_directory[0] ? pg_server_state(conf, &state, NULL, &err)
                                     : err_set(&err, ERR_CONFIG, "no data_directory is configured");
    (void)json_object_set_new(report, "server", json_string(states[state]));
    if (rc == 0 && state != PG_STOPPED)
        rc = ask_server(conf, report, &err);
    if (rc == 0 && state != PG_STOPPED)
        return report;
    if (rc < 0)
        (void)json_object_set_new(report, "error", json_string(err.text));
    read_control(conf, report);
    return report;
}
