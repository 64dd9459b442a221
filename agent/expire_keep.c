/* Which snapshots stay: any rule is enough. Asked for by name, these and no other go. */
#include "agent/expire.h"

#include <stdio.h>

enum { DAY_S = 24 * 3600 };

static struct record_age age_of(const struct expire_item *item)
{
    return (struct record_age){item->captured_s, item->timeline, item->tag_lsn, item->committed_s};
}

int expire_compare_age(const struct expire_item *left, const struct expire_item *right)
{
    struct record_age left_age = age_of(left), right_age = age_of(right);
    int order = record_age_compare(&left_age, &right_age);
    return order ? order : memcmp(left->name.id, right->name.id, ID_LEN);
}

/* Newest first, each node's together; what retention decides about at the front. */
static int compare_nodes(const void *a, const void *b)
{
    const struct expire_item *left = *(struct expire_item *const *)a;
    const struct expire_item *right = *(struct expire_item *const *)b;
    int order = strcmp(left->name.node, right->name.node);
    return order ? order : expire_compare_age(right, left);
}

/* rank: 0 = the newest of its node. */
static const char *reason_to_keep(const struct expire *expire, const struct expire_item *item,
                                  size_t rank)
{
    const struct conf *conf = expire->conf;
    if (rank == 0)
        return "newest of its node";
    if (item->pinned)
        return "pinned";
    if (conf->retention_count == 0 && conf->retention_days == 0)
        return "no [retention] is configured";
    if (rank < conf->retention_count)
        return "count";
    if (conf->retention_days > 0 &&
        expire->now_s - item->captured_s < (int64_t)conf->retention_days * DAY_S)
        return "days";
    return NULL;
}

static bool is_candidate(const struct expire_item *item)
{
    return item->known && !item->withdrawn;
}

/* captured_s is by the database host's clock. One that was ahead must not make a snapshot the
 * newest until its time has come, and so the others too many. */
static void apply_retention(struct expire *expire, struct expire_item **sorted, size_t count)
{
    size_t rank = 0;
    for (size_t i = 0; i < count; i++) {
        struct expire_item *item = sorted[i];
        bool early = item->captured_s > expire->now_s;
        if (i > 0 && strcmp(sorted[i - 1]->name.node, item->name.node) != 0)
            rank = 0;
        item->is_newest = rank == 0 && !early;
        item->why = expire->wanted ? "not asked for"
                    : early        ? "captured after now, so a clock was wrong"
                                   : reason_to_keep(expire, item, rank);
        rank += !early;
        item->goes = !item->why;
        if (item->goes)
            item->why = "no rule keeps it";
    }
}

/* --- by name ---------------------------------------------------------------------------------- */

static struct expire_item *find_record(const struct expire *expire, const char *what,
                                       struct err *err)
{
    const struct conf *conf = expire->conf;
    struct expire_item *found = NULL;
    struct record *record = calloc(1, sizeof(*record));
    if (!record) {
        (void)err_set(err, ERR_INTERNAL, "out of memory for a snapshot record");
        return NULL;
    }
    int rc = catalog_find(expire->store, &expire->repo, conf->cluster, conf->node, what, record,
                          NULL, err);
    if (rc == -ERR_MISSING)
        rc = catalog_find(expire->store, &expire->repo, conf->cluster, NULL, what, record, NULL,
                          err);
    if (rc == 0) {
        found = expire_find(expire, record->id);
        record_release(record);
        if (!found)
            (void)err_set(err, ERR_MISSING, "snapshot '%.64s' was just committed", what);
    }
    free(record);
    return found;
}

/* NULL: err. A damaged record, or mark, is found by its id only; nobody else can name it. */
static struct expire_item *find_named(const struct expire *expire, const char *what,
                                      struct err *err)
{
    uint8_t id[ID_LEN];
    struct expire_item *item = id_from_text(what, id) ? expire_find(expire, id) : NULL;
    if (item && item->unreadable)
        return item;
    if (item && item->has_record && !item->withdrawn &&
        strcmp(item->name.cluster, expire->conf->cluster) == 0)
        return item;
    return find_record(expire, what, err);
}

static int choose_named(struct expire *expire, struct err *err)
{
    for (size_t i = 0; i < json_array_size(expire->wanted); i++) {
        const char *what = json_string_value(json_array_get(expire->wanted, i));
        struct expire_item *item = find_named(expire, what ? what : "", err);
        if (!item)
            return -(int)err->code;
        if (item->pinned) {
            (void)err_set(err, ERR_REFUSED, "snapshot '%.64s' is pinned", what);
            return err_hint(err, "`tidemark unpin %.64s` first", what);
        }
        uint8_t id[ID_LEN];
        item->by_id = id_from_text(what, id);
        item->goes = true;
        item->why = "asked for";
    }
    return 0;
}

/* --- all -------------------------------------------------------------------------------------- */

static void explain_others(struct expire *expire)
{
    for (size_t i = 0; i < expire->count; i++) {
        struct expire_item *item = &expire->items[i];
        if (item->dead)
            item->why = "withdrawn, the grace is over";
        else if (item->returns)
            item->why = "pinned when it was withdrawn: it returns";
        else if (item->unreadable)
            item->why = "its mark cannot be read: hidden, but it stays";
        else if (item->withdrawn && item->read)
            item->why = "withdrawn, but a job reads it";
        else if (item->withdrawn && item->held)
            item->why = "withdrawn, but under a legal hold";
        else if (item->withdrawn && item->locked_until_s > 0)
            item->why = "withdrawn, but locked";
        else if (item->withdrawn)
            item->why = "withdrawn, within its grace";
        else if (!item->known)
            item->why = "damaged: only its id removes it";
    }
}

int expire_choose(struct expire *expire, struct err *err)
{
    struct expire_item **sorted = malloc((expire->count + 1) * sizeof(void *));
    size_t count = 0;
    if (!sorted)
        return err_set(err, ERR_INTERNAL, "out of memory for the list of snapshots");
    for (size_t i = 0; i < expire->count; i++)
        if (is_candidate(&expire->items[i]))
            sorted[count++] = &expire->items[i];
    qsort(sorted, count, sizeof(void *), compare_nodes);
    apply_retention(expire, sorted, count);
    free(sorted);
    explain_others(expire);
    return expire->wanted ? choose_named(expire, err) : 0;
}
