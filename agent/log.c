/* The agent's log: one write(2) a line to stderr, which is the journal, a job's log file or a
 * terminal. See log.h. */
#include "agent/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

enum { LINE_MAX_LEN = 2048 };

static _Atomic int log_level_min = LOG_INFO; /* the only state; set once by main() */

void log_set_level(enum log_level level)
{
    atomic_store(&log_level_min, (int)level);
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
    char line[LINE_MAX_LEN];
    size_t room = sizeof(line) - 1; /* the newline */
    size_t head = clip(snprintf(line, room, "tidemark: %s: ", level_name(level)), room - 1);
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
    char text[sizeof(err->text) + sizeof(err->hint) + 32];
    size_t len = clip(snprintf(text, sizeof(text), "error: %s", err->text), sizeof(text) - 1);
    flatten(text, len);
    if (err->hint[0])
        (void)snprintf(text + len, sizeof(text) - len, "\nhint: %s", err->hint);
    (void)fprintf(stderr, "%s\n", text);
}
