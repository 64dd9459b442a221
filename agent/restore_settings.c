/* Recovery settings. They go into postgresql.auto.conf, which is read last and so wins over every
 * other file; all of them, also the empty ones, because the image may bring old ones along and two
 * targets are an error. The one target that is not empty comes last: PostgreSQL's assign hooks
 * accept an empty target only while no other is set (xlogrecovery.c, error_multiple_recovery_
 * targets()). Our lines stand between two comments and are removed again after promotion. */
#include "agent/restore.h"
#include "agent/program.h"
#include "agent/repository_access.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <strings.h>

static const char block_begin[] = "# tidemark restore begin";
static const char block_end[] = "# tidemark restore end";
static const char set_aside[] = "# before the restore: ";

static const char *const recovery_names[] = {
    "restore_command",          "archive_cleanup_command", "recovery_end_command",
    "recovery_target",          "recovery_target_name",    "recovery_target_time",
    "recovery_target_xid",      "recovery_target_lsn",     "recovery_target_inclusive",
    "recovery_target_timeline", "recovery_target_action",  "primary_conninfo",
    "primary_slot_name",        "promote_trigger_file",    "recovery_min_apply_delay",
};

/* --- text building ---------------------------------------------------------------------------- */

struct text {
    char *bytes;
    size_t len, size;
};

static void text_add(struct text *text, const char *bytes, size_t len)
{
    if (!text->bytes || text->len + len + 1 > text->size) {
        text->size = (text->len + len + 1) * 2;
        text->bytes = realloc(text->bytes, text->size);
        if (!text->bytes)
            abort(); /* a few KiB */
    }
    memcpy(text->bytes + text->len, bytes, len);
    text->len += len;
    text->bytes[text->len] = '\0';
}

static void text_string(struct text *text, const char *string)
{
    text_add(text, string, strlen(string));
}

/* The key of "key = value", lower case; empty for comments and blank lines. */
static void line_key(const char *line, size_t len, char *ret, size_t size)
{
    size_t at = 0, out = 0;
    while (at < len && isspace((unsigned char)line[at]))
        at++;
    while (at < len && out + 1 < size && (isalnum((unsigned char)line[at]) || line[at] == '_'))
        ret[out++] = (char)tolower((unsigned char)line[at++]);
    ret[out] = '\0';
}

static bool is_recovery_line(const char *line, size_t len)
{
    char key[64];
    line_key(line, len, key, sizeof(key));
    for (size_t i = 0; i < ARRAY_LEN(recovery_names); i++)
        if (strcmp(key, recovery_names[i]) == 0)
            return true;
    return false;
}

static bool line_is(const char *line, size_t len, const char *word)
{
    return len == strlen(word) && memcmp(line, word, len) == 0;
}

/* Of an earlier restore: one that is repeated has its block here already, and what it has set
 * aside is to stay. */
static bool is_old_comment(const char *line, size_t len, bool repeated)
{
    size_t prefix = sizeof(set_aside) - 1;
    return !repeated && len >= prefix && memcmp(line, set_aside, prefix) == 0;
}

/* Copies text line by line without an earlier block of ours; comment: recovery settings become
 * comments, in the place of those of the restore before. */
static void copy_lines(struct text *to, const char *text, bool comment)
{
    bool inside = false, repeated = strstr(text, block_begin) != NULL;
    while (*text) {
        size_t len = strcspn(text, "\n");
        inside |= line_is(text, len, block_begin);
        if (!inside && !(comment && is_old_comment(text, len, repeated))) {
            if (comment && is_recovery_line(text, len))
                text_string(to, set_aside);
            text_add(to, text, len);
            text_string(to, "\n");
        }
        if (line_is(text, len, block_end))
            inside = false;
        text += len + (text[len] == '\n');
    }
}

char *settings_with_recovery(const char *text, const char *block)
{
    struct text to = {0};
    text_string(&to, "");
    copy_lines(&to, text, true);
    if (!block)
        return to.bytes;
    text_string(&to, block_begin);
    text_string(&to, "\n");
    text_string(&to, block);
    text_string(&to, block_end);
    text_string(&to, "\n");
    return to.bytes;
}

char *settings_without_block(const char *text)
{
    struct text to = {0};
    text_string(&to, "");
    copy_lines(&to, text, false);
    return to.bytes;
}

