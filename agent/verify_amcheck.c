/* amcheck through pg_amcheck, which opens one session a job. It needs the extension: databases that
 * have none get it for the check and lose it again. On a hot standby nothing can be created, so
 * there only databases that have it already are checked, and the result says so.
 *
 * Its report is text: 'btree index "db.schema.name":' and 'heap table "db.schema.name", block …',
 * each followed by indented lines (src/bin/pg_amcheck/pg_amcheck.c). Indexes can be rebuilt from
 * their heap; a heap cannot. */
#include "agent/log.h"
#include "agent/pg.h"
#include "agent/verify.h"

#include <stdio.h>

enum { LOCK_TIMEOUT_S = 10 };

/* --- the extension ---------------------------------------------------------------------------- */

static int each_prepare(struct verify *verify, const char *dbname, struct err *err)
{
    free_mem char *there = NULL;
    int rc = pg_query_text(verify->session,
                           "select count(*)::text from pg_extension where extname = 'amcheck'",
                           NULL, &there, err);
    if (rc < 0)
        return rc;
    if (there && strcmp(there, "0") != 0) {
        json_array_append_new(verify->amcheck_have, json_string(dbname));
        return 0;
    }
    if (!verify->writable) {
        verify->amcheck_missing++;
        return 0;
    }
    /* Noted first: what a failure leaves behind is removed as well. */
    json_array_append_new(verify->amcheck_added, json_string(dbname));
    json_array_append_new(verify->amcheck_have, json_string(dbname));
    return pg_query(verify->session, "create extension amcheck with schema pg_catalog", NULL, 0,
                    NULL, err);
}

static int each_remove(struct verify *verify, const char *dbname, struct err *err)
{
    for (size_t i = 0; i < json_array_size(verify->amcheck_added); i++)
        if (strcmp(json_string_value(json_array_get(verify->amcheck_added, i)), dbname) == 0)
            return pg_query(verify->session, "drop extension if exists amcheck", NULL, 0, NULL,
                            err);
    return 0;
}

/* --- rebuilding ------------------------------------------------------------------------------- */

int verify_add_index(struct verify *verify, const char *dbname, const char *index, const char *why,
                     struct err *err)
{
    char sql[512];
    json_t *item = json_object();
    json_object_set_new(item, "database", json_string(dbname));
    json_object_set_new(item, "index", json_string(index));
    json_object_set_new(item, "why", json_string(why));
    json_object_set_new(item, "rebuilt", json_false());
    json_array_append_new(verify->indexes, item);
    if (!verify->reindex || !verify->writable) {
        (void)err_set(err, ERR_CORRUPT, "index %s in database '%s' is damaged: %s", index, dbname,
                      why);
        return err_hint(err,
                        verify->writable ? "rebuild it: REINDEX INDEX %s, or restore with "
                                           "--reindex=auto"
                                         : "the server is in recovery; promote it, then "
                                           "REINDEX INDEX %s",
                        index);
    }
    log_warn("rebuilding index: database=%s index=%s why=\"%s\"", dbname, index, why);
    (void)snprintf(sql, sizeof(sql), "reindex index %s", index);
    int rc = pg_query(verify->session, sql, NULL, 0, NULL, err);
    if (rc < 0)
        return err_prefix(err, "rebuild index %s in database '%s'", index, dbname);
    json_object_set_new(item, "rebuilt", json_true());
    return 0;
}

/* --- the report ------------------------------------------------------------------------------- */

struct finding {
    bool is_index;
    char database[64], schema[64], name[64];
    char detail[256];
};

/* Names in the report are not quoted, so one with a dot is ambiguous: it is looked up whole. */
static bool parse_finding(const char *line, struct finding *ret)
{
    static const char index_word[] = "btree index \"", heap_word[] = "heap table \"";
    memset(ret, 0, sizeof(*ret));
    ret->is_index = strncmp(line, index_word, sizeof(index_word) - 1) == 0;
    if (!ret->is_index && strncmp(line, heap_word, sizeof(heap_word) - 1) != 0)
        return false;
    const char *name = strchr(line, '"') + 1;
    return sscanf(name, "%63[^.].%63[^.].%63[^\"]", ret->database, ret->schema, ret->name) == 3;
}

static int quote_index(struct verify *verify, const struct finding *finding, char *ret, size_t size,
                       struct err *err)
{
    const char *params[] = {finding->schema, finding->name, NULL};
    free_mem char *text = NULL;
    int rc = pg_query_text(verify->session, "select format('%I.%I', $1::text, $2::text)", params,
                           &text, err);
    if (rc == 0)
        (void)snprintf(ret, size, "%s", text ? text : "");
    return rc;
}

/* Not damage, and not checked: somebody (a prepared transaction of the snapshot, for one) holds a
 * lock that conflicts with reading. */
static int refuse_locked(const struct finding *finding, struct err *err)
{
    (void)err_set(err, ERR_BUSY, "amcheck: %s %s.%s in database '%s' is locked: not checked",
                  finding->is_index ? "index" : "table", finding->schema, finding->name,
                  finding->database);
    return err_hint(err, "end what holds the lock (pg_locks, pg_prepared_xacts), then verify again "
                         "with `tidemark restore --resume`");
}

static int handle_finding(struct verify *verify, const struct finding *finding, struct err *err)
{
    if (strstr(finding->detail, "due to lock timeout"))
        return refuse_locked(finding, err);
    if (!finding->is_index) {
        (void)err_set(err, ERR_CORRUPT, "amcheck: table %s.%s in database '%s' is damaged: %s",
                      finding->schema, finding->name, finding->database, finding->detail);
        return err_hint(err, "restore another snapshot, or another target");
    }
    struct pg_session *outer = verify->session;
    char index[160];
    int rc = pg_open(verify->conf, finding->database, &verify->session, err);
    if (rc == 0) {
        rc = quote_index(verify, finding, index, sizeof(index), err);
        if (rc == 0)
            rc = verify_add_index(verify, finding->database, index, finding->detail, err);
        pg_close(verify->session);
    }
    verify->session = outer;
    return rc;
}

