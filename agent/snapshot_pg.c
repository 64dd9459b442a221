/* The server's side of a snapshot: what it must be, what a restore has to know about it, and the
 * calls of the low-level backup interface (PostgreSQL 15 documentation, 26.3.3).
 *
 * One session is kept open from the first check to the last. Backup mode belongs to its backend:
 * when the connection closes, for whatever reason, the server leaves backup mode, and when the
 * session is lost before the commit every later call fails, so a half backup cannot be committed.
 */
#include "agent/snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <sys/stat.h>

#include "agent/log.h"
#include "agent/process.h"

enum { CONFIG_FILE_LEN_MAX = 4 << 20, PG_VERSION_MIN = 150000 };

/* --- rows as text ----------------------------------------------------------------------------- */

const char *snapshot_cell(const json_t *rows, size_t row, size_t column)
{
    return json_string_value(json_array_get(json_array_get(rows, row), column));
}

int snapshot_query_row(struct pg_session *session, const char *sql, const char *const *params,
                       size_t column_count, json_t **ret_rows, struct err *err)
{
    free_json json_t *rows = NULL;
    int rc = pg_query(session, sql, params, 0, &rows, err);
    if (rc < 0)
        return rc;
    bool good = json_array_size(rows) == 1;
    for (size_t i = 0; good && i < column_count; i++)
        good = snapshot_cell(rows, 0, i) != NULL;
    if (!good)
        return err_set(err, ERR_POSTGRES, "unexpected answer to: %.200s", sql);
    *ret_rows = take_ptr(&rows);
    return 0;
}

int snapshot_parse_lsn(const char *text, uint64_t *ret, struct err *err)
{
    if (!pg_lsn_parse(text, ret))
        return err_set(err, ERR_POSTGRES, "'%.64s' is not an LSN", text);
    return 0;
}

struct pg_session *snapshot_writer(const struct snapshot *snapshot)
{
    return snapshot->primary ? snapshot->primary : snapshot->session;
}

static const char *cell(const json_t *rows, size_t row, size_t column)
{
    return snapshot_cell(rows, row, column);
}

/* --- settings --------------------------------------------------------------------------------- */

/* What a restore needs to know: the five that a recovery must not lower, what decides where files
 * are, and what explains differences to a person. No commands: they may hold secrets. */
static const char settings_sql[] =
    "SELECT name, setting FROM pg_settings WHERE name = ANY ('{"
    "max_connections,max_worker_processes,max_wal_senders,max_prepared_transactions,"
    "max_locks_per_transaction,wal_level,wal_log_hints,track_commit_timestamp,"
    "server_version_num,server_version,server_encoding,lc_collate,lc_ctype,"
    "wal_segment_size,block_size,data_checksums,full_page_writes,"
    "archive_mode,archive_library,hot_standby,synchronous_standby_names,"
    "shared_preload_libraries,shared_buffers,huge_pages,"
    "data_directory,config_file,hba_file,ident_file,external_pid_file,log_directory,"
    "port,listen_addresses,unix_socket_directories,ssl,primary_slot_name,cluster_name}')";

static int read_settings(struct snapshot *snapshot, struct err *err)
{
    free_json json_t *rows = NULL;
    int rc = pg_query(snapshot->session, settings_sql, NULL, 0, &rows, err);
    if (rc < 0)
        return rc;
    snapshot->record.settings = json_object();
    for (size_t i = 0; i < json_array_size(rows); i++)
        if (cell(rows, i, 0) && cell(rows, i, 1))
            json_object_set_new(snapshot->record.settings, cell(rows, i, 0),
                                json_string(cell(rows, i, 1)));
    return 0;
}

/* "" when the server has no such setting (or hides it). Borrowed. */
static const char *setting(const struct snapshot *snapshot, const char *name)
{
    const char *value = json_string_value(json_object_get(snapshot->record.settings, name));
    return value ? value : "";
}

static uint32_t setting_u32(const struct snapshot *snapshot, const char *name)
{
    return (uint32_t)strtoul(setting(snapshot, name), NULL, 10);
}

/* --- checks ----------------------------------------------------------------------------------- */

