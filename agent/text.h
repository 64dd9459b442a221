/* Numbers as people read them, for messages and tables. Any thread. */
#ifndef TIDEMARK_AGENT_TEXT_H
#define TIDEMARK_AGENT_TEXT_H

#include <stdint.h>

enum { TEXT_SIZE_LEN = 24, TEXT_TIME_LEN = 32, TEXT_AGE_LEN = 24 };

/* "1.5 MiB" */
void text_size(uint64_t bytes, char ret[TEXT_SIZE_LEN]);
/* "2026-11-25 21:04:05 UTC", as --target-time takes it; "-" for 0. */
void text_time(int64_t time_s, char ret[TEXT_TIME_LEN]);
/* "3 h" of a duration; one that is negative counts as none. */
void text_age(int64_t seconds, char ret[TEXT_AGE_LEN]);

#endif
