/* What io/device writes to a device, step by step, for the power cut test:
 *
 *     tool_device mark DEVICE | commit DEVICE HEADFILE | show DEVICE
 *
 * show prints "marked", "damaged" or "none". */
#include <fcntl.h>
#include <stdio.h>

#include "io/device.h"

static int commit(struct device *device, const char *path, struct err *err)
{
    uint8_t head[DEVICE_MARK_LEN];
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, head, sizeof(head)) != sizeof(head))
        return err_sys(err, ERR_DEVICE, "read '%s'", path);
    return device_commit_head(device, head, err);
}

static int show(struct device *device, struct err *err)
{
    uint8_t job[16];
    uint64_t size;
    int rc = device_read_mark(device, job, &size, err);
    if (rc < 0 && rc != -ERR_MISSING && rc != -ERR_CORRUPT)
        return rc;
    (void)puts(rc == 0 ? "marked" : rc == -ERR_CORRUPT ? "damaged" : "none");
    return 0;
}

int main(int argc, char **argv)
{
    static const uint8_t job[16] = {1, 2, 3};
    struct device device;
    struct err err;
    if (argc < 3)
        return 2;
    int rc = strcmp(argv[1], "show") == 0 ? device_open_read(argv[2], &device, &err)
                                          : device_open_exclusive(argv[2], &device, &err);
    if (rc == 0 && strcmp(argv[1], "mark") == 0)
        rc = device_mark(&device, job, device.identity.size, &err);
    else if (rc == 0 && strcmp(argv[1], "commit") == 0 && argc == 4)
        rc = commit(&device, argv[3], &err);
    else if (rc == 0)
        rc = show(&device, &err);
    if (rc < 0)
        (void)fprintf(stderr, "tool_device: %s\n", err.text);
    return rc < 0;
}
