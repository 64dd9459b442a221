/* The WAL archive in the repository: push, get, presence, timelines. Lean (no jansson, no libpq,
 * no libcurl) so that tidemark-wal can link it. One thread. */
#ifndef TIDEMARK_AGENT_WAL_H
#define TIDEMARK_AGENT_WAL_H

#include "io/repo.h"

enum { WAL_NAME_MAX = 63, WAL_SMALL_FILE_MAX = 1 << 20 /* bytes of .history and .backup */ };

struct wal_archive {
    struct store *store;
    const struct repo *repo;
    char cluster[64];
    uint64_t system_id;
};

enum wal_kind { WAL_SEGMENT, WAL_PARTIAL, WAL_BACKUP, WAL_HISTORY };

/* True for a segment, .partial, .backup or .history name; fills kind and timeline (each may be
 * NULL). */
bool wal_name_parse(const char *name, enum wal_kind *ret_kind, uint32_t *ret_timeline);
bool wal_name_valid(const char *name, uint32_t *ret_timeline);

/* Pushes the file, durably. The same bytes again are fine, and durable then, whoever pushed them;
 * other bytes under the same name: ERR_REFUSED. A segment is checked against its own page header
 * (system id, timeline, LSN): ERR_REFUSED. */
int wal_push(const struct wal_archive *archive, const char *path, const char *name,
             struct err *err);

/* The same in two steps, for a caller that may store only later: wal_object_read() does all that
 * needs no store, and its object (the caller's, wal_object_free() takes NULL) holds all that the
 * repository will. */
struct wal_object;
int wal_object_read(const struct wal_archive *archive, const char *path, const char *name,
                    struct wal_object **ret, struct err *err);
int wal_object_store(const struct wal_archive *archive, const struct wal_object *object,
                     struct err *err);
void wal_object_free(struct wal_object *object);

/* The local file at path as wal_push() would take it under this name: malloc'ed bytes owned by the
 * caller. Errors of wal_push(). */
int wal_load(const struct wal_archive *archive, const char *path, const char *name, void **ret_raw,
             size_t *ret_len, struct err *err);

/* A segment (24 characters) that its server has not filled is NAME.partial, which is PostgreSQL's
 * own name of one, or NAME.<8 digits>.partial; the one with the highest number counts
 * (wal_partial.c). Pushes the file under a number that is higher than any, unless the last one has
 * its bytes or (behind: a standby's, fenced beside its primary) more of the same WAL: then ret_name
 * is "". ERR_REFUSED when the last one holds other WAL. Needs no permission to delete. */
int wal_partial_push(const struct wal_archive *archive, const char *path, const char *segment,
                     bool behind, char ret_name[WAL_NAME_MAX + 1], struct err *err);
/* Of the name of a .partial; 0 when it has none. */
uint32_t wal_partial_number(const char *name);
/* Bytes of the segment that begins at lsn up to the last one of its own pages that is not zero:
 * behind its last record a page is zero. */
uint64_t wal_partial_len(const void *raw, size_t len, uint64_t lsn);

/* Fetches and checks the file (checksums, identity, page header): malloc'ed bytes owned by the
 * caller. ERR_MISSING only for a confirmed absence: tidemark.repo with our id was read after the
 * lookup, through the same open directory or endpoint. Never ERR_MISSING for a lost repository. */
int wal_read(const struct wal_archive *archive, const char *name, void **ret_raw, size_t *ret_len,
             struct err *err);

/* wal_read() into to_path through `<to_path>.tidemark` + rename; mode 0600. durable: fsync before
 * the rename. PostgreSQL flushes what restore_command gives it by itself (durable_rename() in
 * KeepFileRestoredFromArchive), so `get` leaves it out; the spool does not. */
int wal_get(const struct wal_archive *archive, const char *name, const char *to_path, bool durable,
            struct err *err);

/* 0 present, ERR_MISSING absent (confirmed). Checks the object's header, not its payload. */
int wal_check(const struct wal_archive *archive, const char *name, struct err *err);

/* The same, and how long the file is. */
int wal_size(const struct wal_archive *archive, const char *name, uint64_t *ret_size,
             struct err *err);

/* For who relies on what wal_check() has found: makes its name durable, and those of all others
 * that were there on its timeline (store_flush_name()). ERR_STORE. */
int wal_flush_name(const struct wal_archive *archive, const char *name, struct err *err);

/* First missing segment of [start_lsn, end_lsn) on timeline (history followed backwards when
 * start lies on an ancestor); 0 when all are there, ERR_MISSING names it. Many are looked up by
 * listing: their headers are not read then. */
int wal_check_range(const struct wal_archive *archive, uint32_t timeline, uint64_t start_lsn,
                    uint64_t end_lsn, uint32_t segment_size, struct err *err);

struct wal_history_entry {
    uint32_t parent;     /* timeline */
    uint64_t switch_lsn; /* the child begins here */
};

enum { WAL_HISTORY_MAX = 1024 };

struct wal_history {
    uint32_t timeline;
    struct wal_history_entry entries[WAL_HISTORY_MAX]; /* oldest first */
    size_t count;
};

/* The timeline that holds the byte at lsn in this history: the one whose segment must be there. */
uint32_t wal_history_owner(const struct wal_history *history, uint64_t lsn);

/* Parses the text of a .history file by PostgreSQL's own rules (readTimeLineHistory). ERR_CORRUPT,
 * ERR_REFUSED for more than WAL_HISTORY_MAX ancestors. */
int wal_history_parse(uint32_t timeline, const char *text, size_t len, struct wal_history *ret,
                      struct err *err);
/* Reads one from the archive. Timeline 1 has none: an empty history. */
int wal_history_read(const struct wal_archive *archive, uint32_t timeline, struct wal_history *ret,
                     struct err *err);

/* Timelines that have any object in the archive, ascending; malloc'ed, owned by the caller. */
int wal_timelines(const struct wal_archive *archive, uint32_t **ret, size_t *ret_count,
                  struct err *err);

#endif
