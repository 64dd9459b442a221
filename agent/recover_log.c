/* The server's own words: FATAL of the startup process ends a recovery after pg_ctl said "started"
 * (FACTS), and only the log says why. The lines since our start are read; what connections are told
 * while the server is not ready is FATAL too, and means nothing. */
#include "agent/restore.h"
#include "agent/pg.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

enum { LOG_READ_MAX = 65536, TAIL_LINES = 6 };

static const struct {
    const char *text, *hint;
} causes[] = {
    {"recovery ended before configured recovery target was reached",
     "the WAL ends before the target: is the target on another timeline, or was it never written?"},
    {"requested recovery stop point is before consistent recovery point",
     "the target lies before the end of the snapshot: choose an older snapshot"},
    {"WAL ends before end of online backup",
     "WAL between start and end of the snapshot is missing"},
    {"could not locate required checkpoint record",
     "WAL of the snapshot's start is missing, or restore_command could not be run"},
    {"could not locate a valid checkpoint record", "the image's own WAL is damaged or missing"},
    {"cannot continue recovering", "the server ran with wal_level = minimal in between: choose a "
                                   "target before that, or a snapshot "
                                   "that was taken since"},
    {"insufficient parameter settings",
     "raise the setting named in the log, or restore with --server-config=image"},
    {"could not restore file", "look at the repository: tidemark-wal get failed for good"},
    {"could not connect to the primary server",
     "is [coordinator] primary_conninfo right, and does the primary let the standby in (role, "
     "password, pg_hba.conf)? The way on takes the corrected one"},
    {"invalid value for parameter", "correct the configuration, then resume"},
    {"unrecognized configuration parameter", "correct the configuration, then resume"},
    {"could not create lock file", "the socket directory is missing or not the server user's"},
    {"Address already in use", "another server uses the port"},
    {"could not bind", "another server uses the port"},
    {"could not map anonymous shared memory", "lower shared_buffers or huge_pages"},
};

static bool is_noise(const char *line)
{
    return strstr(line, "the database system is starting up") ||
           strstr(line,
                  "the database system is in recovery mode") || /* its startup has just died */
           strstr(line, "the database system is not yet accepting connections") ||
           strstr(line, "Consistent recovery state has not been yet reached") ||
           strstr(line, "the database system is shutting down");
}

/* With the logging collector the file is in log_directory; current_logfiles names it. */
static bool collector_log(const struct restore *restore, char *ret, size_t size)
{
    char path[CONF_PATH_MAX + 32], line[512];
    (void)snprintf(path, sizeof(path), "%s/current_logfiles", restore->data_directory);
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    bool found = false;
    while (!found && fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "stderr ", 7) != 0)
            continue;
        (void)snprintf(ret, size, "%s%s%s", line[7] == '/' ? "" : restore->data_directory,
                       line[7] == '/' ? "" : "/", line + 7);
        found = true;
    }
    (void)fclose(file);
    return found;
}

