/* May this device be overwritten? Nobody needs to say so for a blank one of sufficient size, for
 * the very filesystem that the snapshot was taken from, and for a device that an unfinished restore
 * marked. Everything else must be named by something that the device itself answers (WWN, serial,
 * dm uuid), or, as loop devices, LVs and virtio disks have none of these, by path, size and
 * diskseq: a number that the kernel gives to one attachment of one device and never again. */
#include "agent/restore.h"
#include "io/pull.h"

#include <stdio.h>
#include <sys/stat.h>

void restore_device_name(const struct device_identity *identity, char *ret, size_t size)
{
    if (identity->wwn[0])
        (void)snprintf(ret, size, "%s", identity->wwn);
    else if (identity->serial[0])
        (void)snprintf(ret, size, "%s", identity->serial);
    else if (identity->dm_uuid[0])
        (void)snprintf(ret, size, "%s", identity->dm_uuid);
    else
        (void)snprintf(ret, size, "%s:%llu:%llu", identity->path,
                       (unsigned long long)identity->size, (unsigned long long)identity->diskseq);
}

static bool is_named(const struct restore *restore, const struct restore_volume *volume)
{
    const char *text =
        restore->request.overwrite
            ? json_string_value(json_object_get(restore->request.overwrite, volume->name))
            : NULL;
    const struct device_identity *identity = &volume->identity;
    char place[512];
    (void)snprintf(place, sizeof(place), "%s:%llu:%llu", identity->path,
                   (unsigned long long)identity->size, (unsigned long long)identity->diskseq);
    return text && text[0] &&
           (strcmp(text, identity->wwn) == 0 || strcmp(text, identity->serial) == 0 ||
            strcmp(text, identity->dm_uuid) == 0 || strcmp(text, place) == 0);
}

static int hint_overwrite(const struct restore_volume *volume, struct err *err)
{
    char name[512];
    restore_device_name(&volume->identity, name, sizeof(name));
    return err_hint(err, "if everything on it may be destroyed, say --overwrite=%s=%s",
                    volume->name, name);
}

bool restore_is_marked(const char *path, const uint8_t *job_id, struct err *err)
{
    struct device device;
    uint8_t found[16];
    uint64_t size;
    if (device_open_read(path, &device, err) < 0)
        return false;
    int rc = device_read_mark(&device, found, &size, err);
    device_close(&device);
    return rc == 0 && (!job_id || memcmp(found, job_id, sizeof(found)) == 0);
}

static enum device_content classify(const struct restore *restore,
                                    const struct restore_volume *volume)
{
    const struct record_volume *record = &restore->record.volumes[volume->index];
    const struct device_identity *identity = &volume->identity;
    struct err ignored;
    if (record->fs_uuid[0] && strcmp(identity->fs_uuid, record->fs_uuid) == 0 &&
        strcmp(identity->fs_type, record->fs_type) == 0)
        return CONTENT_OWN;
    if (identity->has_signature)
        return CONTENT_FOREIGN;
    return restore_is_marked(identity->path, NULL, &ignored) ? CONTENT_MARKED : CONTENT_BLANK;
}

static int check_size(const struct restore_volume *volume, struct err *err)
{
    if (volume->identity.size >= volume->manifest.size)
        return 0;
    (void)err_set(err, ERR_DEVICE, "device '%s' is too small for volume '%s': %llu of %llu bytes",
                  volume->identity.path, volume->name, (unsigned long long)volume->identity.size,
                  (unsigned long long)volume->manifest.size);
    return err_hint(err, "give a device of at least %llu bytes: --device=%s:/dev/…",
                    (unsigned long long)volume->manifest.size, volume->name);
}

/* The filesystem's smallest unit, from its superblock in the snapshot: XFS sb_sectsize (big-endian,
 * at 102), ext4 s_log_block_size (at 1024 + 24). 0 = unknown. */
static unsigned filesystem_unit(const char *fs_type, const uint8_t *head)
{
    if (strcmp(fs_type, "xfs") == 0)
        return (unsigned)head[102] << 8 | head[103];
    if (strcmp(fs_type, "ext4") == 0 && get_le32(head + 1024 + 24) <= 6)
        return 1024u << get_le32(head + 1024 + 24);
    return 0;
}

/* XFS made with 512-byte sectors does not mount on a device of 4096 ("device supports 4096 byte
 * sectors (not 512)", fs/xfs/xfs_mount.c), nor ext4 with 1 KiB blocks. */
