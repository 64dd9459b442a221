/* What is locked stays (FORMAT.md §14), whoever withdrew it: until its date the objects are there,
 * and so everything that decides about others treats it as a snapshot that counts. The store's word
 * on the record decides, not the record's: nothing above the record of a plain repository proves
 * it. Only to keep a snapshot the record's word is enough.
 *
 * What a snapshot needs was locked for as long as itself when it was taken. It is looked at again
 * here, because somebody may have put an object anew, without a lock: bytes are bytes. */
#include "agent/expire.h"

#include <inttypes.h>
#include <stdio.h>

#include "agent/lock.h"
#include "agent/log.h"
#include "agent/repository_access.h"
#include "agent/text.h"

enum { CLOCKS_DIFFER_S = 3600 };

int expire_lock_prepare(struct expire *expire, struct err *err)
{
    int rc = store_prepare_removes(expire->store, err);
    if (rc != -ERR_AUTH && rc != -ERR_STORE)
        return rc;
    if (repository_lock_s(expire->conf) > 0)
        return err_hint(err, "the key needs s3:GetBucketVersioning");
    log_warn("it is not known whether the bucket keeps versions: none are removed err=\"%s\"",
             err->text);
    err_clear(err);
    return 0;
}

/* --- snapshots -------------------------------------------------------------------------------- */

int expire_lock_ask(const struct expire *expire, struct expire_item *item, struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    struct store_lock lock = {.until_s = 0};
    repo_record_name(name, item->name.cluster, item->name.node, item->name.id);
    int rc = store_read_lock(expire->store, name, &lock, err);
    if (rc == -ERR_MISSING) { /* another expire has just removed it */
        err_clear(err);
        return 0;
    }
    if (rc < 0)
        return rc;
    item->locked_until_s = lock.until_s > expire->now_s ? lock.until_s : 0;
    item->held = lock.held;
    return 0;
}

int expire_lock_unseen(struct expire *expire, struct expire_item *item, struct err *err)
{
    if (expire->locking == EXPIRE_LOCKING_UNASKED) {
        int rc = store_check_lock(expire->store, err);
        if (rc < 0 && rc != -ERR_CONFIG && rc != -ERR_AUTH)
            return rc;
        expire->locking = rc == -ERR_CONFIG ? EXPIRE_LOCKS_NOT : EXPIRE_LOCKS; /* or may */
        err_clear(err);
    }
    item->unseen = expire->locking == EXPIRE_LOCKS;
    return 0;
}

int expire_lock_revive(struct expire *expire, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < expire->count; i++) {
        struct expire_item *item = &expire->items[i];
        if (!item->has_record || !item->dead)
            continue;
        rc = expire_lock_ask(expire, item, err);
        item->dead = item->locked_until_s == 0 && !item->held;
    }
    return rc;
}

static int refuse(const struct expire_item *item, struct err *err)
{
    char date[TEXT_TIME_LEN], id[ID_TEXT_LEN];
    id_to_text(item->name.id, id);
    const char *name = item->known ? item->tag : id;
    if (item->held) {
        (void)err_set(err, ERR_REFUSED, "snapshot '%s' is under a legal hold", name);
        return err_hint(err, "it stays until somebody takes the hold off its record");
    }
    if (item->unseen) {
        (void)err_set(err, ERR_REFUSED,
                      "snapshot '%s' is locked by its record, and the store shows no lock", name);
        return err_hint(err,
                        "does the key have s3:GetObjectRetention? `tidemark show %s` says until "
                        "when the snapshot stays; in a repository that was copied here `tidemark "
                        "expire --confirm %s` withdraws it",
                        name, id);
    }
    text_time(item->locked_until_s, date);
    (void)err_set(err, ERR_REFUSED, "snapshot '%s' is locked until %s", name, date);
    return err_hint(err, "nobody can remove it before; without a name `tidemark expire` leaves it "
                         "until then");
}

static bool is_kept(const struct expire_item *item)
{
    return item->locked_until_s > 0 || item->held || (item->unseen && !item->by_id);
}

/* One whose record claims a lock was asked about when that was read. */
int expire_lock_keep(struct expire *expire, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < expire->count; i++) {
        struct expire_item *item = &expire->items[i];
        if (!item->has_record || !item->goes)
            continue;
        if (!is_kept(item))
            rc = expire_lock_ask(expire, item, err);
        if (rc < 0 || !is_kept(item))
            continue;
        item->goes = false;
        item->why = item->held ? "legal hold" : item->unseen ? "locked, it says" : "locked";
        if (expire->wanted)
            rc = refuse(item, err);
    }
    return rc;
}

