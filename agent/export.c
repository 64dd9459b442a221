/* `tidemark export`: one volume of a snapshot as a sparse image file: the bytes of the device at
 * the captured instant, zeros where it was free. The file grows as FILE.partial, which is removed
 * when the job fails or is cancelled, and gets its name once all of it is on the medium: a FILE is
 * whole, always. Nothing but the repository and FILE's directory is needed. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "agent/catalog.h"
#include "agent/job.h"
#include "agent/log.h"
#include "agent/reading.h"
#include "agent/repository.h"
#include "agent/restore.h"
#include "io/file.h"
#include "io/pull.h"

enum { ALIGNMENT = 4096 };

struct image {
    struct job *job;
    const char *what, *file, *volume_name; /* of the request; volume_name may be NULL */
    bool force;
    char partial[CONF_PATH_MAX + 16];
    int fd;
    bool created; /* the partial file is ours to remove */
    struct store *store;
    struct repo repo;
    struct record record;
    struct reading_mark reading;
    const struct record_volume *volume;
    size_t volume_index;
    uint8_t head[PULL_HEAD_LEN];
};

/* --- what is asked for -------------------------------------------------------------------------
 */

static int parse_request(struct image *image, struct err *err)
{
    static const char *const known[] = {"type", "snapshot", "volume", "file", "force", NULL};
    const json_t *request = image->job->request;
    image->file = "";
    int rc = json_check_keys(request, known, err);
    if (rc == 0)
        rc = json_get_string(request, "snapshot", ERR_USAGE, &image->what, err);
    if (rc == 0)
        rc = json_get_string(request, "file", ERR_USAGE, &image->file, err);
    if (rc == 0)
        rc = json_opt_string(request, "volume", ERR_USAGE, &image->volume_name, err);
    if (rc == 0)
        rc = json_opt_bool(request, "force", ERR_USAGE, &image->force, err);
    if (rc < 0)
        return rc;
    size_t len = strlen(image->file);
    if (image->file[0] != '/' || len > CONF_PATH_MAX || image->file[len - 1] == '/')
        return err_set(err, ERR_USAGE, "'%.200s' is not the absolute path of a file", image->file);
    (void)snprintf(image->partial, sizeof(image->partial), "%s.partial", image->file);
    return 0;
}

/* The volume that was named, or the only one. */
static int choose_volume(struct image *image, struct err *err)
{
    const struct record *record = &image->record;
    char names[512] = "";
    for (size_t i = 0; i < record->volume_count; i++) {
        const struct record_volume *volume = &record->volumes[i];
        size_t len = strlen(names);
        (void)snprintf(names + len, sizeof(names) - len, "%s%s", len ? ", " : "", volume->name);
        if (image->volume_name ? strcmp(image->volume_name, volume->name) == 0
                               : record->volume_count == 1) {
            image->volume = volume;
            image->volume_index = i;
        }
    }
    if (image->volume)
        return 0;
    if (image->volume_name)
        (void)err_set(err, ERR_USAGE, "the snapshot has no volume '%.64s'", image->volume_name);
    else
        (void)err_set(err, ERR_USAGE, "the snapshot has %zu volumes", record->volume_count);
    return err_hint(err, "choose one with --volume=NAME: %s", names);
}

/* --- the file ----------------------------------------------------------------------------------
 */

static int check_name_free(const struct image *image, const char *path, struct err *err)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : err_sys(err, ERR_DEVICE, "look at '%s'", path);
    if (!S_ISREG(st.st_mode)) {
        (void)err_set(err, ERR_REFUSED, "'%s' is there and no regular file", path);
        return err_hint(err, "`tidemark restore --device` writes devices");
    }
    if (image->force)
        return 0;
    if (path == image->partial) {
        (void)err_set(err, ERR_REFUSED, "'%s' is there: another export runs, or was killed", path);
        return err_hint(err, "when none runs, remove it, or say --force");
    }
    (void)err_set(err, ERR_REFUSED, "'%s' is there already", path);
    return err_hint(err, "choose another name, or say --force to replace it");
}

