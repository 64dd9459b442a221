/* The pure parts of a restore: requests, paths, mount options, times, recovery settings. */
#include "agent/restore.h"
#include "tests/tap.h"

static struct restore restore;
static struct err err;

static void add_volume(size_t i, const char *recorded, const char *here)
{
    (void)snprintf(restore.record.volumes[i].mount_point, 1024, "%s", recorded);
    (void)snprintf(restore.volumes[i].mount_point, CONF_PATH_MAX + 1, "%s", here);
    restore.volumes[i].index = i;
    restore.volume_count = i + 1;
}

static void test_paths(void)
{
    char path[CONF_PATH_MAX + 1];
    ok(path_inside("/srv/pg/x", "/srv/pg"), "below");
    ok(path_inside("/srv/pg", "/srv/pg/"), "itself, with a slash");
    ok(!path_inside("/srv/pg2", "/srv/pg"), "a longer name is not inside");
    ok(path_inside("/x", "/"), "the root holds everything");
    add_volume(0, "/srv/pg", "/mnt/a");
    add_volume(1, "/srv/pg/ts", "/mnt/b");
    ok(restore_map_path(&restore, "/srv/pg/data", path, sizeof(path)), "maps");
    is_str(path, "/mnt/a/data", "to the first volume");
    ok(restore_map_path(&restore, "/srv/pg/ts/1", path, sizeof(path)), "maps");
    is_str(path, "/mnt/b/1", "the deeper mount point wins");
    ok(restore_map_path(&restore, "/srv/pg", path, sizeof(path)), "maps");
    is_str(path, "/mnt/a", "the mount point itself");
    ok(!restore_map_path(&restore, "/srv/other", path, sizeof(path)), "outside");
    ok(!restore_map_path(&restore, "/srv/pg/../etc/passwd", path, sizeof(path)), "no way out");
    (void)snprintf(restore.record.data_directory, 1024, "/srv/pg/data");
    (void)snprintf(restore.record.wal_directory, 1024, "/srv/wal");
    static struct job job;
    restore.job = &job;
    is_err(restore_map_paths(&restore, &err), &err, ERR_REFUSED, "WAL directory '/srv/wal'",
           "WAL outside");
    (void)snprintf(restore.record.wal_directory, 1024, "/srv/pg/ts/wal");
    is_good(restore_map_paths(&restore, &err), &err, "all inside");
    is_str(restore.wal_directory, "/mnt/b/wal", "WAL directory here");
    (void)snprintf(job.conf.data_directory, sizeof(job.conf.data_directory), "/elsewhere");
    is_err(restore_map_paths(&restore, &err), &err, ERR_REFUSED, "/elsewhere",
           "the configuration disagrees");
}

static void test_options(void)
{
    char text[128];
    restore_mount_options("rw,relatime,attr2,inode64,logbufs=8,noquota,sunit=8,relatime,x-foo",
                          text, sizeof(text));
    is_str(text, "relatime,attr2,inode64,logbufs=8", "xfs");
    restore_mount_options("ro,noload,errors=panic,data=journal,discard", text, sizeof(text));
    is_str(text, "discard", "risky ones go");
    restore_mount_options("", text, sizeof(text));
    is_str(text, "", "none");
    restore_mount_options("aaaa,bbbb", text, 6);
    is_str(text, "aaaa", "no room: whole options only");
}

static void test_times(void)
{
    int64_t us;
    char text[64];
    is_good(restore_parse_time("2026-11-25 10:00:00+01", &us, text, sizeof(text), &err), &err,
            "zone");
    is_str(text, "2026-11-25 09:00:00.000000+00", "in UTC");
    is_good(restore_parse_time("2026-11-25T10:00:00.25Z", &us, text, sizeof(text), &err), &err,
            "ISO");
    is_str(text, "2026-11-25 10:00:00.250000+00", "fraction");
    is_u64(us % 1000000, 250000, "microseconds");
    is_good(restore_parse_time("2026-11-25 10:00 -0830", &us, text, sizeof(text), &err), &err,
            "no seconds");
    is_str(text, "2026-11-25 18:30:00.000000+00", "half hours");
    is_err(restore_parse_time("yesterday", &us, text, sizeof(text), &err), &err, ERR_USAGE,
           "not a time", "words");
    is_err(restore_parse_time("2026-11-25 10:00:00+x", &us, text, sizeof(text), &err), &err,
           ERR_USAGE, "not a time", "bad zone");
    is_err(restore_parse_time("2026-02-31 10:00:00+00", &us, text, sizeof(text), &err), &err,
           ERR_USAGE, "not a time", "a day that does not exist");
}

