/* Options of tidemark-wal: see wal_command.h. */
#include "agent/wal_command.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>

#include "agent/pg_names.h"

/* Options that are configuration values under another name. */
static const struct {
    const char *option, *key;
} conf_options[] = {
    {"--repository", "repository.url"},
    {"--endpoint", "repository.endpoint"},
    {"--region", "repository.region"},
    {"--addressing", "repository.addressing"},
    {"--ca-file", "repository.ca_file"},
    {"--credentials-file", "wal.credentials_file"},
    {"--key-file", "wal.key_file"},
    {"--cluster", "tidemark.cluster"},
    {"--spool", "wal.spool"},
    {"--prefetch", "wal.prefetch"},
    {"--push-ahead", "wal.push_ahead"},
    {"--get-timeout", "wal.get_timeout"},
    {"--data-directory", "postgresql.data_directory"},
};

void wal_command_usage(FILE *to)
{
    (void)fputs(
        "usage: tidemark-wal push PATH [option…]        archive_command = 'tidemark-wal push %p'\n"
        "       tidemark-wal get NAME PATH [option…]    restore_command = 'tidemark-wal get %f "
        "%p'\n"
        "       tidemark-wal stats [option…]            what prefetch did\n"
        "  --config=FILE             configuration (default /etc/tidemark/tidemark.conf)\n"
        "  --repository=URL          instead of a configuration file; TIDEMARK_<SECTION>_<KEY> of\n"
        "                            the environment count all the same\n"
        "  --endpoint=URL --region=NAME --addressing=WORD --ca-file=FILE\n"
        "                            where an s3:// repository is (tidemark.conf(5))\n"
        "  --credentials-file=FILE   its keys, mode 0600\n"
        "  --key-file=FILE           of an encrypted repository: `tidemark key wal` makes it\n"
        "  --cluster=NAME            cluster whose WAL it is\n"
        "  --system-id=N             instead of reading global/pg_control\n"
        "  --repository-id=HEX       the repository that must answer\n"
        "  --data-directory=DIR      when it is not the working directory\n"
        "  --get-timeout=TIME        how long get retries a failing repository (10min)\n"
        "  --on-error=fatal|retry    get after that time: exit 126, or 1 for a standby\n"
        "  --timeline-limit=TLI:LSN  get: nothing of this timeline beyond LSN (may be repeated)\n"
        "  --timeline-limit=latest   get: of each timeline nothing beyond the fork where the "
        "newest\n"
        "                            in the repository left it: for standbys that follow it\n"
        "  --last-timeline=TLI       get: nothing of later timelines, nor their history files\n"
        "  --segment-size=BYTES      size of WAL segments for --timeline-limit (16777216)\n"
        "  --history-only            get: history files only\n"
        "  --spool=DIR               prefetched segments (default tidemark-spool beside PATH)\n"
        "  --prefetch=N              segments to fetch ahead; 0 = none (8)\n"
        "  --push-ahead=N            files to push at once when many wait; 0 = one by one (8)\n"
        "get exits with 0 when delivered, 1 when the repository was read and does not hold the\n"
        "file, 126 otherwise. push exits with 0, or with 125 at most.\n",
        to);
}

/* --- options ---------------------------------------------------------------------------------- */

static bool parse_u64(const char *text, uint64_t max, uint64_t *ret)
{
    char *end;
    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || *end || value > max)
        return false;
    *ret = value;
    return true;
}

static bool parse_limit(const char *text, struct wal_limit *ret)
{
    char number[16] = "";
    uint64_t timeline;
    const char *colon = strchr(text, ':');
    if (!colon || (size_t)(colon - text) >= sizeof(number))
        return false;
    memcpy(number, text, (size_t)(colon - text));
    if (!parse_u64(number, UINT32_MAX, &timeline) || timeline == 0)
        return false;
    ret->timeline = (uint32_t)timeline;
    return pg_lsn_parse(colon + 1, &ret->lsn);
}