static int check_version(const struct snapshot *snapshot, struct err *err)
{
    uint32_t version = setting_u32(snapshot, "server_version_num");
    if (version >= PG_VERSION_MIN)
        return 0;
    return err_set(err, ERR_REFUSED, "PostgreSQL %s is too old: 15 or newer is needed",
                   setting(snapshot, "server_version"));
}

static int check_role(struct snapshot *snapshot, struct err *err)
{
    free_json json_t *rows = NULL;
    int rc =
        snapshot_query_row(snapshot->session, "SELECT pg_is_in_recovery()", NULL, 1, &rows, err);
    if (rc < 0 || strcmp(cell(rows, 0, 0), "f") == 0)
        return rc;
    if (!snapshot->request.no_archive)
        return snapshot_standby_open(snapshot, err);
    (void)err_set(err, ERR_REFUSED,
                  "the server is in recovery: a snapshot of a standby needs the archive");
    return err_hint(err, "take it without --no-archive, or on the primary of this cluster");
}

static int refuse_archiving(const struct snapshot *snapshot, struct err *err)
{
    if (snapshot->primary)
        return err_hint(err, "archive with `tidemark-wal push` there");
    return err_hint(err, "archive with `tidemark-wal push`, or ask for a snapshot with "
                         "--no-archive: it keeps the WAL in the image and offers only target "
                         "`snapshot`");
}

/* Asked of the server that writes the WAL, and archive_command by itself: it may hold secrets and
 * stays out of the record. */
static int check_archiving(struct snapshot *snapshot, struct err *err)
{
    static const char sql[] =
        "SELECT current_setting('wal_level'), current_setting('archive_mode'), "
        "current_setting('archive_command'), "
        "current_setting('archive_library')";
    const char *who = snapshot->primary ? "primary of this standby" : "server";
    free_json json_t *rows = NULL;
    int rc = snapshot_query_row(snapshot_writer(snapshot), sql, NULL, 4, &rows, err);
    if (rc < 0)
        return rc;
    if (strcmp(cell(rows, 0, 0), "minimal") == 0) {
        (void)err_set(err, ERR_REFUSED,
                      "wal_level is minimal: a snapshot of a running server "
                      "needs replica or logical");
        return err_hint(err, "set wal_level = replica and restart the server");
    }
    if (snapshot->request.no_archive)
        return 0;
    if (strcmp(cell(rows, 0, 1), "off") == 0) {
        (void)err_set(err, ERR_REFUSED, "the %s does not archive: archive_mode is off", who);
        return refuse_archiving(snapshot, err);
    }
    const char *command = cell(rows, 0, 2);
    if (cell(rows, 0, 3)[0] || (command[0] && strcmp(command, "(disabled)") != 0))
        return 0;
    (void)err_set(err, ERR_REFUSED, "the %s does not archive: archive_command is empty", who);
    return refuse_archiving(snapshot, err);
}

/* Backup mode of a server that is not the one whose volumes are captured would be worth nothing. */
static int check_directory(struct snapshot *snapshot, struct err *err)
{
    char configured[PATH_MAX];
    char *actual = snapshot->record.data_directory;
    int rc = snapshot_resolve(setting(snapshot, "data_directory"), actual,
                              sizeof(snapshot->record.data_directory), err);
    if (rc < 0 || !snapshot->conf->data_directory[0])
        return rc;
    rc = snapshot_resolve(snapshot->conf->data_directory, configured, sizeof(configured), err);
    if (rc < 0) {
        err->code = ERR_CONFIG;
        return err_prefix(err, "`data_directory` of the configuration");
    }
    if (strcmp(configured, actual) == 0)
        return 0;
    return err_set(err, ERR_CONFIG,
                   "`connection` leads to a server with data directory '%s', but `data_directory` "
                   "is '%s'",
                   actual, configured);
}

static const char identity_sql[] =
    "SELECT system_identifier::text, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), "
    "extract(epoch FROM pg_postmaster_start_time())::text FROM pg_control_system()";

