/* The agent's log: one write(2) a line to stderr, which is the journal, a job's log file or a
 * terminal. See log.h. */
#include "agent/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

enum { LINE_MAX_LEN = 2048, TIME_LEN = 48 };

/* The only state; set once by main(). */
static _Atomic int log_level_min = LOG_INFO;
static _Atomic bool log_times;

void log_set_level(enum log_level level)
{
    atomic_store(&log_level_min, (int)level);
}

/* systemd.exec(5): JOURNAL_STREAM is device and inode of what the journal reads. A process that
 * inherits the variable may have another stderr. */
static bool is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    struct stat st;
    char ours[64];
    if (!stream || fstat(STDERR_FILENO, &st) < 0)
        return false;
    (void)snprintf(ours, sizeof(ours), "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    return strcmp(stream, ours) == 0;
}

void log_add_times(void)
{
    atomic_store(&log_times, !is_journal());
}

/* "2026-11-26 15:04:22.123 UTC ", or nothing. */
static void format_now(char ret[TIME_LEN])
{
    struct timespec now;
    struct tm parts;
    ret[0] = '\0';
    if (!atomic_load(&log_times) || clock_gettime(CLOCK_REALTIME, &now) < 0 ||
        !gmtime_r(&now.tv_sec, &parts))
        return;
    size_t len = strftime(ret, TIME_LEN, "%Y-%m-%d %H:%M:%S", &parts);
    (void)snprintf(ret + len, TIME_LEN - len, ".%03u UTC ", (unsigned)(now.tv_nsec / 1000000));
}

static const char *level_name(enum log_level level)
{
    switch (level) {
    case LOG_DEBUG:
        return "debug";
    case LOG_INFO:
        return "info";
    case LOG_WARN:
        return "warn";
    case LOG_ERROR:
        return "error";
    }
    return "error";
}

/* A message is one line whatever somebody put into a name: control characters become '?'. */
static void flatten(char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
            text[i] = text[i] == '\t' || text[i] == '\n' ? ' ' : '?';
}

static size_t clip(int len, size_t max)
{
    if (len < 0)
        return 0;
    return (size_t)len > max ? max : (size_t)len;
}

void log_msg(enum log_level level, const char *fmt, ...)
{
    if ((int)level < atomic_load(&log_level_min))
        return;
    char line[LINE_MAX_LEN], at[TIME_LEN];
    size_t room = sizeof(line) - 1; /* the newline */
    format_now(at);
    size_t head = clip(snprintf(line, room, "%stidemark: %s: ", at, level_name(level)), room - 1);
    va_list ap;
    va_start(ap, fmt);
    size_t len = head + clip(vsnprintf(line + head, room - head, fmt, ap), room - head - 1);
    va_end(ap);
    flatten(line, len);
    line[len++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, len);
    (void)written; /* nowhere left to complain */
}

void log_err(const struct err *err)
{
    char text[sizeof(err->text) + sizeof(err->hint) + TIME_LEN + 32], at[TIME_LEN];
    format_now(at);
    size_t len = clip(snprintf(text, sizeof(text), "%serror: %s", at, err->text), sizeof(text) - 1);
    flatten(text, len);
    if (err->hint[0])
        (void)snprintf(text + len, sizeof(text) - len, "\nhint: %s", err->hint);
    (void)fprintf(stderr, "%s\n", text);
}
