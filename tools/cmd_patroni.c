/* tidemark patroni-restore: what Patroni runs as bootstrap and as replica creation method, as the
 * server's user. It asks the agent on the socket that is made for it, waits for the end, and leaves
 * the server stopped; Patroni starts it. The exit status is what Patroni decides by. */
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>

#include "agent/process.h"
#include "tools/cmd_restore.h"

enum { IDENTIFY_TIMEOUT_S = 60, CONNSTRING_MAX = 4096 };

static const struct cmd_option patroni_options[] = {
    {"snapshot", 0, "TAG|ID|latest", "the snapshot (default: latest, of any node of the cluster)"},
    {"target", 0, "TARGET",
     "bootstrap: tag (default), snapshot, latest, name=N, time=T, lsn=L, "
     "xid=X"},
    {"target-time", 0, "TIME", "bootstrap: recover to this time"},
    {"target-timeline", 0, "N", "bootstrap: along this timeline"},
    {"scope", 0, "NAME", "from Patroni: its name of the cluster"},
    {"datadir", 0, "PATH", "from Patroni: has to be this node's data_directory"},
    {"role", 0, "replica", "from Patroni, when it creates a replica"},
    {"connstring", 0, "CONNINFO", "from Patroni: how a replica reaches its leader"},
    {"no_leader", 0, "BOOL", "Patroni's own"},
    {"no_master", 0, "BOOL", "Patroni's own"},
    {"keep_data", 0, "BOOL", "Patroni's own"},
    {NULL, 0, NULL, NULL},
};

/* A stopped Patroni does not tell its methods (and its unit has KillMode=process): the kernel does.
 * Then the agent's job ends, too. */
static int follow_parent(struct err *err)
{
    pid_t parent = getppid();
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0)
        return err_sys(err, ERR_INTERNAL, "prctl");
    return getppid() == parent ? 0 : err_set(err, ERR_CANCELLED, "whoever called this is gone");
}

/* "7589…|2|0/5000060|" */
static int parse_identity(const char *text, json_t *handover, struct err *err)
{
    char system[24];
    unsigned timeline = 0;
    if (sscanf(text, "%20[0-9]|%u|", system, &timeline) != 2 || timeline == 0)
        return err_set(err, ERR_POSTGRES, "the leader answered IDENTIFY_SYSTEM with '%.80s'", text);
    (void)json_object_set_new(handover, "system_id", json_string(system));
    (void)json_object_set_new(handover, "timeline", json_integer(timeline));
    return 0;
}

/* Which cluster, on which timeline: the snapshot has to be one that can follow it. Patroni gives
 * the password by PGPASSFILE. */
static int identify_leader(const struct cmd *cmd, const char *connstring, json_t *handover,
                           struct err *err)
{
    char program[CONF_PATH_MAX + 8] = "psql", conninfo[CONNSTRING_MAX], errors[512];
    free_mem char *output = NULL;
    int status;
    if (cmd->conf.bin_directory[0])
        (void)snprintf(program, sizeof(program), "%s/psql", cmd->conf.bin_directory);
    if ((size_t)snprintf(conninfo, sizeof(conninfo), "%s replication=1", connstring) >=
        sizeof(conninfo))
        return err_set(err, ERR_USAGE, "connstring is too long");
    const char *argv[] = {program, "-XAtqw", "-d", conninfo, "-c", "IDENTIFY_SYSTEM", NULL};
    struct process_options options = PROCESS_OPTIONS_INIT;
    options.argv = argv;
    options.timeout_s = IDENTIFY_TIMEOUT_S;
    options.keep_environment = true;
    int rc = process_run(&options, &status, &output, errors, sizeof(errors), err);
    if (rc < 0)
        return rc;
    if (status != 0)
        return err_set(err, ERR_POSTGRES, "the leader cannot be asked what it is: %s", errors);
    return parse_identity(output, handover, err);
}

static int make_body(const struct cmd *cmd, json_t *body, struct err *err)
{
    const char *role = cmd_option(cmd, "role"), *datadir = cmd_option(cmd, "datadir");
    const char *connstring = cmd_option(cmd, "connstring");
    const char *snapshot = cmd_option(cmd, "snapshot");
    bool replica = role && strcmp(role, "replica") == 0;
    if (!datadir)
        return err_set(err, ERR_USAGE, "Patroni gives --datadir: is no_params set?");
    if (role && !replica)
        return err_set(err, ERR_USAGE, "role '%.32s' is not known", role);
    json_t *handover =
        json_pack("{s:s, s:s}", "role", replica ? "replica" : "primary", "data_directory", datadir);
    (void)json_object_set_new(body, "snapshot", json_string(snapshot ? snapshot : "latest"));
    (void)json_object_set_new(body, "execute", json_true());
    (void)json_object_set_new(body, "handover", handover);
    int rc = snapshot ? cmd_check_name("snapshot", snapshot, err) : 0;
    for (size_t i = 0; rc == 0 && i < cmd->given_count; i++)
        if (strncmp(cmd->given[i].name, "target", 6) == 0)
            rc = restore_take_option(body, cmd->given[i].name, cmd->given[i].value, err);
    if (rc == 0 && connstring && connstring[0])
        rc = identify_leader(cmd, connstring, handover, err);
    return rc;
}

static int open_client(const struct cmd *cmd, struct client **ret, struct err *err)
{
    char address[sizeof(cmd->conf.patroni_socket) + 8];
    struct client_remote remote = {.address = address};
    if (!cmd->conf.patroni_socket[0]) {
        (void)err_set(err, ERR_CONFIG, "Patroni may not ask for restores on this node");
        return err_hint(err,
                        "set [patroni] socket and [postgresql] manager = patroni in %s, and "
                        "restart the agent",
                        cmd->conf.file[0] ? cmd->conf.file : "tidemark.conf");
    }
    (void)snprintf(address, sizeof(address), "unix:%s", cmd->conf.patroni_socket);
    return client_open_remote(&remote, ret, err);
}

static int run(struct cmd *cmd, struct err *err)
{
    struct client *client = NULL;
    free_json json_t *body = json_object(), *status = NULL;
    int rc = follow_parent(err);
    if (rc == 0)
        rc = open_client(cmd, &client, err);
    if (rc < 0)
        return rc;
    rc = make_body(cmd, body, err);
    if (rc == 0)
        rc = cmd_run_job(cmd, client, "/restores", body, &status, err);
    client_close(client);
    if (rc < 0)
        return rc;
    const json_t *plan = json_object_get(status, "plan");
    (void)printf("the volumes hold snapshot %s (tag %s, of node %s); the server is Patroni's to "
                 "start\n",
                 cmd_text(plan, "snapshot"), cmd_text(plan, "tag"), cmd_text(plan, "node"));
    return 0;
}

const struct cmd_verb verb_patroni = {
    .name = "patroni-restore",
    .args = "",
    .summary = "For Patroni's configuration: bootstraps a cluster, or creates a replica.",
    .options = patroni_options,
    .notes =
        "Patroni runs it as the server's user, in an empty data directory; it needs [patroni]\n"
        "socket on this node. The server is left stopped. Every other restore is refused\n"
        "while Patroni runs. README, Patroni, has the lines for Patroni's configuration.\n",
    .is_local = true,
    .run = run,
};
