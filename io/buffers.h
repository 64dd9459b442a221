/* Payload memory of the lanes: one arena a lane, taken and touched once at the start, cut into
 * buffers that stay for the whole run. 2 MiB aligned with transparent huge pages, because a 1 MiB
 * request in 4 KiB pages has 256 segments and every one would go through an io-wq thread (FACTS).
 *
 * An arena belongs to its lane's thread; buffers_plan() is pure. */
#ifndef TIDEMARK_IO_BUFFERS_H
#define TIDEMARK_IO_BUFFERS_H

#include "io/err.h"
#include "io/lane_options.h"

struct buffers {
    uint8_t *base; /* 2 MiB aligned */
    size_t len;
    size_t used; /* bytes that buffers_cut() gave away */
    void *map;
    size_t map_len;
};

/* The first touch_len bytes are touched at once. ERR_INTERNAL when the memory is not there. */
int buffers_open(struct buffers *ret, size_t len, size_t touch_len, struct err *err);
/* The next len bytes, aligned (a power of two). Asserts that the plan was right. */
void *buffers_cut(struct buffers *buffers, size_t len, size_t align);
void buffers_close(struct buffers *buffers);

/* What one lane needs: blocks (device transfers), objects (whole packs, or ranges of them) and
 * fixed bytes. */
struct buffers_need {
    const char *block_name; /* for the sum: "read" */
    const char *object_name;
    size_t block_len;
    unsigned block_count;
    size_t object_len;
    unsigned object_min;   /* below this a lane cannot work */
    unsigned object_max;   /* more than this does not help */
    unsigned object_total; /* … than this in flight over all lanes; 0 = no limit */
    unsigned object_spare; /* with object_total: a lane's objects that are not in flight */
    size_t object_extra;   /* memory elsewhere that an object in flight needs */
    size_t fixed_len;
    uint64_t lane_max; /* pieces of work: more lanes would idle; 0 = no limit */
};

struct buffers_plan {
    unsigned lane_count;
    unsigned object_count; /* a lane */
    size_t lane_len;       /* bytes of a lane's arena: without object_extra */
    size_t ring_len;       /* of them at its start, for transfers through the ring */
    char text[192];        /* the sum, for logs and messages */
};

/* Payload = lanes × (block_count × block_len + object_count × object_len + fixed_len), object_extra
 * counted with object_len, as many
 * objects, then as many lanes as memory_max holds. ERR_CONFIG with the sum when not even one lane
 * with object_min objects fits. lane_count 0 = min(cores, 8); memory_max 0 = 512 MiB. */
int buffers_plan(const struct lane_options *options, const struct buffers_need *need,
                 struct buffers_plan *ret, struct err *err);

#endif
