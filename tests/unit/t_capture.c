/* agent/capture on real ext4 and XFS volumes under write load: is the image that of one instant, on
 * both volumes? It is copied by its used extents only, mounted (log replay), compared with what a
 * writer had made durable, and checked by fsck. Then everything that can go wrong with a script. */
/* check: build=asan timeout=300 */
#include "agent/capture_parts.h"

#include <errno.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "io/fsmap.h"
#include "tests/unit/fixture.h"

static struct err err;
static struct conf conf;
static struct volume_group group;
static struct capture capture;
static struct extent_list wal[CONF_VOLUMES_MAX];
static struct fixture_volume *volumes[2];
static struct fixture_volume *outer; /* XFS with reflink: holds the images of the two */

/* --- writers ---------------------------------------------------------------------------------- */

/* Counts upwards: number n is durable on the first volume before it is written to the second. */
static void count_up(const char *first, const char *second)
{
    char path[300];
    int fds[2];
    const char *mounts[] = {first, second};
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/counter", mounts[i]);
        fds[i] = open(path, O_RDWR | O_CREAT, 0600);
    }
    for (uint64_t n = 1;; n++)
        for (int i = 0; i < 2; i++)
            if (pwrite(fds[i], &n, sizeof(n), 0) != sizeof(n) || fdatasync(fds[i]) < 0)
                _exit(1);
}

static pid_t start_counter(void)
{
    pid_t pid = fork();
    if (pid == 0)
        count_up(volumes[0]->mount, volumes[1]->mount);
    return pid;
}

/* Files that come and go, so that blocks change hands: each holds its own name over and over. */
static pid_t start_churn(const struct fixture_volume *volume)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    char path[300], next[300], text[4096];
    for (unsigned n = 0;; n++) {
        snprintf(path, sizeof(path), "%s/churn.tmp", volume->mount);
        snprintf(next, sizeof(next), "%s/churn%u", volume->mount, n % 40);
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        memset(text, 'a' + (int)(n % 26), sizeof(text));
        for (unsigned i = 0; i < 1 + n % 64; i++)
            if (write(fd, text, sizeof(text)) != sizeof(text))
                _exit(1);
        if (n % 4 == 0)
            fsync(fd);
        close(fd);
        rename(path, next);
    }
}

