/* The providers. What they have in common: the volumes are opened before the instant, nothing slow
 * happens while they are frozen, and at the end it is checked that the instant was one: the same
 * disk, the same mount, and not one sector written meanwhile, by the kernel's own counters. */
#include "agent/capture_parts.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/log.h"
#include "io/device_sysfs.h"

const char *capture_volume_name(const struct capture *capture, size_t index)
{
    return capture->group->volumes[index].conf->name;
}

/* --- opening and closing ------------------------------------------------------------------------
 */

/* 0 where the kernel does not count. */
static uint64_t written_sectors(const struct device *device)
{
    struct sysfs_counters counters;
    return sysfs_counters(&device->identity, &counters) ? counters.written_sectors : 0;
}

static void release(struct capture *capture)
{
    for (size_t i = 0; i < capture->group->count; i++) {
        struct capture_volume *volume = &capture->volumes[i];
        device_close(&volume->device);
        device_close(&volume->live);
        cleanup_close(&volume->hold_fd);
        volume->hold_fd = -1;
        extent_list_release(&volume->used);
        volume->used = (struct extent_list){0};
    }
    capture_precopy_end(capture);
}

static int open_live(struct capture *capture, struct err *err)
{
    for (size_t i = 0; i < capture->group->count; i++) {
        int rc = device_open_read(capture->group->volumes[i].device.path, &capture->volumes[i].live,
                                  err);
        if (rc < 0)
            return err_prefix(err, "volume %s", capture_volume_name(capture, i));
    }
    return 0;
}

/* The device to read is the volume itself. */
static int read_live(struct capture *capture, struct err *err)
{
    for (size_t i = 0; i < capture->group->count; i++) {
        struct capture_volume *volume = &capture->volumes[i];
        volume->device = volume->live;
        volume->device.fd = fcntl(volume->live.fd, F_DUPFD_CLOEXEC, 0);
        volume->device.lock_fd = -1;
        if (volume->device.fd < 0)
            return err_sys(err, ERR_INTERNAL, "duplicate a descriptor");
        volume->written_sectors = written_sectors(&volume->live);
    }
    return 0;
}

/* --- is it still the same instant?
 * ---------------------------------------------------------------- */

static bool same_mount(const struct volume *volume)
{
    struct stat mounted, held;
    return !volume->mounted ||
           (fstat(volume->mount_fd, &held) == 0 && stat(volume->mount_point, &mounted) == 0 &&
            mounted.st_dev == held.st_dev && mounted.st_ino == held.st_ino);
}

static int check_unchanged(const struct capture *capture, size_t index, bool compare_writes,
                           struct err *err)
{
    const struct capture_volume *volume = &capture->volumes[index];
    int rc = device_check_same(&volume->live, err);
    if (rc == 0)
        rc = device_check_same(&volume->device, err);
    if (rc == 0 && !same_mount(&capture->group->volumes[index]))
        rc = err_set(err, ERR_REFUSED, "another filesystem is mounted there now");
    if (rc == 0 && compare_writes && written_sectors(&volume->live) != volume->written_sectors)
        rc = err_set(err, ERR_REFUSED, "it was written to");
    return rc;
}

int capture_check_unchanged(const struct capture *capture, bool compare_writes, struct err *err)
{
    for (size_t i = 0; i < capture->group->count; i++) {
        int rc = check_unchanged(capture, i, compare_writes, err);
        if (rc < 0)
            return err_prefix(err, "volume %s: the capture is void",
                              capture_volume_name(capture, i));
    }
    return 0;
}

/* --- offline
 * -------------------------------------------------------------------------------------- */

static int hold_offline(struct capture *capture, size_t index, struct err *err)
{
    const struct volume *volume = &capture->group->volumes[index];
    if (volume->mounted && volume->read_only)
        return 0;
    if (volume->mounted) {
        err_set(err, ERR_REFUSED, "volume %s: '%s' is mounted read-write on '%s'",
                capture_volume_name(capture, index), volume->device.path, volume->mount_point);
        return err_hint(err, "provider = offline: stop the server and mount it read-only, or not "
                             "at all; else use freeze or command");
    }
    int rc = volume_check(capture->conf, capture->group, volume, err);
    if (rc < 0)
        return rc;
    int fd = open(volume->device.path, O_RDONLY | O_EXCL | O_CLOEXEC);
    if (fd < 0) {
        err_sys(err, errno == EBUSY ? ERR_BUSY : ERR_DEVICE, "volume %s: open '%s' exclusively",
                capture_volume_name(capture, index), volume->device.path);
        return err_hint(err, "another program or mount namespace uses it");
    }
    capture->volumes[index].hold_fd = fd;
    return 0;
}

