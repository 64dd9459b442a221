/* See archive_lag.h. */
#include "agent/archive_lag.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "agent/process.h"
#include "agent/text.h"
#include "agent/wal_ready.h"

enum { QUERY_TIMEOUT_S = 10 };

/* A failure before the last success is over. */
static const char archiver_sql[] =
    "select json_build_object('waiting', null, 'next', null, 'next_since_s', null, "
    "'last', last_archived_wal, 'last_s', floor(extract(epoch from last_archived_time))::bigint, "
    "'failing', case when failing then last_failed_wal end, "
    "'failing_s', case when failing then floor(extract(epoch from last_failed_time))::bigint end"
    ")::text from (select *, last_failed_time > coalesce(last_archived_time, '-infinity') as "
    "failing, current_setting('archive_mode') as mode from pg_stat_archiver) as archiver "
    "where mode = 'always' or (mode = 'on' and not pg_is_in_recovery())";

/* --- what waits ---------------------------------------------------------------------------------
 */

static bool look(const char *wal_directory, struct wal_ready *ready, struct stat *ret_next)
{
    char path[WAL_NAME_MAX + 32];
    close_fd int fd = open(wal_directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || !wal_ready_scan(fd, ready))
        return false;
    memset(ret_next, 0, sizeof(*ret_next));
    if (ready->count == 0)
        return true;
    (void)snprintf(path, sizeof(path), "archive_status/%s.ready", ready->names[0]);
    (void)fstatat(fd, path, ret_next, AT_SYMLINK_NOFOLLOW); /* archived meanwhile: no time */
    return true;
}

static void add_waiting(const struct conf *conf, json_t *archiving)
{
    char path[CONF_PATH_MAX + 16];
    struct wal_ready ready;
    struct stat next;
    struct err ignored;
    if (!conf->data_directory[0] || process_fs_user(conf->os_user, &ignored) < 0)
        return;
    (void)snprintf(path, sizeof(path), "%s/pg_wal", conf->data_directory);
    bool known = look(path, &ready, &next);
    process_fs_root();
    if (!known)
        return;
    (void)json_object_set_new(archiving, "waiting", json_integer((json_int_t)ready.total));
    if (ready.count > 0)
        (void)json_object_set_new(archiving, "next", json_string(ready.names[0]));
    if (next.st_mtim.tv_sec > 0)
        (void)json_object_set_new(archiving, "next_since_s", json_integer(next.st_mtim.tv_sec));
}

/* --- all of it ---------------------------------------------------------------------------------
 */

int archive_lag_read(const struct conf *conf, struct pg_session *session, json_t **ret,
                     struct err *err)
{
    free_json json_t *rows = NULL;
    json_t *archiving = NULL;
    int rc = pg_query(session, archiver_sql, NULL, QUERY_TIMEOUT_S, &rows, err);
    const char *text = json_string_value(json_array_get(json_array_get(rows, 0), 0));
    if (rc == 0 && text)
        rc = json_parse(text, strlen(text), ERR_POSTGRES, &archiving, err);
    if (rc < 0)
        return rc;
    if (archiving)
        add_waiting(conf, archiving);
    *ret = archiving ? archiving : json_null();
    return 0;
}

int64_t archive_lag_age(const json_t *archiving, int64_t now_s)
{
    json_int_t since_s = json_integer_value(json_object_get(archiving, "next_since_s"));
    return since_s > 0 && since_s < now_s ? now_s - since_s : 0;
}

/* "last NAME, 3 min ago" */
static void last_text(const json_t *archiving, int64_t now_s, char *ret, size_t size)
{
    char age[TEXT_AGE_LEN];
    const char *last = json_str(archiving, "last");
    text_age(now_s - json_integer_value(json_object_get(archiving, "last_s")), age);
    if (last[0])
        (void)snprintf(ret, size, "last %.63s, %s ago", last, age);
    else
        (void)snprintf(ret, size, "nothing was archived yet");
}

void archive_lag_text(const json_t *archiving, int64_t now_s, char ret[ARCHIVE_LAG_TEXT])
{
    char last[112], age[TEXT_AGE_LEN], waiting[144] = "";
    const json_t *count = json_object_get(archiving, "waiting");
    const char *failing = json_str(archiving, "failing");
    last_text(archiving, now_s, last, sizeof(last));
    text_age(archive_lag_age(archiving, now_s), age);
    if (json_integer_value(count) > 0)
        (void)snprintf(waiting, sizeof(waiting), "%lld WAL file%s, %.63s for %s; ",
                       (long long)json_integer_value(count),
                       json_integer_value(count) == 1 ? " waits" : "s wait",
                       json_str(archiving, "next"), age);
    else if (json_is_integer(count))
        (void)snprintf(waiting, sizeof(waiting), "nothing waits; ");
    (void)snprintf(ret, ARCHIVE_LAG_TEXT, "%s%s%s%.63s%s", waiting, last,
                   failing[0] ? "; archiving of " : "", failing, failing[0] ? " fails" : "");
}
