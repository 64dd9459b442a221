/* What /sys/dev/block says about a device: see device.h, which uses it. Best effort: attributes
 * that a device does not have stay empty. Any thread. */
#ifndef TIDEMARK_IO_DEVICE_SYSFS_H
#define TIDEMARK_IO_DEVICE_SYSFS_H

#include "io/device.h"

/* Fills serial, wwn and dm_uuid of a device whose numbers are set. */
void sysfs_hardware_ids(struct device_identity *identity);
/* Largest request in bytes: queue/max_sectors_kb, at the most 1 MiB. */
uint32_t sysfs_request_max(const struct device_identity *identity);
/* One line of an attribute (queue/zoned) of the device, or of the disk that it is a partition of.
 * False when there is none. */
bool sysfs_attribute(const struct device_identity *identity, const char *attribute, char *ret,
                     size_t ret_len);
/* The whole disk that the device is, or is a partition of, and where it begins there, bytes. False
 * when sysfs does not say. */
bool sysfs_place(const struct device_identity *identity, uint32_t *ret_major, uint32_t *ret_minor,
                 uint64_t *ret_offset);

/* The kernel's own accounting of the device. A write is counted before its issuer hears of its end.
 */
struct sysfs_counters {
    uint64_t written_sectors, discarded_sectors; /* of 512 bytes; discards apart */
    uint64_t writes_in_flight;                   /* discards included */
};
/* False when sysfs does not say. Only a write shows whether the kernel counts: queue/iostats = 0
 * stops it for request-based drivers, and means nothing for others (zram). */
bool sysfs_counters(const struct device_identity *identity, struct sysfs_counters *ret);

/* A number for the time that the device's ext4 or XFS is mounted: another one as soon as it was
 * unmounted between, wherever (kernfs gives no number twice). False when it is not mounted, or
 * sysfs does not say. */
bool sysfs_mount_number(const struct device_identity *identity, uint64_t *ret);

/* True when dm, md or the like are built on it. */
bool sysfs_has_holders(const struct device_identity *identity);

#endif
