/* push_rewrite(): which chunks an incremental stores again although they have not changed, so that
 * a volume stays as cheap to restore after years of incrementals as after a full snapshot.
 *
 * A restore fetches neighbouring regions together. What it fetches of a pack for such a group with
 * one request is a fragment; its price is the request, its chunks, and the dead bytes between them.
 * Chunks that are stored again end up side by side with what has changed in their group. So what
 * storing a fragment again gains is what its request could have carried besides, and what is dead
 * in it; the gain a byte decides, best first, while the budget lasts. Two rules come out of that:
 * the many small fragments that snapshots of few changes leave behind are merged, and again as they
 * grow; and packs that are dead in part are emptied, the worst first, so that they can expire.
 *
 * Why that is enough: when each snapshot changes the share c of the chunks and stores the share b
 * again, out of the oldest packs, then a pack is emptied when b / (b + c) of it is live. With
 * chance changes it takes ln((b + c) / b) / c snapshots until then, so all packs together hold (1 +
 * b / c) ln(1 + c / b) times what is live: 1.39 times for c = b, 1.65 for c = 2 b.
 *
 * Nothing is stored again that gains less than it costs, so a volume that nobody writes to is at
 * rest after a few snapshots: each byte of rewriting takes more than one off what a restore costs,
 * requests counted as bytes.
 *
 * Live is what the parent's manifest says. Older snapshots that share a pack keep it until they
 * expire; the packs of other volumes are others. */
#include <assert.h>
#include <inttypes.h>

#include "io/pull.h"
#include "io/push_lane.h"
#include "io/store_lane.h"

enum {
    GROUP_CHUNKS_MAX = LANE_TAKE_MAX * PUSH_REGION_CHUNKS_MAX,
    REQUEST_WEIGHT = 2, /* a request counts as so many times the bytes of the largest one */
    SLACK_SHARE = 8, /* a group that costs at most an eighth more than a fresh one is left alone */
    /* Gain a byte in eighths: steps of the histogram that finds where the budget ends. */
    GAIN_UNIT = 8,
    GAIN_MAX = 1024 * GAIN_UNIT,
    BUDGET_MIN = 8 << 20, /* a share of a small volume would be less than a request carries */
};

struct fragment {
    uint32_t first, count; /* in order[] */
    uint64_t live_len;     /* stored bytes of its chunks */
    uint64_t read_len;     /* bytes of the request */
    uint64_t gain;         /* bytes, without the request of the new fragment that it joins */
};

/* What is chosen or left together; a later one of a group gains less a byte. */
struct step {
    uint32_t fragment_end; /* fragments before this one belong to it or an earlier step */
    uint64_t cost;         /* bytes to be stored */
    uint32_t level;        /* gain a byte, in units of the histogram */
};

struct rewrite {
    struct push *push;
    const struct push_job *job;
    uint64_t *dead_share; /* by pack of the parent: dead bytes a live one, in 1/256; 0: half live */
    uint64_t get_len;     /* of the largest request; a full snapshot's are hardly smaller */
    uint32_t region_count;
    uint64_t budget;
    uint64_t *histogram; /* bytes, by level */
    uint32_t level;      /* steps above it are taken, */
    uint64_t left;       /* and of those at it this many bytes */
    /* of the group at hand */
    uint64_t table_len;
    uint64_t order[GROUP_CHUNKS_MAX]; /* chunks */
    uint32_t order_count;
    struct fragment fragments[GROUP_CHUNKS_MAX];
    uint32_t fragment_count;
    struct step steps[GROUP_CHUNKS_MAX];
    uint32_t step_count;
};

static const struct fmt_entry *entry_of(const struct rewrite *rewrite, uint32_t at)
{
    return &rewrite->push->parent->entries[rewrite->order[at]];
}

/* --- a group ---------------------------------------------------------------------------------- */

static int compare_place(const void *a, const void *b, void *ctx)
{
    const struct fmt_entry *entries = ctx;
    const struct fmt_entry *left = &entries[*(const uint64_t *)a];
    const struct fmt_entry *right = &entries[*(const uint64_t *)b];
    if (left->pack != right->pack)
        return left->pack < right->pack ? -1 : 1;
    return (left->offset > right->offset) - (left->offset < right->offset);
}

/* Chunks that will be read, and that the parent has with data. */
static void add_region(struct rewrite *rewrite, uint32_t region_index)
{
    const struct table *parent = rewrite->push->parent, *work = rewrite->push->work;
    struct push_cursor cursor;
    push_cursor_open(&cursor, rewrite->job, region_index);
    for (uint32_t i = 0; i < cursor.chunk_count; i++) {
        uint64_t chunk = cursor.chunk_first + i;
        if ((cursor.wanted[i / 64] >> (i % 64) & 1) && chunk < parent->chunk_count &&
            table_chunk_len(parent, chunk) == table_chunk_len(work, chunk) &&
            (fmt_entry_flags(&parent->entries[chunk]) & (FMT_ZERO | FMT_FREE)) == 0)
            rewrite->order[rewrite->order_count++] = chunk;
    }
    rewrite->table_len += fmt_region_len(cursor.chunk_count, 0);
}

