/* Restore: the state machine of DESIGN §6 and what its steps share. Private to agent/restore*.c,
 * recover*.c and verify*.c. One thread.
 *
 *     planned → fenced → marked → pulling → written → configured → recovering → verifying →
 * complete
 *
 * The journal names a step before its first action, so a step that is found there may be done in
 * part. Up to `fenced` nothing of the old data is touched: an interrupted job lifts the fence and
 * is cancelled, because a person may have started the old server since. From `marked` on the job
 * can only go forward: fence and mark again, pull what is not acknowledged, and so on.
 *
 * Everything that later steps need is in the journal's "plan", written by restore_plan() and read
 * back by restore_load(): a first run and a resumed one take the same way.
 *
 * A part of a cluster restore runs from hold to hold, as its coordinator says ("until"): state
 * "held" at `fenced`, `configured` or `recovered` (the server is at its target, or a standby
 * follows its primary). Once it was held at `fenced` nothing but an abort lifts its fence, because
 * other nodes may be past it; and nobody but the coordinator goes on (job_cluster.c). A standby
 * takes the same way as a primary to `configured`; restore_standby.c says what is different then.
 *
 * A handover, which Patroni asks for, is complete at `configured`; restore_handover.c.
 */
#ifndef TIDEMARK_AGENT_RESTORE_H
#define TIDEMARK_AGENT_RESTORE_H

#include "agent/catalog.h"
#include "agent/job.h"
#include "agent/path.h"
#include "agent/reading.h"
#include "agent/volume.h"
#include "agent/wal.h"
#include "io/mountinfo.h"

enum restore_step {
    STEP_NONE,
    STEP_PLANNED,
    STEP_FENCED,
    STEP_MARKED,
    STEP_PULLING,
    STEP_WRITTEN,
    STEP_CONFIGURED,
    STEP_RECOVERING,
    STEP_VERIFYING,
    STEP_COMPLETE,
    STEP_COUNT
};

enum target_type {
    TARGET_TAG,
    TARGET_SNAPSHOT,
    TARGET_NAME,
    TARGET_TIME,
    TARGET_LSN,
    TARGET_XID,
    TARGET_LATEST,
    TARGET_TYPE_COUNT
};

enum restore_action { ACTION_PROMOTE, ACTION_PAUSE, ACTION_SHUTDOWN };
enum verify_level { VERIFY_NONE, VERIFY_QUICK, VERIFY_STANDARD, VERIFY_FULL };

/* The POST body, checked. Strings are borrowed from job->request. */
struct restore_request {
    const char *snapshot;
    bool target_given;
    enum target_type target;
    const char *target_value; /* "" when the type has none */
    bool exclusive;           /* lsn, time, xid: stop before it */
    uint32_t target_timeline; /* 0 = find it */
    enum restore_action action;
    enum verify_level verify;
    bool reindex;
    bool config_image; /* --config=image */
    bool discard_unarchived_wal;
    bool dry_run;
    bool delta; /* what is right on the devices already is not fetched */
    bool allow_second_primary, primary_is_down; /* a person's word: restore_second.c */
    const json_t *overwrite;                    /* object volume → identity, or NULL */
    const json_t *devices;                      /* object volume → path, or NULL */
    const json_t *mounts;                       /* object volume → mount point, or NULL */
    /* One node's part of a cluster restore; NULL and false when it is none. */
    const char *cluster_job;
    bool standby;
    const char *primary_conninfo; /* of a standby; may hold a password: never in plan or journal */
    const char *primary_slot;     /* "" = none */
    bool try_primary;             /* it runs: the plan tries primary_conninfo */
    /* For Patroni, which starts the server itself: restore_handover.c. NULL when it is not. */
    const char *handover_directory; /* where the caller wants the data directory */
    bool replica;
    uint64_t leader_system; /* of a replica's leader; 0 = not known */
    uint32_t leader_timeline;
};

/* Where the restored cluster left its old timeline: what a standby must not replay past. */
struct restore_fork {
    uint32_t timeline; /* the new one; 0 = not known yet */
    uint32_t parent;
    uint64_t lsn;
};

