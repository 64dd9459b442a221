/* The chunk table of a whole volume as one memory-mapped file: 32 bytes a chunk (0.1 % of the
 * volume) and the list of packs its entries name. Two uses: the working table that push fills,
 * and the local cache of the newest committed snapshot, which an incremental compares with.
 *
 * The file is local (state_dir), never in the repository: header | entries | pack refs, with a
 * SHA-256 over all of it that table_seal() writes and table_open() checks.
 *
 * Entries of different regions may be written by different threads; everything else is one
 * thread's. */
#ifndef TIDEMARK_IO_TABLE_H
#define TIDEMARK_IO_TABLE_H

#include "io/format.h"

struct table {
    int fd;
    void *map;
    size_t map_len;
    uint8_t volume[ID_LEN];
    uint8_t snapshot[ID_LEN]; /* the snapshot whose table this is */
    uint64_t size;            /* bytes of the volume */
    uint32_t chunk_size;
    uint32_t region_size;
    uint64_t chunk_count;
    struct fmt_entry *entries; /* chunk_count, in the map */
    /* Packs of the parent come first; packs of this snapshot follow as parent_pack_count + number,
     * so lanes need no shared list. malloc'ed, owned. */
    struct fmt_pack_ref *packs;
    uint32_t pack_count;
    uint32_t parent_pack_count;
};

/* Makes path (replacing it) with every entry FREE. parent may be NULL; its pack list is taken. */
int table_create(const char *path, const uint8_t volume[ID_LEN], const uint8_t snapshot[ID_LEN],
                 uint64_t size, const struct repo *repo, const struct table *parent,
                 struct table *ret, struct err *err);

/* Maps path read-only and checks it whole. ERR_MISSING or ERR_CORRUPT: rebuild it. */
int table_open(const char *path, struct table *ret, struct err *err);

/* Appends the refs of this snapshot's packs 0 … count - 1 to the list, once, when all are known. */
int table_add_packs(struct table *table, uint32_t count, struct err *err);

/* Drops packs that no entry names (entries get new pack indices), writes header, pack list and
 * checksum, and fsyncs: the file can be opened from now on. packs must be complete. */
int table_seal(struct table *table, struct err *err);

/* Builds the table of a manifest from the repository at path and seals it. Reads every region
 * table and checks it. */
int table_rebuild(const char *path, struct store *store, const struct repo *repo,
                  const struct fmt_manifest *manifest, struct table *ret, struct err *err);

/* Plain length in bytes of chunk index; the last one is short when size is not a multiple. */
uint32_t table_chunk_len(const struct table *table, uint64_t chunk_index);

void table_close(struct table *table);

/* Of an encrypted repository, before the next: opens the regions[].len bytes and their tag at from,
 * read from the object name, into to, which may be from. ERR_CORRUPT, ERR_AUTH. */
struct seal;
int table_open_region(struct seal *seal, const struct keyring *keys,
                      const struct fmt_manifest *manifest, uint32_t region_index, const char *name,
                      const uint8_t *from, uint8_t *to, struct err *err);

/* Decodes the table of a region from the regions[].len bytes that the manifest promises (8-aligned)
 * and checks them: SHA-256, structure, place, and that the manifest lists every pack it names. ret
 * points into them. ERR_CORRUPT, ERR_REFUSED. Pure. */
int table_decode_region(const struct fmt_manifest *manifest, uint32_t region_index,
                        const uint8_t *from, struct fmt_region *ret, struct err *err);

/* Reads one region's table through the store and decodes it as above. buf is malloc'ed
 * and owned by the caller; ret points into it. */
int table_fetch_region(struct store *store, const struct repo *repo,
                       const struct fmt_manifest *manifest, uint32_t region_index, void **ret_buf,
                       struct fmt_region *ret, struct err *err);

#endif
