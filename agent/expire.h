/* Private to agent/expire*.c: what becomes of the snapshots of a repository.
 *
 *     expire.c        the order, the request, the result
 *     expire_load.c   every snapshot that has a record or a mark
 *     expire_keep.c   which of them are to be kept, and why
 *     expire_reach.c  what the manifests reach that count
 *     expire_sweep.c  what nobody reaches: listed, removed; what writers left that died
 *     expire_wal.c    WAL that no snapshot needs
 *     expire_lock.c   what is locked stays (FORMAT.md §14)
 *
 * Two phases, and between them the grace period, which the store's clock measures:
 *
 *   1. withdrawn/<id> is written. From then on the snapshot is no candidate for a restore, and no
 *      parent: for everybody but a restore that has begun it does not exist.
 *   2. When the mark is a grace old, all manifests are read anew, and what the snapshot wrote and
 *      no manifest reaches that counts is removed: record, manifest, tables, packs.
 *
 * Manifests are read first. While one that counts cannot be read, or is not there though its record
 * is, nothing is removed, and no rule withdraws: its snapshot may be the newest in name only.
 *
 * Every manifest counts until its snapshot's mark is a grace old: also one without a record, whose
 * writer is about to commit. So nothing goes that anybody reaches or may come to reach:
 *
 * - A writer puts its manifests, then looks whether its parent and itself are withdrawn, then puts
 *   its record. What it reaches is its own and its parent's. If phase 2 lists manifests after that
 *   put, it sees them, however long the writer sleeps from there on. If it lists them before, the
 *   parent was withdrawn a grace before, and the writer's look, later still, finds that out.
 * - Its own objects go only when no mark and no record is known of it and the youngest of them is a
 *   grace old. Then it is withdrawn first, as abandoned, and a grace later they go. The writer may
 *   come back at any moment, so both look behind their put: the writer puts its record and looks
 *   for a mark, expire puts its marks and lists the records anew. One of them sees the other. If
 *   the record was there, expire takes the mark back: the writer may have reported success. (If the
 *   writer saw the mark, it has failed, and its snapshot is visible all the same, and whole.) It
 *   does so only with a mark that it has put itself and that is younger than the margin below: to
 *   another host, whose grace is shorter, an older one may be a grace old. If the record was not
 *   there, the mark stays for ever: the writer will find it behind its record, which is ignored
 *   from the moment it appears. An expire that dies between its put and its look, or
 *   sleeps for the margin, just when the writer committed, leaves that snapshot withdrawn; this
 *   window is left.
 *
 * A pin and a mark may be put at the same moment. Who pins looks for a mark behind the put, and
 * says so if there is one; who withdraws looks for a pin behind the put, and takes the mark back.
 * So a pin that succeeded was seen by expire. One that died between the two leaves a mark that is
 * void, and the next run takes it back: void if the pin is not younger than the mark by the margin
 * below, which everybody who comes later finds the same, whatever his grace. A later pin found the
 * snapshot withdrawn and failed.
 *
 * Who reads is noticed as well (reading.h), and WAL has a second look of its own, at records and at
 * who reads (wal_horizon.h): of a pinned snapshot WAL goes that a restore of it may want.
 * A writer that is killed between its record and that look, just when its WAL goes, leaves a
 * snapshot that nobody reported, that is visible and lacks WAL; `tidemark check` finds the gap. If
 * it is the newest of its node, a count of 1 withdraws the one before it. This window is left, too.
 *
 * None of this depends on how long the grace is, nor on hosts having the same, but for what clocks
 * and requests need. It has to be longer than the difference between the clocks that give objects
 * their times (file:// on a filesystem of several hosts), else a pin that succeeded looks late; and
 * then by more than a request may be under way in a network, else a mark's removal that arrives
 * late could return a snapshot of which objects have gone. Five minutes for each, the margin:
 * RETENTION_GRACE_MIN_S, 10 minutes, is the least grace there is. A writer needs more than that,
 * else it fails: it must put some object once a grace, and a live snapshot of blocks that have not
 * changed puts none.
 *
 * Times: of file:// the time of an object is that of its last write. Who sleeps before it links the
 * name corrects the time behind it (store_file.c), so no mark and no pin looks older than it is,
 * unless somebody sleeps for a grace between those two calls and is killed before the second. Packs
 * and tables may look older: then their writer is taken for dead, which it finds out.
 *
 * Every pair of steps of a writer, of a reader and of expire, and what proves it:
 *
 *   who sleeps, where            and expire meanwhile …      then                     test
 *   a writer before its manifest removes the parent          fails, looks behind it   slept 1
 *   between look and record      removes the parent          its manifest counts      slept 2
 *   behind its record            removes the parent          the same                 slept 3
 *   before manifest or record    takes it for dead           fails, finds the mark    abandoned
 *   before its record            is about to mark it, sleeps the record is found      woken
 *   before its record            sleeps; another one removes the mark stays           two graces
 *   before its record            has removed its WAL         fails, finds the horizon wal 1
 *   before its record            has listed WAL, sleeps      the record is found      wal 2
 *   before its record            has looked, sleeps          withdraws itself         wal 3
 *   a pin after pins are listed  marks the snapshot          the mark is taken back   pinned
 *   a pin before its put         withdraws the snapshot      fails, the mark stays    late pin
 *   a reader before its mark     withdraws the snapshot      is told that it is gone  reading 1
 *   a reader behind its mark     both phases                 everything stays         reading 2
 *   a reader is killed           both phases, in a week      it goes then             reading 3
 *   a reader before its mark     has listed WAL, sleeps      its mark is found        reading 4
 *   a restore before its mark    has looked, sleeps          fails, finds the horizon reading 5
 *
 * A writer that wakes between two steps of expire sees what it would have seen before the first or
 * behind the second: a listing of manifests that began before its put has that manifest or not; if
 * not, the look behind the put comes after the marks that the listing went by.
 *
 * No lock and no permission to delete is needed by those who write, and expires of several hosts
 * may run at the same time: they remove the same things. One thread. */