static void stop(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* --- images ----------------------------------------------------------------------------------- */

static void image_path(size_t index, char *ret, size_t ret_len)
{
    snprintf(ret, ret_len, "%s/copy%zu", fixture_dir, index);
}

/* The used extents and nothing else; the rest is a hole. */
static bool copy_used(size_t index)
{
    enum { STEP = 1 << 20 };
    const struct capture_volume *from = &capture.volumes[index];
    char path[200];
    image_path(index, path, sizeof(path));
    close_fd int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    free_mem char *buf = aligned_alloc(4096, STEP);
    if (ftruncate(fd, (off_t)from->device.identity.size) < 0)
        return false;
    for (size_t i = 0; i < from->used.count; i++) {
        const struct extent *extent = &from->used.items[i];
        for (uint64_t at = 0; at < extent->len; at += STEP) {
            size_t len = (size_t)min_u64(STEP, extent->len - at);
            off_t offset = (off_t)(extent->offset + at);
            if (pread(from->device.fd, buf, len, offset) != (ssize_t)len ||
                pwrite(fd, buf, len, offset) != (ssize_t)len)
                return false;
        }
    }
    return true;
}

/* Mounts the copy (log replay), reads its counter, checks every churn file, runs fsck. */
static bool check_image(size_t index, const char *fs, uint64_t *ret_counter)
{
    char path[200], mount[200], command[700], line[64];
    image_path(index, path, sizeof(path));
    snprintf(mount, sizeof(mount), "%s/check", fixture_dir);
    mkdir(mount, 0755);
    if (run("mount -o loop%s '%s' '%s'", strcmp(fs, "xfs") == 0 ? ",nouuid" : "", path, mount) != 0)
        return false;
    snprintf(command, sizeof(command), "%s/counter", mount);
    close_fd int fd = open(command, O_RDONLY | O_CLOEXEC);
    *ret_counter = 0;
    if (fd >= 0 && read(fd, ret_counter, sizeof(*ret_counter)) < 0)
        *ret_counter = UINT64_MAX;
    cleanup_close(&fd);
    fd = -1;
    /* unsynced files may be short or hold zeros, never somebody else's letters */
    snprintf(command, sizeof(command),
             "cd '%s' && for f in churn*; do tr -d '\\0' <$f | fold -w 4096 | sort -u | cut -c1 | "
             "sort -u | wc -l; done | sort -n | tail -1",
             mount);
    bool good = run_line(command, line, sizeof(line)) && atoi(line) <= 1;
    good = run("umount '%s'", mount) == 0 && good;
    if (strcmp(fs, "xfs") == 0)
        return run("xfs_repair -n -f '%s' >/dev/null 2>&1", path) == 0 && good;
    return run("e2fsck -fn '%s' >/dev/null", path) == 0 && good;
}

static void check_images(const char *what)
{
    uint64_t first = 0, second = 0;
    ok(check_image(0, "ext4", &first), "%s: the ext4 image is sound", what);
    ok(check_image(1, "xfs", &second), "%s: the XFS image is sound", what);
    ok(first >= second && first <= second + 1 && second > 0,
       "%s: both are of one instant (%llu, %llu)", what, (unsigned long long)first,
       (unsigned long long)second);
}

/* --- configuration ---------------------------------------------------------------------------- */

static void configure(enum conf_provider provider)
{
    memset(&conf, 0, sizeof(conf));
    snprintf(conf.state_dir, sizeof(conf.state_dir), "%s/state", fixture_dir);
    snprintf(conf.socket, sizeof(conf.socket), "%s/state/agent.sock", fixture_dir);
    mkdir(conf.state_dir, 0700);
    conf.freeze_deadline_ms = 20000;
    conf.volume_count = 2;
    for (size_t i = 0; i < 2; i++) {
        struct conf_volume *volume = &conf.volumes[i];
        snprintf(volume->name, sizeof(volume->name), "v%zu", i);
        snprintf(volume->mount, sizeof(volume->mount), "%s", volumes[i]->mount);
        snprintf(volume->device, sizeof(volume->device), "%s", volumes[i]->loop);
        volume->provider = provider;
    }
}

static void use_script(size_t index, const char *snapshot, const char *drop)
{
    snprintf(conf.volumes[index].snapshot_command, CONF_PATH_MAX, "%s", snapshot);
    snprintf(conf.volumes[index].drop_command, CONF_PATH_MAX, "%s", drop);
}

/* The shipped script: <source>/conf/capture/reflink-loop, seen from <build>/tests/unit. */
static void use_reflink(void)
{
    char self[PATH_MAX], snapshot[PATH_MAX + 64], drop[PATH_MAX + 64];
    ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[len > 0 ? len : 0] = '\0';
    char *build = strstr(self, "/build/");
    if (build != NULL)
        *build = '\0';
    snprintf(snapshot, sizeof(snapshot), "%s/conf/capture/reflink-loop snapshot", self);
    snprintf(drop, sizeof(drop), "%s/conf/capture/reflink-loop drop", self);
    for (size_t i = 0; i < 2; i++)
        use_script(i, snapshot, drop);
}

static int begin(struct capture_request *request)
{
    static struct capture_request none;
    static unsigned number;
    static char job[32];
    struct capture_request *used = request != NULL ? request : &none;
    snprintf(job, sizeof(job), "job%u", ++number);
    used->job = job;
    int rc = volume_group_open(&conf, &group, &err);
    if (rc == 0)
        rc = capture_begin(&conf, &group, used, &capture, &err);
    if (rc < 0)
        volume_group_close(&group);
    return rc;
}

static bool end(void)
{
    bool valid = false;
    int rc = capture_end(&capture, &valid, &err);
    volume_group_close(&group);
    return rc == 0 && valid;
}

static bool is_thawed(size_t index)
{
    close_fd int fd = fixture_open(volumes[index]);
    if (ioctl(fd, FIFREEZE, 0) < 0)
        return false;
    ioctl(fd, FITHAW, 0);
    return true;
}

/* No frozen volume, no snapshot image, no loop device on one, no list of what to drop. */
static void nothing_left(const char *what)
{
    char command[300], line[32];
    ok(is_thawed(0) && is_thawed(1), "%s: nothing is frozen", what);
    snprintf(
        command, sizeof(command),
        "(ls -A '%s' | grep '^.tidemark'; losetup -a | grep '\\.tidemark.*%s'; ls '%s/captures' "
        "2>/dev/null) | wc -l",
        outer->mount, fixture_dir, conf.state_dir);
    ok(run_line(command, line, sizeof(line)) && atoi(line) == 0, "%s: nothing is left (%s)", what,
       line);
}

/* --- the providers under load ----------------------------------------------------------------- */

static void under_load(const char *what)
{
    pid_t writers[] = {start_counter(), start_churn(volumes[0]), start_churn(volumes[1])};
    ok(eventually(5000, access(volumes[1]->mount, F_OK) == 0), "%s: load", what);
    nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL);
    is_good(begin(NULL), &err, "%s: begin", what);
    ok(capture.volumes[0].used_trusted && capture.volumes[1].used_trusted,
       "%s: the maps are trusted", what);
    ok(capture.captured_s >= time(NULL) - 60, "%s: captured_s", what);
    ok(copy_used(0) && copy_used(1), "%s: copy %llu + %llu MiB", what,
       (unsigned long long)(extent_list_bytes(&capture.volumes[0].used) / MIB),
       (unsigned long long)(extent_list_bytes(&capture.volumes[1].used) / MIB));
    ok(end(), "%s: valid at the end", what);
    printf("# %s: stall %llu ms\n", what, (unsigned long long)(capture.stall_ns / 1000000));
    for (size_t i = 0; i < ARRAY_LEN(writers); i++)
        stop(writers[i]);
    check_images(what);
    nothing_left(what);
}

