/* See track.h for what is proven and how. */
#include "agent/track.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>

#include "agent/json.h"
#include "agent/log.h"

/* While a snapshot is under way. */
static const char open_suffix[] = ".open";

static const char why_no_mount_number[] = "sysfs does not say whether it stayed mounted";

/* Ranges in `since` from which on it is worth sorting: each barrier repeats some of them. */
enum { SINCE_SORTED = 1 << 16 };

/* The first reason is the one that is told. */
static void broken(struct track *track, const char *why)
{
    track->unbroken = false;
    if (track->why[0] == '\0')
        (void)snprintf(track->why, sizeof(track->why), "%s", why);
    track_release(track);
}

void track_release(struct track *track)
{
    extent_list_release(&track->since);
    track->since = (struct extent_list){0};
}

/* --- what the parent has left ----------------------------------------------------------------- */

static void read_boot_id(char *ret, size_t size)
{
    close_fd int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t len = fd >= 0 ? read(fd, ret, size - 1) : 0;
    while (len > 0 && ret[len - 1] == '\n')
        len--;
    ret[len > 0 ? len : 0] = '\0';
}

/* What has to be the same at the parent's instant and now. */
static json_t *identity_json(const struct track *track, const char *snapshot)
{
    char boot[64], device[32];
    read_boot_id(boot, sizeof(boot));
    (void)snprintf(device, sizeof(device), "%u:%u", track->device.major, track->device.minor);
    return json_pack("{s:s,s:s,s:I,s:I,s:I,s:I,s:s,s:s}", "boot", boot, "device", device, "diskseq",
                     (json_int_t)track->device.diskseq, "size", (json_int_t)track->device.size,
                     "mount", (json_int_t)track->mount_number, "chunk_size",
                     (json_int_t)track->chunk_size, "tracker", track->tracker, "snapshot",
                     snapshot);
}

static const struct {
    const char *key, *why;
} identity_keys[] = {
    {"snapshot", "the newest snapshot is not the last one that was tracked"},
    {"boot", "the host was restarted"},
    {"device", "it is another device"},
    {"diskseq", "it is another device"},
    {"size", "the device has another size"},
    {"mount", "the file system was mounted anew"},
    {"chunk_size", "the marks are of other chunks"},
};

static const char *identity_difference(const json_t *old, const json_t *now)
{
    for (size_t i = 0; i < ARRAY_LEN(identity_keys); i++)
        if (!json_equal(json_object_get(old, identity_keys[i].key),
                        json_object_get(now, identity_keys[i].key)))
            return identity_keys[i].why;
    return NULL;
}

static json_t *sums_json(const struct track_sums *sums)
{
    return json_pack(
        "{s:I,s:I,s:I,s:I,s:I}", "written_seen", (json_int_t)sums->seen.written_sectors,
        "discarded_seen", (json_int_t)sums->seen.discarded_sectors, "missed",
        (json_int_t)sums->seen.missed, "written", (json_int_t)sums->counted.written_sectors,
        "discarded", (json_int_t)sums->counted.discarded_sectors);
}

static int sums_from_json(const json_t *json, struct track_sums *ret, struct err *err)
{
    const struct {
        const char *key;
        uint64_t *to;
    } fields[] = {
        {"written_seen", &ret->seen.written_sectors},
        {"discarded_seen", &ret->seen.discarded_sectors},
        {"missed", &ret->seen.missed},
        {"written", &ret->counted.written_sectors},
        {"discarded", &ret->counted.discarded_sectors},
    };
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(fields); i++)
        rc = json_get_u64(json, fields[i].key, ERR_CORRUPT, fields[i].to, err);
    return rc;
}

static void open_path(const struct track *track, char path[TRACK_PATH_MAX + sizeof(open_suffix)])
{
    (void)snprintf(path, TRACK_PATH_MAX + sizeof(open_suffix), "%s%s", track->state_path,
                   open_suffix);
}

/* Takes the file away, before a mark is cleared that it vouches for. */
static int take_state(const struct track *track, json_t **ret, struct err *err)
{
    char path[TRACK_PATH_MAX + sizeof(open_suffix)];
    open_path(track, path);
    bool unfinished = access(path, F_OK) == 0;
    if (rename(track->state_path, path) == 0)
        return json_load_path(path, ret, err);
    return unfinished ? err_set(err, ERR_MISSING, "the snapshot before this one did not end well")
                      : err_set(err, ERR_MISSING, "it was not tracked until now");
}

/* --- attaching -------------------------------------------------------------------------------- */

