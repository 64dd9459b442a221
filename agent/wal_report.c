/* See wal_report.h. */
#include "agent/wal_report.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

#include "agent/process.h"
#include "agent/wal_command.h"
#include "io/file.h"

static const char magic[] = "tidemark-push-failed 1";

enum { REPORT_LEN_MAX = sizeof(((struct err *)0)->text) + sizeof(((struct err *)0)->hint) + 256 };

/* --- writing -----------------------------------------------------------------------------------*/
static void flatten(char *text)
{
    for (; *text; text++)
        if (*text == '\n' || *text == '\r')
            *text = ' ';
}

static bool write_whole(const char *path, const char *text)
{
    close_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd >= 0 && write_all(fd, text, strlen(text)) == 0;
}

void wal_report_write(const char *base, const char *name, const struct err *failure)
{
    char path[CONF_PATH_MAX + 32], temp[CONF_PATH_MAX + 48], text[REPORT_LEN_MAX];
    struct err flat = *failure;
    flatten(flat.text);
    flatten(flat.hint);
    (void)mkdir(base, 0700);
    (void)snprintf(path, sizeof(path), "%s/push-failed", base);
    (void)snprintf(temp, sizeof(temp), "%s.tidemark", path);
    (void)snprintf(text, sizeof(text), "%s\n%s\n%s\n%s\n%s\n", magic, err_code_name(flat.code),
                   name, flat.text, flat.hint);
    if (!write_whole(temp, text) || rename(temp, path) < 0)
        (void)unlink(temp);
}

void wal_report_clear(const char *base)
{
    char path[CONF_PATH_MAX + 32];
    (void)snprintf(path, sizeof(path), "%s/push-failed", base);
    (void)unlink(path);
}

/* --- reading -----------------------------------------------------------------------------------*/
/* The next line, cut at its end; NULL when there is none. */
static char *next_line(char **at)
{
    char *line = *at, *end = strchr(line, '\n');
    if (end == NULL)
        return NULL;
    *end = '\0';
    *at = end + 1;
    for (char *c = line; *c; c++)
        if (*c < ' ' || *c > '~')
            *c = '?';
    return line;
}

bool wal_report_parse(char *text, const char *name, struct err *failure)
{
    enum { MAGIC, CODE, NAME, TEXT, HINT, LINE_COUNT };
    char *lines[LINE_COUNT], *at = text;
    for (int i = 0; i < LINE_COUNT; i++)
        if ((lines[i] = next_line(&at)) == NULL)
            return false;
    if (strcmp(lines[MAGIC], magic) != 0 || strcmp(lines[NAME], name) != 0)
        return false;
    enum err_code code = err_code_from_name(lines[CODE]);
    if (code == ERR_OK || code == ERR_CANCELLED || code == ERR_PARTIAL) /* no push ends so */
        return false;
    (void)err_set(failure, code, "%s", lines[TEXT]);
    (void)err_hint(failure, "%s", lines[HINT]);
    return true;
}

static int open_as_user(const struct conf *conf, const char *path)
{
    struct err ignored;
    if (process_fs_user(conf->os_user, &ignored) < 0)
        return -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    process_fs_root();
    return fd;
}

bool wal_report_read(const struct conf *conf, const char *wal_directory, const char *name,
                     struct err *failure)
{
    char beside[CONF_PATH_MAX + 2], base[CONF_PATH_MAX + 1], path[CONF_PATH_MAX + 32];
    char text[REPORT_LEN_MAX + 1];
    struct stat st;
    (void)snprintf(beside, sizeof(beside), "%.*s/", CONF_PATH_MAX, wal_directory);
    if (!wal_spool_base(conf, beside, base))
        return false;
    (void)snprintf(path, sizeof(path), "%s/push-failed", base);
    close_fd int fd = open_as_user(conf, path);
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return false;
    ssize_t len = read(fd, text, REPORT_LEN_MAX);
    if (len <= 0)
        return false;
    text[len] = '\0';
    return wal_report_parse(text, name, failure);
}