static void test_offline(void)
{
    configure(PROVIDER_OFFLINE);
    is_err(begin(NULL), &err, ERR_REFUSED, "mounted read-write", "offline: refused while mounted");
    ok(strstr(err.hint, "read-only") != NULL, "offline: with a hint");
    fixture_umount(volumes[0]);
    run("mount -o remount,ro '%s'", volumes[1]->mount);
    is_good(begin(NULL), &err, "offline: one unmounted, one read-only");
    ok(!capture.volumes[0].used_trusted && capture.volumes[1].used_trusted,
       "offline: no map without a mount");
    ok(run("mount %s '%s' 2>/dev/null", volumes[0]->loop, volumes[0]->mount) != 0,
       "offline: nobody can mount it meanwhile");
    ok(copy_used(0) && copy_used(1), "offline: copy");
    ok(end(), "offline: valid");
    uint64_t counter;
    ok(check_image(0, "ext4", &counter) && check_image(1, "xfs", &counter), "offline: sound");
    is_good(begin(NULL), &err, "offline: again");
    run("mount -o remount,rw '%s' && touch '%s/x' && sync -f '%s'", volumes[1]->mount,
        volumes[1]->mount, volumes[1]->mount);
    ok(!end(), "offline: a write meanwhile voids it");
    fixture_mount(volumes[0], "rw");
    nothing_left("offline");
}

/* --- files and WAL ---------------------------------------------------------------------------- */

