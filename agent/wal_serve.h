/* The verbs of tidemark-wal-worker: each returns the exit status and has logged what went wrong.
 * One process, one thread. */
#ifndef TIDEMARK_AGENT_WAL_SERVE_H
#define TIDEMARK_AGENT_WAL_SERVE_H

#include "agent/wal_command.h"

/* The archive of a command: store open, tidemark.repo read, ids compared. */
struct wal_connection {
    struct wal_archive archive;
    struct repo repo;
};

/* ERR_STORE also when there is no repository: never ERR_MISSING, which means an absent file. */
int wal_connect(const struct wal_command *command, struct wal_connection *ret, struct err *err);
void wal_disconnect(struct wal_connection *connection);

/* archive_command: 0, or at most 125. */
int wal_serve_push(const struct wal_command *command);
/* restore_command: 0, 1 or 126; DESIGN §6. argv starts the prefetcher. */
int wal_serve_get(const struct wal_command *command, int argc, char **argv);
/* The prefetcher: returns when nothing was asked for a while, or the server is gone. */
int wal_serve_prefetch(const struct wal_command *command);
/* One line a spool on stdout. */
int wal_serve_stats(const struct wal_command *command);

#endif
