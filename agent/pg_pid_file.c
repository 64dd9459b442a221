/* The lines of postmaster.pid: see pg_pid_file.h. */
#include "agent/pg_pid_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>

enum { STATUS_LINE = 8 };

/* Line `number`, counted from 1; NULL when it is not there. */
static const char *find_line(const char *text, int number)
{
    for (int at = 1; text && at < number; at++) {
        const char *end = strchr(text, '\n');
        text = end ? end + 1 : NULL;
    }
    return text;
}

bool pg_pid_file_parse(const char *text, struct pg_pid_file *ret)
{
    struct pg_pid_file file = {0};
    char *end;
    errno = 0;
    long pid = strtol(text, &end, 10);
    bool number = (text[0] >= '0' && text[0] <= '9') || text[0] == '-';
    if (!number || *end != '\n' || errno != 0 || pid == 0 || pid > INT_MAX || pid < -INT_MAX)
        return false;
    file.pid = (int)labs(pid);
    const char *status = find_line(text, STATUS_LINE);
    size_t len = status ? strcspn(status, " \n") : 0; /* padded with blanks */
    if (len < sizeof(file.status) && len > 0)
        memcpy(file.status, status, len);
    *ret = file;
    return true;
}

int pg_pid_file_read(const char *path, struct pg_pid_file *ret)
{
    char text[PG_PID_FILE_MAX];
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT || errno == ENOTDIR ? 1 : -1;
    ssize_t len = read(fd, text, sizeof(text) - 1);
    if (len < 0)
        return -1;
    text[len] = '\0';
    return pg_pid_file_parse(text, ret) ? 0 : 1;
}