static void test_files_and_wal(enum conf_provider provider, const char *what)
{
    char control[300], directory[300];
    snprintf(control, sizeof(control), "%s/pg/global/pg_control", volumes[0]->mount);
    snprintf(directory, sizeof(directory), "%s/pg_wal", volumes[1]->mount);
    run("mkdir -p '%s/pg/global' '%s' && head -c 8192 /dev/urandom >'%s' && cd '%s' && "
        "for n in 1 2 3 4; do head -c 1M /dev/urandom >00000001000000000000000$n; done && "
        "ln -f 000000010000000000000002 link && cp --reflink=always 000000010000000000000003 clone;"
        "head -c 1M /dev/zero >000000010000000000000004.partial; touch 00000002.history; "
        "ln -sf 000000010000000000000001 000000010000000000000009; sync -f .",
        volumes[0]->mount, directory, control, directory);
    configure(provider);
    use_reflink();
    struct capture_file file = {.path = control};
    struct capture_request request = {
        .files = &file, .file_count = 1, .wal_directory = directory, .ret_wal = wal};
    is_good(begin(&request), &err, "%s: begin with files", what);
    ok(file.flags == FSMAP_PLAIN && file.extents.count == 1 && file.extents.items[0].len == 8192,
       "%s: pg_control has a place", what);
    ok(wal[0].count == 0 && extent_list_bytes(&wal[1]) == 2 * MIB,
       "%s: WAL segments 1 and 4: neither linked, shared, partial nor history", what);
    free_mem uint8_t *got = aligned_alloc(4096, 8192);
    uint8_t want[8192];
    close_fd int fd = open(control, O_RDONLY | O_CLOEXEC);
    ok(file.extents.count > 0 && read(fd, want, sizeof(want)) == 8192 &&
           pread(capture.volumes[0].device.fd, got, 8192, (off_t)file.extents.items[0].offset) ==
               8192 &&
           memcmp(got, want, 8192) == 0,
       "%s: its bytes are on the captured device", what);
    ok(end(), "%s: valid", what);
    extent_list_release(&file.extents);
    extent_list_release(&wal[1]);
    memset(wal, 0, sizeof(wal));
    file = (struct capture_file){.path = "/etc/passwd"};
    is_err(begin(&request), &err, ERR_REFUSED, "none of the volumes", "%s: a file elsewhere", what);
    nothing_left(what);
}

/* Bytes that are left out no more when precopy looks again; -1 after an error. */
static int64_t lost(const char *command, uint64_t until_ns, struct capture_request *request)
{
    struct extent_list list = {0};
    size_t index = 0;
    int rc = run("cd '%s' && %s", request->wal_directory, command);
    if (rc == 0)
        rc = capture_recheck_wal(&capture, request, until_ns, &index, &list, &err);
    int64_t bytes = rc == 0 ? (int64_t)extent_list_bytes(&list) : -1;
    extent_list_release(&list);
    return bytes;
}

static void test_wal_again(void)
{
    char directory[300];
    snprintf(directory, sizeof(directory), "%s/pg_wal", volumes[1]->mount);
    struct capture_request request = {.wal_directory = directory, .ret_wal = wal};
    configure(PROVIDER_FREEZE);
    capture = (struct capture){.conf = &conf, .group = &group};
    ok(volume_group_open(&conf, &group, &err) == 0 &&
           capture_take_wal(&capture, &request, &err) == 0,
       "WAL again: the segments 1 and 4");
    extent_list_normalise(&wal[1]);
    ok(lost("mv 000000010000000000000001 000000010000000000000008", UINT64_MAX, &request) == 0 &&
           extent_list_bytes(&wal[1]) == 2 * MIB,
       "WAL again: what was recycled stays left out");
    ok(lost("mv 000000010000000000000004 ../segment", UINT64_MAX, &request) == MIB &&
           extent_list_bytes(&wal[1]) == MIB,
       "WAL again: what was moved away does not");
    ok(lost("true", 0, &request) == MIB && wal[1].count == 0, "WAL again: nor without time");
    volume_group_close(&group);
}

/* --- freeze ----------------------------------------------------------------------------------- */