static int begin_offline(struct capture *capture, struct capture_request *request, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < capture->group->count; i++)
        rc = hold_offline(capture, i, err);
    if (rc == 0)
        rc = read_live(capture, err);
    if (rc == 0)
        rc = capture_take_maps(capture, request, err);
    return rc;
}

/* --- freezing
 * --------------------------------------------------------------------------------------- */

int capture_arm(struct capture *capture, struct err *err)
{
    int fds[FREEZE_VOLUMES_MAX];
    static_assert((int)FREEZE_VOLUMES_MAX >= (int)CONF_VOLUMES_MAX, "a group can be frozen");
    for (size_t i = 0; i < capture->group->count; i++) {
        const struct volume *volume = &capture->group->volumes[i];
        if (!volume->mounted) {
            err_set(err, ERR_REFUSED, "volume %s: it is not mounted",
                    capture_volume_name(capture, i));
            return err_hint(err, "mount it, or use provider = offline for a stopped server");
        }
        fds[i] = volume->mount_fd;
    }
    int rc =
        freeze_arm(&capture->freeze, fds, capture->group->count, capture->conf->freeze_deadline_ms,
                   capture->conf->rcu_expedited ? FREEZE_RCU_EXPEDITED : NULL, err);
    capture->armed = rc == 0;
    return rc;
}

/* Written out before, the dirty pages do not prolong the freeze (measured: 25–60 ms instead of
 * 100–200). The freeze flushes by itself, so an error here would come up again there. */
int capture_freeze(struct capture *capture, struct err *err)
{
    for (size_t i = 0; i < capture->group->count; i++)
        (void)syncfs(capture->group->volumes[i].mount_fd);
    int rc = freeze_all(&capture->freeze, err);
    if (rc < 0)
        return err_prefix(err, "volume %s", capture_volume_name(capture, capture->freeze.failed));
    capture->captured_s = time(NULL);
    return 0;
}

/* Thaws and sends the guardian home. */
static int thaw_group(struct capture *capture, bool *ret_expired, struct err *err)
{
    int rc = freeze_thaw(&capture->freeze, ret_expired, err);
    capture->stall_ns = capture->stall_sum_ns = capture->freeze.stall_ns;
    freeze_disarm(&capture->freeze);
    capture->armed = false;
    return rc;
}

static int check_estimate(struct capture *capture, const struct capture_request *request,
                          struct err *err)
{
    unsigned deadline_ms = capture->conf->freeze_deadline_ms;
    uint64_t bytes = capture_estimate_bytes(capture, request);
    uint64_t rate = request->estimate_bytes_per_s;
    if (rate == 0 || bytes / rate * 1000 + bytes % rate * 1000 / rate <= deadline_ms)
        return 0;
    err_set(err, ERR_REFUSED,
            "provider freeze: copying %llu MiB at %llu MiB/s takes longer than freeze_deadline "
            "(%u ms)",
            (unsigned long long)(bytes / MIB), (unsigned long long)(rate / MIB), deadline_ms);
    return err_hint(err, "use provider = command, or raise freeze_deadline if the application may "
                         "stand still for so long");
}

static int begin_freeze(struct capture *capture, struct capture_request *request, struct err *err)
{
    int rc;
    if ((rc = check_estimate(capture, request, err)) < 0 || (rc = capture_arm(capture, err)) < 0 ||
        (rc = capture_freeze(capture, err)) < 0 || (rc = read_live(capture, err)) < 0)
        return rc;
    return capture_take_maps(capture, request, err);
}