/* Zeros are not written; how much of the rest is zeros is not known before. */
static int check_space(const struct image *image, struct err *err)
{
    struct statvfs fs;
    uint64_t need = image->volume->size - image->volume->bytes_free;
    if (fstatvfs(image->fd, &fs) < 0)
        return err_sys(err, ERR_DEVICE, "look at the filesystem of '%s'", image->partial);
    uint64_t have = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (need <= have)
        return 0;
    (void)err_set(err, ERR_DEVICE,
                  "the filesystem of '%s' is too small: %" PRIu64
                  " bytes free, the image has up to "
                  "%" PRIu64,
                  image->file, have, need);
    return err_hint(err, "export to another filesystem");
}

/* What a person finds when this process is killed, said before there is anything to find. */
static int announce(struct image *image, struct err *err)
{
    char hint[CONF_PATH_MAX + 160];
    (void)snprintf(hint, sizeof(hint),
                   "'%s' is not finished: remove it, or export again with --force", image->partial);
    (void)json_object_set_new(image->job->journal, "interrupted_hint", json_string(hint));
    return job_journal(image->job, NULL, "volume", err);
}

static int create_partial(struct image *image, struct err *err)
{
    int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | (image->force ? 0 : O_EXCL);
    image->fd = open(image->partial, flags | O_DIRECT, 0600);
    if (image->fd < 0 && errno == EINVAL) /* tmpfs before 6.6 */
        image->fd = open(image->partial, flags & ~O_EXCL, 0600);
    if (image->fd < 0) {
        (void)err_sys(err, ERR_DEVICE, "create '%s'", image->partial);
        return err_hint(err, "its directory has to be there, with room for the volume");
    }
    if (flock(image->fd, LOCK_EX | LOCK_NB) < 0)
        return err_set(err, ERR_BUSY, "another export writes '%s'", image->partial);
    image->created = true;
    if (ftruncate(image->fd, 0) < 0 || ftruncate(image->fd, (off_t)image->volume->size) < 0)
        return err_sys(err, ERR_DEVICE, "make '%s' %" PRIu64 " bytes long", image->partial,
                       image->volume->size);
    return check_space(image, err);
}

static int copy(struct image *image, struct err *err)
{
    const struct conf *conf = &image->job->conf;
    free_mem void *buf = NULL;
    struct fmt_manifest manifest;
    int rc = catalog_manifest(image->store, &image->repo, &image->record, image->volume_index, &buf,
                              &manifest, err);
    if (rc < 0)
        return rc;
    struct pull pull = {
        .store = image->store,
        .repo = &image->repo,
        .manifest = &manifest,
        .sink = PULL_TO_FILE,
        .fd = image->fd,
        .alignment = ALIGNMENT,
        .free_policy = PULL_FREE_KNOWN_ZERO,
        .options = {.lane_count = conf->lanes, .memory_max = conf->memory_max},
        .progress = &image->job->progress,
    };
    rc = pull_run(&pull, err);
    memcpy(image->head, pull.head, sizeof(image->head));
    restore_test_stop("exported-blocks");
    return rc;
}

/* pull leaves the first bytes to its caller. */
static int write_head(struct image *image, struct err *err)
{
    free_mem void *head = aligned_alloc(ALIGNMENT, PULL_HEAD_LEN);
    if (!head)
        return err_set(err, ERR_INTERNAL, "out of memory");
    memcpy(head, image->head, PULL_HEAD_LEN);
    if (pwrite(image->fd, head, PULL_HEAD_LEN, 0) != PULL_HEAD_LEN || fsync(image->fd) < 0)
        return err_sys(err, ERR_DEVICE, "write '%s'", image->partial);
    return 0;
}

