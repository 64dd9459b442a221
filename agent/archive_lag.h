/* What the server has not archived yet, and since when: NAME.ready in archive_status of pg_wal, and
 * pg_stat_archiver. For people and probes; it proves nothing (archive_proof.h does). */
#ifndef TIDEMARK_AGENT_ARCHIVE_LAG_H
#define TIDEMARK_AGENT_ARCHIVE_LAG_H

#include "agent/conf.h"
#include "agent/json.h"
#include "agent/pg.h"

enum { ARCHIVE_LAG_TEXT = 320 };

/* "archiving" of GET /health, see conf/openapi.yaml: null when this server does not archive.
 * ERR_POSTGRES. *ret is a new reference. The directory is read with no more than the rights of the
 * server's user. Any thread. */
int archive_lag_read(const struct conf *conf, struct pg_session *session, json_t **ret,
                     struct err *err);

/* One line of it. */
void archive_lag_text(const json_t *archiving, int64_t now_s, char ret[ARCHIVE_LAG_TEXT]);

/* How long the file that is next has waited; 0 when none waits, or it is not known. */
int64_t archive_lag_age(const json_t *archiving, int64_t now_s);

#endif
