/* Which blocks of a mounted filesystem hold data (FS_IOC_GETFSMAP) and where a file lies (FIEMAP).
 * Call them live or under a freeze. One thread. */
#ifndef TIDEMARK_IO_FSMAP_H
#define TIDEMARK_IO_FSMAP_H

#include "io/extent.h"

/* Used extents of the filesystem that mount_fd lies on, normalised: everything that no record calls
 * FREE; gaps between records count as used (ext4 keeps data there: measured). device_size bounds
 * the list. device_fd reads the device under it (O_DIRECT); it is needed for XFS's check.
 * *ret_trusted is false when a check failed: order, overlap, a second device, last record missing,
 * more free than statfs says (ext4), free not the sum of the allocation group headers (XFS: exact
 * under a freeze only), any other filesystem. ret is then the whole device. ERR_DEVICE when the
 * ioctl itself fails for a reason other than "not supported". */
int fsmap_used(int mount_fd, int device_fd, uint64_t device_size, struct extent_list *ret,
               bool *ret_trusted, struct err *err);

enum fsmap_file_flag {
    FSMAP_PLAIN = 0,
    FSMAP_SHARED = 1,   /* an extent is shared (reflink) */
    FSMAP_UNPLAIN = 2,  /* inline, encoded, delalloc, unknown or unaligned: no fixed place */
    FSMAP_UNWRITTEN = 4 /* preallocated: reads as zeros whatever the blocks hold */
};

/* Physical extents of a file, in file order, not normalised; flags of all extents or-ed. Delayed
 * allocations are written out first, which under a freeze has nothing left to do. */
int fsmap_file(int fd, struct extent_list *ret, unsigned *ret_flags, struct err *err);

#endif
