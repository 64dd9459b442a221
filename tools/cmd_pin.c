/* tidemark pin, unpin: what no retention expires. */
#include <stdio.h>

#include "tools/cmd.h"

static int change(struct cmd *cmd, const char *method, const char *done, struct err *err)
{
    char path[128];
    free_json json_t *answer = NULL;
    int rc = cmd_check_name("snapshot", cmd->args[0], err);
    (void)snprintf(path, sizeof(path), "/snapshots/%s/pin", cmd->args[0]);
    if (rc == 0)
        rc = cmd_call(cmd, method, path, &answer, err);
    if (rc == 0 && cmd->json)
        cmd_print_json(answer);
    else if (rc == 0)
        (void)printf("snapshot %s (%s) is %s\n", cmd_text(answer, "tag"), cmd_text(answer, "id"),
                     done);
    return rc;
}

static int run_pin(struct cmd *cmd, struct err *err)
{
    return change(cmd, "POST", "pinned", err);
}

static int run_unpin(struct cmd *cmd, struct err *err)
{
    return change(cmd, "DELETE", "not pinned", err);
}

const struct cmd_verb verb_pin = {
    .name = "pin",
    .args = "TAG|ID",
    .args_min = 1,
    .args_max = 1,
    .summary = "Keeps a snapshot whatever [retention] says.",
    .notes =
        "Of its WAL only what lies between its start and its tag is kept, so it can always be\n"
        "restored to the tag.\n",
    .run = run_pin,
};

const struct cmd_verb verb_unpin = {
    .name = "unpin",
    .args = "TAG|ID",
    .args_min = 1,
    .args_max = 1,
    .summary = "Leaves a snapshot to [retention] again.",
    .run = run_unpin,
};
