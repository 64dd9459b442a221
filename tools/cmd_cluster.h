/* What `tidemark cluster restore` prints; only cmd_cluster*.c use it. */
#ifndef TIDEMARK_TOOLS_CMD_CLUSTER_H
#define TIDEMARK_TOOLS_CMD_CLUSTER_H

#include "tools/cmd.h"

/* The plan in the journal of a prepared cluster restore, to stdout. */
void cluster_print_plan(const json_t *plan);
/* What a complete one has brought, and what it has not. */
void cluster_print_end(const json_t *status);

#endif
