/* The parent's side of a PostgreSQL session: starts `tidemark-agent pg-session` (pg_child.c) and
 * exchanges JSON lines with it over one socket. A socket and not two pipes: send(MSG_NOSIGNAL)
 * makes a dead child an error instead of a SIGPIPE, and there is one descriptor to close. */
#include "agent/pg.h"
#include "agent/process.h"
#include "agent/program.h"
#include "agent/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>

enum {
    CONNECT_TIMEOUT_S = 180, /* the child has its own, shorter one, in the conninfo */
    ANSWER_GRACE_S = 30,     /* after a statement's timeout the child still reports it */
    ANSWER_MAX = 256 << 20,
    READ_TIMEOUT_S = 10,
    SERVICE_HOSTS = 4, /* so many may stand in a service file */
    CLOSE_WAIT_MS = 5000,
    POLL_SLICE_MS = 200,
};

struct pg_session {
    int fd; /* -1 once the session is lost */
    pid_t pid;
    const _Atomic bool *cancel;
    char *buf;
    size_t len, size;
};

void pg_set_cancel(struct pg_session *session, const _Atomic bool *cancel)
{
    session->cancel = cancel;
}

/* Our end closed, the child cancels its statement and ends; the server rolls back. */
static void drop_child(struct pg_session *session)
{
    int ignored;
    if (session->fd >= 0)
        (void)close(take_fd(&session->fd));
    if (session->pid <= 0)
        return;
    if (!process_wait(session->pid, CLOSE_WAIT_MS, &ignored)) {
        (void)kill(session->pid, SIGKILL);
        (void)process_wait(session->pid, CLOSE_WAIT_MS, &ignored);
    }
    session->pid = 0;
}

void pg_close(struct pg_session *session)
{
    if (!session)
        return;
    drop_child(session);
    free(session->buf);
    free(session);
}

