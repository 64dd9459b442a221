/* agent/volume on real volumes: resolving, every refusal with its own text, mounting, walking. */
#include "agent/volume.h"

#include <ctype.h>
#include <sched.h>
#include <sys/mount.h>

#include "tests/unit/fixture.h"

static struct err err;
static struct conf conf;
static struct volume_group group;

static struct conf_volume *reset(const char *mount, const char *device)
{
    memset(&conf, 0, sizeof(conf));
    snprintf(conf.state_dir, sizeof(conf.state_dir), "%s", "/var/tmp");
    snprintf(conf.socket, sizeof(conf.socket), "%s", "/var/tmp/agent.sock");
    snprintf(conf.repository_url, sizeof(conf.repository_url), "%s", "file:///var/tmp/repo");
    conf.volume_count = 1;
    struct conf_volume *volume = &conf.volumes[0];
    snprintf(volume->name, sizeof(volume->name), "pgdata");
    snprintf(volume->mount, sizeof(volume->mount), "%s", mount);
    snprintf(volume->device, sizeof(volume->device), "%s", device);
    return volume;
}

static int open_group(void)
{
    return volume_group_open(&conf, &group, &err);
}

static void test_resolve(struct fixture_volume *volume, const char *fs)
{
    char path[300];
    reset(volume->mount, "");
    is_good(open_group(), &err, "%s: by mount point", fs);
    ok(group.count == 1 && group.volumes[0].mounted && !group.volumes[0].read_only, "%s: mounted",
       fs);
    is_str(group.volumes[0].device.path, volume->loop, "%s: its device", fs);
    is_str(group.volumes[0].mount_point, volume->mount, "%s: its mount point", fs);
    ok(strstr(group.volumes[0].mount_options, "noatime") != NULL &&
           strstr(group.volumes[0].mount_options, "rw") == NULL,
       "%s: its plain options '%s'", fs, group.volumes[0].mount_options);
    snprintf(path, sizeof(path), "%s/not/yet/there", volume->mount);
    ok(volume_group_find_path(&group, path) == 0, "%s: a path on it, not there yet", fs);
    ok(volume_group_find_path(&group, "/proc") == -1, "%s: a path elsewhere", fs);
    volume_group_close(&group);

    reset("", volume->loop);
    is_good(open_group(), &err, "%s: by device", fs);
    is_str(group.volumes[0].mount_point, volume->mount, "%s: finds the mount point", fs);
    volume_group_close(&group);

    snprintf(path, sizeof(path), "%s/link%s", fixture_dir, fs);
    if (symlink(volume->mount, path) < 0)
        abort();
    reset(path, volume->loop);
    is_good(open_group(), &err, "%s: by both, through a link", fs);
    volume_group_close(&group);
}

static void test_config_errors(struct fixture_volume *volume, struct fixture_volume *other)
{
    reset("/var/tmp/nowhere", "");
    is_err(open_group(), &err, ERR_DEVICE, "nothing is mounted", "no such mount point");
    reset("", "/dev/nowhere");
    is_err(open_group(), &err, ERR_DEVICE, "open", "no such device");
    reset(volume->mount, other->loop);
    is_err(open_group(), &err, ERR_REFUSED, "is mounted from", "another device is mounted there");
    reset("/var/tmp/nowhere", volume->loop);
    is_err(open_group(), &err, ERR_REFUSED, "is mounted on", "the device is mounted elsewhere");
    reset("/proc", "");
    is_err(open_group(), &err, ERR_REFUSED, "without a block device", "a virtual filesystem");
    ok(strstr(err.hint, "ext4 and XFS") != NULL, "with a hint");
    reset(volume->mount, "");
    conf.volumes[1] = conf.volumes[0];
    conf.volume_count = 2;
    is_err(open_group(), &err, ERR_CONFIG, "same device", "one device twice");
    conf.volume_count = 0;
    is_err(open_group(), &err, ERR_CONFIG, "no [volume]", "neither volume nor data directory");

    char bind[256], command[300];
    snprintf(bind, sizeof(bind), "%s/bind", fixture_dir);
    snprintf(command, sizeof(command), "mkdir -p '%s/sub' '%s' && mount --bind '%s/sub' '%s'",
             volume->mount, bind, volume->mount, bind);
    ok(run("%s", command) == 0, "a bind mount of a part");
    reset(bind, "");
    is_err(open_group(), &err, ERR_REFUSED, "only a part", "is refused");
    run("umount '%s'", bind);
}