/* --- quoting ---------------------------------------------------------------------------------- */

/* guc-file.l: a quoted value ends at a quote, '' is one quote, backslash escapes. */
static void add_setting(struct text *to, const char *name, const char *value)
{
    text_string(to, name);
    text_string(to, " = '");
    for (const char *c = value; *c; c++) {
        if (*c == '\'' || *c == '\\')
            text_add(to, c, 1);
        text_add(to, c, 1);
    }
    text_string(to, "'\n");
}

/* One word for /bin/sh inside restore_command, where % is PostgreSQL's own escape. */
static void add_word(struct text *to, const char *word)
{
    text_string(to, " '");
    for (const char *c = word; *c; c++) {
        if (*c == '\'')
            text_string(to, "'\\''");
        else if (*c == '%')
            text_string(to, "%%");
        else
            text_add(to, c, 1);
    }
    text_string(to, "'");
}

/* --- restore_command -------------------------------------------------------------------------- */

static void add_option(struct text *to, const char *name, const char *value)
{
    char option[CONF_PATH_MAX + 64];
    (void)snprintf(option, sizeof(option), "--%s=%s", name, value);
    add_word(to, option);
}

/* Nothing of this timeline from a segment that reaches beyond lsn. */
static void add_limit(struct text *to, uint32_t timeline, uint64_t lsn)
{
    char limit[32];
    (void)snprintf(limit, sizeof(limit), "%u:%X/%X", timeline, (unsigned)(lsn >> 32),
                   (unsigned)lsn);
    add_option(to, "timeline-limit", limit);
}

static void add_segment_size(const struct restore *restore, struct text *to)
{
    char size[16];
    (void)snprintf(size, sizeof(size), "%u", restore->record.segment_size);
    add_option(to, "segment-size", size);
}

/* A server that dies between the removal of recovery.signal and the end of the checkpoint after it
 * comes back in crash recovery (StartupXLOG(): pg_control still has the old timeline), which
 * replays whatever lies in pg_wal. PostgreSQL 15 reads ahead across segments, so what lies behind
 * the tag's segment would be there, and be replayed: it is not delivered. */
static void limit_to_tag(const struct restore *restore, struct text *to)
{
    const struct record *record = &restore->record;
    uint64_t end = align_up(restore->target_lsn, record->segment_size);
    uint32_t timelines[] = {record->timeline, restore->target_timeline};
    if (restore->target != TARGET_TAG || restore->target_lsn == 0)
        return;
    for (size_t i = 0; i < ARRAY_LEN(timelines); i++) {
        if (i > 0 && timelines[i] == timelines[0])
            break;
        add_limit(to, timelines[i], end);
    }
    add_segment_size(restore, to);
}

/* restore_standby.c says why; so it is with every fork on the way: where the archive does not
 * answer for a segment of the child, the parent's would be replayed. Until the coordinator knows
 * the last fork the server cannot be started; what stands here then is only not less than that. */
static void limit_to_fork(const struct restore *restore, struct text *to)
{
    enum { ANCESTORS_MAX = 16 }; /* a standby is that many forks behind its snapshot, at most */
    const struct restore_fork *fork = &restore->fork;
    const struct wal_history *history = &restore->history;
    char last[16];
    bool known = fork->timeline != 0;
    size_t first = history->count > ANCESTORS_MAX ? history->count - ANCESTORS_MAX : 0;
    for (size_t i = first; i + 1 < history->count; i++)
        add_limit(to, history->entries[i].parent, history->entries[i].switch_lsn);
    if (known)
        add_limit(to, fork->parent, fork->lsn);
    else if (restore->target_lsn)
        add_limit(to, restore->target_timeline, restore->target_lsn);
    (void)snprintf(last, sizeof(last), "%u", known ? fork->timeline : restore->target_timeline);
    add_option(to, "last-timeline", last);
    add_segment_size(restore, to);
}

/* A repository that does not answer must neither end a standby nor keep it from streaming. */
static void add_patience(const struct restore *restore, struct text *to)
{
    enum { GET_TIMEOUT_S = 20 };
    char timeout[16];
    (void)snprintf(timeout, sizeof(timeout), "%us",
                   (unsigned)min_u64(GET_TIMEOUT_S, restore->conf.wal_get_timeout_s));
    add_option(to, "on-error", "retry");
    add_option(to, "get-timeout", timeout);
}

