/* Finding the volumes of a server. A mount point and a device are two names for one thing here; the
 * kernel's device number decides, never the source column of mountinfo, which keeps whatever string
 * the mount was made with. */
#include "agent/volume.h"

#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "agent/log.h"
#include "io/mountinfo.h"

/* --- mount entries ---------------------------------------------------------------------------- */

/* Looks for one mount point or for one device number; the last match wins, as it hides the others.
 */
struct mount_query {
    const char *mount_point; /* or NULL: by number */
    unsigned dev_major, dev_minor;
    struct mount_entry entry;
    bool hit;
};

static int match_entry(void *ctx, const struct mount_entry *entry)
{
    struct mount_query *query = ctx;
    bool match = query->mount_point != NULL
                     ? strcmp(entry->mount_point, query->mount_point) == 0
                     : entry->major == query->dev_major && entry->minor == query->dev_minor &&
                           strcmp(entry->root, "/") == 0;
    if (match) {
        query->entry = *entry;
        query->hit = true;
    }
    return 0;
}

/* Options worth giving to a later mount: the generic ones and those that neither depend on the
 * kernel's version nor restate a default that it derives by itself. */
static void keep_option(const char *option, char *to, size_t to_len)
{
    static const char *const kept[] = {
        "nosuid",      "nodev",      "noexec",         "noatime",  "nodiratime", "relatime",
        "strictatime", "lazytime",   "sync",           "dirsync",  "discard",    "data",
        "commit",      "stripe",     "allocsize",      "usrquota", "grpquota",   "prjquota",
        "nobarrier",   "norecovery", "noauto_da_alloc"};
    size_t name_len = strcspn(option, "=");
    for (size_t i = 0; i < ARRAY_LEN(kept); i++) {
        if (strlen(kept[i]) != name_len || strncmp(kept[i], option, name_len) != 0)
            continue;
        size_t len = strlen(to);
        (void)snprintf(to + len, to_len - len, "%s%s", len > 0 ? "," : "", option);
    }
}

static void plain_options(const struct mount_entry *entry, char *ret, size_t ret_len)
{
    ret[0] = '\0';
    const char *lists[] = {entry->options, entry->super_options};
    for (size_t i = 0; i < ARRAY_LEN(lists); i++) {
        char list[512];
        char *save = NULL;
        (void)snprintf(list, sizeof(list), "%s", lists[i]);
        for (char *word = strtok_r(list, ",", &save); word; word = strtok_r(NULL, ",", &save))
            keep_option(word, ret, ret_len);
    }
}

/* --- one volume ------------------------------------------------------------------------------- */

