/* agent/conf: every refusal with its exact text, every kind of value, the round trip, the
 * environment, the sample file. */
#include "agent/conf.h"

#include "agent/conf_table.h"
#include "tests/tap.h"

static struct conf conf;
static struct err err;

static int parse(const char *text)
{
    err_clear(&err);
    return conf_parse("t.conf", text, strlen(text), &conf, &err);
}

static void test_defaults(void)
{
    is_good(parse(""), &err, "an empty file is fine");
    is_str(conf.cluster, "main", "default cluster");
    is_u64(conf.memory_max, 512 * MIB, "default memory_max");
    is_u64(conf.freeze_deadline_ms, 5000, "default freeze_deadline");
    is_u64(conf.freeze_max_ms, 250, "default freeze_max");
    ok(conf.rcu_expedited, "default rcu_expedited");
    is_u64(conf.chunk_size, 32768, "default chunk_size");
    ok(conf.checkpoint_fast, "default checkpoint = fast");
    is_u64(conf.wal_get_timeout_s, 600, "default get_timeout");
    ok(conf.node[0] != '\0', "node has a default");
    ok(conf.manager == MANAGER_PG_CTL, "default manager");
}

static void test_values(void)
{
    is_good(
        parse("# comment\n; comment\n\n[tidemark]\r\ncluster=prod\nmemory_max =1 GiB\n"
              "rate_limit = 200MiB\nfreeze_deadline = 1500ms\nfreeze_max = 80ms\nresume = wait\n"
              "rcu_expedited = no\n"
              "[postgresql]\nmanager = systemd:postgresql@15-main\ncheckpoint = spread\n"
              "connection = host=/tmp/x port=5433\n"
              "[repository]\nrewrite_budget = 12 %\n"
              "[volume pgdata]\nmount = /srv/pg\nprovider = offline\n"
              "[volume wal]\nmount = /srv/wal\ndevice = /dev/loop0\nprovider = command\n"
              "snapshot_command = /bin/a b\ndrop_command = /bin/c\nfreeze_by = script\n"
              "[volume plain]\nmount = /srv/plain"),
        &err, "a whole file");
    is_str(conf.cluster, "prod", "cluster");
    is_u64(conf.memory_max, GIB, "memory_max");
    is_u64(conf.rate_limit, 200 * MIB, "rate_limit");
    is_u64(conf.freeze_deadline_ms, 1500, "freeze_deadline");
    is_u64(conf.freeze_max_ms, 80, "freeze_max");
    ok(!conf.rcu_expedited, "rcu_expedited");
    ok(conf.resume == RESUME_WAIT, "resume");
    ok(conf.manager == MANAGER_SYSTEMD, "manager");
    is_str(conf.manager_arg, "postgresql@15-main", "manager_arg");
    is_u64(conf.rewrite_budget, 12, "rewrite_budget");
    ok(!conf.checkpoint_fast, "checkpoint");
    is_str(conf.connection, "host=/tmp/x port=5433", "connection keeps its '='");
    is_u64(conf.volume_count, 3, "three volumes");
    is_str(conf.volumes[0].name, "pgdata", "in file order");
    ok(conf.volumes[0].provider == PROVIDER_OFFLINE, "provider");
    ok(conf.volumes[2].provider == PROVIDER_PRECOPY, "default provider");
    ok(conf.volumes[1].freeze_by == FREEZE_BY_SCRIPT, "freeze_by");
    is_str(conf.volumes[1].snapshot_command, "/bin/a b", "snapshot_command");
    ok(conf_volume_by_name(&conf, "wal") == &conf.volumes[1], "found by name");
    ok(!conf_volume_by_name(&conf, "x"), "not found by name");
}

static void is_refused(const char *text, const char *message)
{
    int rc = parse(text);
    ok(rc == -ERR_CONFIG, "refused: %s", message);
    is_str(err.text, message, "with this text");
}

static void test_patroni(void)
{
    is_refused("[postgresql]\nmanager = patroni:\n",
               "t.conf:2: manager: nothing follows 'patroni:'");
    is_refused("[patroni]\nsocket = /p\n",
               "t.conf: [patroni] socket needs [postgresql] manager = patroni");
    is_refused("[tidemark]\nsocket = /p\n[postgresql]\nmanager = patroni\n[patroni]\nsocket = /p\n",
               "t.conf: [patroni] socket is the control socket");
}

