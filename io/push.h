/* push: device → repository. O_DIRECT reads, zero test, digest, comparison with the parent's
 * table, LZ4, packs, PUT; on share-nothing lanes. See DESIGN §5 for the pipeline.
 *
 *     push_rewrite(&push, …)                            chunks to store again, see push_rewrite.c
 *     push_keep(&push, …)                               chunks that are known not to have changed
 *     push_run(&push, used.items, used.count, err)      any number of times
 *     push_seal(&push, &result, err)                    tables, then the manifest: once
 *
 * The caller owns everything a struct push points to and keeps it until push_seal() returned.
 * push_run() starts and joins its own threads; call it from one thread. */
#ifndef TIDEMARK_IO_PUSH_H
#define TIDEMARK_IO_PUSH_H

#include "io/extent.h"
#include "io/lane_options.h"
#include "io/seal.h"
#include "io/table.h"

struct push {
    struct store *store;
    const struct repo *repo;
    int fd;                     /* volume, opened O_RDONLY | O_DIRECT */
    uint32_t alignment;         /* of offsets, lengths and memory for fd, bytes (logical sector) */
    uint32_t request_max;       /* largest read that the device takes in one piece; 0 = 1 MiB */
    struct table *work;         /* from table_create() */
    const struct table *parent; /* NULL: full snapshot */
    struct lane_options options;
    struct io_progress *progress;
    /* Encrypted repositories: of all packs and table packs of this snapshot, drawn at the first
     * run. Their names differ, and so do their keys; no name is used twice with one origin. */
    struct seal_origin origin;
    uint32_t next_pack; /* first free pack number of this snapshot; starts at 0 */
    /* stored object length of every pack of this snapshot, by number; owned, freed by
     * push_release(). */
    uint64_t *pack_len;
    uint32_t pack_len_count;
    /* Bit i set = chunk i is stored although the parent has it; NULL = none. Set by push_rewrite(),
     * freed by push_release(). */
    uint64_t *rewrite;
    char memory_sum[192]; /* out: payload memory of the last run as a sum, for the log */
};

/* Captures the chunks that touch the normalised extents; a chunk that lies partly outside of them
 * is read whole. A chunk read twice in one snapshot takes its newest bytes. Adds the bytes it will
 * read to progress->bytes_total. After an error the snapshot is void: packs may be in the store
 * that no table names. Errors: ERR_DEVICE, ERR_STORE, ERR_CANCELLED, ERR_CONFIG (memory_max too
 * small), ERR_INTERNAL (memory). */
int push_run(struct push *push, const struct extent *used, size_t used_count, struct err *err);

/* Before the first push_run() and push_keep() of an incremental: chooses, of the chunks that touch
 * the normalised `used`, those that are to be stored again although they will not have changed,
 * because the parent has them in packs that make it costly to restore or to keep. At most
 * budget_percent of the bytes that the parent reaches, or 8 MiB if that is more, are stored for it,
 * tables included; 0: nothing. progress->bytes_rewritten is how many it became. Reads nothing but
 * the tables. One thread. ERR_INTERNAL (memory). */
int push_rewrite(struct push *push, const struct extent_list *used,
                 const struct fmt_manifest *parent_manifest, unsigned budget_percent,
                 struct err *err);

/* Before the first push_run() of an incremental: of the chunks that touch `used`, those that do not
 * touch `changed`, that the parent has and that are not to be stored again get the parent's
 * entries, unread and without progress.
 * The caller knows that nobody has written to them since the parent. *ret_read, empty before, is
 * the rest, for push_run(); a chunk that was FREE in the parent is in it. The lists are normalised.
 * One thread. ERR_INTERNAL (memory). */
int push_keep(struct push *push, const struct extent_list *used, const struct extent_list *changed,
              struct extent_list *ret_read, uint64_t *ret_kept_count, struct err *err);

struct push_result {
    uint8_t manifest_sha256[FMT_SHA256_LEN]; /* of the whole manifest object */
    uint64_t manifest_len;
    uint64_t table_bytes; /* stored bytes of new table packs */
    uint32_t pack_count;  /* packs the snapshot reaches */
};

/* Device identity to record in the manifest. */
struct push_identity {
    uint32_t logical_sector;
    uint32_t physical_sector;
    char fs_type[16];
    char fs_uuid[40];
    char fs_label[64];
    /* Of the snapshot that push->parent is the table of; NULL: full. Unchanged regions reuse its
     * tables, and the lengths of its packs are taken from it. */
    const struct fmt_manifest *parent_manifest;
};

/* Writes table packs and the manifest, and seals the working table. */
int push_seal(struct push *push, const struct push_identity *identity, struct push_result *ret,
              struct err *err);

void push_release(struct push *push);

#endif
