/* See file.h. */
#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>

int write_all(int fd, const void *ptr, size_t len)
{
    const char *from = ptr;
    while (len > 0) {
        ssize_t done = write(fd, from, len);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0) {
            errno = done == 0 ? EIO : errno;
            return -1;
        }
        from += done;
        len -= (size_t)done;
    }
    return 0;
}

int read_all(int fd, void *buf, size_t capacity, size_t *ret_len)
{
    size_t len = 0;
    while (len < capacity) {
        ssize_t done = read(fd, (char *)buf + len, capacity - len);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -1;
        if (done == 0)
            break;
        len += (size_t)done;
    }
    *ret_len = len;
    return 0;
}

int sync_directory(const char *path, struct err *err)
{
    close_fd int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return err_sys(err, ERR_DEVICE, "sync directory '%s'", path);
    return 0;
}

int sync_parent(const char *path, struct err *err)
{
    char parent[PATH_MAX];
    if ((size_t)snprintf(parent, sizeof(parent), "%s", path) >= sizeof(parent))
        return err_set(err, ERR_DEVICE, "path too long: '%s'", path);
    char *slash = strrchr(parent, '/');
    if (slash)
        slash[slash == parent] = '\0';
    return sync_directory(slash ? parent : ".", err);
}