static void order_chunks(struct rewrite *rewrite, uint32_t group)
{
    uint32_t first = group * LANE_TAKE_MAX;
    rewrite->order_count = 0;
    rewrite->table_len = 0;
    for (uint32_t i = 0; i < LANE_TAKE_MAX && first + i < rewrite->region_count; i++)
        add_region(rewrite, first + i);
    qsort_r(rewrite->order, rewrite->order_count, sizeof(rewrite->order[0]), compare_place,
            rewrite->push->parent->entries);
}

static bool joins(const struct rewrite *rewrite, const struct fragment *fragment, uint32_t at)
{
    const struct fmt_entry *first = entry_of(rewrite, fragment->first);
    const struct fmt_entry *entry = entry_of(rewrite, at);
    uint64_t end = first->offset + fragment->read_len;
    return entry->pack == first->pack && entry->offset <= end + PULL_GET_GAP_MAX &&
           (uint64_t)entry->offset + fmt_entry_len(entry) - first->offset <= rewrite->get_len;
}

/* The requests of pull_plan_range(). */
static void find_fragments(struct rewrite *rewrite)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < rewrite->order_count; i++) {
        const struct fmt_entry *entry = entry_of(rewrite, i);
        if (count == 0 || !joins(rewrite, &rewrite->fragments[count - 1], i))
            rewrite->fragments[count++] = (struct fragment){.first = i};
        struct fragment *fragment = &rewrite->fragments[count - 1];
        uint64_t start = entry_of(rewrite, fragment->first)->offset;
        fragment->read_len =
            max_u64(fragment->read_len, entry->offset + fmt_entry_len(entry) - start);
        fragment->live_len += fmt_entry_len(entry);
        fragment->count++;
    }
    rewrite->fragment_count = count;
}

/* More gain a byte first. */
static int compare_gain(const void *a, const void *b)
{
    const struct fragment *left = a, *right = b;
    uint64_t x = left->gain * right->live_len, y = right->gain * left->live_len;
    if (x != y)
        return x > y ? -1 : 1;
    return (left->first > right->first) - (left->first < right->first);
}

/* Best fragments first. False: the group is as good as fresh. */
static bool order_fragments(struct rewrite *rewrite)
{
    uint64_t cost = 0, live_len = 0;
    bool half_live = true;
    for (uint32_t i = 0; i < rewrite->fragment_count; i++) {
        struct fragment *fragment = &rewrite->fragments[i];
        uint64_t share = rewrite->dead_share[entry_of(rewrite, fragment->first)->pack];
        uint64_t waste = fragment->read_len - min_u64(fragment->read_len, fragment->live_len);
        uint64_t unused = rewrite->get_len - min_u64(rewrite->get_len, fragment->live_len);
        fragment->gain = REQUEST_WEIGHT * unused + max_u64(waste, fragment->live_len * share / 256);
        cost += REQUEST_WEIGHT * rewrite->get_len + fragment->read_len;
        live_len += fragment->live_len;
        half_live &= share == 0;
    }
    uint64_t fresh =
        div_round_up(live_len, rewrite->get_len) * REQUEST_WEIGHT * rewrite->get_len + live_len;
    if (rewrite->fragment_count == 0 || (half_live && cost <= fresh + fresh / SLACK_SHARE))
        return false;
    qsort(rewrite->fragments, rewrite->fragment_count, sizeof(rewrite->fragments[0]), compare_gain);
    return true;
}

static void add_step(struct rewrite *rewrite, uint32_t fragment_end, uint64_t gain, uint64_t cost)
{
    uint64_t level = min_u64(gain * GAIN_UNIT / cost, GAIN_MAX - 1);
    if (rewrite->step_count > 0) /* it needs the one before, which the budget may have cut short */
        level = min_u64(level, rewrite->steps[rewrite->step_count - 1].level);
    rewrite->steps[rewrite->step_count++] =
        (struct step){.fragment_end = fragment_end, .cost = cost, .level = (uint32_t)level};
}

/* The first step has what gains most a byte together: one request of its own and the group's tables
 * are its price. Each fragment behind it joins for nothing but its bytes. */
static void find_steps(struct rewrite *rewrite, uint32_t group)
{
    rewrite->step_count = 0;
    order_chunks(rewrite, group);
    find_fragments(rewrite);
    if (!order_fragments(rewrite))
        return;
    const struct fragment *fragments = rewrite->fragments;
    uint64_t gain = 0, cost = rewrite->table_len, best_gain = 0, best_cost = 1;
    double best = 0; /* gain a byte: its products might overflow */
    uint32_t end = 0;
    for (uint32_t i = 0; i < rewrite->fragment_count; i++) {
        gain += fragments[i].gain;
        cost += fragments[i].live_len;
        uint64_t left = gain - min_u64(gain, REQUEST_WEIGHT * rewrite->get_len);
        double per_byte = (double)left / (double)cost;
        if (per_byte >= 1 && cost <= rewrite->budget && per_byte > best) {
            best = per_byte;
            best_gain = left;
            best_cost = cost;
            end = i + 1;
        }
    }
    if (end == 0)
        return;
    add_step(rewrite, end, best_gain, best_cost);
    for (; end < rewrite->fragment_count && fragments[end].gain >= fragments[end].live_len; end++)
        add_step(rewrite, end + 1, fragments[end].gain, fragments[end].live_len);
}

