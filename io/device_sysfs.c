/* Block devices as sysfs shows them: names that hardware has, limits, holders. */
#include "io/device_sysfs.h"

#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

/* Reads a one-line sysfs attribute of the device; for partitions also of the whole disk when
 * `or_disk`. False when there is none. */
static bool sysfs_read(unsigned dev_major, unsigned dev_minor, bool or_disk, const char *attribute,
                       char *ret, size_t ret_len)
{
    for (int disk = 0; disk <= (or_disk ? 1 : 0); disk++) {
        char path[PATH_MAX];
        (void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s%s", dev_major, dev_minor,
                       disk ? "../" : "", attribute);
        close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        ssize_t len = read(fd, ret, ret_len - 1);
        while (len > 0 && (ret[len - 1] == '\n' || ret[len - 1] == ' '))
            len--;
        if (len > 0) {
            ret[len] = '\0';
            return true;
        }
    }
    return false;
}

bool sysfs_attribute(const struct device_identity *identity, const char *attribute, char *ret,
                     size_t ret_len)
{
    return sysfs_read(identity->major, identity->minor, true, attribute, ret, ret_len);
}

/* SCSI has no serial attribute but the unit serial number page (SPC-4 §7.8.15): 4 bytes header. */
static void read_scsi_serial(struct device_identity *identity)
{
    char page[260] = {0};
    if (!sysfs_read(identity->major, identity->minor, true, "device/vpd_pg80", page, sizeof(page)))
        return;
    size_t to = 0;
    for (size_t i = 4; i < sizeof(page) && page[i] != '\0' && to + 1 < sizeof(identity->serial);
         i++)
        if (page[i] > ' ' && page[i] < 127)
            identity->serial[to++] = page[i];
    identity->serial[to] = '\0';
}

void sysfs_hardware_ids(struct device_identity *identity)
{
    unsigned dev_major = identity->major, dev_minor = identity->minor;
    if (!sysfs_read(dev_major, dev_minor, true, "serial", identity->serial,
                    sizeof(identity->serial)) &&
        !sysfs_read(dev_major, dev_minor, true, "device/serial", identity->serial,
                    sizeof(identity->serial)))
        read_scsi_serial(identity);
    if (!sysfs_read(dev_major, dev_minor, true, "wwid", identity->wwn, sizeof(identity->wwn)))
        (void)sysfs_read(dev_major, dev_minor, true, "device/wwid", identity->wwn,
                         sizeof(identity->wwn));
    (void)sysfs_read(dev_major, dev_minor, false, "dm/uuid", identity->dm_uuid,
                     sizeof(identity->dm_uuid));
}

uint32_t sysfs_request_max(const struct device_identity *identity)
{
    char text[32];
    uint64_t max = MIB;
    if (sysfs_read(identity->major, identity->minor, true, "queue/max_sectors_kb", text,
                   sizeof(text))) {
        uint64_t kib = strtoull(text, NULL, 10);
        if (kib >= 4 && kib < 1024)
            max = align_down(kib * KIB, 4096);
    }
    return (uint32_t)max;
}

bool sysfs_place(const struct device_identity *identity, uint32_t *ret_major, uint32_t *ret_minor,
                 uint64_t *ret_offset)
{
    char text[64];
    unsigned dev_major = identity->major, dev_minor = identity->minor;
    uint64_t first_sector = 0;
    if (sysfs_read(dev_major, dev_minor, false, "partition", text, sizeof(text))) {
        if (!sysfs_read(dev_major, dev_minor, false, "start", text, sizeof(text)))
            return false;
        first_sector = strtoull(text, NULL, 10); /* of 512 bytes, whatever the device's are */
        if (!sysfs_read(dev_major, dev_minor, false, "../dev", text, sizeof(text)) ||
            sscanf(text, "%u:%u", &dev_major, &dev_minor) != 2)
            return false;
    }
    *ret_major = dev_major;
    *ret_minor = dev_minor;
    return mul_u64(first_sector, 512, ret_offset);
}

/* Documentation/block/stat.rst, from 1: 7 sectors written, 14 sectors discarded. */
bool sysfs_counters(const struct device_identity *identity, struct sysfs_counters *ret)
{
    enum { WRITTEN = 7, DISCARDED = 14 };
    char text[256], inflight[64];
    uint64_t fields[DISCARDED + 1] = {0};
    if (!sysfs_read(identity->major, identity->minor, false, "inflight", inflight,
                    sizeof(inflight)) ||
        !sysfs_read(identity->major, identity->minor, false, "stat", text, sizeof(text)))
        return false;
    char *at = text;
    for (int i = 1; i <= DISCARDED; i++)
        fields[i] = strtoull(at, &at, 10);
    (void)strtoull(inflight, &at, 10); /* reads; then writes */
    *ret = (struct sysfs_counters){.written_sectors = fields[WRITTEN],
                                   .discarded_sectors = fields[DISCARDED],
                                   .writes_in_flight = strtoull(at, NULL, 10)};
    return true;
}

/* The inode of the file system's directory in sysfs, which is made with its superblock and goes
 * with it. kernfs numbers are 64 bits and only grow (kernfs_new_node()). */
bool sysfs_mount_number(const struct device_identity *identity, uint64_t *ret)
{
    char path[PATH_MAX], device[PATH_MAX];
    (void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u", identity->major, identity->minor);
    ssize_t len = readlink(path, device, sizeof(device) - 1);
    if (len <= 0)
        return false;
    device[len] = '\0';
    const char *name = strrchr(device, '/');
    struct stat st;
    (void)snprintf(path, sizeof(path), "/sys/fs/%s/%.255s", identity->fs_type,
                   name != NULL ? name + 1 : device);
    static_assert(sizeof(st.st_ino) == sizeof(*ret), "the whole number");
    if (identity->fs_type[0] == '\0' || stat(path, &st) < 0)
        return false;
    *ret = st.st_ino;
    return true;
}

bool sysfs_has_holders(const struct device_identity *identity)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/holders", identity->major,
                   identity->minor);
    DIR *dir = opendir(path);
    if (dir == NULL)
        return false;
    bool found = false;
    for (struct dirent *entry; !found && (entry = readdir(dir)) != NULL;)
        found = entry->d_name[0] != '.';
    (void)closedir(dir);
    return found;
}
