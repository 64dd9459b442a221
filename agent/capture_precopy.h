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
    uint64_t kept_ns;                 /* of a freeze, for the evidence of tests: no stall of ours */
    int memory_fds[CONF_VOLUMES_MAX]; /* of the last pass */
};

/* What the marks have seen and what the kernel has counted until now. */
int capture_watch_sums(const struct capture *capture, size_t index, struct track_sums *ret,
                       struct err *err);

/* Of a volume with track = yes; NULL otherwise. */
struct track *capture_track(const struct capture *capture, size_t index);

/* Under a freeze: the marks have seen every sector that the kernel counted since B0, and the
 * volumes are the same. ERR_REFUSED when not: the capture is void. */
int capture_watch_check(const struct capture *capture, struct err *err);

#endif