static int check_sectors(struct restore *restore, const struct restore_volume *volume,
                         struct err *err)
{
    const struct record_volume *record = &restore->record.volumes[volume->index];
    uint32_t sector = volume->identity.logical_sector;
    if (sector <= record->logical_sector)
        return 0;
    uint8_t head[PULL_HEAD_LEN];
    int rc =
        pull_read(restore->store, &restore->repo, &volume->manifest, 0, head, sizeof(head), err);
    if (rc < 0)
        return rc;
    unsigned unit = filesystem_unit(record->fs_type, head);
    if (unit >= sector)
        return 0;
    (void)err_set(err, ERR_REFUSED,
                  "device '%s' has sectors of %u bytes; the %s of volume '%s' was made for %u and "
                  "would not mount",
                  volume->identity.path, sector, record->fs_type, volume->name,
                  unit ? unit : record->logical_sector);
    return err_hint(err, "give a device with %u-byte logical sectors", record->logical_sector);
}

/* Mounted by us at the right place is fine, the fence unmounts it. Elsewhere somebody uses it. */
static int check_use(struct restore *restore, struct restore_volume *volume, struct err *err)
{
    struct device_use use;
    int rc = device_check_use(&volume->identity, &use, err);
    if (rc < 0)
        return rc;
    const struct device_identity *identity = &volume->identity;
    if (use.mounted && strcmp(use.mount_point, volume->mount_point) != 0) {
        (void)err_set(err, ERR_BUSY, "device '%s' for volume '%s' is mounted on '%s'",
                      identity->path, volume->name, use.mount_point);
        return err_hint(err, "unmount it first, or give another device: --device=%s:/dev/…",
                        volume->name);
    }
    if (!use.mounted && use.held) {
        (void)err_set(err, ERR_BUSY,
                      "device '%s' for volume '%s' is in use (swap, device-mapper, RAID, or "
                      "another program holds it)",
                      identity->path, volume->name);
        return err_hint(err, "`lsblk %s` shows by what", identity->path);
    }
    struct stat device, state;
    if (use.mounted && stat(volume->mount_point, &device) == 0 &&
        stat(restore->conf.state_dir, &state) == 0 && device.st_dev == state.st_dev)
        return err_set(err, ERR_REFUSED, "state_dir '%s' lies on volume '%s' itself",
                       restore->conf.state_dir, volume->name);
    return 0;
}

struct other_data {
    const struct restore *restore;
    char found[1024];
};

static int each_data_directory(void *ctx, const char *path, struct err *err)
{
    (void)err;
    struct other_data *other = ctx;
    if (strcmp(path, other->restore->data_directory) != 0 && !other->found[0])
        (void)snprintf(other->found, sizeof(other->found), "%s", path);
    return 0;
}

/* Overwriting the volume would also overwrite a server that the snapshot may not even contain. */
int restore_check_other_data(const struct restore *restore, const struct restore_volume *volume,
                             struct err *err)
{
    struct other_data other = {.restore = restore};
    int rc = volume_find_data_directories(volume->mount_point, each_data_directory, &other, err);
    if (rc < 0 || !other.found[0])
        return rc;
    (void)err_set(err, ERR_REFUSED, "volume '%s' holds another data directory, '%s'", volume->name,
                  other.found);
    return err_hint(err, "a restore would overwrite it too: move it to a volume of its own first");
}

/* What is mounted at our place: the device itself, or the old volume while a new device was given
 * (the fence then unmounts and salvages it). Anything else would only be hidden by our mount. */
static int check_mount_point(struct restore *restore, struct restore_volume *volume,
                             struct err *err)
{
    struct mount_entry entry;
    if (!restore_find_mount(volume->mount_point, &entry))
        return 0;
    const struct record_volume *record = &restore->record.volumes[volume->index];
    struct device_identity identity;
    bool same = entry.major == volume->identity.major && entry.minor == volume->identity.minor;
    if (!same) {
        int rc = device_identify(entry.source, &identity, err);
        if (rc < 0 || !record->fs_uuid[0] || strcmp(identity.fs_uuid, record->fs_uuid) != 0) {
            (void)err_set(err, ERR_REFUSED,
                          "'%s' is mounted on '%s', the place of volume '%s', and is not the "
                          "volume of the snapshot",
                          entry.source, volume->mount_point, volume->name);
            return err_hint(err, "unmount it, or name it with --device=%s:%s", volume->name,
                            entry.source);
        }
    }
    volume->was_mounted = true;
    (void)snprintf(volume->was_device, sizeof(volume->was_device), "%s",
                   same ? volume->identity.path : identity.path);
    (void)snprintf(volume->was_type, sizeof(volume->was_type), "%s", entry.fs_type);
    (void)snprintf(volume->was_options, sizeof(volume->was_options), "%s,%s", entry.options,
                   entry.super_options);
    return 0;
}

