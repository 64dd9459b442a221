/* What the server wants to have archived: NAME.ready in archive_status of its pg_wal (PostgreSQL:
 * pgarch.c). While a file is ready the server neither removes nor recycles it. Lean. One thread. */
#ifndef TIDEMARK_AGENT_WAL_READY_H
#define TIDEMARK_AGENT_WAL_READY_H

#include "agent/wal.h"

enum { WAL_READY_MAX = 64 }; /* as many as the server's archiver itself keeps of one look */

struct wal_ready {
    char names[WAL_READY_MAX][WAL_NAME_MAX + 1]; /* the first ones in order */
    size_t count;
    size_t total; /* with those that have no place in names */
};

/* The archiver's order: histories first, then by name. As strcmp(). */
int wal_ready_compare(const char *a, const char *b);

/* wal_fd: of pg_wal. False when archive_status cannot be read. */
bool wal_ready_scan(int wal_fd, struct wal_ready *ret);

/* True when this file waits to be archived. */
bool wal_ready_has(int wal_fd, const char *name);

#endif
