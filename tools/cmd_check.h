/* What the checks of a node and of a coordinator share; only cmd_check*.c use it. */
#ifndef TIDEMARK_TOOLS_CMD_CHECK_H
#define TIDEMARK_TOOLS_CMD_CHECK_H

#include "tools/cmd.h"

struct check {
    const struct cmd *cmd;
    unsigned failed_count;
    enum err_code first; /* of the first failure */
    bool has_repository;
};

/* One line: name and detail, or why it failed and its hint. rc 0 = good, else err. */
void check_report(struct check *check, const char *name, int rc, const char *detail,
                  const struct err *err);

/* --- cmd_check_cluster.c --- */
/* What only a coordinator has: members, who is the primary, [coordinator] primary_conninfo, and
 * sections that are not for it. */
void check_coordinator(struct check *check);
/* A node in the care of Patroni: [patroni] and manager. */
void check_patroni(struct check *check);

#endif
