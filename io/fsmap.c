/* The used-space map of a filesystem and the place of a file. A block wrongly called free is lost
 * data, so every check here errs towards "used": only records that say FREE are believed, and one
 * doubt makes the whole device used. */
#include "io/fsmap.h"

#include <endian.h>
#include <errno.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/fsmap.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

enum { EXTRA_RECORDS = 1024, MAP_TRIES = 8 };

static bool not_supported(int error)
{
    return error == ENOTTY || error == EOPNOTSUPP || error == ENOSYS;
}

static struct fsmap_head *alloc_head(unsigned count)
{
    struct fsmap_head *head = calloc(1, fsmap_sizeof(count));
    if (head == NULL)
        return NULL;
    head->fmh_count = count;
    struct fsmap *high = &head->fmh_keys[1];
    high->fmr_device = UINT32_MAX;
    high->fmr_flags = UINT32_MAX;
    high->fmr_physical = UINT64_MAX;
    high->fmr_owner = UINT64_MAX;
    high->fmr_offset = UINT64_MAX;
    return head;
}

/* The whole map in one call: ext4 collects and sorts the metadata of all groups on every call, so
 * paging would be quadratic, and a map of several calls is not one of an instant. *ret is NULL when
 * the filesystem has no such call, or grows faster than we can ask. */
static int read_map(int mount_fd, struct fsmap_head **ret, struct err *err)
{
    unsigned capacity = 0;
    for (int i = 0; i < MAP_TRIES; i++) {
        free_mem struct fsmap_head *head = alloc_head(capacity);
        if (head == NULL)
            return err_set(err, ERR_INTERNAL, "no memory for a map of %u records", capacity);
        if (ioctl(mount_fd, FS_IOC_GETFSMAP, head) < 0) {
            if (!not_supported(errno))
                return err_sys(err, ERR_DEVICE, "read the free space map (FS_IOC_GETFSMAP)");
            *ret = NULL;
            return 0;
        }
        if (capacity > 0 && head->fmh_entries < capacity) {
            *ret = take_ptr(&head);
            return 0;
        }
        uint64_t wanted = (uint64_t)head->fmh_entries + head->fmh_entries / 4 + EXTRA_RECORDS;
        capacity = (unsigned)min_u64(wanted, UINT32_MAX / 128);
    }
    *ret = NULL;
    return 0;
}

/* A record may overlap its neighbours where files share blocks (XFS with a reverse map), but a FREE
 * one may not: it starts behind everything before it, and nothing after it starts inside it. */
static bool record_is_sane(const struct fsmap *record, const struct fsmap *first,
                           uint64_t physical_min, uint64_t end, bool is_free, uint64_t device_size,
                           uint64_t *ret_end)
{
    return record->fmr_device == first->fmr_device && record->fmr_physical >= physical_min &&
           (!is_free || record->fmr_physical >= end) &&
           add_u64(record->fmr_physical, record->fmr_length, ret_end) && *ret_end <= device_size;
}

/* Adds everything between the FREE records to `used`; *ret_sane: the map does not contradict
 * itself. */
static int collect_used(const struct fsmap_head *head, uint64_t device_size,
                        struct extent_list *used, uint64_t *ret_free, bool *ret_sane,
                        struct err *err)
{
    uint64_t physical_min = 0, end = 0, used_from = 0, free_bytes = 0;
    bool sane = head->fmh_entries > 0, last_seen = false;
    for (unsigned i = 0; sane && i < head->fmh_entries; i++) {
        const struct fsmap *record = &head->fmh_recs[i];
        bool is_free =
            (record->fmr_flags & FMR_OF_SPECIAL_OWNER) && record->fmr_owner == FMR_OWN_FREE;
        uint64_t record_end;
        sane = !last_seen && record_is_sane(record, &head->fmh_recs[0], physical_min, end, is_free,
                                            device_size, &record_end);
        if (!sane)
            break;
        last_seen = (record->fmr_flags & FMR_OF_LAST) != 0;
        physical_min = is_free ? record_end : record->fmr_physical;
        end = max_u64(end, record_end);
        if (!is_free)
            continue;
        int rc = extent_list_add(used, used_from, record->fmr_physical - used_from, err);
        if (rc < 0)
            return rc;
        used_from = record_end;
        free_bytes += record->fmr_length;
    }
    *ret_sane = sane && last_seen;
    *ret_free = free_bytes;
    return extent_list_add(used, used_from, device_size - used_from, err);
}

/* First fields of an XFS superblock and of an allocation group header (AGF), big-endian on disk:
 * fs/xfs/libxfs/xfs_format.h. */
enum {
    XFS_SB_BLOCKSIZE_AT = 4,
    XFS_SB_AGBLOCKS_AT = 84,
    XFS_SB_AGCOUNT_AT = 88,
    XFS_SB_SECTSIZE_AT = 102,
    XFS_AGF_FREEBLKS_AT = 52,
    XFS_READ_LEN = 4096,
};

static uint32_t get_be32(const uint8_t *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof(value));
    return be32toh(value);
}

static bool read_block(int device_fd, void *buf, uint64_t offset)
{
    ssize_t n;
    do {
        n = pread(device_fd, buf, XFS_READ_LEN, (off_t)offset);
    } while (n < 0 && errno == EINTR);
    return n == XFS_READ_LEN;
}