/* The same text before and after means: the same postmaster on the same timeline. */
static int read_identity(struct snapshot *snapshot, char *ret, uint64_t *ret_system_id,
                         uint32_t *ret_timeline, struct err *err)
{
    enum { IDENTITY_SIZE = sizeof(snapshot->identity) };
    free_json json_t *rows = NULL;
    int rc = snapshot_query_row(snapshot_writer(snapshot), identity_sql, NULL, 3, &rows, err);
    if (rc < 0)
        return rc;
    (void)snprintf(ret, IDENTITY_SIZE,
                   "system identifier %.24s, timeline %.8s, postmaster of %.40s", cell(rows, 0, 0),
                   cell(rows, 0, 1), cell(rows, 0, 2));
    /* pg_control_system() shows the unsigned number as a signed one. */
    *ret_system_id = (uint64_t)strtoll(cell(rows, 0, 0), NULL, 10);
    *ret_timeline = (uint32_t)strtoul(cell(rows, 0, 1), NULL, 16);
    return snapshot->primary ? snapshot_standby_identity(snapshot, ret, IDENTITY_SIZE, err) : 0;
}

int snapshot_pg_check_identity(struct snapshot *snapshot, struct err *err)
{
    char now[sizeof(snapshot->identity)];
    uint64_t system_id;
    uint32_t timeline;
    int rc = read_identity(snapshot, now, &system_id, &timeline, err);
    if (rc < 0)
        return err_prefix(err, "the session was lost during the snapshot");
    if (strcmp(now, snapshot->identity) == 0)
        return 0;
    return err_set(err, ERR_POSTGRES, "the server changed during the snapshot: it was %s, now %s",
                   snapshot->identity, now);
}

/* --- facts ------------------------------------------------------------------------------------ */

int snapshot_resolve(const char *path, char *ret, size_t size, struct err *err)
{
    char resolved[PATH_MAX];
    if (!realpath(path, resolved))
        return err_sys(err, ERR_DEVICE, "resolve '%s'", path);
    if (strlen(resolved) >= size)
        return err_set(err, ERR_CONFIG, "path too long: '%s'", resolved);
    memcpy(ret, resolved, strlen(resolved) + 1);
    return 0;
}

static int read_whole(int fd, const char *path, struct record_blob *ret, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_sys(err, ERR_DEVICE, "stat '%s'", path);
    if (!S_ISREG(st.st_mode) || st.st_size > CONFIG_FILE_LEN_MAX)
        return err_set(err, ERR_REFUSED, "'%s' is not a configuration file of at most 4 MiB", path);
    free_mem char *bytes = malloc((size_t)st.st_size + 1);
    if (!bytes)
        return err_set(err, ERR_INTERNAL, "out of memory for '%s'", path);
    size_t have = 0;
    for (ssize_t n = 1; n > 0 && have < (size_t)st.st_size; have += (size_t)n) {
        do
            n = read(fd, bytes + have, (size_t)st.st_size - have);
        while (n < 0 && errno == EINTR);
        if (n < 0)
            return err_sys(err, ERR_DEVICE, "read '%s'", path);
    }
    ret->bytes = take_ptr(&bytes);
    ret->len = have;
    ret->mode = st.st_mode & 07777;
    ret->uid = st.st_uid;
    ret->gid = st.st_gid;
    return 0;
}

/* What the server cannot read is none of its configuration, whatever its links point to. */
static int open_as_user(const struct snapshot *snapshot, const char *path, int *ret_fd,
                        struct err *err)
{
    int rc = process_fs_user(snapshot->conf->os_user, err);
    if (rc < 0)
        return rc;
    *ret_fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*ret_fd < 0)
        rc = err_sys(err, errno == ENOENT ? ERR_MISSING : ERR_DEVICE, "open '%s'", path);
    process_fs_root();
    return rc;
}

int snapshot_add_config_file(struct snapshot *snapshot, const char *path, struct err *err)
{
    struct record *record = &snapshot->record;
    for (size_t i = 0; i < record->config_file_count; i++)
        if (strcmp(record->config_files[i].path, path) == 0)
            return 0;
    close_fd int fd = -1;
    int rc = open_as_user(snapshot, path, &fd, err);
    if (rc < 0)
        return rc == -ERR_MISSING ? 0 : rc;
    if (record->config_file_count == RECORD_CONFIG_FILES_MAX)
        return err_set(err, ERR_REFUSED, "more than %d configuration files",
                       RECORD_CONFIG_FILES_MAX);
    struct record_blob *files = realloc(record->config_files, (record->config_file_count + 1) *
                                                                  sizeof(*record->config_files));
    if (!files)
        return err_set(err, ERR_INTERNAL, "out of memory for '%s'", path);
    record->config_files = files;
    struct record_blob blob = {.path = NULL};
    rc = read_whole(fd, path, &blob, err);
    if (rc < 0)
        return rc;
    blob.path = strdup(path);
    if (!blob.path)
        abort();
    files[record->config_file_count++] = blob;
    return 0;
}

