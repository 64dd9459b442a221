/* A commit behind a target time. Recovery to a time ends before the first commit behind it; without
 * one the server reads all the WAL there is and is gone ("recovery ended before configured recovery
 * target was reached", xlogrecovery.c), when its old data is, too. On an idle database that is
 * every recent time. So while the old server still runs on the timeline that is restored, it writes
 * one: an empty transaction with an id has a commit record (RecordTransactionCommit() in xact.c),
 * which is on disk and archived with the shutdown that follows. Elsewhere only the plan can warn.
 */
#include "agent/restore.h"
#include "agent/log.h"
#include "agent/pg.h"

#include <stdio.h>

enum { COMMIT_TIMEOUT_S = 10 };

static const char *only(const json_t *rows)
{
    const char *text = json_string_value(json_array_get(json_array_get(rows, 0), 0));
    return text ? text : "";
}

/* A session with it, where it can write this commit; NULL where not, and why. */
static struct pg_session *open_writable(const struct restore *restore, struct err *why)
{
    static const char sql[] = "select case when pg_is_in_recovery() then '' "
                              "else substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end";
    struct pg_session *session = NULL;
    enum pg_state state;
    free_json json_t *rows = NULL;
    char wanted[9];
    int rc = pg_server_state(&restore->conf, &state, NULL, why);
    if (rc == 0 && state != PG_RUNNING)
        rc = err_set(why, ERR_POSTGRES, "the server does not run");
    if (rc == 0)
        rc = pg_open(&restore->conf, NULL, &session, why);
    if (rc == 0)
        rc = pg_query(session, sql, NULL, COMMIT_TIMEOUT_S, &rows, why);
    (void)snprintf(wanted, sizeof(wanted), "%08X", restore->target_timeline);
    if (rc == 0 && strcmp(only(rows), wanted) != 0)
        rc = err_set(why, ERR_POSTGRES, "the server is not the primary of timeline %u",
                     restore->target_timeline);
    if (rc == 0)
        return session;
    pg_close(session);
    return NULL;
}

void restore_commit_warn(const struct restore *restore, json_t *warnings)
{
    struct err why;
    if (restore->target != TARGET_TIME || restore->request.standby)
        return;
    struct pg_session *session = open_writable(restore, &why);
    if (!session)
        json_append_text(warnings,
                         "whether a transaction was committed after this time is known only when "
                         "the WAL is replayed, after the old data is gone (%s): where none was, "
                         "recovery fails, and --target=latest leads to the same state",
                         why.text);
    pg_close(session);
}

/* The target may be a fraction of a second ahead. */
void restore_commit_write(const struct restore *restore)
{
    static const char sql[] = "select pg_sleep_until($1::timestamptz), pg_current_xact_id()";
    const char *params[] = {restore->target_value, NULL};
    struct err why;
    if (restore->target != TARGET_TIME)
        return;
    struct pg_session *session = open_writable(restore, &why);
    if (session && pg_query(session, sql, params, COMMIT_TIMEOUT_S, NULL, &why) == 0)
        log_info("the old server has committed a transaction behind the target time");
    else
        log_warn("no transaction was committed behind the target time: %s", why.text);
    pg_close(session);
}
