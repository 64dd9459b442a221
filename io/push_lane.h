/* Private to io/push*.c: which chunks to read next, and one lane of push_run(). */
#ifndef TIDEMARK_IO_PUSH_LANE_H
#define TIDEMARK_IO_PUSH_LANE_H

#include "io/lane.h"
#include "io/push.h"

enum {
    PUSH_READ_LEN = 1 << 20, /* bytes of one read: the largest that never splits (FACTS) */
    PUSH_READ_COUNT = 8,     /* reads in flight a lane */
    PUSH_PACKS_MIN = 2,      /* one to fill, one on its way */
    PUSH_REGION_CHUNKS_MAX = FMT_REGION_SIZE / FMT_CHUNK_SIZE_MIN,
    PUSH_READ_CHUNKS_MAX = PUSH_READ_LEN / FMT_CHUNK_SIZE_MIN,
};
_Static_assert(PUSH_READ_CHUNKS_MAX <= 64, "the chunks of a read are a 64-bit mask");

/* One push_run() for all its lanes; read-only while they run. */
struct push_job {
    struct push *push;
    const struct extent *used;
    size_t used_count;
    uint32_t region_first; /* item i of the dispenser is region region_first + i */
    uint64_t region_count;
    uint32_t pack_first;
    uint32_t pack_limit; /* length of push->pack_len */
    unsigned lane_count;
    unsigned pack_count; /* pack buffers a lane */
};

/* Walks the wanted chunks of one region. */
struct push_cursor {
    const struct push_job *job;
    uint64_t chunk_first; /* of the region */
    uint32_t chunk_count;
    uint32_t next;
    uint64_t wanted[PUSH_REGION_CHUNKS_MAX / 64];
};

/* Consecutive chunks that one read covers; bit i of wanted = chunk first + i is wanted, the others
 * are small gaps. */
struct push_span {
    uint64_t first;
    uint32_t count;
    uint64_t wanted;
};

void push_cursor_open(struct push_cursor *cursor, const struct push_job *job,
                      uint64_t region_index);
/* The next span of at most PUSH_READ_LEN and request_max bytes; false at the region's end. */
bool push_cursor_next(struct push_cursor *cursor, struct push_span *ret);

/* Bytes of all chunks that touch the extents. */
uint64_t push_wanted_bytes(const struct table *work, const struct extent *used, size_t used_count);

/* Draws push->origin where the repository is encrypted and it is not there yet. */
int push_need_origin(struct push *push, struct err *err);

/* Writes the header of a pack or table pack of len bytes, header included, into its first bytes. */
void push_header(const struct push *push, enum fmt_kind kind, uint32_t number, uint8_t *object,
                 size_t len);

/* The pack in the list of a manifest, or NULL. */
const struct fmt_manifest_pack *push_manifest_pack(const struct fmt_manifest *manifest,
                                                   const struct fmt_pack_ref *ref);

/* The chunk is to be stored although the parent has it. */
static inline bool push_is_rewritten(const struct push *push, uint64_t chunk)
{
    return push->rewrite != NULL && (push->rewrite[chunk / 64] >> (chunk % 64) & 1);
}

/* run() of struct lanes_job; ctx is a struct push_job. */
int push_lane_run(struct lane *lane, struct err *err);

#endif
