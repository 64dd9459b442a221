/* tidemark: the command line. Every verb is in tools/cmd_<verb>.c; this file only finds it. */
#include <stdio.h>

#include "agent/log.h"
#include "agent/nearest.h"
#include "tools/cmd.h"

static const struct cmd_verb *const verbs[] = {
    &verb_init,   &verb_check,   &verb_snapshot, &verb_list,    &verb_show,  &verb_verify,
    &verb_export, &verb_restore, &verb_expire,   &verb_pin,     &verb_unpin, &verb_status,
    &verb_jobs,   &verb_cancel,  &verb_cluster,  &verb_patroni, &verb_key,
};

enum { LEFT_COLUMNS = 30 };

static void print_usage(FILE *to)
{
    (void)fputs("usage: tidemark VERB [OPTION…] [ARGUMENT…]\n\n"
                "Tagged block-level snapshots of a PostgreSQL server, and the way back.\n\n",
                to);
    for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
        int used = fprintf(to, "  %s %s", verbs[i]->name, verbs[i]->args);
        if (used > LEFT_COLUMNS) /* the summary stands below */
            used = fprintf(to, "\n") - 1;
        (void)fprintf(to, "%*s %.*s\n", LEFT_COLUMNS - used, "",
                      (int)strcspn(verbs[i]->summary, ".\n"), verbs[i]->summary);
    }
    (void)fputs("\n`tidemark help VERB` lists the options of a verb.\n"
                "Exit status: 0 ok, 2 usage, 10 config, 11 device, 12 store, 13 auth, 14 corrupt,\n"
                "15 missing, 16 postgres, 17 busy, 18 cancelled, 19 refused, 20 partial, 70 "
                "internal.\n",
                to);
}

static const struct cmd_verb *find_verb(const char *name, struct err *err)
{
    const char *names[ARRAY_LEN(verbs) + 1] = {NULL};
    for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
        names[i] = verbs[i]->name;
        if (strcmp(verbs[i]->name, name) == 0)
            return verbs[i];
    }
    if (name[0] == '-') {
        (void)err_set(err, ERR_USAGE, "the verb comes first, before '%.60s'", name);
        (void)err_hint(err, "tidemark VERB [OPTION…], see `tidemark --help`");
        return NULL;
    }
    const char *near = nearest_name(name, names);
    (void)err_set(err, ERR_USAGE, "unknown verb '%.60s'", name);
    (void)err_hint(err, near ? "did you mean `tidemark %s`?" : "see `tidemark --help`%s",
                   near ? near : "");
    return NULL;
}

/* `tidemark --agent=X status` is `tidemark status --agent=X`: an option that has its value in its
 * own word may come first. */
static void bring_verb_first(int argc, char **argv)
{
    int at = 1;
    while (at < argc && strncmp(argv[at], "--", 2) == 0 && strchr(argv[at], '='))
        at++;
    if (at == 1 || at == argc)
        return;
    char *verb = argv[at];
    memmove(&argv[2], &argv[1], (size_t)(at - 1) * sizeof(*argv));
    argv[1] = verb;
}

static int fail(const struct err *err)
{
    log_err(err);
    return err_exit_status(err->code);
}

/* Of a verb, or of all. */
static int help(const char *name)
{
    struct err err;
    const struct cmd_verb *verb = name ? find_verb(name, &err) : NULL;
    if (name && !verb)
        return fail(&err);
    if (verb)
        cmd_print_help(verb, stdout);
    else
        print_usage(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    static struct cmd cmd; /* large; one a process */
    struct err err;
    err_clear(&err);
    log_set_level(LOG_WARN);
    if (argc < 2) {
        print_usage(stderr);
        return err_exit_status(ERR_USAGE);
    }
    bring_verb_first(argc, argv);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0)
        return help(argc > 2 ? argv[2] : NULL);
    if (strcmp(argv[1], "--print-man") == 0) {
        cmd_print_man(verbs, ARRAY_LEN(verbs), stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        (void)puts("tidemark " TIDEMARK_VERSION);
        return 0;
    }
    const struct cmd_verb *verb = find_verb(argv[1], &err);
    if (!verb)
        return fail(&err);
    int rc = cmd_parse(&cmd, verb, argc - 1, argv + 1, &err);
    if (rc == CMD_DONE)
        return 0;
    if (rc == 0)
        rc = verb->run(&cmd, &err);
    if (fflush(stdout) != 0 && rc == 0)
        rc = err_sys(&err, ERR_DEVICE, "write to stdout");
    return rc < 0 ? fail(&err) : 0;
}
