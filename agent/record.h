/* The snapshot record: what a snapshot is, as one object written last (its appearance is the
 * commit). In memory a plain struct; in the repository a JSON envelope (FORMAT.md §8), binary in
 * base64. record_release() frees what is malloc'ed. One thread. */
#ifndef TIDEMARK_AGENT_RECORD_H
#define TIDEMARK_AGENT_RECORD_H

#include "agent/json.h"
#include "io/extent.h"
#include "io/format.h"

enum {
    RECORD_VOLUMES_MAX = 16,
    RECORD_TAG_MAX = 30,
    RECORD_EXTENTS_MAX = 16,
    RECORD_PASSES_MAX = 64,
    RECORD_CONFIG_FILES_MAX = 256,
    RECORD_TABLESPACES_MAX = 4096,
    RECORD_LABEL_MAX = 1 << 20, /* bytes of backup_label, of tablespace_map */
};

struct record_blob {
    char *path; /* where the file was, absolute */
    void *bytes;
    size_t len;
    uint32_t mode, uid, gid;
};

struct record_volume {
    char name[64];
    uint8_t id[ID_LEN];
    uint64_t size;
    uint32_t logical_sector, physical_sector;
    char fs_type[16], fs_uuid[40], fs_label[64];
    char mount_point[1024];
    char mount_options[512];
    char provider[16];
    uint8_t manifest_sha256[FMT_SHA256_LEN];
    /* statistics */
    uint64_t bytes_read, bytes_stored, bytes_free, chunks_stored, chunks_same;
    uint64_t chunks_rewritten, bytes_rewritten; /* of those stored: rewrite_budget */
    /* Option track = yes: of track_used chunks with data track_read were read, the others are the
     * parent's, unread; or, track_used being 0, everything was read, and why. */
    uint64_t track_used, track_read;
    char track_full[128];
};

struct record_tablespace {
    uint32_t oid;
    char name[64];
    char location[1024];
};

struct record {
    uint8_t id[ID_LEN];
    uint8_t parent[ID_LEN]; /* zero = full */
    char tag[RECORD_TAG_MAX + 1];
    char cluster[64], node[64], host[64];
    int64_t started_s, captured_s, committed_s; /* Unix seconds; captured = the instant */
    int64_t locked_until_s; /* what it needs cannot be removed before; 0 = not locked */
    char tidemark_version[32];
    /* PostgreSQL */
    uint32_t pg_version_num; /* 150020 */
    char pg_version[64];
    uint64_t system_id;
    uint32_t timeline;
    uint64_t start_lsn, stop_lsn, tag_lsn;
    int64_t stopped_us;    /* Unix µs of stop_lsn, by the server's clock; 0 = not known */
    uint32_t segment_size; /* bytes */
    uint32_t block_size;
    bool data_checksums;
    bool online;            /* taken with pg_backup_start/stop; false: offline, no label */
    bool archived;          /* WAL start…tag is in the repository; false = --no-archive */
    bool wal_in_image;      /* pg_wal's segments were captured */
    char restore_point[64]; /* "<tag>@<id>", ≤ 63 bytes */
    char data_directory[1024];
    char wal_directory[1024]; /* resolved pg_wal */
    char bin_directory[1024];
    char os_user[64];
    uint32_t os_uid, os_gid;
    uint16_t port;
    char socket_directory[512];
    char *backup_label;   /* malloc'ed, NUL-ended; NULL when not online */
    char *tablespace_map; /* malloc'ed; NULL or "" when there is none */
    struct record_blob *config_files;
    size_t config_file_count;
    struct record_tablespace *tablespaces;
    size_t tablespace_count;
    /* global/pg_control as captured, and where it lies in volume control_volume. */
    char control_volume[64];
    struct extent control_extents[RECORD_EXTENTS_MAX];
    size_t control_extent_count;
    uint8_t control[8192];
    json_t *settings; /* object: name → value, of settings that a restore must not lower */
    json_t *topology; /* object, DESIGN §7; only this node for now */
    struct record_volume volumes[RECORD_VOLUMES_MAX];
    size_t volume_count;
    /* Longest stall that the capture caused; 0 for offline and script freezes. */
    uint64_t freeze_ns;
    /* Provider precopy: the sum of all stalls; bytes that had changed at each barrier, in order, of
     * all volumes. pass_count is 0 for other providers. */
    uint64_t freeze_sum_ns;
    uint64_t passes[RECORD_PASSES_MAX];
    size_t pass_count;
};

/* The settings that must not be lower where WAL is replayed than where it was written: a restored
 * server or a standby stops otherwise (xlogrecovery.c, RecoveryRequiresIntParameter()). NULL-ended.
 */
extern const char *const record_replay_settings[];

void record_release(struct record *record);

/* When a snapshot was taken. */
struct record_age {
    int64_t captured_s;
    uint32_t timeline;
    uint64_t tag_lsn;
    int64_t committed_s;
};
/* < 0: left is older. Snapshots of a node can share their second; then the timeline and the place
 * in the WAL tell which came first, and of two of a stopped server the commit. */
int record_age_compare(const struct record_age *left, const struct record_age *right);

/* New reference; every field. */
json_t *record_to_json(const struct record *record);
/* Validates types, lengths and counts, then record_check(); ERR_CORRUPT, or ERR_REFUSED for a newer
 * format. Unknown keys are ignored (a later minor version may add some). */
int record_from_json(const json_t *json, struct record *ret, struct err *err);

/* Ranges, names, paths and what must agree: ERR_CORRUPT names it. Before a commit and behind every
 * read. */
int record_check(const struct record *record, struct err *err);

/* Borrowed; NULL when there is none. */
const struct record_volume *record_volume_by_name(const struct record *record, const char *name);

/* What `show` prints: the record without contents of config files and without pg_control. */
json_t *record_to_public_json(const struct record *record);

#endif
