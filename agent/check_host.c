/* Checks of this host: health, state_dir, certificate, volumes and how they are captured. */
#include <errno.h>
#include <stdio.h>
#include <sys/statvfs.h>

#include "agent/capture.h"
#include "agent/check.h"
#include "agent/cluster.h"
#include "agent/health.h"
#include "agent/text.h"
#include "agent/tls.h"
#include "io/device_sysfs.h"
#include "io/marks.h"

enum {
    STATE_MIN = 16 << 20,     /* bytes: journals, logs of jobs */
    SPOOL_SEGMENT = 16 << 20, /* bytes; of a server that is not asked */
};

/* --- health ----------------------------------------------------------------------------------- */

/* A restore that waits for somebody comes before all that it leaves behind. What is wrong with the
 * server or the configuration has rows of its own. */
int check_health(struct check *check, struct err *err)
{
    const struct conf *conf = check->conf;
    free_json json_t *health =
        conf->coordinator_members[0] ? cluster_health(conf) : health_report(conf, NULL);
    const char *status = json_str(health, "status");
    enum err_code code = err_code_from_name(json_str(health, "code"));
    (void)snprintf(check->detail, sizeof(check->detail), "%s", status);
    if (strcmp(status, "partial") == 0 || strcmp(status, "restoring") == 0)
        (void)snprintf(check->unfinished, sizeof(check->unfinished),
                       "not looked at: a restore is unfinished, see health");
    if (strcmp(status, "ok") == 0)
        return 0;
    if ((code == ERR_POSTGRES || code == ERR_CONFIG) && !conf->coordinator_members[0]) {
        (void)snprintf(check->detail, sizeof(check->detail), "no restore is unfinished");
        return 0;
    }
    (void)err_set(err, code == ERR_OK ? ERR_PARTIAL : code, "%s", json_str(health, "cause"));
    return err_hint(err, "%s", json_str(health, "hint"));
}

/* --- state_dir, certificate ------------------------------------------------------------------- */

int check_state_dir(struct check *check, struct err *err)
{
    const struct conf *conf = check->conf;
    struct statvfs fs;
    char size[TEXT_SIZE_LEN];
    if (access(conf->state_dir, W_OK) < 0) {
        (void)err_sys(err, ERR_DEVICE, "write to state_dir '%s'", conf->state_dir);
        if (err->sys_errno != ENOENT)
            return err_hint(err, geteuid() == 0 ? "correct `state_dir` in section [tidemark]"
                                                : "run this as root");
        (void)err_hint(err, "the agent makes the directory when it starts; without one, the first "
                            "job does");
        return geteuid() == 0 ? CHECK_WARNING : -(int)err->code;
    }
    if (statvfs(conf->state_dir, &fs) < 0)
        return err_sys(err, ERR_DEVICE, "statvfs '%s'", conf->state_dir);
    text_size((uint64_t)fs.f_bavail * fs.f_frsize, size);
    (void)snprintf(check->detail, sizeof(check->detail), "%.400s, %s free", conf->state_dir, size);
    return 0;
}

/* An agent shows its certificate to coordinators; who does not listen shows his to agents. */
int check_certificate(struct check *check, struct err *err)
{
    const struct conf *conf = check->conf;
    const struct tls_files files = {conf->tls_certificate_file, conf->tls_key_file,
                                    conf->tls_ca_file};
    bool agent = conf->tls_listen[0] && !conf->coordinator_members[0];
    const char *role = agent ? TLS_ROLE_AGENT : TLS_ROLE_COORDINATOR;
    struct tls *tls;
    time_t expires = 0;
    char until[TEXT_TIME_LEN];
    if (!conf->tls_certificate_file[0])
        return CHECK_NONE;
    int rc = tls_load(&files, &tls, err);
    if (rc < 0)
        return rc;
    rc = tls_check_own(tls, role, &expires, err);
    tls_free(tls);
    text_time((int64_t)expires, until);
    (void)snprintf(check->detail, sizeof(check->detail), "role %s, until %s", role, until);
    return rc;
}

/* --- volumes ---------------------------------------------------------------------------------- */

int check_volumes(struct check *check, struct err *err)
{
    struct volume_group *group = calloc(1, sizeof(*group)); /* large */
    if (!group)
        return err_set(err, ERR_INTERNAL, "out of memory");
    int rc = volume_group_open(check->conf, group, err);
    if (rc < 0) {
        free(group);
        return rc;
    }
    for (size_t i = 0; i < group->count; i++) {
        const struct volume *volume = &group->volumes[i];
        size_t len = strlen(check->detail);
        (void)snprintf(check->detail + len, sizeof(check->detail) - len, "%s%s on %s",
                       i ? ", " : "", volume->conf->name,
                       volume->mounted ? volume->mount_point : volume->device.path);
    }
    check->group = group;
    return 0;
}

