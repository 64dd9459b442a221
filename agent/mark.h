/* Marks of snapshots, objects of their own, so that no record is ever rewritten: withdrawn/<id> and
 * pin/<id> (FORMAT.md §8). That one is there is enough to hide a snapshot or to keep it; before
 * anything is deleted because of one, it is read. One thread. */
#ifndef TIDEMARK_AGENT_MARK_H
#define TIDEMARK_AGENT_MARK_H

#include "agent/json.h"
#include "io/repo.h"

enum mark {
    /* The snapshot does not exist any more, or never will: readers ignore its record, nobody takes
     * it for a parent, and its objects may be deleted when the mark is [retention] grace old. */
    MARK_WITHDRAWN,
    MARK_PIN, /* no retention expires it */
};

/* Why a snapshot is withdrawn: a word of the mark. */
extern const char mark_expired[];   /* it had a record */
extern const char mark_abandoned[]; /* it had none: its writer must never commit; the mark stays */

/* A mark under any name; why may be NULL; by: who does it. 0 also when there is such a mark. */
int mark_put_as(struct store *store, const struct repo *repo, const char *name,
                const uint8_t id[ID_LEN], const char *why, const char *by, struct err *err);
int mark_put(struct store *store, const struct repo *repo, enum mark mark, const uint8_t id[ID_LEN],
             const char *why, const char *by, struct err *err);
/* The same, but STORE_EXISTS when there is such a mark: it is somebody else's. */
int mark_put_new(struct store *store, const struct repo *repo, enum mark mark,
                 const uint8_t id[ID_LEN], const char *why, const char *by, struct err *err);
/* Absent is fine. */
int mark_remove(struct store *store, enum mark mark, const uint8_t id[ID_LEN], struct err *err);
/* ERR_MISSING when there is none. */
int mark_check(struct store *store, enum mark mark, const uint8_t id[ID_LEN], struct err *err);
/* When it was written, by the store's clock. */
int mark_modified(struct store *store, enum mark mark, const uint8_t id[ID_LEN], int64_t *ret_s,
                  struct err *err);
/* Opens it and checks that it is this mark of this snapshot. *ret_why is mark_expired or
 * mark_abandoned, of a pin NULL. ERR_CORRUPT or ERR_REFUSED when it cannot be read. */
int mark_read(struct store *store, const struct repo *repo, enum mark mark,
              const uint8_t id[ID_LEN], const char **ret_why, struct err *err);

/* Names of objects; the caller frees items. */
struct mark_names {
    char (*items)[STORE_NAME_MAX + 1];
    size_t count;
};

/* Those that begin so, with at least a whole "dir/". ret is empty before. */
int mark_names(struct store *store, const char *beginning, struct mark_names *ret, struct err *err);

struct mark_list {
    uint8_t (*ids)[ID_LEN]; /* ascending */
    size_t count, capacity;
};

void mark_list_release(struct mark_list *list);
#define free_mark_list __attribute__((cleanup(mark_list_release)))

/* ret is empty before. */
int mark_list(struct store *store, enum mark mark, struct mark_list *ret, struct err *err);
bool mark_list_has(const struct mark_list *list, const uint8_t id[ID_LEN]);

#endif
