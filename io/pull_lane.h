/* Private to io/pull*.c: one lane of pull_run() in its parts.
 *
 *     pull_lane.c   the loop: items, region tables, ranged GETs, decoding
 *     pull_plan.c   what a batch of regions needs: fetch order, ranges, zero runs (pure)
 *     pull_write.c  write buffers, runs of adjoining chunks, zeroing
 *     pull_check.c  digests of what is on the target already; headers of objects
 *     pull_skip.c   what the null sink need not read
 *     pull.c        pull_run(), acknowledging
 *
 * A region is done when no chunk is left and no operation of it is in flight; the slots of a batch
 * are free when all of its regions are done. */
#ifndef TIDEMARK_IO_PULL_LANE_H
#define TIDEMARK_IO_PULL_LANE_H

#include <pthread.h>

#include "io/lane.h"
#include "io/pull.h"
#include "io/seal.h"

enum {
    PULL_BLOCK_LEN = 1 << 20, /* bytes of the largest write: never split by the kernel (FACTS) */
    PULL_BLOCK_COUNT = 8,     /* write buffers a lane */
    PULL_GETS_MIN = 2,
    PULL_GETS_MAX = 32,
    PULL_BATCHES = 2, /* of regions: one to finish, one to fetch */
    PULL_REGIONS = PULL_BATCHES * LANE_TAKE_MAX,
    PULL_ZEROS = 8,  /* zeroing operations in flight a lane */
    PULL_PROBES = 4, /* object headers in flight a lane */
    PULL_CHUNKS_MAX = FMT_REGION_SIZE / FMT_CHUNK_SIZE_MIN,
    PULL_TABLE_LEN_MAX =
        FMT_REGION_HEADER_LEN + PULL_CHUNKS_MAX * (FMT_PACK_REF_LEN + FMT_ENTRY_LEN),
    PULL_TABLE_BUF_LEN = ((PULL_TABLE_LEN_MAX + FMT_TAG_LEN + 4095) & ~4095) + STORE_LANE_SLACK,
    PULL_PROBE_BUF_LEN = 4096 + STORE_LANE_SLACK,
    PULL_PIECES_MAX = 2 * PULL_BLOCK_LEN / FMT_CHUNK_SIZE_MIN, /* writes of one buffer */
};

/* An object whose header and length a null sink checks. */
struct pull_object {
    enum fmt_kind kind;
    uint8_t snapshot[ID_LEN];
    uint32_t number;
    uint64_t stored_len; /* 0: as the header says */
    uint64_t size;       /* as the store lists it; 0: it does not */
};

/* One pull_run() for all its lanes. */
struct pull_job {
    struct pull *pull;
    unsigned get_count; /* GET buffers a lane */
    size_t get_len;     /* bytes of the largest ranged GET (DESIGN §5) */
    uint32_t batch_min; /* regions that a lane takes at a time: pull_plan_batch() */
    uint32_t piece_max; /* bytes of one write */
    struct pull_object *objects;
    uint32_t object_count;
    uint8_t *skip; /* regions that the null sink does not read; NULL for other sinks */
    uint64_t bytes_skipped;
    pthread_mutex_t mutex; /* guards what follows, and calls of pull->damaged() */
    uint8_t *bitmap;       /* regions whose operations have all completed */
    size_t bitmap_len;
    uint64_t bytes_unacknowledged;
    uint64_t acknowledged_ns; /* the caller's thread only */
};

enum pull_region_state { REGION_TABLE, REGION_CHECK, REGION_FETCH, REGION_DONE };

struct pull_region {
    struct pull_lane *lane;
    enum pull_region_state state;
    uint32_t index;
    struct store_request request; /* of its table */
    unsigned table_tries;
    uint8_t *buf;
    uint8_t *known_buf; /* for the table of pull->known; NULL when there is none */
    struct fmt_region table;
    uint64_t todo[PULL_CHUNKS_MAX / 64]; /* chunks that must be fetched or zeroed */
    uint32_t zero_next;                  /* first chunk not looked at for zeroing */
    uint32_t check_next;                 /* first chunk not read back */
    uint32_t chunks_left;
    uint32_t ops_left; /* operations in flight, and the open run */
};

/* A chunk with data: of which region of its batch. */
struct pull_place {
    uint16_t region;
    uint16_t chunk;
};

struct pull_batch {
    uint64_t sequence; /* older batches come first */
    uint32_t count;    /* regions; 0: free */
    bool ordered;      /* all tables are there, and so is order */
    uint32_t order_count;
    uint32_t order_next; /* first that no GET covers */
    struct pull_region regions[LANE_TAKE_MAX];
    struct pull_place order[LANE_TAKE_MAX * PULL_CHUNKS_MAX]; /* by pack and offset */
};