static int check_content(const struct restore_volume *volume, struct err *err)
{
    if (volume->content != CONTENT_FOREIGN || volume->named)
        return 0;
    const struct device_identity *identity = &volume->identity;
    (void)err_set(err, ERR_REFUSED,
                  "device '%s' for volume '%s' is not blank and not the one of the snapshot: it "
                  "holds %s%s%s",
                  identity->path, volume->name, identity->signature,
                  identity->fs_uuid[0] ? " " : "", identity->fs_uuid);
    return hint_overwrite(volume, err);
}

int restore_inspect_device(struct restore *restore, struct restore_volume *volume, json_t *warnings,
                           struct err *err)
{
    int rc = device_identify(volume->given, &volume->identity, err);
    if (rc < 0)
        return err_prefix(err, "volume '%s'", volume->name);
    if (!volume->identity.is_block)
        return err_set(err, ERR_REFUSED, "'%s' for volume '%s' is not a block device",
                       volume->given, volume->name);
    volume->content = classify(restore, volume);
    volume->named = is_named(restore, volume);
    rc = check_size(volume, err);
    if (rc == 0)
        rc = check_use(restore, volume, err);
    if (rc == 0)
        rc = check_mount_point(restore, volume, err);
    /* Mounted at its place in the configuration, with an empty data directory: Patroni's by right,
     * whoever made its filesystem. */
    volume->named |= restore_is_handover(restore) && volume->was_mounted;
    if (rc == 0)
        rc = check_content(volume, err);
    if (rc == 0)
        rc = check_sectors(restore, volume, err);
    if (rc == 0)
        rc = volume->was_mounted ? restore_check_other_data(restore, volume, err) : 0;
    if (rc == 0 && volume->identity.size > volume->manifest.size)
        json_append_text(warnings,
                         "device '%s' is larger than volume '%s': grow the filesystem later",
                         volume->identity.path, volume->name);
    return rc;
}

/* The snapshot's filesystem is what we look for when the plan saw it, or when our own commit may
 * have written it. On a device that was blank it would be somebody's: names like /dev/sdc move. */
static bool is_own_filesystem(const struct restore *restore, const struct restore_volume *volume,
                              const struct device_identity *now)
{
    const struct record_volume *record = &restore->record.volumes[volume->index];
    return record->fs_uuid[0] && strcmp(now->fs_uuid, record->fs_uuid) == 0 &&
           (volume->content == CONTENT_OWN ||
            json_is_true(json_object_get(restore->job->journal, "heads_written")));
}

/* In `pulling` every mark was there, durably. Where ours gave way to a filesystem or to the mark of
 * another restore, somebody wanted that: it is his to say that it may go, with a new plan. */
static bool is_taken(const struct restore *restore, const struct device_identity *now)
{
    const json_t *journal = restore->job->journal;
    struct err ignored;
    bool marks = json_is(journal, "step", "pulling") &&
                 !json_is_true(json_object_get(journal, "heads_written"));
    return marks && !restore_is_marked(now->path, restore->job_id, &ignored) &&
           (now->has_signature || restore_is_marked(now->path, NULL, &ignored));
}

/* Between plan and write, or after a reboot, the same path may lead to another device. */
int restore_recheck_device(struct restore *restore, struct restore_volume *volume, struct err *err)
{
    struct device_identity planned = volume->identity, now;
    struct err ignored;
    int rc = device_identify(volume->given, &now, err);
    if (rc < 0)
        return err_prefix(err, "volume '%s'", volume->name);
    bool same = now.size == planned.size && now.logical_sector == planned.logical_sector &&
                strcmp(now.wwn, planned.wwn) == 0 && strcmp(now.serial, planned.serial) == 0;
    bool attached =
        now.diskseq == planned.diskseq && now.diskseq != 0 && strcmp(now.path, planned.path) == 0;
    bool known = attached || restore_is_marked(now.path, restore->job_id, &ignored) ||
                 is_own_filesystem(restore, volume, &now) ||
                 !now.has_signature; /* half marked: signatures go before the marker comes */
    if (!same || !known) {
        (void)err_set(err, ERR_REFUSED, "'%s' is not the device that was planned for volume '%s'",
                      volume->given, volume->name);
        return err_hint(err, "attach the right one at this path and resume, or plan again");
    }
    if (is_taken(restore, &now)) {
        (void)err_set(err, ERR_REFUSED,
                      "'%s' of volume '%s' has lost the mark of this restore: somebody wrote to it",
                      volume->given, volume->name);
        return err_hint(err,
                        "attach the right device and resume, or give this restore up with "
                        "`tidemark cancel %s` and restore anew",
                        restore->job->id);
    }
    volume->identity = now;
    return 0;
}