/* A volume that holds what the agent needs while it is frozen. */
static void test_own_files(struct fixture_volume *volume)
{
    reset(volume->mount, "");
    snprintf(conf.state_dir, sizeof(conf.state_dir), "%s/state", volume->mount);
    is_err(open_group(), &err, ERR_REFUSED, "state directory", "state_dir on the volume");
    ok(strstr(err.hint, "state_dir") != NULL, "with a hint that names the option");
    reset(volume->mount, "");
    snprintf(conf.repository_url, sizeof(conf.repository_url), "file://%s/repo", volume->mount);
    is_err(open_group(), &err, ERR_REFUSED, "the repository", "the repository on the volume");
    reset(volume->mount, "");
    snprintf(conf.repository_url, sizeof(conf.repository_url), "s3://bucket%s", volume->mount);
    is_good(open_group(), &err, "an object store is never on it");
    volume_group_close(&group);
    const char *on = volume->mount;
    ok(run("cp /proc/%d/exe '%s/program' && '%s/program' refused '%s' program", getpid(), on, on,
           on) == 0,
       "the agent's program on the volume");
    ok(run("/proc/%d/exe refused '%s' log 2>'%s/log'", getpid(), on, on) == 0,
       "the log on the volume");
    ok(run("sh -c '(exec /proc/%d/exe refused \"%s\" log 2>/dev/null); exit $?' "
           "2>'%s/log'",
           getpid(), on, on) == 0,
       "that of the agent whose job it is, too");
}

/* As another process: with its own program, or its own log. */
static int refused(const char *mount, const char *what)
{
    char want[64];
    snprintf(want, sizeof(want), "holds the agent's %s ('", what);
    reset(mount, "");
    bool good = open_group() == -ERR_REFUSED && strstr(err.text, want) != NULL;
    fprintf(stderr, "%s\n", err.text);
    return good ? 0 : 1;
}

static void test_swap(struct fixture_volume *volume)
{
    if (run("fallocate -l 4M '%s/swap' && chmod 600 '%s/swap' && mkswap -q '%s/swap' && swapon "
            "'%s/swap'",
            volume->mount, volume->mount, volume->mount, volume->mount) != 0) {
        skip("swapon is not possible here");
        return;
    }
    reset(volume->mount, "");
    is_err(open_group(), &err, ERR_REFUSED, "swap on it", "swap on the volume");
    run("swapoff '%s/swap'; rm '%s/swap'", volume->mount, volume->mount);
    is_good(open_group(), &err, "without it");
    volume_group_close(&group);
}

static void test_journal(void)
{
    struct fixture_volume *journal = fixture_add(16 * MIB, "");
    struct fixture_volume *volume = fixture_add(64 * MIB, "");
    run("mke2fs -q -b 4096 -O journal_dev %s && mkfs.ext4 -q -b 4096 -J device=%s %s",
        journal->loop, journal->loop, volume->loop);
    fixture_mount(volume, "noatime");
    reset(volume->mount, "");
    is_err(open_group(), &err, ERR_REFUSED, "journal of its filesystem is on another",
           "ext4 with an external journal");
    fixture_umount(volume);
    fixture_mkfs(volume, "ext3");
    run("mount -t ext3 %s '%s'", volume->loop, volume->mount);
    volume->mounted = true;
    is_err(open_group(), &err, ERR_REFUSED, "unknown filesystem ext3", "another filesystem");
    fixture_umount(volume);
    fixture_mkfs(volume, "ext4");
    fixture_mount(volume, "data=journal");
    struct conf_volume *settings = reset(volume->mount, "");
    is_good(open_group(), &err, "data=journal, frozen by us");
    volume_group_close(&group);
    settings->provider = PROVIDER_COMMAND;
    settings->freeze_by = FREEZE_BY_SCRIPT;
    is_err(open_group(), &err, ERR_REFUSED, "data=journal", "data=journal, frozen by a script");
    fixture_umount(volume);
}

