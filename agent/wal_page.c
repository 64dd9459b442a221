/* Checks of a segment's first page: see wal_page.h. */
#include "agent/wal_page.h"

#include <inttypes.h>

#include "agent/pg_names.h"

enum {
    MAGIC_15 = 0xD110, /* 16: D113, 17: D116, 18: D118; later ones only grow */
    MAGIC_MAX = 0xD1FF,
    INFO_LONG_HEADER = 0x0002,
};

static uint16_t get_le16(const uint8_t *from)
{
    return (uint16_t)(from[0] | from[1] << 8);
}

int wal_page_decode(const void *ptr, size_t len, struct wal_page *ret, struct err *err)
{
    const uint8_t *from = ptr;
    if (len < WAL_PAGE_HEADER_LEN)
        return err_set(err, ERR_CORRUPT, "%zu bytes are no WAL segment", len);
    unsigned magic = get_le16(from);
    if (magic < MAGIC_15 || magic > MAGIC_MAX)
        return err_set(err, ERR_CORRUPT,
                       "the page magic is %04X and not that of PostgreSQL 15 or "
                       "newer",
                       magic);
    if (!(get_le16(from + 2) & INFO_LONG_HEADER))
        return err_set(err, ERR_CORRUPT, "the first page has no long header");
    struct wal_page page = {
        .magic = (uint16_t)magic,
        .timeline = get_le32(from + 4),
        .address = get_le64(from + 8),
        .system_id = get_le64(from + 24),
        .segment_size = get_le32(from + 32),
        .block_size = get_le32(from + 36),
    };
    if (page.timeline == 0 || !pg_segment_size_valid(page.segment_size))
        return err_set(err, ERR_CORRUPT,
                       "the page header has timeline %" PRIu32 " and segment size %" PRIu32,
                       page.timeline, page.segment_size);
    *ret = page;
    return 0;
}

static bool address_of_name(const char *name, uint32_t segment_size, uint32_t *ret_timeline,
                            uint64_t *ret_address)
{
    char plain[PG_SEGMENT_TEXT] = "";
    uint64_t number;
    memcpy(plain, name, strnlen(name, PG_SEGMENT_TEXT - 1));
    return pg_segment_parse(plain, segment_size, ret_timeline, &number) &&
           mul_u64(number, segment_size, ret_address);
}

int wal_page_check(const void *ptr, size_t len, const char *name, uint64_t system_id,
                   uint64_t file_size, struct err *err)
{
    struct wal_page page;
    uint32_t timeline;
    uint64_t address;
    int rc = wal_page_decode(ptr, len, &page, err);
    if (rc < 0)
        return rc;
    if (page.system_id != system_id)
        return err_set(err, ERR_CORRUPT, "it belongs to system %" PRIu64 " and not to %" PRIu64,
                       page.system_id, system_id);
    if (file_size != page.segment_size)
        return err_set(err, ERR_CORRUPT, "it has %" PRIu64 " bytes and its header says %" PRIu32,
                       file_size, page.segment_size);
    if (!address_of_name(name, page.segment_size, &timeline, &address))
        return err_set(err, ERR_CORRUPT,
                       "its name is impossible with segments of %" PRIu32 " bytes",
                       page.segment_size);
    /* A promoted server copies the segment of the fork from its parent: the first page may be of
     * an older timeline than the name, never of a newer one. */
    if (page.address != address || page.timeline > timeline) {
        char text[PG_LSN_TEXT];
        pg_lsn_format(page.address, text);
        return err_set(err, ERR_CORRUPT, "its header says %s on timeline %" PRIu32, text,
                       page.timeline);
    }
    return 0;
}

uint64_t wal_page_count(const void *ptr, size_t len, uint64_t lsn)
{
    const uint8_t *bytes = ptr;
    uint64_t count = 0;
    while ((count + 1) * WAL_PAGE_LEN <= len &&
           get_le64(bytes + count * WAL_PAGE_LEN + 8) == lsn + count * WAL_PAGE_LEN)
        count++;
    return count;
}
