/* Drives agent/pg.h from a test: `tool_pg --KEY=VALUE… VERB ARGS`; prints JSON or text. Copied as
 * "tidemark-agent" it is the session child as well. */
#include "agent/log.h"
#include "agent/pg.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>

static _Atomic bool cancel; /* set by SIGINT */

static void on_interrupt(int number)
{
    (void)number;
    atomic_store(&cancel, true);
}

/* The statements of args, "--then" between them, in one session. With more to come an error is
 * printed and the session has to go on. */
static int run_statements(struct pg_session *session, unsigned timeout_s, char **sql,
                          struct err *err)
{
    while (*sql) {
        const char *params[16] = {NULL};
        size_t count = 0;
        char **next = sql + 1;
        for (; *next && strcmp(*next, "--then") != 0; next++)
            params[count++] = *next;
        free_json json_t *rows = NULL;
        int rc = pg_query(session, *sql, params, timeout_s, &rows, err);
        free_mem char *text = rc == 0 ? json_text(rows) : NULL;
        if (rc < 0 && !*next)
            return rc;
        printf("%s%s\n", rc < 0 ? "error: " : "", rc < 0 ? err->text : text);
        fflush(stdout);
        sql = *next ? next + 1 : next;
    }
    return 0;
}

/* query DBNAME TIMEOUT_S SQL [PARAM…] [--then SQL [PARAM…]]… */
static int query(const struct conf *conf, char **args, struct err *err)
{
    struct pg_session *session;
    int rc = pg_open(conf, *args[0] ? args[0] : NULL, &session, err);
    if (rc < 0)
        return rc;
    pg_set_cancel(session, &cancel);
    rc = run_statements(session, (unsigned)atoi(args[1]), args + 2, err);
    pg_close(session);
    return rc;
}

/* servers CONNINFO…: each is asked by the server's own, after those before it */
static int servers(const struct conf *conf, char **conninfos, struct err *err)
{
    free_json json_t *found = json_array();
    int rc = 0;
    for (; rc == 0 && *conninfos; conninfos++)
        rc = pg_ask_servers(conf, *conninfos, true, 5, found, err);
    free_mem char *text = rc == 0 ? json_text(found) : NULL;
    if (rc == 0)
        printf("%s\n", text);
    return rc;
}

static int control(const struct conf *conf, const char *directory, struct err *err)
{
    struct pg_control c;
    int rc = pg_control_read(conf, directory, &c, err);
    if (rc < 0)
        return rc;
    char lsn[PG_LSN_TEXT];
    pg_lsn_format(c.checkpoint_lsn, lsn);
    printf("%llu|%u|%s|%s|%u|%u|%d|%u\n", (unsigned long long)c.system_id, c.timeline, c.state, lsn,
           c.segment_size, c.block_size, c.checksums, c.max_connections);
    return 0;
}

static int state(const struct conf *conf, struct err *err)
{
    enum pg_state now;
    int pid;
    int rc = pg_server_state(conf, &now, &pid, err);
    static const char *const names[] = {"stopped", "starting", "running"};
    if (rc == 0)
        printf("%s %d\n", names[now], pid);
    return rc;
}

static int run_program(const struct conf *conf, const char *const *argv, struct err *err)
{
    free_mem char *output = NULL;
    int rc = pg_run(conf, argv, &output, err);
    if (rc == 0)
        fputs(output, stdout);
    return rc;
}

static int run_verb(const struct conf *conf, char **args, struct err *err)
{
    const char *rest[16] = {NULL};
    for (size_t i = 0; args[i + 1] && i + 1 < ARRAY_LEN(rest); i++)
        rest[i] = args[i + 1];
    if (strcmp(args[0], "query") == 0)
        return query(conf, args + 1, err);
    if (strcmp(args[0], "servers") == 0)
        return servers(conf, args + 1, err);
    if (strcmp(args[0], "control") == 0)
        return control(conf, args[1], err);
    if (strcmp(args[0], "state") == 0)
        return state(conf, err);
    if (strcmp(args[0], "start") == 0)
        return pg_server_start(conf, rest, err);
    if (strcmp(args[0], "stop") == 0)
        return pg_server_stop(conf, err);
    if (strcmp(args[0], "run") == 0)
        return run_program(conf, rest, err);
    return err_set(err, ERR_USAGE, "unknown verb '%s'", args[0]);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "pg-session") == 0)
        return pg_session_main(argc, argv);
    struct conf conf;
    struct err err;
    struct sigaction action = {.sa_handler = on_interrupt};
    (void)sigaction(SIGINT, &action, NULL);
    int rc = conf_parse("defaults", "", 0, &conf, &err);
    char **args = argv + 1;
    for (; rc == 0 && *args && strncmp(*args, "--", 2) == 0; args++) {
        char *value = strchr(*args, '=');
        if (!value)
            return 2;
        *value++ = '\0';
        rc = conf_set(&conf, *args + 2, value, &err);
    }
    if (rc == 0) {
        conf_complete(&conf);
        rc = *args ? run_verb(&conf, args, &err) : err_set(&err, ERR_USAGE, "no verb");
    }
    if (rc < 0) {
        log_err(&err);
        return err_exit_status(err.code);
    }
    return 0;
}
