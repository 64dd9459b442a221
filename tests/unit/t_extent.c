/* Extent lists against a bitmap as the plain model. */
#include "io/extent.h"

#include <inttypes.h>

#include "tests/tap.h"

enum { SPACE = 96 };
static struct err err;

static void add(struct extent_list *list, uint64_t offset, uint64_t len)
{
    if (extent_list_add(list, offset, len, &err) < 0)
        abort();
}

static bool is_normal(const struct extent_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i].len == 0)
            return false;
        if (i > 0 && list->items[i - 1].offset + list->items[i - 1].len >= list->items[i].offset)
            return false;
    }
    return true;
}

static void paint(const struct extent_list *list, bool map[SPACE])
{
    memset(map, 0, SPACE);
    for (size_t i = 0; i < list->count; i++)
        for (uint64_t at = 0; at < list->items[i].len; at++)
            map[list->items[i].offset + at] = true;
}

static void random_list(struct extent_list *list, bool map[SPACE], uint64_t *seed)
{
    memset(map, 0, SPACE);
    for (int i = 0; i < 6; i++) {
        *seed = *seed * 6364136223846793005u + 1442695040888963407u;
        uint64_t offset = (*seed >> 33) % SPACE, len = (*seed >> 50) % 20;
        len = min_u64(len, SPACE - offset);
        add(list, offset, len);
        for (uint64_t at = 0; at < len; at++)
            map[offset + at] = true;
    }
    extent_list_normalise(list);
}

/* One random case; returns the name of what was wrong, or NULL. */
static const char *one_case(uint64_t seed)
{
    struct extent_list a = {0}, b = {0}, minus = {0}, inverse = {0};
    bool a_map[SPACE], b_map[SPACE], got[SPACE], inverse_map[SPACE];
    const char *fault = NULL;
    random_list(&a, a_map, &seed);
    random_list(&b, b_map, &seed);
    paint(&a, got);
    if (memcmp(got, a_map, SPACE) != 0 || !is_normal(&a))
        fault = "normalise";
    (void)extent_list_subtract(&a, &b, &minus, &err);
    (void)extent_list_invert(&a, SPACE, &inverse, &err);
    paint(&minus, got);
    paint(&inverse, inverse_map);
    uint64_t bytes = 0;
    for (size_t i = 0; i < SPACE; i++) {
        bytes += a_map[i];
        if (got[i] != (a_map[i] && !b_map[i]) || !is_normal(&minus))
            fault = "subtract";
        if (inverse_map[i] == a_map[i] || !is_normal(&inverse))
            fault = "invert";
        for (size_t len = 0; len < SPACE - i; len += 3) {
            bool any = memchr(a_map + i, true, len) != NULL;
            if (extent_list_overlaps(&a, i, len) != any)
                fault = "overlaps";
        }
    }
    if (bytes != extent_list_bytes(&a))
        fault = "bytes";
    extent_list_release(&a);
    extent_list_release(&b);
    extent_list_release(&minus);
    extent_list_release(&inverse);
    return fault;
}

static void test_limits(void)
{
    struct extent_list list = {0}, none = {0}, ret = {0};
    is_err(extent_list_add(&list, UINT64_MAX, 2, &err), &err, ERR_INTERNAL, "longer",
           "a range past 2^64 is refused");
    add(&list, UINT64_MAX - 1, 1);
    extent_list_normalise(&list);
    is_u64(list.count, 1, "the last byte is fine");
    ok(extent_list_overlaps(&list, 0, UINT64_MAX), "everything overlaps it");
    ok(!extent_list_overlaps(&list, 0, UINT64_MAX - 1), "but for its own byte");
    extent_list_normalise(&none);
    is_good(extent_list_invert(&none, 0, &ret, &err), &err, "inverse of nothing in no space");
    is_u64(ret.count, 0, "is empty");
    is_good(extent_list_invert(&none, 5, &ret, &err), &err, "inverse of nothing");
    is_u64(extent_list_bytes(&ret), 5, "is everything");
    for (uint64_t i = 0; i < 1000; i++)
        add(&none, 10 * (1000 - i), 10);
    extent_list_normalise(&none);
    is_u64(none.count, 1, "a thousand touching ranges become one");
    is_u64(extent_list_bytes(&none), 10000, "of the same length");
    extent_list_release(&list);
    extent_list_release(&none);
    extent_list_release(&ret);
    extent_list_release(&ret);
    ok(ret.items == NULL, "release twice is fine");
}

int main(void)
{
    const char *text = getenv("TEST_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 20261125;
    const char *fault = NULL;
    printf("# seed %" PRIu64 "\n", seed);
    for (uint64_t i = 0; i < 3000 && !fault; i++)
        fault = one_case(seed + i);
    ok(fault == NULL, "3000 random lists agree with a bitmap (%s)", fault ? fault : "all");
    test_limits();
    return done();
}
