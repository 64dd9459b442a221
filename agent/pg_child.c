/* `tidemark-agent pg-session`: one libpq connection behind JSON lines on stdin and stdout (one
 * socket). A process of its own, because libpq must not run as root (peer authentication, passfile
 * of the server's user) nor beside the agent's threads.
 *
 *     → {"user":"postgres","connection":"host=…","dbname":null}         (first line)
 *     ← {"ok":true,"version":150020}
 *     → {"sql":"select $1","params":["x"],"timeout_s":0}
 *     ← {"ok":true,"rows":[["x"]]}     or {"ok":false,"error":"…","lost":false}
 *
 * A first line with "mode" has one answer, and then the child ends: see pg_try.c.
 *
 * Everything comes through the pipe: conninfo in argv would be readable by every user. The end of
 * the parent is EOF on stdin; it is watched during statements too, and then the statement is
 * cancelled: a backup session must not outlive the job that wants it. (PR_SET_PDEATHSIG would not
 * do: it fires when the forking thread ends, and setuid clears it.) */
#include "agent/pg.h"
#include "agent/pg_child.h"
#include "agent/process.h"
#include "agent/clock.h"

#include <errno.h>
#include <grp.h>
#include <libpq-fe.h>
#include <poll.h>
#include <stdio.h>
#include <time.h>

enum { LINE_MAX_LEN = 64 << 20 };

struct line_reader {
    char *buf;
    size_t len, size, used; /* used: length of the line handed out last */
};

/* Next line without its newline; NULL at the end of the parent. */
static char *read_line(struct line_reader *reader)
{
    memmove(reader->buf, reader->buf + reader->used, reader->len - reader->used);
    reader->len -= reader->used;
    reader->used = 0;
    for (size_t searched = 0;;) {
        char *end = memchr(reader->buf + searched, '\n', reader->len - searched);
        if (end) {
            *end = '\0';
            reader->used = (size_t)(end - reader->buf) + 1;
            return reader->buf;
        }
        searched = reader->len;
        if (reader->size - reader->len < 4096) {
            if (reader->size >= LINE_MAX_LEN)
                return NULL;
            reader->size *= 2;
            reader->buf = realloc(reader->buf, reader->size);
            if (!reader->buf)
                abort();
        }
        ssize_t len = read(STDIN_FILENO, reader->buf + reader->len, reader->size - reader->len);
        if (len < 0 && errno == EINTR)
            continue;
        if (len <= 0)
            return NULL;
        reader->len += (size_t)len;
    }
}

/* False when nobody listens any more. */
static bool reply(json_t *json)
{
    bool sent = pg_send_line(STDOUT_FILENO, json);
    json_decref(json);
    return sent;
}

/* libpq's text comes in the server's encoding until the connection is up, and as raw bytes from a
 * SQL_ASCII database: what is not UTF-8 becomes '?'. */
json_t *pg_child_text(const char *text, size_t len)
{
    json_t *json = json_stringn(text, len);
    if (json)
        return json;
    char *plain = malloc(len + 1);
    if (!plain)
        abort();
    for (size_t i = 0; i < len; i++)
        plain[i] = (unsigned char)text[i] < 0x80 ? text[i] : '?';
    json = json_stringn(plain, len);
    free(plain);
    return json;
}

json_t *pg_child_failure(const char *message, const char *sqlstate, bool lost)
{
    size_t len = strlen(message);
    while (len > 0 && strchr("\n ", message[len - 1]))
        len--;
    json_t *json = json_pack("{s:b, s:o, s:b}", "ok", 0, "error", pg_child_text(message, len),
                             "lost", (int)lost);
    if (sqlstate)
        json_object_set_new(json, "sqlstate", json_string(sqlstate));
    return json;
}

/* libpq repeats words that it does not understand: one of them may be a part of a password, which
 * in a URI has no name. */
json_t *pg_child_unreadable(const char *conninfo, const char *why)
{
    if (strcasestr(conninfo, "password") || strcasestr(conninfo, "secret") ||
        strstr(conninfo, "://"))
        why = "libpq cannot read it (its words are not shown: there may be a password in it)";
    return pg_child_failure(why ? why : "out of memory", NULL, true);
}

