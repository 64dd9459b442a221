/* From the repository onto the devices: mark, pull, commit.
 *
 * Marking begins with the volume that holds pg_control and committing ends with it, so that a
 * server can start neither from a half of the old data nor from a half of the new. Resuming trusts
 * the bitmap only as a hint of what to look at: pull reads every acknowledged region again. */
#include "agent/restore.h"
#include "agent/log.h"
#include "agent/clock.h"
#include "io/file.h"
#include "io/pull.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>

enum { OPEN_TRIES = 50, OPEN_PAUSE_MS = 100 };

/* --- devices ---------------------------------------------------------------------------------- */

/* Right after an unmount udev's probe, or a lazy last reference, may still hold it. */
static int open_device(struct restore_volume *volume, struct err *err)
{
    int rc = -ERR_BUSY;
    for (int i = 0; i < OPEN_TRIES; i++) {
        rc = device_open_exclusive(volume->identity.path, &volume->device, err);
        if (rc != -ERR_BUSY)
            break;
        pause_ms(OPEN_PAUSE_MS);
    }
    volume->opened = rc == 0;
    return rc;
}

int restore_open_devices(struct restore *restore, struct err *err)
{
    for (size_t i = 0; i < restore->volume_count; i++) {
        int rc = restore_recheck_device(restore, &restore->volumes[i], err);
        if (rc == 0)
            rc = open_device(&restore->volumes[i], err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

void restore_close_devices(struct restore *restore)
{
    for (size_t i = 0; i < restore->volume_count; i++)
        if (restore->volumes[i].opened) {
            device_close(&restore->volumes[i].device);
            restore->volumes[i].opened = false;
        }
}

/* --- order ------------------------------------------------------------------------------------ */

/* 0 other (tablespaces), 1 WAL, 2 control: the order of commits. */
static int rank(const struct restore_volume *volume)
{
    return volume->holds_control ? 2 : volume->holds_wal ? 1 : 0;
}

/* Calls step() for every volume by rank, ascending or descending. */
static int each_volume(struct restore *restore, bool control_first,
                       int (*step)(struct restore *, struct restore_volume *, struct err *),
                       struct err *err)
{
    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < restore->volume_count; i++) {
            if (rank(&restore->volumes[i]) != (control_first ? 2 - round : round))
                continue;
            int rc = step(restore, &restore->volumes[i], err);
            if (rc < 0)
                return err_prefix(err, "volume '%s'", restore->volumes[i].name);
        }
    return 0;
}

/* --- mark ------------------------------------------------------------------------------------- */

static int mark_volume(struct restore *restore, struct restore_volume *volume, struct err *err)
{
    int rc = device_mark(&volume->device, restore->job_id, volume->manifest.size, err);
    restore_test_stop("marked-one");
    return rc;
}

int restore_mark(struct restore *restore, struct err *err)
{
    int rc = each_volume(restore, true, mark_volume, err);
    if (rc < 0)
        return rc;
    json_object_set_new(restore->job->journal, "old_gone", json_true());
    restore->old_gone = true;
    return 0; /* durable with the next step's journal */
}

/* --- pull ------------------------------------------------------------------------------------- */

struct acknowledged {
    struct restore *restore;
    struct restore_volume *volume;
    uint8_t *bitmap;
    size_t len;
};

static void bitmap_path(const struct restore *restore, const struct restore_volume *volume,
                        char *ret, size_t size)
{
    (void)snprintf(ret, size, "%s/pull-%s.bitmap", restore->job->dir, volume->name);
}

/* Atomic replace: a power cut leaves the old bitmap or the new one, and both say the truth. */
static int save_bitmap(void *ctx, const uint8_t *bitmap, size_t bitmap_len, struct err *err)
{
    struct acknowledged *acknowledged = ctx;
    char path[JOB_DIR_MAX + 96], temporary[JOB_DIR_MAX + 112];
    bitmap_path(acknowledged->restore, acknowledged->volume, path, sizeof(path));
    (void)snprintf(temporary, sizeof(temporary), "%s.new", path);
    close_fd int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "create '%s'", temporary);
    if (write_all(fd, bitmap, bitmap_len) < 0 || fsync(fd) < 0)
        return err_sys(err, ERR_DEVICE, "write '%s'", temporary);
    if (rename(temporary, path) < 0)
        return err_sys(err, ERR_DEVICE, "rename '%s'", temporary);
    int rc = sync_directory(acknowledged->restore->job->dir, err);
    if (rc < 0)
        return rc;
    restore_test_stop("pulling-ack");
    return 0;
}

/* NULL when there is none that fits. */
static uint8_t *load_bitmap(struct restore *restore, struct restore_volume *volume)
{
    char path[JOB_DIR_MAX + 96];
    char *bytes = NULL;
    size_t len, want = ((size_t)volume->manifest.region_count + 7) / 8;
    struct err ignored;
    bitmap_path(restore, volume, path, sizeof(path));
    if (restore_read_file(path, want, &bytes, &len, &ignored) < 0)
        return NULL;
    if (len == want)
        return (uint8_t *)bytes;
    free(bytes);
    return NULL;
}

/* Nobody's bytes may shine through: FREE chunks stay only on a volume that was this one before. */
static enum pull_free free_policy(const struct restore_volume *volume)
{
    return volume->content == CONTENT_OWN ? PULL_FREE_LEAVE : PULL_FREE_ZERO;
}

static int pull_without(struct restore *restore, struct restore_volume *volume,
                        const struct extent_list *withheld, struct err *err)
{
    struct acknowledged acknowledged = {.restore = restore, .volume = volume};
    free_mem uint8_t *before = load_bitmap(restore, volume);
    const struct conf *conf = &restore->conf;
    struct pull pull = {
        .store = restore->store,
        .repo = &restore->repo,
        .manifest = &volume->manifest,
        .sink = PULL_TO_DEVICE,
        .fd = volume->device.fd,
        .alignment = volume->identity.logical_sector,
        .request_max = volume->identity.request_max,
        .free_policy = free_policy(volume),
        .withheld = withheld->items,
        .withheld_count = withheld->count,
        .options = {.lane_count = conf->lanes, .memory_max = conf->memory_max},
        .progress = &restore->job->progress,
        .done_before = before,
        .compare = restore->request.delta,
        .acknowledge = save_bitmap,
        .acknowledge_ctx = &acknowledged,
    };
    log_info("pulling: volume=%s device=%s bytes=%llu%s%s", volume->name, volume->identity.path,
             (unsigned long long)volume->manifest.size, before ? " resumed=1" : "",
             restore->request.delta ? " delta=1" : "");
    int rc = pull_run(&pull, err);
    if (rc == 0)
        rc = device_flush(&volume->device, err);
    return rc;
}

/* pg_control's blocks on the volume that has it; nothing on the others. */
static int withheld_extents(const struct restore *restore, const struct restore_volume *volume,
                            struct extent_list *ret, struct err *err)
{
    const struct record *record = &restore->record;
    int rc = 0;
    for (size_t i = 0; rc == 0 && volume->holds_control && i < record->control_extent_count; i++)
        rc = extent_list_add(ret, record->control_extents[i].offset, record->control_extents[i].len,
                             err);
    extent_list_normalise(ret);
    return rc;
}

static int pull_volume(struct restore *restore, struct restore_volume *volume, struct err *err)
{
    struct extent_list withheld = {0};
    int rc = withheld_extents(restore, volume, &withheld, err);
    if (rc == 0)
        rc = pull_without(restore, volume, &withheld, err);
    extent_list_release(&withheld);
    return rc;
}

/* Of this run: one that was interrupted had its own share. */
static void note_copied(struct restore *restore)
{
    const struct io_progress *progress = &restore->job->progress;
    json_t *copied = json_pack("{s:b,s:I,s:I,s:I}", "delta", restore->request.delta, "bytes",
                               (json_int_t)atomic_load(&progress->bytes_total), "bytes_same",
                               (json_int_t)atomic_load(&progress->bytes_same), "bytes_fetched",
                               (json_int_t)atomic_load(&progress->bytes_stored));
    (void)json_object_set_new(restore->job->journal, "copied", copied);
    log_info("pulled: bytes=%llu same=%llu fetched=%llu",
             (unsigned long long)atomic_load(&progress->bytes_total),
             (unsigned long long)atomic_load(&progress->bytes_same),
             (unsigned long long)atomic_load(&progress->bytes_stored));
}

int restore_pull(struct restore *restore, struct err *err)
{
    int rc = each_volume(restore, false, pull_volume, err);
    if (rc == 0)
        note_copied(restore); /* durable with the next step's journal */
    return rc;
}

/* --- commit ----------------------------------------------------------------------------------- */

static int commit_volume(struct restore *restore, struct restore_volume *volume, struct err *err)
{
    uint8_t head[PULL_HEAD_LEN];
    int rc =
        pull_read(restore->store, &restore->repo, &volume->manifest, 0, head, sizeof(head), err);
    if (rc == 0)
        rc = device_commit_head(&volume->device, head, err);
    restore_test_stop("written-one");
    return rc;
}

int restore_commit(struct restore *restore, struct err *err)
{
    return each_volume(restore, false, commit_volume, err);
}