static void test_xfs_log(void)
{
    struct fixture_volume *log = fixture_add(80 * MIB, "");
    struct fixture_volume *volume = fixture_add(320 * MIB, "");
    char options[128];
    run("mkfs.xfs -q -f -l logdev=%s,size=70M %s", log->loop, volume->loop);
    snprintf(options, sizeof(options), "logdev=%s", log->loop);
    if (!fixture_mount(volume, options)) {
        skip("XFS with an external log does not mount here");
        return;
    }
    reset(volume->mount, "");
    is_err(open_group(), &err, ERR_REFUSED, "log of its filesystem is on another",
           "XFS with an external log");
    fixture_umount(volume);
}

/* Kernels that have these need no device for it: the attribute's text is laid over sysfs, for the
 * eyes of a child only. want NULL: it is captured all the same. */
static void test_attribute(const struct fixture_volume *volume, const char *attribute,
                           const char *text, const char *want, const char *what)
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        if (unshare(CLONE_NEWNS) < 0 || mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
            run("echo %s >'%s/attribute' && mount --bind '%s/attribute' /sys/block/%s/%s", text,
                fixture_dir, fixture_dir, volume->loop + strlen("/dev/"), attribute) != 0)
            _exit(2);
        reset(volume->mount, "");
        int rc = open_group();
        fprintf(stderr, "%s: %s\n", what, rc < 0 ? err.text : "fine");
        _exit(want == NULL ? rc != 0 : rc != -ERR_REFUSED || strstr(err.text, want) == NULL);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    ok(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s", what);
}

static void test_partition(void)
{
    struct fixture_volume *volume = fixture_add(64 * MIB, "");
    const char *name = volume->loop + strlen("/dev/");
    if (run("addpart %s 1 4096 65536 && { [ -e %sp1 ] || mknod %sp1 b $(tr : ' ' "
            "</sys/class/block/%sp1/dev); } && mkfs.ext4 -q %sp1 && mount %sp1 '%s'",
            volume->loop, volume->loop, volume->loop, name, volume->loop, volume->loop,
            volume->mount) != 0) {
        skip("no partition on a loop device");
        return;
    }
    reset(volume->mount, "");
    is_good(open_group(), &err, "a partition");
    volume_group_close(&group);
    test_attribute(volume, "queue/dax", "1", "DAX: writes pass the block layer by",
                   "a partition of a disk with DAX is refused");
    run("umount '%s'; delpart %s 1; rm -f %sp1", volume->mount, volume->loop, volume->loop);
}

static void test_queue(struct fixture_volume *volume)
{
    test_attribute(volume, "queue/zoned", "none", NULL, "a device without zones is not refused");
    test_attribute(volume, "queue/zoned", "host-managed", "is a zoned device (host-managed)",
                   "a zoned device is refused");
    test_attribute(volume, "queue/dax", "1", "DAX: writes pass the block layer by",
                   "a device with DAX is refused");
    fixture_umount(volume);
    if (fixture_mount(volume, "dax=never"))
        test_attribute(volume, "queue/dax", "1", NULL,
                       "but not one that is mounted with dax=never");
    fixture_umount(volume);
    fixture_mount(volume, "noatime");
}

/* The kernel here mounts none, so it is checked as provider offline does. */
static void test_xfs_realtime(void)
{
    struct fixture_volume *section = fixture_add(64 * MIB, "");
    struct fixture_volume *volume = fixture_add(320 * MIB, "");
    run("mkfs.xfs -q -f -r rtdev=%s %s", section->loop, volume->loop);
    reset("", volume->loop);
    is_good(open_group(), &err, "XFS with a real-time section, not mounted");
    is_err(volume_check(&conf, &group, &group.volumes[0], &err), &err, ERR_REFUSED,
           "real-time section of its filesystem is on another", "is refused");
    volume_group_close(&group);
}