#ifndef TIDEMARK_AGENT_EXPIRE_H
#define TIDEMARK_AGENT_EXPIRE_H

#include "agent/catalog.h"
#include "agent/catalog_names.h"
#include "agent/job.h"
#include "agent/mark.h"

struct expire_item {
    struct catalog_name name; /* cluster and node "" without a record */
    bool has_record, withdrawn, pinned;
    bool unreadable;      /* withdrawn/<id> is: it hides the snapshot, and deletes nothing */
    const char *mark_why; /* what it says, see mark.h */
    int64_t mark_age_s;   /* of withdrawn/<id> */
    bool read;            /* by a job, see reading.h */
    bool dead;    /* the mark was read and is a grace old, no pin voids it, and no job reads it */
    bool returns; /* withdrawn and pinned: this run takes the mark back */
    bool goes;    /* is withdrawn by this run */
    const char *why;        /* it stays or goes, for people; static */
    int64_t locked_until_s; /* by the store, when that is not over; else 0 */
    bool held;              /* its record is under a legal hold */
    bool unseen; /* its record says that it is locked, and the store, which could, shows no lock */
    bool by_id;  /* asked for by its whole id: then its record's word does not keep it */
    uint64_t left; /* objects of it that somebody else reaches */
    /* of a record of this cluster that could be read, unless dead */
    bool known;
    bool is_newest; /* of its node */
    char tag[RECORD_TAG_MAX + 1];
    int64_t captured_s, committed_s;
    uint64_t bytes_stored;
    bool archived;
    uint64_t system_id, start_lsn, tag_lsn;
    uint32_t timeline, segment_size;
    uint8_t volumes[RECORD_VOLUMES_MAX][ID_LEN]; /* it has a manifest of each */
    size_t volume_count;
};

/* Names of objects. */
struct expire_names {
    char **names;
    uint64_t *sizes;
    size_t count, capacity;
    uint64_t bytes; /* of all objects */
};

struct expire {
    struct job *job;
    const struct conf *conf;
    bool dry_run;
    const json_t *wanted; /* ids and tags; NULL = by retention */
    struct store *store;
    struct repo repo;
    int64_t now_s; /* the store's, when the run began */
    int64_t grace_s;
    int64_t margin_s;          /* no mark that is younger is a grace old to any host, see above */
    struct expire_item *items; /* ascending by id */
    size_t count, capacity;
    struct expire_names old_readings; /* marks of jobs that died, see reading.h */
    size_t damaged;                   /* records of this cluster that cannot be read */
    size_t unreadable;                /* marks */
    char first_damaged[sizeof(((struct err *)0)->text)];
    unsigned removals; /* requests so far, for tests */
    /* the result; of a dry run: what would be */
    uint64_t objects, bytes, wal_objects, wal_bytes;
    uint64_t later_bytes; /* once the grace is over, these included */
    size_t abandoned;
    uint64_t locked_objects; /* that would have been removed */
    uint64_t locks_extended;
    enum expire_locking { EXPIRE_LOCKING_UNASKED, EXPIRE_LOCKS, EXPIRE_LOCKS_NOT } locking;
};

