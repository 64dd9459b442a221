/* file:// repositories in client mode: one directory tree, one file an object. See store_file.h for
 * the order that makes a put durable. */
#include "io/store_file.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "io/file.h"

enum { TEMP_NAME_LEN = 32, TEMP_AGE_MAX_S = 24 * 3600, SLEPT_S = 2 };

static struct store_file *of(struct store *store)
{
    return CONTAINER_OF(store, struct store_file, store);
}

int store_file_error(struct store_file *file, const char *what, const char *name, struct err *err)
{
    int saved = errno;
    const char *url = file->store.url ? file->store.url : "file://";
    if (saved == ENOSPC || saved == EDQUOT) {
        (void)err_sys(err, ERR_STORE, "the repository '%s' is full (%s '%s')", url, what, name);
        return err_hint(err, "free space in the repository's filesystem or raise its quota");
    }
    return err_sys(err, ERR_STORE, "%s '%s' in %s", what, name, url);
}

int store_file_open_beneath(int dir_fd, const char *path, int flags)
{
    struct open_how how = {
        .flags = (unsigned)(flags | O_CLOEXEC | O_NOFOLLOW),
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS,
    };
    for (;;) {
        long fd = syscall(SYS_openat2, dir_fd, path, &how, sizeof(how));
        if (fd >= 0 || (errno != EAGAIN && errno != EINTR)) /* EAGAIN: a rename raced with us */
            return (int)fd;
    }
}

const char *store_file_split(const char *name, char *dir)
{
    const char *slash = strrchr(name, '/');
    if (slash == NULL) {
        dir[0] = '\0';
        return name;
    }
    size_t len = (size_t)(slash - name);
    assert(len <= STORE_NAME_MAX);
    memcpy(dir, name, len);
    dir[len] = '\0';
    return slash + 1;
}

static const char *const group_dirs[] = {"wal", "reading", "tmp"};

/* Of a directory whose first part is top: see store_file.h. */
static mode_t dir_mode(const char *top)
{
    if (strcmp(top, "wal") == 0)
        return STORE_FILE_WAL_DIR_MODE;
    for (size_t i = 0; i < ARRAY_LEN(group_dirs); i++)
        if (strcmp(top, group_dirs[i]) == 0)
            return STORE_FILE_SHARED_DIR_MODE;
    return STORE_FILE_DIR_MODE;
}

/* Opens one level below parent_fd, making it when it is missing, and flushes parent_fd. */
static int step_down(struct store_file *file, int parent_fd, const char *part, mode_t mode,
                     int *ret_fd, struct err *err)
{
    if (mkdirat(parent_fd, part, mode & 0777) < 0) {
        if (errno != EEXIST)
            return store_file_error(file, "make directory", part, err);
    } else {
        /* umask(2) must not decide, and the group is inherited only from a setgid parent. */
        if (file->group_id >= 0 &&
            fchownat(parent_fd, part, (uid_t)-1, (gid_t)file->group_id, AT_SYMLINK_NOFOLLOW) < 0)
            return store_file_error(file, "set the group of directory", part, err);
        if (fchmodat(parent_fd, part, mode, 0) < 0)
            return store_file_error(file, "set the mode of directory", part, err);
    }
    if (fsync(parent_fd) < 0)
        return store_file_error(file, "flush the parent of directory", part, err);
    int fd = store_file_open_beneath(parent_fd, part, O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        return store_file_error(file, "open directory", part, err);
    *ret_fd = fd;
    return 0;
}

int store_file_open_dir(struct store_file *file, const char *dir, int *ret_fd, struct err *err)
{
    char path[STORE_NAME_MAX + 1];
    (void)snprintf(path, sizeof(path), "%s", dir);
    close_fd int fd = fcntl(file->root_fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return store_file_error(file, "open directory", "/", err);
    char *rest = NULL, *top = strtok_r(path, "/", &rest);
    mode_t mode = top ? dir_mode(top) : 0;
    for (char *part = top; part; part = strtok_r(NULL, "/", &rest)) {
        int next = -1;
        int rc = step_down(file, fd, part, mode, &next, err);
        if (rc < 0)
            return rc;
        (void)close(fd);
        fd = next;
    }
    *ret_fd = take_fd(&fd);
    return 0;
}

int store_file_put_dir(struct store_file *file, const char *dir, struct err *err)
{
    if (file->dir_fd >= 0 && strcmp(file->dir, dir) == 0)
        return 0;
    int fd;
    int rc = store_file_open_dir(file, dir, &fd, err);
    if (rc < 0)
        return rc;
    if (file->dir_fd >= 0)
        (void)close(file->dir_fd);
    file->dir_fd = fd;
    (void)snprintf(file->dir, sizeof(file->dir), "%s", dir);
    return 0;
}

/* What writers that died left in tmp/. Their age is told by the clock that gave our own file its
 * time, the server's, and a file that is being written has a young one. Best effort: what another
 * user made stays. */
static void sweep_temporaries(int dir_fd, int own_fd)
{
    struct stat own, st;
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (dir == NULL || fstat(own_fd, &own) < 0)
        own.st_mtime = 0;
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;)
        if (strlen(entry->d_name) == TEMP_NAME_LEN &&
            strspn(entry->d_name, "0123456789abcdef") == TEMP_NAME_LEN &&
            fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            own.st_mtime - st.st_mtime > TEMP_AGE_MAX_S)
            (void)unlinkat(fd, entry->d_name, 0);
    if (dir != NULL)
        (void)closedir(dir);
    else if (fd >= 0)
        (void)close(fd);
}

static int open_named_temp(struct store_file *file, int flags, struct store_file_temp *temp,
                           struct err *err)
{
    close_fd int dir_fd = -1;
    int rc = store_file_open_dir(file, "tmp", &dir_fd, err);
    if (rc < 0)
        return rc;
    uint64_t random[2];
    if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
        return err_sys(err, ERR_INTERNAL, "getrandom");
    (void)snprintf(temp->name, sizeof(temp->name), "tmp/%016llx%016llx",
                   (unsigned long long)random[0], (unsigned long long)random[1]);
    temp->fd =
        openat(dir_fd, temp->name + 4, flags | O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
               STORE_FILE_OBJECT_MODE);
    if (temp->fd < 0)
        temp->name[0] = '\0';
    else if (!file->swept)
        sweep_temporaries(dir_fd, temp->fd);
    file->swept = true;
    return 0; /* the caller looks at fd and errno */
}

static int open_temp(struct store_file *file, int dir_fd, int flags, struct store_file_temp *temp,
                     struct err *err)
{
    temp->name[0] = '\0';
    if (!file->no_tmpfile) {
        temp->fd =
            openat(dir_fd, ".", flags | O_RDWR | O_TMPFILE | O_CLOEXEC, STORE_FILE_OBJECT_MODE);
        /* open(2): EOPNOTSUPP from the filesystem, EISDIR or ENOENT from kernels without it. */
        if (temp->fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT))
            return 0;
        file->no_tmpfile = true;
    }
    return open_named_temp(file, flags, temp, err);
}

