/* The header of a WAL segment's first page (PostgreSQL: access/xlog_internal.h,
 * XLogLongPageHeaderData): what tells whose WAL a file is, whatever it is called. Pure, any thread.
 *
 *     0 magic 2 | 2 info 2 | 4 timeline 4 | 8 page address 8 | 16 rem_len 4 | 20 padding 4 |
 *     24 system id 8 | 32 segment size 4 | 36 block size 4        (host order; x86 and arm: little)
 */
#ifndef TIDEMARK_AGENT_WAL_PAGE_H
#define TIDEMARK_AGENT_WAL_PAGE_H

#include "io/err.h"

enum { WAL_PAGE_HEADER_LEN = 40, WAL_PAGE_LEN = 8192 };

struct wal_page {
    uint16_t magic;
    uint32_t timeline;
    uint64_t address; /* LSN of the page */
    uint64_t system_id;
    uint32_t segment_size;
    uint32_t block_size;
};

/* Decodes a long page header. ERR_CORRUPT with what is wrong; servers before 15 are refused. */
int wal_page_decode(const void *ptr, size_t len, struct wal_page *ret, struct err *err);

/* The file's first bytes against its name (a segment's, or a .partial's first 24 characters), its
 * system id and its size in bytes. Codes as wal_page_decode(). */
int wal_page_check(const void *ptr, size_t len, const char *name, uint64_t system_id,
                   uint64_t file_size, struct err *err);

/* Pages from the beginning of a segment that hold its own WAL (their address says so): the rest is
 * zeros, or what was there before the file was recycled. lsn is the segment's first. */
uint64_t wal_page_count(const void *ptr, size_t len, uint64_t lsn);

#endif
