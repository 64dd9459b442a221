/* Is what came back a good database? `quick` asks the server who it is and reads the catalogues of
 * every database; `standard` adds page-checksum failures, invalid indexes, and amcheck of every
 * heap and B-tree; `full` compares every heap tuple with its indexes. A start that succeeds proves
 * little: data newer than its WAL starts clean, and only amcheck sees it (FACTS).
 *
 * Sessions run with synchronous_commit=local (agent/pg), because the first commit of a restored
 * primary would otherwise wait for a standby that is not there; and with a lock_timeout, because a
 * prepared transaction that survived may hold any lock. */
#include "agent/restore.h"
#include "agent/log.h"
#include "agent/pg.h"
#include "agent/verify.h"

#include <stdio.h>

enum { QUERY_TIMEOUT_S = 0 };

/* --- quick ------------------------------------------------------------------------------------ */

static int ask_text(struct verify *verify, const char *sql, char *ret, size_t size, struct err *err)
{
    free_mem char *text = NULL;
    int rc = pg_query_text(verify->session, sql, NULL, &text, err);
    if (rc == 0)
        (void)snprintf(ret, size, "%s", text ? text : "");
    return rc;
}

static int check_identity(struct verify *verify, struct err *err)
{
    char system[32], lsn_text[32], want[32], recovering[8];
    uint64_t lsn = 0;
    const struct record *record = verify->record;
    int rc = ask_text(verify, "select system_identifier::text from pg_control_system()", system,
                      sizeof(system), err);
    if (rc == 0)
        rc = ask_text(verify, "select pg_is_in_recovery()::text", recovering, sizeof(recovering),
                      err);
    verify->writable = rc == 0 && strcmp(recovering, "false") == 0;
    if (rc == 0)
        rc = ask_text(verify,
                      verify->writable ? "select pg_current_wal_lsn()::text"
                                       : "select pg_last_wal_replay_lsn()::text",
                      lsn_text, sizeof(lsn_text), err);
    if (rc < 0)
        return rc;
    (void)snprintf(want, sizeof(want), "%llu", (unsigned long long)record->system_id);
    json_object_set_new(verify->result, "system_id", json_string(system));
    json_object_set_new(verify->result, "lsn", json_string(lsn_text));
    json_object_set_new(verify->result, "writable", json_boolean(verify->writable));
    if (strcmp(system, want) != 0)
        return err_set(err, ERR_POSTGRES, "the server's system identifier is %s, the snapshot's %s",
                       system, want);
    if (!pg_lsn_parse(lsn_text, &lsn) || lsn < record->stop_lsn)
        return err_set(err, ERR_POSTGRES, "the server is at %s, before the snapshot's end",
                       lsn_text);
    return 0;
}

/* Sequential scans, so that the heap is read and not only an index. */
static int read_catalogues(struct verify *verify, struct err *err)
{
    static const char sql[] =
        "select (select count(*) from pg_class) + (select count(*) from pg_attribute) + "
        "(select count(*) from pg_proc) + (select count(*) from pg_type) + "
        "(select count(*) from pg_index) + (select count(*) from pg_namespace)";
    free_mem char *count = NULL;
    int rc = pg_query(verify->session, "set enable_indexonlyscan = off", NULL, 0, NULL, err);
    return rc < 0 ? rc : pg_query_text(verify->session, sql, NULL, &count, err);
}

/* --- standard --------------------------------------------------------------------------------- */

int verify_count_failures(struct verify *verify, long long *ret, struct err *err)
{
    char count[32];
    int rc =
        ask_text(verify, "select coalesce(sum(checksum_failures), 0)::text from pg_stat_database",
                 count, sizeof(count), err);
    if (rc == 0)
        *ret = atoll(count);
    return rc;
}

/* Those that amcheck met have their names already: an index that is rebuilt by now, also by hand
 * between two runs, or an error. */
static int check_checksums(struct verify *verify, struct err *err)
{
    long long failures = 0;
    int rc = verify_count_failures(verify, &failures, err);
    if (rc < 0)
        return rc;
    json_object_set_new(verify->result, "checksum_failures", json_integer(failures));
    if (failures > verify->amcheck_failures)
        return err_set(err, ERR_CORRUPT, "the server counted %lld page-checksum failures",
                       failures);
    return 0;
}

/* Prepared transactions survive a restore and keep their locks; say so. */
static int list_prepared(struct verify *verify, struct err *err)
{
    char count[32];
    int rc =
        ask_text(verify, "select count(*)::text from pg_prepared_xacts", count, sizeof(count), err);
    if (rc == 0 && atoll(count) > 0) {
        json_object_set_new(verify->result, "prepared_transactions", json_integer(atoll(count)));
        log_warn("%s prepared transactions survived: commit or roll them back", count);
    }
    return rc;
}