/* --- extending -------------------------------------------------------------------------------- */

/* The lock that is put cannot be taken back: whatever a date comes from, none is further away than
 * that of a snapshot which begins now, on a host whose clock is somewhat ahead. */
static int64_t limited(const struct expire *expire, int64_t until_s)
{
    int64_t latest_s = expire->now_s + (int64_t)repository_lock_s(expire->conf) + CLOCKS_DIFFER_S;
    return until_s < latest_s ? until_s : latest_s;
}

/* An object has the lock of the snapshot that wrote it, at least. */
static bool is_locked(const struct expire *expire, const struct expire_ref *ref, int64_t until_s)
{
    const struct expire_item *writer = expire_find(expire, ref->snapshot);
    return until_s <= expire->now_s ||
           (writer && writer->known && writer->locked_until_s >= until_s);
}

int expire_lock_extend(struct expire *expire, const struct expire_reach *reach, struct err *err)
{
    free_lock_list struct lock_list list = {.items = NULL};
    char name[STORE_NAME_MAX + 1];
    int rc = 0;
    if (repository_lock_s(expire->conf) == 0 || expire->dry_run)
        return 0;
    for (size_t i = 0; rc == 0 && i < reach->count; i++) {
        const struct expire_ref *ref = &reach->refs[i];
        int64_t until_s = limited(expire, ref->until_s);
        if (is_locked(expire, ref, until_s))
            continue;
        if (ref->kind == EXPIRE_PACK)
            repo_pack_name(name, ref->volume, ref->snapshot, ref->number);
        else
            repo_table_name(name, ref->volume, ref->snapshot, ref->number);
        /* One that is missing is for `check` and `verify` to tell. */
        rc = lock_list_add(&list, name, until_s, true, err);
    }
    return rc < 0 ? rc
                  : lock_extend_all(expire->store, &list, &expire->job->progress.cancel,
                                    &expire->locks_extended, err);
}

/* --- removing --------------------------------------------------------------------------------- */

struct removing {
    struct expire *expire;
    struct expire_names *names;
    size_t from;
};

/* "<kind>/<volume>/<snapshot>…", or "snapshot/<cluster>/<node>/<snapshot>.json": its mark stays as
 * long as something of it does. */
static void note_left(struct expire *expire, const char *name)
{
    const char *slash = strchr(name, '/');
    const char *at = strncmp(name, "snapshot/", strlen("snapshot/")) == 0 ? strrchr(name, '/')
                     : slash                                              ? strchr(slash + 1, '/')
                                                                          : NULL;
    char text[ID_TEXT_LEN];
    uint8_t id[ID_LEN];
    if (!at)
        return;
    (void)snprintf(text, sizeof(text), "%s", at + 1);
    struct expire_item *item = id_from_text(text, id) ? expire_find(expire, id) : NULL;
    if (item)
        item->left++;
}

static int note_locked(void *ctx, const char *name, int64_t until_s, struct err *err)
{
    struct removing *removing = ctx;
    struct expire_names *names = removing->names;
    size_t i = removing->from;
    char date[TEXT_TIME_LEN];
    (void)err;
    text_time(until_s, date);
    log_info("object=%s stays, it is %s %s", name,
             until_s == STORE_LOCK_HELD ? "under a" : "locked until",
             until_s == STORE_LOCK_HELD ? "legal hold" : date);
    removing->expire->locked_objects++;
    note_left(removing->expire, name);
    while (i < names->count && strcmp(names->names[i], name) != 0)
        i++;
    if (i == names->count)
        return 0;
    char *own = names->names[i];
    names->bytes -= names->sizes[i];
    names->count--;
    memmove(&names->names[i], &names->names[i + 1], (names->count - i) * sizeof(*names->names));
    memmove(&names->sizes[i], &names->sizes[i + 1], (names->count - i) * sizeof(*names->sizes));
    free(own);
    return 0;
}

int expire_lock_remove(struct expire *expire, struct expire_names *names, size_t from, size_t count,
                       struct err *err)
{
    struct removing removing = {.expire = expire, .names = names, .from = from};
    return store_remove_versions(expire->store, (const char *const *)names->names + from, count,
                                 note_locked, &removing, err);
}
