/* The lock of a node, see node_lock.h. The file is never removed: a lock on a name that was
 * unlinked and made again would be two locks. */
#include "agent/node_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>

static int held(int fd, struct err *err)
{
    char holder[128] = "";
    ssize_t len = pread(fd, holder, sizeof(holder) - 1, 0);
    holder[len > 0 ? strcspn(holder, "\n") : 0] = '\0';
    (void)err_set(err, ERR_BUSY, "a %s is running on this node",
                  holder[0] ? holder : "snapshot or restore");
    return err_hint(err, "wait for it, or end it with `tidemark cancel`");
}

int node_lock(const struct conf *conf, const char *what, const char *job, int *ret_fd,
              struct err *err)
{
    char path[CONF_PATH_MAX + 32], text[128];
    if (mkdir(conf->state_dir, 0700) < 0 && errno != EEXIST)
        return err_sys(err, ERR_DEVICE, "create '%s'", conf->state_dir);
    (void)snprintf(path, sizeof(path), "%s/node.lock", conf->state_dir);
    close_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? held(fd, err) : err_sys(err, ERR_DEVICE, "lock '%s'", path);
    int len = snprintf(text, sizeof(text), "%s (job %s)\n", what, job);
    if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)len, 0) != len)
        return err_sys(err, ERR_DEVICE, "write '%s'", path);
    *ret_fd = take_fd(&fd);
    return 0;
}