static int begin_precopy(struct capture *capture, struct capture_request *request, struct err *err)
{
    int rc = capture_arm(capture, err);
    if (rc == 0)
        rc = read_live(capture, err);
    return rc < 0 ? rc : capture_precopy_begin(capture, request, err);
}

/* --- command
 * ---------------------------------------------------------------------------------------- */

static int err_expired(const struct capture *capture, struct err *err)
{
    err_set(err, ERR_BUSY, "snapshot_command took longer than freeze_deadline (%u ms)",
            capture->conf->freeze_deadline_ms);
    return err_hint(err, "the volumes were thawed in time and nothing is left; make the command "
                         "faster or raise freeze_deadline");
}

static int begin_command_frozen(struct capture *capture, struct capture_request *request,
                                struct err *err)
{
    unsigned deadline_ms = capture->conf->freeze_deadline_ms;
    int rc = capture_arm(capture, err);
    if (rc == 0)
        rc = capture_freeze(capture, err);
    if (rc < 0)
        return rc;
    struct err ignored;
    bool expired = false;
    rc = capture_command_make(capture, deadline_ms, err);
    if (rc == 0)
        rc = capture_take_maps(capture, request, err);
    int thaw_rc = thaw_group(capture, &expired, rc == 0 ? err : &ignored);
    if (expired)
        return err_expired(capture, err);
    return rc < 0 ? rc : thaw_rc;
}

static bool same_extents(const struct extent_list *a, const struct extent_list *b)
{
    return a->count == b->count &&
           (a->count == 0 || memcmp(a->items, b->items, a->count * sizeof(a->items[0])) == 0);
}

/* The script freezes by itself (LVM), at an instant that we do not know. */
static int begin_command_script(struct capture *capture, struct capture_request *request,
                                struct err *err)
{
    enum { SCRIPT_TIMEOUT_MS = 600000 };
    struct extent_list before[CONF_VOLUMES_MAX] = {0};
    size_t count = request->file_count;
    assert(count <= ARRAY_LEN(before));
    int rc = capture_take_files(capture, request, err);
    for (size_t i = 0; rc == 0 && i < count; i++) {
        before[i] = request->files[i].extents;
        request->files[i].extents = (struct extent_list){0};
    }
    if (rc == 0)
        rc = capture_command_make(capture, SCRIPT_TIMEOUT_MS, err);
    capture->captured_s = time(NULL);
    if (rc == 0)
        rc = capture_take_files(capture, request, err);
    for (size_t i = 0; i < count; i++) {
        if (rc == 0 && !same_extents(&before[i], &request->files[i].extents))
            rc = err_set(err, ERR_BUSY, "'%s' moved while the snapshot was made",
                         request->files[i].path);
        extent_list_release(&before[i]);
    }
    for (size_t i = 0; rc == 0 && i < capture->group->count; i++)
        rc = capture_use_all(&capture->volumes[i], err);
    return rc;
}

static int begin_command(struct capture *capture, struct capture_request *request, struct err *err)
{
    bool by_script = false;
    for (size_t i = 0; i < capture->group->count; i++)
        by_script = by_script || capture->group->volumes[i].conf->freeze_by == FREEZE_BY_SCRIPT;
    if (by_script && capture->group->count > 1) {
        err_set(err, ERR_REFUSED, "several volumes with freeze_by = script are not one instant");
        return err_hint(err, "set freeze_by = agent for all of them");
    }
    capture_cleanup_stale(capture->conf);
    int rc = capture_command_begin(capture, err);
    if (rc == 0)
        rc = by_script ? begin_command_script(capture, request, err)
                       : begin_command_frozen(capture, request, err);
    if (rc == 0)
        rc = capture_command_open(capture, err);
    return rc;
}

/* --- the whole
 * ---------------------------------------------------------------------------------------- */

int capture_check_providers(const struct conf *conf, struct err *err)
{
    for (size_t i = 1; i < conf->volume_count; i++) {
        if (conf->volumes[i].provider == conf->volumes[0].provider)
            continue;
        (void)err_set(err, ERR_CONFIG, "volumes %s and %s have different providers",
                      conf->volumes[0].name, conf->volumes[i].name);
        return err_hint(err, "all volumes of one server are captured at one instant, in one way");
    }
    return 0;
}