int expire_names_add(struct expire_names *names, const char *name, uint64_t size, struct err *err);
/* Empties it. */
void expire_names_release(struct expire_names *names);

/* Marks of jobs that read (reading.h), listed now: those that may go on, and the older ones. */
int expire_readings(const struct expire *expire, struct expire_names *ret,
                    struct expire_names *ret_old, struct err *err);
/* A snapshot of this cluster, or one of which only a mark is known. */
bool expire_is_ours(const struct expire *expire, const struct expire_item *item);
/* NULL when nothing is known of it. */
struct expire_item *expire_find(const struct expire *expire, const uint8_t id[ID_LEN]);
/* Removes them unless this is a dry run; ERR_AUTH says whose key may not. What is locked is taken
 * out of the list. */
int expire_remove(struct expire *expire, struct expire_names *names, struct err *err);
/* Age of an object in seconds; INT64_MAX when it is not there. */
int expire_age(const struct expire *expire, const char *object, int64_t *ret_s, struct err *err);

/* *ret: the snapshot is pinned, and its pin is older than the mark, as far as clocks tell. Then the
 * mark is void. */
int expire_pin_voids(const struct expire *expire, const uint8_t id[ID_LEN], bool *ret,
                     struct err *err);
/* Removes the mark of a snapshot that is to stay. */
int expire_take_back(const struct expire *expire, const uint8_t id[ID_LEN], const char *why,
                     struct err *err);

/* < 0: left was taken before right; never 0 for two. */
int expire_compare_age(const struct expire_item *left, const struct expire_item *right);

int expire_load(struct expire *expire, struct err *err);
/* Fills goes and why. ERR_MISSING, ERR_USAGE, ERR_REFUSED for what was asked for by name. */
int expire_choose(struct expire *expire, struct err *err);

/* --- expire_reach.c --- */
struct expire_manifest {
    uint8_t volume[ID_LEN], snapshot[ID_LEN];
};
enum expire_kind { EXPIRE_TABLE, EXPIRE_PACK };
enum { REACHED_NOW = 1, REACHED_LATER = 2 }; /* LATER: when everything withdrawn is dead */
struct expire_ref {
    uint8_t volume[ID_LEN], snapshot[ID_LEN];
    uint32_t number;
    uint16_t kind, by;
    int64_t until_s; /* the latest lock of a snapshot that needs it */
};
struct expire_reach {
    struct expire_manifest *manifests; /* all there are */
    size_t manifest_count, manifest_capacity;
    struct expire_ref *refs; /* sorted, no two the same */
    size_t count, capacity, sorted;
};
/* ERR_CORRUPT when a manifest that counts cannot be read, or is not there: nothing may be removed
 * then, and nothing withdrawn in favour of what may be no snapshot any more. */
int expire_reach_load(struct expire *expire, struct expire_reach *ret, struct err *err);
unsigned expire_reached(const struct expire_reach *reach, enum expire_kind kind,
                        const uint8_t volume[ID_LEN], const uint8_t snapshot[ID_LEN],
                        uint32_t number);
void expire_reach_release(struct expire_reach *reach);

/* reach NULL: removes nothing, only gives up what writers left that died: one such manifest that
 * cannot be read would else block every removal for ever. */
int expire_sweep(struct expire *expire, const struct expire_reach *reach, struct err *err);
int expire_wal(struct expire *expire, struct err *err);

/* --- expire_lock.c --- */
/* Whether versions are kept; a key that may not ask is good enough where nothing is to be locked.
 */
int expire_lock_prepare(struct expire *expire, struct err *err);
/* Until when the store has its record locked, if that is not over; a legal hold. */
int expire_lock_ask(const struct expire *expire, struct expire_item *item, struct err *err);
/* Fills unseen, of one whose record claims a lock and of which expire_lock_ask() has shown none. In
 * a store that locks nothing, where the repository may be a copy of another one, none is missing.
 */
int expire_lock_unseen(struct expire *expire, struct expire_item *item, struct err *err);
/* Those whose grace is over are not dead while they are locked. */
int expire_lock_revive(struct expire *expire, struct err *err);
/* Nor does one go. ERR_REFUSED when it was asked for by name. */
int expire_lock_keep(struct expire *expire, struct err *err);
/* What snapshots need that are locked is locked for as long. */
int expire_lock_extend(struct expire *expire, const struct expire_reach *reach, struct err *err);
/* Removes names[from … from + count - 1], and what is locked from the list. */
int expire_lock_remove(struct expire *expire, struct expire_names *names, size_t from, size_t count,
                       struct err *err);

#endif