/* Becomes the server's user, for good. A plain process with one thread: glibc's calls are fine. */
static bool become(const char *user, char *ret_why, size_t size)
{
    if (geteuid() != 0 || !*user)
        return true;
    uid_t uid;
    gid_t gid;
    char home[256];
    struct err err;
    if (process_user(user, &uid, &gid, home, &err) < 0) {
        (void)snprintf(ret_why, size, "%s", err.text);
        return false;
    }
    if (setgroups(0, NULL) < 0 || initgroups(user, gid) < 0 || setresgid(gid, gid, gid) < 0 ||
        setresuid(uid, uid, uid) < 0) {
        err_sys(&err, ERR_POSTGRES, "become user '%s'", user);
        (void)snprintf(ret_why, size, "%s", err.text);
        return false;
    }
    (void)setenv("HOME", home, 1);
    (void)setenv("USER", user, 1);
    (void)setenv("LOGNAME", user, 1);
    return true;
}

PGconn *pg_child_connect(const char *conninfo, const char *dbname, char **ret_why)
{
    const char *keys[8], *values[8];
    size_t count = 0;
    bool has_dbname = false, has_timeout = false;
    PQconninfoOption *options = PQconninfoParse(conninfo, ret_why);
    if (!options)
        return NULL;
    for (PQconninfoOption *option = options; option->keyword; option++) {
        has_dbname |= option->val && strcmp(option->keyword, "dbname") == 0;
        has_timeout |= option->val && strcmp(option->keyword, "connect_timeout") == 0;
    }
    PQconninfoFree(options);
    /* expand_dbname: a dbname that is a conninfo is taken apart; later keys win over its parts. */
    keys[count] = "dbname";
    values[count++] = *conninfo ? conninfo : "dbname=postgres";
    if (dbname || !has_dbname) {
        keys[count] = "dbname";
        values[count++] = dbname ? dbname : "postgres";
    }
    if (!has_timeout) {
        keys[count] = "connect_timeout";
        values[count++] = "10";
    }
    keys[count] = "application_name";
    values[count++] = "tidemark";
    keys[count] = "client_encoding";
    values[count++] = "UTF8";
    keys[count] = NULL;
    values[count] = NULL;
    return PQconnectdbParams(keys, values, 1);
}

/* synchronous_commit: a server just restored whose standbys are not attached yet would hang at the
 * first commit. search_path: nobody's function shadows pg_catalog's. The last one: should this
 * process be killed, the server notices in the middle of a statement too. */
static const char session_settings[] =
    "SET statement_timeout = 0; SET lock_timeout = 0; SET idle_session_timeout = 0;"
    "SET idle_in_transaction_session_timeout = 0; SET synchronous_commit = local;"
    "SET search_path = pg_catalog; SET client_min_messages = warning;"
    "SET client_connection_check_interval = 2000";

/* --- a session --------------------------------------------------------------------------------
 */

static PGconn *open_session(const char *conninfo, const char *dbname)
{
    char *parse_why = NULL;
    PGconn *conn = pg_child_connect(conninfo, dbname, &parse_why);
    PGresult *result = PQstatus(conn) == CONNECTION_OK ? PQexec(conn, session_settings) : NULL;
    if (PQresultStatus(result) != PGRES_COMMAND_OK) {
        (void)reply(conn ? pg_child_failure(PQerrorMessage(conn), NULL, true)
                         : pg_child_unreadable(conninfo, parse_why));
        PQclear(result);
        PQfreemem(parse_why);
        PQfinish(conn);
        return NULL;
    }
    PQclear(result);
    if (!reply(json_pack("{s:b, s:i}", "ok", 1, "version", PQserverVersion(conn)))) {
        PQfinish(conn);
        return NULL;
    }
    return conn;
}

static PGconn *open_connection(struct line_reader *reader)
{
    struct err err;
    char *line = read_line(reader);
    free_json json_t *hello = NULL;
    const char *user = "", *conninfo = "", *dbname = NULL, *mode = NULL;
    if (!line || json_parse(line, strlen(line), ERR_USAGE, &hello, &err) < 0 ||
        json_opt_string(hello, "user", ERR_USAGE, &user, &err) < 0 ||
        json_opt_string(hello, "connection", ERR_USAGE, &conninfo, &err) < 0 ||
        json_opt_string(hello, "mode", ERR_USAGE, &mode, &err) < 0 ||
        json_opt_string(hello, "dbname", ERR_USAGE, &dbname, &err) < 0) {
        (void)reply(pg_child_failure("pg-session is started by tidemark-agent only", NULL, true));
        return NULL;
    }
    char why[256];
    if (!become(user, why, sizeof(why))) {
        (void)reply(pg_child_failure(why, NULL, true));
        return NULL;
    }
    if (!mode)
        return open_session(conninfo, dbname);
    (void)reply(pg_child_answer(mode, conninfo, hello));
    return NULL;
}

