/* What the parts of `tidemark verify` share (verification.c, verification_wal.c,
 * verification_notes.c). */
#ifndef TIDEMARK_AGENT_VERIFICATION_H
#define TIDEMARK_AGENT_VERIFICATION_H

#include <pthread.h>

#include "agent/catalog.h"
#include "agent/job.h"
#include "agent/reading.h"
#include "io/pull.h"

enum {
    VERIFICATION_DAMAGED_MAX = 100, /* objects that are listed; more are counted */
    VERIFICATION_NAMES_MAX = 1000,  /* names of more that a journal keeps, for a later run */
};

struct verification {
    struct job *job;
    const char *what; /* of the request; NULL: all snapshots */
    unsigned percent; /* 0 = all */
    uint64_t seed;
    struct store *store;
    struct repo repo;
    struct record record; /* of the snapshot that is read */
    bool record_read;
    struct reading_mark reading; /* of that snapshot */
    char where[96];              /* "volume 'pgdata'", before the texts of damage */
    /* How far it is: journalled as "position". */
    json_t *snapshots; /* [{"cluster","node","id","tag"}] */
    uint64_t at;       /* in snapshots */
    uint64_t volume;   /* of the record; behind the last: its WAL */
    /* objects that were read, and bytes of earlier runs */
    uint64_t manifests, table_packs, packs, wal_objects;
    uint64_t bytes_read, bytes_stored;
    pthread_mutex_t mutex; /* lanes note damage, this thread writes it */
    json_t *damaged;       /* the first of them: [{"object","code","text","chunks"}] */
    json_t *names;         /* every damaged object → its entry in damaged, or {"code"} */
    uint64_t damaged_count;
    bool corrupt;
    bool met; /* damage, in this snapshot */
    /* Entries of snapshots. */
    json_t *affected; /* damage was met in reading it, or an object that it needs is missing */
    json_t *unsure;   /* shares an object with damage somewhere in it, which was not read again */
    json_t *gone;     /* withdrawn or removed before it was read */
};

/* --- verification_wal.c: every WAL segment from start to tag */
int verification_wal(struct verification *own, struct err *err);

/* --- verification_notes.c */
/* The lists of what is found, empty; own is zeroed. The list of snapshots is released with them. */
void verification_open_notes(struct verification *own, struct job *job);
void verification_close_notes(struct verification *own);
/* Keeps one entry an object. True: err is damage, and the verification goes on. */
bool verification_note(struct verification *own, const char *object, uint32_t chunk_count,
                       const struct err *err);
/* What was found damaged before and is not read again: the manifest reaches a missing object, or
 * one with damage somewhere in it, or may reach one whose name an earlier run could not
 * keep. */
enum verification_reach { REACH_NONE, REACH_DAMAGED, REACH_MISSING };
enum verification_reach verification_reach(struct verification *own,
                                           const struct fmt_manifest *manifest);
/* Journals the position; bitmap: regions of the volume that are done, NULL = none. */
int verification_save(struct verification *own, const uint8_t *bitmap, size_t bitmap_len,
                      struct err *err);
/* The position of an earlier run; *ret false when there is none. *ret_bitmap is malloc'ed or NULL.
 */
int verification_load(struct verification *own, bool *ret, uint8_t **ret_bitmap,
                      size_t *ret_bitmap_len, struct err *err);
uint64_t verification_objects(const struct verification *own);
void verification_set_result(struct verification *own);
/* The damage as the job's error; 0 when there was none. */
int verification_outcome(struct verification *own, struct err *err);

#endif
