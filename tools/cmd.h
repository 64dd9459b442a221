/* What the verbs of `tidemark` share: one table of options a verb (it feeds getopt_long and
 * --help), the connection, following a job, printing. A verb is tools/cmd_<verb>.c with one public
 * function and its table. One thread. */
#ifndef TIDEMARK_TOOLS_CMD_H
#define TIDEMARK_TOOLS_CMD_H

#include "agent/client.h"
#include "agent/conf.h"
#include "io/repo.h"

struct cmd_option {
    const char *name;  /* long name without dashes */
    char letter;       /* 0 = none */
    const char *value; /* name of its value in --help; NULL = takes none; "[X]" = optional */
    const char *help;
};

enum { CMD_ARGS_MAX = 64, CMD_REPEAT_MAX = 32, CMD_CONF_MAX = 16 };

struct cmd_repeat {
    const char *name;
    const char *value;
};

/* A parsed command line. */
struct cmd {
    const struct cmd_verb *verb;
    struct conf conf;
    bool json, yes, local, quiet;
    const char *config_file;
    bool is_conf_named; /* by --config or $TIDEMARK_CONFIG: the agent has to have the same */
    const char *agent, *agent_node; /* --agent: another host's; NULL = this one's, or none */
    struct cmd_repeat conf_given[CMD_CONF_MAX]; /* options that are configuration: key, value */
    size_t conf_count;
    struct cmd_repeat given[CMD_REPEAT_MAX]; /* the verb's own options in their order */
    size_t given_count;
    const char *args[CMD_ARGS_MAX];
    size_t arg_count;
    char last_phase[64]; /* that was printed: one line a phase, also over several runs of a job */
    /* Sees every status of a job that is followed; NULL = nobody wants to. */
    void (*on_status)(struct cmd *cmd, const json_t *status);
    bool plan_shown;
};

struct cmd_verb {
    const char *name;
    const char *args; /* for --help: "TAG|ID|latest" */
    size_t args_min, args_max;
    const char *summary;
    const struct cmd_option *options; /* ended by a NULL name; NULL = none */
    const char *notes;                /* more text for --help; NULL = none */
    bool tells_failed;                /* --json prints the status of a job that has failed, too */
    bool is_local;                    /* is about this host: takes no --agent */
    const char *config;               /* read instead of tidemark.conf when it is there; or NULL */
    int (*run)(struct cmd *cmd, struct err *err);
};

extern const struct cmd_verb verb_init, verb_snapshot, verb_list, verb_show, verb_restore,
    verb_verify, verb_export, verb_expire, verb_pin, verb_unpin, verb_status, verb_jobs,
    verb_cancel, verb_check, verb_cluster, verb_patroni, verb_key;

/* --- cmd_snapshot.c --- */
/* Warns of a tag that was just given and could be taken for the first digits of an id. */
void cmd_note_tag(const char *tag);

/* --- cmd_status.c --- */
/* 0 for a healthy node, else the cause: ERR_BUSY while a restore is at work, ERR_PARTIAL when one
 * has stopped, ERR_POSTGRES for the server, ERR_REFUSED for its history. */
int cmd_health_error(const json_t *health, struct err *err);
/* The program whose health it is. */
const char *cmd_daemon(const json_t *health);
/* Its configuration file is newer than the daemon. */
void cmd_print_stale(const struct cmd *cmd, const char *daemon);

/* --- cmd_options.c --- */
/* Parses argv[1…] of the verb: common options and its own. 0, ERR_USAGE (with the nearest name), or
 * CMD_DONE when --help was printed. */
enum { CMD_DONE = 1 };
int cmd_parse(struct cmd *cmd, const struct cmd_verb *verb, int argc, char **argv, struct err *err);
/* Value of one of the verb's own options: NULL when it was not given, "" when it has no value. */
const char *cmd_option(const struct cmd *cmd, const char *name);
void cmd_print_help(const struct cmd_verb *verb, FILE *to);
extern const struct cmd_option cmd_common_options[];

/* --- cmd_man.c --- */
void cmd_print_man(const struct cmd_verb *const *verbs, size_t count, FILE *to);

