/* Questions of `tidemark-agent pg-session` that have one answer, about servers elsewhere: how libpq
 * reads a connection string ("read"), whether a standby would get in with it ("replication"), and
 * who answers at each host that it names ("servers"). See pg_child.c. */
#include "agent/pg_child.h"

#include <libpq-fe.h>
#include <poll.h>
#include <stdio.h>

#include "agent/clock.h"
#include "agent/local_address.h"
#include "io/repo.h"

static const char no_answer[] = "no answer";

static json_t *read_conninfo(const char *conninfo)
{
    static const char *const told[] = {"host", "hostaddr", "application_name",
                                       "target_session_attrs"};
    char *why = NULL;
    PQconninfoOption *options = PQconninfoParse(conninfo, &why);
    json_t *json = options ? json_pack("{s:b}", "ok", 1) : pg_child_unreadable(conninfo, why);
    for (PQconninfoOption *option = options; option && option->keyword; option++)
        for (size_t i = 0; i < ARRAY_LEN(told); i++)
            if (option->val && strcmp(option->keyword, told[i]) == 0)
                json_object_set_new(json, told[i], pg_child_text(option->val, strlen(option->val)));
    PQconninfoFree(options);
    PQfreemem(why);
    return json;
}

/* PQconnectdb() would not take the verbosity with which libpq tells a server's SQLSTATE, nor end
 * after timeout_s over all addresses of a host. False: *ret_late, or PQerrorMessage() says why. */
static bool connect_within(PGconn *conn, uint64_t timeout_s, bool *ret_late)
{
    uint64_t deadline = now_ms() + timeout_s * 1000;
    PostgresPollingStatusType next =
        PQstatus(conn) == CONNECTION_BAD ? PGRES_POLLING_FAILED : PGRES_POLLING_WRITING;
    (void)PQsetErrorVerbosity(conn, PQERRORS_VERBOSE);
    while (next != PGRES_POLLING_OK && next != PGRES_POLLING_FAILED) {
        short events = next == PGRES_POLLING_READING ? POLLIN : POLLOUT;
        struct pollfd fds[2] = {{.fd = PQsocket(conn), .events = events},
                                {.fd = STDIN_FILENO, .events = POLLIN | POLLRDHUP}};
        uint64_t now = now_ms();
        *ret_late = now >= deadline;
        if (*ret_late)
            return false;
        int ready = poll(fds, 2, (int)min_u64(deadline - now, 60000));
        if (ready > 0 && fds[1].revents)
            exit(PG_CHILD_PARENT_GONE);
        if (ready > 0)
            next = PQconnectPoll(conn);
    }
    return next == PGRES_POLLING_OK;
}