static void test_freeze_limits(void)
{
    configure(PROVIDER_FREEZE);
    conf.freeze_deadline_ms = 500;
    struct capture_request request = {.estimate_bytes_per_s = MIB};
    is_err(begin(&request), &err, ERR_REFUSED, "longer than freeze_deadline",
           "freeze: too much to copy within the deadline");
    ok(strstr(err.hint, "provider = command") != NULL, "freeze: with a hint");
    request.estimate_bytes_per_s = 100 * GIB;
    is_good(begin(&request), &err, "freeze: little enough");
    ok(eventually(3000, is_thawed(0) && is_thawed(1)), "freeze: thawed at the deadline");
    ok(!end(), "freeze: then it is void");
    is_good(begin(NULL), &err, "freeze: begin");
    run("dd if=/dev/zero of=%s bs=4096 count=1 seek=%llu conv=notrunc oflag=direct 2>/dev/null",
        volumes[0]->loop, (unsigned long long)(200 * MIB / 4096));
    ok(!end(), "freeze: a write below the filesystem voids it");

    conf.volumes[1].provider = PROVIDER_OFFLINE;
    is_err(begin(NULL), &err, ERR_CONFIG, "different providers", "one provider for all");
    configure(PROVIDER_FREEZE);
    close_fd int fd = fixture_open(volumes[1]);
    ok(ioctl(fd, FIFREEZE, 0) == 0, "somebody freezes the second volume");
    is_err(begin(NULL), &err, ERR_BUSY, "v1: the filesystem is frozen already",
           "freeze: busy, and it says which");
    ok(ioctl(fd, FITHAW, 0) == 0, "that freeze was left alone");
    nothing_left("freeze limits");
}

/* kill -9 and SIGSTOP of the capturing process while it holds the freeze. */
static void test_freeze_killed(int number, const char *what)
{
    configure(PROVIDER_FREEZE);
    conf.freeze_deadline_ms = number == SIGSTOP ? 700 : 20000;
    int ready[2];
    if (pipe(ready) < 0)
        abort();
    pid_t pid = fork();
    if (pid == 0) {
        if (begin(NULL) == 0 && write(ready[1], "r", 1) == 1)
            raise(number);
        _exit(end() ? 3 : 4);
    }
    char byte;
    close(ready[1]);
    ok(read(ready[0], &byte, 1) == 1, "%s: a child holds the freeze", what);
    close(ready[0]);
    ok(eventually(3000, is_thawed(0) && is_thawed(1)), "%s: thawed", what);
    int status = 0;
    kill(pid, SIGCONT);
    waitpid(pid, &status, 0);
    ok(number == SIGKILL || WEXITSTATUS(status) == 4, "%s: its capture is void", what);
}

/* --- command ---------------------------------------------------------------------------------- */

static void test_command_errors(void)
{
    static const struct {
        const char *command, *text;
        enum err_code code;
    } cases[] = {
        {"echo nonsense", "printed no path", ERR_DEVICE},
        {"true", "printed no path", ERR_DEVICE},
        {"echo why >&2; exit 3", "exit status 3: why", ERR_DEVICE},
        {"echo /dev/null", "the snapshot", ERR_DEVICE},
        {"echo $TIDEMARK_DEVICE", "not a snapshot device", ERR_DEVICE},
        {"echo /dev/nowhere", "the snapshot", ERR_DEVICE},
        {"sleep 30; echo /dev/nowhere", "longer than freeze_deadline", ERR_BUSY},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        configure(PROVIDER_COMMAND);
        conf.freeze_deadline_ms = 800;
        char drop[200], path[200];
        snprintf(path, sizeof(path), "%s/dropped", fixture_dir);
        snprintf(drop, sizeof(drop), "echo $TIDEMARK_VOLUME $TIDEMARK_JOB >>'%s'", path);
        unlink(path);
        use_script(0, cases[i].command, drop);
        use_script(1, cases[i].command, drop);
        is_err(begin(NULL), &err, cases[i].code, cases[i].text, "command: '%s'", cases[i].command);
        ok(run("grep -q '^v0 job' '%s'", path) == 0, "command: what was begun is dropped");
        nothing_left(cases[i].command);
    }
    configure(PROVIDER_COMMAND);
    conf.volumes[0].freeze_by = FREEZE_BY_SCRIPT;
    is_err(begin(NULL), &err, ERR_REFUSED, "not one instant", "command: two volumes by script");
    fixture_umount(volumes[1]);
    configure(PROVIDER_COMMAND);
    use_reflink();
    is_err(begin(NULL), &err, ERR_REFUSED, "not mounted", "command: a volume that is not mounted");
    fixture_mount(volumes[1], "rw");
    nothing_left("command errors");
}