/* --- cmd_common.c --- */
/* The agent, another host's with --agent. ERR_REFUSED when the configuration that was named is
 * another file than its own, and says another cluster, repository, server, … (conf_report.h): what
 * it did would not be what was asked for. */
int cmd_open(const struct cmd *cmd, struct client **ret, struct err *err);
/* Warns when the agent's configuration was changed since it read it: it goes by what it read. For
 * verbs that act by it; an agent that does not answer must not keep them from hearing Ctrl-C. */
void cmd_warn_stale(const struct cmd *cmd);
/* One request by a client of its own. *ret: the answer (new reference). */
int cmd_call(const struct cmd *cmd, const char *method, const char *path, json_t **ret,
             struct err *err);
/* For verbs that need no root: jobs without an agent get a state_dir below the user's home when the
 * configured one is not his. Before cmd_open(). */
int cmd_use_own_state(struct cmd *cmd, struct err *err);
/* Name of a snapshot or job, as part of a path: ERR_USAGE when it cannot be one. */
int cmd_check_name(const char *what, const char *name, struct err *err);
/* Completes a unique prefix of a job's id (≥ 6 digits); NULL = the newest restore that can be
 * resumed. */
int cmd_find_job(struct client *client, const char *prefix, char ret[ID_TEXT_LEN], struct err *err);
/* Adds key: "VALUE" of option name to body when it was given. */
void cmd_add_option(const struct cmd *cmd, const char *name, const char *key, json_t *body);
void cmd_print_json(const json_t *json);

/* The string under key, "" when there is none; borrowed. */
const char *cmd_text(const json_t *json, const char *key);
/* The same for a table: "-" when there is none. */
const char *cmd_text_or_dash(const json_t *json, const char *key);
/* Columns of the terminal behind fd, 0 when there is none. */
unsigned cmd_columns(int fd);
/* Text from anywhere, without control characters: they must not reach a terminal. At most columns
 * characters of it, 0 = all. */
void cmd_print_text(const char *text, unsigned columns, FILE *to);
/* The same with an end of line, broken between words where a terminal has so few columns; further
 * lines begin at `indent`, where this one is. */
void cmd_print_wrapped(const char *text, unsigned indent, unsigned columns, FILE *to);
/* Indented "key: value" lines of anything. */
void cmd_print_tree(const json_t *json, int indent, FILE *to);
void cmd_format_size(uint64_t bytes, char text[24]);
/* What a volume of a record says of option track; false when it was off. */
enum { CMD_TRACK_LEN = 256 };
bool cmd_format_track(const json_t *volume, const char *parent, char text[CMD_TRACK_LEN]);
/* "2026-11-25 21:04:05 UTC", as --target-time takes it; "-" for 0. */
void cmd_format_time(int64_t time_s, char text[32]);

/* --- cmd_follow.c --- */
/* POSTs, follows the job it made to the end of this run, shows progress. *ret: the job's last
 * status (new reference). Fails with the job's own error, so that the exit status is its code. The
 * first Ctrl-C cancels the job, also one that came while it was being made; a restore past `marked`
 * is left running and the message says how to follow it (ERR_PARTIAL). */
int cmd_run_job(struct cmd *cmd, struct client *client, const char *path, const json_t *body,
                json_t **ret, struct err *err);
/* The same by a client of its own. */
int cmd_run_one_job(struct cmd *cmd, const char *path, const json_t *body, json_t **ret,
                    struct err *err);
int cmd_follow_job(struct cmd *cmd, struct client *client, const char *id, json_t **ret,
                   struct err *err);
/* True when cmd_confirm() would ask: on a terminal, without --yes. */
bool cmd_asks(const struct cmd *cmd);
/* Asks on the terminal; without one (or with --yes) the answer is yes. Ctrl-C, SIGTERM, the end of
 * the input and a terminal that is closed are a no, also those since the job was prepared: from
 * then on cmd_run_job() leaves signals to this function. */
bool cmd_confirm(const struct cmd *cmd, const char *question);
/* The same with other words than yes, as long as 30 bytes. */
bool cmd_confirm_words(const struct cmd *cmd, const char *question, const char *words);

#endif