int store_file_temp_open(struct store_file *file, int dir_fd, int flags,
                         struct store_file_temp *ret, bool *ret_direct, struct err *err)
{
    struct store_file_temp temp = {.fd = -1};
    int rc = open_temp(file, dir_fd, flags, &temp, err);
    bool direct = (flags & O_DIRECT) != 0;
    if (rc == 0 && temp.fd < 0 && direct && errno == EINVAL) { /* tmpfs before 6.5, some FUSE */
        direct = false;
        rc = open_temp(file, dir_fd, flags & ~O_DIRECT, &temp, err);
    }
    if (rc < 0)
        return rc;
    if (temp.fd < 0)
        return store_file_error(file, "create an object in", file->dir[0] ? file->dir : "/", err);
    if (file->group_id >= 0 && fchown(temp.fd, (uid_t)-1, (gid_t)file->group_id) < 0)
        rc = store_file_error(file, "set the group of an object in", file->dir, err);
    else if (fchmod(temp.fd, STORE_FILE_OBJECT_MODE) < 0)
        rc = store_file_error(file, "set the mode of an object in", file->dir, err);
    if (rc < 0) {
        store_file_temp_close(file, &temp);
        return rc;
    }
    *ret = temp;
    if (ret_direct)
        *ret_direct = direct;
    return 0;
}