void server_log_begin(struct restore *restore, struct server_log *ret)
{
    struct stat st;
    pg_server_log(&restore->conf, ret->path);
    ret->offset = stat(ret->path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

/* The last LOG_READ_MAX bytes since this start; malloc'ed. */
static char *read_since(const char *path, uint64_t offset)
{
    struct stat st;
    char *text = calloc(1, LOG_READ_MAX + 1);
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (!text || fd < 0 || fstat(fd, &st) < 0)
        return text;
    uint64_t size = (uint64_t)st.st_size;
    if (offset > size)
        offset = 0;
    if (size - offset > LOG_READ_MAX)
        offset = size - LOG_READ_MAX;
    ssize_t len = pread(fd, text, LOG_READ_MAX, (off_t)offset);
    text[len > 0 ? len : 0] = '\0';
    return text;
}

static char *read_log(struct restore *restore, const struct server_log *log)
{
    char path[CONF_PATH_MAX + 1];
    char *text = read_since(log->path, log->offset);
    if (!collector_log(restore, path, sizeof(path)))
        return text;
    char *collected = read_since(path, 0);
    if (collected && collected[0]) {
        free(text);
        return collected;
    }
    free(collected);
    return text;
}

bool server_log_has(struct restore *restore, const struct server_log *log, const char *what)
{
    free_mem char *text = read_log(restore, log);
    return text && strstr(text, what);
}

/* The last few lines that are not noise, joined by " | ": as many as fit, because the last says
 * most. */
static void last_lines(char *text, char *ret, size_t size)
{
    char *lines[TAIL_LINES] = {NULL}, *state = NULL;
    size_t count = 0, len = 0, room = 0;
    for (char *line = strtok_r(text, "\n", &state); line; line = strtok_r(NULL, "\n", &state))
        if (!is_noise(line))
            lines[count++ % TAIL_LINES] = line;
    ret[0] = '\0';
    size_t first = count;
    while (first > 0 && count - first < TAIL_LINES) {
        room += strlen(lines[(first - 1) % TAIL_LINES]) + 3;
        if (room > size && first < count)
            break;
        first--;
    }
    for (size_t i = first; i < count; i++) {
        len += (size_t)snprintf(ret + len, size - len, "%s%s", len ? " | " : "",
                                lines[i % TAIL_LINES]);
        if (len >= size)
            break;
    }
}

/* The text after "FATAL:" (or PANIC:) of the last line that matters; empty when there is none. */
static void last_fatal(const char *text, char *ret, size_t size)
{
    ret[0] = '\0';
    for (const char *line = text; *line;) {
        size_t len = strcspn(line, "\n");
        char copy[512];
        (void)snprintf(copy, sizeof(copy), "%.*s", (int)len, line);
        const char *fatal = strstr(copy, "FATAL:");
        fatal = fatal ? fatal : strstr(copy, "PANIC:");
        if (fatal && !is_noise(copy))
            (void)snprintf(ret, size, "%s", fatal);
        line += len + (line[len] == '\n');
    }
}

/* "max_connections = 50 is a lower setting than on the primary server, where its value was 100." */
static const char *find_lower_setting(const char *text, char *ret, size_t size)
{
    const char *at = strstr(text, "is a lower setting than on the primary server");
    if (!at)
        return NULL;
    while (at > text && at[-1] != '\n' && strncmp(at - 1, ":  ", 3) != 0)
        at--;
    (void)snprintf(ret, size, "%.*s", (int)strcspn(at, "\n"), at + strspn(at, " \t"));
    return ret;
}

/* "2026-11-26 11:43:33.140799+00": of the last commit that was replayed. */
static const char *find_last_commit(const char *text, char *ret, size_t size)
{
    static const char begin[] = "last completed transaction was at log time ";
    const char *found = NULL;
    for (const char *at = text; (at = strstr(at, begin)); at += sizeof(begin) - 1)
        found = at;
    if (!found)
        return NULL;
    found += sizeof(begin) - 1;
    (void)snprintf(ret, size, "%.*s", (int)strcspn(found, "\n"), found);
    return ret;
}

int server_log_error(struct restore *restore, const struct server_log *log, const char *what,
                     struct err *err)
{
    free_mem char *text = read_log(restore, log);
    char fatal[256], lines[512], setting[192], when[64];
    if (!text)
        return err_set(err, ERR_POSTGRES, "%s", what);
    const char *hint = NULL;
    for (size_t i = 0; i < ARRAY_LEN(causes); i++)
        if (strstr(text, causes[i].text))
            hint = causes[i].hint;
    if (restore->target == TARGET_TIME && strstr(text, causes[0].text))
        hint = "no commit later than the target is in the WAL of this timeline: where it is the "
               "right one, --target=latest recovers all of it.";
    last_fatal(text, fatal, sizeof(fatal));
    const char *lower = find_lower_setting(text, setting, sizeof(setting));
    const char *commit =
        restore->target == TARGET_TIME ? find_last_commit(text, when, sizeof(when)) : NULL;
    last_lines(text, lines, sizeof(lines));
    (void)err_set(err, ERR_POSTGRES, "%s%s%s; its log ends: %s", what,
                  lower || fatal[0] ? ": " : "", lower ? lower : fatal, lines);
    if (lower)
        return err_hint(err, "%s", "raise that setting to the primary's value, then resume");
    if (!hint)
        return err_hint(err, "the server's log is %s", log->path);
    return err_hint(err, "%s%s%s", hint, commit ? " The last commit in the WAL is of " : "",
                    commit ? commit : "");
}