/* What a target device carries when it is looked at. */
enum device_content {
    CONTENT_BLANK,   /* no signature at all */
    CONTENT_OWN,     /* the filesystem that the record describes, by UUID */
    CONTENT_MARKED,  /* a marker of a restore that was not finished */
    CONTENT_FOREIGN, /* anything else */
};

struct restore_volume {
    char name[64];
    size_t index; /* in record.volumes */
    bool holds_control, holds_wal;
    void *manifest_buf;
    struct fmt_manifest manifest;  /* points into manifest_buf */
    char given[CONF_PATH_MAX + 1]; /* path as configured or asked for, perhaps a by-id link */
    struct device_identity identity;
    enum device_content content;
    bool named; /* --overwrite named it */
    char mount_point[CONF_PATH_MAX + 1];
    char mount_options[512]; /* for the restored filesystem */
    /* What was mounted when the plan was made: the fence lifts back to it. */
    bool was_mounted;
    char was_device[256];
    char was_type[16];
    char was_options[1024];
    struct device device; /* open and locked from the fence to the commit */
    bool opened;
    bool mounted_by_fence; /* for its WAL: the fence's lifting unmounts it */
};

struct restore_setting {
    const char *name;
    char *value; /* NULL: cannot be read */
};
enum { RESTORE_SETTINGS_MAX = 24 };

struct restore {
    struct job *job;
    struct restore_request request;
    struct conf conf; /* the job's, completed from the record */
    struct store *store;
    struct repo repo;
    bool record_read;
    struct record record;
    struct reading_mark reading; /* of the record's snapshot */
    struct wal_archive archive;
    struct restore_volume volumes[RECORD_VOLUMES_MAX];
    size_t volume_count;
    char data_directory[CONF_PATH_MAX + 1]; /* here, after the mount points of this host */
    char wal_directory[CONF_PATH_MAX + 1];
    enum target_type target;
    char target_value[256]; /* canonical: name, UTC time, LSN or xid */
    uint32_t target_timeline;
    uint64_t target_lsn; /* 0 = not known before replay */
    bool server_was_running;
    bool past_mark;       /* this run began at or behind `marked` */
    bool old_gone;        /* all volumes were marked once: nothing of the old data can be saved */
    bool astray;          /* restore_recover(): the server runs without having gone to the target */
    bool went_back;       /* to `fenced`, because of that: once a run */
    struct err kept_down; /* why restore_fence_lift() did not start the old server; code 0: none */
    json_t *second_ways;  /* conninfos of whoever may be the primary; of this run's plan */
    json_t *second_before; /* "other_primary" of the restore that was given up here, or NULL */
    unsigned own_port;     /* of the server here, as configured; 0: not known, of this run's plan */
    bool conninfo_changed; /* since it was reserved: the call has another primary_conninfo */
    enum restore_step hold;     /* the last step of this run; STEP_COMPLETE = no hold */
    struct restore_fork fork;   /* of a standby, from its coordinator */
    struct wal_history history; /* of fork.timeline; empty before it is known */
    uint8_t job_id[ID_LEN];
    struct restore_setting settings[RESTORE_SETTINGS_MAX]; /* see restore_setting() */
    size_t setting_count;
};

/* --- restore.c --- */
/* Writes step into the journal durably; then the test hook of the same name. */
int restore_enter(struct restore *restore, enum restore_step step, struct err *err);
/* Path of a file in state_dir. */
void restore_state_path(const struct restore *restore, const char *name, char *ret, size_t size);

/* --- restore_test.c --- */
/* Test hook: the process kills itself when the environment's TIDEMARK_TEST_STOP names this point,
 * and stops (SIGSTOP) when TIDEMARK_TEST_PAUSE does. It stays compiled in, so that what is tested
 * is what is shipped. */
void restore_test_stop(const char *point);

/* --- restore_request.c --- */
int restore_request_parse(const json_t *body, struct restore_request *ret, struct err *err);
const char *restore_step_name(enum restore_step step);
enum restore_step restore_step_from_name(const char *name);
const char *target_type_name(enum target_type type);
const char *restore_action_name(enum restore_action action);
const char *verify_level_name(enum verify_level level);
/* "fenced", "configured", "recovered" → the last step before the hold; STEP_COMPLETE for NULL and
 * for a word that is none of them. */
