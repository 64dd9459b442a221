/* Which snapshots stay, and which WAL: rules without a server. Removing is tests/pg/t_expire.py's.
 * check: build=asan timeout=60 */
#include "tests/tap.h"

#include "agent/expire.h"
#include "agent/wal_lineage.h"

enum { DAY_S = 86400, NOW_S = 1764000000, SEGMENT = 1 << 20 };

static struct err err;
static struct conf conf;
static struct expire_item items[16];
static struct expire expire;

/* Items are ascending by id; age in days. */
static struct expire_item *add(const char *node, const char *tag, int age_days)
{
    struct expire_item *item = &items[expire.count++];
    memset(item, 0, sizeof(*item));
    memset(item->name.id, (int)expire.count, ID_LEN);
    (void)snprintf(item->name.cluster, sizeof(item->name.cluster), "main");
    (void)snprintf(item->name.node, sizeof(item->name.node), "%s", node);
    (void)snprintf(item->tag, sizeof(item->tag), "%s", tag);
    item->captured_s = NOW_S - (int64_t)age_days * DAY_S;
    item->has_record = item->known = true;
    return item;
}

static void begin(unsigned count, unsigned days)
{
    memset(&conf, 0, sizeof(conf));
    (void)snprintf(conf.cluster, sizeof(conf.cluster), "main");
    conf.retention_count = count;
    conf.retention_days = days;
    memset(&expire, 0, sizeof(expire));
    expire.conf = &conf;
    expire.items = items;
    expire.now_s = NOW_S;
    (void)add("db1", "old", 40);
    (void)add("db1", "older", 50);
    (void)add("db1", "new", 1);
    (void)add("db1", "week", 7);
    (void)add("db2", "other-old", 60);
    (void)add("db2", "other-older", 90);
}

/* Tags that go, in the order of the items, each behind a blank. */
static const char *gone(void)
{
    static char text[256];
    text[0] = '\0';
    is_good(expire_choose(&expire, &err), &err, "choose");
    for (size_t i = 0; i < expire.count; i++)
        if (items[i].goes)
            (void)snprintf(text + strlen(text), sizeof(text) - strlen(text), " %s", items[i].tag);
    return text;
}

static void test_rules(void)
{
    begin(0, 0);
    is_str(gone(), "", "no rule: every snapshot stays");
    is_str(items[0].why, "no [retention] is configured", "and says why");
    begin(1, 0);
    is_str(gone(), " old older week other-older", "count 1: the newest of each node");
    is_str(items[2].why, "newest of its node", "its reason");
    begin(3, 0);
    is_str(gone(), " older", "count 3");
    is_str(items[0].why, "count", "its reason");
    begin(0, 10);
    is_str(gone(), " old older other-older",
           "10 days: the newest of a node stays however old it is");
    is_str(items[3].why, "days", "the reason of a younger one");
    begin(0, 7);
    is_str(gone(), " old older week other-older", "a snapshot of just 7 days is not within 7 days");
    begin(2, 45);
    is_str(gone(), " older", "any rule is enough");
    begin(1, 0);
    items[1].pinned = true;
    is_str(gone(), " old week other-older", "a pin keeps it");
    is_str(items[1].why, "pinned", "its reason");
    begin(2, 0);
    items[2].pinned = true;
    is_str(gone(), " old older", "a pinned one counts");
    begin(1, 0);
    items[2].withdrawn = true;
    is_str(gone(), " old older other-older",
           "a withdrawn one counts for nothing: the next is the newest");
    begin(1, 0);
    items[2].known = false;
    is_str(gone(), " old older other-older", "nor does a damaged one, which no rule removes");
    is_str(items[2].why, "damaged: only its id removes it", "its reason");
    begin(1, 0);
    (void)add("db1", "future", -365);
    is_str(gone(), " old older week other-older",
           "one of next year is not the newest: that stays the real one");
    is_str(items[6].why, "captured after now, so a clock was wrong", "and it stays itself");
    begin(1, 0);
    add("db3", "first", 1)->tag_lsn = SEGMENT;
    add("db3", "second", 1)->tag_lsn = 2 * SEGMENT;
    is_str(gone(), " old older week other-older first",
           "of two of the same second the one behind in the WAL is the newest");
    begin(1, 0);
    struct expire_item *item = add("db3", "before", 1);
    item->timeline = 1;
    item->tag_lsn = 2 * SEGMENT;
    item = add("db3", "after-failover", 1);
    item->timeline = 2;
    item->tag_lsn = SEGMENT;
    is_str(gone(), " old older week other-older before", "or the one of the later timeline");
}

/* Timeline 2 left 1 in segment 10, 3 left 2 in segment 20, 4 left 1 in segment 5. */
static void test_lineage(void)
{
    struct wal_history histories[4] = {
        {.timeline = 1},
        {.timeline = 2, .entries = {{1, 10 * SEGMENT}}, .count = 1},
        {.timeline = 3, .entries = {{1, 10 * SEGMENT}, {2, 20 * SEGMENT}}, .count = 2},
        {.timeline = 4, .entries = {{1, 5 * SEGMENT}}, .count = 1},
    };
    uint32_t timelines[4] = {1, 2, 3, 4};
    struct wal_history *all[4] = {&histories[0], &histories[1], &histories[2], &histories[3]};
    struct wal_lineage lineage = {.timelines = timelines, .histories = all, .count = 4};
    static const struct {
        uint32_t timeline;
        unsigned segment;
        const char *needs; /* of 1, 2, 3, 4 */
    } cases[] = {
        {1, 3, "1111"},  /* before every branch */
        {1, 7, "1110"},  /* behind the branch of 4 */
        {1, 12, "1000"}, /* behind all: its own end only */
        {2, 15, "0110"}, {2, 25, "0100"}, {3, 30, "0010"},
        {4, 6, "0001"},  {2, 7, "1110"}, /* a standby's backup that began on the timeline before */
        {3, 12, "0110"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char needs[5] = "";
        for (size_t j = 0; j < 4; j++)
            needs[j] = wal_lineage_needs(&lineage, j, cases[i].timeline,
                                         cases[i].segment * (uint64_t)SEGMENT)
                           ? '1'
                           : '0';
        is_str(needs, cases[i].needs, "a backup on timeline %u at segment %u", cases[i].timeline,
               cases[i].segment);
    }
    all[1] = NULL;
    ok(wal_lineage_needs(&lineage, 1, 4, 6 * (uint64_t)SEGMENT),
       "a timeline whose history cannot be read may be needed");
    ok(wal_lineage_needs(&lineage, 3, 2, 25 * (uint64_t)SEGMENT),
       "and one whose backup's history cannot be read may need any");
}

int main(void)
{
    test_rules();
    test_lineage();
    return done();
}
