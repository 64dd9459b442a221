/* Option lock_days: can the bucket lock, and does somebody hide what is locked? */
#include <stdio.h>

#include "agent/check.h"
#include "agent/repository_access.h"
#include "io/store_lock.h"

struct hidden {
    size_t removed, replaced;
    char first[160];
};

static int note_hidden(void *ctx, const struct store_hidden *found, struct err *err)
{
    struct hidden *hidden = ctx;
    (void)err;
    if (strncmp(found->name, "key/", 4) == 0) /* a change of the key file removes the older ones */
        return 0;
    if (hidden->removed + hidden->replaced == 0)
        (void)snprintf(hidden->first, sizeof(hidden->first), "%.150s", found->name);
    hidden->removed += found->removed;
    hidden->replaced += !found->removed;
    return 0;
}

static int tell_hidden(const struct hidden *hidden, struct err *err)
{
    (void)err_set(err, ERR_CORRUPT,
                  "somebody removed %zu objects and replaced %zu in the bucket, which still has "
                  "them as older versions: the first is '%s'",
                  hidden->removed, hidden->replaced, hidden->first);
    return err_hint(err,
                    "find out whose key that was; then remove the delete markers and the newer "
                    "versions by their version ids, README says how");
}

int check_object_lock(struct check *check, struct err *err)
{
    const struct conf *conf = check->conf;
    struct hidden hidden = {.removed = 0};
    if (!check->store || conf->repository_lock_days == 0)
        return CHECK_NONE;
    int rc = store_check_lock(check->store, err);
    if (rc == 0)
        rc = store_list_hidden(check->store, "", note_hidden, &hidden, err);
    if (rc == 0 && hidden.removed + hidden.replaced > 0)
        rc = tell_hidden(&hidden, err);
    (void)snprintf(check->detail, sizeof(check->detail),
                   "%u days, %s; nothing that was locked is hidden", conf->repository_lock_days,
                   conf->repository_lock_mode == LOCK_GOVERNANCE ? "governance" : "compliance");
    return rc;
}