/* A range of one pack: order[first … first + count - 1] of its batch. */
struct pull_get {
    struct store_request request;
    struct pull_lane *lane;
    struct pull_batch *batch;
    uint8_t *buf;
    uint32_t first, count;
    uint32_t next; /* first chunk not decoded, counted from first */
    unsigned tries;
    bool has_header;            /* the range begins with the pack's header */
    struct pull_get *following; /* free, or ready to be decoded */
};

struct pull_piece {
    struct ring_op op;
    struct pull_block *block;
    struct pull_region *region;
    uint64_t plain_len;
    uint32_t chunk_first, chunk_count; /* of a read-back */
};

/* A write buffer: runs of chunks one behind the other, each run written in its own pieces. */
struct pull_block {
    struct pull_lane *lane;
    struct pull_block *next_free;
    uint8_t *buf;
    size_t used;
    unsigned piece_count;
    unsigned pieces_left;
    struct pull_piece pieces[PULL_PIECES_MAX];
};

/* Adjoining chunks in the open block that are not on their way yet. */
struct pull_run {
    struct pull_region *region; /* NULL: there is none */
    size_t at;                  /* in the block */
    size_t len;
    uint64_t offset; /* on the volume */
};

struct pull_zero {
    struct ring_op op;
    struct pull_lane *lane;
    struct pull_zero *next_free;
    struct pull_region *region;
    uint64_t offset, len;
    uint64_t done_len;
    unsigned method; /* index in the methods of its kind */
    bool is_free;    /* FREE: releasing the space comes first */
};

struct pull_probe {
    struct store_request request;
    struct pull_lane *lane;
    struct pull_probe *next_free;
    const struct pull_object *object;
    unsigned tries;
    uint8_t *buf;
};

struct pull_lane {
    struct lane *lane;
    struct pull_job *job;
    struct pull *pull;
    const struct fmt_manifest *manifest;
    bool no_more;
    uint64_t next_sequence;
    unsigned requests_left; /* in flight in the store */
    struct pull_batch batches[PULL_BATCHES];
    struct pull_get gets[PULL_GETS_MAX];
    struct pull_get *free_gets;
    struct pull_get *ready_gets, **ready_tail; /* as they came */
    struct pull_get *get;                      /* being decoded, or NULL */
    struct pull_block blocks[PULL_BLOCK_COUNT];
    struct pull_block *free_blocks;
    struct pull_block *block; /* open */
    struct pull_run run;
    struct pull_zero zeros[PULL_ZEROS];
    struct pull_zero *free_zeros;
    bool no_punch, no_zero_range;       /* the target refused them */
    uint8_t *zero_buf;                  /* PULL_BLOCK_LEN zeros */
    uint8_t *scratch;                   /* one chunk, for the null sink */
    struct seal *seal;                  /* NULL: the repository is plain */
    char seal_name[STORE_NAME_MAX + 1]; /* the object whose key it has */
    uint8_t *opened;                    /* one LZ4 block */
    uint32_t tag_len;                   /* behind each stored chunk and region table */
    struct pull_probe probes[PULL_PROBES];
    struct pull_probe *free_probes;
};

static inline void pull_count(_Atomic uint64_t *counter, uint64_t by)
{
    (void)atomic_fetch_add_explicit(counter, by, memory_order_relaxed);
}

static inline bool pull_todo(const struct pull_region *region, uint32_t chunk)
{
    return region->todo[chunk / 64] >> (chunk % 64) & 1;
}

static inline uint32_t pull_chunk_len(const struct pull_region *region, uint32_t chunk)
{
    return chunk == region->table.chunk_count - 1 ? region->table.last_chunk_len
                                                  : region->table.chunk_size;
}

static inline bool pull_has_data(const struct fmt_entry *entry)
{
    return (fmt_entry_flags(entry) & (FMT_ZERO | FMT_FREE)) == 0;
}

static inline const struct fmt_entry *pull_entry(const struct pull_batch *batch,
                                                 const struct pull_place *place)
{
    return &batch->regions[place->region].table.entries[place->chunk];
}

/* The pack that the entry at place names. */
static inline const struct fmt_pack_ref *pull_pack(const struct pull_batch *batch,
                                                   const struct pull_place *place)
{
    return &batch->regions[place->region].table.packs[pull_entry(batch, place)->pack];
}

/* Byte offset of a chunk on the volume. */
uint64_t pull_chunk_offset(const struct pull_lane *pl, const struct pull_region *region,
                           uint32_t chunk);