static int err_why(struct err *err, const char *why)
{
    return err_set(err, ERR_REFUSED, "%s", why);
}

/* Why the parent has none, when it said so itself. */
static int check_kept(const json_t *old, struct err *err)
{
    const char *why = json_string_value(json_object_get(old, "lost"));
    return why == NULL
               ? 0
               : err_set(err, ERR_REFUSED, "the marks were not kept after the parent: %s", why);
}

/* The tracker of the last snapshot, when it may be believed. Without a parent nothing is taken from
 * it, but a snapshot that fails then gives it back all the same. */
static int find(struct track *track, struct marks **ret, struct err *err)
{
    free_json json_t *old = NULL, *now = NULL;
    int rc = take_state(track, &old, err);
    if (rc == 0)
        rc = check_kept(old, err);
    if (rc < 0)
        return rc;
    if (track->device.diskseq == 0)
        return err_why(err, "the kernel does not number its disks");
    if (!sysfs_mount_number(&track->device, &track->mount_number))
        return err_why(err, why_no_mount_number);
    struct marks *marks = NULL;
    now = identity_json(track, track->parent[0] ? track->parent : json_str(old, "snapshot"));
    const char *difference = identity_difference(old, now);
    if (difference != NULL)
        return err_why(err, difference);
    rc = sums_from_json(json_object_get(old, "sums"), &track->last, err);
    if (rc == 0)
        rc = marks_find(track->name, &track->place, track->chunk_size, &marks, err);
    if (rc < 0)
        return rc;
    rc = marks_instance(marks, track->tracker, err);
    if (rc == 0 && !json_is(old, "tracker", track->tracker))
        rc = err_why(err, "the tracker is another one");
    if (rc == 0)
        *ret = marks;
    else
        marks_close(marks);
    return rc;
}

/* A new one. Where it cannot be kept the next snapshot reads everything again. */
static int start(struct track *track, struct marks **ret, struct err *err)
{
    struct err keep_err;
    int rc = marks_open(&track->place, track->chunk_size, ret, err);
    if (rc < 0)
        return rc;
    rc = sysfs_mount_number(&track->device, &track->mount_number)
             ? marks_keep(*ret, track->name, &keep_err)
             : err_why(&keep_err, why_no_mount_number);
    if (rc == 0)
        rc = marks_instance(*ret, track->tracker, &keep_err);
    if (rc == 0) {
        track->kept = true;
        return 0;
    }
    (void)marks_forget(track->name); /* also an earlier one, which nobody will ask for */
    log_warn("volume=%s marks cannot be kept for the next snapshot err=\"%s\" hint=\"%s\"",
             track->name, keep_err.text, keep_err.hint);
    track_give_up(track, keep_err.text);
    return 0;
}

int track_attach(struct track *track, const struct device_identity *device,
                 const struct marks_place *place, uint32_t chunk_size, struct marks **ret,
                 struct err *err)
{
    struct err why;
    track->device = *device;
    track->chunk_size = chunk_size;
    track->place = *place;
    if (track->parent[0] == '\0')
        (void)snprintf(track->why, sizeof(track->why), "%s",
                       track->full ? "--full was asked for"
                                   : "there is no snapshot to compare with");
    int rc = find(track, ret, &why);
    if (rc < 0) {
        broken(track, why.text);
        return start(track, ret, err);
    }
    track->unbroken = track->kept = true;
    struct extent_list taken = {0};
    rc = track_take(track, *ret, &taken, err);
    extent_list_release(&taken);
    return rc;
}

static int remember(struct track *track, const struct extent_list *taken, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && track->unbroken && i < taken->count; i++) {
        if (track->since.count >= max_u64(track->since_sorted * 2, SINCE_SORTED)) {
            extent_list_normalise(&track->since);
            track->since_sorted = track->since.count;
        }
        rc = extent_list_add(&track->since, taken->items[i].offset, taken->items[i].len, err);
    }
    return rc;
}

int track_take(struct track *track, struct marks *marks, struct extent_list *ret, struct err *err)
{
    int rc = marks_take(marks, ret, err);
    if (rc == 0 && track != NULL)
        rc = remember(track, ret, err);
    if (rc < 0 && track != NULL)
        broken(track, "marks were lost");
    return rc;
}

/* --- instants --------------------------------------------------------------------------------- */

