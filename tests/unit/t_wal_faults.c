/* The Nth store call of every operation of the archive fails, N = 1, 2, … until none does: the
 * error is the store's and never "absent", nothing half is left, the same call works afterwards. */
#include "tests/sim/faults.h"
#include "tests/tap.h"
#include "tests/unit/wal_fixture.h"

static struct err err;
static uint8_t raw[SEGMENT], back[SEGMENT + 1];
static const char present[] = "000000010000000000000003", absent[] = "0000000100000000000000AA",
                  fresh[] = "000000010000000000000004";

static int do_push_fresh(struct fixture *f)
{
    make_segment(raw, 1, 4, 4);
    return push_bytes(f, fresh, raw, SEGMENT, &err);
}

static int do_push_same(struct fixture *f)
{
    make_segment(raw, 1, 3, 3);
    return push_bytes(f, present, raw, SEGMENT, &err);
}

static int do_push_other(struct fixture *f)
{
    make_segment(raw, 1, 3, 99);
    return push_bytes(f, present, raw, SEGMENT, &err);
}

static int do_get_present(struct fixture *f)
{
    char to[256];
    snprintf(to, sizeof(to), "%s/back", f->dir);
    (void)unlink(to);
    int rc = wal_get(&f->archive, present, to, true, &err);
    make_segment(raw, 1, 3, 3);
    size_t len = read_bytes(to, back);
    if (rc == 0 ? len != SEGMENT || memcmp(back, raw, SEGMENT) != 0 : len != 0)
        return 1; /* half a file, or one in spite of the error */
    strcat(to, ".tidemark");
    return access(to, F_OK) == 0 ? 1 : rc;
}

static int do_get_absent(struct fixture *f)
{
    char to[256];
    snprintf(to, sizeof(to), "%s/back", f->dir);
    return wal_get(&f->archive, absent, to, false, &err);
}

static int do_check_present(struct fixture *f)
{
    return wal_check(&f->archive, present, &err);
}

static int do_check_absent(struct fixture *f)
{
    return wal_check(&f->archive, absent, &err);
}

static int do_range(struct fixture *f)
{
    return wal_check_range(&f->archive, 2, 10ull * SEGMENT, 14ull * SEGMENT, SEGMENT, &err);
}

static int do_timelines(struct fixture *f)
{
    uint32_t *timelines;
    size_t count;
    int rc = wal_timelines(&f->archive, &timelines, &count, &err);
    if (rc == 0)
        free(timelines);
    return rc;
}

static const struct {
    const char *name;
    int (*run)(struct fixture *f);
    int want; /* without a fault */
} operations[] = {
    {"push of a new segment", do_push_fresh, 0},
    {"push of the same segment", do_push_same, 0},
    {"push of other content", do_push_other, -ERR_REFUSED},
    {"get of a segment", do_get_present, 0},
    {"get of an absent one", do_get_absent, -ERR_MISSING},
    {"check of a segment", do_check_present, 0},
    {"check of an absent one", do_check_absent, -ERR_MISSING},
    {"check of a range", do_range, 0},
    {"list of timelines", do_timelines, 0},
};

static void forget_fresh(struct fixture *f)
{
    char name[STORE_NAME_MAX + 1];
    repo_wal_name(name, "main", SYSTEM_ID, 1, fresh);
    (void)store_remove(f->archive.store, name, &err);
}

static void run_all(struct fixture *f, size_t index, enum fault_kind kind)
{
    unsigned bad = 0, fired = 0;
    for (unsigned n = 1; n < 100; n++) {
        forget_fresh(f);
        fault_arm(kind, n);
        int rc = operations[index].run(f);
        bool hit = atomic_load(&fault.fired);
        fault_arm(FAULT_NONE, 0);
        fired += hit;
        bad += hit ? rc != -ERR_STORE : rc != operations[index].want;
        bad += operations[index].run(f) != operations[index].want;
        if (!hit)
            break;
    }
    ok(bad == 0 && fired > 0, "%s, %s: %u faults", operations[index].name, fault_names[kind],
       fired);
}

static bool fill(struct fixture *f)
{
    static const char history[] = "1\t0/C80000\tno recovery target specified\n";
    for (uint64_t number = 10; number <= 12; number++)
        if (push_segment(f, 1, number, &err) < 0)
            return false;
    for (uint64_t number = 12; number <= 13; number++)
        if (push_segment(f, 2, number, &err) < 0)
            return false;
    return push_bytes(f, "00000002.history", history, sizeof(history) - 1, &err) == 0 &&
           do_push_same(f) == 0;
}

int main(void)
{
    struct fixture f;
    fault_arm(FAULT_NONE, 0);
    if (!fixture_open(&f, &err) || !fill(&f)) {
        printf("Bail out! %s\n", err.text);
        return 255;
    }
    f.archive.store = fault_store_wrap(f.archive.store);
    for (size_t i = 0; i < ARRAY_LEN(operations); i++) {
        run_all(&f, i, FAULT_EIO);
        run_all(&f, i, FAULT_EIO_ON);
    }
    fixture_close(&f);
    return done();
}
