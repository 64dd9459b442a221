/* Shared by the benchmarks: clocks, CPU time of the process and of kernel threads, reference
 * transfers, a store that keeps nothing. One thread. */
#ifndef TIDEMARK_BENCH_BENCH_IO_H
#define TIDEMARK_BENCH_BENCH_IO_H

#include "io/err.h"

/* A measurement: bench_start() … bench_stop() give what passed in between. */
struct bench_time {
    double wall_s;
    double process_s; /* user + system of all our threads, io-wq's included */
    double kernel_s;  /* all kernel threads of the machine: loop workers, but also strangers' */
};

void bench_start(struct bench_time *time);
void bench_stop(struct bench_time *time);

/* "name   1.23 GB/s   0.45 CPU-s/GB (0.40 process + 0.05 kernel threads)  note" */
void bench_report(const char *name, uint64_t bytes, const struct bench_time *time,
                  const char *note);

/* Touches and frees bytes of memory, so that no measured run pays for the first touch. */
int bench_warm_memory(uint64_t bytes, struct err *err);

/* Moves len bytes at the start of fd in 1 MiB pieces, 16 in flight, registered huge pages. */
int bench_transfer(int fd, uint64_t len, bool is_write, struct err *err);

/* Fills fd (O_DIRECT) with pages that compress about as PostgreSQL's do. */
int bench_fill(int fd, uint64_t len, uint64_t seed, struct err *err);

/* A store that takes everything and keeps nothing; store_close() releases it. */
struct store;
struct store *bench_null_store(const struct store *like);

#endif