static bool differ(struct track *track, uint64_t counted, uint64_t seen, const char *what)
{
    char why[TRACK_WHY_MAX];
    if (counted == seen)
        return false;
    (void)snprintf(why, sizeof(why),
                   "since the parent the kernel counted %" PRIu64 " sectors %s, eBPF saw %" PRIu64,
                   counted, what, seen);
    broken(track, why);
    return true;
}

int track_begin(struct track *track, const struct track_sums *sums, struct marks *marks,
                struct err *err)
{
    const struct marks_counters *seen0 = &track->last.seen, *seen = &sums->seen;
    const struct sysfs_counters *counted0 = &track->last.counted, *counted = &sums->counted;
    struct extent_list taken = {0};
    if (track->unbroken && seen->missed != seen0->missed)
        broken(track, "runs of the eBPF program were left out");
    else if (track->unbroken && !differ(track, counted->written_sectors - counted0->written_sectors,
                                        seen->written_sectors - seen0->written_sectors, "written"))
        (void)differ(track, counted->discarded_sectors - counted0->discarded_sectors,
                     seen->discarded_sectors - seen0->discarded_sectors, "discarded");
    int rc = track_take(track, marks, &taken, err);
    extent_list_normalise(&track->since);
    extent_list_release(&taken);
    return rc;
}

bool track_counts(const struct track *track)
{
    return track->unbroken && track->parent[0] != '\0';
}

void track_give_up(struct track *track, const char *why)
{
    track->kept = false;
    (void)snprintf(track->lost, sizeof(track->lost), "%s", why);
}

void track_instant(struct track *track, const struct track_sums *sums)
{
    track->next = *sums;
}

void track_commit(struct track *track, const char *snapshot)
{
    char path[TRACK_PATH_MAX + sizeof(open_suffix)];
    struct err err;
    free_json json_t *json =
        track->kept ? identity_json(track, snapshot) : json_pack("{s:s}", "lost", track->lost);
    if (track->kept)
        json_object_set_new(json, "sums", sums_json(&track->next));
    if (json_save(track->state_path, json, false, &err) < 0)
        log_warn("snapshot=%s volume=%s the next snapshot reads everything err=\"%s\"", snapshot,
                 track->name, err.text);
    open_path(track, path);
    (void)unlink(path);
}

void track_abort(struct track *track)
{
    char path[TRACK_PATH_MAX + sizeof(open_suffix)];
    struct marks *marks = NULL;
    struct err err;
    if (!track->unbroken)
        return;
    int rc = marks_find(track->name, &track->place, track->chunk_size, &marks, &err);
    if (rc == 0)
        marks_return(marks, &track->since);
    marks_close(marks);
    open_path(track, path);
    if (rc == 0 && rename(path, track->state_path) < 0)
        rc = err_sys(&err, ERR_DEVICE, "rename '%s'", path);
    if (rc < 0)
        log_warn("volume=%s the next snapshot reads everything err=\"%s\"", track->name, err.text);
}

bool track_drop(const struct track *track)
{
    char path[TRACK_PATH_MAX + sizeof(open_suffix)];
    bool was_there = marks_forget(track->name);
    open_path(track, path);
    (void)unlink(path);
    (void)unlink(track->state_path);
    return was_there;
}

/* By its id: a volume that was given another name has it under both. */
static bool is_tracked(const struct conf *conf, const json_t *ids, const char *id)
{
    for (size_t i = 0; i < conf->volume_count; i++)
        if (conf->volumes[i].track && json_is(ids, conf->volumes[i].name, id))
            return true;
    return false;
}

void track_name(struct track *track, const struct conf *conf, const uint8_t id[ID_LEN])
{
    id_to_text(id, track->name);
    (void)snprintf(track->state_path, sizeof(track->state_path), "%s/tables/%s.track",
                   conf->state_dir, track->name);
}

void track_cleanup(const struct conf *conf)
{
    char path[CONF_PATH_MAX + 32];
    free_json json_t *ids = NULL;
    const char *name;
    json_t *value;
    struct err err;
    (void)snprintf(path, sizeof(path), "%s/volumes.json", conf->state_dir);
    if (json_load_path(path, &ids, &err) < 0)
        return; /* none yet; what is wrong with it the next snapshot says */
    json_object_foreach(ids, name, value)
    {
        struct track track = {0};
        uint8_t id[ID_LEN];
        const char *text = json_string_value(value);
        if (text == NULL || !id_from_text(text, id) || is_tracked(conf, ids, text))
            continue;
        track_name(&track, conf, id);
        if (track_drop(&track))
            log_info("volume=%s its tracker has ended: it is not configured with track = yes",
                     name);
    }
}
