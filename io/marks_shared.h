/* What io/marks.c and its program in the kernel, io/marks.bpf.c, have in common. */
#ifndef TIDEMARK_IO_MARKS_SHARED_H
#define TIDEMARK_IO_MARKS_SHARED_H

#include <linux/types.h>

struct marks_settings {
    __u64 program; /* digest of all of it: a kept tracker of another version is not ours */
    __u64 first_sector, end_sector; /* of the whole disk, end exclusive */
    __u32 disk_major, disk_minor;
    __u32 chunk_shift; /* log2 of the sectors a chunk */
    /* For tests of those who rely on the marks; 0 = never. Of every processor's Nth write, the mark
     * is dropped; or the whole event, sectors included. */
    __u32 drop_every, hide_every;
    __u32 zero;
};

/* One a processor; sectors of 512 bytes within the range. */
struct marks_counts {
    __u64 written_sectors; /* of every operation that sends data, but */
    __u64 discarded_sectors;
    __u64 events;
    __u64 faults; /* marks that could not be set: a bug, or a range beyond bpf_loop() */
};

#endif
