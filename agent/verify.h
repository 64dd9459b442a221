/* What the parts of the verification share (verify.c, verify_amcheck.c, verify_collation.c). One
 * thread. */
#ifndef TIDEMARK_AGENT_VERIFY_H
#define TIDEMARK_AGENT_VERIFY_H

#include "agent/restore.h"

struct pg_session;

struct verify {
    const struct conf *conf;
    const struct record *record;
    bool reindex;
    const _Atomic bool *cancel;
    json_t *result;
    struct pg_session *session; /* of the database that is looked at */
    bool writable;              /* not in recovery */
    size_t database_count;
    json_t *amcheck_have;        /* databases with the extension, */
    json_t *amcheck_added;       /* of these, those that got it from us, */
    size_t amcheck_missing;      /* and how many cannot have it (in recovery) */
    json_t *indexes;             /* [{"database","index","why","rebuilt"}] */
    json_int_t amcheck_failures; /* page-checksum failures that amcheck met */
};

/* Calls each() with verify->session connected to every database in turn. */
int verify_each_database(struct verify *verify,
                         int (*each)(struct verify *, const char *dbname, struct err *err),
                         struct err *err);

/* Page-checksum failures that the server has counted. */
int verify_count_failures(struct verify *verify, long long *ret, struct err *err);

/* An index that is not good: rebuilt when that was asked for and is possible, else ERR_CORRUPT.
 * index is "schema.name", quoted; verify->session is connected to its database. */
int verify_add_index(struct verify *verify, const char *dbname, const char *index, const char *why,
                     struct err *err);

/* Collations whose version is not the recorded one: their indexes are rebuilt and the version is
 * refreshed when that was asked for and is possible; else result["warnings"]. Both ways they are in
 * result["collations"]. */
int verify_collations(struct verify *verify, struct err *err);

/* pg_amcheck over all databases; heapallindexed when full. */
int verify_amcheck(struct verify *verify, bool full, struct err *err);

#endif
