/* Command lines: one table a verb feeds getopt_long and --help, so that they cannot disagree. */
#include <ctype.h>
#include <getopt.h>
#include <stdio.h>

#include "agent/log.h"
#include "agent/nearest.h"
#include "tools/cmd.h"

enum { OPTIONS_MAX = 48, COMMON_ID = 0x100, OWN_ID = 0x200 };

const struct cmd_option cmd_common_options[] = {
    {"config", 'c', "FILE",
     "configuration (default: $TIDEMARK_CONFIG, /etc/tidemark/tidemark.conf)"},
    {"agent", 'a', "ADDRESS", "ask the agent at https://HOST:PORT (or unix:/path/agent.sock)"},
    {"agent-node", 0, "NAME", "the node that its certificate names (default: HOST)"},
    {"repository", 'r', "URL", "use this repository, and no agent"},
    {"endpoint", 0, "URL", "server of an s3:// repository (https://host[:port])"},
    {"region", 0, "NAME", "its region"},
    {"addressing", 0, "auto|path|virtual", "where the bucket stands"},
    {"ca-file", 0, "FILE", "certificates that the server's is checked against"},
    {"credentials-file", 0, "FILE", "its keys, mode 0600"},
    {"wal-credentials-file", 0, "FILE", "keys for the server's own user (tidemark-wal)"},
    {"key-file", 0, "FILE", "the key file of an encrypted repository"},
    {"wal-key-file", 0, "FILE", "that for the server's own user (tidemark-wal)"},
    {"json", 0, NULL, "print JSON, one object a line"},
    {"yes", 'y', NULL, "do not ask"},
    {"local", 0, NULL, "run the job from here even when an agent answers"},
    {"quiet", 'q', NULL, "no progress"},
    {"verbose", 'v', NULL, "log what is done"},
    {"help", 'h', NULL, "this text"},
    {NULL, 0, NULL, NULL},
};

static size_t count_options(const struct cmd_option *options)
{
    size_t count = 0;
    while (options && options[count].name)
        count++;
    return count;
}

static int takes_value(const struct cmd_option *option)
{
    if (!option->value)
        return no_argument;
    return option->value[0] == '[' ? optional_argument : required_argument;
}

struct tables {
    struct option longs[OPTIONS_MAX + 1];
    const char *names[OPTIONS_MAX + 1];
    char letters[3 * OPTIONS_MAX + 2];
};

static void add_options(struct tables *tables, size_t *count, const struct cmd_option *options,
                        int first_id)
{
    for (size_t i = 0; options && options[i].name && *count < OPTIONS_MAX; i++, (*count)++) {
        tables->longs[*count] =
            (struct option){options[i].name, takes_value(&options[i]), NULL, first_id + (int)i};
        tables->names[*count] = options[i].name;
        size_t len = strlen(tables->letters);
        if (options[i].letter)
            (void)snprintf(tables->letters + len, sizeof(tables->letters) - len, "%c%s",
                           options[i].letter, options[i].value ? ":" : "");
    }
}

/* A letter stands for the same id as its long name. */
static int id_of(const struct cmd_option *own, int c)
{
    if (c >= COMMON_ID)
        return c;
    for (size_t i = 0; i < count_options(cmd_common_options); i++)
        if (cmd_common_options[i].letter == c)
            return COMMON_ID + (int)i;
    for (size_t i = 0; i < count_options(own); i++)
        if (own[i].letter == c)
            return OWN_ID + (int)i;
    return -1;
}

static int bad_option(const struct tables *tables, const char *verb, int c, char **argv,
                      struct err *err)
{
    const char *text = optopt && optopt < COMMON_ID ? NULL : argv[optind - 1];
    if (c == ':')
        return err_set(err, ERR_USAGE, "%s needs a value", argv[optind - 1]);
    if (!text) {
        (void)err_set(err, ERR_USAGE, "unknown option -%c", optopt);
        return err_hint(err,
                        "`tidemark help %s` lists them; a name that begins with - stands "
                        "behind --",
                        verb);
    }
    char name[64];
    text += strspn(text, "-");
    (void)snprintf(name, sizeof(name), "%.*s", (int)strcspn(text, "="), text);
    const char *near = nearest_name(name, tables->names);
    if (near && strcmp(near, name) == 0)
        return err_set(err, ERR_USAGE, "option --%s takes no value", name);
    if (near)
        return err_set(err, ERR_USAGE, "unknown option --%s (did you mean --%s?)", name, near);
    (void)err_set(err, ERR_USAGE, "unknown option --%s", name);
    return err_hint(
        err, "`tidemark help %s` lists them; a name that begins with - stands behind --", verb);
}

/* Options that are configuration values under another name. */
static const char *conf_key(const char *option)
{
    static const struct {
        const char *option, *key;
    } keys[] = {{"repository", "repository.url"},
                {"endpoint", "repository.endpoint"},
                {"region", "repository.region"},
                {"addressing", "repository.addressing"},
                {"ca-file", "repository.ca_file"},
                {"credentials-file", "repository.credentials_file"},
                {"wal-credentials-file", "wal.credentials_file"},
                {"key-file", "repository.key_file"},
                {"wal-key-file", "wal.key_file"}};
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (strcmp(keys[i].option, option) == 0)
            return keys[i].key;
    return NULL;
}

