/* The snapshots of a repository: finding, reading and committing records. One thread. */
#ifndef TIDEMARK_AGENT_CATALOG_H
#define TIDEMARK_AGENT_CATALOG_H

#include "agent/record.h"

/* Reads the record of snapshot id. ERR_MISSING, also when it was withdrawn; ERR_CORRUPT. */
int catalog_read(struct store *store, const struct repo *repo, const char *cluster,
                 const char *node, const uint8_t id[ID_LEN], struct record *ret, struct err *err);

/* The same of a snapshot that may have been withdrawn since: for a restore that has begun, which
 * goes on. What it needs is there for [retention] grace. */
int catalog_read_begun(struct store *store, const struct repo *repo, const char *cluster,
                       const char *node, const uint8_t id[ID_LEN], struct record *ret,
                       struct err *err);

/* ERR_MISSING when the snapshot was withdrawn (mark.h). */
int catalog_check_withdrawn(struct store *store, const uint8_t id[ID_LEN], struct err *err);

/* Finds by tag, 32-digit id, a unique id prefix of ≥ 6 digits (a tag of the same text wins), or
 * "latest" (newest captured_s of this cluster and node; node NULL or "" = any). cluster NULL or ""
 * = the only one in the repository. ERR_MISSING names the nearest tags; ERR_USAGE lists the
 * candidates when ambiguous. Withdrawn and damaged records are not candidates (asked for by id, a
 * damaged one is ERR_CORRUPT); damaged ones that were met are counted in *ret_damaged (also on
 * failure; may be NULL). */
int catalog_find(struct store *store, const struct repo *repo, const char *cluster,
                 const char *node, const char *what, struct record *ret, size_t *ret_damaged,
                 struct err *err);

/* Calls each() for every good record, oldest captured_s first. */
int catalog_list(struct store *store, const struct repo *repo, const char *cluster,
                 int (*each)(void *ctx, const struct record *record, struct err *err), void *ctx,
                 size_t *ret_damaged, struct err *err);

/* ERR_BUSY when the tag is taken in this cluster and node: asked before anything is read or
 * written, and once more by catalog_commit(). */
int catalog_check_tag(struct store *store, const struct repo *repo, const char *cluster,
                      const char *node, const char *tag, struct err *err);

/* Writes the record: the commit. ERR_BUSY when the tag is already taken in this cluster and node
 * by another snapshot. */
int catalog_commit(struct store *store, const struct repo *repo, const struct record *record,
                   struct err *err);

/* Reads and checks a volume's manifest: SHA-256 of the record, ids, geometry. *ret_buf is
 * malloc'ed, owned by the caller; ret points into it. */
int catalog_manifest(struct store *store, const struct repo *repo, const struct record *record,
                     size_t volume_index, void **ret_buf, struct fmt_manifest *ret,
                     struct err *err);

/* The same of any manifest there is, without a record that knows its SHA-256: what it reaches. */
int catalog_manifest_alone(struct store *store, const struct repo *repo,
                           const uint8_t volume[ID_LEN], const uint8_t snapshot[ID_LEN],
                           void **ret_buf, struct fmt_manifest *ret, struct err *err);

#endif