static void cancel_statement(PGconn *conn)
{
    char ignored[256];
    PGcancel *cancel = PQgetCancel(conn);
    if (cancel)
        (void)PQcancel(cancel, ignored, sizeof(ignored));
    PQfreeCancel(cancel);
}

/* Waits until the result is complete. On a timeout the statement is cancelled once and the result
 * (an error then, or the answer that was faster) is awaited all the same. */
static void wait_for_result(PGconn *conn, uint64_t timeout_s)
{
    uint64_t deadline = timeout_s ? now_ms() + timeout_s * 1000 : UINT64_MAX;
    while (PQflush(conn) >= 0 && PQconsumeInput(conn) && PQisBusy(conn)) {
        struct pollfd fds[2] = {{.fd = PQsocket(conn), .events = POLLIN},
                                {.fd = STDIN_FILENO, .events = POLLIN | POLLRDHUP}};
        uint64_t now = now_ms();
        if (now >= deadline) {
            cancel_statement(conn);
            deadline = UINT64_MAX;
            continue;
        }
        int wait_ms = deadline == UINT64_MAX ? -1 : (int)min_u64(deadline - now, 60000);
        if (poll(fds, 2, wait_ms) > 0 && fds[1].revents) {
            /* The parent says nothing while it waits: this is its end. */
            cancel_statement(conn);
            PQfinish(conn);
            exit(PG_CHILD_PARENT_GONE);
        }
    }
}

static json_t *rows_of(const PGresult *result)
{
    json_t *rows = json_array();
    for (int i = 0; i < PQntuples(result); i++) {
        json_t *row = json_array();
        for (int k = 0; k < PQnfields(result); k++)
            json_array_append_new(row, PQgetisnull(result, i, k)
                                           ? json_null()
                                           : pg_child_text(PQgetvalue(result, i, k),
                                                           (size_t)PQgetlength(result, i, k)));
        json_array_append_new(rows, row);
    }
    return json_pack("{s:b, s:o}", "ok", 1, "rows", rows);
}

static json_t *result_of(PGconn *conn, uint64_t timeout_s)
{
    wait_for_result(conn, timeout_s);
    PGresult *result = PQgetResult(conn);
    ExecStatusType status = PQresultStatus(result);
    bool lost = PQstatus(conn) == CONNECTION_BAD;
    json_t *json;
    if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK)
        json = rows_of(result);
    else
        json =
            pg_child_failure(result && *PQresultErrorMessage(result) ? PQresultErrorMessage(result)
                                                                     : PQerrorMessage(conn),
                             PQresultErrorField(result, PG_DIAG_SQLSTATE), lost);
    PQclear(result);
    while ((result = PQgetResult(conn)))
        PQclear(result);
    return json;
}

static json_t *run_request(PGconn *conn, const json_t *request)
{
    struct err err;
    const char *sql, *params[16] = {NULL};
    uint64_t timeout_s = 0;
    const json_t *list = json_object_get(request, "params");
    size_t count = json_array_size(list);
    if (json_get_string(request, "sql", ERR_USAGE, &sql, &err) < 0 ||
        json_opt_u64(request, "timeout_s", ERR_USAGE, &timeout_s, &err) < 0)
        return pg_child_failure(err.text, NULL, false);
    if (count > ARRAY_LEN(params))
        return pg_child_failure("too many parameters", NULL, false);
    for (size_t i = 0; i < count; i++)
        params[i] = json_string_value(json_array_get(list, i));
    if (!PQsendQueryParams(conn, sql, (int)count, NULL, params, NULL, NULL, 0))
        return pg_child_failure(PQerrorMessage(conn), NULL, PQstatus(conn) == CONNECTION_BAD);
    return result_of(conn, timeout_s);
}

int pg_session_main(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct line_reader reader = {.size = 65536};
    reader.buf = malloc(reader.size);
    if (!reader.buf)
        abort();
    PGconn *conn = open_connection(&reader);
    int status = conn ? 0 : 1;
    for (char *line; conn && (line = read_line(&reader));) {
        struct err err;
        free_json json_t *request = NULL;
        if (json_parse(line, strlen(line), ERR_USAGE, &request, &err) < 0 ||
            !reply(run_request(conn, request))) {
            status = 1;
            break;
        }
    }
    PQfinish(conn);
    free(reader.buf);
    return status;
}