/* *ret_known is false for an option that is none of these. */
static bool own_option(struct wal_command *command, const char *key, const char *value,
                       bool *ret_known)
{
    uint64_t size;
    *ret_known = true;
    if (strcmp(key, "--system-id") == 0)
        return command->has_system_id = parse_u64(value, UINT64_MAX, &command->system_id);
    if (strcmp(key, "--repository-id") == 0)
        return command->has_repository_id = id_from_text(value, command->repository_id);
    if (strcmp(key, "--on-error") == 0) {
        command->retry_as_absent = strcmp(value, "retry") == 0;
        return command->retry_as_absent || strcmp(value, "fatal") == 0;
    }
    if (strcmp(key, "--segment-size") == 0) {
        if (!parse_u64(value, UINT32_MAX, &size) || !pg_segment_size_valid((uint32_t)size))
            return false;
        command->segment_size = (uint32_t)size;
        return true;
    }
    if (strcmp(key, "--last-timeline") == 0) {
        if (!parse_u64(value, UINT32_MAX, &size) || size == 0)
            return false;
        command->last_timeline = (uint32_t)size;
        return true;
    }
    if (strcmp(key, "--timeline-limit") == 0 && strcmp(value, "latest") == 0)
        return command->limit_latest = true;
    if (strcmp(key, "--timeline-limit") == 0)
        return command->limit_count < WAL_LIMITS_MAX &&
               parse_limit(value, &command->limits[command->limit_count++]);
    *ret_known = false;
    return true;
}

static int set_option(struct wal_command *command, const char *key, const char *value,
                      struct err *err)
{
    bool known;
    for (size_t i = 0; i < ARRAY_LEN(conf_options); i++)
        if (strcmp(key, conf_options[i].option) == 0)
            return conf_set(&command->conf, conf_options[i].key, value, err);
    if (!own_option(command, key, value, &known))
        return err_set(err, ERR_USAGE, "%s: '%s' is not a possible value", key, value);
    if (known || strcmp(key, "--config") == 0)
        return 0;
    (void)err_set(err, ERR_USAGE, "unknown option '%s'", key);
    return err_hint(err, "tidemark-wal --help lists them");
}

/* "--key=value" split at '='; false when arg is no option with a value. */
static bool split_option(const char *arg, char key[32], const char **ret_value)
{
    const char *equals = strchr(arg, '=');
    if (strncmp(arg, "--", 2) != 0 || !equals || (size_t)(equals - arg) >= 32)
        return false;
    memcpy(key, arg, (size_t)(equals - arg));
    key[equals - arg] = '\0';
    *ret_value = equals + 1;
    return true;
}

static int load_conf(int argc, char **argv, struct conf *ret, struct err *err)
{
    const char *file = NULL, *value;
    bool has_repository = false;
    char key[32];
    for (int i = 1; i < argc; i++)
        if (split_option(argv[i], key, &value)) {
            has_repository |= strcmp(key, "--repository") == 0;
            if (strcmp(key, "--config") == 0)
                file = value;
        }
    if (has_repository && !file)
        return conf_load_environment(ret, err);
    return conf_load(file, ret, err);
}

/* --- the line --------------------------------------------------------------------------------- */

static int parse_verb(const char *text, enum wal_verb *ret, int *ret_words, struct err *err)
{
    static const struct {
        const char *text;
        enum wal_verb verb;
        int words;
    } verbs[] = {{"push", WAL_PUSH, 1},         {"get", WAL_GET, 2},
                 {"prefetch", WAL_PREFETCH, 2}, {"push-ahead", WAL_PUSH_AHEAD, 1},
                 {"stats", WAL_STATS, 0},       {"--help", WAL_HELP, 0},
                 {"help", WAL_HELP, 0},         {"--version", WAL_VERSION, 0}};
    for (size_t i = 0; i < ARRAY_LEN(verbs); i++)
        if (strcmp(text, verbs[i].text) == 0) {
            *ret = verbs[i].verb;
            *ret_words = verbs[i].words;
            return 0;
        }
    (void)err_set(err, ERR_USAGE, "unknown verb '%.40s'", text);
    return err_hint(err, "push, get or stats");
}

static int take_word(struct wal_command *command, const char *word, int number, int words,
                     struct err *err)
{
    if (number >= words)
        return err_set(err, ERR_USAGE, "'%.80s' is one argument too many", word);
    if (number == words - 1)
        command->path = word;
    else
        command->name = word;
    return 0;
}

static int parse_rest(int argc, char **argv, int words, struct wal_command *command,
                      struct err *err)
{
    char key[32];
    const char *value;
    int number = 0, rc = 0;
    for (int i = 2; i < argc && rc == 0; i++) {
        if (strcmp(argv[i], "--history-only") == 0)
            command->history_only = true;
        else if (split_option(argv[i], key, &value))
            rc = set_option(command, key, value, err);
        else if (argv[i][0] == '-')
            rc = err_set(err, ERR_USAGE, "unknown option '%.80s'", argv[i]);
        else
            rc = take_word(command, argv[i], number++, words, err);
    }
    if (rc == 0 && number != words)
        rc = err_set(err, ERR_USAGE, "%s needs %d argument%s", argv[1], words,
                     words == 1 ? "" : "s");
    return rc;
}

