/* tidemark show: everything about one snapshot, except contents of configuration files. */
#include <stdio.h>

#include "tools/cmd.h"

static int run(struct cmd *cmd, struct err *err)
{
    struct client *client;
    free_json json_t *record = NULL;
    char path[96];
    int rc = cmd_check_name("snapshot", cmd->args[0], err);
    if (rc == 0)
        rc = cmd_open(cmd, &client, err);
    if (rc < 0)
        return rc;
    (void)snprintf(path, sizeof(path), "/snapshots/%s", cmd->args[0]);
    rc = client_call(client, "GET", path, NULL, &record, err);
    client_close(client);
    if (rc < 0)
        return rc;
    if (cmd->json)
        cmd_print_json(record);
    else
        cmd_print_tree(record, 0, stdout);
    return 0;
}

const struct cmd_verb verb_show = {
    .name = "show",
    .args = "TAG|ID|latest",
    .args_min = 1,
    .args_max = 1,
    .summary = "Shows one snapshot.",
    .notes = "An ID may be cut to its first 6 digits or more.\n",
    .run = run,
};
