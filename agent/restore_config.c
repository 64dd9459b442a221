/* postgresql.conf and its kin. Where they lie on a volume, the snapshot brings their old state
 * back; where they lie in /etc (Debian), it brings nothing. `keep`: this node's own files, saved
 * before the fence, win, because they hold what this node needs (addresses, certificates, memory).
 * `image`: the files of the snapshot win. A file that is nowhere comes from the record. */
#include "agent/restore.h"
#include "agent/log.h"
#include "agent/process.h"

#include <errno.h>
#include <stdio.h>
#include <strings.h>
#include <sys/stat.h>

enum { CONFIG_FILE_MAX = 16 << 20 };

/* Where a recorded file belongs here. On a volume: the mapped place. */
static void place_of(const struct restore *restore, const struct record_blob *blob, char *ret,
                     size_t size, bool *ret_on_volume)
{
    *ret_on_volume = restore_map_path(restore, blob->path, ret, size);
    if (!*ret_on_volume)
        (void)snprintf(ret, size, "%s", blob->path);
}

static void saved_path(const struct restore *restore, size_t index, char *ret, size_t size)
{
    (void)snprintf(ret, size, "%s/config-%zu.json", restore->job->dir, index);
}

/* What lies on the volumes is half of some snapshot, and what was there before is in that job's
 * directory. */
bool restore_given_up_before(const struct restore *restore, char ret_dir[JOB_DIR_MAX])
{
    free_json json_t *jobs = NULL;
    struct err ignored;
    if (job_list(&restore->job->conf, &jobs, &ignored) < 0)
        return false;
    for (size_t i = json_array_size(jobs); i-- > 0;) {
        const json_t *job = json_array_get(jobs, i);
        const char *id = json_string_value(json_object_get(job, "id"));
        const char *step = json_string_value(json_object_get(job, "step"));
        if (!id || !step || strcmp(id, restore->job->id) == 0)
            continue;
        if (strcmp(step, "complete") == 0)
            return false;
        if (!json_is_true(json_object_get(job, "given_up")))
            continue;
        job_dir(&restore->job->conf, id, ret_dir);
        return true;
    }
    return false;
}

/* Its copy of the file at path, which becomes ours; ERR_MISSING. */
static int take_saved(struct restore *restore, const char *path, const char *to, struct err *err)
{
    char dir[JOB_DIR_MAX], from[JOB_DIR_MAX + 64];
    if (!restore_given_up_before(restore, dir))
        return err_set(err, ERR_MISSING, "no restore was given up");
    for (size_t i = 0; i < restore->record.config_file_count; i++) {
        free_json json_t *saved = NULL;
        (void)snprintf(from, sizeof(from), "%s/config-%zu.json", dir, i);
        int rc = json_load_path(from, &saved, err);
        const char *of = json_string_value(json_object_get(saved, "path"));
        if (rc < 0 && rc != -ERR_MISSING)
            return rc;
        if (of && strcmp(of, path) == 0)
            return json_save(to, saved, true, err);
    }
    return err_set(err, ERR_MISSING, "it had no such file");
}

static int save_one(struct restore *restore, size_t index, struct err *err)
{
    char path[CONF_PATH_MAX + 1], to[JOB_DIR_MAX + 64];
    bool on_volume;
    place_of(restore, &restore->record.config_files[index], path, sizeof(path), &on_volume);
    free_mem char *text = NULL;
    size_t len;
    struct stat st;
    saved_path(restore, index, to, sizeof(to));
    int taken = on_volume ? take_saved(restore, path, to, err) : -ERR_MISSING;
    if (taken != -ERR_MISSING)
        return taken;
    if (stat(path, &st) < 0)
        return 0;
    int rc = restore_read_theirs(restore, path, CONFIG_FILE_MAX, &text, &len, err);
    if (rc < 0)
        return err_prefix(err, "save this node's configuration");
    free_json json_t *saved = json_object();
    json_object_set_new(saved, "path", json_string(path));
    json_object_set_new(saved, "mode", json_integer(st.st_mode & 07777));
    json_object_set_new(saved, "bytes", json_base64(text, len));
    return json_save(to, saved, true, err);
}

/* Once saved, not again: a second fence may see the snapshot's files. */
int restore_save_config(struct restore *restore, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < restore->record.config_file_count; i++)
        rc = save_one(restore, i, err);
    return rc;
}