enum restore_step restore_hold_step(const char *until);
/* {"timeline", "lsn", "parent"}; code: what a wrong one means to the caller. */
int restore_fork_parse(const json_t *json, enum err_code code, struct restore_fork *ret,
                       struct err *err);

/* --- restore_plan.c, restore_load.c --- */
/* Checks everything and describes it in journal["plan"]; touches nothing. */
int restore_plan(struct restore *restore, struct err *err);
/* Fills the restore from journal["plan"], the record and the manifests. */
int restore_load(struct restore *restore, struct err *err);
json_t *restore_plan_json(const struct restore *restore, json_t *warnings);
/* The plan's volumes, target and server alone; restore->record is read already. */
int restore_load_plan(struct restore *restore, const json_t *plan, struct err *err);
/* conf = the job's, what it leaves open from the record. */
int restore_complete_conf(struct restore *restore, struct err *err);
int restore_read_manifests(struct restore *restore, struct err *err);
int restore_choose_volumes(struct restore *restore, struct err *err);

/* --- restore_paths.c: places of the recorded host → places here (pure) --- */
/* false: path lies on no volume of the snapshot. */
bool restore_map_path(const struct restore *restore, const char *path, char *ret, size_t size);
int restore_map_paths(struct restore *restore, struct err *err);

/* --- restore_mounts.c --- */
/* The topmost filesystem mounted exactly on mount_point in this mount namespace. */
bool restore_find_mount(const char *mount_point, struct mount_entry *ret);
/* The volumes in the order of mounting: one mount point may lie inside another. */
void restore_mount_order(struct restore *restore, struct restore_volume *ret[RECORD_VOLUMES_MAX]);
/* Recorded options without those that would change what a restore needs, or that describe the old
 * device: read-only, no replay, no UUID check, geometry, data modes. */
void restore_mount_options(const char *recorded, char *ret, size_t size);

/* --- restore_device.c --- */
int restore_inspect_device(struct restore *restore, struct restore_volume *volume, json_t *warnings,
                           struct err *err);
/* Again before a write: still the device that was planned? */
int restore_recheck_device(struct restore *restore, struct restore_volume *volume, struct err *err);
/* Refuses a mounted volume that holds a data directory other than the snapshot's. */
int restore_check_other_data(const struct restore *restore, const struct restore_volume *volume,
                             struct err *err);
/* The string that --overwrite must carry for this device: the strongest it has. */
void restore_device_name(const struct device_identity *identity, char *ret, size_t size);
bool restore_is_marked(const char *path, const uint8_t *job_id, struct err *err);

/* --- restore_target.c --- */
int restore_resolve_target(struct restore *restore, json_t *warnings, struct err *err);
/* Every segment from the snapshot's start to the target is in the repository, or ERR_MISSING. */
int restore_check_wal(struct restore *restore, struct err *err);
/* End of the complete segments of the target's timeline: what a target without an LSN has to be
 * found in. ERR_MISSING when the timeline has no WAL of its own. */
int restore_last_complete(struct restore *restore, uint64_t *ret_lsn, struct err *err);

/* --- restore_timeline.c --- */
/* --target-timeline, or the only one that contains the target; ERR_REFUSED lists several. */
int restore_choose_timeline(struct restore *restore, struct err *err);
/* A target must not lie before it. */
uint64_t restore_base_lsn(const struct record *record);
/* End of what the timeline's last segment holds where it is there as this .partial only, because
 * its server crashed or a standby of it was promoted. */
int restore_partial_end(struct restore *restore, const char *name, uint64_t segment_lsn,
                        uint64_t *ret_lsn, struct err *err);
/* End of the archived WAL of a timeline (end of its last segment), 0 when it has none. ret_partial:
 * the name of that segment's fullest .partial when there is nothing else of it, else "". */
int restore_timeline_end(struct restore *restore, uint32_t timeline, uint64_t *ret_end_lsn,
                         char ret_partial[WAL_NAME_MAX + 1], struct err *err);

