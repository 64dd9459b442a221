/* Object lock (option lock_days): until when a snapshot is locked, and the lock of what it needs of
 * earlier ones, see FORMAT.md §14. One thread; extending uses more. */
#ifndef TIDEMARK_AGENT_LOCK_H
#define TIDEMARK_AGENT_LOCK_H

#include "agent/conf.h"
#include "io/repo.h"
#include "io/store_lock.h"

/* Objects that have to be locked until a date. */
struct lock_wish {
    char *name;
    int64_t until_s;
    bool optional; /* may be missing */
};
struct lock_list {
    struct lock_wish *items;
    size_t count, capacity;
};
int lock_list_add(struct lock_list *list, const char *name, int64_t until_s, bool optional,
                  struct err *err);
void lock_list_release(struct lock_list *list);
#define free_lock_list __attribute__((cleanup(lock_list_release)))

/* The store lists an object as replaced: can it be WAL that was pushed twice at the same moment? In
 * buckets with versions Ceph ignores the condition of a PUT, and two sealings of a file differ. */
bool lock_may_be_twice(const struct store *store, const struct store_hidden *hidden);
/* It is: what is on top can be opened, and only who has the key file makes that. Reads it whole.
 * ERR_CORRUPT: somebody replaced it. */
int lock_check_twice(struct store *store, const struct repo *repo, const char *object,
                     struct err *err);

/* None of them is hidden: the lock would be put on what hides it. Sorts them. ERR_CORRUPT,
 * ERR_MISSING: the first that is, replaced or removed. */
int lock_check_hidden(struct store *store, const struct repo *repo, struct lock_list *list,
                      struct err *err);

/* All of them are locked until then afterwards, or later; *ret_extended: so many were not so.
 * ERR_MISSING names one that is not there, or is hidden. cancel as in struct store_options. */
int lock_extend_all(struct store *store, const struct lock_list *list, const _Atomic bool *cancel,
                    uint64_t *ret_extended, struct err *err);

#endif
