/* The options of `tidemark restore` and the request they make. Words and values are checked by the
 * API (agent/api_request.c); only the shape of the command line is checked here. */
#include <stdio.h>

#include "tools/cmd_restore.h"

const struct cmd_option restore_options[] = {
    {"dry-run", 0, NULL, "print the plan and touch nothing"},
    {"resume", 0, "[=JOB]", "go on with a restore that began and stopped (default: the newest)"},
    {"target", 0, "TARGET", "tag (default), snapshot, latest, name=N, time=T, lsn=L, xid=X"},
    {"target-name", 0, "NAME", "recover to this restore point"},
    {"target-time", 0, "TIME", "recover to this time"},
    {"target-lsn", 0, "LSN", "recover to this WAL location"},
    {"target-xid", 0, "XID", "recover to this transaction"},
    {"target-exclusive", 0, NULL, "stop just before that time, location or transaction"},
    {"target-timeline", 0, "N", "along this timeline (default: found from the history files)"},
    {"action", 0, "promote|pause|shutdown", "what the server does at the target"},
    {"verify", 0, "LEVEL", "none, quick, standard (default) or full"},
    {"reindex", 0, "none|auto",
     "rebuild indexes that fail verification or whose collation changed"},
    {"overwrite", 0, "VOLUME=ID",
     "also overwrite this foreign device, named by WWN, serial, dm "
     "uuid or path:size:diskseq"},
    {"device", 0, "VOLUME:PATH", "write this volume to this device"},
    {"mount", 0, "VOLUME:PATH", "mount this volume there (default: as configured, as it was)"},
    {"delta", 0, NULL, "read the devices first, and fetch only what differs"},
    {"server-config", 0, "keep|image",
     "PostgreSQL's configuration files: those of this host, or "
     "those of the snapshot"},
    {"discard-unarchived-wal", 0, NULL, "lose WAL that the repository lacks and cannot get"},
    {"primary-is-down", 0, NULL,
     "on a standby's host: you have made sure of it, where it cannot be asked"},
    {"allow-second-primary", 0, NULL, "both shall run: this server and the primary that runs now"},
    {NULL, 0, NULL, NULL},
};

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

static int exclude_target(const struct cmd *cmd, json_t *body, struct err *err)
{
    json_t *target = json_object_get(body, "target");
    if (!cmd_option(cmd, "target-exclusive"))
        return 0;
    if (!target)
        return err_set(err, ERR_USAGE,
                       "--target-exclusive needs --target-time, --target-lsn or --target-xid");
    (void)json_object_set_new(target, "exclusive", json_true());
    return 0;
}

int restore_take_option(json_t *body, const char *name, const char *value, struct err *err)
{
    if (strcmp(name, "target") == 0)
        return take_target(body, value, err);
    if (strcmp(name, "target-timeline") == 0)
        return take_timeline(body, value, err);
    if (strcmp(name, "target-exclusive") == 0)
        return 0; /* once the target is known */
    if (strncmp(name, "target-", 7) == 0)
        return set_target(body, name + 7, value, err);
    if (strcmp(name, "overwrite") == 0)
        return take_pair(body, "overwrite", value, '=', err);
    if (strcmp(name, "device") == 0)
        return take_pair(body, "devices", value, ':', err);
    if (strcmp(name, "mount") == 0)
        return take_pair(body, "mounts", value, ':', err);
    return 0;
}

int restore_make_body(const struct cmd *cmd, json_t *body, struct err *err)
{
    if (cmd->arg_count != 1) {
        (void)err_set(err, ERR_USAGE, "expected: tidemark restore TAG|ID|latest");
        return err_hint(err, "`tidemark list` shows the tags; `tidemark restore --resume` goes on "
                             "with a restore that stopped");
    }
    (void)json_object_set_new(body, "snapshot", json_string(cmd->args[0]));
    int rc = cmd_check_name("snapshot", cmd->args[0], err);
    for (size_t i = 0; rc == 0 && i < cmd->given_count; i++)
        rc = restore_take_option(body, cmd->given[i].name, cmd->given[i].value, err);
    if (rc == 0)
        rc = exclude_target(cmd, body, err);
    cmd_add_option(cmd, "action", "action", body);
    cmd_add_option(cmd, "verify", "verify", body);
    cmd_add_option(cmd, "reindex", "reindex", body);
    cmd_add_option(cmd, "server-config", "config", body);
    cmd_add_option(cmd, "delta", "delta", body);
    cmd_add_option(cmd, "discard-unarchived-wal", "discard_unarchived_wal", body);
    cmd_add_option(cmd, "primary-is-down", "primary_is_down", body);
    cmd_add_option(cmd, "allow-second-primary", "allow_second_primary", body);
    cmd_add_option(cmd, "dry-run", "dry_run", body);
    return rc;
}
