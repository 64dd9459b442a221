/* Logging of the agent: one line a message to stderr, lower case, key=value, with a level
 * ("tidemark: warn: …"). Thread-safe (one write(2) a line). Nothing secret, no payload bytes. */
#ifndef TIDEMARK_AGENT_LOG_H
#define TIDEMARK_AGENT_LOG_H

#include "io/err.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

void log_set_level(enum log_level level);
/* Of a daemon or a job: each line begins with the time, "2026-11-26 15:04:22.123 UTC", unless
 * stderr is the journal's, which adds its own. */
void log_add_times(void);
void log_msg(enum log_level level, const char *fmt, ...) PRINTF_LIKE(2, 3);

#define log_info(...)  log_msg(LOG_INFO, __VA_ARGS__)
#define log_warn(...)  log_msg(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_msg(LOG_ERROR, __VA_ARGS__)
#define log_debug(...) log_msg(LOG_DEBUG, __VA_ARGS__)

/* "error: text" and, when there is one, "hint: …" on stderr: what every command line tool prints
 * before it exits with err_exit_status(err->code). */
void log_err(const struct err *err);

#endif
