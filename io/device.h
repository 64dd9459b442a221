/* A block device (or an image file, in tests and exports): geometry, identity through libblkid
 * (the only file that includes it), exclusive open with the lock that udev honours, marking,
 * flushing. Thread: one; the fd may be handed to lanes. */
#ifndef TIDEMARK_IO_DEVICE_H
#define TIDEMARK_IO_DEVICE_H

#include "io/err.h"

struct device_identity {
    char path[256]; /* as given, resolved (/dev/loop3) */
    uint64_t size;  /* bytes */
    uint32_t logical_sector;
    uint32_t physical_sector;
    uint32_t request_max;  /* bytes: min(1 MiB, queue/max_sectors_kb), for huge-page buffers */
    uint64_t diskseq;      /* 0 when the kernel has none */
    uint32_t major, minor; /* 0:0 for a regular file */
    bool is_block;
    char serial[128]; /* empty when there is none, as for loop devices and LVs */
    char wwn[128];
    char dm_uuid[160];
    char fs_type[16]; /* "ext4", "xfs", … ; empty when libblkid finds no filesystem */
    char fs_uuid[40];
    char fs_label[64];
    bool has_signature; /* any signature at all: filesystem, partition table, raid, LVM, … */
    char signature[32]; /* its name, for messages */
};

/* Reads everything above without keeping the device open. Low-level probing, O_DIRECT-safe: cached
 * pages are not trusted (BLKFLSBUF first when not mounted). ERR_DEVICE. */
int device_identify(const char *path, struct device_identity *ret, struct err *err);

/* Where the device, or a file system on it, is in use. */
struct device_use {
    bool mounted;
    char mount_point[256]; /* first mount point in this mount namespace */
    bool read_only;        /* that mount is read-only */
    bool held;             /* O_EXCL open fails, or holders/ is not empty: swap, dm, md, … */
};
int device_check_use(const struct device_identity *identity, struct device_use *ret,
                     struct err *err);

struct device {
    int fd; /* O_DIRECT */
    struct device_identity identity;
    bool exclusive;
    int lock_fd; /* whole-disk node with flock(LOCK_EX), or -1 */
};

/* O_RDONLY | O_DIRECT, not exclusive: live reads. */
int device_open_read(const char *path, struct device *ret, struct err *err);

/* O_RDWR | O_DIRECT | O_EXCL plus flock(LOCK_EX | LOCK_NB) on the whole-disk node, which udev
 * honours (systemd "Locking Block Device Access"). ERR_BUSY when mounted, held or locked. */
int device_open_exclusive(const char *path, struct device *ret, struct err *err);

/* Regular files: O_RDWR | O_DIRECT where possible, size set by ftruncate. For exports and tests. */
int device_open_file(const char *path, uint64_t size, bool create, struct device *ret,
                     struct err *err);

enum { DEVICE_MARK_LEN = 4096, DEVICE_WIPE_LEN = 65536 };

/* Writes the marker (4 KiB, see FORMAT.md "device marker"), zeroes the rest of the first 64 KiB,
 * wipes every signature libblkid finds, and flushes. From here on nothing can mount it. A power cut
 * meanwhile leaves the old filesystem whole or not mountable; the first sector tells which. */
int device_mark(struct device *device, const uint8_t job_id[16], uint64_t volume_size,
                struct err *err);

/* Reads the marker; ERR_MISSING when there is none, ERR_CORRUPT when it is damaged or half written:
 * a restore was at work here. */
int device_read_mark(struct device *device, uint8_t ret_job_id[16], uint64_t *ret_volume_size,
                     struct err *err);

/* fsync, writes the 4 KiB head, its first sector last and by itself (the only atomic write there
 * is), fsync, reads it back and compares, drops cached pages (BLKFLSBUF). */
int device_commit_head(struct device *device, const uint8_t head[4096], struct err *err);

/* Whether its path still leads to the same disk: number, size, diskseq. ERR_DEVICE when not. */
int device_check_same(const struct device *device, struct err *err);

/* fsync(2): the truth about earlier direct writes. */
int device_flush(struct device *device, struct err *err);

void device_close(struct device *device);

#endif