/* "… FATAL:  28P01: password authentication failed\nLOCATION: …": the code leaves the text. */
static json_t *refusal(const char *libpq_text)
{
    char state[6] = "";
    free_mem char *copy = strdup(libpq_text);
    char *text = copy ? copy : (char[]){""};
    char *location = strstr(text, "\nLOCATION:");
    if (location)
        *location = '\0';
    for (char *at = text; (at = strstr(at, ":  ")); at += 3) {
        if (strspn(at + 3, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != 5 || at[8] != ':')
            continue;
        (void)snprintf(state, sizeof(state), "%.5s", at + 3);
        memmove(at + 2, at + 9, strlen(at + 9) + 1);
        break;
    }
    return pg_child_failure(text, state[0] ? state : NULL, true);
}

/* As libpqrcv_connect() in libpqwalreceiver.c, under our own name. */
static json_t *try_replication(const char *conninfo, uint64_t timeout_s)
{
    static const char *const keys[] = {"dbname", "replication", "dbname", "application_name", NULL};
    const char *const values[] = {conninfo, "true", "replication", "tidemark", NULL};
    bool late = false;
    PGconn *conn = PQconnectStartParams(keys, values, 1);
    if (!conn || !connect_within(conn, timeout_s, &late)) {
        json_t *json = refusal(late ? no_answer : conn ? PQerrorMessage(conn) : "");
        PQfinish(conn);
        return json;
    }
    PGresult *result = PQexec(conn, "IDENTIFY_SYSTEM");
    json_t *json = PQresultStatus(result) == PGRES_TUPLES_OK && PQntuples(result) == 1
                       ? json_pack("{s:b, s:s}", "ok", 1, "system_id", PQgetvalue(result, 0, 0))
                       : pg_child_failure(PQerrorMessage(conn), NULL, true);
    PQclear(result);
    PQfinish(conn);
    return json;
}

/* --- who is there ----------------------------------------------------------------------------- */

enum { KEYWORDS_MAX = 80 };

struct keywords {
    const char *keys[KEYWORDS_MAX], *values[KEYWORDS_MAX];
    size_t count;
};

static void add_keyword(struct keywords *list, const char *key, const char *value)
{
    if (!value || !value[0] || list->count == KEYWORDS_MAX - 1)
        return;
    list->keys[list->count] = key;
    list->values[list->count++] = value;
}

static const char *option_of(const PQconninfoOption *options, const char *key)
{
    for (; options->keyword; options++)
        if (strcmp(options->keyword, key) == 0)
            return options->val ? options->val : "";
    return "";
}

static size_t element_count(const char *list)
{
    size_t count = list[0] != '\0';
    for (; *list; list++)
        count += *list == ',';
    return count;
}

/* "a,,c": "a", "" and "c"; the only port is that of all hosts. */
static void take_element(const char *list, size_t index, char *ret, size_t size)
{
    if (element_count(list) == 1)
        index = 0;
    for (; index > 0 && *list; list++)
        index -= *list == ',';
    (void)snprintf(ret, size, "%.*s", (int)strcspn(list, ","), list);
}

/* libpq tries each address of a name and has a line for each. Its words are those of locale C: this
 * process never sets another. */
static bool nobody_listens(const char *text)
{
    static const char failed[] = "failed: ", refused[] = "Connection refused",
                      no_socket[] = "No such file or directory";
    bool found = false;
    for (const char *at = text; (at = strstr(at, failed)); found = true) {
        at += sizeof(failed) - 1;
        if (strncmp(at, refused, sizeof(refused) - 1) != 0 &&
            strncmp(at, no_socket, sizeof(no_socket) - 1) != 0)
            return false;
    }
    return found;
}

static json_t *answer_as(const char *answer, const char *system_id, const char *text)
{
    size_t len = strlen(text);
    while (len > 0 && text[len - 1] == '\n')
        len--;
    return json_pack("{s:s, s:s, s:o}", "answer", answer, "system_id", system_id, "text",
                     pg_child_text(text, len));
}

static json_t *unclear_because(const char *libpq_text)
{
    free_json json_t *told = refusal(libpq_text);
    return answer_as("unclear", "", json_str(told, "error"));
}

/* In a walsender the server's report says whether it is in recovery (since PostgreSQL 14). */
static json_t *look_at(PGconn *conn, bool replication)
{
    PGresult *result = PQexec(conn, replication ? "IDENTIFY_SYSTEM"
                                                : "SELECT system_identifier::text, "
                                                  "CASE WHEN pg_is_in_recovery() THEN 'on' "
                                                  "ELSE 'off' END FROM pg_control_system()");
    bool good = PQresultStatus(result) == PGRES_TUPLES_OK && PQntuples(result) == 1;
    const char *standby = !good         ? NULL
                          : replication ? PQparameterStatus(conn, "in_hot_standby")
                                        : PQgetvalue(result, 0, 1);
    json_t *json;
    if (!good)
        json = answer_as("unclear", "", PQerrorMessage(conn));
    else if (standby && (strcmp(standby, "on") == 0 || strcmp(standby, "off") == 0))
        json = answer_as(strcmp(standby, "on") == 0 ? "standby" : "primary",
                         PQgetvalue(result, 0, 0), "");
    else
        json = answer_as("unclear", "", "the server does not say whether it is a standby");
    PQclear(result);
    return json;
}

struct question {
    uint64_t timeout_s;
    const char *own; /* leads to this host's own server; NULL: there is none */
};

/* Whoever asks has a name that no other session has, and a server shows the name of each to
 * everybody (pg_stat_get_activity()): so a server knows itself by whatever address, proxy or pooler
 * it was reached. A "primary" with a text: it cannot be told. */
static void tell_own(const struct question *question, const char *session, json_t *primary)
{
    char *why = NULL;
    PGconn *own = pg_child_connect(question->own, NULL, &why);
    PGresult *result =
        PQstatus(own) == CONNECTION_OK
            ? PQexecParams(own,
                           "SELECT FROM pg_catalog.pg_stat_activity WHERE application_name = $1", 1,
                           NULL, &session, NULL, NULL, 0)
            : NULL;
    if (PQresultStatus(result) == PGRES_TUPLES_OK) {
        if (PQntuples(result) > 0)
            (void)json_object_set_new(primary, "answer", json_string("own"));
    } else {
        free_json json_t *told = own ? pg_child_failure(PQerrorMessage(own), NULL, true)
                                     : pg_child_unreadable(question->own, why);
        const char *text = json_str(told, "error");
        (void)json_object_set_new(
            primary, "text",
            json_sprintf("takes writes, and whether it is this server cannot be told: %.*s",
                         (int)strcspn(text, "\n"), text));
    }
    PQclear(result);
    PQfreemem(why);
    PQfinish(own);
}

static json_t *answer_of(PGconn *conn, const struct question *question, bool replication,
                         const char *session)
{
    json_t *json = look_at(conn, replication);
    if (question->own && json_is(json, "answer", "primary"))
        tell_own(question, session, json);
    return json;
}

static bool name_session(char *ret, size_t size)
{
    uint8_t id[ID_LEN];
    char text[ID_TEXT_LEN];
    struct err err;
    if (id_random(id, &err) < 0)
        return false;
    id_to_text(id, text);
    (void)snprintf(ret, size, "tidemark %s", text);
    return true;
}

static json_t *ask_as(const struct keywords *base, const char *dbname,
                      const struct question *question)
{
    struct keywords list = *base;
    char session[16 + ID_TEXT_LEN];
    bool late = false;
    if (!name_session(session, sizeof(session)))
        return answer_as("unclear", "", "no random bytes");
    add_keyword(&list, "application_name", session);
    add_keyword(&list, "dbname", dbname ? dbname : "replication");
    add_keyword(&list, "replication", dbname ? NULL : "true");
    list.keys[list.count] = list.values[list.count] = NULL;
    PGconn *conn = PQconnectStartParams(list.keys, list.values, 0);
    json_t *json;
    if (!conn)
        json = answer_as("unclear", "", "out of memory");
    else if (connect_within(conn, question->timeout_s, &late))
        json = answer_of(conn, question, !dbname, session);
    else if (!late && nobody_listens(PQerrorMessage(conn)))
        json = answer_as("nobody", "", "nobody listens there");
    else if (late)
        json = answer_as("unclear", "", no_answer);
    else
        json = unclear_because(PQerrorMessage(conn));
    PQfinish(conn);
    return json;
}

/* Where a connection string leads, and as which database. */
struct way {
    PQconninfoOption *options;  /* what it says */
    PQconninfoOption *defaults; /* what its service file and the environment say */
};

/* PQconndefaults() knows a service by the environment only. This process has one thread, and its
 * own server is asked without. One that is not there is told by the connection. */
static PQconninfoOption *defaults_with(const char *service)
{
    const char *before = getenv("PGSERVICE");
    free_mem char *kept = before ? strdup(before) : NULL;
    if (service[0])
        (void)setenv("PGSERVICE", service, 1);
    PQconninfoOption *defaults = PQconndefaults();
    if (service[0] && kept)
        (void)setenv("PGSERVICE", kept, 1);
    else if (service[0])
        (void)unsetenv("PGSERVICE");
    return defaults;
}

static const char *way_option(const struct way *way, const char *key)
{
    const char *value = option_of(way->options, key);
    return value[0] || !way->defaults ? value : option_of(way->defaults, key);
}

/* One of the hosts that it lists. */
struct place {
    char host[1024], address[256], port[16];
};

static const char *name_of(const struct place *place)
{
    return place->host[0] ? place->host : place->address[0] ? place->address : "localhost";
}

/* Whether this host is meant, by a name or an address of its own. */
static bool is_local(const struct place *place)
{
    return (!place->host[0] && !place->address[0]) ||
           address_is_local(place->address[0] ? place->address : place->host);
}

static const char *port_of(const struct place *place)
{
    return place->port[0] ? place->port : "5432";
}

static void take_place(const struct way *way, size_t index, struct place *ret)
{
    take_element(way_option(way, "host"), index, ret->host, sizeof(ret->host));
    take_element(way_option(way, "hostaddr"), index, ret->address, sizeof(ret->address));
    take_element(way_option(way, "port"), index, ret->port, sizeof(ret->port));
}

/* By another connection string before, and the answer does not depend on the user. */
static bool is_known(const json_t *known, const struct place *place)
{
    size_t i;
    json_t *server;
    json_array_foreach(known, i, server)
    {
        bool settled = !json_is(server, "answer", "unclear") || json_is(server, "text", no_answer);
        if (settled && json_is(server, "host", name_of(place)) &&
            json_is(server, "port", port_of(place)))
            return true;
    }
    return false;
}

static void keep_others(const PQconninfoOption *options, struct keywords *ret)
{
    static const char *const ours[] = {"host",
                                       "hostaddr",
                                       "port",
                                       "target_session_attrs",
                                       "load_balance_hosts",
                                       "dbname",
                                       "replication",
                                       "application_name"};
    for (; options->keyword; options++) {
        bool is_ours = false;
        for (size_t i = 0; i < ARRAY_LEN(ours); i++)
            is_ours |= strcmp(options->keyword, ours[i]) == 0;
        if (!is_ours)
            add_keyword(ret, options->keyword, options->val);
    }
    add_keyword(ret, "target_session_attrs", "any"); /* whatever the service file says */
}

/* First as a standby would be let in, then as anybody. */
static json_t *ask_place(const struct way *way, const struct place *place,
                         const struct question *question)
{
    const char *dbname = way_option(way, "dbname");
    struct keywords base = {.count = 0};
    keep_others(way->options, &base);
    add_keyword(&base, "host", place->host);
    add_keyword(&base, "hostaddr", place->address);
    add_keyword(&base, "port", place->port);
    json_t *json = ask_as(&base, NULL, question);
    if (json_is(json, "answer", "unclear") && !json_is(json, "text", no_answer)) {
        json_decref(json);
        json = ask_as(&base, dbname[0] ? dbname : "postgres", question);
    }
    if (json_is(json, "answer", "nobody"))
        (void)json_object_set_new(json, "local", json_boolean(is_local(place)));
    (void)json_object_set_new(json, "host", json_string(name_of(place)));
    (void)json_object_set_new(json, "port", json_string(port_of(place)));
    return json;
}

static json_t *ask_servers(const char *conninfo, const json_t *known,
                           const struct question *question)
{
    char *why = NULL;
    struct way way = {.options = PQconninfoParse(conninfo, &why)};
    if (!way.options) {
        json_t *json = pg_child_unreadable(conninfo, why);
        PQfreemem(why);
        return json;
    }
    json_t *servers = json_array();
    way.defaults = defaults_with(option_of(way.options, "service"));
    size_t count = element_count(way_option(&way, "hostaddr"));
    if (count == 0)
        count = element_count(way_option(&way, "host"));
    for (size_t i = 0; i < (count ? count : 1); i++) {
        struct place place;
        take_place(&way, i, &place);
        if (!is_known(known, &place))
            (void)json_array_append_new(servers, ask_place(&way, &place, question));
    }
    PQconninfoFree(way.options);
    PQconninfoFree(way.defaults);
    return json_pack("{s:b, s:o}", "ok", 1, "servers", servers);
}

json_t *pg_child_answer(const char *mode, const char *conninfo, const json_t *hello)
{
    struct question question = {.own = NULL};
    struct err err;
    if (strcmp(mode, "read") == 0)
        return read_conninfo(conninfo);
    if (json_opt_u64(hello, "timeout_s", ERR_USAGE, &question.timeout_s, &err) < 0 ||
        json_opt_string(hello, "own", ERR_USAGE, &question.own, &err) < 0)
        return pg_child_failure(err.text, NULL, true);
    return strcmp(mode, "servers") == 0
               ? ask_servers(conninfo, json_object_get(hello, "known"), &question)
               : try_replication(conninfo, question.timeout_s);
}