static void test_btrfs(void)
{
    if (run("command -v mkfs.btrfs >/dev/null") != 0) {
        skip("mkfs.btrfs is not installed");
        return;
    }
    struct fixture_volume *volume = fixture_add(128 * MIB, "");
    run("mkfs.btrfs -q -f %s", volume->loop);
    reset("", volume->loop);
    is_good(open_group(), &err, "btrfs, not mounted");
    is_err(volume_check(&conf, &group, &group.volumes[0], &err), &err, ERR_REFUSED,
           "btrfs may spread over several devices", "is refused");
    volume_group_close(&group);
    if (!fixture_mount(volume, "noatime")) {
        skip("this kernel does not mount btrfs");
        return;
    }
    reset(volume->mount, "");
    is_err(open_group(), &err, ERR_REFUSED, "is a btrfs filesystem without a block device",
           "mounted, too");
    fixture_umount(volume);
}

/* On the image's loop device, or on a partition of it. */
static void test_nesting(struct fixture_volume *outer, bool partition)
{
    char command[400], loop[64], device[80], inner[200];
    snprintf(command, sizeof(command),
             "truncate -s 64M '%s/inner.img' && losetup -f --show '%s/inner.img'", outer->mount,
             outer->mount);
    snprintf(inner, sizeof(inner), "%s/inner", fixture_dir);
    if (!run_line(command, loop, sizeof(loop)))
        abort();
    snprintf(device, sizeof(device), "%s%s", loop, partition ? "p1" : "");
    if (partition)
        run("addpart %s 1 4096 65536 && { [ -e %s ] || mknod %s b $(tr : ' ' "
            "</sys/class/block/%s/dev); }",
            loop, device, device, device + strlen("/dev/"));
    run("mkfs.ext4 -q %s && mkdir -p '%s' && mount %s '%s'", device, inner, device, inner);
    reset(outer->mount, "");
    conf.volumes[1] = (struct conf_volume){.name = "wal"};
    snprintf(conf.volumes[1].mount, sizeof(conf.volumes[1].mount), "%s", inner);
    conf.volume_count = 2;
    is_err(open_group(), &err, ERR_REFUSED, "its loop image", "a volume inside another one, %s",
           partition ? "on a partition" : "whole");
    run("umount '%s'", inner);
    if (partition)
        run("delpart %s 1; rm -f %s", loop, device);
    run("losetup -d %s; rm '%s/inner.img'", loop, outer->mount);
}

static void test_found_volumes(struct fixture_volume *data, struct fixture_volume *wal)
{
    run("mkdir -p '%s/pg/pg_tblspc' '%s/wal' '%s/ts' && ln -sfn '%s/wal' '%s/pg/pg_wal' && ln -sfn "
        "'%s/ts' '%s/pg/pg_tblspc/16400'",
        data->mount, wal->mount, wal->mount, wal->mount, data->mount, wal->mount, data->mount);
    reset("", "");
    conf.volume_count = 0;
    snprintf(conf.data_directory, sizeof(conf.data_directory), "%s/pg", data->mount);
    is_good(open_group(), &err, "volumes found from the data directory");
    is_u64(group.count, 2, "two of them");
    is_str(group.volumes[0].conf->name, "pgdata", "pgdata");
    is_str(group.volumes[1].conf->name, "pgwal", "pgwal, with the tablespace on it");
    is_str(group.volumes[1].mount_point, wal->mount, "its mount point");
    volume_group_close(&group);
}

static int count_directory(void *ctx, const char *path, struct err *unused)
{
    (void)unused;
    ++*(unsigned *)ctx;
    fprintf(stderr, "found %s\n", path);
    return 0;
}

static void test_data_directories(struct fixture_volume *volume)
{
    unsigned count = 0;
    run("cd '%s' && for d in a b/c; do mkdir -p $d/global && touch $d/PG_VERSION "
        "$d/global/pg_control; done && mkdir -p no/global && touch no/PG_VERSION && ln -sfn ../a "
        "b/link",
        volume->mount);
    is_good(volume_find_data_directories(volume->mount, count_directory, &count, &err), &err,
            "look for data directories");
    is_u64(count, 2, "two, not through links, not incomplete ones");
    is_err(volume_find_data_directories("/var/tmp/nowhere", count_directory, &count, &err), &err,
           ERR_DEVICE, "stat", "no such mount point");
}

/* A mount namespace that another test made meanwhile holds a copy of our mount until it ends. */
static bool is_free(const struct fixture_volume *volume)
{
    close_fd int fd = open(volume->loop, O_RDONLY | O_EXCL | O_CLOEXEC);
    return fd >= 0;
}