static void test_refusals(void)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"[tidemark]\nmemory_mx = 1GiB\n",
         "t.conf:2: unknown option 'memory_mx' in [tidemark] (did you mean 'memory_max'?)"},
        {"[tidemark]\nxyzzyqwert = 1\n", "t.conf:2: unknown option 'xyzzyqwert' in [tidemark]"},
        {"[repositry]\n", "t.conf:1: unknown section [repositry] (did you mean [repository]?)"},
        {"[volum x]\n", "t.conf:1: unknown section [volum x] (did you mean [volume NAME]?)"},
        {"[volume]\n", "t.conf:1: section [volume] needs a name: [volume NAME]"},
        {"[volume a/b]\n", "t.conf:1: 'a/b' is not a volume name of A-Z a-z 0-9 . _ -"},
        {"[tidemark\n", "t.conf:1: malformed section line, expected [NAME]"},
        {"[tidemark] # x\n", "t.conf:1: malformed section line, expected [NAME]"},
        {"[tidemark]\n\n[tidemark]\n", "t.conf:3: section [tidemark] is there twice"},
        {"cluster = x\n", "t.conf:1: 'cluster' stands before the first [section]"},
        {"[tidemark]\ncluster\n", "t.conf:2: malformed line, expected KEY = VALUE"},
        {"[tidemark]\ncluster: x\n", "t.conf:2: malformed line, expected KEY = VALUE"},
        {"[tidemark]\n= x\n", "t.conf:2: malformed line, expected KEY = VALUE"},
        {"[tidemark]\n  lanes = 1\n", "t.conf:2: indented line: begin it in the first column"},
        {"[tidemark]\nlanes = 1\nlanes = 2\n", "t.conf:3: 'lanes' is set twice in [tidemark]"},
        {"[tidemark]\ncluster = a ; b\n",
         "t.conf:2: ';' after a blank could be a comment or part of the value: put comments on "
         "lines of their own"},
        {"[tidemark]\ncluster = a # b\n",
         "t.conf:2: '#' after a blank could be a comment or part of the value: put comments on "
         "lines of their own"},
        {"[tidemark]\ncluster =\n", "t.conf:2: cluster: the value is empty, expected: name"},
        {"[tidemark]\ncluster = a b\n",
         "t.conf:2: cluster: 'a b' is not a name of A-Z a-z 0-9 . _ -"},
        {"[tidemark]\nlanes = 65\n",
         "t.conf:2: lanes: '65' is out of range, expected: number (0 … 64)"},
        {"[tidemark]\nlanes = -1\n",
         "t.conf:2: lanes: '-1' is not valid, expected: number (0 … 64)"},
        {"[tidemark]\nlanes = 2x\n",
         "t.conf:2: lanes: '2x' is not valid, expected: number (0 … 64)"},
        {"[tidemark]\nmemory_max = 1MiB\n",
         "t.conf:2: memory_max: '1MiB' is out of range, expected: size (64MiB … 1TiB)"},
        {"[tidemark]\nmemory_max = 100MB\n",
         "t.conf:2: memory_max: '100MB' is not valid, expected: size (64MiB … 1TiB)"},
        {"[tidemark]\nmemory_max = 99999999999999999999\n",
         "t.conf:2: memory_max: '99999999999999999999' is not valid, expected: size (64MiB … "
         "1TiB)"},
        {"[tidemark]\nmemory_max = 18446744073709551615TiB\n",
         "t.conf:2: memory_max: '18446744073709551615TiB' is out of range, expected: size (64MiB … "
         "1TiB)"},
        {"[tidemark]\nfreeze_deadline = 5\n",
         "t.conf:2: freeze_deadline: '5' is not valid, expected: time (100ms … 60s)"},
        {"[tidemark]\nstate_dir = var\n", "t.conf:2: state_dir: 'var' is not an absolute path"},
        {"[tidemark]\nresume = maybe\n",
         "t.conf:2: resume: 'maybe' is not valid, expected: auto | wait"},
        {"[repository]\nchunk_size = 48KiB\n",
         "t.conf:2: chunk_size: '48KiB' is not valid, expected: 16KiB | 32KiB | 64KiB"},
        {"[postgresql]\nmanager = systemd:\n", "t.conf:2: manager: nothing follows 'systemd:'"},
        {"[postgresql]\nmanager = upstart\n",
         "t.conf:2: manager: 'upstart' is not valid, expected: pg_ctl | systemd:UNIT | "
         "command:COMMAND | patroni[:UNIT]"},
        {"[volume a]\nprovider = freeze\n", "t.conf: [volume a] has neither mount nor device"},
        {"[volume a]\nmount = /a\nprovider = command\n",
         "t.conf: [volume a] provider = command needs snapshot_command and drop_command"},
        {"[volume a]\nmount = /a\nprovider = freeze\ntrack = yes\n",
         "t.conf: [volume a] track = yes is for provider = precopy"},
        {"[tidemark]\ncluster = a\001b\n",
         "t.conf:2: cluster: the value contains a control character"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        is_refused(cases[i].text, cases[i].message);
    }
    is_err(conf_parse("t.conf", "[tidemark]\nlanes = 1\0 2\n", 24, &conf, &err), &err, ERR_CONFIG,
           "t.conf:2: line contains a NUL byte", "NUL byte");
}

