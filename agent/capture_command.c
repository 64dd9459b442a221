/* Snapshots made by scripts. A list in state_dir/captures says what must be dropped; it is durable
 * before the first script runs and locked while its capture lives, so that a list whose lock is
 * free belongs to a process that was killed. */
#include "agent/capture_parts.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/json.h"
#include "agent/log.h"
#include "agent/process.h"
#include "agent/clock.h"
#include "io/file.h"

enum { DROP_TIMEOUT_S = 120 };

/* --- running scripts ----------------------------------------------------------------------------
 */

struct script {
    const char *command;
    const char *volume, *device, *mount, *job;
    const char *snapshot; /* "" when not known */
    unsigned timeout_s;
};

static int run_script(const struct script *script, char **ret_output, struct err *err)
{
    char lines[5][CONF_PATH_MAX + 32];
    (void)snprintf(lines[0], sizeof(lines[0]), "TIDEMARK_VOLUME=%s", script->volume);
    (void)snprintf(lines[1], sizeof(lines[1]), "TIDEMARK_DEVICE=%s", script->device);
    (void)snprintf(lines[2], sizeof(lines[2]), "TIDEMARK_MOUNT=%s", script->mount);
    (void)snprintf(lines[3], sizeof(lines[3]), "TIDEMARK_JOB=%s", script->job);
    (void)snprintf(lines[4], sizeof(lines[4]), "TIDEMARK_SNAPSHOT=%s", script->snapshot);
    const char *env[] = {lines[0], lines[1], lines[2], lines[3], lines[4], NULL};
    const char *argv[] = {"/bin/sh", "-c", script->command, NULL};
    struct process_options options = PROCESS_OPTIONS_INIT;
    options.argv = argv;
    options.env = env;
    options.timeout_s = script->timeout_s;
    options.end_group = true; /* what it started holds devices and the mount point */
    char errors[256] = "";
    int status = 0;
    int rc = process_run(&options, &status, ret_output, errors, sizeof(errors), err);
    if (rc == 0 && status != 0)
        rc = err_set(err, ERR_DEVICE, "exit status %d%s%s", status, errors[0] ? ": " : "", errors);
    return rc < 0 ? err_prefix(err, "volume %s: '%s'", script->volume, script->command) : 0;
}

/* Last line that is not empty, cut off in place. */
static const char *last_line(char *text)
{
    size_t len = strlen(text);
    while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == ' ' || text[len - 1] == '\r'))
        text[--len] = '\0';
    char *newline = strrchr(text, '\n');
    return newline != NULL ? newline + 1 : text;
}

static int make_one(struct capture *capture, size_t index, unsigned timeout_s, struct err *err)
{
    const struct volume *volume = &capture->group->volumes[index];
    struct capture_volume *to = &capture->volumes[index];
    struct script script = {.command = volume->conf->snapshot_command,
                            .volume = volume->conf->name,
                            .device = to->live.identity.path,
                            .mount = volume->mount_point,
                            .job = capture->job,
                            .snapshot = "",
                            .timeout_s = timeout_s};
    free_mem char *output = NULL;
    to->snapshot_made = true;
    int rc = run_script(&script, &output, err);
    if (rc < 0)
        return rc;
    const char *path = last_line(output);
    if (path[0] != '/' || strlen(path) >= sizeof(to->snapshot_path)) {
        err_set(err, ERR_DEVICE, "volume %s: '%s' printed no path of a block device",
                volume->conf->name, volume->conf->snapshot_command);
        return err_hint(err, "its last line must be the device to read, it was '%.100s'", path);
    }
    (void)snprintf(to->snapshot_path, sizeof(to->snapshot_path), "%s", path);
    return 0;
}

/* The timeout ends the script a little after the guardian has thawed, so that the error says which
 * of the two it was; what counts is the thaw. */
