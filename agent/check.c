/* The table of checks, and the process that makes them. See check.h. */
#include "agent/check.h"

#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>

#include "agent/log.h"
#include "agent/process.h"
#include "agent/program.h"

enum {
    FOR_NODE = 1,
    FOR_COORDINATOR = 2,
    FOR_BOTH = FOR_NODE | FOR_COORDINATOR,
    /* Needs what a restore takes apart: while one is unfinished its words would mislead. */
    NEEDS_WHOLE = 4,
};

static const struct {
    const char *name;
    unsigned flags;
    int (*run)(struct check *check, struct err *err);
} checks[] = {
    {"health", FOR_BOTH, check_health},
    {"state_dir", FOR_BOTH, check_state_dir},
    {"certificate", FOR_BOTH, check_certificate},
    {"repository", FOR_BOTH, check_repository},
    {"writing", FOR_BOTH, check_writing},
    {"object_lock", FOR_BOTH, check_object_lock},
    {"clock", FOR_BOTH, check_clock},
    {"volumes", FOR_NODE | NEEDS_WHOLE, check_volumes},
    {"capture", FOR_NODE | NEEDS_WHOLE, check_capture},
    {"track", FOR_NODE | NEEDS_WHOLE, check_track},
    {"space", FOR_NODE | NEEDS_WHOLE, check_space},
    {"server", FOR_NODE | NEEDS_WHOLE, check_server},
    {"layout", FOR_NODE | NEEDS_WHOLE, check_layout},
    {"backlog", FOR_NODE | NEEDS_WHOLE, check_backlog},
    {"archiving", FOR_NODE | NEEDS_WHOLE, check_archiving},
    {"primary", FOR_NODE | NEEDS_WHOLE, check_standby},
    {"patroni", FOR_NODE, check_patroni},
    {"snapshots", FOR_BOTH, check_snapshots},
    {"wal", FOR_BOTH, check_wal},
    {"verification", FOR_NODE, check_verification},
    {"drill", FOR_NODE, check_drill},
    {"members", FOR_COORDINATOR, check_members},
    {"conninfo", FOR_COORDINATOR, check_conninfo},
    {"sections", FOR_COORDINATOR, check_sections},
};

/* --- rows ------------------------------------------------------------------------------------- */

/* Members of group tidemark may use the agent, but what belongs to it is root's. */
static const char *hint_of(const struct err *err)
{
    bool needs_root = err->sys_errno == EACCES && err->code != ERR_AUTH && geteuid() != 0;
    return needs_root ? "run this as root" : err->hint;
}

json_t *check_row(const char *name, const char *result, const char *detail, const struct err *err)
{
    bool failed = strcmp(result, "failed") == 0;
    json_t *row = json_pack("{s:s, s:s, s:b, s:s}", "check", name, "result", result, "ok", !failed,
                            "detail", err ? err->text : detail);
    if (!row) /* bytes of somebody that are not UTF-8 */
        row = json_pack("{s:s, s:s, s:b, s:s}", "check", name, "result", result, "ok", !failed,
                        "detail", "it cannot be shown");
    if (err && hint_of(err)[0])
        (void)json_object_set_new(row, "hint", json_string(hint_of(err)));
    if (failed && err)
        (void)json_object_set_new(row, "code", json_string(err_code_name(err->code)));
    return row;
}

int check_warning(struct err *err, const char *text, const char *hint)
{
    (void)err_set(err, ERR_INTERNAL, "%s", text); /* the code of a warning is not told */
    (void)err_hint(err, "%s", hint);
    return CHECK_WARNING;
}

void check_tell(struct check *check, const char *name, int rc, const struct err *err)
{
    bool told = rc < 0 || rc == CHECK_WARNING;
    const char *result = rc < 0                ? "failed"
                         : rc == CHECK_WARNING ? "warning"
                         : rc == CHECK_SKIPPED ? "skipped"
                                               : "ok";
    free_json json_t *row = check_row(name, result, check->detail, told ? err : NULL);
    check->each(check->ctx, row);
}

