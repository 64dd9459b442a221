/* What the two files of `tidemark-agent pg-session` share: pg_child.c (the process, a session) and
 * pg_try.c (questions with one answer). */
#ifndef TIDEMARK_AGENT_PG_CHILD_H
#define TIDEMARK_AGENT_PG_CHILD_H

#include "agent/json.h"

enum { PG_CHILD_PARENT_GONE = 3 }; /* exit status */

/* text as JSON; what is not UTF-8 in it becomes '?'. */
json_t *pg_child_text(const char *text, size_t len);
/* {"ok":false,"error","lost"} and, when it is not NULL, "sqlstate". */
json_t *pg_child_failure(const char *message, const char *sqlstate, bool lost);
/* The same for a connection string that libpq cannot read. why: libpq's words, may be NULL. */
json_t *pg_child_unreadable(const char *conninfo, const char *why);

/* conninfo with our defaults below it and dbname above it; NULL: libpq cannot read it, and *ret_why
 * is for PQfreemem(). */
struct pg_conn *pg_child_connect(const char *conninfo, const char *dbname, char **ret_why);

/* The answer to a first line with "mode". */
json_t *pg_child_answer(const char *mode, const char *conninfo, const json_t *hello);

#endif
