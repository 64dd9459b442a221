/* What keeps a volume from being captured. Each refusal has its own text and a hint that says what
 * to do: a person reads them once, when setting Tidemark up. */
#include "agent/volume.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "io/device_sysfs.h"
#include "io/mountinfo.h"

/* First fields of an ext4 superblock, little-endian, 1024 bytes into the device
 * (Documentation/filesystems/ext4/super.rst), and of an XFS one, big-endian (xfs_format.h). */
enum {
    HEAD_LEN = 4096,
    EXT4_SUPER_AT = 1024,
    EXT4_COMPAT_AT = EXT4_SUPER_AT + 0x5c,
    EXT4_COMPAT_HAS_JOURNAL = 4,
    EXT4_JOURNAL_INODE_AT = EXT4_SUPER_AT + 0xe0,
    XFS_RBLOCKS_AT = 16,
    XFS_LOGSTART_AT = 48,
};

static int refuse_path(const struct volume *volume, const char *path, const char *what,
                       const char *option, struct err *err)
{
    err_set(err, ERR_REFUSED, "volume %s holds %s ('%s')", volume->conf->name, what, path);
    return err_hint(err,
                    "while the volume is frozen or restored it could not be used: move it to "
                    "another filesystem%s%s",
                    option[0] != '\0' ? ", option " : "", option);
}

/* Where a job and the agent that started it log to: whoever logs would stand still. */
static int check_log(const struct volume *volume, struct err *err)
{
    const pid_t pids[] = {getpid(), getppid()};
    for (size_t i = 0; i < ARRAY_LEN(pids); i++) {
        char link[40], target[PATH_MAX];
        (void)snprintf(link, sizeof(link), "/proc/%d/fd/%d", (int)pids[i], STDERR_FILENO);
        ssize_t len = readlink(link, target, sizeof(target) - 1);
        if (len <= 0 || !volume_holds_path(volume, link))
            continue;
        target[len] = '\0';
        return refuse_path(volume, target, "the agent's log", "", err);
    }
    return 0;
}

/* What we ourselves need while the volume is frozen or gone. */
static int check_own_files(const struct conf *conf, const struct volume *volume, struct err *err)
{
    char self[PATH_MAX] = "";
    ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (len > 0)
        self[len] = '\0';
    if (volume_holds_path(volume, conf->state_dir))
        return refuse_path(volume, conf->state_dir, "the agent's state directory", "state_dir",
                           err);
    if (volume_holds_path(volume, conf->socket))
        return refuse_path(volume, conf->socket, "the agent's socket", "socket", err);
    if (volume_holds_path(volume, self))
        return refuse_path(volume, self, "the agent's program", "", err);
    if (strncmp(conf->repository_url, "file://", 7) == 0 &&
        volume_holds_path(volume, conf->repository_url + 7))
        return refuse_path(volume, conf->repository_url + 7, "the repository", "url", err);
    return check_log(volume, err);
}

static bool is_on_volume(const char *path, const struct volume *volume)
{
    struct stat st, mount;
    if (stat(path, &st) < 0)
        return false;
    if (S_ISBLK(st.st_mode))
        return st.st_rdev == makedev(volume->device.major, volume->device.minor);
    return volume->mounted && fstat(volume->mount_fd, &mount) == 0 && mount.st_dev == st.st_dev;
}

/* Swapping bypasses the freeze, and a frozen or restored volume under swap hangs the host. */
static int check_swap(const struct volume *volume, struct err *err)
{
    FILE *file = fopen("/proc/swaps", "re");
    if (file == NULL)
        return 0; /* a kernel without swap */
    char line[PATH_MAX], path[PATH_MAX];
    bool found = false;
    while (!found && fgets(line, sizeof(line), file) != NULL)
        found = proc_field(line, path, sizeof(path)) != NULL && path[0] == '/' &&
                is_on_volume(path, volume);
    (void)fclose(file);
    if (!found)
        return 0;
    err_set(err, ERR_REFUSED, "volume %s: there is swap on it ('%s')", volume->conf->name, path);
    return err_hint(err, "swapoff '%s', and take it out of /etc/fstab", path);
}

/* A loop image on another volume of the group: freezing that one first would hold up the flush of
 * this one for ever. */
static int check_nesting(const struct volume_group *group, const struct volume *volume,
                         struct err *err)
{
    char image[PATH_MAX];
    if (!sysfs_attribute(&volume->device, "loop/backing_file", image, sizeof(image)))
        return 0;
    int on = volume_group_find_path(group, image);
    if (on < 0)
        return 0;
    err_set(err, ERR_REFUSED, "volume %s: its loop image '%s' lies on volume %s",
            volume->conf->name, image, group->volumes[on].conf->name);
    return err_hint(err, "volumes of one group must not lie in one another");
}

