/* Parts of `tidemark cluster`; only cmd_cluster*.c use them. */
#ifndef TIDEMARK_TOOLS_CMD_CLUSTER_H
#define TIDEMARK_TOOLS_CMD_CLUSTER_H

#include "tools/cmd.h"

/* The plan in the journal of a prepared cluster restore, to stdout. */
void cluster_print_plan(const json_t *plan);
/* What a complete one has brought, and what it has not. */
void cluster_print_end(const json_t *status);

/* --- cmd_cluster_status.c --- */
/* Prints GET /cluster; the error is that of cmd_health_error(). */
int cluster_run_status(struct cmd *cmd, struct client *client, struct err *err);

#endif