static int take_common(struct cmd *cmd, const struct cmd_option *option, const char *value,
                       struct err *err)
{
    const char *key = conf_key(option->name);
    if (key && cmd->conf_count == CMD_CONF_MAX)
        return err_set(err, ERR_USAGE, "too many options");
    if (key)
        cmd->conf_given[cmd->conf_count++] = (struct cmd_repeat){key, value};
    else if (strcmp(option->name, "config") == 0)
        cmd->config_file = value;
    else if (strcmp(option->name, "agent") == 0)
        cmd->agent = value;
    else if (strcmp(option->name, "agent-node") == 0)
        cmd->agent_node = value;
    else if (strcmp(option->name, "json") == 0)
        cmd->json = true;
    else if (strcmp(option->name, "yes") == 0)
        cmd->yes = true;
    else if (strcmp(option->name, "local") == 0)
        cmd->local = true;
    else if (strcmp(option->name, "quiet") == 0)
        cmd->quiet = true;
    else if (strcmp(option->name, "verbose") == 0)
        log_set_level(LOG_INFO);
    else
        return CMD_DONE;
    return 0;
}

static int take_own(struct cmd *cmd, const struct cmd_option *option, const char *value,
                    struct err *err)
{
    if (cmd->given_count == CMD_REPEAT_MAX)
        return err_set(err, ERR_USAGE, "too many options");
    cmd->given[cmd->given_count++] = (struct cmd_repeat){option->name, value ? value : ""};
    return 0;
}

static int take_args(struct cmd *cmd, int argc, char **argv, struct err *err)
{
    size_t count = (size_t)(argc - optind);
    if (count < cmd->verb->args_min)
        return err_set(err, ERR_USAGE, "expected: tidemark %s %s", cmd->verb->name,
                       cmd->verb->args);
    if (count > cmd->verb->args_max)
        return err_set(err, ERR_USAGE, "unexpected argument '%.100s'",
                       argv[(size_t)optind + cmd->verb->args_max]);
    for (size_t i = 0; i < count; i++)
        cmd->args[cmd->arg_count++] = argv[(size_t)optind + i];
    return 0;
}

static int check_agent(const struct cmd *cmd, struct err *err)
{
    if (!cmd->agent)
        return cmd->agent_node ? err_set(err, ERR_USAGE, "--agent-node needs --agent") : 0;
    if (cmd->verb->is_local)
        return err_set(err, ERR_USAGE, "`tidemark %s` is about this host: it takes no --agent",
                       cmd->verb->name);
    if (cmd->local || cmd->conf_count > 0)
        return err_set(err, ERR_USAGE,
                       "--agent asks another host's agent: --local and options of the repository "
                       "contradict it");
    return 0;
}

/* Whoever names a repository on the line means this one, not the agent's. */
static int load_conf(struct cmd *cmd, struct err *err)
{
    const char *own = cmd->verb->config;
    if (!cmd->config_file && own && !getenv("TIDEMARK_CONFIG") && access(own, F_OK) == 0)
        cmd->config_file = own;
    else
        cmd->is_conf_named = cmd->config_file || getenv("TIDEMARK_CONFIG");
    int rc = conf_load(cmd->config_file, &cmd->conf, err);
    for (size_t i = 0; rc == 0 && i < cmd->conf_count; i++) {
        cmd->local = true;
        rc = conf_set(&cmd->conf, cmd->conf_given[i].name, cmd->conf_given[i].value, err);
    }
    return rc;
}

int cmd_parse(struct cmd *cmd, const struct cmd_verb *verb, int argc, char **argv, struct err *err)
{
    static struct tables tables;
    size_t count = 0;
    cmd->verb = verb;
    tables.letters[0] = ':'; /* tells a missing value from an unknown option */
    add_options(&tables, &count, cmd_common_options, COMMON_ID);
    add_options(&tables, &count, verb->options, OWN_ID);
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, tables.letters, tables.longs, NULL)) != -1;) {
        int id = c == '?' || c == ':' ? -1 : id_of(verb->options, c);
        int rc;
        if (id < 0)
            rc = bad_option(&tables, verb->name, c, argv, err);
        else if (id >= OWN_ID)
            rc = take_own(cmd, &verb->options[id - OWN_ID], optarg, err);
        else
            rc = take_common(cmd, &cmd_common_options[id - COMMON_ID], optarg, err);
        if (rc == CMD_DONE)
            cmd_print_help(verb, stdout);
        if (rc != 0)
            return rc;
    }
    int rc = take_args(cmd, argc, argv, err);
    if (rc == 0)
        rc = check_agent(cmd, err);
    return rc < 0 ? rc : load_conf(cmd, err);
}

const char *cmd_option(const struct cmd *cmd, const char *name)
{
    const char *value = NULL;
    for (size_t i = 0; i < cmd->given_count; i++)
        if (strcmp(cmd->given[i].name, name) == 0)
            value = cmd->given[i].value; /* the last one wins */
    return value;
}

static void print_options(const struct cmd_option *options, FILE *to)
{
    for (size_t i = 0; options && options[i].name; i++) {
        char left[64], letter[8] = "    ";
        const struct cmd_option *option = &options[i];
        bool optional = option->value && option->value[0] == '[';
        if (option->letter)
            (void)snprintf(letter, sizeof(letter), "-%c, ", option->letter);
        (void)snprintf(left, sizeof(left), "%s--%s%s%s", letter, option->name,
                       option->value && !optional ? "=" : "", option->value ? option->value : "");
        (void)fprintf(to, "  %-34s %s\n", left, option->help);
    }
}

void cmd_print_help(const struct cmd_verb *verb, FILE *to)
{
    (void)fprintf(to, "usage: tidemark %s [OPTION…]%s%s\n\n%s\n\n", verb->name,
                  verb->args[0] ? " " : "", verb->args, verb->summary);
    print_options(verb->options, to);
    if (verb->options)
        (void)fputc('\n', to);
    print_options(cmd_common_options, to);
    if (verb->notes)
        (void)fprintf(to, "\n%s", verb->notes);
}
