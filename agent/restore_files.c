/* Files of the restored server: read whole, replaced durably, owned by the server's user, and with
 * that user's rights: a link that it put into its directory must not lead root anywhere. */
#include "agent/restore.h"
#include "agent/process.h"
#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

int restore_read_file(const char *path, size_t len_max, char **ret, size_t *ret_len,
                      struct err *err)
{
    struct stat st;
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO */
    if (fd < 0)
        return err_sys(err, errno == ENOENT ? ERR_MISSING : ERR_DEVICE, "open '%s'", path);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size > len_max)
        return err_set(err, ERR_DEVICE, "'%s' is not a file of at most %zu bytes", path, len_max);
    size_t size = (size_t)st.st_size, len = 0;
    free_mem char *text = malloc(size + 1);
    if (!text)
        return err_set(err, ERR_INTERNAL, "out of memory for '%s'", path);
    while (len < size) {
        ssize_t got = read(fd, text + len, size - len);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_sys(err, ERR_DEVICE, "read '%s'", path);
        if (got == 0)
            break;
        len += (size_t)got;
    }
    text[len] = '\0';
    *ret = take_ptr(&text);
    *ret_len = len;
    return 0;
}

int restore_read_theirs(const struct restore *restore, const char *path, size_t len_max, char **ret,
                        size_t *ret_len, struct err *err)
{
    int rc = process_fs_user(restore->conf.os_user, err);
    if (rc < 0)
        return rc;
    rc = restore_read_file(path, len_max, ret, ret_len, err);
    process_fs_root();
    return rc;
}

static int replace_file(const struct restore *restore, const char *path, const void *bytes,
                        size_t len, unsigned mode, struct err *err)
{
    char temporary[CONF_PATH_MAX + 80], home[256];
    uid_t uid;
    gid_t gid;
    int rc = process_user(restore->conf.os_user, &uid, &gid, home, err);
    if (rc < 0)
        return rc;
    (void)snprintf(temporary, sizeof(temporary), "%s.tidemark-new", path);
    close_fd int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "create '%s'", temporary);
    if (write_all(fd, bytes, len) < 0 || fchown(fd, uid, gid) < 0 || fchmod(fd, mode) < 0 ||
        fsync(fd) < 0)
        return err_sys(err, ERR_DEVICE, "write '%s'", temporary);
    if (rename(temporary, path) < 0)
        return err_sys(err, ERR_DEVICE, "rename '%s' to '%s'", temporary, path);
    return sync_parent(path, err);
}

/* No part of the way to path is a link. */
static bool is_straight(const char *path)
{
    char copy[CONF_PATH_MAX + 64], resolved[PATH_MAX];
    (void)snprintf(copy, sizeof(copy), "%s", path);
    const char *directory = dirname(copy);
    return realpath(directory, resolved) && strcmp(directory, resolved) == 0;
}

int restore_write_file(const struct restore *restore, const char *path, const void *bytes,
                       size_t len, unsigned mode, struct err *err)
{
    int rc = process_fs_user(restore->conf.os_user, err);
    if (rc < 0)
        return rc;
    rc = replace_file(restore, path, bytes, len, mode, err);
    process_fs_root();
    /* A directory of root's, as /etc/postgresql of an empty host: the user cannot have bent it. */
    if (rc < 0 && err->sys_errno == EACCES && is_straight(path))
        rc = replace_file(restore, path, bytes, len, mode, err);
    return rc;
}
