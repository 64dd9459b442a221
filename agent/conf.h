/* Configuration: one table of options feeds the parser (inih, this is the only file that includes
 * it), TIDEMARK_<SECTION>_<KEY> from the environment, the sample file, --help and the man page.
 * Lean: no jansson, no libpq, no libcurl, so that tidemark-wal can use it. One thread.
 *
 * A line that is unknown, malformed, longer than 4096 bytes, indented, or has a value out of range
 * is refused with file, line and the nearest valid name (ERR_CONFIG). */
#ifndef TIDEMARK_AGENT_CONF_H
#define TIDEMARK_AGENT_CONF_H

#include <stdio.h>

#include "io/store.h"

enum { CONF_VOLUMES_MAX = 16, CONF_NAME_MAX = 63, CONF_PATH_MAX = 1023 };
enum { RETENTION_GRACE_MIN_S = 600 }; /* why, expire.h says */

enum conf_provider { PROVIDER_PRECOPY, PROVIDER_COMMAND, PROVIDER_FREEZE, PROVIDER_OFFLINE };
enum conf_freeze_by { FREEZE_BY_AGENT, FREEZE_BY_SCRIPT };
enum conf_manager { MANAGER_PG_CTL, MANAGER_SYSTEMD, MANAGER_COMMAND, MANAGER_PATRONI };
enum conf_resume { RESUME_AUTO, RESUME_WAIT };
enum conf_lock_mode { LOCK_COMPLIANCE, LOCK_GOVERNANCE };
enum conf_notify_on { NOTIFY_ALWAYS, NOTIFY_FAILURE };

struct conf_volume {
    char name[CONF_NAME_MAX + 1];   /* from [volume NAME] */
    char mount[CONF_PATH_MAX + 1];  /* mount point */
    char device[CONF_PATH_MAX + 1]; /* empty = what is mounted there */
    enum conf_provider provider;
    bool track;                               /* provider = precopy */
    enum conf_freeze_by freeze_by;            /* provider = command */
    char snapshot_command[CONF_PATH_MAX + 1]; /* prints the snapshot device's path */
    char drop_command[CONF_PATH_MAX + 1];
};

