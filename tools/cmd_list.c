/* tidemark list: the snapshots of the repository, oldest first, or the WAL that it has. */
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "agent/text.h"
#include "tools/cmd.h"
#include "tools/cmd_table.h"

/* What a terminal that is too narrow leaves out, `show` has. */
static const struct cmd_table_column columns[] = {
    {"TAG", false, 0},  {"ID", false, 7},     {"CAPTURED", false, 6},      {"AGE", true, 4},
    {"NODE", false, 8}, {"SIZE", true, 5},    {"STORED", true, 9},         {"TL", true, 3},
    {"LSN", false, 1},  {"PINNED", false, 2}, {"LOCKED UNTIL", false, 10},
};
static const struct cmd_table_column wal_columns[] = {
    {"TL", true, 0},      {"FIRST WAL", false, 5}, {"LAST WAL", false, 6}, {"SEGMENTS", true, 4},
    {"MISSING", true, 3}, {"STORED", true, 2},     {"SYSTEM", true, 1},
};
static const struct cmd_option options[] = {
    {"wal", 0, NULL, "the WAL instead, of each timeline"},
    {NULL, 0, NULL, NULL},
};
enum { CELL = CMD_TABLE_CELL_MAX, ID_SHOWN = 12 };

/* Volume sizes and stored bytes of one record, summed. */
static void sum_volumes(const json_t *record, uint64_t *ret_size, uint64_t *ret_stored)
{
    size_t i;
    json_t *volume;
    *ret_size = *ret_stored = 0;
    json_array_foreach(json_object_get(record, "volumes"), i, volume)
    {
        *ret_size += (uint64_t)json_integer_value(json_object_get(volume, "size"));
        *ret_stored += (uint64_t)json_integer_value(json_object_get(volume, "bytes_stored"));
    }
}

static void add_row(struct cmd_table *table, const json_t *record)
{
    const json_t *pg = json_object_get(record, "postgresql");
    int64_t captured_s = json_integer_value(json_object_get(record, "captured_s"));
    uint64_t size, stored;
    char(*row)[CELL] = cmd_table_row(table);
    sum_volumes(record, &size, &stored);
    (void)snprintf(row[0], CELL, "%s", cmd_text_or_dash(record, "tag"));
    (void)snprintf(row[1], CELL, "%.*s", ID_SHOWN, cmd_text_or_dash(record, "id"));
    cmd_format_time(captured_s, row[2]);
    text_age((int64_t)time(NULL) - captured_s, row[3]);
    (void)snprintf(row[4], CELL, "%s", cmd_text_or_dash(record, "node"));
    cmd_format_size(size, row[5]);
    cmd_format_size(stored, row[6]);
    (void)snprintf(row[7], CELL, "%lld",
                   (long long)json_integer_value(json_object_get(pg, "timeline")));
    (void)snprintf(row[8], CELL, "%s", cmd_text_or_dash(pg, "tag_lsn"));
    (void)snprintf(row[9], CELL, "%s",
                   json_is_true(json_object_get(record, "pinned")) ? "yes" : "");
    if (table->column_count < ARRAY_LEN(columns))
        return;
    int64_t until_s = json_integer_value(json_object_get(record, "locked_until_s"));
    if (until_s > (int64_t)time(NULL))
        cmd_format_time(until_s, row[10]);
    else
        (void)snprintf(row[10], CELL, "-");
}

/* The last column is for repositories where snapshots are locked. */
static bool any_locked(const json_t *records)
{
    size_t i;
    json_t *record;
    json_array_foreach(records, i, record)
    {
        if (json_object_get(record, "locked_until_s"))
            return true;
    }
    return false;
}

static void print_table(const json_t *records)
{
    struct cmd_table table = {.columns = columns,
                              .column_count = ARRAY_LEN(columns) - !any_locked(records)};
    size_t i;
    json_t *record;
    json_array_foreach(records, i, record)
    {
        add_row(&table, record);
    }
    cmd_table_print(&table);
    cmd_table_release(&table);
}

static void add_count(char cell[CELL], const json_t *range, const char *key)
{
    const json_t *count = json_object_get(range, key);
    free_mem char *text = json_text(count);
    (void)snprintf(cell, CELL, "%s", json_is_integer(count) ? text : "?");
}

static void print_wal(const json_t *ranges)
{
    struct cmd_table table = {.columns = wal_columns, .column_count = ARRAY_LEN(wal_columns)};
    size_t i;
    json_t *range;
    json_array_foreach(ranges, i, range)
    {
        char(*row)[CELL] = cmd_table_row(&table);
        add_count(row[0], range, "timeline");
        (void)snprintf(row[1], CELL, "%s", cmd_text(range, "first"));
        (void)snprintf(row[2], CELL, "%s", cmd_text(range, "last"));
        add_count(row[3], range, "segments");
        add_count(row[4], range, "missing");
        cmd_format_size((uint64_t)json_integer_value(json_object_get(range, "bytes")), row[5]);
        (void)snprintf(row[6], CELL, "%s", cmd_text(range, "system_id"));
    }
    cmd_table_print(&table);
    cmd_table_release(&table);
}

static void print_lines(const json_t *objects)
{
    size_t i;
    json_t *object;
    json_array_foreach(objects, i, object)
    {
        cmd_print_json(object);
    }
}

static int list_wal(const struct cmd *cmd, struct err *err)
{
    free_json json_t *answer = NULL;
    int rc = cmd_call(cmd, "GET", "/wal", &answer, err);
    const json_t *ranges = json_object_get(answer, "wal");
    if (rc < 0)
        return rc;
    if (cmd->json)
        print_lines(ranges);
    else if (json_array_size(ranges) > 0)
        print_wal(ranges);
    return 0;
}

static int list_snapshots(const struct cmd *cmd, struct err *err)
{
    free_json json_t *answer = NULL;
    int rc = cmd_call(cmd, "GET", "/snapshots", &answer, err);
    const json_t *records = json_object_get(answer, "snapshots");
    if (rc < 0)
        return rc;
    if (cmd->json)
        print_lines(records);
    else
        print_table(records);
    json_int_t damaged = json_integer_value(json_object_get(answer, "damaged"));
    if (damaged == 0)
        return 0;
    (void)err_set(err, ERR_CORRUPT, "%lld damaged snapshot records are not listed",
                  (long long)damaged);
    return err_hint(err, "those that are listed are good; take a new snapshot. `tidemark expire "
                         "--dry-run` shows the ids of damaged ones, `tidemark expire ID --confirm` "
                         "removes one");
}

/* A million segments are a thousand requests: only for who wants to know. */
static int run(struct cmd *cmd, struct err *err)
{
    return cmd_option(cmd, "wal") ? list_wal(cmd, err) : list_snapshots(cmd, err);
}

const struct cmd_verb verb_list = {
    .name = "list",
    .args = "",
    .summary = "Lists the snapshots of the repository, oldest first, or the WAL that it has.",
    .options = options,
    .notes =
        "TL and LSN: where the snapshot stands in the WAL. MISSING, of --wal: segments between "
        "the\n"
        "first and the last that are not there, as between a pinned snapshot and the others;\n"
        "`tidemark check` says whether a restore needs one. A terminal that is too narrow gets\n"
        "fewer columns.\n"
        "LOCKED UNTIL, where lock_days is set: nobody can remove the snapshot before.\n",
    .run = run,
};
