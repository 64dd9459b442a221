/* Capturing one instant of a volume group: the seam of the providers (DESIGN §4). A provider makes
 * every volume readable as it was at the instant, keeps it so until capture_end(), and says which
 * blocks hold data.
 *
 *     capture_begin(…)      all volumes at one instant; frozen only inside this call for
 *                           `command`, until capture_end() for `freeze`
 *     … push from capture->volumes[i].device …
 *     capture_pass(…)       `precopy` only, until it says that it was the last: the instant is
 *                           that of the last; push the changed extents after each
 *     capture_end(…)        thaw / drop the snapshot; *ret_valid false: the guardian thawed early,
 *                           or the device changed: discard everything
 * One thread. */
#ifndef TIDEMARK_AGENT_CAPTURE_H
#define TIDEMARK_AGENT_CAPTURE_H

#include "agent/volume.h"
#include "io/extent.h"
#include "io/freeze.h"

struct capture_file {
    const char *path;           /* absolute, on a volume of the group */
    struct extent_list extents; /* out: physical, in file order; owned by the caller */
    unsigned flags;             /* out: enum fsmap_file_flag */
};

struct precopy;
struct track;

struct capture_volume {
    struct device device; /* what to read: the live device or the snapshot device */
    /* precopy: written since the barrier before the last one; and from where to read it: device,
     * or a file in memory after the last pass. */
    struct extent_list changed;
    int changed_fd;
    struct extent_list used; /* normalised; everything else holds no file data */
    bool used_trusted;
    char snapshot_path[CONF_PATH_MAX + 1]; /* provider command: what snapshot_command printed */
    struct device live;       /* the volume itself; equal to device but for `command` */
    int hold_fd;              /* offline and not mounted: O_EXCL, so that nobody mounts it */
    uint64_t written_sectors; /* of the live device at the instant */
    bool snapshot_made;       /* snapshot_command has been started: drop_command is due */
};

struct capture {
    const struct conf *conf;
    struct volume_group *group;
    struct capture_volume volumes[CONF_VOLUMES_MAX];
    struct freeze freeze;
    bool armed;
    enum conf_provider provider; /* one for the whole group */
    char job[64];                /* unique name of this capture, part of the snapshots' names */
    int state_fd;                /* provider command: locked list of what must be dropped, or -1 */
    uint64_t stall_ns;           /* the longest */
    uint64_t stall_sum_ns;
    int64_t captured_s;
    struct precopy *precopy;
    struct track *tracks; /* of the request */
};

struct capture_request {
    const char *job;     /* unique: a snapshot id */
    uint32_t chunk_size; /* of the repository; precopy marks chunks */
    uint64_t memory_max; /* bytes that precopy may take for what is read while frozen */
    /* Measured or assumed rate of reading and storing, bytes/s: `freeze` is refused (ERR_REFUSED)
     * when used bytes / rate exceed freeze_deadline. 0 = unknown, not checked. */
    uint64_t estimate_bytes_per_s;
    struct capture_file *files; /* where do these lie at the instant? */
    size_t file_count;
    /* NULL, or: ret_wal[i] receives, not normalised, the extents on volume i of the segment files
     * in this directory (regular, one link, not shared, in a fixed place). CONF_VOLUMES_MAX lists.
     * Of precopy they are normalised and begin before the instant: what is written to them later
     * is marked, and each try at the instant takes out, and reads, what no longer is like that.
     * With freeze_by = script nothing is known of the instant and they stay empty. */
    const char *wal_directory;
    struct extent_list *ret_wal;
    /* precopy: NULL, or one for each volume of the group, with the first four members set. When
     * capture_begin() returns, they say what has been written since the parent (track.h). */
    struct track *tracks;
};

/* All volumes of a group use one provider (ERR_CONFIG otherwise).
 *
 * offline: mounted read-only, or not mounted and in no other use. The files' extents are those of
 * the read-only mount; a file on a volume that is not mounted is ERR_REFUSED.
 *
 * freeze: freezes all, stays so until capture_end().
 *
 * command: snapshot_command and drop_command run by /bin/sh as root with TIDEMARK_VOLUME,
 * TIDEMARK_DEVICE, TIDEMARK_MOUNT, TIDEMARK_JOB and, for the drop when it is known,
 * TIDEMARK_SNAPSHOT. The last line of the snapshot's stdout is the block device to read; with its
 * volume's size. TIDEMARK_JOB + TIDEMARK_VOLUME name a snapshot: drop_command must find it by them,
 * and succeed when there is none. freeze_by = agent: all are frozen before the first command runs
 * and thawed when the last has ended; = script (one volume only): no used-space map, and the files'
 * extents must be equal before and after (ERR_BUSY).
 *
 * precopy: see capture_precopy.c. Nothing is frozen when it returns, and there is no instant yet:
 * used is what must be pushed from the live device now, and the files' extents come from the last
 * capture_pass(). ERR_REFUSED where writes cannot be watched.
 *
 * On failure nothing is left frozen and what was made is dropped. */
int capture_begin(const struct conf *conf, struct volume_group *group,
                  struct capture_request *request, struct capture *ret, struct err *err);

/* precopy: freezes all volumes for a moment and says what was written since the time before, in
 * changed: push it from changed_fd before the next call. *ret_last: what was left fitted into the
 * freeze and has been read; changed_fd holds it; request->files are filled. After an error the
 * capture is void: ERR_BUSY when too much is written for freeze_max, ERR_REFUSED when writes went
 * unseen or the guardian thawed, ERR_DEVICE. */
int capture_pass(struct capture *capture, struct capture_request *request, bool *ret_last,
                 struct err *err);

/* Always releases everything. *ret_valid false: the guardian thawed early, the device changed, or
 * it was written to while that was impossible by rights: discard what was read. A snapshot that
 * cannot be dropped is logged and left to capture_cleanup_stale(). */
int capture_end(struct capture *capture, bool *ret_valid, struct err *err);

/* One provider for all volumes: ERR_CONFIG otherwise. */
int capture_check_providers(const struct conf *conf, struct err *err);

/* Could the volumes be captured now, as far as that shows without a freeze? Starts a guardian where
 * one is needed; precopy also loads its program and must see a write of ours on each volume. Errors
 * are those of capture_begin(). */
int capture_probe(const struct conf *conf, struct volume_group *group, struct err *err);

/* Drops the snapshots of captures whose process has died, as listed in state_dir/captures. Called
 * by capture_begin() for `command`; the agent may call it when it starts. Problems are logged. */
void capture_cleanup_stale(const struct conf *conf);

#endif
