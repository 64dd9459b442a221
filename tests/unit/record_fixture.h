/* A snapshot record with every field set, for the tests of record and catalog. */
#ifndef TIDEMARK_TESTS_RECORD_FIXTURE_H
#define TIDEMARK_TESTS_RECORD_FIXTURE_H

#include <stdio.h>

#include "agent/record.h"

static void fixture_volume(struct record_volume *volume, const char *name, uint8_t id)
{
    (void)snprintf(volume->name, sizeof(volume->name), "%s", name);
    memset(volume->id, id, sizeof(volume->id));
    volume->size = GIB;
    volume->logical_sector = 512;
    volume->physical_sector = 4096;
    (void)snprintf(volume->fs_type, sizeof(volume->fs_type), "ext4");
    (void)snprintf(volume->fs_uuid, sizeof(volume->fs_uuid),
                   "3e6be9de-8139-11d1-9106-a43f08d823a6");
    (void)snprintf(volume->fs_label, sizeof(volume->fs_label), "donn\xe9"); /* not UTF-8 */
    (void)snprintf(volume->mount_point, sizeof(volume->mount_point), "/srv/%s", name);
    (void)snprintf(volume->mount_options, sizeof(volume->mount_options), "rw,noatime");
    (void)snprintf(volume->provider, sizeof(volume->provider), "freeze");
    memset(volume->manifest_sha256, id + 1, sizeof(volume->manifest_sha256));
    volume->bytes_read = 1000000;
    volume->bytes_stored = 500000;
    volume->bytes_free = 123;
    volume->chunks_stored = 7;
    volume->chunks_same = 8;
}

static void fixture_record_server(struct record *record)
{
    record->pg_version_num = 150020;
    (void)snprintf(record->pg_version, sizeof(record->pg_version), "15.20");
    record->system_id = 0xf123456789abcdefULL; /* above 2^63 */
    record->timeline = 2;
    record->start_lsn = 0x100000028ULL;
    record->stop_lsn = 0x100000138ULL;
    record->tag_lsn = 0x1000001a0ULL;
    record->segment_size = 16 << 20;
    record->block_size = 8192;
    record->data_checksums = true;
    record->online = true;
    record->archived = true;
    (void)snprintf(record->data_directory, sizeof(record->data_directory), "/srv/pgdata/data");
    (void)snprintf(record->wal_directory, sizeof(record->wal_directory), "/srv/pgwal/wal");
    (void)snprintf(record->bin_directory, sizeof(record->bin_directory),
                   "/usr/lib/postgresql/15/bin");
    (void)snprintf(record->os_user, sizeof(record->os_user), "postgres");
    record->os_uid = 115;
    record->os_gid = 121;
    record->port = 5432;
    (void)snprintf(record->socket_directory, sizeof(record->socket_directory),
                   "/var/run/postgresql");
    record->backup_label = strdup("START WAL LOCATION: 1/28\n");
    record->tablespace_map = strdup("16385 /srv/ts/1\n");
    record->config_files = calloc(1, sizeof(*record->config_files));
    record->config_file_count = 1;
    record->config_files[0] = (struct record_blob){
        .path = strdup("/etc/postgresql/p\xf6stgresql.conf"), /* not UTF-8 */
        .bytes = strdup("secret = '1'\n"),
        .len = 13,
        .mode = 0640,
        .uid = 115,
        .gid = 121,
    };
    record->tablespaces = calloc(1, sizeof(*record->tablespaces));
    record->tablespace_count = 1;
    record->tablespaces[0].oid = 16385;
    (void)snprintf(record->tablespaces[0].name, sizeof(record->tablespaces[0].name), "fast");
    (void)snprintf(record->tablespaces[0].location, sizeof(record->tablespaces[0].location),
                   "/srv/ts/1");
    record->settings = json_pack("{s:s,s:s}", "max_connections", "100", "wal_level", "replica");
}

/* id_byte fills the id; release with record_release(). */
static void fixture_record(struct record *record, uint8_t id_byte, const char *tag)
{
    memset(record, 0, sizeof(*record));
    memset(record->id, id_byte, sizeof(record->id));
    memset(record->parent, 0x77, sizeof(record->parent));
    (void)snprintf(record->tag, sizeof(record->tag), "%s", tag);
    (void)snprintf(record->cluster, sizeof(record->cluster), "main");
    (void)snprintf(record->node, sizeof(record->node), "db1");
    (void)snprintf(record->host, sizeof(record->host), "db1.example");
    record->started_s = 1764000000;
    record->captured_s = 1764000010 + id_byte;
    record->committed_s = 1764000600;
    (void)snprintf(record->tidemark_version, sizeof(record->tidemark_version), "0.1.0");
    (void)snprintf(record->restore_point, sizeof(record->restore_point), "%s@%02x", tag, id_byte);
    fixture_record_server(record);
    (void)snprintf(record->control_volume, sizeof(record->control_volume), "pgdata");
    record->control_extents[0] = (struct extent){.offset = 40960, .len = 4096};
    record->control_extents[1] = (struct extent){.offset = 81920, .len = 4096};
    record->control_extent_count = 2;
    for (size_t i = 0; i < sizeof(record->control); i++)
        record->control[i] = (uint8_t)(i * 7);
    record->topology = json_pack("{s:[]}", "nodes");
    fixture_volume(&record->volumes[0], "pgdata", 0x11);
    fixture_volume(&record->volumes[1], "pgwal", 0x22);
    record->volume_count = 2;
    record->freeze_ns = 25000000;
}

#endif
