/* Maps at the instant: used blocks, places of files, places of WAL segments. They are trusted only
 * where the filesystem cannot change: frozen by us, or mounted read-only with its log replayed. */
#include "agent/capture_parts.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "io/clock.h"
#include "io/fsmap.h"
#include "io/mountinfo.h"

int capture_use_all(struct capture_volume *volume, struct err *err)
{
    extent_list_release(&volume->used);
    volume->used = (struct extent_list){0};
    volume->used_trusted = false;
    return extent_list_add(&volume->used, 0, volume->live.identity.size, err);
}

/* --- used blocks --------------------------------------------------------------------------------
 */

static int find_no_replay(void *ctx, const struct mount_entry *entry)
{
    const struct device_identity *identity = ctx;
    return entry->major == identity->major && entry->minor == identity->minor &&
           (mount_has_option(entry->super_options, "norecovery") ||
            mount_has_option(entry->super_options, "noload"));
}

/* Mounted without log replay, the map is that of before the replay: a block that the log allocates
 * would be called free. ext4 says whether its journal holds something (s_feature_incompat &
 * RECOVER); XFS does not, in a field that we could read. */
static bool log_is_replayed(const struct capture_volume *volume)
{
    enum { EXT4_INCOMPAT_AT = 1024 + 0x60, EXT4_INCOMPAT_RECOVER = 4, HEAD_LEN = 4096 };
    struct device_identity identity = volume->live.identity;
    struct err ignored;
    if (mount_each(find_no_replay, &identity, &ignored) == 0)
        return true;
    if (strcmp(identity.fs_type, "ext4") != 0)
        return false;
    free_mem uint8_t *head = aligned_alloc(HEAD_LEN, HEAD_LEN);
    return head != NULL && pread(volume->live.fd, head, HEAD_LEN, 0) == HEAD_LEN &&
           !(get_le32(head + EXT4_INCOMPAT_AT) & EXT4_INCOMPAT_RECOVER);
}

static int take_used(struct capture *capture, size_t index, struct err *err)
{
    const struct volume *volume = &capture->group->volumes[index];
    struct capture_volume *to = &capture->volumes[index];
    if (!volume->mounted || (capture->provider == PROVIDER_OFFLINE && !log_is_replayed(to)))
        return capture_use_all(to, err);
    extent_list_release(&to->used);
    to->used = (struct extent_list){0};
    int rc = fsmap_used(volume->mount_fd, to->live.fd, to->live.identity.size, &to->used,
                        &to->used_trusted, err);
    return rc < 0 ? err_prefix(err, "volume %s", volume->conf->name) : 0;
}

int capture_take_used(struct capture *capture, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < capture->group->count; i++)
        rc = take_used(capture, i, err);
    return rc;
}

/* --- files --------------------------------------------------------------------------------------
 */

int capture_take_files(struct capture *capture, struct capture_request *request, struct err *err)
{
    for (size_t i = 0; i < request->file_count; i++) {
        struct capture_file *file = &request->files[i];
        if (volume_group_find_path(capture->group, file->path) < 0) {
            err_set(err, ERR_REFUSED, "'%s' is on none of the volumes", file->path);
            return err_hint(err, "add a [volume] for its filesystem, and mount it");
        }
        close_fd int fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
            return err_sys(err, ERR_DEVICE, "open '%s'", file->path);
        int rc = fsmap_file(fd, &file->extents, &file->flags, err);
        if (rc < 0)
            return err_prefix(err, "'%s'", file->path);
    }
    return 0;
}

/* --- WAL segments -------------------------------------------------------------------------------
 */

static bool is_segment_name(const char *name)
{
    size_t len = 0;
    while (isdigit((unsigned char)name[len]) || (name[len] >= 'A' && name[len] <= 'F'))
        len++;
    return len == 24 && name[len] == '\0';
}

