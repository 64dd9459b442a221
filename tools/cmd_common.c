/* What several verbs need: see cmd.h. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "agent/conf_report.h"
#include "agent/job.h"
#include "agent/log.h"
#include "agent/text.h"
#include "tools/cmd.h"

static int open_remote(const struct cmd *cmd, struct client **ret, struct err *err)
{
    const struct conf *conf = &cmd->conf;
    struct client_remote remote = {
        .address = cmd->agent,
        .node = cmd->agent_node,
        .tls = {conf->tls_certificate_file, conf->tls_key_file, conf->tls_ca_file}};
    bool whole = conf->tls_certificate_file[0] && conf->tls_key_file[0] && conf->tls_ca_file[0];
    if (strncmp(cmd->agent, "https:", 6) == 0 && !whole) {
        (void)err_set(err, ERR_CONFIG, "an agent elsewhere is asked with a certificate of ours");
        return err_hint(err, "set certificate_file, key_file and ca_file in section [tls]");
    }
    int rc = client_look(remote.address, err);
    return rc < 0 ? rc : client_open_remote(&remote, ret, err);
}

/* By whatever path. */
static bool is_same_file(const char *one, const char *other)
{
    struct stat a, b;
    return strcmp(one, other) == 0 || (stat(one, &a) == 0 && stat(other, &b) == 0 &&
                                       a.st_dev == b.st_dev && a.st_ino == b.st_ino);
}

/* The agent's own file may have changed since: that is only warned of (cmd_warn_stale()). */
static int check_same(const struct cmd *cmd, struct client *client, struct err *err)
{
    char difference[CONF_DIFFERENCE_LEN];
    free_json json_t *version = NULL, *ours = conf_report(&cmd->conf);
    int rc = client_call(client, "GET", "/version", NULL, &version, err);
    if (rc < 0)
        return rc;
    const char *file = json_str(version, "configuration_file");
    if (!json_is_object(json_object_get(version, "configuration"))) {
        log_warn("the agent is older than this program and does not tell its configuration: "
                 "restart it");
        return 0;
    }
    if (is_same_file(cmd->conf.file, file) ||
        !conf_report_differs(ours, json_object_get(version, "configuration"), difference))
        return 0;
    (void)err_set(err, ERR_REFUSED, "the agent at '%s' does not go by '%s': %s", cmd->conf.socket,
                  cmd->conf.file, difference);
    return err_hint(err, "give its own file (%s), or --local to work by this one without the agent",
                    file[0] ? file : "it has none: only its environment");
}

int cmd_open(const struct cmd *cmd, struct client **ret, struct err *err)
{
    if (cmd->agent)
        return open_remote(cmd, ret, err);
    int rc = client_open(&cmd->conf, cmd->local ? CLIENT_LOCAL : CLIENT_AUTO, ret, err);
    if (rc < 0)
        return rc;
    if (client_is_local(*ret) && !cmd->local)
        log_info("no agent answers, working without one: socket=%s", cmd->conf.socket);
    if (client_is_local(*ret) || !cmd->is_conf_named)
        return 0;
    rc = check_same(cmd, *ret, err);
    if (rc < 0)
        client_close(*ret);
    return rc;
}

void cmd_warn_stale(const struct cmd *cmd)
{
    free_json json_t *version = NULL;
    struct err ignored;
    if (cmd_call(cmd, "GET", "/version", &version, &ignored) < 0 ||
        !json_is_true(json_object_get(version, "stale_configuration")))
        return;
    log_warn("%s was changed after the agent read it, which goes by what it read; to have it read "
             "anew: systemctl restart tidemark-agent",
             cmd->agent ? "the configuration of the agent" : "the configuration");
}

int cmd_call(const struct cmd *cmd, const char *method, const char *path, json_t **ret,
             struct err *err)
{
    struct client *client;
    int rc = cmd_open(cmd, &client, err);
    if (rc < 0)
        return rc;
    rc = client_call(client, method, path, NULL, ret, err);
    client_close(client);
    return rc;
}

