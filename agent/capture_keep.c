/* Evidence for the exact compare (tests/pg/t_precopy.py): the frozen device as it is, and which
 * extents the capture claims to have looked at. What is tested is what is shipped, so this is
 * compiled in; it does nothing unless a directory is named. */
#include "agent/capture_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>

static const char *keep_directory(void)
{
    return getenv("TIDEMARK_TEST_PRECOPY_KEEP");
}

int capture_keep_extents(const struct capture *capture, size_t index, const char *kind,
                         const struct extent_list *list, struct err *err)
{
    char path[PATH_MAX];
    if (keep_directory() == NULL)
        return 0;
    (void)snprintf(path, sizeof(path), "%s/%s.extents", keep_directory(),
                   capture_volume_name(capture, index));
    FILE *file = fopen(path, "ae");
    if (file == NULL)
        return err_sys(err, ERR_INTERNAL, "open '%s'", path);
    for (size_t i = 0; i < list->count; i++)
        (void)fprintf(file, "%s %llu %llu\n", kind, (unsigned long long)list->items[i].offset,
                      (unsigned long long)list->items[i].len);
    return fclose(file) == 0 ? 0 : err_sys(err, ERR_INTERNAL, "write '%s'", path);
}

static int keep_device(const struct capture *capture, size_t index, struct err *err)
{
    const struct device *device = &capture->volumes[index].live;
    char path[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/%s.img", keep_directory(),
                   capture_volume_name(capture, index));
    close_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    free_mem char *buf = aligned_alloc(4096, MIB);
    if (fd < 0 || buf == NULL)
        return err_sys(err, ERR_INTERNAL, "open '%s'", path);
    for (uint64_t at = 0; at < device->identity.size; at += MIB) {
        size_t len = (size_t)min_u64(MIB, device->identity.size - at);
        if (pread(device->fd, buf, len, (off_t)at) != (ssize_t)len ||
            pwrite(fd, buf, len, (off_t)at) != (ssize_t)len)
            return err_sys(err, ERR_INTERNAL, "copy the device to '%s'", path);
    }
    return 0;
}

int capture_keep_devices(const struct capture *capture, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; keep_directory() != NULL && rc == 0 && i < capture->group->count; i++)
        rc = keep_device(capture, i, err);
    return rc;
}
