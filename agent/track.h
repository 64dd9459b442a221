/* Marks that are kept from one snapshot to the next (option track = yes): an incremental reads only
 * what has been written since its parent. One struct for each volume.
 *
 *     track_attach(…)     the marks: those that were kept, or new ones
 *     track_take(…)       every time that marks are taken
 *     track_begin(…)      B0, frozen: has every write since the parent's instant been seen?
 *     track_instant(…)    F, frozen: from here on the next snapshot counts
 *     track_commit(…)     the record is there; or
 *     track_abort(…)      there is none: everything that was taken is marked again
 *
 * What must hold for a chunk to be taken from the parent unread:
 *
 *   - It has not been written to since the parent's instant F: it is not marked. M is cleared only
 *     at barriers, and what was cleared between the parent's F and our B0 is in `since`.
 *
 *   - No mark is missing. The tracker is the one of the parent's F (the program in the kernel, by
 *     its number and the time it was loaded; pinned, so that it needs no process of ours), in the
 *     same boot. It has watched the same device (numbers, diskseq, size, place on the disk) by
 *     chunks of the same size. Between two instants at which nothing was being written, its sectors
 *     are those of the kernel's own statistics, neither fewer (writes went unseen) nor more (the
 *     statistics were off and prove nothing), and no run of it was left out.
 *
 *   - The volume was mounted all the time, by the same superblock. Not mounted, a device can change
 *     without a write to it: dm can be given another table.
 *
 *   - The parent is the snapshot whose F it was, and the parent holds the chunk: marks say nothing
 *     of what was not looked at then (FREE), and it is read.
 *
 * All of this is compared with what the parent has left in state_dir. That file gets another name
 * before the first mark is cleared, and comes back with the commit or the abort: after a snapshot
 * that was killed there is none; after one that gave up, the reason. Whatever is not as it was
 * makes the snapshot read everything, with the reason in the log and in the record. Writes that
 * reach the medium around the block device (the file behind a loop device, SCSI passthrough) are
 * not seen, as with any copy of precopy's.
 *
 * One thread. */
#ifndef TIDEMARK_AGENT_TRACK_H
#define TIDEMARK_AGENT_TRACK_H

#include "agent/conf.h"
#include "io/device_sysfs.h"
#include "io/extent.h"
#include "io/marks.h"
#include "io/repo.h"

enum { TRACK_PATH_MAX = 1152, TRACK_WHY_MAX = 128 };

/* What was seen and what was counted. */
struct track_sums {
    struct marks_counters seen;
    struct sysfs_counters counted;
};

struct track {
    bool wanted;              /* the option */
    char name[ID_TEXT_LEN];   /* the volume's id */
    bool full;                /* no parent is wanted: --full */
    char parent[ID_TEXT_LEN]; /* empty: there is none to compare with */
    char state_path[TRACK_PATH_MAX];
    bool unbroken; /* since: what has been written since the last snapshot's instant */
    /* Normalised after track_begin(); later also what is taken at each barrier. Never more than
     * twice what it is normalised, or 1 MiB. */
    struct extent_list since;
    char why[TRACK_WHY_MAX]; /* everything is read, and this is why */
    /* Private. */
    size_t since_sorted;          /* how many ranges there were when it was normalised last */
    bool kept;                    /* the marks will be there for the next snapshot */
    char lost[TRACK_WHY_MAX];     /* they will not, and this is why */
    struct track_sums last, next; /* at the parent's instant, at ours */
    struct device_identity device;
    struct marks_place place;
    uint32_t chunk_size;
    uint64_t mount_number;
    char tracker[MARKS_INSTANCE_LEN];
};

/* Sets name and state_path. */
void track_name(struct track *track, const struct conf *conf, const uint8_t id[ID_LEN]);

/* The marks of a volume on `place` of the device; after a failure there are none. */
int track_attach(struct track *track, const struct device_identity *device,
                 const struct marks_place *place, uint32_t chunk_size, struct marks **ret,
                 struct err *err);

/* marks_take(), but what is taken is remembered. track may be NULL. */
int track_take(struct track *track, struct marks *marks, struct extent_list *ret, struct err *err);

/* B0, frozen, and nothing is being written: sums are those of now. Takes all marks. */
int track_begin(struct track *track, const struct track_sums *sums, struct marks *marks,
                struct err *err);

/* What is not in `since` may be taken from the parent unread. */
bool track_counts(const struct track *track);

/* A mark may be missing: the next snapshot does not count from this one, and says why. */
void track_give_up(struct track *track, const char *why);

/* sums are those of the instant, or of an earlier time of this snapshot. */
void track_instant(struct track *track, const struct track_sums *sums);

/* The record of `snapshot` is there: the next one may count from it. A failure is logged and costs
 * that one a full read. */
void track_commit(struct track *track, const char *snapshot);

/* The snapshot failed: the next one may count from the same parent's instant as this one. */
void track_abort(struct track *track);

/* Ends the tracker that an earlier snapshot has left, now that the option is `no`. False: there was
 * none. */
bool track_drop(const struct track *track);

/* When the agent starts: ends the trackers that earlier snapshots of this state_dir have left on
 * volumes that are not configured any more, or with track = no. */
void track_cleanup(const struct conf *conf);

void track_release(struct track *track);

#endif
