/* tidemark restore: plan, question, execute, verify, as one command. */
#include <stdio.h>

#include "tools/cmd.h"

static const struct cmd_option options[] = {
    {"dry-run", 0, NULL, "print the plan and touch nothing"},
    {"resume", 0, "[=JOB]", "go on with an unfinished restore (default: the newest)"},
    {"target", 0, "TARGET", "tag (default), snapshot, latest, name=N, time=T, lsn=L, xid=X"},
    {"target-name", 0, "NAME", "recover to this restore point"},
    {"target-time", 0, "TIME", "recover to this time"},
    {"target-lsn", 0, "LSN", "recover to this WAL location"},
    {"target-xid", 0, "XID", "recover to this transaction"},
    {"target-timeline", 0, "N", "along this timeline (default: found from the history files)"},
    {"action", 0, "promote|pause|shutdown", "what the server does at the target"},
    {"verify", 0, "LEVEL", "none, quick, standard (default) or full"},
    {"reindex", 0, "none|auto", "rebuild indexes that fail verification"},
    {"overwrite", 0, "VOLUME=ID",
     "also overwrite this foreign device, named by WWN, serial, dm "
     "uuid or path:size:diskseq"},
    {"device", 0, "VOLUME:PATH", "write this volume to this device"},
    {"server-config", 0, "keep|image",
     "PostgreSQL's configuration files: those of this host, or "
     "those of the snapshot"},
    {"discard-unarchived-wal", 0, NULL, "lose WAL that the repository lacks and cannot get"},
    {NULL, 0, NULL, NULL},
};

/* --- the request -------------------------------------------------------------------------------*/
static int set_target(json_t *body, const char *type, const char *value, struct err *err)
{
    if (json_object_get(body, "target"))
        return err_set(err, ERR_USAGE, "more than one target");
    json_t *target = json_pack("{s:s}", "type", type);
    if (value)
        (void)json_object_set_new(target, "value", json_string(value));
    (void)json_object_set_new(body, "target", target);
    return 0;
}

/* --target=name=X and --target-name=X are the same. */
static int take_target(json_t *body, const char *text, struct err *err)
{
    char type[16];
    const char *equals = strchr(text, '=');
    (void)snprintf(type, sizeof(type), "%.*s", (int)strcspn(text, "="), text);
    return set_target(body, type, equals ? equals + 1 : NULL, err);
}

/* "VOLUME<separator>VALUE" into the object body[key]. */
static int take_pair(json_t *body, const char *key, const char *text, char separator,
                     struct err *err)
{
    char volume[CONF_NAME_MAX + 1];
    const char *at = strchr(text, separator);
    if (!at || at == text || !at[1] || (size_t)(at - text) >= sizeof(volume))
        return err_set(err, ERR_USAGE, "'%.200s' is not VOLUME%cVALUE", text, separator);
    memcpy(volume, text, (size_t)(at - text));
    volume[at - text] = '\0';
    json_t *map = json_object_get(body, key);
    if (!map) {
        map = json_object();
        (void)json_object_set_new(body, key, map);
    }
    (void)json_object_set_new(map, volume, json_string(at + 1));
    return 0;
}

static int take_timeline(json_t *body, const char *text, struct err *err)
{
    char *end;
    unsigned long long number = strtoull(text, &end, 10);
    if (*end || number == 0 || number > UINT32_MAX)
        return err_set(err, ERR_USAGE, "'%.80s' is not a timeline", text);
    (void)json_object_set_new(body, "target_timeline", json_integer((json_int_t)number));
    return 0;
}

static int take_option(json_t *body, const char *name, const char *value, struct err *err)
{
    if (strcmp(name, "target") == 0)
        return take_target(body, value, err);
    if (strcmp(name, "target-timeline") == 0)
        return take_timeline(body, value, err);
    if (strncmp(name, "target-", 7) == 0)
        return set_target(body, name + 7, value, err);
    if (strcmp(name, "overwrite") == 0)
        return take_pair(body, "overwrite", value, '=', err);
    if (strcmp(name, "device") == 0)
        return take_pair(body, "devices", value, ':', err);
    return 0;
}

static int make_body(const struct cmd *cmd, json_t *body, struct err *err)
{
    if (cmd->arg_count != 1)
        return err_set(err, ERR_USAGE, "expected: tidemark restore TAG|ID|latest");
    (void)json_object_set_new(body, "snapshot", json_string(cmd->args[0]));
    int rc = cmd_check_name("snapshot", cmd->args[0], err);
    for (size_t i = 0; rc == 0 && i < cmd->given_count; i++)
        rc = take_option(body, cmd->given[i].name, cmd->given[i].value, err);
    cmd_add_option(cmd, "action", "action", body);
    cmd_add_option(cmd, "verify", "verify", body);
    cmd_add_option(cmd, "reindex", "reindex", body);
    cmd_add_option(cmd, "server-config", "config", body);
    cmd_add_option(cmd, "discard-unarchived-wal", "discard_unarchived_wal", body);
    cmd_add_option(cmd, "dry-run", "dry_run", body);
    return rc;
}