bool pg_send_line(int fd, const json_t *json)
{
    char *text = json_text(json);
    size_t len = strlen(text), sent = 0;
    text[len] = '\n'; /* in place of the NUL */
    while (sent < len + 1) {
        ssize_t done = send(fd, text + sent, len + 1 - sent, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            break;
        sent += (size_t)done;
    }
    free(text);
    return sent == len + 1;
}

static int send_line(struct pg_session *session, const json_t *json, struct err *err)
{
    if (session->fd < 0)
        return err_set(err, ERR_POSTGRES, "the PostgreSQL session was lost before");
    if (pg_send_line(session->fd, json))
        return 0;
    err_sys(err, ERR_POSTGRES, "the PostgreSQL session's process went away");
    drop_child(session);
    return -ERR_POSTGRES;
}

static void make_room(struct pg_session *session)
{
    if (session->size - session->len >= 65536)
        return;
    session->size = session->size ? session->size * 2 : 131072;
    session->buf = realloc(session->buf, session->size);
    if (!session->buf)
        abort();
}

/* Appends what the child says; 0 = more to come. */
static int receive_some(struct pg_session *session, uint64_t deadline, struct err *err)
{
    struct pollfd poll_fd = {.fd = session->fd, .events = POLLIN};
    (void)poll(&poll_fd, 1, POLL_SLICE_MS);
    if (session->cancel && atomic_load(session->cancel))
        return err_set(err, ERR_CANCELLED, "cancelled while waiting for PostgreSQL");
    if (!poll_fd.revents)
        return now_ms() < deadline ? 0 : err_set(err, ERR_POSTGRES, "PostgreSQL did not answer");
    if (session->len > ANSWER_MAX)
        return err_set(err, ERR_POSTGRES, "PostgreSQL's answer is larger than %d bytes",
                       ANSWER_MAX);
    make_room(session);
    ssize_t len =
        recv(session->fd, session->buf + session->len, session->size - session->len, MSG_DONTWAIT);
    if (len > 0)
        session->len += (size_t)len;
    if (len == 0)
        return err_set(err, ERR_POSTGRES, "the PostgreSQL session's process ended");
    if (len < 0 && errno != EINTR && errno != EAGAIN)
        return err_sys(err, ERR_POSTGRES, "the PostgreSQL session's process went away");
    return 0;
}

/* One line from the child, parsed. The session is dropped on every error: a late answer must not
 * be taken for the next one's. */
static int receive(struct pg_session *session, unsigned timeout_s, json_t **ret, struct err *err)
{
    uint64_t deadline = timeout_s ? now_ms() + timeout_s * 1000ull : UINT64_MAX;
    int rc = 0;
    session->len = 0;
    while (rc == 0 && (session->len == 0 || session->buf[session->len - 1] != '\n'))
        rc = receive_some(session, deadline, err);
    if (rc == 0)
        rc = json_parse(session->buf, session->len - 1, ERR_POSTGRES, ret, err);
    if (rc < 0)
        drop_child(session);
    return rc;
}

/* libpq's messages have several lines, indented with tabs. */
static void one_line(char *text)
{
    char *to = text;
    for (const char *from = text; *from; from++) {
        bool breaks = *from >= '\t' && *from <= '\r';
        if (!breaks)
            *to++ = *from;
        else if (to > text && to[-1] != ' ')
            *to++ = ' ';
    }
    *to = '\0';
}

/* {"ok":false,…} becomes the error; a lost connection ends the child. */
static int check_answer(struct pg_session *session, const json_t *answer, struct err *err)
{
    if (json_is_true(json_object_get(answer, "ok")))
        return 0;
    const char *text = json_string_value(json_object_get(answer, "error"));
    const char *sqlstate = json_string_value(json_object_get(answer, "sqlstate"));
    int rc = err_set(err, ERR_POSTGRES, "%s%s%s%s", text ? text : "no answer",
                     sqlstate ? " (SQLSTATE " : "", sqlstate ? sqlstate : "", sqlstate ? ")" : "");
    one_line(err->text);
    if (json_is_true(json_object_get(answer, "lost")))
        drop_child(session);
    return rc;
}

static int start_child(struct pg_session *session, struct err *err)
{
    char path[PATH_MAX];
    int rc = program_find("tidemark-agent", path, err);
    if (rc < 0)
        return rc;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return err_sys(err, ERR_INTERNAL, "make a socket pair");
    session->fd = pair[0];
    close_fd int theirs = pair[1];
    const char *argv[] = {path, "pg-session", NULL};
    struct process_options options = PROCESS_OPTIONS_INIT;
    options.argv = argv;
    options.stdin_fd = theirs;
    options.stdout_fd = theirs;
    options.keep_environment = true; /* PGPASSFILE, PGSSLROOTCERT, KRB5CCNAME, … */
    return process_start(&options, &session->pid, err);
}

static int say_hello(struct pg_session *session, const struct conf *conf, const char *conninfo,
                     const char *dbname, struct err *err)
{
    free_json json_t *hello = json_pack("{s:s, s:s, s:s?}", "user", conf->os_user, "connection",
                                        conninfo, "dbname", dbname);
    if (!hello)
        return err_set(err, ERR_CONFIG, "the connection string is not UTF-8");
    free_json json_t *answer = NULL;
    int rc = send_line(session, hello, err);
    if (rc == 0)
        rc = receive(session, CONNECT_TIMEOUT_S, &answer, err);
    return rc < 0 ? rc : check_answer(session, answer, err);
}

static int open_session(const struct conf *conf, const char *conninfo, const char *dbname,
                        struct pg_session **ret, struct err *err)
{
    struct pg_session *session = calloc(1, sizeof(*session));
    if (!session)
        abort();
    session->fd = -1;
    int rc = start_child(session, err);
    if (rc == 0)
        rc = say_hello(session, conf, conninfo, dbname, err);
    if (rc == 0)
        *ret = session;
    else
        pg_close(session);
    return rc;
}

int pg_open(const struct conf *conf, const char *dbname, struct pg_session **ret, struct err *err)
{
    int rc = open_session(conf, conf->connection, dbname, ret, err);
    if (rc == -ERR_POSTGRES && !err->hint[0])
        (void)err_hint(err, "is the server running? [postgresql] connection and os_user say "
                            "how it is asked, its log says why it refuses");
    return rc < 0 ? err_prefix(err, "connect to PostgreSQL") : 0;
}

int pg_open_primary(const struct conf *conf, const char *conninfo, const char *dbname,
                    struct pg_session **ret, struct err *err)
{
    int rc = open_session(conf, conninfo, dbname, ret, err);
    if (rc == -ERR_POSTGRES && !err->hint[0])
        (void)err_hint(err, "[postgresql] primary_connection says how this standby's primary is "
                            "asked; without it the standby's own primary_conninfo does, whose user "
                            "may be for replication only");
    return rc < 0 ? err_prefix(err, "connect to the primary of this standby") : 0;
}

/* A question with one answer, which is its own error too. */
static int ask_child(const json_t *hello, unsigned timeout_s, json_t **ret, struct err *err)
{
    struct pg_session *session = calloc(1, sizeof(*session));
    if (!session)
        abort();
    session->fd = -1;
    int rc = hello ? start_child(session, err)
                   : err_set(err, ERR_CONFIG, "the connection string is not UTF-8");
    if (rc == 0)
        rc = send_line(session, hello, err);
    if (rc == 0)
        rc = receive(session, timeout_s, ret, err);
    pg_close(session);
    return rc;
}

int pg_conninfo_read(const char *conninfo, struct pg_conninfo *ret, struct err *err)
{
    free_json json_t *hello =
        json_pack("{s:s, s:s, s:s}", "user", "nobody", "connection", conninfo, "mode", "read");
    free_json json_t *answer = NULL;
    int rc = ask_child(hello, READ_TIMEOUT_S, &answer, err);
    if (rc < 0)
        return rc;
    if (!json_is_true(json_object_get(answer, "ok"))) {
        (void)err_set(err, ERR_CONFIG, "%s", json_str(answer, "error"));
        one_line(err->text);
        return -(int)err->code;
    }
    const char *session_attrs = json_str(answer, "target_session_attrs");
    ret->one_server = !strchr(json_str(answer, "host"), ',') &&
                      !strchr(json_str(answer, "hostaddr"), ',') &&
                      (!session_attrs[0] || strcmp(session_attrs, "any") == 0);
    (void)snprintf(ret->application_name, sizeof(ret->application_name), "%.63s",
                   json_str(answer, "application_name"));
    return 0;
}

int pg_try_replication(const struct conf *conf, const char *conninfo, unsigned timeout_s,
                       struct pg_tried *ret, struct err *err)
{
    free_json json_t *hello =
        json_pack("{s:s, s:s, s:s, s:i}", "user", conf->os_user, "connection", conninfo, "mode",
                  "replication", "timeout_s", (int)timeout_s);
    free_json json_t *answer = NULL;
    int rc = ask_child(hello, 2 * timeout_s, &answer, err); /* names are resolved beside it */
    if (rc < 0)
        return rc;
    (void)snprintf(ret->sqlstate, sizeof(ret->sqlstate), "%.5s", json_str(answer, "sqlstate"));
    (void)snprintf(ret->system_id, sizeof(ret->system_id), "%.23s", json_str(answer, "system_id"));
    (void)snprintf(ret->why, sizeof(ret->why), "%s", json_str(answer, "error"));
    one_line(ret->why);
    return 0;
}

int pg_ask_servers(const struct conf *conf, const char *conninfo, bool by_own, unsigned timeout_s,
                   json_t *servers, struct err *err)
{
    free_json json_t *hello =
        json_pack("{s:s, s:s, s:s, s:i, s:O, s:s?}", "user", conf->os_user, "connection", conninfo,
                  "mode", "servers", "timeout_s", (int)timeout_s, "known", servers, "own",
                  by_own ? conf->connection : NULL);
    free_json json_t *answer = NULL;
    unsigned hosts = strstr(conninfo, "service") ? SERVICE_HOSTS : 1;
    for (const char *at = conninfo; *at; at++)
        hosts += *at == ',';
    /* Two tries each, and its own server's word. */
    int rc = ask_child(hello, (3 * hosts + 1) * timeout_s, &answer, err);
    if (rc < 0)
        return rc;
    json_t *answers = json_object_get(answer, "servers");
    if (!json_is_array(answers)) {
        (void)err_set(err, ERR_CONFIG, "%s", json_str(answer, "error"));
        one_line(err->text);
        return -(int)err->code;
    }
    (void)json_array_extend(servers, answers);
    return 0;
}

static json_t *request_of(const char *sql, const char *const *params, unsigned timeout_s)
{
    json_t *list = json_array();
    for (size_t i = 0; params && params[i]; i++)
        json_array_append_new(list, json_string(params[i]));
    return json_pack("{s:s, s:o, s:i}", "sql", sql, "params", list, "timeout_s", (int)timeout_s);
}

int pg_query(struct pg_session *session, const char *sql, const char *const *params,
             unsigned timeout_s, json_t **ret_rows, struct err *err)
{
    free_json json_t *request = request_of(sql, params, timeout_s);
    free_json json_t *answer = NULL;
    if (!request)
        return err_set(err, ERR_POSTGRES, "a statement or parameter is not UTF-8");
    int rc = send_line(session, request, err);
    if (rc == 0)
        rc = receive(session, timeout_s ? timeout_s + ANSWER_GRACE_S : 0, &answer, err);
    if (rc == 0)
        rc = check_answer(session, answer, err);
    if (rc == 0 && ret_rows)
        *ret_rows = json_incref(json_object_get(answer, "rows"));
    return rc;
}

int pg_query_text(struct pg_session *session, const char *sql, const char *const *params,
                  char **ret, struct err *err)
{
    free_json json_t *rows = NULL;
    int rc = pg_query(session, sql, params, 0, &rows, err);
    if (rc < 0)
        return rc;
    const json_t *row = json_array_get(rows, 0);
    if (json_array_size(rows) != 1 || json_array_size(row) != 1)
        return err_set(err, ERR_POSTGRES, "%zu rows where one value was expected: %s",
                       json_array_size(rows), sql);
    const char *text = json_string_value(json_array_get(row, 0));
    char *copy = text ? strdup(text) : NULL;
    if (text && !copy)
        abort();
    *ret = copy;
    return 0;
}
