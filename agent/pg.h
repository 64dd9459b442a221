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

struct pg_session;

/* Connects with conf->connection (dbname=postgres unless given; dbname overrides it when not
 * NULL), application_name tidemark, statement_timeout 0, idle_session_timeout 0,
 * synchronous_commit=local, search_path=pg_catalog. ERR_POSTGRES. */
int pg_open(const struct conf *conf, const char *dbname, struct pg_session **ret, struct err *err);

/* Runs one statement; params are text, NULL-ended list (may be NULL). ret_rows: new reference to an
 * array of arrays of string|null; may be NULL. timeout_s 0 = none. */
int pg_query(struct pg_session *session, const char *sql, const char *const *params,
             unsigned timeout_s, json_t **ret_rows, struct err *err);

/* One row, one column, as malloc'ed text (NULL for SQL null). */
int pg_query_text(struct pg_session *session, const char *sql, const char *const *params,
                  char **ret, struct err *err);

void pg_close(struct pg_session *session);

/* The child's main(). */
int pg_session_main(int argc, char **argv);

/* --- server control (conf->manager) ---------------------------------------------------------- */
enum pg_state { PG_STOPPED, PG_STARTING, PG_RUNNING };

/* From postmaster.pid and the process it names (state Z counts as gone). */
int pg_server_state(const struct conf *conf, enum pg_state *ret, int *ret_pid, struct err *err);
/* Fast stop; waits until the process is gone (start_timeout_s), then ERR_POSTGRES. */
int pg_server_stop(const struct conf *conf, struct err *err);
/* Starts; returns as soon as the postmaster is there: the caller follows recovery itself, because
 * pg_ctl's word is not trusted (FACTS). extra: "-c name=value" options for this start, NULL-ended,
 * may be NULL; ERR_CONFIG with managers that cannot pass them. */
int pg_server_start(const struct conf *conf, const char *const *extra, struct err *err);
/* Runs a program of bin_directory as os_user; output is malloc'ed text when ret_output. */
int pg_run(const struct conf *conf, const char *const *argv, char **ret_output, struct err *err);

/* --- pg_control ------------------------------------------------------------------------------ */
struct pg_control {
    uint64_t system_id;
    uint32_t control_version, catalog_version;
    uint32_t timeline;
    uint64_t checkpoint_lsn, redo_lsn, min_recovery_lsn;
    uint32_t segment_size, block_size;
    char state[48]; /* "in production", "shut down", … */
    bool checksums;
};
/* Reads <data_directory>/global/pg_control through pg_controldata. */
int pg_control_read(const struct conf *conf, const char *data_directory, struct pg_control *ret,
                    struct err *err);

/* --- LSN and names --------------------------------------------------------------------------- */
bool pg_lsn_parse(const char *text, uint64_t *ret);
void pg_lsn_format(uint64_t lsn, char text[24]);
void pg_segment_name(uint32_t timeline, uint64_t segment_number, uint32_t segment_size,
                     char name[25]);
/* True for 24 upper-case hex digits; fills timeline and segment number. */
bool pg_segment_parse(const char *name, uint32_t segment_size, uint32_t *ret_timeline,
                      uint64_t *ret_segment);

#endif
