/* The blocks of a snapshot: capture one instant, push what is used, end the capture; seal tables
 * and manifests; cut pg_control out of what was stored.
 *
 * Why WAL segments in pg_wal may be left out (unless the image must carry its WAL): nothing that a
 * restore does needs the *contents* of a segment file of the image.
 *   - Recovery begins at the label's checkpoint, at start_lsn, and is given everything from there
 *     to the tag and beyond by the archive; restore empties pg_wal of segments first. At the
 *     instant of capture the segments of start … tag are not all archived yet, but tag_lsn lies
 *     after the instant, and the record is committed only after wal_check_range(start … tag):
 *     no snapshot without its WAL ever becomes visible.
 *   - Segments before start_lsn are not read by a recovery that begins at start_lsn. Slots, the
 *     only other readers (wal_keep_size serves slots and standbys too), are removed by a restore.
 *   - Segments after the instant's insert position are recycled or preallocated: PostgreSQL itself
 *     takes their contents for garbage.
 *   - Segments of other timelines are ancestors' (before start_lsn, because the timeline does not
 *     change between start and tag) or strangers' (never replayed).
 *   - Two-phase state lives in pg_twophase or in WAL after the redo point, that is after start_lsn.
 * What is *not* left out: .history, .backup, .partial and archive_status (capture_begin() takes
 * segment names only), a segment with a second link or a shared extent (its blocks may be somebody
 * else's data), and every chunk that a segment shares with anything else (push reads chunks that
 * touch what remains). The extents are those of the instant itself, so this is done only where we
 * hold the freeze, or where whatever is written to these blocks later is marked and the files are
 * looked at again under the last freeze (precopy): with freeze_by = script a segment could have
 * been removed, and its blocks given to a table, between our look and the script's freeze. */
#include "agent/snapshot.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <time.h>

#include "agent/log.h"
#include "io/clock.h"
#include "io/fsmap.h"
#include "io/pull.h"

/* What is read, digested, compressed and stored a second at the least: used until a snapshot has
 * measured it. */
static const uint64_t ASSUMED_RATE = 200 * MIB;
enum { RATE_AGE_MAX_S = 3600, CONTROL_PATH_MAX = 1024 + 32 };

/* --- rate ------------------------------------------------------------------------------------- */

static void rate_path(const struct snapshot *snapshot, char *path, size_t size)
{
    (void)snprintf(path, size, "%s/rate.json", snapshot->conf->state_dir);
}

/* A rate that was measured long ago is no reason to refuse: a busy hour must not forbid `freeze`
 * for ever. */
static uint64_t expected_rate(const struct snapshot *snapshot)
{
    char path[CONF_PATH_MAX + 32];
    free_json json_t *json = NULL;
    struct err ignored;
    uint64_t rate = 0, measured_s = 0;
    rate_path(snapshot, path, sizeof(path));
    if (json_load_path(path, &json, &ignored) == 0) {
        (void)json_opt_u64(json, "bytes_per_s", ERR_CORRUPT, &rate, &ignored);
        (void)json_opt_u64(json, "measured_s", ERR_CORRUPT, &measured_s, &ignored);
    }
    if (rate == 0 || (uint64_t)time(NULL) - measured_s > RATE_AGE_MAX_S)
        rate = ASSUMED_RATE;
    uint64_t limit = snapshot->conf->rate_limit;
    return limit ? min_u64(rate, limit) : rate;
}

/* Only captures that held, and copies that are long enough to mean something. */
static void save_rate(const struct snapshot *snapshot)
{
    char path[CONF_PATH_MAX + 32];
    struct err ignored;
    uint64_t bytes = 0;
    for (size_t i = 0; i < snapshot->group.count; i++)
        bytes += snapshot->volumes[i].bytes_read;
    if (bytes < 64 * MIB || snapshot->copy_ms == 0)
        return;
    free_json json_t *json =
        json_pack("{s:I,s:I}", "bytes_per_s", (json_int_t)(bytes * 1000 / snapshot->copy_ms),
                  "measured_s", (json_int_t)time(NULL));
    rate_path(snapshot, path, sizeof(path));
    (void)json_save(path, json, false, &ignored);
}

/* What a live copy may take of memory_max for its last pass, which is read while frozen. */
static uint64_t frozen_memory(const struct snapshot *snapshot)
{
    return snapshot->live ? min_u64(snapshot->conf->memory_max / 4, 256 * MIB) : 0;
}

/* --- capture ---------------------------------------------------------------------------------- */