static void test_settings(void)
{
    char *text = settings_with_recovery("# head\nwork_mem = '4MB'\n"
                                        " Recovery_Target_Name='old'\nprimary_conninfo = 'x'",
                                        "recovery_target_name = 'new'\n");
    is_str(text,
           "# head\nwork_mem = '4MB'\n# before the restore:  Recovery_Target_Name='old'\n"
           "# before the restore: primary_conninfo = 'x'\n"
           "# tidemark restore begin\nrecovery_target_name = 'new'\n# tidemark restore end\n",
           "old ones are comments, ours come last");
    char *again = settings_with_recovery(text, "recovery_target_xid = '7'\n");
    ok(strstr(again, "'new'") == NULL && strstr(again, "recovery_target_xid = '7'"),
       "a second block replaces the first");
    ok(strstr(again, "# before the restore: primary_conninfo = 'x'\n"), "what it set aside stays");
    char *without = settings_without_block(again);
    ok(strstr(without, "tidemark") == NULL && strstr(without, "work_mem"), "and goes away");
    char *next = settings_with_recovery(without, NULL);
    is_str(next, "# head\nwork_mem = '4MB'\n", "the next restore forgets what this one set aside");
    free(next);
    char *empty = settings_without_block("");
    is_str(empty, "", "nothing in, nothing out");
    free(text);
    free(again);
    free(without);
    free(empty);
}

static void test_block(void)
{
    char *text = NULL;
    restore.target = TARGET_TAG;
    restore.target_timeline = 3;
    (void)snprintf(restore.target_value, sizeof(restore.target_value), "a'b@1");
    (void)snprintf(restore.conf.repository_url, CONF_PATH_MAX + 1, "file:///x/100%%/it's");
    (void)snprintf(restore.archive.cluster, sizeof(restore.archive.cluster), "main");
    restore.archive.system_id = 7;
    const char *build = getenv("TIDEMARK_BUILD");
    (void)setenv("TIDEMARK_PROGRAMS", build ? build : "build/release", 0);
    int rc = restore_settings_block(&restore, &text, &err);
    is_good(rc, &err, "the settings of a tag");
    if (rc < 0)
        return;
    ok(strstr(text, "recovery_target_timeline = '3'\n"), "the timeline is a number");
    ok(strstr(text, "recovery_target_inclusive = 'on'\n"), "inclusive");
    const char *last = strstr(text, "recovery_target_name = 'a''b@1'\n");
    ok(last && strlen(last) == strlen("recovery_target_name = 'a''b@1'\n"),
       "the target that is not empty comes last");
    ok(strstr(text, "recovery_target_lsn = ''\n"), "the others are empty");
    ok(strstr(text, "--repository=file:///x/100%%/it''\\\\''''s"), "quoted three times");
    ok(strstr(text, "include '/run/tidemark-restore/not-complete.") != NULL,
       "a start needs the permit");
    free(text);
    restore.request.action = ACTION_PAUSE;
    restore.request.exclusive = true;
    is_good(restore_settings_block(&restore, &text, &err), &err, "the settings of a pause");
    ok(strstr(text, "include") == NULL, "a server that waits for a person needs none");
    ok(strstr(text, "recovery_target_inclusive = 'off'\n"), "exclusive");
    free(text);
    restore.request.exclusive = false;
    restore.request.action = ACTION_PROMOTE;
    restore.target = TARGET_SNAPSHOT;
    is_good(restore_settings_block(&restore, &text, &err), &err, "target snapshot");
    ok(strstr(text, "*.history)") && !strstr(text, "recovery_target_name = 'a"),
       "only history files, no target");
    free(text);
}

static int parse(const char *body, struct restore_request *request)
{
    json_error_t error;
    static json_t *json; /* the request borrows from it */
    json_decref(json);
    json = json_loads(body, 0, &error);
    return restore_request_parse(json, request, &err);
}

static void standby_block(const char *part, const char *what)
{
    char *text = NULL;
    is_good(restore_settings_block(&restore, &text, &err), &err, "%s", what);
    if (!text)
        return;
    ok(strstr(text, part) != NULL, "%s: it says %.40s", what, part);
    free(text);
}

/* The old timeline ends before the segment with the fork, and the new one is the last. */
static void test_standby(void)
{
    restore.request.standby = true;
    restore.request.primary_conninfo = "host=db1 password=it's";
    restore.request.primary_slot = "db2";
    restore.record.segment_size = 16 << 20;
    restore.target_lsn = 0x70000D8;
    is_str(restore_signal_file(&restore), "standby.signal", "its signal file");
    standby_block("--timeline-limit=3:0/70000D8''", "before the fork is known");
    standby_block("--last-timeline=3''", "before the fork is known");
    restore.fork = (struct restore_fork){.timeline = 5, .parent = 3, .lsn = 0x7000100};
    standby_block("--timeline-limit=3:0/7000100''", "with the fork");
    standby_block("--last-timeline=5''", "with the fork");
    restore.history.entries[0] = (struct wal_history_entry){1, 0x3000028};
    restore.history.entries[1] = (struct wal_history_entry){3, 0x7000100};
    restore.history.count = 2;
    standby_block("--timeline-limit=1:0/3000028''", "a fork before");
    standby_block("--timeline-limit=3:0/7000100''", "a fork before");
    standby_block("--on-error=retry''", "an outage");
    standby_block("recovery_target_timeline = 'latest'\n", "no number is pinned");
    standby_block("recovery_target_name = ''\n", "no target");
    standby_block("primary_conninfo = 'host=db1 password=it''s'\n", "the primary");
    standby_block("primary_slot_name = 'db2'\n", "its slot");
    char *lines = NULL;
    is_good(restore_standby_lines(&restore, true, &lines, &err), &err, "what it keeps");
    ok(lines && !strstr(lines, "limit") && !strstr(lines, "last-timeline") &&
           strstr(lines, "--on-error=retry"),
       "no limits");
    free(lines);
    is_good(restore_standby_lines(&restore, false, &lines, &err), &err, "with its own command");
    ok(lines && !strstr(lines, "restore_command"), "ours is left out");
    free(lines);
    restore.request.standby = false;
}