/* Bytes of the volume in one region. */
static inline uint64_t pull_region_bytes(const struct fmt_manifest *manifest, uint32_t index)
{
    uint64_t start = (uint64_t)index * manifest->region_size;
    return min_u64(manifest->region_size, manifest->size - start);
}

/* --- pull_plan.c */
/* Regions that are fetched together at the least, so that it does not take too many requests. */
uint32_t pull_plan_batch(const struct fmt_manifest *manifest, uint64_t get_len);
/* Sets todo and chunks_left; chunks that need nothing count as done. */
void pull_plan_todo(struct pull_lane *pl, struct pull_region *region);
/* Sorts the chunks that must be fetched. */
void pull_plan_order(struct pull_batch *batch);
/* The next range from order_next: chunks of one pack, small gaps read along. */
void pull_plan_range(const struct pull_lane *pl, struct pull_batch *batch, uint32_t *ret_first,
                     uint32_t *ret_count, uint64_t *ret_offset, size_t *ret_len,
                     bool *ret_has_header);
/* The next run of chunks to zero, all ZERO or all FREE; false when there is none. */
bool pull_plan_zero_run(struct pull_region *region, uint32_t *ret_first, uint32_t *ret_count,
                        bool *ret_is_free);
/* A chunk is done without an operation. */
void pull_chunk_done(struct pull_lane *pl, struct pull_region *region, uint32_t chunk);
/* The next withheld extent that ends behind offset, or NULL. */
const struct extent *pull_withheld(const struct pull *pull, uint64_t offset);
bool pull_is_withheld(const struct pull *pull, uint64_t offset, uint64_t len);

/* --- pull_write.c */
void pull_write_init(struct pull_lane *pl);
/* Memory for the next chunk of region, or NULL while no buffer is free. */
uint8_t *pull_write_slot(struct pull_lane *pl, struct pull_region *region, uint32_t chunk);
/* The chunk in that slot is decoded and checked: it joins the open run. */
void pull_write_commit(struct pull_lane *pl, struct pull_region *region, uint32_t chunk);
/* Sends the open run on its way, if it is this region's. */
void pull_write_flush(struct pull_lane *pl, const struct pull_region *region);
/* Starts zeroing as far as operations are free. */
void pull_zero_start(struct pull_lane *pl, struct pull_region *region);
struct pull_block *pull_block_take(struct pull_lane *pl);
void pull_block_release(struct pull_block *block);

/* --- pull_check.c */
/* Starts reading back as far as buffers are free; leads to REGION_FETCH. */
void pull_check_start(struct pull_lane *pl, struct pull_region *region);
void pull_probe_start(struct pull_lane *pl, const struct pull_object *object);
/* name has STORE_NAME_MAX + 1 bytes. */
void pull_object_name(const struct pull *pull, const struct pull_object *object, char *name);
/* Checks a pack's header against what its name says. */
int pull_check_header(const struct pull_lane *pl, const uint8_t *from,
                      const struct pull_object *want, uint64_t *ret_len, struct err *err);

/* --- pull_skip.c: the null sink */
bool pull_is_comparable(const struct pull *pull);
/* Fills job->skip, and the bitmap with it. */
void pull_skip_regions(struct pull_job *job);
bool pull_skips_region(const struct pull_job *job, uint32_t index);
bool pull_skips_object(const struct pull *pull, const struct pull_object *object);
/* Drops the chunks that pull->known has at the same place; leads to REGION_FETCH. */
void pull_known_start(struct pull_lane *pl, struct pull_region *region);

/* --- pull_lane.c */
/* What is left to do of the region is known: it is fetched. */
void pull_region_fetch(struct pull_region *region);
/* True: err is damage that the caller of pull_run() wants to hear of; it has, and the run goes on.
 */
bool pull_note_damage(struct pull_lane *pl, const char *object, uint32_t chunk_count,
                      const struct err *err);
int pull_lane_run(struct lane *lane, struct err *err);
/* In an encrypted repository: opens the table of a region of manifest that was fetched, where it
 * lies in a buffer of ours. */
int pull_open_table(struct pull_lane *pl, struct pull_region *region,
                    const struct fmt_manifest *manifest, struct err *err);
/* Ends the region when nothing is left of it. */
void pull_region_settle(struct pull_region *region);
/* What was read is damaged: starts the same request again, STORE_READ_TRIES in all. False when it
 * was tried often enough, or the job ends. */
bool pull_read_again(struct pull_lane *pl, struct store_request *request, unsigned *tries);
void pull_fail_op(struct pull_lane *pl, const struct ring_op *op, const char *verb);

/* --- pull.c */
/* All operations of a region have completed. */
void pull_region_durable_next_flush(struct pull_job *job, uint32_t region_index, uint64_t bytes);

#endif
