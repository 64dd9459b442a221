/* The WAL archive: see wal.h. An object is immutable and its name appears with its whole content
 * (store_put), so a push that dies at any moment leaves nothing or all of it, and a second push has
 * only to compare. */
#include "agent/wal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

#include "agent/pg_names.h"
#include "agent/wal_page.h"
#include "io/crypt.h"
#include "io/file.h"
#include "io/format.h"

static int object_name(const struct wal_archive *archive, const char *name, char *object,
                       enum wal_kind *ret_kind, struct err *err)
{
    uint32_t timeline;
    if (!wal_name_parse(name, ret_kind, &timeline))
        return err_set(err, ERR_USAGE, "'%.80s' is not the name of a WAL file", name);
    repo_wal_name(object, archive->cluster, archive->system_id, timeline, name);
    return 0;
}

/* --- content against name ----------------------------------------------------------------------
 */

/* What any file of the archive must look like, whether it comes from the server or from the
 * repository: its first len bytes, which are all of it but for a segment. */
static int check_content(const struct wal_archive *archive, const char *name, enum wal_kind kind,
                         const void *raw, size_t len, uint64_t file_size, struct err *err)
{
    struct wal_history *history;
    uint32_t timeline = 0;
    int rc = 0;
    switch (kind) {
    case WAL_SEGMENT:
    case WAL_PARTIAL:
        rc = wal_page_check(raw, len, name, archive->system_id, file_size, err);
        break;
    case WAL_BACKUP:
        if (len < 20 || memcmp(raw, "START WAL LOCATION: ", 20) != 0)
            rc = err_set(err, ERR_CORRUPT, "it is no backup history file");
        break;
    case WAL_HISTORY:
        history = malloc(sizeof(*history));
        if (!history)
            return err_set(err, ERR_INTERNAL, "out of memory");
        (void)wal_name_valid(name, &timeline);
        rc = wal_history_parse(timeline, raw, len, history, err);
        free(history);
        break;
    }
    return rc < 0 ? err_prefix(err, "WAL file %s", name) : 0;
}

/* --- push ------------------------------------------------------------------------------------- */