static void test_fork(void)
{
    static const char *const bad[] = {"{}", "{\"timeline\":2,\"lsn\":\"0/1\"}",
                                      "{\"timeline\":2,\"lsn\":\"0/1\",\"parent\":2}",
                                      "{\"timeline\":2,\"lsn\":\"x\",\"parent\":1}",
                                      "{\"timeline\":2,\"lsn\":\"0/0\",\"parent\":1}"};
    struct restore_fork fork;
    free_json json_t *good =
        json_pack("{s:i, s:s, s:i}", "timeline", 4, "lsn", "1/2A", "parent", 1);
    is_good(restore_fork_parse(good, ERR_USAGE, &fork, &err), &err, "a fork");
    ok(fork.timeline == 4 && fork.parent == 1 && fork.lsn == 0x10000002AULL, "its fields");
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        free_json json_t *json = NULL;
        if (json_parse(bad[i], strlen(bad[i]), ERR_USAGE, &json, &err) < 0)
            abort();
        is_err(restore_fork_parse(json, ERR_USAGE, &fork, &err), &err, ERR_USAGE, "", "%s", bad[i]);
    }
    ok(restore_hold_step("fenced") == STEP_FENCED && restore_hold_step(NULL) == STEP_COMPLETE,
       "holds");
}

static void test_requests(void)
{
    struct restore_request request;
    is_good(parse("{\"snapshot\":\"t\"}", &request), &err, "the least");
    ok(request.target == TARGET_TAG && !request.target_given && request.verify == VERIFY_STANDARD &&
           request.action == ACTION_PROMOTE,
       "defaults");
    is_good(parse("{\"type\":\"restore\",\"snapshot\":\"t\",\"target\":{\"type\":\"lsn\","
                  "\"value\":\"0/1\",\"exclusive\":true},\"target_timeline\":2,"
                  "\"action\":\"pause\",\"config\":\"image\",\"reindex\":\"auto\",\"verify\":"
                  "\"full\",\"dry_run\":true}",
                  &request),
            &err, "everything");
    ok(request.target == TARGET_LSN && request.exclusive && request.target_timeline == 2 &&
           request.action == ACTION_PAUSE && request.config_image && request.reindex &&
           request.verify == VERIFY_FULL && request.dry_run,
       "all taken");
    is_err(parse("{}", &request), &err, ERR_USAGE, "snapshot", "no snapshot");
    is_err(parse("{\"snapshot\":\"t\",\"verfy\":\"full\"}", &request), &err, ERR_USAGE,
           "unknown field 'verfy'", "unknown field");
    is_err(parse("{\"snapshot\":\"t\",\"action\":\"run\"}", &request), &err, ERR_USAGE,
           "action 'run'", "unknown action");
    is_err(parse("{\"snapshot\":\"t\",\"target\":{\"type\":\"lsn\"}}", &request), &err, ERR_USAGE,
           "needs a value", "no value");
    is_err(parse("{\"snapshot\":\"t\",\"target\":{\"type\":\"latest\",\"value\":\"1\"}}", &request),
           &err, ERR_USAGE, "takes no value", "too much");
    is_err(parse("{\"snapshot\":\"t\",\"target\":{\"type\":\"name\",\"value\":\"x\","
                 "\"exclusive\":true}}",
                 &request),
           &err, ERR_USAGE, "cannot be exclusive", "a name");
    is_err(parse("{\"snapshot\":\"t\",\"devices\":{\"pg\":1}}", &request), &err, ERR_USAGE,
           "devices 'pg'", "devices are texts");
    is_err(parse("{\"snapshot\":\"t\",\"target_timeline\":4294967296}", &request), &err, ERR_USAGE,
           "out of range", "timeline");
    (void)parse("{}", &request);
}

static void test_steps(void)
{
    for (unsigned i = STEP_NONE; i < STEP_COUNT; i++)
        is_u64(restore_step_from_name(restore_step_name((enum restore_step)i)), i, "step %u", i);
    is_u64(restore_step_from_name("what"), STEP_NONE, "unknown step");
}

int main(void)
{
    test_paths();
    test_options();
    test_times();
    test_settings();
    test_block();
    test_standby();
    test_fork();
    test_requests();
    test_steps();
    return done();
}
