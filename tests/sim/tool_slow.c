/* A disk with writes in flight at the worst of times: a FUSE directory with the file `disk`, which
 * is IMAGE.
 *
 *     tool_slow IMAGE MOUNT                     until it is unmounted
 *
 * A write whose data begins with "held" waits until somebody has read the bytes that it replaces,
 * and no longer than a number of milliseconds that is written to MOUNT/delay (0 at first). Every
 * other write, of the filesystem on it, is done at once. Used under a loop device with direct I/O.
 */
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "io/base.h"

/* A write that waits. */
struct held {
    struct held *next;
    off_t offset;
    size_t len;
    bool was_read;
};

static int image_fd;
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct held *first;
    unsigned long delay_ms;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

/* Until its place has been read, or the delay is over. */
static void hold(off_t offset, size_t len)
{
    struct held held = {.offset = offset, .len = len};
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    (void)pthread_mutex_lock(&state.lock);
    until.tv_sec += (time_t)(state.delay_ms / 1000);
    until.tv_nsec += (long)(state.delay_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    held.next = state.first;
    state.first = &held;
    while (!held.was_read && pthread_cond_clockwait(&state.changed, &state.lock, CLOCK_MONOTONIC,
                                                    &until) != ETIMEDOUT)
        continue;
    struct held **link = &state.first;
    while (*link != &held)
        link = &(*link)->next;
    *link = held.next;
    (void)pthread_mutex_unlock(&state.lock);
}

static void release(off_t offset, size_t len)
{
    (void)pthread_mutex_lock(&state.lock);
    for (struct held *held = state.first; held != NULL; held = held->next)
        if (held->offset < offset + (off_t)len && offset < held->offset + (off_t)held->len)
            held->was_read = true;
    (void)pthread_cond_broadcast(&state.changed);
    (void)pthread_mutex_unlock(&state.lock);
}

static bool is_disk(const char *path)
{
    return strcmp(path, "/disk") == 0;
}

static bool is_delay(const char *path)
{
    return strcmp(path, "/delay") == 0;
}

static int on_getattr(const char *path, struct stat *st, struct fuse_file_info *info)
{
    (void)info;
    memset(st, 0, sizeof(*st));
    if (strcmp(path, "/") == 0) {
        st->st_mode = S_IFDIR | 0755;
        return 0;
    }
    if (!is_disk(path) && !is_delay(path))
        return -ENOENT;
    if (is_disk(path) && fstat(image_fd, st) < 0)
        return -errno;
    st->st_mode = S_IFREG | 0600;
    st->st_nlink = 1;
    return 0;
}

static int on_open(const char *path, struct fuse_file_info *info)
{
    info->direct_io = 1;
    return is_disk(path) || is_delay(path) ? 0 : -ENOENT;
}

static int on_truncate(const char *path, off_t size, struct fuse_file_info *info)
{
    (void)size, (void)info;
    return is_delay(path) ? 0 : -EPERM; /* a shell's redirection */
}

static int on_read(const char *path, char *buf, size_t len, off_t offset,
                   struct fuse_file_info *info)
{
    (void)info;
    if (!is_disk(path))
        return 0;
    ssize_t n = pread(image_fd, buf, len, offset);
    if (n < 0)
        return -errno;
    release(offset, len);
    return (int)n;
}

static int on_write(const char *path, const char *buf, size_t len, off_t offset,
                    struct fuse_file_info *info)
{
    (void)info;
    if (is_delay(path)) {
        char text[16];
        (void)snprintf(text, sizeof(text), "%.*s", (int)min_u64(len, 15), buf);
        (void)pthread_mutex_lock(&state.lock);
        state.delay_ms = strtoul(text, NULL, 10);
        (void)pthread_mutex_unlock(&state.lock);
        return (int)len;
    }
    if (len >= 4 && memcmp(buf, "held", 4) == 0)
        hold(offset, len);
    ssize_t n = pwrite(image_fd, buf, len, offset);
    return n < 0 ? -errno : (int)n;
}

static int on_fsync(const char *path, int data_only, struct fuse_file_info *info)
{
    (void)path, (void)data_only, (void)info;
    return 0;
}

static int on_fallocate(const char *path, int mode, off_t offset, off_t len,
                        struct fuse_file_info *info)
{
    (void)info;
    if (!is_disk(path) || !(mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)))
        return -EOPNOTSUPP;
    return fallocate(image_fd, mode | FALLOC_FL_KEEP_SIZE, offset, len) < 0 ? -errno : 0;
}

static void *on_init(struct fuse_conn_info *conn, struct fuse_config *config)
{
    (void)config;
    conn->want |= conn->capable & FUSE_CAP_ASYNC_DIO;
    conn->max_background = conn->congestion_threshold = 256;
    return NULL;
}

static const struct fuse_operations operations = {
    .init = on_init,
    .getattr = on_getattr,
    .open = on_open,
    .truncate = on_truncate,
    .read = on_read,
    .write = on_write,
    .fsync = on_fsync,
    .fallocate = on_fallocate,
};

int main(int argc, char **argv)
{
    if (argc != 3) {
        (void)fputs("usage: tool_slow IMAGE MOUNT\n", stderr);
        return 2;
    }
    image_fd = open(argv[1], O_RDWR | O_CLOEXEC);
    if (image_fd < 0) {
        perror(argv[1]);
        return 1;
    }
    char foreground[] = "-f", options[] = "-oallow_other,fsname=slow";
    char *args[] = {argv[0], foreground, options, argv[2], NULL};
    return fuse_main(4, args, &operations, NULL);
}
