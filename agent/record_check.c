/* What a snapshot record must hold beyond types and lengths. The same check stands before the
 * commit and behind every read: a record that passes here can be acted on without further
 * suspicion of its paths, ranges and names. */
#include "agent/record.h"

static int bad(struct err *err, const char *what)
{
    return err_set(err, ERR_CORRUPT, "snapshot record: %s", what);
}

static bool is_power_of_two(uint64_t value, uint64_t low, uint64_t high)
{
    return value >= low && value <= high && (value & (value - 1)) == 0;
}

/* Absolute and without "..": restore writes to such paths as root. */
static bool is_clean_path(const char *path)
{
    if (path[0] != '/')
        return false;
    for (const char *at = path; (at = strstr(at, "/..")); at += 3)
        if (at[3] == '/' || at[3] == '\0')
            return false;
    return true;
}

static const char *check_names(const struct record *record)
{
    if (id_is_zero(record->id))
        return "the id is zero";
    if (memcmp(record->id, record->parent, ID_LEN) == 0)
        return "it is its own parent";
    if (!repo_tag_valid(record->tag))
        return "the tag is not a valid tag";
    if (!repo_name_valid(record->cluster, sizeof(record->cluster) - 1))
        return "the cluster is not a valid name";
    if (!repo_name_valid(record->node, sizeof(record->node) - 1))
        return "the node is not a valid name";
    if (record->captured_s < record->started_s || record->committed_s < record->captured_s)
        return "its times are not in order";
    return NULL;
}

static const char *check_wal(const struct record *record)
{
    if (record->system_id == 0 || record->timeline == 0)
        return "system identifier or timeline is zero";
    if (!is_power_of_two(record->segment_size, MIB, GIB))
        return "the WAL segment size is not a power of two from 1 MiB to 1 GiB";
    if (!is_power_of_two(record->block_size, 1024, 32768))
        return "the block size is not a power of two from 1 to 32 KiB";
    if (record->start_lsn == 0 || record->start_lsn > record->stop_lsn ||
        record->stop_lsn > record->tag_lsn)
        return "start, stop and tag LSN are not in order";
    if (record->online != (record->backup_label != NULL))
        return "a backup label must be there exactly when it was taken online";
    if (record->online && record->archived != (record->restore_point[0] != '\0'))
        return "a restore point must be there exactly when the WAL is archived";
    if (!record->archived && !record->wal_in_image)
        return "its WAL is neither archived nor in the image";
    return NULL;
}

static const char *check_server(const struct record *record)
{
    if (record->pg_version_num < 150000 || record->pg_version_num > 9999999)
        return "the PostgreSQL version is out of range";
    if (!is_clean_path(record->data_directory) || !is_clean_path(record->wal_directory) ||
        !is_clean_path(record->bin_directory))
        return "data, WAL or program directory is not an absolute path";
    if (!record->os_user[0] || strchr(record->os_user, '/'))
        return "the operating system user is not a name";
    for (size_t i = 0; i < record->config_file_count; i++)
        if (!is_clean_path(record->config_files[i].path))
            return "a configuration file's path is not absolute";
    for (size_t i = 0; i < record->tablespace_count; i++)
        if (record->tablespaces[i].oid == 0 || !is_clean_path(record->tablespaces[i].location))
            return "a tablespace has no oid or its location is not absolute";
    return NULL;
}

static const char *check_volume(const struct record *record, size_t index)
{
    const struct record_volume *volume = &record->volumes[index];
    if (!repo_name_valid(volume->name, sizeof(volume->name) - 1))
        return "a volume's name is not valid";
    if (id_is_zero(volume->id))
        return "a volume's id is zero";
    if (!is_power_of_two(volume->logical_sector, 512, 65536) ||
        !is_power_of_two(volume->physical_sector, 512, 16 * MIB))
        return "a volume's sector size is not a power of two";
    if (volume->size == 0 || volume->size % volume->logical_sector)
        return "a volume's size is zero or not a multiple of its sectors";
    if (volume->mount_point[0] && !is_clean_path(volume->mount_point))
        return "a volume's mount point is not absolute";
    if (!volume->fs_type[0])
        return "a volume has no filesystem type";
    if (volume->track_read > volume->track_used || (volume->track_used && volume->track_full[0]))
        return "what it says of tracking contradicts itself";
    for (size_t i = 0; i < index; i++)
        if (strcmp(record->volumes[i].name, volume->name) == 0 ||
            memcmp(record->volumes[i].id, volume->id, ID_LEN) == 0)
            return "two volumes have the same name or id";
    return NULL;
}

static const char *check_control(const struct record *record)
{
    const struct record_volume *volume = record_volume_by_name(record, record->control_volume);
    if (!volume)
        return "the volume of pg_control is not one of its volumes";
    uint64_t total = 0;
    for (size_t i = 0; i < record->control_extent_count; i++) {
        const struct extent *extent = &record->control_extents[i];
        uint64_t end;
        if (extent->len == 0 || !add_u64(extent->offset, extent->len, &end) || end > volume->size ||
            extent->offset % volume->logical_sector || extent->len % volume->logical_sector)
            return "pg_control lies outside of its volume";
        total += extent->len;
    }
    return total < sizeof(record->control) ? "pg_control's extents are too short" : NULL;
}

const struct record_volume *record_volume_by_name(const struct record *record, const char *name)
{
    for (size_t i = 0; i < record->volume_count; i++)
        if (strcmp(record->volumes[i].name, name) == 0)
            return &record->volumes[i];
    return NULL;
}

int record_check(const struct record *record, struct err *err)
{
    const char *problem = check_names(record);
    if (!problem)
        problem = check_wal(record);
    if (!problem)
        problem = check_server(record);
    if (!problem && record->volume_count == 0)
        problem = "it has no volumes";
    for (size_t i = 0; !problem && i < record->volume_count; i++)
        problem = check_volume(record, i);
    if (!problem)
        problem = check_control(record);
    if (!problem && (!json_is_object(record->settings) || !json_is_object(record->topology)))
        problem = "settings or topology are missing";
    return problem ? bad(err, problem) : 0;
}