/* See the head of this file. */
static bool may_leave_wal_out(const struct snapshot *snapshot)
{
    int index = volume_group_find_path(&snapshot->group, snapshot->record.wal_directory);
    if (snapshot->record.wal_in_image || index < 0)
        return false;
    const struct conf_volume *volume = snapshot->group.volumes[index].conf;
    return volume->provider == PROVIDER_FREEZE || volume->provider == PROVIDER_PRECOPY ||
           (volume->provider == PROVIDER_COMMAND && volume->freeze_by == FREEZE_BY_AGENT);
}

static int keep_control_extents(struct snapshot *snapshot, const struct capture_file *file,
                                struct err *err)
{
    struct record *record = &snapshot->record;
    uint64_t left = sizeof(record->control);
    if (file->flags & (FSMAP_SHARED | FSMAP_UNPLAIN | FSMAP_UNWRITTEN))
        return err_set(err, ERR_REFUSED, "'%s' has no place of its own on the volume", file->path);
    record->control_extent_count = 0;
    for (size_t i = 0; i < file->extents.count && left > 0; i++) {
        if (record->control_extent_count == RECORD_EXTENTS_MAX)
            return err_set(err, ERR_REFUSED, "'%s' is scattered over too many extents", file->path);
        struct extent *to = &record->control_extents[record->control_extent_count++];
        *to = file->extents.items[i];
        to->len = min_u64(to->len, left);
        left -= to->len;
    }
    return left == 0 ? 0 : err_set(err, ERR_DEVICE, "'%s' is too short", file->path);
}

/* What push reads: used blocks without WAL that is left out. */
static int choose_extents(struct snapshot *snapshot, size_t index, struct err *err)
{
    struct snapshot_volume *volume = &snapshot->volumes[index];
    const struct extent_list *used = &snapshot->capture.volumes[index].used;
    uint64_t size = snapshot->capture.volumes[index].device.identity.size;
    if (size != volume->work.size)
        return err_set(err, ERR_DEVICE, "volume '%s': its snapshot has %llu bytes, it has %llu",
                       snapshot->group.volumes[index].conf->name, (unsigned long long)size,
                       (unsigned long long)volume->work.size);
    struct extent_list *wal = &snapshot->wal[index];
    extent_list_normalise(wal);
    return extent_list_subtract(used, wal, &volume->used, err);
}

static void begin_push(struct snapshot *snapshot, size_t index)
{
    const struct conf *conf = snapshot->conf;
    const struct device *device = &snapshot->capture.volumes[index].device;
    struct snapshot_volume *volume = &snapshot->volumes[index];
    volume->push = (struct push){
        .store = snapshot->store,
        .repo = &snapshot->repo,
        .fd = device->fd,
        .alignment = device->identity.logical_sector,
        .request_max = device->identity.request_max,
        .work = &volume->work,
        .parent = volume->incremental ? &volume->parent_table : NULL,
        .options = {.lane_count = conf->lanes,
                    .memory_max = conf->memory_max - frozen_memory(snapshot),
                    .rate_limit = conf->rate_limit},
        .progress = &snapshot->job->progress,
    };
}

/* One volume after the other: each takes all lanes and all memory. The counters of progress go on
 * through all of them; the difference belongs to the volume. */
static int push_volume(struct snapshot *snapshot, size_t index, int fd,
                       const struct extent_list *extents, struct err *err)
{
    struct snapshot_volume *volume = &snapshot->volumes[index];
    struct io_progress *progress = &snapshot->job->progress;
    uint64_t read = progress->bytes_done, stored = progress->bytes_stored;
    uint64_t chunks_stored = progress->chunks_stored, chunks_same = progress->chunks_same;
    uint64_t chunks_rewritten = progress->chunks_rewritten;
    uint64_t bytes_rewritten = progress->bytes_rewritten;
    volume->push.fd = fd;
    int rc = push_run(&volume->push, extents->items, extents->count, err);
    if (rc < 0)
        return err_prefix(err, "volume '%s'", snapshot->group.volumes[index].conf->name);
    volume->bytes_read += progress->bytes_done - read;
    volume->bytes_stored += progress->bytes_stored - stored;
    volume->chunks_stored += progress->chunks_stored - chunks_stored;
    volume->chunks_same += progress->chunks_same - chunks_same;
    volume->chunks_rewritten += progress->chunks_rewritten - chunks_rewritten;
    volume->bytes_rewritten += progress->bytes_rewritten - bytes_rewritten;
    return 0;
}