int store_file_temp_link(struct store_file *file, struct store_file_temp *temp, int dir_fd,
                         const char *base, const char *name, struct err *err)
{
    int rc;
    if (temp->name[0] != '\0') {
        rc = linkat(file->root_fd, temp->name, dir_fd, base, 0);
    } else {
        /* AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH: linkat(2) shows this way for users. */
        char path[32];
        (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", temp->fd);
        rc = linkat(AT_FDCWD, path, dir_fd, base, AT_SYMLINK_FOLLOW);
    }
    if (rc == 0)
        return 0;
    return errno == EEXIST ? STORE_EXISTS : store_file_error(file, "name object", name, err);
}

void store_file_temp_close(struct store_file *file, struct store_file_temp *temp)
{
    if (temp->name[0] != '\0')
        (void)unlinkat(file->root_fd, temp->name, 0);
    if (temp->fd >= 0)
        (void)close(temp->fd);
    temp->fd = -1;
    temp->name[0] = '\0';
}

/* Ages are told by the time of the last write. A writer that slept between that and the link, which
 * changes the inode's other time, has put an object that looks older than it is there. */
static int correct_time(struct store_file *file, int fd, const char *name, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return store_file_error(file, "stat object", name, err);
    if (st.st_ctim.tv_sec - st.st_mtim.tv_sec <= SLEPT_S)
        return 0;
    if (futimens(fd, NULL) < 0 || fsync(fd) < 0)
        return store_file_error(file, "set the time of object", name, err);
    return 0;
}

/* Of file->dir_fd, whose ancestors are durable (store_file_put_dir()). */
static int flush_dir(struct store_file *file, const char *name, struct err *err)
{
    return fsync(file->dir_fd) < 0
               ? store_file_error(file, "flush the directory of object", name, err)
               : 0;
}

static int file_flush_name(struct store *store, const char *name, struct err *err)
{
    struct store_file *file = of(store);
    char dir[STORE_NAME_MAX + 1];
    (void)store_file_split(name, dir);
    int rc = store_file_put_dir(file, dir, err);
    return rc < 0 ? rc : flush_dir(file, name, err);
}

static int file_put(struct store *store, const char *name, const void *ptr, size_t len,
                    struct err *err)
{
    struct store_file *file = of(store);
    char dir[STORE_NAME_MAX + 1];
    const char *base = store_file_split(name, dir);
    int rc = store_file_put_dir(file, dir, err);
    if (rc < 0)
        return rc;
    struct store_file_temp temp;
    rc = store_file_temp_open(file, file->dir_fd, 0, &temp, NULL, err);
    if (rc < 0)
        return rc;
    if (write_all(temp.fd, ptr, len) < 0)
        rc = store_file_error(file, "write object", name, err);
    else if (fsync(temp.fd) < 0)
        rc = store_file_error(file, "flush object", name, err);
    else
        rc = store_file_temp_link(file, &temp, file->dir_fd, base, name, err);
    if (rc == 0)
        rc = correct_time(file, temp.fd, name, err);
    /* Also when the object exists: who linked it may have died before this flush. */
    int flushed = rc >= 0 ? flush_dir(file, name, err) : rc;
    store_file_temp_close(file, &temp);
    return flushed < 0 ? flushed : rc;
}

int store_file_missing(struct store_file *file, const char *name, struct err *err)
{
    struct stat st;
    bool is_identity =
        strcmp(name, "tidemark.repo") == 0 || strcmp(name, "tidemark.repo.copy") == 0;
    bool there = is_identity ? fstat(file->root_fd, &st) == 0 && st.st_nlink > 0
                             : faccessat(file->root_fd, "tidemark.repo", F_OK, 0) == 0 ||
                                   faccessat(file->root_fd, "tidemark.repo.copy", F_OK, 0) == 0;
    if (there)
        return err_set(err, ERR_MISSING, "object '%s' does not exist in %s", name, file->store.url);
    (void)err_set(err, ERR_STORE, "%s holds no repository ('%s' was asked for)", file->store.url,
                  name);
    return err_hint(err, "is the filesystem of the repository mounted? 'tidemark init' makes a "
                         "new repository");
}

int store_file_open_object(struct store_file *file, const char *name, int flags, int *ret_fd,
                           struct stat *ret_stat, struct err *err)
{
    close_fd int fd = store_file_open_beneath(file->root_fd, name, O_RDONLY | O_NONBLOCK | flags);
    if (fd < 0) {
        if (errno == ENOENT)
            return store_file_missing(file, name, err);
        return store_file_error(file, "open object", name, err);
    }
    struct stat st;
    if (fstat(fd, &st) < 0)
        return store_file_error(file, "stat object", name, err);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_STORE, "'%s' in %s is not a file", name, file->store.url);
    /* O_NONBLOCK was for FIFOs. Where the disk has no nowait I/O (dm-crypt, dm-thin) io_uring would
     * end reads with EAGAIN that it otherwise hands to a worker (io_rw_init_file(), Linux 6.1). */
    if (fcntl(fd, F_SETFL, flags) < 0)
        return store_file_error(file, "open object", name, err);
    *ret_fd = take_fd(&fd);
    *ret_stat = st;
    return 0;
}

