/* Private to agent/snapshot*.c: the state of one snapshot and the steps of its order (DESIGN §4).
 *
 *     snapshot.c         the order itself, the result, the clean-up
 *     snapshot_ids.c     ids of volumes
 *     snapshot_parent.c  the parent, table caches
 *     snapshot_pg.c      a running server: checks, facts, pg_backup_start … pg_backup_stop
 *     snapshot_standby.c a server in recovery: what it needs of its primary
 *     snapshot_offline.c a stopped server: checks and facts from its files
 *     snapshot_layout.c  where the server's files lie: volumes, links, second data directories
 *     snapshot_wal.c     proof that WAL arrives in the repository; waiting for start … tag
 *     snapshot_track.c   what need not be read, as nobody has written to it since the parent
 *     snapshot_lock.c    option lock_days: nothing that it needs can be removed
 *     snapshot_copy.c    capture, push, seal, pg_control's bytes
 *
 * Nothing in the repository is visible before catalog_commit(); nothing on this host outlives the
 * process but a working table, which the next snapshot replaces. One thread. */
#ifndef TIDEMARK_AGENT_SNAPSHOT_H
#define TIDEMARK_AGENT_SNAPSHOT_H

#include "agent/capture.h"
#include "agent/catalog.h"
#include "agent/job.h"
#include "agent/pg.h"
#include "agent/track.h"
#include "agent/wal.h"
#include "io/push.h"

struct snapshot_request {
    const char *tag; /* borrowed from job->request */
    bool full;
    bool no_archive;
    bool with_wal;
    bool checkpoint_fast;
};

struct snapshot_volume {
    uint8_t id[ID_LEN];
    char work_path[CONF_PATH_MAX + 64];  /* the table being made */
    char cache_path[CONF_PATH_MAX + 64]; /* the table of the newest committed snapshot */
    bool incremental;                    /* the three below are valid */
    struct fmt_manifest parent_manifest;
    void *parent_manifest_buf;
    struct table parent_table; /* closed (fd -1) until then, and so is work */
    struct table work;
    struct push push;
    struct extent_list used; /* what is read: data without WAL that is left out */
    struct push_result result;
    uint64_t bytes_read, bytes_stored, chunks_stored, chunks_same;
    uint64_t chunks_rewritten, bytes_rewritten; /* of those stored: push_rewrite() */
    uint64_t chunks_used,
        chunks_kept; /* track = yes: of those used, taken from the parent unread */
};

struct snapshot {
    struct job *job;
    const struct conf *conf;
    struct snapshot_request request;
    char id_text[ID_TEXT_LEN];
    struct store *store;
    struct repo repo;
    bool offline;
    struct volume_group group;
    struct snapshot_volume volumes[CONF_VOLUMES_MAX]; /* same order as group and record */
    struct record record;                             /* being filled */
    bool has_parent;
    struct record parent;
    struct pg_session *session;
    struct pg_session *primary; /* of a standby; NULL: the server is the primary itself */
    char identity[256];         /* postmasters, system id, timeline: must not change */
    struct wal_archive archive;
    struct capture capture;
    bool capturing;
    bool live;        /* provider precopy: copied before, during and after pg_backup_start */
    uint64_t copy_ms; /* of all volumes */
    struct extent_list wal[CONF_VOLUMES_MAX]; /* extents of WAL segments that are left out */
    struct track tracks[CONF_VOLUMES_MAX];
};

/* Phase for people and journal, log line, and the place where a cancel is seen. */
int snapshot_phase(struct snapshot *snapshot, const char *phase, struct err *err);
/* Sleeps; ERR_CANCELLED when somebody cancelled meanwhile. */
int snapshot_pause(const struct snapshot *snapshot, unsigned pause_ms, struct err *err);

/* snapshot_ids.c */
/* The id of the volume `name` in what volumes.json holds; *ret stays when there is none. */
int snapshot_id_find(const json_t *ids, const char *name, uint8_t ret[ID_LEN], struct err *err);
/* ids of snapshot->volumes from volumes.json, zero when there is none; and back, with new ones for
 * those that are zero. */
int snapshot_ids_load(struct snapshot *snapshot, struct err *err);
int snapshot_ids_save(struct snapshot *snapshot, struct err *err);

/* snapshot_parent.c */
int snapshot_find_parent(struct snapshot *snapshot, struct err *err);
int snapshot_open_tables(struct snapshot *snapshot, struct err *err);
/* The parent's record is still there: ERR_BUSY otherwise. */
int snapshot_check_parent(struct snapshot *snapshot, struct err *err);
/* After the commit: working tables become the caches. A failure costs a rebuild, nothing else. */
void snapshot_install_tables(struct snapshot *snapshot);

