/* See history.h. */
#include "agent/history.h"

#include "agent/pg_names.h"

/* One timeline of a node's way and where it left it; where it is now, on the last. */
struct stretch {
    json_int_t timeline;
    uint64_t end;
    bool last;
};

static bool is_known(const json_t *node)
{
    return json_is_array(json_object_get(node, "history")) &&
           json_is_integer(json_object_get(node, "timeline"));
}

static struct stretch stretch_at(const json_t *node, size_t index)
{
    const json_t *history = json_object_get(node, "history");
    bool last = index >= json_array_size(history);
    const json_t *from = last ? node : json_array_get(history, index);
    struct stretch ret = {.timeline = json_integer_value(json_object_get(from, "timeline")),
                          .last = last};
    (void)pg_lsn_parse(json_str(from, "lsn"), &ret.end);
    return ret;
}

/* Of two stretches that differ: true unless one node is still on the part that they share. */
static bool differ(const struct stretch *a, const struct stretch *b)
{
    if (a->timeline != b->timeline || (!a->last && !b->last))
        return true;
    return a->last ? a->end > b->end : b->end > a->end;
}

bool history_have_parted(const json_t *one, const json_t *other)
{
    if (!is_known(one) || !is_known(other))
        return false;
    for (size_t i = 0;; i++) {
        struct stretch a = stretch_at(one, i), b = stretch_at(other, i);
        if (a.last && b.last)
            return a.timeline != b.timeline;
        if (a.last != b.last || a.timeline != b.timeline || a.end != b.end)
            return differ(&a, &b);
    }
}

bool history_has_fork(const json_t *node, const json_t *fork)
{
    json_int_t parent = json_integer_value(json_object_get(fork, "parent"));
    json_int_t timeline = json_integer_value(json_object_get(fork, "timeline"));
    uint64_t lsn;
    if (!is_known(node) || !pg_lsn_parse(json_str(fork, "lsn"), &lsn))
        return false;
    for (size_t i = 0;; i++) {
        struct stretch at = stretch_at(node, i);
        if (at.last)
            return false;
        if (at.timeline == parent && at.end == lsn)
            return stretch_at(node, i + 1).timeline == timeline;
    }
}

bool history_misses_fork(const json_t *node, const json_t *fork)
{
    json_int_t parent = json_integer_value(json_object_get(fork, "parent"));
    uint64_t lsn;
    if (!is_known(node) || !pg_lsn_parse(json_str(fork, "lsn"), &lsn) ||
        history_has_fork(node, fork))
        return false;
    struct stretch now = stretch_at(node, SIZE_MAX);
    return now.timeline != parent || now.end > lsn;
}
