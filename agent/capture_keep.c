/* Evidence for the exact compare (tests/pg/t_precopy.py): the frozen device as it is, which extents
 * the capture claims to have looked at, how long writers stood still; and the rules that a test
 * breaks to see that the compare notices. What is tested is what is shipped, so this is compiled
 * in; it does nothing unless the environment asks for it. */
#include "agent/capture_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>

static const char *keep_directory(void)
{
    return getenv("TIDEMARK_TEST_PRECOPY_KEEP");
}

bool capture_keeps(void)
{
    return keep_directory() != NULL;
}

bool capture_breaks(const char *rule)
{
    const char *given = getenv("TIDEMARK_TEST_PRECOPY_BREAK");
    return keep_directory() != NULL && given != NULL && strcmp(given, rule) == 0;
}

static FILE *append_to(const char *name, const char *suffix, struct err *err)
{
    char path[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/%s%s", keep_directory(), name, suffix);
    FILE *file = fopen(path, "ae");
    if (file == NULL)
        (void)err_sys(err, ERR_INTERNAL, "open '%s'", path);
    return file;
}

static int end_append(FILE *file, struct err *err)
{
    return fclose(file) == 0 ? 0 : err_sys(err, ERR_INTERNAL, "write evidence");
}

int capture_keep_stall(uint64_t stall_ns, struct err *err)
{
    if (keep_directory() == NULL)
        return 0;
    FILE *file = append_to("stalls", "", err);
    if (file == NULL)
        return -ERR_INTERNAL;
    (void)fprintf(file, "%llu\n", (unsigned long long)stall_ns);
    return end_append(file, err);
}

int capture_keep_extents(const struct capture *capture, size_t index, const char *kind,
                         const struct extent_list *list, struct err *err)
{
    if (keep_directory() == NULL)
        return 0;
    FILE *file = append_to(capture_volume_name(capture, index), ".extents", err);
    if (file == NULL)
        return -ERR_INTERNAL;
    for (size_t i = 0; i < list->count; i++)
        (void)fprintf(file, "%s %llu %llu\n", kind, (unsigned long long)list->items[i].offset,
                      (unsigned long long)list->items[i].len);
    return end_append(file, err);
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
    for (size_t i = 0; rc == 0 && i < capture->group->count; i++)
        rc = keep_device(capture, i, err);
    return rc;
}