/* All that is used. */
static int push_volumes(struct snapshot *snapshot, struct err *err)
{
    uint64_t start_ns = monotonic_ns();
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < snapshot->group.count; i++)
        rc = choose_extents(snapshot, i, err);
    for (size_t i = 0; rc == 0 && i < snapshot->group.count; i++) {
        struct snapshot_volume *volume = &snapshot->volumes[i];
        struct extent_list read = {0};
        begin_push(snapshot, i);
        if (volume->incremental)
            rc = push_rewrite(&volume->push, &volume->used, &volume->parent_manifest,
                              snapshot->conf->rewrite_budget, err);
        if (rc == 0)
            rc = snapshot_track_choose(snapshot, i, &read, err);
        if (rc == 0)
            rc = push_volume(snapshot, i, volume->push.fd, &read, err);
        extent_list_release(&read);
        if (rc == 0)
            log_info("snapshot=%s volume=%s memory: %s", snapshot->id_text,
                     snapshot->group.volumes[i].conf->name, volume->push.memory_sum);
    }
    snapshot->copy_ms = (monotonic_ns() - start_ns) / 1000000;
    return rc;
}

/* What has changed since the pass before, as fast as it goes: a copy that is held back gives the
 * writers time to change more, which would have to be read, too. */
static int push_changed(struct snapshot *snapshot, uint64_t *ret_bytes, struct err *err)
{
    uint64_t start_ns = monotonic_ns();
    int rc = 0;
    *ret_bytes = 0;
    for (size_t i = 0; rc == 0 && i < snapshot->group.count; i++) {
        const struct capture_volume *from = &snapshot->capture.volumes[i];
        snapshot->volumes[i].push.options.rate_limit = 0;
        rc = push_volume(snapshot, i, from->changed_fd, &from->changed, err);
        *ret_bytes += extent_list_bytes(&from->changed);
    }
    snapshot->copy_ms += (monotonic_ns() - start_ns) / 1000000;
    return rc;
}

/* control and its path are the caller's: the request points to them. */
static struct capture_request make_request(struct snapshot *snapshot, struct capture_file *control,
                                           char path[CONTROL_PATH_MAX])
{
    struct record *record = &snapshot->record;
    (void)snprintf(path, CONTROL_PATH_MAX, "%s/global/pg_control", record->data_directory);
    *control = (struct capture_file){.path = path};
    bool leave_out = may_leave_wal_out(snapshot);
    return (struct capture_request){.job = snapshot->id_text,
                                    .chunk_size = snapshot->repo.chunk_size,
                                    .memory_max = frozen_memory(snapshot),
                                    .estimate_bytes_per_s = expected_rate(snapshot),
                                    .files = control,
                                    .file_count = 1,
                                    .wal_directory = leave_out ? record->wal_directory : NULL,
                                    .ret_wal = snapshot->wal,
                                    .tracks = snapshot->tracks};
}

/* The instant is there: what the record says of it. */
static int keep_instant(struct snapshot *snapshot, struct capture_file *control, struct err *err)
{
    struct record *record = &snapshot->record;
    record->captured_s = snapshot->capture.captured_s;
    int rc = keep_control_extents(snapshot, control, err);
    extent_list_release(&control->extents);
    return rc;
}

static int begin_capture(struct snapshot *snapshot, struct err *err)
{
    char path[CONTROL_PATH_MAX];
    struct capture_file control;
    struct capture_request request = make_request(snapshot, &control, path);
    snapshot_track_prepare(snapshot);
    int rc = capture_begin(snapshot->conf, &snapshot->group, &request, &snapshot->capture, err);
    if (rc < 0)
        return rc;
    snapshot->capturing = true;
    snapshot->record.wal_in_image = request.wal_directory == NULL;
    return snapshot->live ? 0 : keep_instant(snapshot, &control, err);
}

static int end_capture(struct snapshot *snapshot, struct err *err)
{
    bool valid = false;
    snapshot->capturing = false;
    int rc = capture_end(&snapshot->capture, &valid, err);
    snapshot->record.freeze_ns = snapshot->capture.stall_ns;
    if (rc < 0 || valid)
        return rc;
    (void)err_set(err, ERR_REFUSED,
                  "the capture did not hold: the filesystem was thawed by the guardian after %u ms "
                  "or the device changed; nothing was kept",
                  snapshot->conf->freeze_deadline_ms);
    return err_hint(err, "raise freeze_deadline, or use provider command");
}

int snapshot_capture(struct snapshot *snapshot, struct err *err)
{
    int rc = snapshot_phase(snapshot, "copying", err);
    if (rc == 0)
        rc = begin_capture(snapshot, err);
    if (rc == 0)
        rc = push_volumes(snapshot, err);
    if (rc == 0)
        rc = end_capture(snapshot, err);
    if (rc == 0)
        save_rate(snapshot);
    return rc;
}

