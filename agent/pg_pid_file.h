/* postmaster.pid (PostgreSQL: utils/pidfile.h): which process owns a data directory and how far it
 * is. Pure, any thread; the lean tidemark-wal uses it too. */
#ifndef TIDEMARK_AGENT_PG_PID_FILE_H
#define TIDEMARK_AGENT_PG_PID_FILE_H

#include "io/base.h"

enum { PG_PID_FILE_MAX = 2048 };

struct pg_pid_file {
    int pid;         /* always > 0; a single-user backend writes it negated */
    char status[16]; /* "starting", "stopping", "ready", "standby"; "" before it is written */
};

/* The server writes the lines one after the other, so later ones may not be there yet. False when
 * the first line is not complete or not the number of a process. */
bool pg_pid_file_parse(const char *text, struct pg_pid_file *ret);

/* Reads and parses the file at path. 0; 1 when there is none or it is not (yet) one; -1 with errno
 * when it cannot be read. */
int pg_pid_file_read(const char *path, struct pg_pid_file *ret);

#endif
