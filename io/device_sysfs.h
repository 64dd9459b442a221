/* What /sys/dev/block says about a device: see device.h, which uses it. Best effort: attributes
 * that a device does not have stay empty. Any thread. */
#ifndef TIDEMARK_IO_DEVICE_SYSFS_H
#define TIDEMARK_IO_DEVICE_SYSFS_H

#include "io/device.h"

/* Fills serial, wwn and dm_uuid of a device whose numbers are set. */
void sysfs_hardware_ids(struct device_identity *identity);
/* Largest request in bytes: queue/max_sectors_kb, at the most 1 MiB. */
uint32_t sysfs_request_max(const struct device_identity *identity);
/* True when dm, md or the like are built on it. */
bool sysfs_has_holders(const struct device_identity *identity);

#endif