static void add_given(struct text *to, const char *name, const char *value)
{
    if (value[0])
        add_option(to, name, value);
}

/* Where an s3:// repository is; of its keys, and those of an encrypted one, only the name of their
 * file. */
static void add_access(const struct conf *conf, struct text *to)
{
    static const char *const words[] = {
        [STORE_S3_AUTO] = "", [STORE_S3_PATH] = "path", [STORE_S3_VIRTUAL] = "virtual"};
    add_given(to, "key-file", conf->wal_key_file);
    if (!repository_needs_credentials(conf))
        return;
    add_given(to, "endpoint", conf->repository_endpoint);
    add_given(to, "region", conf->repository_region);
    add_given(to, "addressing", words[conf->repository_addressing]);
    add_given(to, "ca-file", conf->repository_ca_file);
    add_given(to, "credentials-file", repository_credentials_file(conf, REPOSITORY_WAL));
}

/* Every fact is on the command line: an empty host has no configuration that could tell. Target
 * snapshot: only history files are served, so that the new timeline's number is free, and replay
 * ends where the image's own WAL ends. */
static int base_command(const struct restore *restore, struct text *to, struct err *err)
{
    char program[PATH_MAX], id[ID_TEXT_LEN], number[24];
    int rc = program_find("tidemark-wal", program, err);
    if (rc < 0)
        return rc;
    id_to_text(restore->repo.id, id);
    (void)snprintf(number, sizeof(number), "%" PRIu64, restore->archive.system_id);
    if (restore->target == TARGET_SNAPSHOT)
        text_string(to, "case '%f' in *.history) ;; *) exit 1 ;; esac; exec");
    add_word(to, program);
    text_string(to, " get '%f' '%p'");
    add_option(to, "repository", restore->conf.repository_url);
    add_access(&restore->conf, to);
    add_option(to, "repository-id", id);
    add_option(to, "cluster", restore->archive.cluster);
    add_option(to, "system-id", number);
    return 0;
}

static int restore_command(const struct restore *restore, struct text *to, struct err *err)
{
    int rc = base_command(restore, to, err);
    if (rc == 0 && restore->request.standby) {
        limit_to_fork(restore, to);
        add_patience(restore, to);
    } else if (rc == 0) {
        limit_to_tag(restore, to);
    }
    return rc;
}

/* As PostgreSQL fills it in: xlogarchive.c, BuildRestoreCommand(). */
int restore_get_command(const struct restore *restore, const char *name, const char *path,
                        char **ret, struct err *err)
{
    struct text command = {0}, filled = {0};
    int rc = base_command(restore, &command, err);
    for (const char *c = command.bytes; rc == 0 && *c; c++) {
        if (*c != '%' || *++c == '%') /* "%%" is one */
            text_add(&filled, c, 1);
        else
            text_string(&filled, *c == 'f' ? name : path);
    }
    free(command.bytes);
    *ret = filled.bytes;
    return rc;
}

/* --- the block -------------------------------------------------------------------------------- */

static const char *target_setting(enum target_type type)
{
    switch (type) {
    case TARGET_TAG:
    case TARGET_NAME:
        return "recovery_target_name";
    case TARGET_TIME:
        return "recovery_target_time";
    case TARGET_LSN:
        return "recovery_target_lsn";
    case TARGET_XID:
        return "recovery_target_xid";
    case TARGET_SNAPSHOT:
    case TARGET_LATEST:
    case TARGET_TYPE_COUNT:
        break;
    }
    return NULL;
}

static void add_targets(const struct restore *restore, struct text *to)
{
    static const char *const targets[] = {"recovery_target", "recovery_target_name",
                                          "recovery_target_time", "recovery_target_xid",
                                          "recovery_target_lsn"};
    char timeline[16];
    const char *own = restore->request.standby ? NULL : target_setting(restore->target);
    for (size_t i = 0; i < ARRAY_LEN(targets); i++)
        if (!own || strcmp(targets[i], own) != 0)
            add_setting(to, targets[i], "");
    add_setting(to, "recovery_target_inclusive", restore->request.exclusive ? "off" : "on");
    (void)snprintf(timeline, sizeof(timeline), "%u", restore->target_timeline);
    add_setting(to, "recovery_target_timeline", restore->request.standby ? "latest" : timeline);
    add_setting(to, "recovery_target_action", restore_action_name(restore->request.action));
    if (own)
        add_setting(to, own, restore->target_value);
}

