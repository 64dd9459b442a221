/* LSNs and WAL segment names as text (PostgreSQL: access/xlog_internal.h). Pure, any thread; part
 * of pg.h, apart so that the lean tidemark-wal can use it. */
#ifndef TIDEMARK_AGENT_PG_NAMES_H
#define TIDEMARK_AGENT_PG_NAMES_H

#include "io/base.h"

enum { PG_LSN_TEXT = 24, PG_SEGMENT_TEXT = 25 };

/* "16/B374D848"; nothing before or after it. */
bool pg_lsn_parse(const char *text, uint64_t *ret);
void pg_lsn_format(uint64_t lsn, char text[PG_LSN_TEXT]);

/* A power of two from 1 MiB to 1 GiB (initdb --wal-segsize). */
bool pg_segment_size_valid(uint32_t segment_size);

/* segment_number = LSN / segment_size. */
void pg_segment_name(uint32_t timeline, uint64_t segment_number, uint32_t segment_size,
                     char name[PG_SEGMENT_TEXT]);
/* True for 24 upper-case hex digits that name a possible segment of that size; fills timeline and
 * segment number. */
bool pg_segment_parse(const char *name, uint32_t segment_size, uint32_t *ret_timeline,
                      uint64_t *ret_segment);

#endif