static const char config_sql[] =
    "SELECT DISTINCT file FROM (SELECT setting AS file FROM pg_settings"
    " WHERE name IN ('config_file', 'hba_file', 'ident_file')"
    " UNION ALL SELECT sourcefile FROM pg_file_settings) AS f WHERE file LIKE '/%' ORDER BY 1";
static const char config_sql_16[] =
    "SELECT DISTINCT file FROM (SELECT setting AS file FROM pg_settings"
    " WHERE name IN ('config_file', 'hba_file', 'ident_file')"
    " UNION ALL SELECT sourcefile FROM pg_file_settings"
    " UNION ALL SELECT file_name FROM pg_hba_file_rules"
    " UNION ALL SELECT file_name FROM pg_ident_file_mappings)"
    " AS f WHERE file LIKE '/%' ORDER BY 1";

static int read_config_files(struct snapshot *snapshot, struct err *err)
{
    char automatic[PATH_MAX];
    free_json json_t *rows = NULL;
    bool has_includes = snapshot->record.pg_version_num >= 160000;
    int rc =
        pg_query(snapshot->session, has_includes ? config_sql_16 : config_sql, NULL, 0, &rows, err);
    for (size_t i = 0; rc == 0 && i < json_array_size(rows); i++)
        rc = snapshot_add_config_file(snapshot, cell(rows, i, 0), err);
    (void)snprintf(automatic, sizeof(automatic), "%s/postgresql.auto.conf",
                   setting(snapshot, "data_directory"));
    return rc < 0 ? rc : snapshot_add_config_file(snapshot, automatic, err);
}

static int read_tablespaces(struct snapshot *snapshot, struct err *err)
{
    static const char sql[] = "SELECT oid::text, spcname, pg_tablespace_location(oid) "
                              "FROM pg_tablespace "
                              "WHERE pg_tablespace_location(oid) LIKE '/%' ORDER BY oid";
    struct record *record = &snapshot->record;
    free_json json_t *rows = NULL;
    int rc = pg_query(snapshot->session, sql, NULL, 0, &rows, err);
    if (rc < 0)
        return rc;
    if (json_array_size(rows) > RECORD_TABLESPACES_MAX)
        return err_set(err, ERR_REFUSED, "more than %d tablespaces", RECORD_TABLESPACES_MAX);
    record->tablespaces = calloc(json_array_size(rows) + 1, sizeof(*record->tablespaces));
    if (!record->tablespaces)
        return err_set(err, ERR_INTERNAL, "out of memory for tablespaces");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        struct record_tablespace *to = &record->tablespaces[record->tablespace_count++];
        to->oid = (uint32_t)strtoul(cell(rows, i, 0), NULL, 10);
        (void)snprintf(to->name, sizeof(to->name), "%s", cell(rows, i, 1));
        rc = snprintf(to->location, sizeof(to->location), "%s", cell(rows, i, 2));
        if (rc < 0 || (size_t)rc >= sizeof(to->location))
            return err_set(err, ERR_REFUSED, "tablespace %s: path too long", to->name);
    }
    return 0;
}

/* This node of the topology (DESIGN §7): slots and standbys are lost by a restore, which says so.
 */
static int read_topology(struct snapshot *snapshot, struct err *err)
{
    static const char slots_sql[] = "SELECT slot_name, slot_type, coalesce(plugin, ''), "
                                    "coalesce(database, '') FROM pg_replication_slots "
                                    "WHERE NOT temporary ORDER BY 1";
    static const char standbys_sql[] =
        "SELECT application_name, coalesce(client_addr::text, ''), state, sync_state "
        "FROM pg_stat_replication ORDER BY 1";
    free_json json_t *slots = NULL, *standbys = NULL;
    int rc = pg_query(snapshot->session, slots_sql, NULL, 0, &slots, err);
    if (rc == 0)
        rc = pg_query(snapshot->session, standbys_sql, NULL, 0, &standbys, err);
    if (rc < 0)
        return rc;
    snapshot->record.topology =
        json_pack("{s:[{s:s,s:s,s:O,s:O}]}", "nodes", "node", snapshot->record.node, "role",
                  snapshot->primary ? "standby" : "primary", "slots", slots, "standbys", standbys);
    json_t *members = json_object_get(snapshot->job->request, "members");
    if (members) /* what the coordinator asked of every node */
        (void)json_object_set(snapshot->record.topology, "members", members);
    return snapshot->record.topology ? 0 : err_set(err, ERR_INTERNAL, "build the topology");
}