static int make_own_state(char *path, struct err *err)
{
    for (char *at = path + 1; *at; at++) {
        if (*at != '/')
            continue;
        *at = '\0';
        if (mkdir(path, 0700) < 0 && errno != EEXIST)
            return err_sys(err, ERR_DEVICE, "create '%s'", path);
        *at = '/';
    }
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return err_sys(err, ERR_DEVICE, "create '%s'", path);
    return 0;
}

int cmd_use_own_state(struct cmd *cmd, struct err *err)
{
    struct conf *conf = &cmd->conf;
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    if (!cmd->local || geteuid() == 0 || access(conf->state_dir, W_OK) == 0)
        return 0;
    bool given = state && state[0] == '/';
    if (!given && !(home && home[0] == '/'))
        return err_set(err, ERR_CONFIG, "state_dir '%s' is not writable, and HOME is not set",
                       conf->state_dir);
    (void)snprintf(conf->state_dir, sizeof(conf->state_dir), "%s%s/tidemark", given ? state : home,
                   given ? "" : "/.local/state");
    return make_own_state(conf->state_dir, err);
}

int cmd_check_name(const char *what, const char *name, struct err *err)
{
    if (repo_name_valid(name, 64))
        return 0;
    return err_set(err, ERR_USAGE, "'%.80s' is not the name of a %s", name, what);
}

/* One that runs is found as well: that it runs is then the answer. */
static bool is_resumable(const json_t *job)
{
    const char *state = cmd_text(job, "state");
    const char *type = cmd_text(job, "type");
    return (strcmp(type, "restore") == 0 || strcmp(type, "cluster_restore") == 0) &&
           !job_is_cluster_part(job) &&
           (job_is_partial(job) || json_is_true(json_object_get(job, "running")) ||
            strcmp(state, "executed") == 0 || strcmp(state, "interrupted") == 0);
}

static int find_in(const json_t *jobs, const char *prefix, char ret[ID_TEXT_LEN], struct err *err)
{
    const char *found = NULL;
    size_t i;
    json_t *job;
    json_array_foreach(jobs, i, job)
    {
        const char *id = cmd_text(job, "id");
        bool match = prefix ? strncmp(id, prefix, strlen(prefix)) == 0 : is_resumable(job);
        if (prefix && match && found)
            return err_set(err, ERR_USAGE, "several jobs begin with '%s': %s, %s", prefix, found,
                           id);
        if (match)
            found = id;
    }
    if (!found && !prefix) {
        (void)err_set(err, ERR_MISSING, "there is no restore to resume");
        return err_hint(err, "`tidemark jobs` lists what there was; one that only has its plan "
                             "begins anew with `tidemark restore TAG`");
    }
    if (!found) {
        (void)err_set(err, ERR_MISSING, "there is no job '%s'", prefix);
        return err_hint(err, "`tidemark jobs` lists them");
    }
    (void)snprintf(ret, ID_TEXT_LEN, "%s", found);
    return 0;
}

int cmd_find_job(struct client *client, const char *prefix, char ret[ID_TEXT_LEN], struct err *err)
{
    free_json json_t *answer = NULL;
    if (prefix && (strlen(prefix) < 6 || strspn(prefix, "0123456789abcdef") != strlen(prefix)))
        return err_set(err, ERR_USAGE, "'%.80s' is not the id of a job (or its first 6 digits)",
                       prefix);
    int rc = client_call(client, "GET", "/jobs", NULL, &answer, err);
    return rc < 0 ? rc : find_in(json_object_get(answer, "jobs"), prefix, ret, err);
}

void cmd_add_option(const struct cmd *cmd, const char *name, const char *key, json_t *body)
{
    const char *value = cmd_option(cmd, name);
    if (value)
        (void)json_object_set_new(body, key, value[0] ? json_string(value) : json_true());
}

const char *cmd_text(const json_t *json, const char *key)
{
    return json_str(json, key);
}

const char *cmd_text_or_dash(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text ? text : "-";
}

