/* The volumes under one server: found from the configuration (or from the data directory when
 * there is none), resolved to devices, checked. One thread. */
#ifndef TIDEMARK_AGENT_VOLUME_H
#define TIDEMARK_AGENT_VOLUME_H

#include "agent/conf.h"
#include "io/device.h"

struct volume {
    const struct conf_volume *conf;
    struct device_identity device;
    char mount_point[CONF_PATH_MAX + 1]; /* empty when not mounted */
    char mount_options[512];
    bool mounted, read_only;
    int mount_fd; /* O_DIRECTORY on the mount point, -1 when not mounted */
};

struct volume_group {
    struct volume volumes[CONF_VOLUMES_MAX];
    size_t count;
};

/* Resolves every [volume] of conf: mount point ↔ device (/proc/self/mountinfo), identity. Refuses
 * (ERR_REFUSED with a hint): a volume that holds the agent's state_dir, its executable, or a
 * file:// repository; swap on it; multi-device or unknown filesystems (ext4 and XFS are known);
 * external journals; DAX; data=journal mounts unless the image is frozen by us. */
int volume_group_open(const struct conf *conf, struct volume_group *ret, struct err *err);
void volume_group_close(struct volume_group *group);

/* Index of the volume whose filesystem holds path, or -1. */
int volume_group_find_path(const struct volume_group *group, const char *path);

/* mount(2)/umount(2) with the plain recorded options; device and mount point as given. umount waits
 * for EBUSY to pass for timeout_s. */
int volume_mount(const char *device, const char *mount_point, const char *fs_type,
                 const char *options, bool read_only, struct err *err);
int volume_unmount(const char *mount_point, unsigned timeout_s, struct err *err);

/* Calls each() for every data directory (PG_VERSION + global/pg_control) on the mounted volume,
 * with its path; depth-limited walk that stays on the filesystem. */
int volume_find_data_directories(const char *mount_point,
                                 int (*each)(void *ctx, const char *path, struct err *err),
                                 void *ctx, struct err *err);

#endif
