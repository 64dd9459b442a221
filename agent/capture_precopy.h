/* Private to agent/capture_precopy.c, capture_budget.c and capture_watch.c. One thread. */
#ifndef TIDEMARK_AGENT_CAPTURE_PRECOPY_H
#define TIDEMARK_AGENT_CAPTURE_PRECOPY_H

#include "agent/capture_parts.h"
#include "agent/track.h"
#include "io/gather.h"

enum { PRECOPY_PASSES_MAX = 12 }; /* then it is busy: each of them has stopped the writers */

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
    uint64_t wal_ns, wal_lost; /* the last look at what is left out: how long, bytes to be read */
    bool discards_unseen[CONF_VOLUMES_MAX], discards_warned[CONF_VOLUMES_MAX];
    uint64_t kept_ns;                 /* of a freeze, for the evidence of tests: no stall of ours */
    int memory_fds[CONF_VOLUMES_MAX]; /* of the last pass */
};

/* capture_budget.c: the option, or freeze_deadline where that is shorter. */
uint64_t capture_freeze_max_ns(const struct capture *capture);
struct gather_source capture_gather_source(const struct capture *capture, size_t index,
                                           const struct extent_list *extents);
/* Reads a sample to learn the rate, sets budget and goal, and opens gather. Half of freeze_max is
 * for reading; the other half for the freeze itself. */
int capture_budget_take(struct capture *capture, const struct capture_request *request,
                        struct err *err);
/* Before a pass, thawed. One sample may have met a device that was busy for a moment: when passes
 * do not get down to the budget, it is measured again, and set by the higher rate of the two. */
int capture_budget_again(struct capture *capture, const struct capture_request *request,
                         struct err *err);
/* Is it time to read the rest, `bytes`, while frozen? Another pass costs another short stall, and
 * is worth it while it makes the long one shorter. */
bool capture_budget_allows(struct precopy *precopy, uint64_t bytes);

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