/* The saved bytes, or ERR_MISSING. */
static int load_saved(struct restore *restore, size_t index, void **ret, size_t *ret_len,
                      unsigned *ret_mode, struct err *err)
{
    char path[JOB_DIR_MAX + 64];
    free_json json_t *saved = NULL;
    uint64_t mode;
    saved_path(restore, index, path, sizeof(path));
    int rc = json_load_path(path, &saved, err);
    if (rc == 0)
        rc = json_get_u64(saved, "mode", ERR_CORRUPT, &mode, err);
    if (rc == 0)
        rc = json_get_base64(saved, "bytes", ERR_CORRUPT, ret, ret_len, err);
    if (rc == 0)
        *ret_mode = (unsigned)mode & 07777;
    return rc;
}

/* mkdir -p of a file's directory: an empty host has no /etc/postgresql/15/main. */
int restore_make_parents(const char *path, struct err *err)
{
    char copy[CONF_PATH_MAX + 1];
    (void)snprintf(copy, sizeof(copy), "%s", path);
    for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(copy, 0755) == 0)
            (void)chmod(copy, 0755); /* a job's umask is 077 */
        else if (errno != EEXIST)
            return err_sys(err, ERR_DEVICE, "create '%s'", copy);
        *slash = '/';
    }
    return 0;
}

/* The directory of a line "include_dir 'conf.d'", or of one with "=" (guc-file.l); relative to the
 * file's own. */
static bool include_dir(const char *line, size_t len, const char *file, char *ret, size_t size)
{
    static const char key[] = "include_dir";
    char text[CONF_PATH_MAX + 1];
    (void)snprintf(text, sizeof(text), "%.*s", (int)len, line);
    const char *at = text + strspn(text, " \t");
    if (strncasecmp(at, key, sizeof(key) - 1) != 0)
        return false;
    at += sizeof(key) - 1;
    const char *value = at + strspn(at, " \t='");
    int value_len = (int)strcspn(value, value[-1] == '\'' ? "'" : "# \t\r");
    if (value == at || value_len == 0)
        return false;
    int dir_len = value[0] == '/' ? 0 : (int)(strrchr(file, '/') + 1 - file);
    len = (size_t)snprintf(ret, size, "%.*s%.*s/x", dir_len, file, value_len, value);
    return len < size;
}

/* A server does not start without a directory that its configuration includes, empty or not; an
 * empty one is in no snapshot when it lies on none of the volumes. */
static int make_include_dirs(const struct record_blob *blob, const char *path, struct err *err)
{
    const char *text = blob->bytes, *end = text + blob->len;
    int rc = 0;
    while (rc == 0 && text < end) {
        char inside[CONF_PATH_MAX + 1];
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        size_t len = (size_t)((newline ? newline : end) - text);
        if (include_dir(text, len, path, inside, sizeof(inside)))
            rc = restore_make_parents(inside, err);
        text += len + 1;
    }
    return rc;
}

/* On a volume the server's user makes its own directories. */
static int put_record(struct restore *restore, const struct record_blob *blob, const char *path,
                      bool on_volume, struct err *err)
{
    int rc = on_volume ? process_fs_user(restore->conf.os_user, err) : 0;
    if (rc == 0)
        rc = restore_make_parents(path, err);
    if (rc == 0)
        rc = make_include_dirs(blob, path, err);
    process_fs_root();
    if (rc == 0)
        rc = restore_write_file(restore, path, blob->bytes, blob->len, blob->mode & 07777, err);
    if (rc == 0)
        log_info("configuration file of the snapshot written: path=%s", path);
    return rc;
}

static int put_one(struct restore *restore, size_t index, struct err *err)
{
    const struct record_blob *blob = &restore->record.config_files[index];
    char path[CONF_PATH_MAX + 1];
    bool on_volume;
    place_of(restore, blob, path, sizeof(path), &on_volume);
    bool there = access(path, F_OK) == 0;
    if (!there || (restore->request.config_image && !on_volume))
        return put_record(restore, blob, path, on_volume, err);
    if (restore->request.config_image || !on_volume)
        return 0; /* the image's own file; or this node's own, which nobody touched */
    free_mem void *bytes = NULL;
    size_t len = 0;
    unsigned mode = 0600;
    int rc = load_saved(restore, index, &bytes, &len, &mode, err);
    if (rc == -ERR_MISSING)
        return 0; /* this node had none: the image's stays */
    return rc < 0 ? rc : restore_write_file(restore, path, bytes, len, mode, err);
}

int restore_put_config(struct restore *restore, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < restore->record.config_file_count; i++)
        rc = put_one(restore, i, err);
    return rc;
}