/* --- restore_time.c --- */
/* "2026-11-25 10:00:00+01" and its like → Unix microseconds and canonical UTC text. */
int restore_parse_time(const char *text, int64_t *ret_us, char *ret_text, size_t size,
                       struct err *err);

/* --- restore_commit.c: a commit behind a target time, without which recovery to it fails --- */
/* Where the server here cannot write one. */
void restore_commit_warn(const struct restore *restore, json_t *warnings);
/* Before the server is stopped; logs when it could not. */
void restore_commit_write(const struct restore *restore);

/* --- restore_server.c: the PostgreSQL of this host --- */
int restore_check_server(struct restore *restore, json_t *warnings, struct err *err);
/* What the server will have of the settings that replay depends on, synchronous_standby_names and
 * cluster_name; new reference. */
json_t *restore_plan_settings(struct restore *restore);
/* What lies in the data directory belongs to the snapshot's cluster, or was named for overwriting.
 */
int restore_check_system(struct restore *restore, bool running, struct err *err);

/* --- restore_fence.c, restore_salvage.c --- */
int restore_fence(struct restore *restore, struct err *err);
/* Mounts again what was mounted, removes the fence, starts the server if it ran; not where it would
 * be a second primary: then it is 0 as well, and restore->kept_down says why. */
int restore_fence_lift(struct restore *restore, struct err *err);
/* Only mounts again: the fence stays. */
int restore_fence_keep(struct restore *restore, struct err *err);
/* Unmounts the volumes: what a failed handover leaves must look as empty as it is. */
int restore_unmount(struct restore *restore, struct err *err);
/* The gate that keeps the server stopped over a reboot: file and, for systemd, a drop-in. */
int restore_gate_close(struct restore *restore, struct err *err);
int restore_gate_open(struct restore *restore, struct err *err);
/* Pushes every segment and history file of directory that the repository lacks. */
int restore_salvage(struct restore *restore, const char *directory, uint64_t *ret_pushed,
                    struct err *err);
/* True when pg_wal holds the segment that ends with the byte before lsn, with content. */
bool restore_wal_is_local(struct restore *restore, uint32_t timeline, uint64_t lsn);

/* --- restore_config.c: postgresql.conf and its kin --- */
int restore_save_config(struct restore *restore, struct err *err);
int restore_put_config(struct restore *restore, struct err *err);
/* The directory of the newest restore that touched this node, when that was given up. */
bool restore_given_up_before(const struct restore *restore, char ret_dir[JOB_DIR_MAX]);
/* mkdir -p of everything above path; mode 0755. */
int restore_make_parents(const char *path, struct err *err);

/* --- restore_pull.c --- */
int restore_open_devices(struct restore *restore, struct err *err);
void restore_close_devices(struct restore *restore);
int restore_mark(struct restore *restore, struct err *err);
int restore_pull(struct restore *restore, struct err *err);
int restore_commit(struct restore *restore, struct err *err);

/* --- restore_configure.c, restore_clean.c, restore_settings.c --- */
int restore_mount(struct restore *restore, struct err *err);
int restore_configure(struct restore *restore, struct err *err);
/* Removes what must not survive a block copy. */
int restore_clean(struct restore *restore, struct err *err);
/* Comments out recovery settings, instead of what an earlier restore has, and appends ours (NULL:
 * none); or removes ours again. Pure. */
char *settings_with_recovery(const char *text, const char *block);
char *settings_without_block(const char *text);
/* The block for this target, malloc'ed text. */
int restore_settings_block(const struct restore *restore, char **ret, struct err *err);
/* restore_command for one file, as the server would give it to the shell; malloc'ed. */
int restore_get_command(const struct restore *restore, const char *name, const char *path,
                        char **ret, struct err *err);
/* Replaces a file durably, owned by the server's user and with that user's rights; in a directory
 * of root's, with root's. */
int restore_write_file(const struct restore *restore, const char *path, const void *bytes,
                       size_t len, unsigned mode, struct err *err);
int restore_read_file(const char *path, size_t len_max, char **ret, size_t *ret_len,
                      struct err *err);
