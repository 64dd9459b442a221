/* Text is sorted by a library, and the host that a database comes back on may have another version
 * of it. Then an index whose order depends on it is not wrong by itself, but it was built by other
 * rules: searches miss rows, and unique indexes take duplicates. PostgreSQL records the version a
 * database and a collation were made with, and only warns (CheckMyDatabase in
 * utils/init/postinit.c, pg_newlocale_from_collation in utils/adt/pg_locale.c).
 *
 * With reindex = auto every index that such a collation may order is rebuilt, and only then the
 * recorded version is refreshed: when this is interrupted, the next verification finds it again.
 * Else, and in recovery where nothing can be rebuilt, the result says what was found. */
#include "agent/log.h"
#include "agent/pg.h"
#include "agent/verify.h"

#include <stdio.h>

enum { LISTED_MAX = 50 };

/* SQL of the collations that changed: oid, what refreshes the version (null where there is no
 * version any more: the refresh would be an error), recorded and actual version. The database's own
 * collation is the one named "default", 100 (catalog/pg_collation.dat). Collations of other
 * encodings cannot be used here, nor named. */
#define CHANGED                                                                                    \
    "with changed as ("                                                                            \
    "select 100::oid as oid, format('alter database %I refresh collation version', datname) "      \
    "as refresh, datcollversion as recorded, pg_database_collation_actual_version(oid) as actual " \
    "from pg_database where datname = current_database() "                                         \
    "union all select c.oid, format('alter collation %I.%I refresh version', n.nspname, "          \
    "c.collname), c.collversion, pg_collation_actual_version(c.oid) "                              \
    "from pg_collation c join pg_namespace n on n.oid = c.collnamespace "                          \
    "where c.oid <> 100 and c.collencoding in (-1, (select encoding from pg_database "             \
    "where datname = current_database()))"                                                         \
    "), suspect as (select * from changed where recorded is not null "                             \
    "and recorded is distinct from actual) "

static const char suspect_sql[] =
    CHANGED "select case when actual is null then '' else refresh end, "
            "case when oid = 100 then '' else oid::regcollation::text end, recorded, "
            "coalesce(actual, '') from suspect order by oid <> 100, oid";

/* A column's collation is in indcollation. What an expression or a predicate calls functions with
 * is only in its tree (inputcollid, nodes/primnodes.h): pg_depend has what COLLATE names there, but
 * neither the collation of a column that it uses nor the default one. */
static const char indexes_sql[] =
    CHANGED "select distinct format('%I.%I', n.nspname, c.relname) from pg_index i "
            "join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace "
            "cross join lateral (select unnest(i.indcollation::oid[]) as oid "
            "union all select m[1]::oid from regexp_matches("
            "concat(i.indexprs::text, ' ', i.indpred::text), 'collid (\\d+)', 'g') m "
            "union all select d.refobjid from pg_depend d where d.classid = 'pg_class'::regclass "
            "and d.objid = i.indexrelid and d.refclassid = 'pg_collation'::regclass) used "
            "where c.relkind = 'i' and c.relpersistence <> 't' "
            "and used.oid in (select oid from suspect) order by 1";

/* Lists it; *ret_item is borrowed, NULL when the list is long enough (a new C library may change
 * hundreds). */
static void add_collation(struct verify *verify, const char *dbname, const json_t *row,
                          json_t **ret_item)
{
    json_t *list = json_object_get(verify->result, "collations");
    if (!list) {
        list = json_array();
        json_object_set_new(verify->result, "collations", list);
    }
    json_t *count = json_object_get(verify->result, "collation_count");
    json_object_set_new(verify->result, "collation_count",
                        json_integer(json_integer_value(count) + 1));
    *ret_item = NULL;
    if (json_array_size(list) >= LISTED_MAX)
        return;
    json_t *item = json_object();
    json_object_set_new(item, "database", json_string(dbname));
    json_object_set(item, "collation", json_array_get(row, 1));
    json_object_set(item, "recorded", json_array_get(row, 2));
    json_object_set(item, "actual", json_array_get(row, 3));
    json_object_set_new(item, "refreshed", json_false());
    json_array_append_new(list, item);
    *ret_item = item;
}

/* Statement by statement: ALTER DATABASE and REINDEX of a large index want no transaction around
 * them. */
static int refresh(struct verify *verify, const char *dbname, const json_t *rows, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        const char *sql = json_string_value(json_array_get(row, 0));
        json_t *item;
        add_collation(verify, dbname, row, &item);
        if (!sql || !*sql || !verify->reindex || !verify->writable)
            continue;
        rc = pg_query(verify->session, sql, NULL, 0, NULL, err);
        if (rc == 0 && item)
            json_object_set_new(item, "refreshed", json_true());
    }
    return rc;
}

static void warn(struct verify *verify, const char *dbname, size_t collations, size_t indexes)
{
    char text[512];
    (void)snprintf(text, sizeof(text),
                   "database '%.64s': %zu collations have another version than the one recorded, "
                   "%zu indexes may be ordered by the old one: %s",
                   dbname, collations, indexes,
                   verify->writable ? "restore with --reindex=auto, or REINDEX them and REFRESH "
                                      "the versions"
                                    : "promote the server, REINDEX them and REFRESH the versions");
    log_warn("%s", text);
    json_t *warnings = json_object_get(verify->result, "warnings");
    if (!warnings) {
        warnings = json_array();
        json_object_set_new(verify->result, "warnings", warnings);
    }
    json_array_append_new(warnings, json_string(text));
}

static int each_database(struct verify *verify, const char *dbname, struct err *err)
{
    free_json json_t *collations = NULL;
    free_json json_t *indexes = NULL;
    int rc = pg_query(verify->session, suspect_sql, NULL, 0, &collations, err);
    if (rc < 0 || json_array_size(collations) == 0)
        return rc;
    rc = pg_query(verify->session, indexes_sql, NULL, 0, &indexes, err);
    if (rc < 0)
        return rc;
    if (!verify->reindex || !verify->writable)
        warn(verify, dbname, json_array_size(collations), json_array_size(indexes));
    else
        for (size_t i = 0; rc == 0 && i < json_array_size(indexes); i++) {
            const char *index = json_string_value(json_array_get(json_array_get(indexes, i), 0));
            rc = verify_add_index(verify, dbname, index ? index : "",
                                  "the version of its collation changed", err);
        }
    return rc < 0 ? rc : refresh(verify, dbname, collations, err);
}

int verify_collations(struct verify *verify, struct err *err)
{
    return verify_each_database(verify, each_database, err);
}
