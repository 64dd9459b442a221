/* CLOCK_MONOTONIC in nanoseconds and milliseconds, for durations and deadlines, and as what
 * pthread_cond_clockwait() wants. Inline. Any thread. */
#ifndef TIDEMARK_IO_CLOCK_H
#define TIDEMARK_IO_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t monotonic_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static inline uint64_t monotonic_ms(void)
{
    return monotonic_ns() / 1000000;
}

/* So many milliseconds from now. */
static inline struct timespec monotonic_until(uint64_t ms)
{
    uint64_t ns = monotonic_ns() + ms * 1000000;
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000),
                             .tv_nsec = (long)(ns % 1000000000)};
}

#endif
