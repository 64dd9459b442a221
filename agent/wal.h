/* The WAL archive in the repository: push, get, presence, timelines. Lean (no jansson, no libpq,
 * no libcurl) so that tidemark-wal can link it. One thread. */
#ifndef TIDEMARK_AGENT_WAL_H
#define TIDEMARK_AGENT_WAL_H

#include "io/repo.h"

struct wal_archive {
    struct store *store;
    const struct repo *repo;
    char cluster[64];
    uint64_t system_id;
};

/* True for a segment, .partial, .backup or .history name; fills the timeline. */
bool wal_name_valid(const char *name, uint32_t *ret_timeline);

/* Pushes the file. The same bytes again are fine; other bytes under the same name: ERR_REFUSED.
 * A segment is checked against its own page header (system id, timeline, LSN): ERR_REFUSED. */
int wal_push(const struct wal_archive *archive, const char *path, const char *name,
             struct err *err);

/* Fetches into to_path through a temporary file + rename. ERR_MISSING only for a confirmed absence:
 * tidemark.repo with our id was read in the same call. */
int wal_get(const struct wal_archive *archive, const char *name, const char *to_path,
            struct err *err);

/* 0 present, ERR_MISSING absent (confirmed). Checks the object's header, not its payload. */
int wal_check(const struct wal_archive *archive, const char *name, struct err *err);

/* First missing segment of [start_lsn, end_lsn) on timeline (history followed backwards when
 * start lies on an ancestor); 0 when all are there, ERR_MISSING names it. */
int wal_check_range(const struct wal_archive *archive, uint32_t timeline, uint64_t start_lsn,
                    uint64_t end_lsn, uint32_t segment_size, struct err *err);

struct wal_history_entry {
    uint32_t parent;     /* timeline */
    uint64_t switch_lsn; /* the child begins here */
};

struct wal_history {
    uint32_t timeline;
    struct wal_history_entry entries[64]; /* oldest first */
    size_t count;
};

/* Parses the text of a .history file. ERR_CORRUPT. */
int wal_history_parse(uint32_t timeline, const char *text, size_t len, struct wal_history *ret,
                      struct err *err);
/* Reads one from the archive. Timeline 1 has none: an empty history. */
int wal_history_read(const struct wal_archive *archive, uint32_t timeline, struct wal_history *ret,
                     struct err *err);

/* Timelines that have any object in the archive, ascending; malloc'ed, owned by the caller. */
int wal_timelines(const struct wal_archive *archive, uint32_t **ret, size_t *ret_count,
                  struct err *err);

#endif
