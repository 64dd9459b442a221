/* Marks: which chunks of a block device have been written to, by whoever wrote. An eBPF program
 * marks them when a write is queued, that is before it reaches the medium (io/marks.c is the only
 * file that includes libbpf; the program is io/marks.bpf.c).
 *
 * A mark says "being written", not "written". Therefore marks may be taken, which clears them, only
 * while nothing writes: under a freeze. Then a mark that was taken belongs to a finished write, and
 * a read that follows sees it; a later write makes its own mark.
 *
 *     marks_open(&place, chunk_size, &marks, err)
 *     … freeze …  marks_counters() against the kernel's own;  marks_take(&marks, &extents, err)
 *     marks_close(marks)
 *
 * Marks are in the kernel's memory, one bit a chunk; nothing outlives marks_close() or the process,
 * unless they are kept: marks_keep() gives them a name on the BPF file system, and a later process
 * has them from marks_find(), with everything that was written meanwhile.
 *
 * One thread, which need not be the same for every call. */
#ifndef TIDEMARK_IO_MARKS_H
#define TIDEMARK_IO_MARKS_H

#include "io/extent.h"

struct marks;

/* The whole disk and the part of it that is watched; sysfs_place() knows it. */
struct marks_place {
    uint32_t disk_major, disk_minor;
    uint64_t offset, len; /* bytes; of a partition on its disk */
};

struct marks_counters {
    uint64_t written_sectors; /* of 512 bytes, queued since marks_open(), discards apart */
    uint64_t discarded_sectors;
    uint64_t missed; /* runs that the kernel left out, marks that could not be set: must be 0 */
};

/* chunk_size is a power of two of at least 512. ERR_REFUSED names the part that is missing: the
 * capabilities, the kernel's BTF, the tracepoint, bpf_loop() (Linux 5.17). In the environment, for
 * tests of callers: TIDEMARK_TEST_MARKS_DROP=N loses every Nth mark, TIDEMARK_TEST_MARKS_HIDE=N
 * every Nth write; only where TIDEMARK_TEST_PRECOPY_KEEP is set too. */
int marks_open(const struct marks_place *place, uint32_t chunk_size, struct marks **ret,
               struct err *err);

/* One of these is at work. */
bool marks_are_lossy(const struct marks *marks);

/* Appends the marked chunks, as byte ranges from the start of the place, normalised when ret was
 * empty, and clears them: only while nothing can write. After an error the marks are void. */
int marks_take(struct marks *marks, struct extent_list *ret, struct err *err);

/* Marks the chunks that touch these ranges, as if they were written to: what was taken in vain. Any
 * time. */
void marks_return(struct marks *marks, const struct extent_list *extents);

/* The same without clearing them. Any time. */
int marks_peek(const struct marks *marks, struct extent_list *ret, struct err *err);

/* Any time; exact while nothing can write. */
int marks_counters(const struct marks *marks, struct marks_counters *ret, struct err *err);

/* Tells this tracker from every other one since the host's start. */
enum { MARKS_INSTANCE_LEN = 48 };
int marks_instance(const struct marks *marks, char ret[MARKS_INSTANCE_LEN], struct err *err);

/* Lets the tracker outlive the process, in place of an earlier one of that name (an id).
 * ERR_REFUSED where there is no BPF file system on /sys/fs/bpf. */
int marks_keep(struct marks *marks, const char *name, struct err *err);

/* The tracker that was kept under that name. ERR_MISSING when there is none; ERR_REFUSED when it
 * watches another place, by other chunks, or is of another version. */
int marks_find(const char *name, const struct marks_place *place, uint32_t chunk_size,
               struct marks **ret, struct err *err);

/* Ends the one of that name, once no process has it open. False: there was none. */
bool marks_forget(const char *name);

/* NULL is accepted. A tracker that is kept goes on. */
void marks_close(struct marks *marks);

#endif
