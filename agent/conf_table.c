/* One row an option: the parser, the environment, the sample file and the manual page are all made
 * from this table, so that they cannot disagree. */
#include "agent/conf_table.h"

static const char *const provider_words[] = {"precopy", "command", "freeze", "offline", NULL};
static const char *const no_yes_words[] = {"no", "yes", NULL};
static const char *const freeze_by_words[] = {"agent", "script", NULL};
static const char *const resume_words[] = {"auto", "wait", NULL};
static const char *const addressing_words[] = {"auto", "path", "virtual", NULL};
static const char *const lock_words[] = {"compliance", "governance", NULL};
static const char *const notify_on_words[] = {"always", "failure", NULL};
static const char *const checkpoint_words[] = {"spread", "fast", NULL};
const char *const option_sections[] = {"tidemark", "tls",    "repository", "postgresql",
                                       "patroni",  "wal",    "retention",  "coordinator",
                                       "notify",   "volume", NULL};

#define FIELD(name) offsetof(struct conf, name), sizeof(((struct conf *)0)->name)
#define VOLUME_FIELD(name)                                                                         \
    offsetof(struct conf_volume, name), sizeof(((struct conf_volume *)0)->name)

static const uint64_t size_max = 1ULL << 40;

/* clang-format off: one row reads best as one block */
const struct option option_table[] = {
    {"tidemark", "cluster", OPTION_NAME, FIELD(cluster), "main", 0, 0, NULL, "name",
     "Name of the cluster; part of the names of records and WAL in the repository.", NULL},
    {"tidemark", "node", OPTION_NAME, FIELD(node), "", 0, 0, NULL, "name",
     "Name of this server within the cluster. Default: the host name up to the first dot.", "db1"},
    {"tidemark", "state_dir", OPTION_PATH, FIELD(state_dir), "/var/lib/tidemark", 0, 0, NULL,
     "path", "Jobs, journals and table caches. Must not lie on a volume that is captured.", NULL},
    {"tidemark", "socket", OPTION_PATH, FIELD(socket), "/run/tidemark/agent.sock", 0, 0, NULL,
     "path, at most 107 bytes",
     "Control socket, mode 0660, group tidemark. Who may use it may restore.", NULL},
    {"tidemark", "memory_max", OPTION_SIZE, FIELD(memory_max), "512MiB", 64 << 20, size_max, NULL,
     "size (64MiB … 1TiB)",
     "Memory for payload of one job, taken once at its start. Tables come on top: see Memory in "
     "the "
     "README.",
     NULL},
    {"tidemark", "lanes", OPTION_COUNT, FIELD(lanes), "0", 0, 64, NULL, "number (0 … 64)",
     "Threads that copy; 0 = the number of processors, at most 8.", NULL},
    {"tidemark", "rate_limit", OPTION_SIZE, FIELD(rate_limit), "0", 0, size_max, NULL,
     "size a second; 0 = none",
     "Limit for reading devices during a snapshot. provider = precopy: for what is read first, "
     "which is all that is in use; what is written meanwhile is read again without a limit.",
     NULL},
    {"tidemark", "freeze_deadline", OPTION_TIME_MS, FIELD(freeze_deadline_ms), "5s", 100, 60000,
     NULL, "time (100ms … 60s)",
     "A frozen file system is thawed after this time whatever happens; the snapshot is then void.",
     NULL},
    {"tidemark", "freeze_max", OPTION_TIME_MS, FIELD(freeze_max_ms), "250ms", 20, 10000, NULL,
     "time (20ms … 10s)",
     "provider = precopy: how long writes may stand still at a time, as far as the copy has a say; "
     "a snapshot that would need longer ends as busy. What the file system itself needs to write "
     "out its own cache comes on top.",
     NULL},
    {"tidemark", "rcu_expedited", OPTION_WORD, FIELD(rcu_expedited), "yes", 0, 0, no_yes_words,
     "no | yes",
     "While file systems are being frozen, some milliseconds, /sys/kernel/rcu_expedited is 1: "
     "writers stand still a tenth as long, and each processor is interrupted some times. A host "
     "with real-time tasks may want no.",
     NULL},
    {"tidemark", "resume", OPTION_WORD, FIELD(resume), "auto", 0, 0, resume_words, "auto | wait",
     "What the agent does at its start with a restore that was interrupted after the device was "
     "marked: go on, or report it and wait for `tidemark restore --resume`.",
     NULL},

    {"tls", "listen", OPTION_ADDRESS, FIELD(tls_listen), "", 0, 0, NULL, "ADDRESS:PORT",
     "The agent also answers here, over TLS with certificates on both sides: for a coordinator and "
     "for `tidemark --agent`. An IPv6 address stands in brackets. Default: only the socket.",
     "192.0.2.11:7421"},
    {"tls", "certificate_file", OPTION_PATH, FIELD(tls_certificate_file), "", 0, 0, NULL, "path",
     "This host's certificate (PEM, with what stands between it and the CA). An agent's has role "
     "agent and names the node; a coordinator's, or yours, has role coordinator. The role is an "
     "organizational unit (OU) of its subject, or a URI tidemark:ROLE of its alternative names.",
     "/etc/tidemark/tls/db1.crt"},
    {"tls", "key_file", OPTION_PATH, FIELD(tls_key_file), "", 0, 0, NULL, "path",
     "Its key (PEM, not encrypted), readable by its owner only.", "/etc/tidemark/tls/db1.key"},
    {"tls", "ca_file", OPTION_PATH, FIELD(tls_ca_file), "", 0, 0, NULL, "path",
     "The CA that signs agents and coordinators (PEM). Whoever it gives role coordinator may "
     "restore this node.",
     "/etc/tidemark/tls/ca.crt"},

    {"repository", "url", OPTION_TEXT, FIELD(repository_url), "", 0, 0, NULL, "URL",
     "Where snapshots and WAL go: file:///directory or s3://bucket/prefix.",
     "file:///var/backups/tidemark"},
    {"repository", "group", OPTION_TEXT, FIELD(repository_group), "", 0, 0, NULL, "group name",
     "Group that owns the objects of a file:// repository. Default: tidemark-repo when it exists.",
     "tidemark-repo"},
    {"repository", "chunk_size", OPTION_SIZE, FIELD(chunk_size), "32KiB", 16 << 10, 64 << 10, NULL,
     "16KiB | 32KiB | 64KiB",
     "Unit of change, compression and checksum; only `tidemark init` uses it.", NULL},
    {"repository", "rewrite_budget", OPTION_PERCENT, FIELD(rewrite_budget), "5%", 0, 100, NULL,
     "0% … 100%",
     "What an incremental may store on top of what has changed, as a share of what a full snapshot "
     "stores, and 8 MiB a volume at least: chunks that lie scattered over many packs, or in packs "
     "that are dead in part, are stored again, so that a restore needs few requests and old packs "
     "can go. 0%: never.",
     NULL},
    {"repository", "endpoint", OPTION_TEXT, FIELD(repository_endpoint), "", 0, 0, NULL, "URL",
     "Server of an s3:// repository: https://host[:port]. Default: AWS, in the region.",
     "https://s3.example.com"},
    {"repository", "region", OPTION_TEXT, FIELD(repository_region), "us-east-1", 0, 0, NULL, "name",
     "Region of the bucket. When the server names another, that one is used.", NULL},
    {"repository", "addressing", OPTION_WORD, FIELD(repository_addressing), "auto", 0, 0,
     addressing_words, "auto | path | virtual",
     "Whether the bucket stands in the path (https://host/bucket) or in the host name "
     "(https://bucket.host). auto: virtual for AWS, path for every other endpoint.",
     NULL},
    {"repository", "credentials_file", OPTION_PATH, FIELD(repository_credentials_file), "", 0, 0,
     NULL, "path",
     "Keys of an s3:// repository: lines access_key = ..., secret_key = ..., and session_token "
     "= ... for temporary ones. Mode 0600, or 0640 when root owns it. Default: the environment "
     "(TIDEMARK_ACCESS_KEY_ID and "
     "TIDEMARK_SECRET_ACCESS_KEY, or AWS_...), then ~/.aws/credentials.",
     "/etc/tidemark/credentials"},
    {"repository", "ca_file", OPTION_PATH, FIELD(repository_ca_file), "", 0, 0, NULL, "path",
     "Certificates (PEM) that the endpoint's is checked against. Default: the system's.",
     "/etc/tidemark/ca.crt"},
    {"repository", "key_file", OPTION_PATH, FIELD(repository_key_file), "", 0, 0, NULL, "path",
     "The key file of an encrypted repository, root's with mode 0600: `tidemark key generate` "
     "makes it, `tidemark init --cipher=aes-256-gcm` uses it. Who loses it loses every snapshot. "
     "With it a repository that is not encrypted is refused.",
     "/etc/tidemark/repository.key"},
    {"repository", "connections", OPTION_COUNT, FIELD(repository_connections), "32", 1, 256, NULL,
     "number (1 … 256)", "Requests at the same time of one job, to an s3:// repository.", NULL},
    {"repository", "retry_timeout", OPTION_TIME_S, FIELD(repository_retry_timeout_s), "2min", 1,
     86400, NULL, "time (1s … 24h)",
     "How long one request to an s3:// repository is tried again before it has failed.", NULL},
    {"repository", "lock_days", OPTION_COUNT, FIELD(repository_lock_days), "0", 0, 36500, NULL,
     "number (0 … 36500)",
     "In a bucket that was made with object lock: nobody can remove a snapshot, or what it needs, "
     "for so many days from its beginning; WAL for so many days from its arrival. A snapshot "
     "extends the locks of what it shares with earlier ones; `tidemark expire` leaves what is "
     "locked. The keys need permission to lock objects. 0: nothing is locked.",
     NULL},
    {"repository", "lock_mode", OPTION_WORD, FIELD(repository_lock_mode), "compliance", 0, 0,
     lock_words, "compliance | governance",
     "compliance: no key, not even that of the bucket's owner, can remove what is locked. "
     "governance: keys with a permission of its own can.",
     NULL},

    {"postgresql", "data_directory", OPTION_PATH, FIELD(data_directory), "", 0, 0, NULL, "path",
     "The server's data directory.", "/srv/pg/data"},
    {"postgresql", "connection", OPTION_TEXT, FIELD(connection), "", 0, 0, NULL,
     "libpq connection string",
     "How to reach the server (never a password; peer authentication as os_user works).",
     "host=/var/run/postgresql port=5432"},
    {"postgresql", "primary_connection", OPTION_TEXT, FIELD(primary_connection), "", 0, 0, NULL,
     "libpq connection string",
     "For snapshots of a standby: how to reach its primary, which writes the restore point and "
     "archives the WAL. Its user may execute pg_create_restore_point and pg_switch_wal; passwords "
     "belong into a passfile of os_user. Default: the standby's own primary_conninfo, with "
     "database postgres. A restore asks every host of it whether another primary runs.",
     "host=db1,db2 user=tidemark target_session_attrs=read-write"},
    {"postgresql", "bin_directory", OPTION_PATH, FIELD(bin_directory), "", 0, 0, NULL, "path",
     "Where postgres and pg_ctl are. Default: /usr/lib/postgresql/<major version>/bin of the data "
     "directory.",
     "/usr/lib/postgresql/15/bin"},
    {"postgresql", "os_user", OPTION_TEXT, FIELD(os_user), "postgres", 0, 0, NULL, "user name",
     "The server's own user: every PostgreSQL program runs under it.", NULL},
    {"postgresql", "manager", OPTION_MANAGER, FIELD(manager), "pg_ctl", 0, 0, NULL,
     "pg_ctl | systemd:UNIT | command:COMMAND | patroni[:UNIT]",
     "Who starts and stops the server. COMMAND is called with start or stop appended. patroni: a "
     "restore is refused while Patroni runs; with its unit, the restore keeps it from starting.",
     NULL},
    {"postgresql", "log_file", OPTION_PATH, FIELD(log_file), "", 0, 0, NULL, "path",
     "Server log of manager = pg_ctl. Default: postgresql.log in state_dir.", NULL},
    {"postgresql", "checkpoint", OPTION_WORD, FIELD(checkpoint_fast), "fast", 0, 0,
     checkpoint_words, "spread | fast", "How a snapshot asks for its checkpoint.", NULL},
    {"postgresql", "start_timeout", OPTION_TIME_S, FIELD(start_timeout_s), "10min", 5, 86400, NULL,
     "time (5s … 24h)", "How long starting and stopping may take without any sign of progress.",
     NULL},

    {"patroni", "socket", OPTION_PATH, FIELD(patroni_socket), "", 0, 0, NULL,
     "path, at most 107 bytes",
     "With manager = patroni: a second socket, mode 0600 and os_user's, on which `tidemark "
     "patroni-restore` may ask for this node's volumes to be restored while its data directory is "
     "empty, and for nothing else. Default: Patroni may not.",
     "/run/tidemark/patroni.sock"},

    {"wal", "spool", OPTION_PATH, FIELD(wal_spool), "", 0, 0, NULL, "path",
     "Where tidemark-wal keeps prefetched segments; must be on pg_wal's file system. Default: "
     "pg_wal/tidemark-spool in the data directory.",
     NULL},
    {"wal", "prefetch", OPTION_COUNT, FIELD(wal_prefetch), "8", 0, 256, NULL, "number (0 … 256)",
     "Segments fetched ahead of replay; 0 = none.", NULL},
    {"wal", "push_ahead", OPTION_COUNT, FIELD(wal_push_ahead), "8", 0, 64, NULL, "number (0 … 64)",
     "WAL files that tidemark-wal stores at the same time when more than two wait to be archived; "
     "archive_command is told of each only when the repository has it. 0 = one file a call. They "
     "take twice their size in memory, together no more than 256 MiB or one file's.",
     NULL},
    {"wal", "get_timeout", OPTION_TIME_S, FIELD(wal_get_timeout_s), "10min", 1, 86400, NULL,
     "time (1s … 24h)", "How long `tidemark-wal get` retries a failing repository.", NULL},
    {"wal", "credentials_file", OPTION_PATH, FIELD(wal_credentials_file), "", 0, 0, NULL, "path",
     "Keys with which tidemark-wal, as the server's user, uses an s3:// repository; they need no "
     "more than wal/ and tidemark.repo, and no permission to delete. The file belongs to that "
     "user with mode 0600, or to root with that user's group and 0640. Default: as in "
     "[repository].",
     "/etc/tidemark/wal-credentials"},
    {"wal", "key_file", OPTION_PATH, FIELD(wal_key_file), "", 0, 0, NULL, "path",
     "For tidemark-wal, as the server's user, the key file of an encrypted repository, made by "
     "`tidemark key wal`: good for wal/ only. It belongs to that user with mode 0600, or to root "
     "with that user's group and 0640.",
     "/etc/tidemark/wal.key"},
    {"wal", "archive_timeout", OPTION_TIME_S, FIELD(wal_archive_timeout_s), "5min", 1, 86400, NULL,
     "time (1s … 24h)", "How long a snapshot waits for its WAL to arrive in the repository.", NULL},

    {"retention", "count", OPTION_COUNT, FIELD(retention_count), "0", 0, 1000000, NULL,
     "number (0 … 1000000)",
     "`tidemark expire` keeps so many of the newest snapshots of each node. A snapshot stays if "
     "any "
     "rule keeps it: count, days, a pin, or being the newest of its node. 0: no such rule; without "
     "count and days every snapshot stays.",
     NULL},
    {"retention", "days", OPTION_COUNT, FIELD(retention_days), "0", 0, 100000, NULL,
     "number (0 … 100000)", "Keeps the snapshots of so many days. 0: no such rule.", NULL},
    {"retention", "grace", OPTION_TIME_S, FIELD(retention_grace_s), "24h", RETENTION_GRACE_MIN_S,
     365 * 86400, NULL, "time (10min … 8760h)",
     "How long what `tidemark expire` has withdrawn is not removed yet, by the store's clock. It "
     "has to be longer than any snapshot takes, and than a restore whose key may not write takes "
     "until its last --resume. At least 10min: clocks may differ by 5min, and requests be under "
     "way for 5min. The same for all hosts that use the repository.",
     NULL},

    {"coordinator", "members", OPTION_TEXT, FIELD(coordinator_members), "", 0, 0, NULL,
     "NAME=ADDRESS …",
     "For tidemark-coordinator: the nodes of the cluster and where their agents answer, "
     "https://host:port or unix:/path of a control socket, separated by blanks. A node's name is "
     "its agent's `node`.",
     "db1=https://db1:7411 db2=https://db2:7411"},
    {"coordinator", "primary_conninfo", OPTION_TEXT, FIELD(coordinator_primary_conninfo), "", 0, 0,
     NULL, "conninfo",
     "How a restored standby reaches its primary: %h is the host in the address of the primary's "
     "agent, %n the standby's name. Passwords belong into a passfile. Default: as recorded, which "
     "holds while the primary comes back on its own host.",
     "host=%h user=replicator application_name=%n"},
    {"coordinator", "agent_timeout", OPTION_TIME_S, FIELD(coordinator_agent_timeout_s), "1min", 1,
     86400, NULL, "time (1s … 24h)",
     "How long a cluster restore waits for an agent that does not answer: because it restarts, its "
     "host does, or the network is cut. Then the restore stops, its nodes keep what they have, and "
     "`tidemark cluster resume` goes on.",
     NULL},

    {"notify", "command", OPTION_TEXT, FIELD(notify_command), "", 0, 0, NULL, "command",
     "Run by /bin/sh, as root, when a job has ended: what happened comes as JSON on its stdin, and "
     "in TIDEMARK_EVENT, TIDEMARK_STATE, TIDEMARK_JOB, TIDEMARK_CLUSTER, TIDEMARK_NODE, "
     "TIDEMARK_TAG and TIDEMARK_SNAPSHOT.",
     "/usr/local/sbin/tell-the-pager"},
    {"notify", "webhook", OPTION_URL, FIELD(notify_webhook), "", 0, 0, NULL,
     "http:// or https:// URL",
     "Gets the same JSON as a POST. An https server is checked against the system's CA "
     "certificates.",
     "https://alerts.example.com/tidemark"},
    {"notify", "on", OPTION_WORD, FIELD(notify_on), "always", 0, 0, notify_on_words,
     "always | failure", "failure: only of jobs that failed or were cancelled.", NULL},
    {"notify", "timeout", OPTION_TIME_S, FIELD(notify_timeout_s), "10s", 1, 600, NULL,
     "time (1s … 10min)", "How long the command, and each try of the webhook, may take.", NULL},
    {"notify", "retries", OPTION_COUNT, FIELD(notify_retries), "3", 0, 10, NULL, "number (0 … 10)",
     "How often the webhook is tried again when it does not answer, or with 5xx, 408 or 429; the "
     "pause between is 1 s, then 2 s, 4 s and so on, 30 s at the most.",
     NULL},

    {"volume", "mount", OPTION_PATH, VOLUME_FIELD(mount), "", 0, 0, NULL, "path",
     "Mount point of the volume.", "/srv/pg"},
    {"volume", "device", OPTION_PATH, VOLUME_FIELD(device), "", 0, 0, NULL, "path",
     "Its block device. Default: what is mounted there.", "/dev/disk/by-id/…"},
    {"volume", "provider", OPTION_WORD, VOLUME_FIELD(provider), "precopy", 0, 0, provider_words,
     "precopy | command | freeze | offline",
     "How one instant is captured: copy while the volume is written and again what has changed, "
     "the last of it under a short freeze (needs eBPF: `tidemark check` tries it); ask "
     "snapshot_command for a snapshot device; freeze the file system while copying (small "
     "volumes); or copy a volume that nobody writes. There is no falling back from one to "
     "another.",
     NULL},
    {"volume", "track", OPTION_WORD, VOLUME_FIELD(track), "no", 0, 0, no_yes_words, "no | yes",
     "provider = precopy: marks of what is written are kept in the kernel from one snapshot to the "
     "next, which then reads only that. After a restart of the host, a new mount, a killed "
     "snapshot or any other doubt it reads everything, as without, and says why. Needs a BPF file "
     "system on /sys/fs/bpf.",
     NULL},
    {"volume", "freeze_by", OPTION_WORD, VOLUME_FIELD(freeze_by), "agent", 0, 0, freeze_by_words,
     "agent | script",
     "provider = command: who freezes the file system around snapshot_command. LVM freezes by "
     "itself: script.",
     NULL},
    {"volume", "snapshot_command", OPTION_TEXT, VOLUME_FIELD(snapshot_command), "", 0, 0, NULL,
     "command", "provider = command: makes the snapshot device and prints its path.", NULL},
    {"volume", "drop_command", OPTION_TEXT, VOLUME_FIELD(drop_command), "", 0, 0, NULL, "command",
     "provider = command: removes the snapshot device.", NULL},
};
/* clang-format on */
const size_t option_count = ARRAY_LEN(option_table);

const struct option *option_find(const char *section, const char *key)
{
    for (size_t i = 0; i < option_count; i++)
        if (strcmp(option_table[i].section, section) == 0 && strcmp(option_table[i].key, key) == 0)
            return &option_table[i];
    return NULL;
}

void option_keys(const char *section, const char *names[CONF_KEYS_MAX + 1])
{
    size_t count = 0;
    for (size_t i = 0; i < option_count && count < CONF_KEYS_MAX; i++)
        if (strcmp(option_table[i].section, section) == 0)
            names[count++] = option_table[i].key;
    names[count] = NULL;
}
