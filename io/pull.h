/* pull: repository → device, file, or nothing (null sink = verify). Region tables, ranged GETs,
 * LZ4, digest check of every chunk, O_DIRECT writes of 1 MiB where chunks adjoin; on
 * share-nothing lanes.
 *
 * Never written: the first PULL_HEAD_LEN bytes of the volume, which come back in head so that the
 * caller can commit them last. Written as zeros: the withheld extents (pg_control).
 *
 * The caller owns everything a struct pull points to. pull_run() starts and joins its threads. */
#ifndef TIDEMARK_IO_PULL_H
#define TIDEMARK_IO_PULL_H

#include "io/extent.h"
#include "io/lane_options.h"
#include "io/table.h"

enum {
    PULL_HEAD_LEN = 4096,
    /* Bytes of a pack that are fetched for nothing rather than with another request. */
    PULL_GET_GAP_MAX = 128 << 10,
};

enum pull_sink {
    PULL_TO_NULL,   /* decode and check only */
    PULL_TO_DEVICE, /* block device, O_DIRECT */
    PULL_TO_FILE,   /* regular file of the right length, O_DIRECT where its filesystem has it */
};

enum pull_free {
    PULL_FREE_LEAVE,      /* the target was ours: FREE chunks stay as they are */
    PULL_FREE_ZERO,       /* FREE chunks are discarded or zeroed: no stranger's bytes survive */
    PULL_FREE_KNOWN_ZERO, /* the target reads back as zeros already: skip FREE and ZERO */
};

/* One object that is damaged or missing, or one range of it. Strings are the callee's only during
 * the call. */
struct pull_damage {
    const char *object;
    const struct err *err; /* ERR_CORRUPT or ERR_MISSING; names object, region and chunk */
    uint32_t chunk_count;  /* chunks that cannot be read for it; 0 = none, or not known */
};

struct pull {
    struct store *store;
    const struct repo *repo;
    const struct fmt_manifest *manifest;
    enum pull_sink sink;
    int fd;               /* target, opened O_RDWR | O_DIRECT; -1 for PULL_TO_NULL */
    uint32_t alignment;   /* logical sector of the target */
    uint32_t request_max; /* largest write the target takes in one piece; 0 = 1 MiB */
    enum pull_free free_policy;
    const struct extent *withheld; /* normalised, multiples of alignment */
    size_t withheld_count;
    struct lane_options options;
    struct io_progress *progress;
    uint8_t head[PULL_HEAD_LEN]; /* out */
    char memory_sum[192];        /* out: payload memory as a sum, for the log */
    /* Resume: bit i set = region i is on the medium already; it is then read from the target and
     * digested, and pulled again where it differs. The null sink does not read it again.
     * region_count bits, owned by the caller; NULL = none. */
    const uint8_t *done_before;
    /* All regions are like that: what is right on the target is not fetched (restore --delta). */
    bool compare;
    /* Called now and then (≤ every 5 s or 1 GiB) by the thread that called pull_run(), after the
     * target was flushed: bitmap says which regions are durable now. NULL = not wanted. */
    int (*acknowledge)(void *ctx, const uint8_t *bitmap, size_t bitmap_len, struct err *err);
    void *acknowledge_ctx;
    /* --- the null sink only --- */
    /* The manifest of an earlier snapshot of the volume that was verified: objects, tables and
     * chunks that both reach are not read again. Ignored when the volume's size was another. */
    const struct fmt_manifest *known;
    /* A random part of the regions and objects, at least one region, the same for the same seed in
     * every snapshot of the volume. 0 = all of them. */
    unsigned sample_percent;
    uint64_t sample_seed;
    /* Is told of damage, and the run goes on; NULL: the first ends it. One call at a time, on any
     * thread. */
    void (*damaged)(void *ctx, const struct pull_damage *damage);
    void *damaged_ctx;
    uint32_t packs_checked,
        tables_checked; /* out: objects whose header and length were looked at */
};

/* Adds the volume's size to progress->bytes_total (of the null sink what it does not skip). With
 * PULL_TO_NULL the headers and lengths of all packs and table packs that the manifest reaches are
 * checked as well.
 *
 * Errors: ERR_CORRUPT and ERR_MISSING name object, region and chunk; ERR_STORE; ERR_DEVICE;
 * ERR_CANCELLED; ERR_CONFIG (memory_max too small). When it returns 0 for a device or file, all
 * data is flushed. */
int pull_run(struct pull *pull, struct err *err);

/* Cuts len bytes at volume offset out of the snapshot into buf (blocking, client mode): used for
 * pg_control and for tests. */
int pull_read(struct store *store, const struct repo *repo, const struct fmt_manifest *manifest,
              uint64_t offset, void *buf, size_t len, struct err *err);

#endif