/* The second snapshot fails: the first one goes too. */
static void test_command_half(void)
{
    configure(PROVIDER_COMMAND);
    use_reflink();
    conf.volumes[1].snapshot_command[0] = '\0';
    strcpy(conf.volumes[1].snapshot_command, "exit 9");
    is_err(begin(NULL), &err, ERR_DEVICE, "exit status 9", "command: the second fails");
    nothing_left("command half");
}

static void test_command_by_script(void)
{
    configure(PROVIDER_COMMAND);
    use_reflink();
    conf.volume_count = 1;
    conf.volumes[0].freeze_by = FREEZE_BY_SCRIPT;
    char control[300], text[CONF_PATH_MAX + 1];
    snprintf(control, sizeof(control), "%s/pg/global/pg_control", volumes[0]->mount);
    struct capture_file file = {.path = control};
    struct capture_request request = {.files = &file, .file_count = 1};
    is_good(begin(&request), &err, "script: begin");
    ok(!capture.volumes[0].used_trusted && capture.volumes[0].used.count == 1,
       "script: no map, everything is read");
    ok(file.extents.count == 1, "script: pg_control has a place");
    extent_list_release(&file.extents);
    ok(end(), "script: valid");
    file.extents = (struct extent_list){0};
    snprintf(text, sizeof(text), "%s", conf.volumes[0].snapshot_command);
    snprintf(conf.volumes[0].snapshot_command, CONF_PATH_MAX,
             "cp '%s' '%s.new' && mv '%s.new' '%s' && sync && %s", control, control, control,
             control, text);
    is_err(begin(&request), &err, ERR_BUSY, "moved", "script: a pg_control that moved");
    nothing_left("script");
}

/* A job that is killed leaves its snapshots and its list; the next capture drops them. */
static void test_stale(void)
{
    configure(PROVIDER_COMMAND);
    use_reflink();
    pid_t pid = fork();
    if (pid == 0) {
        if (begin(NULL) == 0)
            raise(SIGKILL);
        _exit(1);
    }
    int status;
    ok(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status), "stale: a job was killed");
    char command[300], line[32];
    snprintf(command, sizeof(command), "ls -A '%s' | grep -c '^.tidemark'", outer->mount);
    ok(run_line(command, line, sizeof(line)) && atoi(line) == 2, "stale: it left two snapshots");
    pid = fork(); /* one that lives keeps its own */
    if (pid == 0) {
        configure(PROVIDER_COMMAND);
        use_reflink();
        _exit(begin(NULL) == 0 && run_line(command, line, sizeof(line)) && atoi(line) == 2 && end()
                  ? 0
                  : 1);
    }
    ok(waitpid(pid, &status, 0) == pid && status == 0, "stale: the next capture drops them");
    nothing_left("stale");

    use_script(0, "echo x", "exit 5"); /* cannot be dropped: kept on the list */
    use_script(1, "echo x", "exit 5");
    is_err(begin(NULL), &err, ERR_DEVICE, "printed no path", "stale: a drop that fails");
    snprintf(command, sizeof(command), "ls '%s/captures' | wc -l", conf.state_dir);
    ok(run_line(command, line, sizeof(line)) && atoi(line) == 1, "stale: stays on the list");
    capture_cleanup_stale(&conf);
    ok(run_line(command, line, sizeof(line)) && atoi(line) == 1, "stale: as long as it fails");
    run("sed -i 's/exit 5/exit 0/g' '%s/captures'/*", conf.state_dir);
    capture_cleanup_stale(&conf);
    nothing_left("stale again");
}