void cmd_print_json(const json_t *json)
{
    char *text = json_text(json);
    (void)puts(text);
    free(text);
}

unsigned cmd_columns(int fd)
{
    struct winsize size = {0};
    if (!isatty(fd))
        return 0;
    return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

void cmd_print_text(const char *text, unsigned columns, FILE *to)
{
    unsigned used = 0;
    for (const char *at = text; *at; at++) {
        bool begins = ((unsigned char)*at & 0xc0) != 0x80; /* of a character in UTF-8 */
        if (begins && columns > 0 && used++ == columns)
            return;
        (void)fputc((unsigned char)*at < 0x20 || *at == 0x7f ? ' ' : *at, to);
    }
}

/* Characters of UTF-8 up to the next blank. */
static unsigned word_width(const char *text, size_t *ret_len)
{
    unsigned width = 0;
    *ret_len = strcspn(text, " ");
    for (size_t i = 0; i < *ret_len; i++)
        width += ((unsigned char)text[i] & 0xc0) != 0x80;
    return width;
}

void cmd_print_wrapped(const char *text, unsigned indent, unsigned columns, FILE *to)
{
    enum { ROOM_MIN = 30 }; /* a narrow terminal breaks lines itself */
    unsigned used = 0;
    if (columns < indent + ROOM_MIN) {
        cmd_print_text(text, 0, to);
        (void)fputc('\n', to);
        return;
    }
    while (*text) {
        size_t len;
        unsigned width = word_width(text, &len);
        if (used > 0 && indent + used + 1 + width > columns) {
            (void)fprintf(to, "\n%*s", (int)indent, "");
            used = 0;
        }
        if (used > 0)
            (void)fputc(' ', to);
        char word[4096];
        (void)snprintf(word, sizeof(word), "%.*s", (int)len, text);
        cmd_print_text(word, 0, to);
        used += width + (used > 0);
        text += len + strspn(text + len, " ");
    }
    (void)fputc('\n', to);
}

static void print_scalar(const json_t *json, FILE *to)
{
    if (json_is_string(json)) {
        cmd_print_text(json_string_value(json), 0, to);
        (void)fputc('\n', to);
        return;
    }
    char *text = json_text(json);
    (void)fprintf(to, "%s\n", json_is_null(json) ? "-" : text);
    free(text);
}

static bool is_scalar(const json_t *json)
{
    return !json_is_object(json) && !json_is_array(json);
}

void cmd_print_tree(const json_t *json, int indent, FILE *to)
{
    const char *key;
    json_t *value;
    size_t i;
    json_object_foreach((json_t *)(uintptr_t)json, key, value)
    {
        (void)fprintf(to, "%*s%s:%s", indent, "", key, is_scalar(value) ? " " : "\n");
        if (is_scalar(value))
            print_scalar(value, to);
        else
            cmd_print_tree(value, indent + 2, to);
    }
    json_array_foreach(json, i, value)
    {
        (void)fprintf(to, "%*s-%s", indent, "", is_scalar(value) ? " " : "\n");
        if (is_scalar(value))
            print_scalar(value, to);
        else
            cmd_print_tree(value, indent + 2, to);
    }
}

void cmd_format_size(uint64_t bytes, char text[24])
{
    text_size(bytes, text);
}

bool cmd_format_track(const json_t *volume, const char *parent, char text[CMD_TRACK_LEN])
{
    const char *full = json_string_value(json_object_get(volume, "track_full"));
    json_int_t used = json_integer_value(json_object_get(volume, "track_used"));
    json_int_t read = json_integer_value(json_object_get(volume, "track_read"));
    if (full)
        (void)snprintf(text, CMD_TRACK_LEN, "not tracked, all of it was read: %s", full);
    else
        (void)snprintf(text, CMD_TRACK_LEN, "tracked since %s: %lld of %lld chunks had changed",
                       parent, (long long)read, (long long)used);
    return full || used > 0;
}

void cmd_format_time(int64_t time_s, char text[32])
{
    text_time(time_s, text);
}
