/* The volumes under one server: found from the configuration (or from the data directory when
 * there is none), resolved to devices, checked. One thread. */
#ifndef TIDEMARK_AGENT_VOLUME_H
#define TIDEMARK_AGENT_VOLUME_H

#include "agent/conf.h"
#include "io/device.h"

struct volume {
    const struct conf_volume *conf; /* of the configuration, or of found[] below */
    struct device_identity device;
    char mount_point[CONF_PATH_MAX + 1]; /* empty when not mounted */
    char mount_options[512]; /* those that volume_mount() gives back: no defaults, no rw */
    bool mounted, read_only;
    int mount_fd; /* O_DIRECTORY on the mount point, -1 when not mounted; keeps umount busy */
};

struct volume_group {
    struct volume volumes[CONF_VOLUMES_MAX];
    size_t count;
    struct conf_volume found[CONF_VOLUMES_MAX]; /* used when the configuration names none */
};

/* Resolves every [volume] of conf: mount point ↔ device (/proc/self/mountinfo), identity. When conf
 * has none, the filesystems under data_directory, its pg_wal and its tablespaces become volumes
 * "pgdata", "pgwal", "tblspc1", …, captured by `precopy`. Mounted volumes are checked with
 * volume_check(), those that are not are only identified (an empty host has no filesystem yet).
 * The group must not be moved or copied: volumes may point into found[]. ERR_CONFIG, ERR_DEVICE,
 * ERR_REFUSED. */
int volume_group_open(const struct conf *conf, struct volume_group *ret, struct err *err);
void volume_group_close(struct volume_group *group);

/* Whether this volume may be captured. Refuses (ERR_REFUSED with a hint): a volume that holds the
 * agent's state_dir, socket, executable, log (stderr), or a file:// repository; swap on it; a loop
 * image that lies on another volume of the group; zoned devices; filesystems other than ext4 and
 * XFS; external journals, logs and real-time devices; DAX; data=journal mounts unless we freeze
 * them. The spool of WAL may lie there: only the server's own commands wait for it. */
int volume_check(const struct conf *conf, const struct volume_group *group,
                 const struct volume *volume, struct err *err);

/* Whether the mounted filesystem of the volume holds path or its nearest existing parent; and the
 * index of the volume that does, or -1. */
bool volume_holds_path(const struct volume *volume, const char *path);
int volume_group_find_path(const struct volume_group *group, const char *path);

/* mount(2)/umount(2); device and mount point as given, options as in mount_options above (ro and rw
 * in them are ignored). XFS gets nouuid when another mount has the same UUID. umount waits for
 * EBUSY to pass for timeout_s, then names the processes that hold it; it is no error when nothing
 * is mounted there. ERR_DEVICE, ERR_BUSY. */
int volume_mount(const char *device, const char *mount_point, const char *fs_type,
                 const char *options, bool read_only, struct err *err);
int volume_unmount(const char *mount_point, unsigned timeout_s, struct err *err);

/* Calls each() for every data directory (PG_VERSION + global/pg_control) on the mounted volume,
 * with its path; depth-limited walk that stays on the filesystem. */
int volume_find_data_directories(const char *mount_point,
                                 int (*each)(void *ctx, const char *path, struct err *err),
                                 void *ctx, struct err *err);

#endif