/* --- the three steps ---------------------------------------------------------------------------*/
static const char *id_of(const json_t *status)
{
    const char *id = json_string_value(json_object_get(status, "id"));
    return id ? id : "";
}

static bool in_state(const json_t *status, const char *state)
{
    const char *text = json_string_value(json_object_get(status, "state"));
    return text && strcmp(text, state) == 0;
}

static int next_step(const struct cmd *cmd, struct client *client, const char *verb,
                     json_t **status, struct err *err)
{
    char path[96];
    json_t *next = NULL;
    (void)snprintf(path, sizeof(path), "/restores/%s/%s", id_of(*status), verb);
    int rc = cmd_run_job(cmd, client, path, NULL, &next, err);
    if (rc < 0)
        return rc;
    json_decref(*status);
    *status = next;
    return 0;
}

static void give_up_plan(struct client *client, const char *id)
{
    char path[64];
    free_json json_t *answer = NULL;
    struct err ignored;
    (void)snprintf(path, sizeof(path), "/jobs/%s", id);
    (void)client_call(client, "DELETE", path, NULL, &answer, &ignored);
}

/* From a prepared job to its end; a job that ended at once (dry run, none to verify) stays. */
static int carry_on(const struct cmd *cmd, struct client *client, json_t **status, struct err *err)
{
    int rc = 0;
    if (in_state(*status, "prepared")) {
        if (!cmd_confirm(cmd, "The volumes above will be overwritten.")) {
            give_up_plan(client, id_of(*status));
            return err_set(err, ERR_CANCELLED, "nothing was touched");
        }
        rc = next_step(cmd, client, "execute", status, err);
    }
    if (rc == 0 && in_state(*status, "executed"))
        rc = next_step(cmd, client, "verify", status, err);
    return rc;
}

static void print_plan(const struct cmd *cmd, const json_t *status)
{
    const json_t *plan = json_object_get(status, "plan");
    bool dry_run = cmd_option(cmd, "dry-run");
    if (!plan || (cmd->json && !dry_run))
        return;
    if (cmd->json) {
        cmd_print_json(plan);
        return;
    }
    (void)puts("plan:");
    cmd_print_tree(plan, 2, stdout);
    (void)fflush(stdout);
}

static int restore(const struct cmd *cmd, struct client *client, json_t **status, struct err *err)
{
    free_json json_t *body = json_object();
    int rc = make_body(cmd, body, err);
    if (rc == 0)
        rc = cmd_run_job(cmd, client, "/restores", body, status, err);
    if (rc < 0)
        return rc;
    print_plan(cmd, *status);
    return cmd_option(cmd, "dry-run") ? 0 : carry_on(cmd, client, status, err);
}

/* --resume, --resume=JOB and `--resume JOB`. What a job that waits between two steps needs is its
 * next step. */
static int resume(const struct cmd *cmd, struct client *client, json_t **status, struct err *err)
{
    char id[ID_TEXT_LEN], path[96];
    const char *given = cmd_option(cmd, "resume");
    given = given[0] ? given + (given[0] == '=') : cmd->arg_count ? cmd->args[0] : NULL;
    int rc = cmd_find_job(client, given, id, err);
    if (rc < 0)
        return rc;
    (void)snprintf(path, sizeof(path), "/jobs/%s", id);
    rc = client_call(client, "GET", path, NULL, status, err);
    if (rc < 0)
        return rc;
    if (in_state(*status, "prepared") || in_state(*status, "executed"))
        return carry_on(cmd, client, status, err);
    rc = next_step(cmd, client, "resume", status, err);
    return rc < 0 ? rc : carry_on(cmd, client, status, err);
}

static int run(struct cmd *cmd, struct err *err)
{
    struct client *client;
    json_t *status = NULL;
    int rc = cmd_open(cmd, &client, err);
    if (rc < 0)
        return rc;
    if (cmd_option(cmd, "resume"))
        rc = resume(cmd, client, &status, err);
    else
        rc = restore(cmd, client, &status, err);
    client_close(client);
    if (rc == 0 && cmd->json && !cmd_option(cmd, "dry-run"))
        cmd_print_json(status);
    else if (rc == 0 && !cmd_option(cmd, "dry-run"))
        (void)printf("restore %s is complete\n", id_of(status));
    json_decref(status);
    return rc;
}

const struct cmd_verb verb_restore = {
    .name = "restore",
    .args = "TAG|ID|latest",
    .args_max = 1,
    .summary = "Brings the server back to a snapshot: blocks, then WAL, then verification.",
    .options = options,
    .notes = "Prints the plan and asks before it overwrites (not on a pipe, not with --yes).\n"
             "Ctrl-C cancels while the old data is still there; from then on it only stops\n"
             "watching, and `tidemark jobs --follow JOB` watches again. On an empty host:\n"
             "  tidemark restore --repository=URL --device=pgdata:/dev/X TAG\n",
    .run = run,
};
