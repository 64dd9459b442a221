/* The text of a timeline history; the first byte is the timeline. Whatever is accepted ascends, and
 * every LSN has an owner that is one of its timelines. Also LSNs as text. */
#include "agent/pg_names.h"
#include "agent/wal.h"
#include "tests/fuzz/fuzz.h"

static void check_history(const struct wal_history *history)
{
    uint64_t lsn = 0;
    uint32_t before = 0;
    FUZZ_CHECK(history->count <= WAL_HISTORY_MAX);
    for (size_t i = 0; i < history->count; i++) {
        const struct wal_history_entry *entry = &history->entries[i];
        FUZZ_CHECK(entry->parent > before && entry->parent < history->timeline);
        FUZZ_CHECK(entry->switch_lsn >= lsn);
        before = entry->parent;
        lsn = entry->switch_lsn;
        FUZZ_CHECK(wal_history_owner(history, lsn) > entry->parent);
        FUZZ_CHECK(lsn == 0 || wal_history_owner(history, lsn - 1) <= entry->parent);
    }
    FUZZ_CHECK(wal_history_owner(history, UINT64_MAX) == history->timeline);
}

static void check_lsn(const uint8_t *data, size_t size)
{
    char text[64] = "", again[PG_LSN_TEXT];
    uint64_t lsn, second;
    memcpy(text, data, min_u64(size, sizeof(text) - 1));
    if (!pg_lsn_parse(text, &lsn))
        return;
    pg_lsn_format(lsn, again);
    FUZZ_CHECK(pg_lsn_parse(again, &second) && second == lsn);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct wal_history history;
    struct err err;
    if (size == 0)
        return 0;
    free_mem uint8_t *text = fuzz_copy(data + 1, size - 1);
    int rc = wal_history_parse(data[0], (const char *)text, size - 1, &history, &err);
    if (fuzz_good(rc, &err))
        check_history(&history);
    check_lsn(text, size - 1);
    return 0;
}