/* The same with the rights of the server's user. */
int restore_read_theirs(const struct restore *restore, const char *path, size_t len_max, char **ret,
                        size_t *ret_len, struct err *err);

int restore_write_settings(struct restore *restore, struct err *err);
/* The block gives way to extra lines ("" = none). */
int restore_replace_settings(struct restore *restore, const char *extra, struct err *err);
/* What a standby keeps when its restore is done: primary_conninfo, its slot and, with_command, a
 * restore_command without limits. Malloc'ed. */
int restore_standby_lines(const struct restore *restore, bool with_command, char **ret,
                          struct err *err);
/* "recovery.signal", or "standby.signal" for what must not become a primary by itself. */
const char *restore_signal_file(const struct restore *restore);

/* --- restore_cluster.c: one node's part of a cluster restore --- */
/* What this run's call says (goal.json) and what earlier ones left in the journal. */
int restore_cluster_load(struct restore *restore, struct err *err);
/* Refuses what a part cannot be: before anything is touched. */
int restore_cluster_check(const struct restore *restore, struct err *err);
/* Ends the run at its hold. */
void restore_cluster_hold(struct restore *restore);
/* The server of a part that is at its target, started again when it has ended since. */
int restore_cluster_server(struct restore *restore, struct err *err);
/* True when a failure in this state must leave the fence where it is; a SIGTERM as well, because a
 * host that shuts down sends one to everybody. Only the goal `abort` lifts it. */
bool restore_keeps_fence(const struct restore *restore);
/* Creates the physical slots that the call names, on the new primary: "slots" keep WAL from now on,
 * "idle_slots" from their first use. Idempotent. */
struct pg_session;
int restore_create_slots(struct restore *restore, struct pg_session *session, struct err *err);

/* --- restore_standby.c --- */
/* Before the start: the fork is in the archive as the coordinator says, and the settings keep
 * replay away from what lies behind it on the old timeline. */
int restore_standby_prepare(struct restore *restore, struct err *err);
/* Whether the server streams from its primary, on the new timeline and past the fork. */
int restore_standby_attached(const struct restore *restore, struct pg_session *session, bool *ret,
                             struct err *err);
/* Attached: settings without limits, so that it follows whoever is primary next. */
int restore_standby_finish(struct restore *restore, struct pg_session *session, struct err *err);

/* The server runs already, with the primary_conninfo of an earlier run: it gets this run's. */
int restore_standby_renew(struct restore *restore, int pid, struct err *err);

/* --- restore_primary.c --- */
/* Of a standby: reads primary_conninfo, and tries it when it was asked to. *ret (new reference) for
 * the plan: {"application_name", "tried": "yes" | "no" | "unclear", "text"}; stays as it is for a
 * primary. ERR_CONFIG, ERR_REFUSED. settings: restore_plan_settings(). */
int restore_check_primary(const struct restore *restore, const json_t *settings, json_t **ret,
                          struct err *err);

/* --- restore_second.c: two servers of one cluster that take writes --- */
bool restore_is_standby(const struct restore *restore);
/* Takes the word of a person that came with this run's goal. */
void restore_second_load(struct restore *restore);
/* Asks who may be the primary, where a restore could make a second one. *ret (new reference): the
 * plan's "other_primary"; stays as it is where there is nobody to ask. ERR_REFUSED. */
int restore_second_check(struct restore *restore, json_t *warnings, json_t **ret, struct err *err);
/* Once more, before the server starts: ERR_REFUSED when one runs that nobody allowed. Whether it is
 * a clone its own settings say by then. */
int restore_second_recheck(struct restore *restore, struct err *err);
/* Before the old server, a primary, starts again: ERR_REFUSED when another one runs by now, or when
 * that is not known although it was in the plan. */
int restore_second_lift(const struct restore *restore, struct err *err);