struct conf {
    char file[CONF_PATH_MAX + 1]; /* where it came from; empty = defaults only */
    /* [tidemark] */
    char cluster[CONF_NAME_MAX + 1];
    char node[CONF_NAME_MAX + 1];
    char state_dir[CONF_PATH_MAX + 1];
    char socket[108];
    uint64_t memory_max; /* bytes */
    unsigned lanes;      /* 0 = min(cores, 8) */
    uint64_t rate_limit; /* bytes a second; 0 = none */
    unsigned freeze_deadline_ms;
    unsigned freeze_max_ms; /* provider = precopy */
    bool rcu_expedited;
    enum conf_resume resume;
    /* [tls] */
    char tls_listen[64]; /* ADDRESS:PORT; empty = no TCP */
    char tls_certificate_file[CONF_PATH_MAX + 1];
    char tls_key_file[CONF_PATH_MAX + 1];
    char tls_ca_file[CONF_PATH_MAX + 1];
    /* [repository] */
    char repository_url[CONF_PATH_MAX + 1];
    char repository_group[CONF_NAME_MAX + 1]; /* file:// only; default tidemark-repo if it exists */
    unsigned chunk_size;                      /* bytes, used by init */
    /* s3:// only */
    char repository_endpoint[256]; /* empty = AWS */
    char repository_region[64];
    enum store_s3_addressing repository_addressing;
    char repository_credentials_file[CONF_PATH_MAX + 1]; /* empty: credentials.h */
    char repository_ca_file[CONF_PATH_MAX + 1];
    char repository_key_file[CONF_PATH_MAX + 1]; /* empty: the repository is plain */
    unsigned rewrite_budget;                     /* percent of a full snapshot */
    unsigned repository_connections;             /* of all lanes together */
    unsigned repository_retry_timeout_s;
    unsigned repository_lock_days; /* 0 = off */
    enum conf_lock_mode repository_lock_mode;
    /* [postgresql] */
    char data_directory[CONF_PATH_MAX + 1];
    char connection[CONF_PATH_MAX + 1];         /* libpq conninfo, without password */
    char primary_connection[CONF_PATH_MAX + 1]; /* "" = the standby's primary_conninfo */
    char bin_directory[CONF_PATH_MAX + 1];
    char os_user[CONF_NAME_MAX + 1];
    enum conf_manager manager;
    char manager_arg[CONF_PATH_MAX + 1]; /* unit name (patroni: may be empty), or command prefix */
    char log_file[CONF_PATH_MAX + 1];    /* manager = pg_ctl: -l FILE; default in state_dir */
    bool checkpoint_fast;
    unsigned start_timeout_s;
    /* [patroni] */
    char patroni_socket[108]; /* empty: Patroni may ask for nothing */
    /* [wal] */
    char wal_spool[CONF_PATH_MAX + 1]; /* default <data_directory>/pg_wal/tidemark-spool */
    unsigned wal_prefetch;             /* segments ahead; 0 = off */
    unsigned wal_push_ahead;           /* files pushed at once; 0 = off */
    unsigned wal_get_timeout_s;        /* 600 */
    char wal_credentials_file[CONF_PATH_MAX + 1]; /* empty = the repository's */
    char wal_key_file[CONF_PATH_MAX + 1];         /* empty: the repository is plain */
    unsigned wal_archive_timeout_s; /* how long a snapshot waits for its WAL to arrive */
    /* [retention] */
    unsigned retention_count; /* newest snapshots of each node; 0 = no such rule */
    unsigned retention_days;  /* 0 = no such rule */
    unsigned retention_grace_s;
    /* [coordinator] */
    char coordinator_members[4096]; /* NAME=ADDRESS …, see cluster.h; empty: not a coordinator */
    char coordinator_primary_conninfo[CONF_PATH_MAX + 1]; /* %h: host of the primary, %n: standby */
    unsigned coordinator_agent_timeout_s; /* how long a silent agent is waited for */
    /* [notify] */
    char notify_command[CONF_PATH_MAX + 1]; /* empty: none */
    char notify_webhook[CONF_PATH_MAX + 1]; /* empty: none; may hold a secret, never log it */
    enum conf_notify_on notify_on;
    unsigned notify_timeout_s; /* of the command and of each try of the webhook */
    unsigned notify_retries;
    /* [volume NAME], in file order */
    struct conf_volume volumes[CONF_VOLUMES_MAX];
    size_t volume_count;
};

/* Defaults, then file (NULL: $TIDEMARK_CONFIG, else /etc/tidemark/tidemark.conf when it exists,
 * else defaults only), then the environment. */
int conf_load(const char *file, struct conf *ret, struct err *err);

/* Defaults and the environment, no file: for a program whose arguments name the repository.
 * Variables of volumes are left out, there are none. */
int conf_load_environment(struct conf *ret, struct err *err);

/* Parses text as if it were file `name` (tests, fuzzing). */
int conf_parse(const char *name, const char *text, size_t len, struct conf *ret, struct err *err);

/* Sets one option as the file would: "repository.url", "volume pgdata.mount". */
int conf_set(struct conf *conf, const char *key, const char *value, struct err *err);

/* Fills what depends on other values and is still empty: bin_directory (from PG_VERSION in
 * data_directory), log_file (in state_dir), wal_spool (in data_directory). conf_load() calls it;
 * call it again after conf_set(). */
void conf_complete(struct conf *conf);

/* Writes the loaded values in a form conf_load() reads back (for jobs: the job sees exactly what
 * the agent saw). 0, or -1 when the stream failed. */
int conf_write(const struct conf *conf, FILE *to);

/* The commented sample file, and the table as roff for tidemark.conf(5). */
void conf_print_sample(FILE *to);
void conf_print_man(FILE *to);
/* One line an option, for --help. */
void conf_print_help(FILE *to);

const struct conf_volume *conf_volume_by_name(const struct conf *conf, const char *name);

#endif