static int read_fully(int fd, const char *path, uint8_t *buf, size_t len, struct err *err)
{
    for (size_t done = 0; done < len;) {
        ssize_t got = read(fd, buf + done, len - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_sys(err, ERR_DEVICE, "read '%s'", path);
        if (got == 0)
            return err_set(err, ERR_DEVICE, "'%s' became shorter while it was read", path);
        done += (size_t)got;
    }
    return 0;
}

static int open_file(const char *path, int *ret_fd, size_t *ret_len, struct err *err)
{
    struct stat st;
    /* Root reads here what lies in the directory of the server's user. */
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    if (!S_ISREG(st.st_mode) || st.st_size > FMT_WAL_RAW_MAX)
        return err_set(err, ERR_REFUSED, "'%s' is no regular file of at most 1 GiB", path);
    *ret_fd = take_fd(&fd);
    *ret_len = (size_t)st.st_size;
    return 0;
}

static int read_file(const char *path, void **ret_raw, size_t *ret_len, struct err *err)
{
    close_fd int fd = -1;
    size_t len;
    int rc = open_file(path, &fd, &len, err);
    if (rc < 0)
        return rc;
    free_mem uint8_t *raw = malloc(len + 1);
    if (!raw)
        return err_set(err, ERR_INTERNAL, "out of memory for '%s'", path);
    rc = read_fully(fd, path, raw, len, err);
    if (rc < 0)
        return rc;
    *ret_raw = take_ptr(&raw);
    *ret_len = len;
    return 0;
}

/* The head of an object of size bytes, with identity and length checked. */
static int check_head(const struct wal_archive *archive, const char *object, const char *name,
                      const void *head, size_t len, uint64_t size, struct fmt_wal *ret,
                      struct err *err)
{
    struct fmt_header header = {0};
    struct fmt_wal wal = {0};
    int rc = fmt_wal_decode_header(head, len, archive->repo->id, &wal, err);
    if (rc == 0)
        rc = fmt_header_decode(head, len, &header, err);
    if (rc < 0)
        return err_prefix(err, "object '%s'", object);
    if (size != header.body_len + FMT_HEADER_LEN)
        return err_set(err, ERR_CORRUPT, "object '%s' has %" PRIu64 " bytes instead of %" PRIu64,
                       object, size, header.body_len + FMT_HEADER_LEN);
    if (wal.system_id != archive->system_id || strcmp(wal.name, name) != 0 ||
        strcmp(wal.cluster, archive->cluster) != 0)
        return err_set(err, ERR_CORRUPT, "object '%s' holds %s of cluster %s, system %" PRIu64,
                       object, wal.name, wal.cluster, wal.system_id);
    *ret = wal;
    return 0;
}

static int read_head_once(const struct wal_archive *archive, const char *object, const char *name,
                          struct fmt_wal *ret, struct err *err)
{
    uint8_t head[FMT_WAL_HEAD_LEN];
    size_t len = 0;
    uint64_t size = 0;
    int rc = store_get_head(archive->store, object, head, sizeof(head), &len, &size, err);
    if (rc < 0)
        return rc == -ERR_MISSING ? rc : err_prefix(err, "object '%s'", object);
    return check_head(archive, object, name, head, len, size, ret, err);
}

static int read_head(const struct wal_archive *archive, const char *object, const char *name,
                     struct fmt_wal *ret, struct err *err)
{
    int rc = -ERR_CORRUPT;
    for (unsigned i = 0; rc == -ERR_CORRUPT && i < STORE_READ_TRIES; i++)
        rc = read_head_once(archive, object, name, ret, err);
    return rc;
}

/* 0 when the archive holds exactly these bytes, ERR_REFUSED when it holds others. */
static int compare_with_archive(const struct wal_archive *archive, const char *object,
                                const struct fmt_wal *ours, struct err *err)
{
    struct fmt_wal theirs;
    int rc = read_head(archive, object, ours->name, &theirs, err);
    if (rc < 0)
        return rc;
    if (theirs.raw_len == ours->raw_len &&
        memcmp(theirs.raw_sha256, ours->raw_sha256, sizeof(theirs.raw_sha256)) == 0)
        return 0;
    (void)err_set(err, ERR_REFUSED, "the archive holds another %s", ours->name);
    return err_hint(err, "two servers with one system id archive on one timeline: give one of them "
                         "another cluster name, or switch its archiving off");
}

/* The local file is at fault, not the repository. */
static int check_local(const struct wal_archive *archive, const char *name, enum wal_kind kind,
                       const void *raw, size_t len, uint64_t file_size, struct err *err)
{
    if (check_content(archive, name, kind, raw, len, file_size, err) == 0)
        return 0;
    err->code = ERR_REFUSED;
    return -ERR_REFUSED;
}

int wal_load(const struct wal_archive *archive, const char *path, const char *name, void **ret_raw,
             size_t *ret_len, struct err *err)
{
    enum wal_kind kind;
    free_mem void *raw = NULL;
    size_t len = 0;
    if (!wal_name_parse(name, &kind, NULL))
        return err_set(err, ERR_USAGE, "'%.80s' is not the name of a WAL file", name);
    int rc = read_file(path, &raw, &len, err);
    if (rc == 0)
        rc = check_local(archive, name, kind, raw, len, len, err);
    if (rc < 0)
        return rc;
    *ret_raw = take_ptr(&raw);
    *ret_len = len;
    return 0;
}

/* A local file as the archive would hold it. */
struct wal_object {
    char name[STORE_NAME_MAX + 1];
    struct fmt_wal wal;
    uint8_t *bytes; /* malloc'ed */
    size_t len;
};

static int make_room(struct wal_object *object, uint64_t raw_len, struct err *err)
{
    object->wal.raw_len = raw_len;
    object->bytes = malloc(fmt_wal_len_max(raw_len));
    return object->bytes ? 0 : err_set(err, ERR_INTERNAL, "out of memory for %s", object->wal.name);
}

/* A segment, block by block while each is in the cache: to touch the memory of a whole one would
 * cost more than its digest. */
static int encode_blocks(const struct wal_archive *archive, int fd, const char *path,
                         enum wal_kind kind, struct wal_object *object, struct err *err)
{
    uint8_t block[FMT_WAL_BLOCK_SIZE];
    struct fmt_wal *wal = &object->wal;
    struct sha256_stream *digest = sha256_open();
    uint64_t done = 0;
    int rc;
    object->len = FMT_WAL_HEAD_LEN;
    do {
        size_t len = min_u64(sizeof(block), wal->raw_len - done);
        rc = read_fully(fd, path, block, len, err);
        if (rc == 0 && done == 0)
            rc = check_local(archive, wal->name, kind, block, len, wal->raw_len, err);
        if (rc < 0)
            break;
        sha256_update(digest, block, len);
        object->len += fmt_wal_encode_block(block, len, object->bytes + object->len);
        done += len;
    } while (done < wal->raw_len);
    sha256_finish(digest, wal->raw_sha256);
    if (rc == 0)
        fmt_wal_encode_head(wal, archive->repo->id, object->len, object->bytes);
    return rc;
}

static int encode_segment(const struct wal_archive *archive, const char *path, enum wal_kind kind,
                          struct wal_object *object, struct err *err)
{
    close_fd int fd = -1;
    size_t len = 0;
    int rc = open_file(path, &fd, &len, err);
    if (rc == 0)
        rc = make_room(object, len, err);
    return rc < 0 ? rc : encode_blocks(archive, fd, path, kind, object, err);
}

/* A history file is understood as a whole. */
static int encode_small(const struct wal_archive *archive, const char *path,
                        struct wal_object *object, struct err *err)
{
    free_mem void *raw = NULL;
    size_t len = 0;
    int rc = wal_load(archive, path, object->wal.name, &raw, &len, err);
    if (rc == 0)
        rc = make_room(object, len, err);
    if (rc < 0)
        return rc;
    sha256(raw, len, object->wal.raw_sha256);
    object->len = fmt_wal_encode(&object->wal, archive->repo->id, raw, object->bytes);
    return 0;
}

static int encode_file(const struct wal_archive *archive, const char *path, const char *name,
                       struct wal_object *object, struct err *err)
{
    enum wal_kind kind;
    struct fmt_wal *wal = &object->wal;
    int rc = object_name(archive, name, object->name, &kind, err);
    if (rc < 0)
        return rc;
    wal->system_id = archive->system_id;
    (void)wal_name_valid(name, &wal->timeline);
    (void)snprintf(wal->name, sizeof(wal->name), "%s", name);
    (void)snprintf(wal->cluster, sizeof(wal->cluster), "%s", archive->cluster);
    return kind == WAL_SEGMENT || kind == WAL_PARTIAL
               ? encode_segment(archive, path, kind, object, err)
               : encode_small(archive, path, object, err);
}

int wal_object_read(const struct wal_archive *archive, const char *path, const char *name,
                    struct wal_object **ret, struct err *err)
{
    struct wal_object *object = calloc(1, sizeof(*object));
    if (!object)
        return err_set(err, ERR_INTERNAL, "out of memory for %s", name);
    int rc = encode_file(archive, path, name, object, err);
    if (rc < 0)
        wal_object_free(object);
    else
        *ret = object;
    return rc;
}

int wal_object_store(const struct wal_archive *archive, const struct wal_object *object,
                     struct err *err)
{
    /* First a look: a server that crashed after a push offers the same segment again. */
    int rc = compare_with_archive(archive, object->name, &object->wal, err);
    if (rc == 0) /* whoever pushed it may have died before its name was durable */
        return store_flush_name(archive->store, object->name, err);
    if (rc == -ERR_MISSING)
        rc = store_put_absent(archive->store, object->name, object->bytes, object->len, err);
    if (rc == STORE_EXISTS)
        rc = compare_with_archive(archive, object->name, &object->wal, err);
    return rc;
}

void wal_object_free(struct wal_object *object)
{
    if (object)
        free(object->bytes);
    free(object);
}

int wal_push(const struct wal_archive *archive, const char *path, const char *name, struct err *err)
{
    struct wal_object *object = NULL;
    int rc = wal_object_read(archive, path, name, &object, err);
    if (rc == 0)
        rc = wal_object_store(archive, object, err);
    wal_object_free(object);
    return rc;
}

/* --- get -------------------------------------------------------------------------------------- */

/* An object is absent only if the repository that we were told to use is there without it. The
 * order counts: lookup first, identity after it. */
static int confirm_absence(const struct wal_archive *archive, const char *name, struct err *err)
{
    struct repo repo;
    struct err why;
    bool used_copy;
    int rc = repo_open(archive->store, &repo, &used_copy, &why);
    if (rc < 0)
        return err_set(err, ERR_STORE, "%s cannot be looked up: %s", name, why.text);
    if (memcmp(repo.id, archive->repo->id, ID_LEN) != 0)
        return err_set(err, ERR_STORE, "%s cannot be looked up: %s holds another repository", name,
                       store_url(archive->store));
    return err_set(err, ERR_MISSING, "the archive does not hold %s", name);
}

static int wal_read_once(const struct wal_archive *archive, const char *name, void **ret_raw,
                         size_t *ret_len, struct err *err)
{
    char object[STORE_NAME_MAX + 1];
    enum wal_kind kind;
    struct fmt_wal wal;
    free_mem void *buf = NULL;
    size_t len;
    int rc = object_name(archive, name, object, &kind, err);
    if (rc == 0)
        rc = store_get_all(archive->store, object, fmt_wal_len_max(FMT_WAL_RAW_MAX), &buf, &len,
                           err);
    if (rc < 0)
        return rc == -ERR_MISSING ? confirm_absence(archive, name, err) : rc;
    rc = check_head(archive, object, name, buf, len, len, &wal, err);
    if (rc < 0)
        return rc;
    free_mem uint8_t *raw = malloc(wal.raw_len + 1);
    if (!raw)
        return err_set(err, ERR_INTERNAL, "out of memory for %s", name);
    rc = fmt_wal_decode_body(buf, len, &wal, raw, err);
    if (rc == 0)
        rc = check_content(archive, name, kind, raw, wal.raw_len, wal.raw_len, err);
    if (rc < 0)
        return err_prefix(err, "object '%s'", object);
    *ret_raw = take_ptr(&raw);
    *ret_len = wal.raw_len;
    return 0;
}

int wal_read(const struct wal_archive *archive, const char *name, void **ret_raw, size_t *ret_len,
             struct err *err)
{
    int rc = -ERR_CORRUPT;
    for (unsigned i = 0; rc == -ERR_CORRUPT && i < STORE_READ_TRIES; i++)
        rc = wal_read_once(archive, name, ret_raw, ret_len, err);
    return rc;
}

static int write_failed(const char *what, const char *path, struct err *err)
{
    int rc = err_sys(err, ERR_DEVICE, "%s '%s'", what, path);
    if (err->sys_errno == ENOSPC || err->sys_errno == EDQUOT)
        (void)err_hint(err, "the filesystem of this file is full, not the repository: free space "
                            "there, then start the server again if it has stopped");
    return rc;
}

static int write_file(const char *path, const void *raw, size_t len, bool durable, struct err *err)
{
    close_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return write_failed("create", path, err);
    if (write_all(fd, raw, len) < 0)
        return write_failed("write", path, err);
    if (durable && fsync(fd) < 0)
        return write_failed("flush", path, err);
    if (close(take_fd(&fd)) < 0)
        return write_failed("close", path, err);
    return 0;
}

int wal_get(const struct wal_archive *archive, const char *name, const char *to_path, bool durable,
            struct err *err)
{
    char temp[4096];
    free_mem void *raw = NULL;
    size_t len;
    if ((size_t)snprintf(temp, sizeof(temp), "%s.tidemark", to_path) >= sizeof(temp))
        return err_set(err, ERR_USAGE, "the path '%.80s…' is too long", to_path);
    int rc = wal_read(archive, name, &raw, &len, err);
    if (rc == 0)
        rc = write_file(temp, raw, len, durable, err);
    if (rc == 0 && rename(temp, to_path) < 0)
        rc = err_sys(err, ERR_DEVICE, "rename '%s' to '%s'", temp, to_path);
    if (rc < 0)
        (void)unlink(temp);
    return rc;
}

int wal_check(const struct wal_archive *archive, const char *name, struct err *err)
{
    uint64_t size;
    return wal_size(archive, name, &size, err);
}

int wal_flush_name(const struct wal_archive *archive, const char *name, struct err *err)
{
    char object[STORE_NAME_MAX + 1];
    enum wal_kind kind;
    int rc = object_name(archive, name, object, &kind, err);
    return rc < 0 ? rc : store_flush_name(archive->store, object, err);
}

int wal_size(const struct wal_archive *archive, const char *name, uint64_t *ret_size,
             struct err *err)
{
    char object[STORE_NAME_MAX + 1];
    enum wal_kind kind;
    struct fmt_wal wal;
    int rc = object_name(archive, name, object, &kind, err);
    if (rc == 0)
        rc = read_head(archive, object, name, &wal, err);
    if (rc == 0)
        *ret_size = wal.raw_len;
    return rc == -ERR_MISSING ? confirm_absence(archive, name, err) : rc;
}