/* What stands behind "ok": a script and a long freeze are not tried for the sake of a check. */
static const char *probed(const struct volume_group *group)
{
    switch (group->volumes[0].conf->provider) {
    case PROVIDER_PRECOPY:
        return "precopy: a write to each volume was seen";
    case PROVIDER_COMMAND:
        return "command: only a snapshot tries snapshot_command";
    case PROVIDER_FREEZE:
        return "freeze: writes will stand still for the whole copy";
    case PROVIDER_OFFLINE:
        return "offline: nobody may write during the copy";
    }
    abort();
}

int check_capture(struct check *check, struct err *err)
{
    if (!check->group) /* its own row says why */
        return CHECK_NONE;
    int rc = capture_probe(check->conf, check->group, err);
    if (rc == 0)
        (void)snprintf(check->detail, sizeof(check->detail), "%s", probed(check->group));
    return rc;
}

/* Marks that are kept need a name in the BPF file system, which a confined agent may not see, or
 * not be allowed to write to. */
static int try_keep(const struct volume *volume, uint32_t chunk_size, struct err *err)
{
    struct marks_place place = {.len = volume->device.size};
    struct marks *marks;
    uint8_t id[ID_LEN];
    char name[ID_TEXT_LEN];
    if (!sysfs_place(&volume->device, &place.disk_major, &place.disk_minor, &place.offset))
        return err_set(err, ERR_REFUSED, "sysfs does not say on which disk '%s' lies",
                       volume->device.path);
    int rc = id_random(id, err);
    if (rc == 0)
        rc = marks_open(&place, chunk_size, &marks, err);
    if (rc < 0)
        return rc;
    id_to_text(id, name);
    rc = marks_keep(marks, name, err);
    marks_forget(name);
    marks_close(marks);
    return rc;
}

int check_track(struct check *check, struct err *err)
{
    const struct volume_group *group = check->group;
    uint32_t chunk_size = check->store ? check->repo.chunk_size : check->conf->chunk_size;
    uint64_t bytes = 0;
    size_t count = 0;
    char size[TEXT_SIZE_LEN];
    for (size_t i = 0; group && i < group->count; i++) {
        const struct volume *volume = &group->volumes[i];
        if (!volume->conf->track)
            continue;
        int rc = try_keep(volume, chunk_size, err);
        if (rc < 0) {
            (void)err_prefix(err, "volume '%s', track = yes", volume->conf->name);
            return err->hint[0] ? rc
                                : err_hint(err, "without it every snapshot reads everything; set "
                                                "track = no, or let the agent write to "
                                                "/sys/fs/bpf");
        }
        bytes += div_round_up(div_round_up(volume->device.size, chunk_size), 8);
        count++;
    }
    if (count == 0)
        return CHECK_NONE;
    text_size(bytes, size);
    (void)snprintf(check->detail, sizeof(check->detail),
                   "marks can be kept in /sys/fs/bpf; they take %s of the kernel's memory", size);
    return 0;
}

/* --- room ------------------------------------------------------------------------------------- */

static int low(const char *what, const char *path, uint64_t free_bytes, uint64_t needed,
               struct err *err)
{
    char has[TEXT_SIZE_LEN], needs[TEXT_SIZE_LEN];
    text_size(free_bytes, has);
    text_size(needed, needs);
    return err_set(err, ERR_DEVICE, "the filesystem of %s '%s' has only %s free, %s are needed",
                   what, path, has, needs);
}

/* A segment that is prefetched and finds no room is fetched when it is asked for. */
static int check_spool(const struct conf *conf, struct err *err)
{
    struct statvfs fs;
    if (!conf->wal_spool[0] || statvfs(conf->wal_spool, &fs) < 0)
        return 0;
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    uint64_t needed = (uint64_t)conf->wal_prefetch * SPOOL_SEGMENT;
    if (free_bytes >= needed)
        return 0;
    (void)low("[wal] spool", conf->wal_spool, free_bytes, needed, err);
    (void)err_hint(err, "free space there, or lower [wal] prefetch: recovery would be slower");
    return CHECK_WARNING;
}

/* A snapshot makes a table of each volume beside the one of its parent; the first restore on a host
 * without them builds them as well. */
int check_space(struct check *check, struct err *err)
{
    const struct conf *conf = check->conf;
    uint32_t chunk_size = check->store ? check->repo.chunk_size : conf->chunk_size;
    uint64_t needed = STATE_MIN;
    struct statvfs fs;
    char has[TEXT_SIZE_LEN], needs[TEXT_SIZE_LEN];
    if (!check->group || statvfs(conf->state_dir, &fs) < 0)
        return CHECK_NONE;
    for (size_t i = 0; i < check->group->count; i++)
        needed += div_round_up(check->group->volumes[i].device.size, chunk_size) *
                  sizeof(struct fmt_entry);
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (free_bytes < needed) {
        (void)low("state_dir", conf->state_dir, free_bytes, needed, err);
        return err_hint(err, "free space there: a snapshot needs it for the tables of its volumes");
    }
    text_size(free_bytes, has);
    text_size(needed, needs);
    (void)snprintf(check->detail, sizeof(check->detail),
                   "a snapshot needs %s of the %s free in state_dir", needs, has);
    return check_spool(conf, err);
}