/* The account that owns the data directory: what the restored files must belong to. */
static int read_owner(struct snapshot *snapshot, struct err *err)
{
    struct record *record = &snapshot->record;
    struct stat st;
    if (stat(record->data_directory, &st) < 0)
        return err_sys(err, ERR_DEVICE, "stat '%s'", record->data_directory);
    record->os_uid = st.st_uid;
    record->os_gid = st.st_gid;
    const struct passwd *account = getpwuid(st.st_uid);
    (void)snprintf(record->os_user, sizeof(record->os_user), "%s",
                   account ? account->pw_name : snapshot->conf->os_user);
    return 0;
}

static int read_paths(struct snapshot *snapshot, struct err *err)
{
    struct record *record = &snapshot->record;
    char pg_wal[PATH_MAX];
    free_json json_t *rows = NULL;
    (void)snprintf(pg_wal, sizeof(pg_wal), "%s/pg_wal", record->data_directory);
    int rc = snapshot_resolve(pg_wal, record->wal_directory, sizeof(record->wal_directory), err);
    if (rc == 0)
        rc = read_owner(snapshot, err);
    if (rc == 0)
        rc = snapshot_query_row(snapshot->session,
                                "SELECT setting FROM pg_config WHERE name = 'BINDIR'", NULL, 1,
                                &rows, err);
    if (rc < 0)
        return rc;
    (void)snprintf(record->bin_directory, sizeof(record->bin_directory), "%s", cell(rows, 0, 0));
    /* The first of the list is the one that clients try. */
    const char *sockets = setting(snapshot, "unix_socket_directories");
    (void)snprintf(record->socket_directory, sizeof(record->socket_directory), "%.*s",
                   (int)strcspn(sockets, ","), sockets);
    return 0;
}

static int read_facts(struct snapshot *snapshot, struct err *err)
{
    struct record *record = &snapshot->record;
    record->online = true;
    record->archived = !snapshot->request.no_archive;
    record->wal_in_image = snapshot->request.no_archive || snapshot->request.with_wal;
    record->pg_version_num = setting_u32(snapshot, "server_version_num");
    (void)snprintf(record->pg_version, sizeof(record->pg_version), "%s",
                   setting(snapshot, "server_version"));
    record->segment_size = setting_u32(snapshot, "wal_segment_size");
    record->block_size = setting_u32(snapshot, "block_size");
    record->data_checksums = strcmp(setting(snapshot, "data_checksums"), "on") == 0;
    record->port = (uint16_t)setting_u32(snapshot, "port");
    int rc =
        read_identity(snapshot, snapshot->identity, &record->system_id, &record->timeline, err);
    if (rc == 0)
        rc = read_paths(snapshot, err);
    if (rc == 0)
        rc = read_tablespaces(snapshot, err);
    if (rc == 0)
        rc = read_config_files(snapshot, err);
    if (rc == 0)
        rc = read_topology(snapshot, err);
    return rc;
}

int snapshot_pg_read_places(struct snapshot *snapshot, struct err *err)
{
    int rc = read_settings(snapshot, err);
    if (rc == 0)
        rc = check_directory(snapshot, err);
    if (rc == 0)
        rc = read_paths(snapshot, err);
    if (rc == 0)
        rc = read_tablespaces(snapshot, err);
    return rc;
}

int snapshot_pg_open(struct snapshot *snapshot, struct err *err)
{
    int rc = pg_open(snapshot->conf, NULL, &snapshot->session, err);
    if (rc < 0)
        return rc;
    pg_set_cancel(snapshot->session, &snapshot->job->progress.cancel);
    rc = read_settings(snapshot, err);
    if (rc == 0)
        rc = check_version(snapshot, err);
    if (rc == 0)
        rc = check_directory(snapshot, err);
    if (rc == 0)
        rc = check_role(snapshot, err);
    if (rc == 0)
        rc = check_archiving(snapshot, err);
    if (rc == 0)
        rc = read_facts(snapshot, err);
    return rc;
}

