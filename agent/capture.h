/* Capturing one instant of a volume group: the seam of the providers (DESIGN §4). A provider makes
 * every volume readable as it was at the instant, keeps it so until capture_end(), and says which
 * blocks hold data.
 *
 *     capture_begin(…)      all volumes at one instant; frozen only inside this call for
 *                           `command`, until capture_end() for `freeze`
 *     … push from capture->volumes[i].device …
 *     capture_end(…)        thaw / drop the snapshot; *ret_valid false: the guardian thawed early,
 *                           or the device changed: discard everything
 * One thread. */
#ifndef TIDEMARK_AGENT_CAPTURE_H
#define TIDEMARK_AGENT_CAPTURE_H

#include "agent/volume.h"
#include "io/extent.h"
#include "io/freeze.h"

struct capture_file {
    const char *path;           /* absolute, on a volume of the group */
    struct extent_list extents; /* out: physical, in file order */
    unsigned flags;             /* out: enum fsmap_file_flag */
};

struct capture_volume {
    struct device device;    /* what to read: the live device or the snapshot device */
    struct extent_list used; /* normalised; everything else holds no file data */
    bool used_trusted;
    char snapshot_path[CONF_PATH_MAX + 1]; /* provider command: what snapshot_command printed */
};

struct capture {
    const struct conf *conf;
    struct volume_group *group;
    struct capture_volume volumes[CONF_VOLUMES_MAX];
    struct freeze freeze;
    bool armed;
    uint64_t stall_ns;
    int64_t captured_s;
};

/* estimate_bytes_per_s: measured or assumed read + compress rate; `freeze` is refused
 * (ERR_REFUSED) when used bytes / rate exceed freeze_deadline. files: where these files lie at the
 * instant (for `command`, equal before and after or ERR_BUSY). wal_directory may be NULL: when it
 * is given, *ret_wal receives per volume the extents of segment files in it (regular, one link,
 * not shared, plain), ret_wal being CONF_VOLUMES_MAX lists. */
int capture_begin(const struct conf *conf, struct volume_group *group,
                  uint64_t estimate_bytes_per_s, struct capture_file *files, size_t file_count,
                  const char *wal_directory, struct extent_list *ret_wal, struct capture *ret,
                  struct err *err);
int capture_end(struct capture *capture, bool *ret_valid, struct err *err);

#endif