static int choose_provider(struct capture *capture, struct err *err)
{
    const struct volume_group *group = capture->group;
    if (group->count == 0)
        return err_set(err, ERR_CONFIG, "there is no volume to capture");
    capture->provider = group->volumes[0].conf->provider;
    return capture_check_providers(capture->conf, err);
}

static void release_request(struct capture_request *request)
{
    for (size_t i = 0; i < request->file_count; i++) {
        extent_list_release(&request->files[i].extents);
        request->files[i].extents = (struct extent_list){0};
    }
    for (size_t i = 0; request->wal_directory != NULL && i < CONF_VOLUMES_MAX; i++) {
        extent_list_release(&request->ret_wal[i]);
        request->ret_wal[i] = (struct extent_list){0};
    }
}

static int init(struct capture *ret, const struct conf *conf, struct volume_group *group,
                struct err *err)
{
    *ret = (struct capture){.conf = conf, .group = group, .state_fd = -1};
    for (size_t i = 0; i < CONF_VOLUMES_MAX; i++)
        ret->volumes[i] = (struct capture_volume){.device = {.fd = -1, .lock_fd = -1},
                                                  .live = {.fd = -1, .lock_fd = -1},
                                                  .hold_fd = -1,
                                                  .changed_fd = -1};
    return choose_provider(ret, err);
}

int capture_probe(const struct conf *conf, struct volume_group *group, struct err *err)
{
    struct capture *capture = calloc(1, sizeof(*capture)); /* large */
    if (capture == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    int rc = init(capture, conf, group, err);
    bool script = group->count > 0 && capture->provider == PROVIDER_COMMAND &&
                  group->volumes[0].conf->freeze_by == FREEZE_BY_SCRIPT;
    if (rc == 0 && capture->provider != PROVIDER_OFFLINE && !script)
        rc = capture_arm(capture, err);
    if (rc == 0 && capture->provider == PROVIDER_PRECOPY)
        rc = open_live(capture, err);
    if (rc == 0 && capture->provider == PROVIDER_PRECOPY)
        rc = capture_watch_attach(capture, conf->chunk_size, err);
    freeze_disarm(&capture->freeze);
    release(capture);
    free(capture);
    return rc;
}

int capture_begin(const struct conf *conf, struct volume_group *group,
                  struct capture_request *request, struct capture *ret, struct err *err)
{
    int rc = init(ret, conf, group, err);
    ret->tracks = request->tracks;
    (void)snprintf(ret->job, sizeof(ret->job), "%s", request->job);
    if (rc == 0)
        rc = open_live(ret, err);
    if (rc == 0 && ret->provider == PROVIDER_OFFLINE)
        rc = begin_offline(ret, request, err);
    else if (rc == 0 && ret->provider == PROVIDER_FREEZE)
        rc = begin_freeze(ret, request, err);
    else if (rc == 0 && ret->provider == PROVIDER_PRECOPY)
        rc = begin_precopy(ret, request, err);
    else if (rc == 0)
        rc = begin_command(ret, request, err);
    if (ret->captured_s == 0) /* precopy: the last pass says it */
        ret->captured_s = time(NULL);
    if (rc == 0)
        return 0;
    freeze_disarm(&ret->freeze);
    release(ret);
    capture_command_drop(ret);
    release_request(request);
    return rc;
}

int capture_end(struct capture *capture, bool *ret_valid, struct err *err)
{
    struct err why;
    bool expired = false;
    int rc = 0;
    /* Before the thaw: it writes the superblock. What is found is logged after it: the log may be
     * slow, or lie on what is frozen. */
    bool valid = capture_check_unchanged(capture,
                                         capture->provider == PROVIDER_FREEZE ||
                                             capture->provider == PROVIDER_OFFLINE,
                                         &why) == 0;
    if (capture->provider == PROVIDER_PRECOPY)
        freeze_disarm(&capture->freeze); /* nothing is frozen between passes */
    else if (capture->armed)
        rc = thaw_group(capture, &expired, err);
    if (!valid)
        log_warn("%s", why.text);
    release(capture);
    capture_command_drop(capture);
    if (rc < 0)
        return rc;
    *ret_valid = valid && !expired;
    return 0;
}
