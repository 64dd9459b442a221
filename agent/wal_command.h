/* The command line of tidemark-wal: the same for the lean front (tools/wal.c), which serves
 * prefetched segments, and for the worker (tools/wal_worker.c), which it executes for the rest.
 * One thread. */
#ifndef TIDEMARK_AGENT_WAL_COMMAND_H
#define TIDEMARK_AGENT_WAL_COMMAND_H

#include "agent/conf.h"
#include "agent/wal.h"

enum wal_verb { WAL_PUSH, WAL_GET, WAL_PREFETCH, WAL_PUSH_AHEAD, WAL_STATS, WAL_HELP, WAL_VERSION };

enum { WAL_LIMITS_MAX = 32, WAL_EXIT_ABSENT = 1, WAL_EXIT_FAILED = 126 };

/* No segment of this timeline that reaches beyond lsn is served: the fork is there. */
struct wal_limit {
    uint32_t timeline;
    uint64_t lsn;
};

struct wal_command {
    enum wal_verb verb;
    const char *name; /* get: what to fetch; push: the last part of path; borrowed from argv */
    const char *path;
    struct conf conf;
    bool has_system_id, has_repository_id;
    uint64_t system_id;
    uint8_t repository_id[ID_LEN];
    bool retry_as_absent; /* --on-error=retry */
    bool history_only;
    uint32_t last_timeline; /* nothing of later ones; 0 = all */
    uint32_t segment_size;  /* bytes; for --timeline-limit */
    struct wal_limit limits[WAL_LIMITS_MAX];
    size_t limit_count;
    bool limit_latest; /* of no timeline what lies beyond its place in the newest one's history */
};

/* ERR_USAGE, ERR_CONFIG. With --repository and without --config no configuration file is read: a
 * host that was just restored may have none, or another server's. */
int wal_command_parse(int argc, char **argv, struct wal_command *ret, struct err *err);

/* The system id: the option, or the first 8 bytes of global/pg_control (PostgreSQL:
 * catalog/pg_control.h) in the working directory, which is the data directory for archive_command
 * and restore_command, or else in data_directory. ERR_CONFIG. */
int wal_command_system_id(const struct wal_command *command, uint64_t *ret, struct err *err);

/* True when the options say that this file is not to be served, whether it exists or not; what
 * limit_latest says only the archive knows. */
bool wal_command_withholds(const struct wal_command *command, const char *name);

/* Directory of all spools: [wal] spool or --spool when given; otherwise tidemark-spool beside the
 * file to be written (path may be NULL), which is pg_wal. Absolute. False when it cannot be. */
bool wal_command_spool(const struct wal_command *command, const char *path,
                       char ret[CONF_PATH_MAX + 1]);

/* As above, of a configuration. */
bool wal_spool_base(const struct conf *conf, const char *path, char ret[CONF_PATH_MAX + 1]);

void wal_command_usage(FILE *to);

#endif