/* Adds the file's extents when they are its own. The extent list of one that is not stays out. */
static int take_segment(int dir_fd, const char *name, struct extent_list *wal, struct err *err)
{
    struct stat st;
    /* O_NONBLOCK: nobody waits, frozen, for the other end of a pipe that has such a name. */
    close_fd int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && (errno == ELOOP || errno == ENOENT || errno == EWOULDBLOCK))
        return 0;
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, ERR_DEVICE, "open the WAL segment '%s'", name);
    if (!S_ISREG(st.st_mode) || st.st_nlink != 1)
        return 0;
    struct extent_list extents = {0};
    unsigned flags = 0;
    int rc = fsmap_file(fd, &extents, &flags, err);
    bool own = !(flags & (FSMAP_SHARED | FSMAP_UNPLAIN));
    for (size_t i = 0; rc == 0 && own && i < extents.count; i++)
        rc = extent_list_add(wal, extents.items[i].offset, extents.items[i].len, err);
    extent_list_release(&extents);
    return rc < 0 ? err_prefix(err, "WAL segment '%s'", name) : 0;
}

/* As many as can be looked at until then. */
static int take_segments(const char *directory, uint64_t until_ns, struct extent_list *wal,
                         struct err *err)
{
    DIR *dir = opendir(directory);
    if (dir == NULL)
        return err_sys(err, ERR_DEVICE, "open '%s'", directory);
    int rc = 0;
    for (struct dirent *entry;
         rc == 0 && monotonic_ns() < until_ns && (entry = readdir(dir)) != NULL;)
        if (is_segment_name(entry->d_name))
            rc = take_segment(dirfd(dir), entry->d_name, wal, err);
    (void)closedir(dir);
    return rc;
}

/* -1: nothing is left out. */
static int wal_volume(const struct capture *capture, const struct capture_request *request)
{
    const char *directory = request->wal_directory;
    return directory != NULL ? volume_group_find_path(capture->group, directory) : -1;
}

int capture_take_wal(struct capture *capture, struct capture_request *request, struct err *err)
{
    int index = wal_volume(capture, request);
    if (index < 0)
        return 0;
    return take_segments(request->wal_directory, UINT64_MAX, &request->ret_wal[index], err);
}

int capture_recheck_wal(struct capture *capture, struct capture_request *request, uint64_t until_ns,
                        size_t *ret_index, struct extent_list *ret_lost, struct err *err)
{
    int index = wal_volume(capture, request);
    if (index < 0)
        return 0;
    struct extent_list *wal = &request->ret_wal[index];
    struct extent_list now = {0}, lost = {0}, left = {0};
    int rc = take_segments(request->wal_directory, until_ns, &now, err);
    extent_list_normalise(&now);
    if (rc == 0)
        rc = extent_list_subtract(wal, &now, &lost, err);
    if (rc == 0)
        rc = extent_list_subtract(wal, &lost, &left, err);
    extent_list_release(&now);
    if (rc < 0) {
        extent_list_release(&lost);
        extent_list_release(&left);
        return rc;
    }
    extent_list_release(wal);
    *wal = left;
    *ret_lost = lost;
    *ret_index = (size_t)index;
    return 0;
}

int capture_take_maps(struct capture *capture, struct capture_request *request, struct err *err)
{
    int rc = capture_take_used(capture, err);
    if (rc == 0)
        rc = capture_take_files(capture, request, err);
    return rc < 0 ? rc : capture_take_wal(capture, request, err);
}

/* --- estimate -----------------------------------------------------------------------------------
 */

static uint64_t wal_bytes(const char *directory)
{
    uint64_t sum = 0;
    DIR *dir = opendir(directory);
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        struct stat st;
        if (is_segment_name(entry->d_name) &&
            fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            sum += (uint64_t)st.st_blocks * 512;
    }
    if (dir != NULL)
        (void)closedir(dir);
    return sum;
}

uint64_t capture_estimate_bytes(const struct capture *capture,
                                const struct capture_request *request)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < capture->group->count; i++) {
        struct statvfs st;
        const struct volume *volume = &capture->group->volumes[i];
        if (volume->mounted && fstatvfs(volume->mount_fd, &st) == 0)
            sum += (uint64_t)(st.f_blocks - st.f_bfree) * st.f_frsize;
        else
            sum += volume->device.size;
    }
    uint64_t wal = request->wal_directory != NULL ? wal_bytes(request->wal_directory) : 0;
    return sum > wal ? sum - wal : 0;
}