/* --- restore_handover.c: Patroni asks for the volumes and starts the server --- */
bool restore_is_handover(const struct restore *restore);
/* The job is cancelled when the process that asked for it is gone (goal.json names it). */
int restore_handover_watch(struct restore *restore, struct err *err);
/* What Patroni asks for is possible here, and there is nothing in the way. Read-only. */
int restore_handover_check(struct restore *restore, struct err *err);
/* Before the unmount: still nothing in the way? */
int restore_handover_check_empty(const struct restore *restore, struct err *err);
/* The volumes are unmounted: nobody shall fill the directories below them by mistake. */
int restore_handover_shut(const struct restore *restore, struct err *err);
/* The last step of the job. */
int restore_handover_finish(struct restore *restore, struct err *err);

/* --- restore_patroni.c --- */
/* ERR_REFUSED, with the way out, while a Patroni runs that is in charge of the data directory. */
int restore_check_patroni(const struct restore *restore, struct err *err);

/* --- restore_host.c: a restore with nothing but the repository --- */
/* False: no configuration here says where the server is. */
bool restore_host_is_configured(const struct restore *restore);
/* What to write so that the server archives. */
void restore_host_advice(const struct restore *restore, char *ret, size_t size);
/* The plan's warning, when one is due. */
void restore_host_warn(const struct restore *restore, json_t *warnings);

/* --- restore_isolation.c --- */
/* Refuses the start of a server whose links or paths lead outside the restored volumes. */
int restore_check_isolation(struct restore *restore, struct err *err);
/* Parts of it. Directories: the data directory and what lies in it but pg_wal, which may still be a
 * link to its recorded place. Links: pg_wal and the tablespaces, once they lead to places here.
 * Nothing below a directory or behind a link may be changed before its part has passed. */
int restore_check_directories(const struct restore *restore, struct err *err);
int restore_check_links(const struct restore *restore, struct err *err);
/* The part of it that the settings decide: pid file, log directory, statistics directory. */
int restore_check_written_paths(struct restore *restore, struct err *err);
/* One setting as the server would read it (postgres -C), borrowed until restore_forget_settings();
 * NULL when it cannot be read. name: static text. Read once, until they are forgotten. */
const char *restore_setting(struct restore *restore, const char *name);
/* Reads several (NULL ends names) side by side, for later calls of restore_setting(). */
void restore_read_settings(struct restore *restore, const char *const *names);
/* When files that the server reads them from have changed. */
void restore_forget_settings(struct restore *restore);
/* "config_file=…" and "data_directory=…" for the start when the configuration lies outside the data
 * directory (Debian); NULL when it does not, or when the manager knows by itself. */
struct start_options {
    char text[2][CONF_PATH_MAX + 32];
    const char *extra[3];
};
const char *const *restore_start_options(const struct restore *restore, struct start_options *ret);

/* --- restore_permit.c: what keeps the server stopped when the host fails during recovery --- */
enum { PERMIT_PATH_MAX = 128 };
void restore_permit_path(const struct restore *restore, char *ret, size_t size);
/* False for actions that leave the server at its target for a person: no permit is needed. */
bool restore_permit_wanted(const struct restore *restore);
/* Before anything reads the server's settings, and right before its start; idempotent. */
int restore_permit_grant(const struct restore *restore, struct err *err);
/* When nothing includes it any more, or nobody shall start the server. */
void restore_permit_revoke(const struct restore *restore);
void restore_permit_forget(const char *job);
/* Forgets what jobs of this state_dir left behind that are over. */
void restore_permit_sweep(const struct conf *conf);

/* --- recover.c, recover_log.c --- */
int restore_recover(struct restore *restore, struct err *err);
struct server_log {
    char path[CONF_PATH_MAX + 1];
    uint64_t offset; /* where this start's lines begin */
};
void server_log_begin(struct restore *restore, struct server_log *ret);
/* True when the server wrote this since then. */
bool server_log_has(struct restore *restore, const struct server_log *log, const char *what);
/* ERR_POSTGRES with the last lines and, for known causes, what to do. */
int server_log_error(struct restore *restore, const struct server_log *log, const char *what,
                     struct err *err);

/* --- verify.c, verify_amcheck.c --- */
int restore_verify(struct restore *restore, struct err *err);
/* The verification alone, on a running server; result is filled. Used by restores and drills. */
int verify_server(const struct conf *conf, const struct record *record, enum verify_level level,
                  bool reindex, const _Atomic bool *cancel, json_t *result, struct err *err);

#endif