static int each_invalid_index(struct verify *verify, const char *dbname, struct err *err)
{
    static const char sql[] =
        "select format('%I.%I', n.nspname, c.relname) from pg_index i "
        "join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace "
        "where (not i.indisvalid or not i.indisready) and c.relkind = 'i' "
        "and c.relpersistence <> 't' order by 1";
    free_json json_t *rows = NULL;
    int rc = pg_query(verify->session, sql, NULL, QUERY_TIMEOUT_S, &rows, err);
    for (size_t i = 0; rc == 0 && i < json_array_size(rows); i++) {
        const char *index = json_string_value(json_array_get(json_array_get(rows, i), 0));
        rc = verify_add_index(verify, dbname, index ? index : "", "invalid", err);
    }
    return rc;
}

/* --- databases -------------------------------------------------------------------------------- */

int verify_each_database(struct verify *verify,
                         int (*each)(struct verify *, const char *dbname, struct err *err),
                         struct err *err)
{
    free_json json_t *rows = NULL;
    struct pg_session *outer = verify->session;
    int rc = pg_query(outer, "select datname from pg_database where datallowconn order by 1", NULL,
                      0, &rows, err);
    for (size_t i = 0; rc == 0 && i < json_array_size(rows); i++) {
        const char *dbname = json_string_value(json_array_get(json_array_get(rows, i), 0));
        rc = pg_open(verify->conf, dbname, &verify->session, err);
        if (rc < 0)
            break;
        pg_set_cancel(verify->session, verify->cancel);
        rc = pg_query(verify->session, "set lock_timeout = '30s'", NULL, 0, NULL, err);
        if (rc == 0)
            rc = each(verify, dbname, err);
        pg_close(verify->session);
        if (rc < 0)
            (void)err_prefix(err, "database '%s'", dbname);
    }
    verify->session = outer;
    return rc;
}

static int each_quick(struct verify *verify, const char *dbname, struct err *err)
{
    verify->database_count++;
    (void)dbname;
    return read_catalogues(verify, err);
}

static int run_standard(struct verify *verify, enum verify_level level, struct err *err)
{
    int rc = verify_each_database(verify, each_invalid_index, err);
    if (rc == 0)
        rc = verify_amcheck(verify, level == VERIFY_FULL, err);
    if (rc == 0)
        rc = check_checksums(verify, err);
    if (rc == 0)
        rc = list_prepared(verify, err);
    return rc;
}

static int run_levels(struct verify *verify, enum verify_level level, struct err *err)
{
    int rc = check_identity(verify, err);
    if (rc == 0)
        rc = verify_each_database(verify, each_quick, err);
    json_object_set_new(verify->result, "databases",
                        json_integer((json_int_t)verify->database_count));
    if (rc == 0) /* before amcheck, which would find what another order makes of an index */
        rc = verify_collations(verify, err);
    if (rc == 0 && level >= VERIFY_STANDARD)
        rc = run_standard(verify, level, err);
    return rc;
}

int verify_server(const struct conf *conf, const struct record *record, enum verify_level level,
                  bool reindex, const _Atomic bool *cancel, json_t *result, struct err *err)
{
    struct verify verify = {.conf = conf,
                            .record = record,
                            .reindex = reindex,
                            .cancel = cancel,
                            .result = result,
                            .indexes = json_array(),
                            .amcheck_failures =
                                json_integer_value(json_object_get(result, "amcheck_failures"))};
    json_object_set_new(result, "level", json_string(verify_level_name(level)));
    int rc = 0;
    if (level != VERIFY_NONE) {
        rc = pg_open(conf, NULL, &verify.session, err);
        if (rc == 0) {
            pg_set_cancel(verify.session, cancel);
            rc = run_levels(&verify, level, err);
        }
        pg_close(verify.session);
    }
    json_object_set(result, "indexes", verify.indexes);
    json_object_set_new(result, "amcheck_failures", json_integer(verify.amcheck_failures));
    json_object_set_new(result, "ok", json_boolean(rc == 0));
    json_decref(verify.indexes);
    return rc;
}

/* A server that was left shut down at its target cannot be asked. */
int restore_verify(struct restore *restore, struct err *err)
{
    json_t *journal = restore->job->journal, *result = json_object();
    json_t *earlier = json_object_get(json_object_get(journal, "verification"), "amcheck_failures");
    if (earlier) /* the server still counts them */
        json_object_set(result, "amcheck_failures", earlier);
    json_object_set_new(journal, "verification", result);
    enum pg_state state;
    int rc = pg_server_state(&restore->conf, &state, NULL, err);
    if (rc < 0)
        return rc;
    if (state == PG_STOPPED && restore->request.action == ACTION_SHUTDOWN) {
        json_object_set_new(result, "level", json_string("none"));
        return 0;
    }
    rc = verify_server(&restore->conf, &restore->record, restore->request.verify,
                       restore->request.reindex, &restore->job->progress.cancel, result, err);
    if (rc == 0)
        log_info("verification: level=%s ok", verify_level_name(restore->request.verify));
    return rc < 0 ? err_prefix(err, "verification") : 0;
}