static int check_queue(const struct volume *volume, const char *mount_options, struct err *err)
{
    char text[64];
    if (sysfs_attribute(&volume->device, "queue/zoned", text, sizeof(text)) &&
        strcmp(text, "none") != 0) {
        err_set(err, ERR_REFUSED, "volume %s: '%s' is a zoned device (%s)", volume->conf->name,
                volume->device.path, text);
        return err_hint(err, "zoned devices cannot be captured");
    }
    bool dax_off = strstr(mount_options, "dax=never") != NULL;
    bool dax = mount_has_option(mount_options, "dax") ||
               (sysfs_attribute(&volume->device, "queue/dax", text, sizeof(text)) &&
                strcmp(text, "1") == 0);
    if (dax && !dax_off) {
        err_set(err, ERR_REFUSED, "volume %s: DAX: writes pass the block layer by",
                volume->conf->name);
        return err_hint(err, "mount it with dax=never");
    }
    return 0;
}

static int check_fs_type(const struct volume *volume, const char *fs_type, struct err *err)
{
    if (strcmp(fs_type, "ext4") == 0 || strcmp(fs_type, "xfs") == 0)
        return 0;
    bool many = strcmp(fs_type, "btrfs") == 0 || strcmp(fs_type, "zfs") == 0 ||
                strcmp(fs_type, "bcachefs") == 0;
    if (many)
        err_set(err, ERR_REFUSED, "volume %s: %s may spread over several devices",
                volume->conf->name, fs_type);
    else
        err_set(err, ERR_REFUSED, "volume %s: %s%s", volume->conf->name,
                fs_type[0] != '\0' ? "unknown filesystem " : "there is no filesystem", fs_type);
    return err_hint(err, "ext4 and XFS can be captured");
}

static int read_super(const struct volume *volume, uint8_t *buf, struct err *err)
{
    close_fd int fd = open(volume->device.path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", volume->device.path);
    ssize_t n;
    do {
        n = pread(fd, buf, HEAD_LEN, 0);
    } while (n < 0 && errno == EINTR);
    if (n != HEAD_LEN)
        return err_sys(err, ERR_DEVICE, "read the superblock of '%s'", volume->device.path);
    return 0;
}

static uint64_t get_be64(const uint8_t *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof(value));
    return be64toh(value);
}

/* A journal or log on another device would not be part of the image. */
static int check_one_device(const struct volume *volume, const char *fs_type, struct err *err)
{
    free_mem uint8_t *buf = aligned_alloc(HEAD_LEN, HEAD_LEN);
    if (buf == NULL)
        return err_set(err, ERR_INTERNAL, "no memory");
    int rc = read_super(volume, buf, err);
    if (rc < 0)
        return rc;
    const char *what = NULL;
    if (strcmp(fs_type, "ext4") == 0) {
        if ((get_le32(buf + EXT4_COMPAT_AT) & EXT4_COMPAT_HAS_JOURNAL) &&
            get_le32(buf + EXT4_JOURNAL_INODE_AT) == 0)
            what = "journal";
    } else if (get_be64(buf + XFS_LOGSTART_AT) == 0) {
        what = "log";
    } else if (get_be64(buf + XFS_RBLOCKS_AT) != 0) {
        what = "real-time section";
    }
    if (what == NULL)
        return 0;
    err_set(err, ERR_REFUSED, "volume %s: the %s of its filesystem is on another device",
            volume->conf->name, what);
    return err_hint(err, "use a filesystem with an internal %s", what);
}

struct options_query {
    const struct volume *volume;
    char fs_type[64];
    char options[1100];
};

static int take_options(void *ctx, const struct mount_entry *entry)
{
    struct options_query *query = ctx;
    if (entry->major != query->volume->device.major || entry->minor != query->volume->device.minor)
        return 0;
    (void)snprintf(query->fs_type, sizeof(query->fs_type), "%s", entry->fs_type);
    (void)snprintf(query->options, sizeof(query->options), "%s,%s", entry->options,
                   entry->super_options);
    return 1;
}

/* Its journal replay would put back an old pg_control over the one that restore writes last
 * (tried); a freeze by us empties the journal. */
static int check_data_journal(const struct volume *volume, const char *options, struct err *err)
{
    if (!mount_has_option(options, "data") || strstr(options, "data=journal") == NULL)
        return 0;
    if (volume->conf->provider != PROVIDER_COMMAND || volume->conf->freeze_by == FREEZE_BY_AGENT)
        return 0;
    err_set(err, ERR_REFUSED, "volume %s: mounted with data=journal and not frozen by the agent",
            volume->conf->name);
    return err_hint(err, "set freeze_by = agent, or mount it with data=ordered");
}

int volume_check(const struct conf *conf, const struct volume_group *group,
                 const struct volume *volume, struct err *err)
{
    struct options_query query = {.volume = volume};
    (void)snprintf(query.fs_type, sizeof(query.fs_type), "%s", volume->device.fs_type);
    int rc = volume->mounted ? mount_each(take_options, &query, err) : 0;
    if (rc < 0 || (rc = check_fs_type(volume, query.fs_type, err)) < 0 ||
        (rc = check_queue(volume, query.options, err)) < 0 ||
        (rc = check_one_device(volume, query.fs_type, err)) < 0 ||
        (rc = check_data_journal(volume, query.options, err)) < 0 ||
        (rc = check_swap(volume, err)) < 0 || (rc = check_nesting(group, volume, err)) < 0)
        return rc;
    return volume->mounted ? check_own_files(conf, volume, err) : 0;
}