/* Sum of agf_freeblks: what the free space B-trees hold, without the reserves that statfs hides. */
static bool xfs_sum_free(int device_fd, uint64_t *ret_bytes)
{
    free_mem uint8_t *buf = aligned_alloc(XFS_READ_LEN, XFS_READ_LEN);
    if (buf == NULL || !read_block(device_fd, buf, 0) || memcmp(buf, "XFSB", 4) != 0)
        return false;
    uint64_t block_size = get_be32(buf + XFS_SB_BLOCKSIZE_AT);
    uint64_t group_blocks = get_be32(buf + XFS_SB_AGBLOCKS_AT);
    uint32_t group_count = get_be32(buf + XFS_SB_AGCOUNT_AT);
    uint32_t sector_size = get_be32(buf + XFS_SB_SECTSIZE_AT - 2) & 0xffff;
    uint64_t sum_blocks = 0;
    for (uint32_t i = 0; i < group_count; i++) {
        uint64_t agf_at = i * group_blocks * block_size + sector_size;
        uint64_t block_at = align_down(agf_at, XFS_READ_LEN);
        size_t skip = (size_t)(agf_at - block_at);
        if (skip + 64 > XFS_READ_LEN || !read_block(device_fd, buf, block_at) ||
            memcmp(buf + skip, "XAGF", 4) != 0)
            return false;
        sum_blocks += get_be32(buf + skip + XFS_AGF_FREEBLKS_AT);
    }
    *ret_bytes = sum_blocks * block_size;
    return true;
}

/* ext4's map walks the in-core buddy bitmap, where preallocated blocks count as used: frozen, it
 * may find less than statfs but never more. (Live, statfs lacks what is not allocated yet.) */
static bool free_is_plausible(int mount_fd, int device_fd, uint64_t free_bytes)
{
    struct statfs st;
    uint64_t sum_bytes;
    if (fstatfs(mount_fd, &st) < 0)
        return false;
    if (st.f_type == EXT4_SUPER_MAGIC)
        return free_bytes <= (uint64_t)st.f_bfree * (uint64_t)st.f_bsize;
    if (st.f_type == XFS_SUPER_MAGIC)
        return device_fd >= 0 && xfs_sum_free(device_fd, &sum_bytes) && sum_bytes == free_bytes;
    return false;
}

int fsmap_used(int mount_fd, int device_fd, uint64_t device_size, struct extent_list *ret,
               bool *ret_trusted, struct err *err)
{
    free_mem struct fsmap_head *head = NULL;
    int rc = read_map(mount_fd, &head, err);
    if (rc < 0)
        return rc;
    struct extent_list used = {0};
    uint64_t free_bytes = 0;
    bool trusted = false;
    if (head != NULL) {
        rc = collect_used(head, device_size, &used, &free_bytes, &trusted, err);
        trusted = trusted && free_is_plausible(mount_fd, device_fd, free_bytes);
    }
    if (rc == 0 && !trusted) {
        extent_list_release(&used);
        used = (struct extent_list){0};
        rc = extent_list_add(&used, 0, device_size, err);
    }
    if (rc < 0) {
        extent_list_release(&used);
        return rc;
    }
    extent_list_normalise(&used);
    *ret = used;
    *ret_trusted = trusted;
    return 0;
}

enum {
    FIEMAP_BATCH = 256,
    FIEMAP_NO_PLACE = FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_ENCODED |
                      FIEMAP_EXTENT_DATA_ENCRYPTED | FIEMAP_EXTENT_NOT_ALIGNED |
                      FIEMAP_EXTENT_DATA_INLINE | FIEMAP_EXTENT_DATA_TAIL
};

static unsigned flags_of(const struct fiemap_extent *extent)
{
    unsigned flags = FSMAP_PLAIN;
    if (extent->fe_flags & FIEMAP_EXTENT_SHARED)
        flags |= FSMAP_SHARED;
    if (extent->fe_flags & FIEMAP_NO_PLACE)
        flags |= FSMAP_UNPLAIN;
    if (extent->fe_flags & FIEMAP_EXTENT_UNWRITTEN)
        flags |= FSMAP_UNWRITTEN;
    return flags;
}

/* One batch from *start on; *ret_last when it was the end of the file. */
static int read_extents(int fd, struct fiemap *map, uint64_t *start, struct extent_list *list,
                        unsigned *flags, bool *ret_last, struct err *err)
{
    memset(map, 0, sizeof(*map));
    map->fm_start = *start;
    map->fm_length = FIEMAP_MAX_OFFSET - *start;
    map->fm_flags = FIEMAP_FLAG_SYNC;
    map->fm_extent_count = FIEMAP_BATCH;
    if (ioctl(fd, FS_IOC_FIEMAP, map) < 0)
        return err_sys(err, ERR_DEVICE, "read the extents of a file (FS_IOC_FIEMAP)");
    *ret_last = map->fm_mapped_extents == 0;
    for (unsigned i = 0; i < map->fm_mapped_extents; i++) {
        const struct fiemap_extent *extent = &map->fm_extents[i];
        int rc = extent_list_add(list, extent->fe_physical, extent->fe_length, err);
        if (rc < 0)
            return rc;
        *flags |= flags_of(extent);
        *start = extent->fe_logical + extent->fe_length;
        *ret_last = (extent->fe_flags & FIEMAP_EXTENT_LAST) != 0;
    }
    return 0;
}

int fsmap_file(int fd, struct extent_list *ret, unsigned *ret_flags, struct err *err)
{
    size_t len = sizeof(struct fiemap) + FIEMAP_BATCH * sizeof(struct fiemap_extent);
    free_mem struct fiemap *map = malloc(len);
    if (map == NULL)
        return err_set(err, ERR_INTERNAL, "no memory for %zu bytes", len);
    struct extent_list list = {0};
    uint64_t start = 0;
    unsigned flags = FSMAP_PLAIN;
    bool last = false;
    while (!last) {
        int rc = read_extents(fd, map, &start, &list, &flags, &last, err);
        if (rc < 0) {
            extent_list_release(&list);
            return rc;
        }
    }
    *ret = list;
    *ret_flags = flags;
    return 0;
}