static int use_mount(struct volume *volume, const struct mount_entry *entry, struct err *err)
{
    volume->mounted = true;
    volume->read_only = entry->read_only;
    (void)snprintf(volume->mount_point, sizeof(volume->mount_point), "%s", entry->mount_point);
    plain_options(entry, volume->mount_options, sizeof(volume->mount_options));
    volume->mount_fd = open(entry->mount_point, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (volume->mount_fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", entry->mount_point);
    return 0;
}

static int err_no_device(const struct conf_volume *conf, const struct mount_entry *entry,
                         struct err *err)
{
    err_set(err, ERR_REFUSED,
            "volume %s: '%s' is a %s filesystem without a block device of its own", conf->name,
            entry->mount_point, entry->fs_type);
    return err_hint(err, "ext4 and XFS on one block device can be captured");
}

/* mount = … is a mount point: its device, which must be device = … when that is given too. */
static int resolve_mounted(struct volume *volume, const struct mount_entry *entry, struct err *err)
{
    const struct conf_volume *conf = volume->conf;
    char node[256];
    if (entry->major == 0)
        return err_no_device(conf, entry, err);
    if (strcmp(entry->root, "/") != 0) {
        err_set(err, ERR_REFUSED, "volume %s: '%s' shows only a part ('%s') of its filesystem",
                conf->name, entry->mount_point, entry->root);
        return err_hint(err, "name the mount point of the whole filesystem, not a bind mount");
    }
    int rc = device_node_path(entry->major, entry->minor, entry->source, node, sizeof(node), err);
    if (rc == 0)
        rc = device_identify(node, &volume->device, err);
    if (rc < 0)
        return rc;
    struct stat st;
    if (conf->device[0] == '\0')
        return use_mount(volume, entry, err);
    if (stat(conf->device, &st) < 0)
        return err_sys(err, ERR_DEVICE, "volume %s: stat '%s'", conf->name, conf->device);
    if (!S_ISBLK(st.st_mode) || major(st.st_rdev) != entry->major ||
        minor(st.st_rdev) != entry->minor) {
        err_set(err, ERR_REFUSED, "volume %s: '%s' is mounted from '%s', not from '%s'", conf->name,
                entry->mount_point, node, conf->device);
        return err_hint(err, "correct `device` or `mount` of [volume %s]", conf->name);
    }
    return use_mount(volume, entry, err);
}

/* Nothing is mounted on mount = …, or there is no mount = …: device = … leads. */
static int resolve_device(struct volume *volume, struct err *err)
{
    const struct conf_volume *conf = volume->conf;
    if (conf->device[0] == '\0') {
        err_set(err, ERR_DEVICE, "volume %s: nothing is mounted on '%s'", conf->name, conf->mount);
        return err_hint(err, "mount it, or name its device in [volume %s]", conf->name);
    }
    int rc = device_identify(conf->device, &volume->device, err);
    if (rc < 0 || !volume->device.is_block)
        return rc;
    struct mount_query query = {.dev_major = volume->device.major,
                                .dev_minor = volume->device.minor};
    rc = mount_each(match_entry, &query, err);
    if (rc < 0 || !query.hit)
        return rc;
    if (conf->mount[0] != '\0') {
        err_set(err, ERR_REFUSED, "volume %s: '%s' is mounted on '%s', not on '%s'", conf->name,
                conf->device, query.entry.mount_point, conf->mount);
        return err_hint(err, "correct `device` or `mount` of [volume %s]", conf->name);
    }
    return use_mount(volume, &query.entry, err);
}

static int resolve(const struct conf_volume *conf, struct volume *volume, struct err *err)
{
    *volume = (struct volume){.conf = conf, .mount_fd = -1};
    char resolved[PATH_MAX];
    if (conf->mount[0] != '\0' && realpath(conf->mount, resolved) != NULL) {
        struct mount_query query = {.mount_point = resolved};
        int rc = mount_each(match_entry, &query, err);
        if (rc < 0)
            return rc;
        if (query.hit)
            return resolve_mounted(volume, &query.entry, err);
    }
    return resolve_device(volume, err);
}

/* --- without [volume] sections ------------------------------------------------------------------
 */

/* Adds the filesystem that holds path, once. */
static int find_volume(struct volume_group *group, const char *name, const char *path,
                       struct err *err)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return err_sys(err, ERR_DEVICE, "stat '%s'", path);
    struct mount_query query = {.dev_major = major(st.st_dev), .dev_minor = minor(st.st_dev)};
    int rc = mount_each(match_entry, &query, err);
    if (rc < 0)
        return rc;
    if (!query.hit) {
        err_set(err, ERR_REFUSED, "'%s' lies on no mounted block device", path);
        return err_hint(err, "ext4 and XFS on one block device can be captured");
    }
    for (size_t i = 0; i < group->count; i++)
        if (strcmp(group->found[i].mount, query.entry.mount_point) == 0)
            return 0;
    if (group->count >= CONF_VOLUMES_MAX)
        return err_set(err, ERR_REFUSED, "the server lies on more than %d filesystems",
                       CONF_VOLUMES_MAX);
    struct conf_volume *found = &group->found[group->count++];
    *found = (struct conf_volume){.provider = PROVIDER_PRECOPY};
    (void)snprintf(found->name, sizeof(found->name), "%s", name);
    (void)snprintf(found->mount, sizeof(found->mount), "%s", query.entry.mount_point);
    return 0;
}

static int find_volumes(const struct conf *conf, struct volume_group *group, struct err *err)
{
    if (conf->data_directory[0] == '\0') {
        err_set(err, ERR_CONFIG, "there is no [volume] and no data_directory");
        return err_hint(err, "name at least one of them in the configuration");
    }
    char path[PATH_MAX], name[32];
    int rc = find_volume(group, "pgdata", conf->data_directory, err);
    (void)snprintf(path, sizeof(path), "%s/pg_wal", conf->data_directory);
    if (rc == 0 && access(path, F_OK) == 0)
        rc = find_volume(group, "pgwal", path, err);
    (void)snprintf(path, sizeof(path), "%s/pg_tblspc", conf->data_directory);
    DIR *dir = rc == 0 ? opendir(path) : NULL;
    for (struct dirent *entry; rc == 0 && dir != NULL && (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        (void)snprintf(path, sizeof(path), "%s/pg_tblspc/%s", conf->data_directory, entry->d_name);
        (void)snprintf(name, sizeof(name), "tblspc%zu", group->count);
        rc = find_volume(group, name, path, err);
    }
    if (dir != NULL)
        (void)closedir(dir);
    return rc;
}

/* --- the group -------------------------------------------------------------------------------- */

static int check_distinct(const struct volume_group *group, size_t index, struct err *err)
{
    const struct volume *volume = &group->volumes[index];
    for (size_t i = 0; i < index; i++)
        if (strcmp(group->volumes[i].device.path, volume->device.path) == 0)
            return err_set(err, ERR_CONFIG, "volumes %s and %s are the same device '%s'",
                           group->volumes[i].conf->name, volume->conf->name, volume->device.path);
    return 0;
}

static int open_all(const struct conf *conf, struct volume_group *group, struct err *err)
{
    const struct conf_volume *list = conf->volumes;
    size_t count = conf->volume_count;
    int rc = 0;
    if (count == 0) {
        rc = find_volumes(conf, group, err);
        list = group->found;
        count = group->count;
        group->count = 0;
    }
    for (size_t i = 0; rc == 0 && i < count; i++) {
        group->count = i + 1;
        rc = resolve(&list[i], &group->volumes[i], err);
        if (rc == 0)
            rc = check_distinct(group, i, err);
    }
    for (size_t i = 0; rc == 0 && i < count; i++)
        if (group->volumes[i].mounted)
            rc = volume_check(conf, group, &group->volumes[i], err);
    return rc;
}

int volume_group_open(const struct conf *conf, struct volume_group *ret, struct err *err)
{
    memset(ret, 0, sizeof(*ret)); /* in place: volumes point into it */
    int rc = open_all(conf, ret, err);
    if (rc < 0)
        volume_group_close(ret);
    return rc;
}

void volume_group_close(struct volume_group *group)
{
    if (group == NULL)
        return;
    for (size_t i = 0; i < group->count; i++)
        cleanup_close(&group->volumes[i].mount_fd);
    group->count = 0;
}

/* Number of the filesystem that holds path or its nearest existing parent. */
static bool path_device(const char *path, dev_t *ret)
{
    char copy[PATH_MAX];
    struct stat st;
    (void)snprintf(copy, sizeof(copy), "%s", path);
    while (stat(copy, &st) < 0) {
        char *slash = strrchr(copy, '/');
        if (slash == NULL)
            return false;
        if (slash == copy)
            (void)snprintf(copy, sizeof(copy), "/");
        else
            *slash = '\0';
        if (errno != ENOENT && errno != ENOTDIR)
            return false;
    }
    *ret = st.st_dev;
    return true;
}

bool volume_holds_path(const struct volume *volume, const char *path)
{
    dev_t device;
    struct stat st;
    return volume->mounted && path[0] == '/' && path_device(path, &device) &&
           fstat(volume->mount_fd, &st) == 0 && st.st_dev == device;
}

int volume_group_find_path(const struct volume_group *group, const char *path)
{
    for (size_t i = 0; i < group->count; i++)
        if (volume_holds_path(&group->volumes[i], path))
            return (int)i;
    return -1;
}