static void add_permit(const struct restore *restore, struct text *to)
{
    char path[PERMIT_PATH_MAX];
    if (!restore_permit_wanted(restore))
        return;
    restore_permit_path(restore, path, sizeof(path));
    text_string(to, "include '");
    text_string(to, path);
    text_string(to, "'\n");
}

/* hot_standby: whether it is attached is asked through a session. */
static void add_primary(const struct restore *restore, struct text *to)
{
    bool standby = restore->request.standby;
    add_setting(to, "primary_conninfo", standby ? restore->request.primary_conninfo : "");
    add_setting(to, "primary_slot_name", standby ? restore->request.primary_slot : "");
    if (standby)
        add_setting(to, "hot_standby", "on");
}

int restore_settings_block(const struct restore *restore, char **ret, struct err *err)
{
    struct text to = {0}, command = {0};
    int rc = restore_command(restore, &command, err);
    if (rc == 0) {
        add_setting(&to, "restore_command", command.bytes + (command.bytes[0] == ' '));
        add_setting(&to, "archive_cleanup_command", "");
        add_setting(&to, "recovery_end_command", "");
        add_primary(restore, &to);
        add_setting(&to, "recovery_min_apply_delay", "0");
        /* Every block was flushed by us; opening each file to fsync it takes seconds. Patroni
         * removes all other lines of the block again, but not this one. */
        if (!restore_is_handover(restore))
            add_setting(&to, "recovery_init_sync_method", "syncfs");
        add_permit(restore, &to);
        add_targets(restore, &to);
        *ret = to.bytes;
    }
    free(command.bytes);
    return rc;
}

int restore_standby_lines(const struct restore *restore, bool with_command, char **ret,
                          struct err *err)
{
    struct text to = {0}, command = {0};
    int rc = with_command ? base_command(restore, &command, err) : 0;
    if (rc == 0 && with_command) {
        add_patience(restore, &command);
        add_setting(&to, "restore_command", command.bytes + (command.bytes[0] == ' '));
    }
    free(command.bytes);
    if (rc < 0)
        return rc;
    add_setting(&to, "primary_conninfo", restore->request.primary_conninfo);
    /* "" too: postgresql.conf may name one that the primary does not have. */
    add_setting(&to, "primary_slot_name", restore->request.primary_slot);
    add_setting(&to, "recovery_target_timeline", "latest");
    *ret = to.bytes;
    return 0;
}

/* --- the file --------------------------------------------------------------------------------- */

static int read_automatic(const struct restore *restore, char *path, size_t size, char **ret,
                          struct err *err)
{
    size_t len;
    (void)snprintf(path, size, "%s/postgresql.auto.conf", restore->data_directory);
    return restore_read_theirs(restore, path, MIB, ret, &len, err);
}

int restore_write_settings(struct restore *restore, struct err *err)
{
    char path[CONF_PATH_MAX + 32];
    free_mem char *text = NULL;
    free_mem char *block = NULL;
    int rc = read_automatic(restore, path, sizeof(path), &text, err);
    if (rc == -ERR_MISSING)
        rc = 0;
    if (rc == 0 && !restore->request.replica) /* Patroni writes a replica's settings */
        rc = restore_settings_block(restore, &block, err);
    if (rc != 0)
        return rc;
    free_mem char *with = settings_with_recovery(text ? text : "", block);
    return restore_write_file(restore, path, with, strlen(with), 0600, err);
}

int restore_replace_settings(struct restore *restore, const char *extra, struct err *err)
{
    char path[CONF_PATH_MAX + 32];
    free_mem char *text = NULL;
    int rc = read_automatic(restore, path, sizeof(path), &text, err);
    if (rc < 0)
        return rc;
    struct text now = {0};
    free_mem char *without = settings_without_block(text);
    size_t len = strlen(without), extra_len = strlen(extra);
    bool there = len >= extra_len && strcmp(without + len - extra_len, extra) == 0;
    text_string(&now, without);
    text_string(&now, there ? "" : extra); /* an interrupted run wrote it */
    if (strcmp(text, now.bytes) != 0)
        rc = restore_write_file(restore, path, now.bytes, now.len, 0600, err);
    free(now.bytes);
    return rc;
}