/* libinih cuts at 200 bytes; we pass long values whole and refuse what does not fit. */
static void test_long_lines(void)
{
    char text[6000], value[1100];
    memset(value, 'v', sizeof(value));
    value[0] = '/';
    value[1000] = '\0';
    (void)snprintf(text, sizeof(text), "[tidemark]\nstate_dir = %s\nlanes = 3\n", value);
    is_good(parse(text), &err, "a line of 1012 bytes");
    is_str(conf.state_dir, value, "is read whole");
    is_u64(conf.lanes, 3, "and the next line is the next line");
    value[1000] = 'v';
    value[1024] = '\0';
    (void)snprintf(text, sizeof(text), "[tidemark]\nstate_dir = %s\n", value);
    is_err(parse(text), &err, ERR_CONFIG, "t.conf:2: state_dir: value is longer than 1023 bytes",
           "a value of 1024 bytes");
    memset(text, 'x', sizeof(text));
    memcpy(text, "[tidemark]\nlanes = ", 19);
    text[5000] = '\0';
    is_err(parse(text), &err, ERR_CONFIG, "t.conf:2: line is longer than 4096 bytes",
           "a line of 5000 bytes");
    is_err(parse("[volume "
                 "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz]\n"),
           &err, ERR_CONFIG, "t.conf:1: section name is longer than 48 bytes", "long section");
}

static char *written(const struct conf *from)
{
    char *text = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&text, &len);
    if (!to || conf_write(from, to) < 0)
        abort();
    (void)fclose(to);
    return text;
}

static void test_round_trip(void)
{
    is_good(parse("[tidemark]\ncluster = c\nnode = n\nlanes = 3\nrate_limit = 3MiB\n"
                  "[repository]\nurl = file:///x\n[postgresql]\nmanager = command:/bin/x y\n"
                  "[volume a]\nmount = /a\n[volume b]\ndevice = /dev/b\n"),
            &err, "parse");
    free_mem char *first = written(&conf);
    struct conf *before = malloc(sizeof(*before));
    *before = conf;
    is_good(parse(first), &err, "what conf_write() writes is read back");
    ok(memcmp(before, &conf, sizeof(conf)) == 0, "to the same values");
    free(before);
    static const char *const managers[] = {"pg_ctl", "systemd:a b", "patroni", "patroni:u.service"};
    for (size_t i = 0; i < ARRAY_LEN(managers); i++) {
        is_good(conf_set(&conf, "postgresql.manager", managers[i], &err), &err, "%s", managers[i]);
        free_mem char *text = written(&conf);
        is_good(parse(text), &err, "is written");
        ok(conf.manager == (i == 0   ? MANAGER_PG_CTL
                            : i == 1 ? MANAGER_SYSTEMD
                                     : MANAGER_PATRONI),
           "and read back");
        is_str(conf.manager_arg, strchr(managers[i], ':') ? strchr(managers[i], ':') + 1 : "",
               "with its argument");
    }
}