int wal_command_parse(int argc, char **argv, struct wal_command *ret, struct err *err)
{
    int words = 0;
    memset(ret, 0, sizeof(*ret));
    ret->segment_size = 16 << 20;
    if (argc < 2)
        return err_set(err, ERR_USAGE, "what to do? (tidemark-wal --help)");
    int rc = parse_verb(argv[1], &ret->verb, &words, err);
    if (rc < 0 || ret->verb == WAL_HELP || ret->verb == WAL_VERSION)
        return rc;
    rc = load_conf(argc, argv, &ret->conf, err);
    if (rc == 0)
        rc = parse_rest(argc, argv, words, ret, err);
    if (rc < 0)
        return rc;
    if (ret->verb == WAL_PUSH || ret->verb == WAL_PUSH_AHEAD) {
        const char *slash = strrchr(ret->path, '/');
        ret->name = slash ? slash + 1 : ret->path;
    }
    if (ret->name && !wal_name_valid(ret->name, NULL))
        return err_set(err, ERR_USAGE, "'%.80s' is not the name of a WAL file", ret->name);
    if (ret->verb != WAL_STATS && !ret->conf.repository_url[0])
        return err_set(err, ERR_CONFIG, "no repository is configured");
    return 0;
}

/* --- what follows from it --------------------------------------------------------------------- */

static bool read_system_id(const char *path, uint64_t *ret)
{
    uint8_t buf[8];
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, buf, sizeof(buf)) != (ssize_t)sizeof(buf))
        return false;
    *ret = get_le64(buf);
    return *ret != 0;
}

int wal_command_system_id(const struct wal_command *command, uint64_t *ret, struct err *err)
{
    char path[CONF_PATH_MAX + 32];
    if (command->has_system_id) {
        *ret = command->system_id;
        return 0;
    }
    if (read_system_id("global/pg_control", ret))
        return 0;
    (void)snprintf(path, sizeof(path), "%s/global/pg_control", command->conf.data_directory);
    if (command->conf.data_directory[0] && read_system_id(path, ret))
        return 0;
    (void)err_set(err, ERR_CONFIG, "no global/pg_control here nor in data_directory");
    return err_hint(err, "run it in the data directory, or give --system-id");
}

bool wal_command_withholds(const struct wal_command *command, const char *name)
{
    enum wal_kind kind;
    uint32_t timeline;
    uint64_t number;
    char segment[PG_SEGMENT_TEXT] = "";
    if (!wal_name_parse(name, &kind, &timeline))
        return false;
    if (command->last_timeline && timeline > command->last_timeline)
        return true;
    if (kind == WAL_HISTORY)
        return false;
    if (command->history_only)
        return true;
    memcpy(segment, name, PG_SEGMENT_TEXT - 1);
    if (kind == WAL_BACKUP || !pg_segment_parse(segment, command->segment_size, &timeline, &number))
        return false;
    for (size_t i = 0; i < command->limit_count; i++)
        if (command->limits[i].timeline == timeline &&
            (number + 1) * command->segment_size > command->limits[i].lsn)
            return true;
    return false;
}

bool wal_command_spool(const struct wal_command *command, const char *path,
                       char ret[CONF_PATH_MAX + 1])
{
    return wal_spool_base(&command->conf, path, ret);
}

bool wal_spool_base(const struct conf *conf, const char *path, char ret[CONF_PATH_MAX + 1])
{
    char usual[CONF_PATH_MAX + 64], beside[PATH_MAX], resolved[PATH_MAX];
    (void)snprintf(usual, sizeof(usual), "%s/pg_wal/tidemark-spool", conf->data_directory);
    if (conf->wal_spool[0] && (!path || strcmp(conf->wal_spool, usual) != 0)) {
        (void)snprintf(ret, CONF_PATH_MAX + 1, "%s", conf->wal_spool);
        return conf->wal_spool[0] == '/';
    }
    const char *slash = path ? strrchr(path, '/') : NULL;
    if (path)
        (void)snprintf(beside, sizeof(beside), "%.*s", slash ? (int)(slash - path) + 1 : 1,
                       slash ? path : ".");
    else
        (void)snprintf(beside, sizeof(beside), "pg_wal");
    if (!realpath(beside, resolved) || strlen(resolved) + sizeof("/tidemark-spool") > CONF_PATH_MAX)
        return false;
    (void)snprintf(ret, CONF_PATH_MAX + 1, "%s/tidemark-spool", resolved);
    return true;
}
