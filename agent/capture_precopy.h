/* Private to agent/capture_precopy.c and capture_watch.c. One thread. */
#ifndef TIDEMARK_AGENT_CAPTURE_PRECOPY_H
#define TIDEMARK_AGENT_CAPTURE_PRECOPY_H

#include "agent/capture_parts.h"
#include "agent/track.h"
#include "io/gather.h"

struct precopy {
    uint32_t chunk_size;
    struct marks *marks[CONF_VOLUMES_MAX];
    struct track_sums base[CONF_VOLUMES_MAX]; /* at B0 */
    struct gather *gather;
    uint64_t budget;  /* bytes that may be read while frozen */
    uint64_t goal;    /* few enough to do so at once */
    uint64_t changed; /* at the barrier before */
    uint64_t rate;    /* bytes a second, of scattered chunks */
    unsigned passes;
    bool discards_unseen[CONF_VOLUMES_MAX], discards_warned[CONF_VOLUMES_MAX];
    uint64_t kept_ns;                 /* of a freeze, for the evidence of tests: no stall of ours */
    int memory_fds[CONF_VOLUMES_MAX]; /* of the last pass */
};

/* What the marks have seen and what the kernel has counted until now. */
int capture_watch_sums(const struct capture *capture, size_t index, struct track_sums *ret,
                       struct err *err);

/* Of a volume with track = yes; NULL otherwise. */
struct track *capture_track(const struct capture *capture, size_t index);

/* Since base; of now, counted was read before seen. ERR_REFUSED: a write went unseen. */
struct watch_result {
    uint64_t unfinished; /* sectors that were seen and are not counted: they are on their way, */
    bool stopped;        /* or none is counted any more */
    /* A discard was queued before B0, unnoticed by `inflight` as it waited in an I/O scheduler, and
     * was counted after it: its mark is lost. That costs no snapshot. A filesystem discards blocks
     * that are free, which the image may have with any content; who gets such a block afterwards
     * writes to it and makes a mark, or reads zeros by the filesystem's books. The marks are not
     * given to the next snapshot, though, for which the sums would not agree. */
    bool discards_unseen, discards_unfinished;
};
int capture_watch_compare(const struct track_sums *base, const struct track_sums *now,
                          struct watch_result *ret, struct err *err);

/* Under a freeze: the marks have seen every sector that the kernel counted since B0, every write
 * has ended or does so until then, and the volumes are the same. ERR_REFUSED when not: the capture
 * is void. */
int capture_watch_check(const struct capture *capture, uint64_t until_ns, struct err *err);

/* Thawed: says once what was found and does no harm. */
void capture_watch_warn(const struct capture *capture);

#endif
