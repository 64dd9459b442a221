/* Option lock_days: can the bucket lock, and does somebody hide what is locked? Behind a delete
 * marker or another object, or, a snapshot, by a mark withdrawn/<id>: who deletes by our rules
 * withdraws nothing while the store has its record locked (expire_lock.c), so such a mark is
 * somebody else's, whether it can be read or not. Only a snapshot that withdrew itself because WAL
 * was removed under it (FORMAT.md §8) leaves one, too, and no key tells the two apart in a plain
 * repository: its job ended with 17. */
#include <stdio.h>

#include "agent/catalog_names.h"
#include "agent/check.h"
#include "agent/lock.h"
#include "agent/mark.h"
#include "agent/repository_access.h"
#include "io/store_lock.h"

struct hidden {
    struct store *store;
    size_t removed, replaced;
    char first[160];
    struct lock_list twice; /* may have been pushed twice */
    size_t withdrawn;
    char mark[96]; /* the first, and what it says */
};

static void count(struct hidden *hidden, const char *object, bool removed)
{
    if (hidden->removed + hidden->replaced == 0)
        (void)snprintf(hidden->first, sizeof(hidden->first), "%.150s", object);
    hidden->removed += removed;
    hidden->replaced += !removed;
}

static int note_hidden(void *ctx, const struct store_hidden *found, struct err *err)
{
    struct hidden *hidden = ctx;
    if (strncmp(found->name, "key/", 4) == 0) /* a change of the key file removes the older ones */
        return 0;
    if (lock_may_be_twice(hidden->store, found))
        return lock_list_add(&hidden->twice, found->name, 0, false, err);
    count(hidden, found->name, found->removed);
    return 0;
}

static int look_at_twice(const struct check *check, struct hidden *hidden, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < hidden->twice.count; i++) {
        rc = lock_check_twice(check->store, &check->repo, hidden->twice.items[i].name, err);
        if (rc == -ERR_CORRUPT) {
            count(hidden, hidden->twice.items[i].name, false);
            rc = 0;
        }
    }
    return rc;
}

/* --- by a mark -------------------------------------------------------------------------------- */

static int note_mark(struct check *check, const uint8_t id[ID_LEN], struct hidden *hidden,
                     struct err *err)
{
    char text[ID_TEXT_LEN];
    const char *why = NULL;
    if (hidden->withdrawn > 0) {
        hidden->withdrawn++;
        return 0;
    }
    int rc = mark_read(check->store, &check->repo, MARK_WITHDRAWN, id, &why, err);
    if (rc == -ERR_MISSING) /* it was removed meanwhile */
        return 0;
    if (rc < 0 && rc != -ERR_CORRUPT && rc != -ERR_REFUSED && rc != -ERR_AUTH)
        return rc;
    hidden->withdrawn = 1;
    id_to_text(id, text);
    if (rc == 0)
        (void)snprintf(hidden->mark, sizeof(hidden->mark), "'withdrawn/%s', which says '%s'", text,
                       why);
    else
        (void)snprintf(hidden->mark, sizeof(hidden->mark), "'withdrawn/%s', which cannot be read",
                       text);
    return 0;
}

static int look_at_record(struct check *check, const struct catalog_name *name, int64_t now_s,
                          struct hidden *hidden, struct err *err)
{
    char object[STORE_NAME_MAX + 1];
    struct store_lock lock;
    repo_record_name(object, name->cluster, name->node, name->id);
    int rc = store_read_lock(check->store, object, &lock, err);
    if (rc == 0 && lock.until_s > now_s)
        rc = note_mark(check, name->id, hidden, err);
    return rc == -ERR_MISSING ? 0 : rc;
}

/* Of every cluster: they share the bucket. A request for each mark that has a record: those of the
 * last grace, mostly. */
static int look_at_marks(struct check *check, struct hidden *hidden, struct err *err)
{
    free_mark_list struct mark_list marks = {0};
    free_catalog_names struct catalog_names names = {0};
    int64_t now_ms = 0;
    int rc = mark_list(check->store, MARK_WITHDRAWN, &marks, err);
    if (rc == 0 && marks.count > 0)
        rc = catalog_names_all(check->store, &names, err);
    if (rc == 0 && names.count > 0)
        rc = store_clock(check->store, &now_ms, err);
    for (size_t i = 0; rc == 0 && i < names.count; i++)
        if (mark_list_has(&marks, names.items[i].id))
            rc = look_at_record(check, &names.items[i], now_ms / 1000, hidden, err);
    return rc;
}

/* --- the row ---------------------------------------------------------------------------------- */

static int tell_withdrawn(const struct hidden *hidden, struct err *err)
{
    (void)err_set(err, ERR_CORRUPT,
                  "%zu locked snapshot%s withdrawn, which expire never does: the first mark is %s",
                  hidden->withdrawn, hidden->withdrawn == 1 ? " is" : "s are", hidden->mark);
    return err_hint(err, "unless that snapshot's own job ended with 17: find out whose key that "
                         "was; then remove that mark, README says how");
}

static int tell_hidden(const struct hidden *hidden, struct err *err)
{
    char more[sizeof(hidden->mark) + 64] = "";
    if (hidden->removed + hidden->replaced == 0)
        return tell_withdrawn(hidden, err);
    if (hidden->withdrawn > 0)
        (void)snprintf(more, sizeof(more), "; locked snapshots are withdrawn, too (%zu): %s",
                       hidden->withdrawn, hidden->mark);
    (void)err_set(err, ERR_CORRUPT,
                  "somebody removed %zu objects and replaced %zu in the bucket, which still has "
                  "them as older versions: the first is '%s'%s",
                  hidden->removed, hidden->replaced, hidden->first, more);
    return err_hint(err,
                    "find out whose key that was; then remove the delete markers and the newer "
                    "versions by their version ids, README says how");
}

int check_object_lock(struct check *check, struct err *err)
{
    const struct conf *conf = check->conf;
    struct hidden hidden = {.store = check->store};
    if (!check->store || conf->repository_lock_days == 0)
        return CHECK_NONE;
    int rc = store_check_lock(check->store, err);
    if (rc == 0)
        rc = store_list_hidden(check->store, "", note_hidden, &hidden, err);
    if (rc == 0)
        rc = look_at_twice(check, &hidden, err);
    lock_list_release(&hidden.twice);
    if (rc == 0)
        rc = look_at_marks(check, &hidden, err);
    if (rc == 0 && hidden.removed + hidden.replaced + hidden.withdrawn > 0)
        rc = tell_hidden(&hidden, err);
    (void)snprintf(check->detail, sizeof(check->detail),
                   "%u days, %s; nothing that was locked is hidden", conf->repository_lock_days,
                   conf->repository_lock_mode == LOCK_GOVERNANCE ? "governance" : "compliance");
    return rc;
}