/* --- all groups ------------------------------------------------------------------------------- */

static void count_group(struct rewrite *rewrite, uint32_t group)
{
    find_steps(rewrite, group);
    for (uint32_t i = 0; i < rewrite->step_count; i++)
        rewrite->histogram[rewrite->steps[i].level] += rewrite->steps[i].cost;
}

static void mark_group(struct rewrite *rewrite, uint32_t group)
{
    find_steps(rewrite, group);
    uint32_t taken = 0;
    for (uint32_t i = 0; i < rewrite->step_count; i++) {
        const struct step *step = &rewrite->steps[i];
        if (step->level < rewrite->level ||
            (step->level == rewrite->level && step->cost > rewrite->left))
            break;
        if (step->level == rewrite->level)
            rewrite->left -= step->cost;
        taken = step->fragment_end;
    }
    for (uint32_t i = 0; i < taken; i++) {
        const struct fragment *fragment = &rewrite->fragments[i];
        for (uint32_t k = 0; k < fragment->count; k++) {
            uint64_t chunk = rewrite->order[fragment->first + k];
            rewrite->push->rewrite[chunk / 64] |= (uint64_t)1 << (chunk % 64);
        }
    }
}

/* The lowest level of which the budget still takes some. */
static void set_level(struct rewrite *rewrite)
{
    uint32_t level = GAIN_MAX;
    rewrite->left = rewrite->budget;
    while (level > GAIN_UNIT && rewrite->histogram[level - 1] <= rewrite->left)
        rewrite->left -= rewrite->histogram[--level];
    rewrite->level = level > GAIN_UNIT ? level - 1 : GAIN_UNIT;
    if (level == GAIN_UNIT)
        rewrite->left += rewrite->histogram[GAIN_UNIT];
}

/* Of packs that are less than half live. */
static void measure_packs(struct rewrite *rewrite, const struct fmt_manifest *manifest)
{
    const struct table *parent = rewrite->push->parent;
    for (uint32_t i = 0; i < parent->pack_count; i++) {
        const struct fmt_manifest_pack *pack = push_manifest_pack(manifest, &parent->packs[i]);
        if (pack != NULL && pack->live_len > 0 && pack->live_len < pack->stored_len / 2)
            rewrite->dead_share[i] = (pack->stored_len - pack->live_len) * 256 / pack->live_len;
    }
}

static uint64_t live_bytes(const struct fmt_manifest *manifest)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < manifest->pack_count; i++)
        bytes += manifest->packs[i].live_len;
    return bytes;
}

static void choose(struct rewrite *rewrite, const struct fmt_manifest *manifest)
{
    uint32_t group_count = (uint32_t)div_round_up(rewrite->region_count, LANE_TAKE_MAX);
    measure_packs(rewrite, manifest);
    for (uint32_t i = 0; i < group_count; i++)
        count_group(rewrite, i);
    set_level(rewrite);
    for (uint32_t i = 0; i < group_count; i++)
        mark_group(rewrite, i);
}

int push_rewrite(struct push *push, const struct extent_list *used,
                 const struct fmt_manifest *parent_manifest, unsigned budget_percent,
                 struct err *err)
{
    assert(push->parent != NULL && push->rewrite == NULL);
    assert(push->parent->chunk_size == push->work->chunk_size);
    if (budget_percent == 0)
        return 0;
    uint64_t budget = max_u64(BUDGET_MIN, live_bytes(parent_manifest) / 100 * budget_percent);
    struct store_lane_shape shape;
    store_lane_shape(push->store, &shape);
    struct push_job job = {.push = push, .used = used->items, .used_count = used->count};
    free_mem struct rewrite *rewrite = calloc(1, sizeof(*rewrite));
    free_mem uint64_t *histogram = calloc(GAIN_MAX, sizeof(*histogram));
    free_mem uint64_t *dead_share =
        calloc(max_u64(push->parent->pack_count, 1), sizeof(*dead_share));
    push->rewrite = calloc(div_round_up(push->work->chunk_count, 64), sizeof(*push->rewrite));
    if (!rewrite || !histogram || !dead_share || !push->rewrite)
        return err_set(err, ERR_INTERNAL, "out of memory for what is to be stored again");
    rewrite->push = push;
    rewrite->job = &job;
    rewrite->get_len = shape.get_len;
    rewrite->budget = budget;
    rewrite->region_count = (uint32_t)div_round_up(push->work->size, push->work->region_size);
    rewrite->histogram = histogram;
    rewrite->dead_share = dead_share;
    choose(rewrite, parent_manifest);
    return 0;
}
