/* pg_control through pg_controldata: its layout changes with every major version, and the program
 * of the right version is in bin_directory anyway. LC_ALL=C: the labels are translated. */
#include "agent/pg.h"

#include <stdio.h>

/* The text after "label:" at the start of a line, without leading blanks; NULL when absent. */
static const char *find_label(const char *text, const char *label)
{
    size_t len = strlen(label);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, label, len) == 0 && line[len] == ':')
            return line + len + 1 + strspn(line + len + 1, " ");
    }
    return NULL;
}

static bool get_number(const char *text, const char *label, uint64_t max, uint64_t *ret)
{
    const char *value = find_label(text, label);
    if (!value || *value < '0' || *value > '9')
        return false;
    char *end;
    *ret = strtoull(value, &end, 10);
    return *end == '\n' && *ret <= max;
}

static bool get_u32(const char *text, const char *label, uint32_t *ret)
{
    uint64_t value;
    if (!get_number(text, label, UINT32_MAX, &value))
        return false;
    *ret = (uint32_t)value;
    return true;
}

static void get_text(const char *text, const char *label, char *to, size_t size)
{
    const char *value = find_label(text, label);
    (void)snprintf(to, size, "%.*s", value ? (int)strcspn(value, "\n") : 0, value ? value : "");
}

static bool get_lsn(const char *text, const char *label, uint64_t *ret)
{
    char value[PG_LSN_TEXT];
    get_text(text, label, value, sizeof(value));
    return pg_lsn_parse(value, ret);
}

static bool parse(const char *text, struct pg_control *ret)
{
    uint32_t checksum_version;
    get_text(text, "Database cluster state", ret->state, sizeof(ret->state));
    bool good = get_number(text, "Database system identifier", UINT64_MAX, &ret->system_id) &&
                get_u32(text, "pg_control version number", &ret->control_version) &&
                get_u32(text, "Catalog version number", &ret->catalog_version) &&
                get_u32(text, "Latest checkpoint's TimeLineID", &ret->timeline) &&
                get_lsn(text, "Latest checkpoint location", &ret->checkpoint_lsn) &&
                get_lsn(text, "Latest checkpoint's REDO location", &ret->redo_lsn) &&
                get_lsn(text, "Minimum recovery ending location", &ret->min_recovery_lsn) &&
                get_u32(text, "Bytes per WAL segment", &ret->segment_size) &&
                get_u32(text, "Database block size", &ret->block_size) &&
                get_u32(text, "Data page checksum version", &checksum_version) &&
                get_u32(text, "max_connections setting", &ret->max_connections) &&
                get_u32(text, "max_worker_processes setting", &ret->max_worker_processes) &&
                get_u32(text, "max_wal_senders setting", &ret->max_wal_senders) &&
                get_u32(text, "max_prepared_xacts setting", &ret->max_prepared_xacts) &&
                get_u32(text, "max_locks_per_xact setting", &ret->max_locks_per_xact);
    if (good)
        ret->checksums = checksum_version != 0;
    return good && ret->state[0] && pg_segment_size_valid(ret->segment_size);
}

int pg_control_read(const struct conf *conf, const char *data_directory, struct pg_control *ret,
                    struct err *err)
{
    const char *argv[] = {"pg_controldata", "-D", data_directory, NULL};
    free_mem char *text = NULL;
    int rc = pg_run(conf, argv, &text, err);
    if (rc < 0)
        return err_prefix(err, "read pg_control of '%s'", data_directory);
    if (strstr(text, "WARNING:"))
        return err_set(err, ERR_CORRUPT,
                       "pg_control of '%s' is damaged: pg_controldata warns: %.200s",
                       data_directory, strstr(text, "WARNING:"));
    struct pg_control control = {0};
    if (!parse(text, &control))
        return err_set(err, ERR_POSTGRES, "pg_controldata's output for '%s' is not understood",
                       data_directory);
    *ret = control;
    return 0;
}
