/* The request of `tidemark restore` from its command line; only cmd_restore*.c, cmd_plan.c,
 * cmd_cluster_print.c and cmd_patroni.c use it. */
#ifndef TIDEMARK_TOOLS_CMD_RESTORE_H
#define TIDEMARK_TOOLS_CMD_RESTORE_H

#include "tools/cmd.h"

extern const struct cmd_option restore_options[];

/* Fills body, the object of POST /restores. ERR_USAGE. */
int restore_make_body(const struct cmd *cmd, json_t *body, struct err *err);

/* One option with a value of its own form (target…, overwrite, device) into body. ERR_USAGE. */
int restore_take_option(json_t *body, const char *name, const char *value, struct err *err);

/* The plan in the journal of a prepared restore, to stdout. */
void restore_print_plan(const json_t *plan);
/* Lines of it, which the plan of a cluster restore has as well. */
void restore_print_volume(const json_t *volume);
void restore_print_target(const json_t *target, const char *action);
void restore_print_delta(const json_t *plan);

#endif
