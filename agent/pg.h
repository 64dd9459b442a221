/* PostgreSQL: sessions through libpq (this module is the only one that includes it, and only in
 * the exec'd child), server control, pg_control, LSNs and segment names.
 *
 * A session is a child process `tidemark-agent pg-session` running as the server's own user, so
 * that peer authentication works and no PostgreSQL code runs as root. It is kept open for
 * pg_backup_start … pg_backup_stop. Parent and child speak one JSON value a line over pipes.
 * One thread. */
#ifndef TIDEMARK_AGENT_PG_H
#define TIDEMARK_AGENT_PG_H

#include "agent/conf.h"
#include "agent/json.h"
#include "agent/pg_names.h"

struct pg_session;

/* Once *cancel is true every later or running call on the session ends with ERR_CANCELLED; the
 * session is dead then and the server rolls back (an open pg_backup_start is aborted). */
void pg_set_cancel(struct pg_session *session, const _Atomic bool *cancel);

/* Connects with conf->connection (dbname=postgres unless given; dbname overrides it when not
 * NULL), application_name tidemark, statement_timeout 0, idle_session_timeout 0,
 * synchronous_commit=local, search_path=pg_catalog. ERR_POSTGRES. */
int pg_open(const struct conf *conf, const char *dbname, struct pg_session **ret, struct err *err);

/* The same with a standby's primary: conninfo in the place of conf->connection. */
int pg_open_primary(const struct conf *conf, const char *conninfo, const char *dbname,
                    struct pg_session **ret, struct err *err);

/* Runs one statement; params are text, NULL-ended list (may be NULL). ret_rows: new reference to an
 * array of arrays of string|null; may be NULL. timeout_s 0 = none. ERR_POSTGRES with the server's
 * message and SQLSTATE; a statement that times out is cancelled and the session stays usable. */
int pg_query(struct pg_session *session, const char *sql, const char *const *params,
             unsigned timeout_s, json_t **ret_rows, struct err *err);

/* One row, one column, as malloc'ed text (NULL for SQL null). No timeout. */
int pg_query_text(struct pg_session *session, const char *sql, const char *const *params,
                  char **ret, struct err *err);

/* Accepts NULL. */
void pg_close(struct pg_session *session);

/* --- a standby's way to its primary ---------------------------------------------------------- */
struct pg_conninfo {
    bool one_server;           /* it leads to one host, whatever role the server there has */
    char application_name[64]; /* "" = not given */
};
/* As libpq reads it, without a connection: ERR_CONFIG with libpq's reason when it cannot. */
int pg_conninfo_read(const char *conninfo, struct pg_conninfo *ret, struct err *err);

struct pg_tried {
    char system_id[24]; /* of the server that answered; "" = none did */
    char sqlstate[6];   /* with which a server refused; "" = libpq's own reason */
    char why[512];
};
/* Connects as a walreceiver of conf->os_user would, asks who is there, and leaves. An error only
 * when it could not be tried. */
int pg_try_replication(const struct conf *conf, const char *conninfo, unsigned timeout_s,
                       struct pg_tried *ret, struct err *err);

/* Who is there, at each host that conninfo names, or its service file, by itself: asked as a
 * walreceiver of conf->os_user, or else as anybody. Appends to servers {"host", "port", "answer":
 * "nobody" (nothing listens) | "standby" | "primary" | "own" | "unclear", "system_id" ("" = it did
 * not say), "text": why it is not clear, "local": of "nobody", whether this host was meant}; who
 * has answered there already is not asked again. by_own: a server of conf runs here, and a primary
 * that it finds itself to be is "own"; one with a text may be, but conf->connection does not tell.
 * ERR_CONFIG: libpq cannot read conninfo. */
int pg_ask_servers(const struct conf *conf, const char *conninfo, bool by_own, unsigned timeout_s,
                   json_t *servers, struct err *err);

/* The child's main(). */
int pg_session_main(int argc, char **argv);
/* Between the two: a line through the socket. False, with errno, when nobody listens any more. */
bool pg_send_line(int fd, const json_t *json);

/* --- server control (conf->manager) ---------------------------------------------------------- */
enum pg_state { PG_STOPPED, PG_STARTING, PG_RUNNING };

/* From postmaster.pid and the process it names (state Z counts as gone, and so does a process that
 * does not live in data_directory: the number was used again). PG_RUNNING: accepts connections.
 * PG_STARTING: there, but it does not (starting, recovering, stopping). *ret_pid is 0 when stopped;
 * ret_pid may be NULL. */
int pg_server_state(const struct conf *conf, enum pg_state *ret, int *ret_pid, struct err *err);
/* Fast stop; waits until the process is gone (start_timeout_s), then ERR_POSTGRES. It is never
 * killed harder than that. A server that is stopped already is fine. */
int pg_server_stop(const struct conf *conf, struct err *err);
/* Starts; returns as soon as the postmaster is there: the caller follows recovery itself, because
 * pg_ctl's word is not trusted (FACTS). extra: "name=value" settings for this start only (-c),
 * NULL-ended, may be NULL; ERR_CONFIG with managers that cannot pass them. A server that is there
 * already: ERR_BUSY. */
int pg_server_start(const struct conf *conf, const char *const *extra, struct err *err);
/* manager = pg_ctl, and patroni: nothing is started or stopped while Patroni itself runs, so it is
 * us who do. */
bool pg_uses_pg_ctl(const struct conf *conf);
/* Where the server's messages go then. */
void pg_server_log(const struct conf *conf, char path[CONF_PATH_MAX + 1]);

/* Runs a program of bin_directory (argv[0] is its name) as os_user with LC_ALL=C; output is
 * malloc'ed text when ret_output is not NULL. A status other than 0 is ERR_POSTGRES. */
int pg_run(const struct conf *conf, const char *const *argv, char **ret_output, struct err *err);
/* The same, for programs whose status and output are the answer (pg_amcheck): only a program that
 * cannot be run, is killed or is cancelled is an error. errors (size bytes, may be NULL) gets the
 * end of stderr. options: for PGOPTIONS, may be NULL; cancel may be NULL. */
int pg_run_status(const struct conf *conf, const char *const *argv, const char *options,
                  const _Atomic bool *cancel, int *ret_status, char **ret_output, char *errors,
                  size_t size, struct err *err);

/* --- pg_control ------------------------------------------------------------------------------ */
struct pg_control {
    uint64_t system_id;
    uint32_t control_version, catalog_version;
    uint32_t timeline;
    uint64_t checkpoint_lsn, redo_lsn, min_recovery_lsn;
    uint32_t segment_size, block_size;
    char state[48]; /* "in production", "shut down", … */
    bool checksums;
    /* What a standby or a recovery must not go below. */
    uint32_t max_connections, max_worker_processes, max_wal_senders, max_prepared_xacts,
        max_locks_per_xact;
};
/* Reads <data_directory>/global/pg_control through pg_controldata. ERR_CORRUPT when its checksum is
 * wrong (pg_controldata only warns). */
int pg_control_read(const struct conf *conf, const char *data_directory, struct pg_control *ret,
                    struct err *err);
/* Output of pg_controldata (LC_ALL=C) as it is read above; false when a line is missing or no such
 * number. Pure. */
bool pg_control_parse(const char *text, struct pg_control *ret);

#endif