/* snapshot_pg.c */
int snapshot_pg_open(struct snapshot *snapshot, struct err *err);
int snapshot_pg_start_backup(struct snapshot *snapshot, struct err *err);
int snapshot_pg_stop_backup(struct snapshot *snapshot, struct err *err);
/* Same postmaster, system id and timeline as at the start. */
int snapshot_pg_check_identity(struct snapshot *snapshot, struct err *err);
/* Of snapshot_pg_open() what snapshot_check_layout() needs, with a session that is there. */
int snapshot_pg_read_places(struct snapshot *snapshot, struct err *err);
/* Reads path into record.config_files; a file that is not there is skipped. */
int snapshot_add_config_file(struct snapshot *snapshot, const char *path, struct err *err);
/* realpath(3) into ret of size bytes. ERR_CONFIG or ERR_DEVICE. */
int snapshot_resolve(const char *path, char *ret, size_t size, struct err *err);

/* One row of column_count texts that are not null; ret_rows owns them. */
int snapshot_query_row(struct pg_session *session, const char *sql, const char *const *params,
                       size_t column_count, json_t **ret_rows, struct err *err);
const char *snapshot_cell(const json_t *rows, size_t row, size_t column);
int snapshot_parse_lsn(const char *text, uint64_t *ret, struct err *err);
/* The session with the server that writes the WAL. Borrowed. */
struct pg_session *snapshot_writer(const struct snapshot *snapshot);

/* snapshot_standby.c */
/* Opens the session with the primary of this standby. ERR_CONFIG, ERR_REFUSED: it is none. */
int snapshot_standby_open(struct snapshot *snapshot, struct err *err);
/* Adds the standby's part to the primary's. */
int snapshot_standby_identity(struct snapshot *snapshot, char *identity, size_t size,
                              struct err *err);
/* Before pg_backup_start: a new checkpoint, where it may be a fast one, and the standby is there.
 */
int snapshot_standby_catch_up(struct snapshot *snapshot, struct err *err);
/* After pg_backup_start: it begins on the primary's timeline. */
int snapshot_standby_check_start(struct snapshot *snapshot, struct err *err);
/* After the restore point: it is in the standby's own history, and behind the backup's end. */
int snapshot_standby_prove_tag(struct snapshot *snapshot, struct err *err);

/* snapshot_offline.c: mounts what is not mounted, read-only and privately, before the volumes are
 * resolved; then the facts. */
int snapshot_offline_mount(struct snapshot *snapshot, struct err *err);
int snapshot_offline_open(struct snapshot *snapshot, struct err *err);

/* snapshot_layout.c */
int snapshot_check_layout(struct snapshot *snapshot, struct err *err);

/* snapshot_wal.c */
int snapshot_prove_archive(struct snapshot *snapshot, struct err *err);
int snapshot_wait_wal(struct snapshot *snapshot, struct err *err);
/* ERR_BUSY when expire removes WAL that it needs (wal_horizon.h); again: behind the record, and
 * then the snapshot is withdrawn. */
int snapshot_check_horizon(struct snapshot *snapshot, struct err *err);
int snapshot_check_horizon_again(struct snapshot *snapshot, struct err *err);

/* snapshot_track.c: marks that are kept since the parent (track.h). prepare: before the capture;
 * choose: which of the used blocks of a volume are read, ret empty before; commit, abort: the
 * record is there, or there is none; describe, result: for the record and the job. */
void snapshot_track_prepare(struct snapshot *snapshot);
int snapshot_track_choose(struct snapshot *snapshot, size_t index, struct extent_list *ret,
                          struct err *err);
void snapshot_track_commit(struct snapshot *snapshot);
void snapshot_track_abort(struct snapshot *snapshot);
void snapshot_track_describe(const struct snapshot *snapshot, size_t index,
                             struct record_volume *to);
void snapshot_track_result(const struct snapshot *snapshot, json_t *result);

/* snapshot_lock.c: begin: what is put from now on is locked; ERR_CONFIG where nothing can be. Then,
 * before the record: what it needs of earlier ones. Both do nothing without lock_days. */
int snapshot_lock_begin(struct snapshot *snapshot, struct err *err);
int snapshot_lock(struct snapshot *snapshot, struct err *err);

/* snapshot_copy.c */
int snapshot_capture(struct snapshot *snapshot, struct err *err);
/* The same in two halves, for a live copy: pass 0 without PostgreSQL; then, in backup mode, what
 * has changed, again and again, and the instant. */
int snapshot_copy_live(struct snapshot *snapshot, struct err *err);
int snapshot_copy_rest(struct snapshot *snapshot, struct err *err);
int snapshot_seal(struct snapshot *snapshot, struct err *err);
int snapshot_cut_control(struct snapshot *snapshot, struct err *err);
void snapshot_copy_release(struct snapshot *snapshot);

#endif