int snapshot_copy_live(struct snapshot *snapshot, struct err *err)
{
    int rc = snapshot_phase(snapshot, "copying", err);
    if (rc == 0)
        rc = begin_capture(snapshot, err);
    return rc < 0 ? rc : push_volumes(snapshot, err);
}

int snapshot_copy_rest(struct snapshot *snapshot, struct err *err)
{
    char path[CONTROL_PATH_MAX];
    struct capture_file control;
    struct capture_request request = make_request(snapshot, &control, path);
    struct record *record = &snapshot->record;
    bool last = false;
    int rc = snapshot_phase(snapshot, "copying changes", err);
    while (rc == 0 && !last) {
        rc = job_check_cancel(snapshot->job, err);
        if (rc == 0)
            rc = capture_pass(&snapshot->capture, &request, &last, err);
        if (rc == 0 && last)
            rc = keep_instant(snapshot, &control, err);
        if (rc == 0)
            rc = push_changed(snapshot, &record->passes[record->pass_count++], err);
    }
    if (rc == 0)
        rc = end_capture(snapshot, err);
    record->freeze_sum_ns = snapshot->capture.stall_sum_ns;
    if (rc == 0)
        save_rate(snapshot);
    return rc;
}

/* --- after the capture ------------------------------------------------------------------------ */

static int seal_volume(struct snapshot *snapshot, size_t index, struct err *err)
{
    const struct device_identity *device = &snapshot->group.volumes[index].device;
    struct snapshot_volume *volume = &snapshot->volumes[index];
    struct push_identity identity = {
        .logical_sector = device->logical_sector,
        .physical_sector = device->physical_sector,
        .parent_manifest = volume->incremental ? &volume->parent_manifest : NULL,
    };
    memcpy(identity.fs_type, device->fs_type, sizeof(identity.fs_type));
    memcpy(identity.fs_uuid, device->fs_uuid, sizeof(identity.fs_uuid));
    memcpy(identity.fs_label, device->fs_label, sizeof(identity.fs_label));
    return push_seal(&volume->push, &identity, &volume->result, err);
}

int snapshot_seal(struct snapshot *snapshot, struct err *err)
{
    int rc = snapshot_phase(snapshot, "writing tables", err);
    for (size_t i = 0; rc == 0 && i < snapshot->group.count; i++)
        rc = seal_volume(snapshot, i, err);
    return rc;
}

/* pg_control as it was captured, never as it is now: a later one could carry a later checkpoint
 * than the image's blocks. Read back from the repository, through the sealed manifest: the first
 * reader of every snapshot is its own writer. */
int snapshot_cut_control(struct snapshot *snapshot, struct err *err)
{
    struct record *record = &snapshot->record;
    size_t index =
        (size_t)(record_volume_by_name(record, record->control_volume) - record->volumes);
    free_mem void *buf = NULL;
    struct fmt_manifest manifest;
    int rc =
        catalog_manifest(snapshot->store, &snapshot->repo, record, index, &buf, &manifest, err);
    size_t have = 0;
    for (size_t i = 0; rc == 0 && i < record->control_extent_count; i++) {
        const struct extent *extent = &record->control_extents[i];
        rc = pull_read(snapshot->store, &snapshot->repo, &manifest, extent->offset,
                       record->control + have, extent->len, err);
        have += extent->len;
    }
    if (rc < 0)
        return err_prefix(err, "pg_control");
    /* ControlFileData begins with the system identifier in every version. */
    if (get_le64(record->control) != record->system_id)
        return err_set(err, ERR_DEVICE, "the captured blocks of pg_control hold something else");
    return 0;
}

void snapshot_copy_release(struct snapshot *snapshot)
{
    struct err err;
    bool valid;
    if (snapshot->capturing && capture_end(&snapshot->capture, &valid, &err) < 0)
        log_warn("snapshot=%s end of capture err=\"%s\"", snapshot->id_text, err.text);
    for (size_t i = 0; i < CONF_VOLUMES_MAX; i++) {
        struct snapshot_volume *volume = &snapshot->volumes[i];
        push_release(&volume->push);
        table_close(&volume->work);
        table_close(&volume->parent_table);
        free(volume->parent_manifest_buf);
        extent_list_release(&volume->used);
        extent_list_release(&snapshot->wal[i]);
        track_release(&snapshot->tracks[i]);
        if (volume->work_path[0])
            (void)unlink(volume->work_path); /* installed: the name is gone already */
    }
}