void check_run(const struct conf *conf, void (*each)(void *ctx, const json_t *row), void *ctx)
{
    struct check check = {.conf = conf, .each = each, .ctx = ctx};
    unsigned ours = conf->coordinator_members[0] ? FOR_COORDINATOR : FOR_NODE;
    for (size_t i = 0; i < ARRAY_LEN(checks); i++) {
        struct err err;
        err_clear(&err);
        check.detail[0] = '\0';
        if (!(checks[i].flags & ours))
            continue;
        int rc = CHECK_SKIPPED;
        if ((checks[i].flags & NEEDS_WHOLE) && check.unfinished[0])
            (void)snprintf(check.detail, sizeof(check.detail), "%s", check.unfinished);
        else
            rc = checks[i].run(&check, &err);
        if (rc != CHECK_NONE)
            check_tell(&check, checks[i].name, rc, &err);
    }
    pg_close(check.session);
    if (check.group)
        volume_group_close(check.group);
    free(check.group);
    store_close(check.store);
}

/* --- the process ------------------------------------------------------------------------------ */

static void append_row(void *ctx, const json_t *row)
{
    (void)json_array_append_new(ctx, json_deep_copy(row));
}

/* The loaded values, so that they are those of the agent and not those of its file now. */
static int conf_to_fd(const struct conf *conf, int *ret_fd, struct err *err)
{
    close_fd int fd = memfd_create("tidemark-conf", MFD_CLOEXEC);
    close_fd int copy = fd < 0 ? -1 : dup(fd);
    FILE *to = copy < 0 ? NULL : fdopen(copy, "w");
    if (!to)
        return err_sys(err, ERR_INTERNAL, "make a file in memory");
    (void)take_fd(&copy);
    bool failed = conf_write(conf, to) < 0;
    failed = fclose(to) != 0 || failed;
    if (failed || lseek(fd, 0, SEEK_SET) < 0)
        return err_sys(err, ERR_INTERNAL, "write a file in memory");
    *ret_fd = take_fd(&fd);
    return 0;
}

int check_run_apart(const struct conf *conf, json_t **ret, struct err *err)
{
    char program[PATH_MAX], errors[256];
    const char *argv[] = {program, "check", conf->file, NULL};
    struct process_options options = PROCESS_OPTIONS_INIT;
    free_mem char *output = NULL;
    int status = 0;
    close_fd int conf_fd = -1;
    int rc = program_find("tidemark-agent", program, err);
    if (rc == 0)
        rc = conf_to_fd(conf, &conf_fd, err);
    if (rc < 0)
        return rc;
    options.argv = argv;
    options.stdin_fd = conf_fd;
    options.timeout_s = CHECK_ALL_S;
    options.end_group = true;
    options.keep_environment = true;
    options.keep_keys = true;
    rc = process_run(&options, &status, &output, errors, sizeof(errors), err);
    if (rc < 0)
        return err_prefix(err, "the checks");
    if (status != 0)
        return err_set(err, ERR_INTERNAL, "the checks ended with status %d: %s", status, errors);
    return json_parse(output, strlen(output), ERR_INTERNAL, ret, err);
}

static int read_conf(const char *file, struct conf *ret, struct err *err)
{
    enum { CONF_MAX = 1 << 20 };
    free_mem char *text = malloc(CONF_MAX);
    if (!text)
        return err_set(err, ERR_INTERNAL, "out of memory");
    size_t len = fread(text, 1, CONF_MAX, stdin);
    int rc = conf_parse(file[0] ? file : "stdin", text, len, ret, err);
    if (rc == 0)
        (void)snprintf(ret->file, sizeof(ret->file), "%s", file);
    return rc;
}

int check_main(const char *file)
{
    static struct conf conf; /* large; one a process */
    struct err err;
    err_clear(&err);
    log_set_level(LOG_WARN);
    if (read_conf(file, &conf, &err) < 0) {
        log_err(&err);
        return err_exit_status(err.code);
    }
    free_json json_t *rows = json_array();
    check_run(&conf, append_row, rows);
    free_mem char *text = json_text(rows);
    return puts(text) < 0 || fflush(stdout) != 0 ? err_exit_status(ERR_INTERNAL) : 0;
}