/* Every relation with findings once; the first line below it is its detail. */
static int handle_report(struct verify *verify, char *report, struct err *err)
{
    struct finding last = {0}, finding;
    char *state = NULL;
    bool open = false;
    int rc = 0;
    for (char *line = strtok_r(report, "\n", &state); rc == 0 && line;
         line = strtok_r(NULL, "\n", &state)) {
        if (parse_finding(line, &finding)) {
            bool same = strcmp(finding.name, last.name) == 0 &&
                        strcmp(finding.schema, last.schema) == 0 &&
                        strcmp(finding.database, last.database) == 0;
            open = !same;
            last = finding;
        } else if (open) {
            (void)snprintf(last.detail, sizeof(last.detail), "%s", line + strspn(line, " "));
            rc = handle_finding(verify, &last, err);
            open = false;
        }
    }
    return rc;
}

/* --- the run ---------------------------------------------------------------------------------- */

/* A value of a conninfo string: ' and \ are escaped (libpq, "Connection Strings"). */
static void quote_value(const char *value, char *ret, size_t size)
{
    size_t len = 0;
    for (const char *c = value; *c && len + 2 < size; c++) {
        if (*c == '\'' || *c == '\\')
            ret[len++] = '\\';
        ret[len++] = *c;
    }
    ret[len] = '\0';
}

/* A check must not hang behind a lock for ever. The messages are looked through for that, so they
 * have to be in English, which only a superuser may ask for. */
static int session_options(struct verify *verify, char *ret, size_t size, struct err *err)
{
    free_mem char *superuser = NULL;
    int rc = pg_query_text(verify->session, "select current_setting('is_superuser')", NULL,
                           &superuser, err);
    if (rc == 0)
        (void)snprintf(ret, size, "-c lock_timeout=%ds%s", LOCK_TIMEOUT_S,
                       superuser && strcmp(superuser, "on") == 0 ? " -c lc_messages=C" : "");
    return rc;
}

static int run_database(struct verify *verify, const char *dbname, bool full, int *ret_status,
                        char **ret_report, struct err *err)
{
    char jobs[24], quoted[160], connection[CONF_PATH_MAX + 240], options[80], errors[512];
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    (void)snprintf(jobs, sizeof(jobs), "--jobs=%ld", cores > 0 ? cores : 1);
    /* A conninfo string as database name; the last dbname in it wins (libpq). */
    quote_value(dbname, quoted, sizeof(quoted));
    (void)snprintf(connection, sizeof(connection), "%s dbname='%s'", verify->conf->connection,
                   quoted);
    const char *argv[] = {"pg_amcheck", jobs, full ? "--heapallindexed" : "--no-strict-names",
                          connection, NULL};
    int rc = session_options(verify, options, sizeof(options), err);
    if (rc == 0)
        rc = pg_run_status(verify->conf, argv, options, verify->cancel, ret_status, ret_report,
                           errors, sizeof(errors), err);
    /* 2 = found corruption (pg_amcheck.c); anything else that is not 0 is a failure to check. */
    if (rc == 0 && *ret_status != 0 && *ret_status != 2)
        rc = err_set(err, ERR_POSTGRES, "pg_amcheck of database '%s' ended with status %d: %s",
                     dbname, *ret_status, errors);
    return rc;
}

/* With rebuilt indexes once more: then there must be nothing left. */
static int check_database(struct verify *verify, const char *dbname, bool full, struct err *err)
{
    for (int round = 0; round < 2; round++) {
        free_mem char *report = NULL;
        long long before = 0, after = 0;
        int status = 0;
        int rc = verify_count_failures(verify, &before, err);
        if (rc == 0)
            rc = run_database(verify, dbname, full, &status, &report, err);
        if (rc < 0 || status == 0)
            return rc;
        rc = verify_count_failures(verify, &after, err);
        if (rc == 0)
            verify->amcheck_failures += after - before;
        if (rc == 0)
            rc = handle_report(verify, report, err);
        if (rc < 0)
            return rc;
    }
    return err_set(err, ERR_CORRUPT, "amcheck still finds damage in database '%s'", dbname);
}

int verify_amcheck(struct verify *verify, bool full, struct err *err)
{
    verify->amcheck_have = json_array();
    verify->amcheck_added = json_array();
    struct err ignored;
    int rc = verify_each_database(verify, each_prepare, err);
    for (size_t i = 0; rc == 0 && i < json_array_size(verify->amcheck_have); i++)
        rc = check_database(verify, json_string_value(json_array_get(verify->amcheck_have, i)),
                            full, err);
    if (json_array_size(verify->amcheck_added) > 0 &&
        verify_each_database(verify, each_remove, &ignored) < 0)
        log_warn("the extension amcheck was left behind: %s", ignored.text);
    json_object_set_new(verify->result, "amcheck_databases",
                        json_integer((json_int_t)json_array_size(verify->amcheck_have)));
    if (verify->amcheck_missing > 0) {
        log_warn("%zu databases have no amcheck and are in recovery: not checked",
                 verify->amcheck_missing);
        json_object_set_new(verify->result, "not_checked",
                            json_integer((json_int_t)verify->amcheck_missing));
    }
    json_decref(verify->amcheck_have);
    json_decref(verify->amcheck_added);
    return rc;
}
