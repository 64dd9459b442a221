/* What push and pull have in common: how much of the machine they may use, how they report, how
 * they are stopped. */
#ifndef TIDEMARK_IO_LANE_OPTIONS_H
#define TIDEMARK_IO_LANE_OPTIONS_H

#include <stdatomic.h>

#include "io/base.h"

struct lane_options {
    unsigned lane_count; /* 0 = min(cores, 8) */
    uint64_t memory_max; /* bytes of payload for all lanes; refused when too small for one */
    uint64_t rate_limit; /* bytes a second of device reads; 0 = none */
    int acceleration;    /* LZ4, push only; 0 = default 2 */
};

/* Shared counters: written by lanes, read by anyone; completed work only. */
struct io_progress {
    _Atomic uint64_t bytes_total;  /* device bytes the job will pass over */
    _Atomic uint64_t bytes_done;   /* device bytes read and stored / fetched and written */
    _Atomic uint64_t bytes_stored; /* repository bytes written (push) or read (pull) */
    _Atomic uint64_t chunks_stored;
    _Atomic uint64_t chunks_rewritten; /* of those stored, unchanged: see push_rewrite() */
    _Atomic uint64_t bytes_rewritten;  /* of those stored */
    _Atomic uint64_t chunks_same; /* push: unchanged since the parent; pull: right on the target */
    _Atomic uint64_t bytes_same;  /* pull: device bytes of these */
    _Atomic uint64_t chunks_zero;
    _Atomic uint64_t objects; /* PUTs or GETs completed */
    _Atomic bool cancel;      /* set by anyone: the job ends with ERR_CANCELLED */
};

#endif