static int file_get(struct store *store, const char *name, uint64_t offset, void *buf, size_t len,
                    size_t *ret_len, uint64_t *ret_size, struct err *err)
{
    struct store_file *file = of(store);
    struct stat st;
    close_fd int fd = -1;
    int rc = store_file_open_object(file, name, 0, &fd, &st, err);
    if (rc < 0)
        return rc;
    if (ret_size)
        *ret_size = (uint64_t)st.st_size;
    size_t got = 0;
    while (got < len) {
        ssize_t n = pread(fd, (char *)buf + got, len - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return store_file_error(file, "read object", name, err);
        if (n == 0)
            break;
        got += (size_t)n;
    }
    *ret_len = got;
    return 0;
}

static int file_size(struct store *store, const char *name, uint64_t *ret_size, struct err *err)
{
    struct stat st;
    close_fd int fd = -1;
    int rc = store_file_open_object(of(store), name, 0, &fd, &st, err);
    if (rc == 0)
        *ret_size = (uint64_t)st.st_size;
    return rc;
}

static void file_close(struct store *store)
{
    struct store_file *file = of(store);
    if (file->dir_fd >= 0)
        (void)close(file->dir_fd);
    (void)close(file->root_fd);
}

static int file_clone(struct store *store, struct store **ret, struct err *err)
{
    struct store_file *file = calloc(1, sizeof(*file));
    if (file == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    file->root_fd = fcntl(of(store)->root_fd, F_DUPFD_CLOEXEC, 0);
    if (file->root_fd < 0) {
        free(file);
        return err_sys(err, ERR_INTERNAL, "duplicate the repository's directory");
    }
    file->store.ops = &store_file_ops;
    file->group_id = of(store)->group_id;
    file->dir_fd = -1;
    *ret = &file->store;
    return 0;
}

const struct store_ops store_file_ops = {
    .scheme = "file://",
    .put = file_put,
    .flush_name = file_flush_name,
    .get = file_get,
    .size = file_size,
    .modified = store_file_modified,
    .list = store_file_list,
    .remove = store_file_remove,
    .clone = file_clone,
    .clock = store_file_clock,
    .close = file_close,
    .lane_depth = 4,
    .lane_open = store_file_lane_open,
    .lane_close = store_file_lane_close,
    .lane_put = store_file_lane_put,
    .lane_get = store_file_lane_get,
};

/* --- open --------------------------------------------------------------------------------- */

/* A fresh mount point is empty but for lost+found. */
static bool is_empty(const char *path)
{
    DIR *dir = opendir(path);
    bool empty = dir != NULL;
    for (struct dirent *entry; empty && (entry = readdir(dir)) != NULL;)
        empty = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
                strcmp(entry->d_name, "lost+found") == 0;
    if (dir != NULL)
        (void)closedir(dir);
    return empty;
}

/* Makes the root as step_down() makes directories below it, and its parent's entry durable. An
 * empty directory becomes what a new one would be when there is a group to give it to; one with
 * other files in it is left as it is. */
static int make_root(const char *path, const struct store_options *options, struct err *err)
{
    if (mkdir(path, 0770) < 0) {
        if (errno != EEXIST) {
            (void)err_sys(err, ERR_STORE, "make the repository directory '%s'", path);
            return err_hint(err, "is the filesystem mounted that it belongs to? Only the last "
                                 "part of the path is made");
        }
        if (options->group_id < 0 || !is_empty(path))
            return 0;
    }
    if (options->group_id >= 0 && chown(path, (uid_t)-1, (gid_t)options->group_id) < 0)
        return err_sys(err, ERR_STORE, "set the group of '%s'", path);
    if (chmod(path, STORE_FILE_DIR_MODE) < 0)
        return err_sys(err, ERR_STORE, "set the mode of '%s'", path);
    free_mem char *parent = NULL;
    if (asprintf(&parent, "%s/..", path) < 0)
        return err_set(err, ERR_INTERNAL, "out of memory");
    close_fd int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return err_sys(err, ERR_STORE, "flush the parent of '%s'", path);
    return 0;
}

/* In the root the server's user can make none. */
static int make_group_dirs(struct store_file *file, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(group_dirs); i++) {
        close_fd int fd = -1;
        rc = store_file_open_dir(file, group_dirs[i], &fd, err);
    }
    return rc;
}

int store_file_open(const char *path, const struct store_options *options, bool create,
                    struct store **ret, struct err *err)
{
    if (path[0] != '/')
        return err_set(err, ERR_CONFIG, "repository URL 'file://%s': the path must be absolute",
                       path);
    int rc = create ? make_root(path, options, err) : 0;
    if (rc < 0)
        return rc;
    close_fd int root_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root_fd < 0) {
        (void)err_sys(err, ERR_STORE, "open the repository directory '%s'", path);
        return err_hint(err, "is its filesystem mounted? 'tidemark init' makes a new repository");
    }
    struct store_file *file = calloc(1, sizeof(*file));
    if (file == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    file->store.ops = &store_file_ops;
    file->root_fd = take_fd(&root_fd);
    file->group_id = options->group_id;
    file->dir_fd = -1;
    rc = create ? make_group_dirs(file, err) : 0;
    if (rc < 0) {
        file_close(&file->store);
        free(file);
        return rc;
    }
    *ret = &file->store;
    return 0;
}