/* --- backup mode ------------------------------------------------------------------------------ */

/* Switches the WAL and waits for a checkpoint: at once when it is fast, up to checkpoint_timeout ×
 * checkpoint_completion_target when it is spread. Of a standby: see snapshot_standby.c. */
int snapshot_pg_start_backup(struct snapshot *snapshot, struct err *err)
{
    char label[128];
    free_json json_t *rows = NULL;
    int rc = snapshot_phase(snapshot, "checkpoint", err);
    if (rc == 0 && snapshot->primary)
        rc = snapshot_standby_catch_up(snapshot, err);
    if (rc < 0)
        return rc;
    (void)snprintf(label, sizeof(label), "tidemark %s@%s", snapshot->request.tag,
                   snapshot->id_text);
    const char *params[] = {label, snapshot->request.checkpoint_fast ? "true" : "false", NULL};
    rc = snapshot_query_row(snapshot->session, "SELECT pg_backup_start($1, $2::boolean)", params, 1,
                            &rows, err);
    if (rc == 0)
        rc = snapshot_parse_lsn(cell(rows, 0, 0), &snapshot->record.start_lsn, err);
    return rc == 0 && snapshot->primary ? snapshot_standby_check_start(snapshot, err) : rc;
}

/* The tag: a restore point whose name is unique for ever, because recovery stops at the first match
 * (at most 63 bytes: 30 of the tag, @, 32 of the id). The switch closes its segment, so that it can
 * be archived now. */
static int make_restore_point(struct snapshot *snapshot, struct err *err)
{
    struct record *record = &snapshot->record;
    struct pg_session *writer = snapshot_writer(snapshot);
    free_json json_t *rows = NULL, *switched = NULL;
    (void)snprintf(record->restore_point, sizeof(record->restore_point), "%s@%s", record->tag,
                   snapshot->id_text);
    const char *params[] = {record->restore_point, NULL};
    int rc =
        snapshot_query_row(writer, "SELECT pg_create_restore_point($1)", params, 1, &rows, err);
    if (rc == 0)
        rc = snapshot_parse_lsn(cell(rows, 0, 0), &record->tag_lsn, err);
    /* A statement of its own: in one transaction with the point, the switch could come first. */
    if (rc == 0)
        rc = snapshot_query_row(writer, "SELECT pg_switch_wal()", NULL, 1, &switched, err);
    return rc == 0 && snapshot->primary ? snapshot_standby_prove_tag(snapshot, err) : rc;
}

/* Recovery to a time ends at what the writer's clock said: a standby's own may differ. */
static int read_clock(struct snapshot *snapshot, struct err *err)
{
    static const char sql[] =
        "SELECT trunc(extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text";
    free_json json_t *rows = NULL;
    int rc = snapshot_query_row(snapshot_writer(snapshot), sql, NULL, 1, &rows, err);
    if (rc == 0)
        snapshot->record.stopped_us = strtoll(cell(rows, 0, 0), NULL, 10);
    return rc;
}

int snapshot_pg_stop_backup(struct snapshot *snapshot, struct err *err)
{
    struct record *record = &snapshot->record;
    free_json json_t *rows = NULL;
    int rc = snapshot_phase(snapshot, "stopping backup", err);
    if (rc == 0)
        rc = snapshot_query_row(snapshot->session,
                                "SELECT lsn::text, labelfile, spcmapfile "
                                "FROM pg_backup_stop(wait_for_archive => false)",
                                NULL, 2, &rows, err);
    if (rc == 0)
        rc = snapshot_parse_lsn(cell(rows, 0, 0), &record->stop_lsn, err);
    if (rc == 0)
        rc = read_clock(snapshot, err);
    if (rc < 0)
        return rc;
    record->backup_label = strdup(cell(rows, 0, 1));
    record->tablespace_map = strdup(cell(rows, 0, 2) ? cell(rows, 0, 2) : "");
    if (!record->backup_label || !record->tablespace_map)
        abort();
    record->tag_lsn = record->stop_lsn;
    return record->archived ? make_restore_point(snapshot, err) : 0;
}
