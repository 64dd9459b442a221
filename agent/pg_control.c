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

bool pg_control_parse(const char *text, struct pg_control *ret)
{
    struct pg_control control = {0};
    uint32_t checksum_version;
    get_text(text, "Database cluster state", control.state, sizeof(control.state));
    bool good = get_number(text, "Database system identifier", UINT64_MAX, &control.system_id) &&
                get_u32(text, "pg_control version number", &control.control_version) &&
                get_u32(text, "Catalog version number", &control.catalog_version) &&
                get_u32(text, "Latest checkpoint's TimeLineID", &control.timeline) &&
                get_lsn(text, "Latest checkpoint location", &control.checkpoint_lsn) &&
                get_lsn(text, "Latest checkpoint's REDO location", &control.redo_lsn) &&
                get_lsn(text, "Minimum recovery ending location", &control.min_recovery_lsn) &&
                get_u32(text, "Bytes per WAL segment", &control.segment_size) &&
                get_u32(text, "Database block size", &control.block_size) &&
                get_u32(text, "Data page checksum version", &checksum_version) &&
                get_u32(text, "max_connections setting", &control.max_connections) &&
                get_u32(text, "max_worker_processes setting", &control.max_worker_processes) &&
                get_u32(text, "max_wal_senders setting", &control.max_wal_senders) &&
                get_u32(text, "max_prepared_xacts setting", &control.max_prepared_xacts) &&
                get_u32(text, "max_locks_per_xact setting", &control.max_locks_per_xact);
    if (!good || !control.state[0] || !pg_segment_size_valid(control.segment_size))
        return false;
    control.checksums = checksum_version != 0;
    *ret = control;
    return true;
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
    if (!pg_control_parse(text, ret))
        return err_set(err, ERR_POSTGRES, "pg_controldata's output for '%s' is not understood",
                       data_directory);
    return 0;
}