int capture_command_make(struct capture *capture, unsigned timeout_ms, struct err *err)
{
    uint64_t until = now_ms() + timeout_ms;
    for (size_t i = 0; i < capture->group->count; i++) {
        uint64_t now = now_ms();
        unsigned left_s = now < until ? (unsigned)((until - now) / 1000 + 1) : 1;
        int rc = make_one(capture, i, left_s, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int capture_command_open(struct capture *capture, struct err *err)
{
    for (size_t i = 0; i < capture->group->count; i++) {
        struct capture_volume *volume = &capture->volumes[i];
        const char *name = capture->group->volumes[i].conf->name;
        int rc = device_open_read(volume->snapshot_path, &volume->device, err);
        if (rc < 0)
            return err_prefix(err, "volume %s: the snapshot", name);
        const struct device_identity *got = &volume->device.identity;
        const struct device_identity *want = &volume->live.identity;
        if (!got->is_block || (got->major == want->major && got->minor == want->minor))
            return err_set(err, ERR_DEVICE, "volume %s: '%s' is not a snapshot device", name,
                           volume->snapshot_path);
        if (got->size != want->size)
            return err_set(err, ERR_DEVICE,
                           "volume %s: the snapshot '%s' has %llu bytes, the volume %llu", name,
                           volume->snapshot_path, (unsigned long long)got->size,
                           (unsigned long long)want->size);
    }
    return 0;
}

/* --- the list ------------------------------------------------------------------------------------
 */

static void list_path(const struct conf *conf, const char *job, char *ret, size_t ret_len)
{
    (void)snprintf(ret, ret_len, "%s/captures/%s.json", conf->state_dir, job);
}

static json_t *describe(const struct capture *capture)
{
    json_t *volumes = json_array();
    for (size_t i = 0; i < capture->group->count; i++) {
        const struct volume *volume = &capture->group->volumes[i];
        json_array_append_new(volumes, json_pack("{s:s, s:s, s:s, s:s}", "name", volume->conf->name,
                                                 "device", capture->volumes[i].live.identity.path,
                                                 "mount", volume->mount_point, "drop_command",
                                                 volume->conf->drop_command));
    }
    return json_pack("{s:s, s:o}", "job", capture->job, "volumes", volumes);
}

int capture_command_begin(struct capture *capture, struct err *err)
{
    char dir[CONF_PATH_MAX + 16], path[CONF_PATH_MAX + 128];
    (void)snprintf(dir, sizeof(dir), "%s/captures", capture->conf->state_dir);
    if (mkdir(dir, 0700) < 0 && errno != EEXIST)
        return err_sys(err, ERR_DEVICE, "make '%s'", dir);
    list_path(capture->conf, capture->job, path, sizeof(path));
    close_fd int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "make '%s'", path);
    free_json json_t *list = describe(capture);
    free_mem char *text = json_text(list);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0 || write_all(fd, text, strlen(text)) < 0 || fsync(fd) < 0)
        return err_sys(err, ERR_DEVICE, "write '%s'", path);
    int rc = sync_directory(dir, err);
    if (rc == 0)
        capture->state_fd = take_fd(&fd);
    return rc;
}

void capture_command_drop(struct capture *capture)
{
    bool all_gone = true;
    for (size_t i = 0; i < capture->group->count; i++) {
        const struct volume *volume = &capture->group->volumes[i];
        struct capture_volume *made = &capture->volumes[i];
        struct script script = {.command = volume->conf->drop_command,
                                .volume = volume->conf->name,
                                .device = volume->device.path,
                                .mount = volume->mount_point,
                                .job = capture->job,
                                .snapshot = made->snapshot_path,
                                .timeout_s = DROP_TIMEOUT_S};
        struct err err;
        if (!made->snapshot_made)
            continue;
        made->snapshot_made = false;
        if (run_script(&script, NULL, &err) == 0)
            continue;
        log_warn("volume=%s job=%s its snapshot stays until the next one: err=\"%s\"",
                 script.volume, script.job, err.text);
        all_gone = false;
    }
    if (capture->state_fd < 0)
        return;
    char path[CONF_PATH_MAX + 128];
    list_path(capture->conf, capture->job, path, sizeof(path));
    if (all_gone)
        (void)unlink(path);
    cleanup_close(&capture->state_fd);
    capture->state_fd = -1;
}

/* --- left-overs
 * ----------------------------------------------------------------------------------- */

static bool drop_listed(const json_t *item, const char *job)
{
    struct script script = {.job = job, .snapshot = "", .timeout_s = DROP_TIMEOUT_S};
    struct err err;
    if (json_get_string(item, "name", ERR_CORRUPT, &script.volume, &err) < 0 ||
        json_get_string(item, "device", ERR_CORRUPT, &script.device, &err) < 0 ||
        json_get_string(item, "mount", ERR_CORRUPT, &script.mount, &err) < 0 ||
        json_get_string(item, "drop_command", ERR_CORRUPT, &script.command, &err) < 0)
        return true; /* not ours: nothing can be done */
    if (run_script(&script, NULL, &err) == 0) {
        log_info("volume=%s job=%s dropped the snapshot that a killed job left", script.volume,
                 job);
        return true;
    }
    log_warn("volume=%s job=%s a killed job left a snapshot: err=\"%s\"", script.volume, job,
             err.text);
    return false;
}

static void cleanup_list(int dir_fd, const char *name)
{
    close_fd int fd = openat(dir_fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
        return; /* its capture is alive */
    char text[32768];
    ssize_t len = read(fd, text, sizeof(text));
    free_json json_t *list = NULL;
    const char *job;
    struct err err;
    bool all_gone = true;
    /* Unreadable: it was not durable yet, so no script has run. */
    if (len > 0 && json_parse(text, (size_t)len, ERR_CORRUPT, &list, &err) == 0 &&
        json_get_string(list, "job", ERR_CORRUPT, &job, &err) == 0) {
        const json_t *volumes = json_object_get(list, "volumes");
        for (size_t i = 0; i < json_array_size(volumes); i++)
            all_gone = drop_listed(json_array_get(volumes, i), job) && all_gone;
    }
    if (all_gone)
        (void)unlinkat(dir_fd, name, 0);
}

void capture_cleanup_stale(const struct conf *conf)
{
    char path[CONF_PATH_MAX + 16];
    (void)snprintf(path, sizeof(path), "%s/captures", conf->state_dir);
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;)
        if (entry->d_name[0] != '.')
            cleanup_list(dirfd(dir), entry->d_name);
    if (dir != NULL)
        (void)closedir(dir);
}