static void test_mounting(struct fixture_volume *volume, const char *fs)
{
    char line[600], command[300];
    fixture_umount(volume);
    ok(eventually(60000, is_free(volume)), "%s: nobody else holds it", fs);
    is_good(volume_mount(volume->loop, volume->mount, fs, "rw,noatime,nosuid,discard", false, &err),
            &err, "%s: mount", fs);
    snprintf(command, sizeof(command), "findmnt -no OPTIONS %s", volume->loop);
    ok(run_line(command, line, sizeof(line)) && strstr(line, "noatime") && strstr(line, "nosuid") &&
           strstr(line, "discard") && strstr(line, "rw"),
       "%s: its options '%s'", fs, line);
    is_err(volume_mount(volume->loop, volume->mount, fs, "", false, &err), &err, ERR_BUSY, "mount",
           "%s: twice on one place is busy", fs);
    int holder = open(volume->mount, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    is_err(volume_unmount(volume->mount, 1, &err), &err, ERR_BUSY, "t_volume",
           "%s: a busy mount names its holder", fs);
    close(holder);
    is_good(volume_unmount(volume->mount, 5, &err), &err, "%s: unmount", fs);
    is_good(volume_unmount(volume->mount, 0, &err), &err, "%s: again is no error", fs);
    ok(eventually(60000, is_free(volume)), "%s: nobody else holds it", fs);
    is_good(volume_mount(volume->loop, volume->mount, fs, "", true, &err), &err, "%s: read-only",
            fs);
    reset(volume->mount, "");
    is_good(open_group(), &err, "%s: open it", fs);
    ok(group.volumes[0].read_only, "%s: it is read-only", fs);
    volume_group_close(&group);
    volume_unmount(volume->mount, 5, &err);
    is_err(volume_mount(volume->loop, volume->mount, fs, "nonsense", false, &err), &err, ERR_DEVICE,
           "mount", "%s: an unknown option", fs);
    ok(strstr(err.hint, "nonsense") != NULL, "%s: is named", fs);
    reset(volume->mount, volume->loop);
    is_good(open_group(), &err, "%s: open it unmounted", fs);
    ok(!group.volumes[0].mounted && group.volumes[0].mount_fd == -1, "%s: not mounted", fs);
    volume_group_close(&group);
    is_good(volume_mount(volume->loop, volume->mount, fs, "noatime", false, &err), &err,
            "%s: mount it again", fs);
    volume->mounted = true;
}

static void test_nouuid(struct fixture_volume *xfs)
{
    struct fixture_volume *copy = fixture_add(320 * MIB, "");
    run("xfs_freeze -f '%s'; dd if=%s of=%s bs=1M iflag=direct oflag=direct 2>/dev/null; "
        "xfs_freeze "
        "-u '%s'",
        xfs->mount, xfs->loop, copy->loop, xfs->mount);
    is_good(volume_mount(copy->loop, copy->mount, "xfs", "", false, &err), &err,
            "a copy of XFS mounts beside its original");
    copy->mounted = true;
    fixture_umount(copy);
}

int main(int argc, char **argv)
{
    const char *why;
    if (argc == 4 && strcmp(argv[1], "refused") == 0)
        return refused(argv[2], argv[3]);
    if (!fixture_start(&why)) {
        skip(why);
        return done();
    }
    struct fixture_volume *ext4 = fixture_add(128 * MIB, "");
    struct fixture_volume *xfs = fixture_add(320 * MIB, "");
    fixture_mkfs(ext4, "ext4");
    fixture_mkfs(xfs, "xfs");
    fixture_mount(ext4, "noatime");
    fixture_mount(xfs, "noatime");
    test_resolve(ext4, "ext4");
    test_resolve(xfs, "xfs");
    test_config_errors(ext4, xfs);
    test_own_files(ext4);
    test_queue(ext4);
    test_swap(ext4);
    test_nesting(xfs, false);
    test_nesting(xfs, true);
    test_found_volumes(ext4, xfs);
    test_data_directories(ext4);
    test_mounting(ext4, "ext4");
    test_mounting(xfs, "xfs");
    test_nouuid(xfs);
    test_journal();
    test_xfs_log();
    test_xfs_realtime();
    test_btrfs();
    test_partition();
    return done();
}
