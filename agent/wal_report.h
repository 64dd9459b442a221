/* Why the last push failed, left by tidemark-wal for the agent: archive_command itself can only
 * tell PostgreSQL that it failed, and the reason goes into the server's log. A file beside the
 * spools:
 *
 *     <spool base>/push-failed      five lines: magic, code, WAL file, text, hint
 *
 * It replaces an older one by rename and is removed by the next push that succeeds. It explains and
 * proves nothing: whoever reads it knows by other means that archiving fails. Lean. One thread. */
#ifndef TIDEMARK_AGENT_WAL_REPORT_H
#define TIDEMARK_AGENT_WAL_REPORT_H

#include "agent/conf.h"
#include "agent/wal.h"

/* Failing to write it is no error: the reason is in the server's log as well. */
void wal_report_write(const char *base, const char *name, const struct err *failure);
void wal_report_clear(const char *base);

/* What a push of this WAL file left below the directory of WAL (or in wal.spool): true when there
 * is a report of just this file. The server's user owns it: it is opened with no more than that
 * user's rights, bounded, and cut to printable ASCII. failure gets code, text and hint. */
bool wal_report_read(const struct conf *conf, const char *wal_directory, const char *name,
                     struct err *failure);

/* The same of a text, which is written to; for tests and fuzzing. */
bool wal_report_parse(char *text, const char *name, struct err *failure);

#endif