static void test_reflink_script(void)
{
    char script[CONF_PATH_MAX + 1];
    configure(PROVIDER_COMMAND);
    use_reflink();
    snprintf(script, sizeof(script), "%s", conf.volumes[0].snapshot_command);
    *strrchr(script, ' ') = '\0';
    static const char env[] = "TIDEMARK_JOB=j1 TIDEMARK_VOLUME=v";
    ok(run("%s snapshot 2>/dev/null", script) != 0, "reflink-loop: needs its environment");
    ok(run("%s TIDEMARK_DEVICE=%s %s nonsense 2>/dev/null", env, volumes[0]->loop, script) != 0,
       "reflink-loop: needs a verb");
    ok(run("%s TIDEMARK_DEVICE=/dev/zram0 %s snapshot 2>&1 | grep -q 'not a loop device\\|not a "
           "block'",
           env, script) == 0,
       "reflink-loop: understands loop devices only");
    ok(run("%s TIDEMARK_DEVICE=%s %s snapshot 2>&1 | grep -q 'no reflinks'", env, outer->loop,
           script) == 0,
       "reflink-loop: says that there are no reflinks");
    ok(run("TIDEMARK_JOB=../x TIDEMARK_VOLUME=v TIDEMARK_DEVICE=%s %s snapshot 2>/dev/null",
           volumes[0]->loop, script) != 0,
       "reflink-loop: takes no paths as names");
    ok(run("%s TIDEMARK_DEVICE=%s %s drop", env, volumes[0]->loop, script) == 0,
       "reflink-loop: drop of nothing succeeds");
    ok(run("%s TIDEMARK_DEVICE=%s %s snapshot", env, volumes[0]->loop, script) == 0,
       "reflink-loop: snapshot");
    ok(run("%s TIDEMARK_DEVICE=%s %s snapshot 2>/dev/null", env, volumes[0]->loop, script) != 0,
       "reflink-loop: never over an existing one");
    ok(run("%s TIDEMARK_DEVICE=%s %s drop && %s TIDEMARK_DEVICE=%s %s drop", env, volumes[0]->loop,
           script, env, volumes[0]->loop, script) == 0,
       "reflink-loop: drop, twice");
    nothing_left("reflink-loop");
}

/* --- setting up ------------------------------------------------------------------------------- */

/* The two volumes are loop devices over images on an XFS that is itself a loop volume. */
static void set_up(void)
{
    outer = fixture_add(1536 * MIB, "");
    fixture_mkfs(outer, "xfs");
    fixture_mount(outer, "rw");
    const char *fs[] = {"ext4", "xfs"};
    for (size_t i = 0; i < 2; i++) {
        volumes[i] = fixture_add_in(320 * MIB, outer->mount);
        fixture_mkfs(volumes[i], fs[i]);
        fixture_mount(volumes[i], "rw");
    }
}

int main(void)
{
    const char *why;
    if (!fixture_start(&why)) {
        skip(why);
        return done();
    }
    fixture_set_guardian();
    set_up();
    configure(PROVIDER_FREEZE);
    under_load("freeze");
    configure(PROVIDER_COMMAND);
    use_reflink();
    under_load("command");
    under_load("command, again");
    test_files_and_wal(PROVIDER_FREEZE, "freeze");
    test_files_and_wal(PROVIDER_COMMAND, "command");
    test_wal_again();
    test_freeze_limits();
    test_freeze_killed(SIGKILL, "SIGKILL");
    test_freeze_killed(SIGSTOP, "SIGSTOP");
    test_command_errors();
    test_command_half();
    test_command_by_script();
    test_stale();
    test_reflink_script();
    test_offline();
    return done();
}
