/* Mounting and unmounting without mount(8): the options are known, and /etc/fstab must not have a
 * say. Plus the walk that looks for data directories. */
#include "agent/volume.h"
#include "agent/clock.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>

#include "io/mountinfo.h"

/* --- mounting -----------------------------------------------------------------------------------
 */

static const struct {
    const char *name;
    unsigned long flag;
} mount_flags[] = {{"nosuid", MS_NOSUID},
                   {"nodev", MS_NODEV},
                   {"noexec", MS_NOEXEC},
                   {"noatime", MS_NOATIME},
                   {"nodiratime", MS_NODIRATIME},
                   {"relatime", MS_RELATIME},
                   {"strictatime", MS_STRICTATIME},
                   {"lazytime", MS_LAZYTIME},
                   {"sync", MS_SYNCHRONOUS},
                   {"dirsync", MS_DIRSYNC},
                   {"ro", 0},
                   {"rw", 0},
                   {"defaults", 0}};

static void add_data(char *data, size_t len, const char *option)
{
    size_t used = strlen(data);
    (void)snprintf(data + used, len - used, "%s%s", used > 0 ? "," : "", option);
}

/* Splits "noatime,discard" into flags of mount(2) and the string for the filesystem. */
static unsigned long split_options(const char *options, char *data, size_t data_len)
{
    char list[512];
    char *save = NULL;
    unsigned long flags = 0;
    data[0] = '\0';
    (void)snprintf(list, sizeof(list), "%s", options);
    for (char *word = strtok_r(list, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
        bool known = false;
        for (size_t i = 0; i < ARRAY_LEN(mount_flags); i++) {
            if (strcmp(mount_flags[i].name, word) != 0)
                continue;
            flags |= mount_flags[i].flag;
            known = true;
        }
        if (!known)
            add_data(data, data_len, word);
    }
    return flags;
}

struct uuid_query {
    const char *uuid;
    const char *device;
    bool hit;
};

static int match_uuid(void *ctx, const struct mount_entry *entry)
{
    struct uuid_query *query = ctx;
    struct device_identity identity;
    struct err ignored;
    char node[256];
    if (entry->major == 0 || strcmp(entry->fs_type, "xfs") != 0 ||
        device_node_path(entry->major, entry->minor, entry->source, node, sizeof(node), &ignored) <
            0 ||
        strcmp(node, query->device) == 0 || device_identify(node, &identity, &ignored) < 0)
        return 0;
    query->hit = strcmp(identity.fs_uuid, query->uuid) == 0;
    return query->hit;
}

/* XFS refuses a second filesystem with the UUID of a mounted one (a copy beside its original). */
static bool needs_nouuid(const char *device, const char *fs_type)
{
    struct device_identity identity;
    struct err ignored;
    if (strcmp(fs_type, "xfs") != 0 || device_identify(device, &identity, &ignored) < 0)
        return false;
    struct uuid_query query = {.uuid = identity.fs_uuid, .device = identity.path};
    (void)mount_each(match_uuid, &query, &ignored);
    return query.hit;
}

/* EBUSY may pass: a ring that wrote to the device lets go of it a moment after the descriptor was
 * closed (io_uring ends its rings in a worker), and so does a mount namespace that is going away.
 * Every restore meets the first, so the first pauses are short. */
static int mount_patiently(const char *device, const char *mount_point, const char *fs_type,
                           unsigned long flags, const char *data)
{
    enum { PAUSE_MAX_MS = 64, PATIENCE_MS = 10000 };
    unsigned waited_ms = 0, next_ms = 1;
    while (mount(device, mount_point, fs_type, flags, data) < 0) {
        if (errno != EBUSY || waited_ms >= PATIENCE_MS)
            return -1;
        pause_ms(next_ms);
        waited_ms += next_ms;
        next_ms = (unsigned)min_u64(next_ms * 2, PAUSE_MAX_MS);
    }
    return 0;
}

int volume_mount(const char *device, const char *mount_point, const char *fs_type,
                 const char *options, bool read_only, struct err *err)
{
    char data[512];
    unsigned long flags = split_options(options, data, sizeof(data));
    if (read_only)
        flags |= MS_RDONLY;
    if (needs_nouuid(device, fs_type))
        add_data(data, sizeof(data), "nouuid");
    if (mount_patiently(device, mount_point, fs_type, flags, data) == 0)
        return 0;
    int saved = errno;
    if (saved == EINVAL && strcmp(fs_type, "xfs") == 0 && !strstr(data, "nouuid")) {
        /* A twin that is being mounted is in no table yet: nodes of one host, restored together. */
        add_data(data, sizeof(data), "nouuid");
        if (mount_patiently(device, mount_point, fs_type, flags, data) == 0)
            return 0;
        saved = errno;
    }
    errno = saved;
    err_sys(err, saved == EBUSY ? ERR_BUSY : ERR_DEVICE, "mount '%s' (%s) on '%s'", device, fs_type,
            mount_point);
    if (saved == EBUSY)
        err_hint(err, "the device or the mount point is in use");
    else if (saved == EINVAL || saved == EUCLEAN)
        err_hint(err, "dmesg says what is wrong with the filesystem or the options '%s'", options);
    return -(int)err->code;
}

/* --- unmounting ---------------------------------------------------------------------------------
 */

static bool link_is_below(const char *link, const char *mount_point)
{
    char target[PATH_MAX];
    size_t len = strlen(mount_point);
    ssize_t n = readlink(link, target, sizeof(target) - 1);
    if (n <= 0)
        return false;
    target[n] = '\0';
    return strncmp(target, mount_point, len) == 0 && (target[len] == '\0' || target[len] == '/');
}

static bool process_holds(const char *pid, const char *mount_point)
{
    static const char *const links[] = {"cwd", "root", "exe"};
    char path[PATH_MAX];
    for (size_t i = 0; i < ARRAY_LEN(links); i++) {
        (void)snprintf(path, sizeof(path), "/proc/%s/%s", pid, links[i]);
        if (link_is_below(path, mount_point))
            return true;
    }
    (void)snprintf(path, sizeof(path), "/proc/%s/fd", pid);
    DIR *dir = opendir(path);
    bool found = false;
    for (struct dirent *entry; dir != NULL && !found && (entry = readdir(dir)) != NULL;) {
        (void)snprintf(path, sizeof(path), "/proc/%s/fd/%s", pid, entry->d_name);
        found = link_is_below(path, mount_point);
    }
    if (dir != NULL)
        (void)closedir(dir);
    return found;
}

/* "1234 (postgres), 1240 (psql)": what a person needs to know about EBUSY. */
static void name_holders(const char *mount_point, char *ret, size_t ret_len)
{
    enum { NAMED_MAX = 4 };
    unsigned named = 0;
    DIR *dir = opendir("/proc");
    ret[0] = '\0';
    for (struct dirent *entry;
         dir != NULL && named < NAMED_MAX && (entry = readdir(dir)) != NULL;) {
        if (!isdigit((unsigned char)entry->d_name[0]) || !process_holds(entry->d_name, mount_point))
            continue;
        char path[64], comm[32] = "?";
        (void)snprintf(path, sizeof(path), "/proc/%.16s/comm", entry->d_name);
        close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd >= 0 ? read(fd, comm, sizeof(comm) - 1) : 0;
        comm[n > 0 ? n - 1 : 1] = '\0';
        size_t len = strlen(ret);
        (void)snprintf(ret + len, ret_len - len, "%s%s (%s)", named++ > 0 ? ", " : "",
                       entry->d_name, comm);
    }
    if (dir != NULL)
        (void)closedir(dir);
}

int volume_unmount(const char *mount_point, unsigned timeout_s, struct err *err)
{
    enum { PAUSE_MS = 100 };
    for (unsigned waited_ms = 0; umount2(mount_point, 0) < 0; waited_ms += PAUSE_MS) {
        if (errno == EINVAL || errno == ENOENT)
            return 0; /* not mounted */
        if (errno != EBUSY)
            return err_sys(err, ERR_DEVICE, "unmount '%s'", mount_point);
        if (waited_ms >= timeout_s * 1000) {
            char holders[256];
            name_holders(mount_point, holders, sizeof(holders));
            err_set(err, ERR_BUSY, "'%s' cannot be unmounted: in use%s%s", mount_point,
                    holders[0] != '\0' ? " by " : "", holders);
            return err_hint(err, "end these processes (fuser -vm '%s')", mount_point);
        }
        (void)nanosleep(&(struct timespec){.tv_nsec = PAUSE_MS * 1000000L}, NULL);
    }
    return 0;
}

/* --- data directories ---------------------------------------------------------------------------
 */

enum { WALK_DEPTH_MAX = 8 };

struct walk {
    dev_t device;
    int (*each)(void *ctx, const char *path, struct err *err);
    void *ctx;
    struct err *err;
};

static bool is_data_directory(int dir_fd)
{
    return faccessat(dir_fd, "PG_VERSION", F_OK, 0) == 0 &&
           faccessat(dir_fd, "global/pg_control", F_OK, 0) == 0;
}

static int walk_directory(const struct walk *walk, int parent_fd, const char *name,
                          const char *path, unsigned depth)
{
    close_fd int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP))
        return 0; /* gone meanwhile */
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(walk->err, ERR_DEVICE, "open '%s'", path);
    if (st.st_dev != walk->device)
        return 0;
    if (is_data_directory(fd))
        return walk->each(walk->ctx, path, walk->err);
    if (depth >= WALK_DEPTH_MAX)
        return 0;
    int dup_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    DIR *dir = dup_fd >= 0 ? fdopendir(dup_fd) : NULL;
    if (dir == NULL)
        return err_sys(walk->err, ERR_DEVICE, "read '%s'", path);
    int rc = 0;
    for (struct dirent *entry; rc == 0 && (entry = readdir(dir)) != NULL;) {
        if (entry->d_type != DT_DIR && entry->d_type != DT_UNKNOWN)
            continue;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        char below[PATH_MAX];
        (void)snprintf(below, sizeof(below), "%s%s%s", path, strcmp(path, "/") == 0 ? "" : "/",
                       entry->d_name);
        rc = walk_directory(walk, fd, entry->d_name, below, depth + 1);
    }
    (void)closedir(dir);
    return rc;
}

int volume_find_data_directories(const char *mount_point,
                                 int (*each)(void *ctx, const char *path, struct err *err),
                                 void *ctx, struct err *err)
{
    struct stat st;
    if (stat(mount_point, &st) < 0)
        return err_sys(err, ERR_DEVICE, "stat '%s'", mount_point);
    struct walk walk = {.device = st.st_dev, .each = each, .ctx = ctx, .err = err};
    return walk_directory(&walk, AT_FDCWD, mount_point, mount_point, 0);
}
