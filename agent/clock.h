/* Monotonic milliseconds and pauses, for deadlines and polls. Inline and lean. Any thread. */
#ifndef TIDEMARK_AGENT_CLOCK_H
#define TIDEMARK_AGENT_CLOCK_H

#include "io/clock.h"

static inline uint64_t now_ms(void)
{
    return monotonic_ms();
}

/* A signal may end it early. */
static inline void pause_ms(uint64_t ms)
{
    struct timespec time = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    (void)nanosleep(&time, NULL);
}

#endif
