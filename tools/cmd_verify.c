/* tidemark verify: reads a snapshot back from the repository and checks every chunk; no device. */
#include <stdio.h>

#include "tools/cmd.h"

static int run(struct cmd *cmd, struct err *err)
{
    struct client *client;
    free_json json_t *status = NULL;
    int rc = cmd_check_name("snapshot", cmd->args[0], err);
    if (rc == 0)
        rc = cmd_open(cmd, &client, err);
    if (rc < 0)
        return rc;
    free_json json_t *body = json_pack("{s:s}", "snapshot", cmd->args[0]);
    rc = cmd_run_job(cmd, client, "/verifications", body, &status, err);
    client_close(client);
    if (rc < 0)
        return rc;
    if (cmd->json) {
        cmd_print_json(status);
        return 0;
    }
    char done[24];
    const json_t *progress = json_object_get(status, "progress");
    cmd_format_size((uint64_t)json_integer_value(json_object_get(progress, "bytes_done")), done);
    (void)printf("snapshot %s is good: %s checked\n", cmd->args[0], done);
    return 0;
}

const struct cmd_verb verb_verify = {
    .name = "verify",
    .args = "TAG|ID|latest",
    .args_min = 1,
    .args_max = 1,
    .summary = "Reads a snapshot back from the repository and checks every chunk.",
    .run = run,
};