static int give_name(struct image *image, struct err *err)
{
    if (renameat2(AT_FDCWD, image->partial, AT_FDCWD, image->file,
                  image->force ? 0 : RENAME_NOREPLACE) < 0) {
        if (errno == EEXIST)
            return check_name_free(image, image->file, err);
        return err_sys(err, ERR_DEVICE, "rename '%s'", image->partial);
    }
    image->created = false;
    return sync_parent(image->file, err);
}

static int write_image(struct image *image, struct err *err)
{
    int rc = check_name_free(image, image->file, err);
    if (rc == 0)
        rc = check_name_free(image, image->partial, err);
    if (rc == 0)
        rc = announce(image, err);
    if (rc == 0)
        rc = create_partial(image, err);
    if (rc == 0)
        rc = copy(image, err);
    if (rc == 0)
        rc = write_head(image, err);
    if (rc == 0)
        rc = job_check_cancel(image->job, err);
    return rc < 0 ? rc : give_name(image, err);
}

/* --- the whole ---------------------------------------------------------------------------------
 */

/* What has to be known before somebody starts a server from it. */
static const char *note_of(const struct record *record)
{
    if (record->online && !record->wal_in_image)
        return "without its WAL: PostgreSQL does not start from it alone, but with backup_label "
               "and "
               "a restore_command, as `tidemark restore` writes them; snapshot --with-wal keeps it";
    return "a server started from it is a second one on the same timeline, and the links in "
           "pg_tblspc, and pg_wal if it is one, still lead to the first one's directories: set "
           "them "
           "right before the start, give it archive_mode = off, and let no client mistake it for "
           "the first";
}

static void set_result(const struct image *image)
{
    char id[ID_TEXT_LEN];
    struct stat st = {0};
    const struct record *record = &image->record;
    id_to_text(record->id, id);
    (void)fstat(image->fd, &st);
    json_t *result =
        json_pack("{s:s,s:s,s:s,s:s,s:I,s:I,s:b,s:s}", "snapshot", id, "tag", record->tag, "volume",
                  image->volume->name, "file", image->file, "bytes",
                  (json_int_t)image->volume->size, "bytes_on_disk", (json_int_t)st.st_blocks * 512,
                  "wal_in_image", !record->online || record->wal_in_image, "note", note_of(record));
    (void)json_object_set_new(image->job->journal, "result", result);
    (void)json_object_del(image->job->journal, "interrupted_hint");
    log_info("exported: file='%s' volume=%s bytes=%" PRIu64, image->file, image->volume->name,
             image->volume->size);
}

static int export(struct image *image, struct err *err)
{
    const struct conf *conf = &image->job->conf;
    size_t damaged = 0;
    int rc = parse_request(image, err);
    if (rc == 0)
        rc = job_journal(image->job, NULL, "record", err);
    if (rc == 0)
        rc = repository_open(conf, &image->job->progress.cancel, &image->store, &image->repo, err);
    if (rc == 0)
        rc = catalog_find(image->store, &image->repo, conf->file[0] ? conf->cluster : NULL, NULL,
                          image->what, &image->record, &damaged, err);
    if (rc == 0)
        rc = reading_begin(&image->reading, image->store, &image->repo, image->job, &image->record,
                           false, err);
    if (rc == 0)
        rc = choose_volume(image, err);
    return rc < 0 ? rc : write_image(image, err);
}

int export_run(struct job *job, struct err *err)
{
    struct image *image = calloc(1, sizeof(*image));
    if (!image)
        return err_set(err, ERR_INTERNAL, "out of memory");
    image->job = job;
    image->fd = -1;
    int rc = export(image, err);
    if (rc == 0)
        set_result(image);
    if (image->created) {
        (void)unlink(image->partial);
        (void)json_object_del(job->journal, "interrupted_hint");
    }
    cleanup_close(&image->fd);
    if (image->reading.job[0])
        reading_end(&image->reading, image->store, job, image->record.id);
    record_release(&image->record);
    store_close(image->store);
    free(image);
    return rc;
}
