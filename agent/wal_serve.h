/* The verbs of tidemark-wal-worker: each returns the exit status and has logged what went wrong.
 * One a process. */
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
/* Who the repository is, asked anew over an open connection; errors as above. */
int wal_identify(const struct wal_command *command, struct wal_connection *connection,
                 struct err *err);
void wal_disconnect(struct wal_connection *connection);

/* How many threads are worth having: with a server all, they mostly wait; with a directory it is
 * CPU time that they spend. */
unsigned wal_useful_threads(const struct conf *conf, unsigned wanted);

/* archive_command: 0, or at most 125. */
int wal_serve_push(const struct wal_command *command);
/* restore_command: 0, 1 or 126; DESIGN §6. argv starts the prefetcher. */
int wal_serve_get(const struct wal_command *command, int argc, char **argv);
/* The prefetcher: returns when nothing was asked for a while, or the server is gone. */
int wal_serve_prefetch(const struct wal_command *command);
/* The process that pushes ahead; wal_ahead.h. Returns when it is not needed. */
int wal_serve_push_ahead(const struct wal_command *command);
/* One line a spool on stdout. */
int wal_serve_stats(const struct wal_command *command);

#endif