static void test_set(void)
{
    is_good(parse(""), &err, "defaults");
    is_good(conf_set(&conf, "repository.url", "file:///r", &err), &err, "set an option");
    is_str(conf.repository_url, "file:///r", "is set");
    is_good(conf_set(&conf, "volume pg.data.mount", "/m", &err), &err, "set a volume's option");
    is_str(conf.volumes[0].name, "pg.data", "volume with a dot in its name");
    is_err(conf_set(&conf, "repository.ulr", "x", &err), &err, ERR_CONFIG,
           "unknown option 'ulr' in [repository] (did you mean 'url'?)", "unknown");
    is_err(conf_set(&conf, "url", "x", &err), &err, ERR_CONFIG, "'url' is not SECTION.KEY",
           "no section");
}

static void load_from(const char *text)
{
    char path[] = "/tmp/t_conf.XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        abort();
    (void)close(fd);
    err_clear(&err);
    int rc = conf_load(path, &conf, &err);
    (void)unlink(path);
    ok(rc == -(int)err.code, "conf_load() returns its code");
}

static void test_environment(void)
{
    (void)setenv("TIDEMARK_BUILD", "/x", 1);
    (void)setenv("TIDEMARK_TIDEMARK_LANES", "7", 1);
    (void)setenv("TIDEMARK_VOLUME_PG_DATA_PROVIDER", "offline", 1);
    load_from("[tidemark]\nlanes = 2\n[volume pg-data]\nmount = /m\n");
    is_u64(conf.lanes, 7, "the environment wins");
    ok(conf.volumes[0].provider == PROVIDER_OFFLINE, "also in a volume");
    (void)setenv("TIDEMARK_TIDEMARK_LANES", "x", 1);
    load_from("[volume pg-data]\nmount = /m\n");
    is_str(err.text,
           "environment variable TIDEMARK_TIDEMARK_LANES: lanes: 'x' is not valid, expected: "
           "number (0 … 64)",
           "a bad value");
    (void)unsetenv("TIDEMARK_TIDEMARK_LANES");
    (void)setenv("TIDEMARK_REPOSITORY_UR", "x", 1);
    load_from("[volume pg-data]\nmount = /m\n");
    is_str(err.text, "unknown environment variable TIDEMARK_REPOSITORY_UR", "an unknown one");
    is_str(err.hint, "did you mean TIDEMARK_REPOSITORY_URL?", "with the nearest name");
    (void)unsetenv("TIDEMARK_REPOSITORY_UR");
    (void)unsetenv("TIDEMARK_VOLUME_PG_DATA_PROVIDER");
    err_clear(&err);
    is_err(conf_load("/nonexistent/t.conf", &conf, &err), &err, ERR_CONFIG,
           "open configuration '/nonexistent/t.conf': No such file", "a missing file");
}

static void test_complete(void)
{
    is_good(parse("[tidemark]\nstate_dir = /s\n[postgresql]\ndata_directory = /d\n"), &err,
            "parse");
    conf_complete(&conf);
    is_str(conf.log_file, "/s/postgresql.log", "log_file");
    is_str(conf.wal_spool, "/d/pg_wal/tidemark-spool", "wal_spool");
}

/* The sample is a valid configuration and explains every option. */
static void test_sample(void)
{
    char *text = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&text, &len);
    conf_print_sample(to);
    (void)fclose(to);
    ok(strstr(text, "\n#socket = /run/tidemark/agent.sock\n") != NULL, "sample shows the default");
    is_good(parse(text), &err, "the sample is valid as it is");
    free(text);
    for (size_t i = 0; i < option_count; i++)
        ok(option_table[i].help[0] && option_table[i].unit, "%s has help and unit",
           option_table[i].key);
}

int main(void)
{
    test_defaults();
    test_values();
    test_refusals();
    test_patroni();
    test_long_lines();
    test_round_trip();
    test_set();
    test_environment();
    test_complete();
    test_sample();
    return done();
}
