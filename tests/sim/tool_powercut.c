/* Power cuts, simulated and repeatable. A FUSE directory of disk images, used under loop devices,
 * that logs every write and flush of all images with one clock:
 *
 *     tool_powercut serve WORK MOUNT                     until it is unmounted
 *     tool_powercut cut WORK OUT [--at=OP] [--seed=N]    the images as a cut before operation OP of
 *                               [--torn]                 the log leaves them (default: at its end)
 *     tool_powercut log WORK                             the log as text
 *
 * WORK/base/NAME is an image as it was at the start, WORK/live/NAME as the host sees it now,
 * WORK/log the log with the data of all writes. A cut keeps every write that a flush of the same
 * image followed, and of the later ones a subset chosen from the seed, whole or torn at 4 KiB or
 * 512 bytes, in any order: what a disk with a volatile write cache may do. Seed 0 keeps none of
 * them, 1 all.
 *
 * Repeatability: how operations interleave depends on the scheduler, but the log does not change
 * any more once it is written. The images are a pure function of (log, OP, seed), so one run serves
 * for the cuts at all its operations, and a failure is kept by keeping WORK.
 *
 * MOUNT/.control takes commands, one a write: "cut" (now), "cut-at OP", "cut-at-flush N" (the Nth
 * flush since the start fails), "mark TEXT" (a line in the log). From the cut on every operation is
 * EIO, for ever. Reading it gives "ops=… flushes=… cut=…". One thread serves all, so an operation
 * that is not in the log has not happened. */
#define FUSE_USE_VERSION 31
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

#include "io/base.h"

enum { FILES_MAX = 16, NAME_LEN_MAX = 64, SECTOR = 512 };

enum op_type { OP_WRITE = 1, OP_ZERO, OP_FLUSH, OP_MARK };

static const char *const op_names[] = {"", "write", "zero", "flush", "mark"};

/* In the log: this, then len bytes for OP_WRITE and OP_MARK. */
struct op {
    uint32_t type;
    uint32_t file;
    uint64_t offset;
    uint64_t len;
    uint64_t time_ns; /* CLOCK_MONOTONIC */
};

static struct {
    char work[PATH_MAX];
    char names[FILES_MAX][NAME_LEN_MAX];
    size_t count;
    int fds[FILES_MAX]; /* live images */
    int log_fd;
    uint64_t ops, flushes;
    uint64_t cut_at, cut_at_flush; /* UINT64_MAX: not planned */
    bool cut;
} sim = {.log_fd = -1, .cut_at = UINT64_MAX, .cut_at_flush = UINT64_MAX};

static _Noreturn void die(const char *what)
{
    (void)fprintf(stderr, "powercut: %s: %m\n", what);
    exit(1);
}

/* --- files of WORK ------------------------------------------------------------------------------
 */

static int compare_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* The images in WORK/base, sorted: their index is the file number in the log. */
static void load_names(const char *work)
{
    char path[PATH_MAX + 16];
    (void)snprintf(sim.work, sizeof(sim.work), "%s", work);
    (void)snprintf(path, sizeof(path), "%s/base", work);
    DIR *dir = opendir(path);
    if (dir == NULL)
        die(path);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        if (sim.count == FILES_MAX || strlen(entry->d_name) >= NAME_LEN_MAX) {
            errno = E2BIG;
            die(entry->d_name);
        }
        (void)snprintf(sim.names[sim.count++], NAME_LEN_MAX, "%.63s", entry->d_name);
    }
    (void)closedir(dir);
    qsort(sim.names, sim.count, NAME_LEN_MAX, compare_names);
}

static int open_in(const char *part, const char *name, int flags)
{
    char path[PATH_MAX + 2 * NAME_LEN_MAX];
    (void)snprintf(path, sizeof(path), "%s/%s%s%s", sim.work, part, name[0] != '\0' ? "/" : "",
                   name);
    int fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd < 0)
        die(path);
    return fd;
}

/* --- serving ------------------------------------------------------------------------------------
 */

static int find_file(const char *path)
{
    for (size_t i = 0; i < sim.count; i++)
        if (path[0] == '/' && strcmp(path + 1, sim.names[i]) == 0)
            return (int)i;
    return -1;
}

static bool is_control(const char *path)
{
    return strcmp(path, "/.control") == 0;
}

static void log_op(enum op_type type, uint32_t file, uint64_t offset, uint64_t len,
                   const void *data)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    struct op op = {.type = type,
                    .file = file,
                    .offset = offset,
                    .len = len,
                    .time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec};
    struct iovec iov[2] = {{.iov_base = &op, .iov_len = sizeof(op)},
                           {.iov_len = data != NULL ? len : 0}};
    memcpy(&iov[1].iov_base, &data, sizeof(data)); /* writev does not write to it */
    if (writev(sim.log_fd, iov, 2) != (ssize_t)(sizeof(op) + iov[1].iov_len))
        die("write the log");
    sim.ops++;
}

/* Counts the operation that is about to happen; true when the power goes before it. */
static bool is_cut(bool flush)
{
    if (!sim.cut && (sim.ops >= sim.cut_at || (flush && sim.flushes + 1 >= sim.cut_at_flush))) {
        sim.cut = true;
        sim.cut_at = sim.ops;
    }
    return sim.cut;
}

static int on_getattr(const char *path, struct stat *st, struct fuse_file_info *info)
{
    (void)info;
    memset(st, 0, sizeof(*st));
    int file = find_file(path);
    if (strcmp(path, "/") == 0) {
        st->st_mode = S_IFDIR | 0755;
        st->st_nlink = 2;
        return 0;
    }
    if (file >= 0 && fstat(sim.fds[file], st) < 0)
        return -errno;
    if (file < 0 && !is_control(path))
        return -ENOENT;
    st->st_mode = S_IFREG | 0600;
    st->st_nlink = 1;
    return 0;
}

static int on_readdir(const char *path, void *buf, fuse_fill_dir_t fill, off_t offset,
                      struct fuse_file_info *info, enum fuse_readdir_flags flags)
{
    (void)path, (void)offset, (void)info, (void)flags;
    for (size_t i = 0; i < sim.count; i++)
        (void)fill(buf, sim.names[i], NULL, 0, 0);
    return 0;
}

/* Nothing stays in the host's page cache: a write is here when it has returned. */
static int on_open(const char *path, struct fuse_file_info *info)
{
    info->direct_io = 1;
    return find_file(path) >= 0 || is_control(path) ? 0 : -ENOENT;
}

/* Opening with O_TRUNC (a shell's redirection) and setting the size there already is are harmless.
 */
static int on_truncate(const char *path, off_t size, struct fuse_file_info *info)
{
    (void)info;
    struct stat st;
    int file = find_file(path);
    if (is_control(path))
        return 0;
    if (file < 0)
        return -ENOENT;
    return fstat(sim.fds[file], &st) == 0 && st.st_size == size ? 0 : -EPERM;
}

static int on_read(const char *path, char *buf, size_t len, off_t offset,
                   struct fuse_file_info *info)
{
    (void)info;
    int file = find_file(path);
    if (file < 0) {
        char text[128];
        int n = snprintf(text, sizeof(text), "ops=%llu flushes=%llu cut=%lld\n",
                         (unsigned long long)sim.ops, (unsigned long long)sim.flushes,
                         sim.cut ? (long long)sim.cut_at : -1LL);
        size_t left = offset < n ? (size_t)(n - offset) : 0;
        size_t copied = len < left ? len : left;
        memcpy(buf, text + (left > 0 ? offset : 0), copied);
        return (int)copied;
    }
    if (sim.cut)
        return -EIO;
    ssize_t n = pread(sim.fds[file], buf, len, offset);
    return n < 0 ? -errno : (int)n;
}

static int control(const char *buf, size_t len)
{
    char text[256];
    unsigned long long number;
    (void)snprintf(text, sizeof(text), "%.*s", (int)(len < 255 ? len : 255), buf);
    text[strcspn(text, "\n")] = '\0';
    if (strcmp(text, "cut") == 0)
        sim.cut_at = sim.ops;
    else if (sscanf(text, "cut-at-flush %llu", &number) == 1)
        sim.cut_at_flush = number;
    else if (sscanf(text, "cut-at %llu", &number) == 1)
        sim.cut_at = number;
    else if (strncmp(text, "mark ", 5) == 0 && !sim.cut)
        log_op(OP_MARK, 0, 0, strlen(text + 5), text + 5);
    else
        return -EINVAL;
    (void)is_cut(false);
    return (int)len;
}

static int on_write(const char *path, const char *buf, size_t len, off_t offset,
                    struct fuse_file_info *info)
{
    (void)info;
    int file = find_file(path);
    if (file < 0)
        return control(buf, len);
    if (is_cut(false))
        return -EIO;
    ssize_t n = pwrite(sim.fds[file], buf, len, offset);
    if (n != (ssize_t)len)
        return -EIO;
    log_op(OP_WRITE, (uint32_t)file, (uint64_t)offset, len, buf);
    return (int)len;
}

static int on_fsync(const char *path, int data_only, struct fuse_file_info *info)
{
    (void)data_only, (void)info;
    int file = find_file(path);
    if (file < 0)
        return 0;
    if (is_cut(true))
        return -EIO;
    sim.flushes++;
    log_op(OP_FLUSH, (uint32_t)file, 0, 0, NULL);
    return 0;
}

/* Discards and write-zeroes of the loop device. */
static int on_fallocate(const char *path, int mode, off_t offset, off_t len,
                        struct fuse_file_info *info)
{
    (void)info;
    int file = find_file(path);
    if (file < 0 || !(mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)))
        return -EOPNOTSUPP;
    if (is_cut(false))
        return -EIO;
    if (fallocate(sim.fds[file], mode | FALLOC_FL_KEEP_SIZE, offset, len) < 0)
        return -errno;
    log_op(OP_ZERO, (uint32_t)file, (uint64_t)offset, (uint64_t)len, NULL);
    return 0;
}

static const struct fuse_operations operations = {
    .getattr = on_getattr,
    .readdir = on_readdir,
    .open = on_open,
    .truncate = on_truncate,
    .read = on_read,
    .write = on_write,
    .fsync = on_fsync,
    .fallocate = on_fallocate,
};

static int serve(char *program, const char *work, char *mount)
{
    load_names(work);
    for (size_t i = 0; i < sim.count; i++)
        sim.fds[i] = open_in("live", sim.names[i], O_RDWR);
    sim.log_fd = open_in("log", "", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND);
    char foreground[] = "-f", single[] = "-s", options[] = "-oallow_other,fsname=powercut";
    char *argv[] = {program, foreground, single, options, mount, NULL};
    return fuse_main(5, argv, &operations, NULL);
}

/* --- the log ------------------------------------------------------------------------------------
 */

struct reader {
    FILE *file;
    struct op op;
    uint64_t index; /* of op */
    char *data;     /* of op; grows */
    size_t capacity;
};

static void reader_open(struct reader *reader)
{
    *reader =
        (struct reader){.file = fdopen(open_in("log", "", O_RDONLY), "r"), .index = UINT64_MAX};
    if (reader->file == NULL)
        die("open the log");
}

/* False at the end; a record cut off by the death of the server is the end too. */
static bool reader_next(struct reader *reader)
{
    struct op *op = &reader->op;
    if (fread(op, sizeof(*op), 1, reader->file) != 1)
        return false;
    reader->index++;
    if (op->type != OP_WRITE && op->type != OP_MARK)
        return true;
    if (op->len > reader->capacity) {
        reader->capacity = op->len;
        reader->data = realloc(reader->data, reader->capacity);
        if (reader->data == NULL)
            die("memory");
    }
    return op->len == 0 || fread(reader->data, op->len, 1, reader->file) == 1;
}

static void reader_close(struct reader *reader)
{
    (void)fclose(reader->file);
    free(reader->data);
}

static int print_log(const char *work)
{
    struct reader reader;
    load_names(work);
    reader_open(&reader);
    while (reader_next(&reader)) {
        const struct op *op = &reader.op;
        (void)printf("%llu %llu.%06llu %s", (unsigned long long)reader.index,
                     (unsigned long long)(op->time_ns / 1000000000),
                     (unsigned long long)(op->time_ns / 1000 % 1000000), op_names[op->type]);
        if (op->type == OP_MARK)
            (void)printf(" %.*s\n", (int)op->len, reader.data);
        else
            (void)printf(" %s %llu %llu\n", sim.names[op->file], (unsigned long long)op->offset,
                         (unsigned long long)op->len);
    }
    reader_close(&reader);
    return 0;
}

/* --- the cut ------------------------------------------------------------------------------------
 */

/* splitmix64 (Steele, Lea, Flood 2014) of all that a decision depends on. */
static uint64_t mix(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t z = a * 0x9e3779b97f4a7c15u + b * 0xbf58476d1ce4e5b9u + c * 0x94d049bb133111ebu;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* What a seed stands for. */
struct fate {
    uint64_t seed;
    uint64_t unit;          /* bytes that survive or vanish together; 0 = the whole write */
    uint64_t keep_per_mill; /* chance of each to survive */
    bool in_order;          /* all up to a random operation survive, the rest vanishes */
};

static struct fate fate_of(uint64_t seed, bool torn)
{
    static const uint64_t units[] = {0, 4096, SECTOR}, chances[] = {125, 500, 875};
    struct fate fate = {.seed = seed,
                        .unit = units[mix(seed, 1, 0) % 3],
                        .keep_per_mill = chances[mix(seed, 2, 0) % 3],
                        .in_order = mix(seed, 3, 0) % 4 == 0};
    if (torn) {
        fate.unit = SECTOR;
        fate.in_order = false;
    }
    if (seed <= 1)
        fate = (struct fate){.seed = seed, .keep_per_mill = seed * 1000};
    return fate;
}

static bool survives(const struct fate *fate, uint64_t index, uint64_t unit, uint64_t last_flush,
                     uint64_t at)
{
    if (fate->in_order)
        return index < last_flush + mix(fate->seed, 4, 0) % (at - last_flush + 1);
    return mix(fate->seed, index + 16, unit) % 1000 < fate->keep_per_mill;
}

static void apply(int fd, const struct op *op, const char *data, uint64_t from, uint64_t len)
{
    if (op->type == OP_ZERO) {
        if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(op->offset + from),
                      (off_t)len) < 0)
            die("zero a range");
    } else if (pwrite(fd, data + from, len, (off_t)(op->offset + from)) != (ssize_t)len) {
        die("write an image");
    }
}

/* Writes that no flush covers, unit by unit; a discard is one unit. */
static void apply_unflushed(int fd, const struct reader *reader, const struct fate *fate,
                            uint64_t last_flush, uint64_t at)
{
    const struct op *op = &reader->op;
    uint64_t unit = fate->unit == 0 || op->type == OP_ZERO ? op->len : fate->unit;
    for (uint64_t from = 0; from < op->len; from += unit)
        if (survives(fate, reader->index, from / unit, last_flush, at))
            apply(fd, op, reader->data, from, min_u64(unit, op->len - from));
}

/* Operation after the last flush before `at`, per file: everything before it is durable. */
static void find_flushes(uint64_t at, uint64_t *ret, uint64_t *ret_end)
{
    struct reader reader;
    reader_open(&reader);
    memset(ret, 0, FILES_MAX * sizeof(*ret));
    while (reader_next(&reader) && reader.index < at)
        if (reader.op.type == OP_FLUSH)
            ret[reader.op.file] = reader.index + 1;
    *ret_end = min_u64(at, reader.index + 1);
    reader_close(&reader);
}

static int copy_base(const char *name, const char *out)
{
    char path[PATH_MAX + NAME_LEN_MAX];
    (void)snprintf(path, sizeof(path), "%s/%s", out, name);
    close_fd int from = open_in("base", name, O_RDONLY);
    int to = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    struct stat st;
    if (to < 0 || fstat(from, &st) < 0 || ftruncate(to, st.st_size) < 0)
        die(path);
    for (off_t at = 0; (at = lseek(from, at, SEEK_DATA)) >= 0;) {
        off_t end = lseek(from, at, SEEK_HOLE), out_at = at;
        while (at < end)
            if (copy_file_range(from, &at, to, &out_at, (size_t)(end - at), 0) <= 0)
                die(path);
    }
    return to;
}

static int cut(const char *work, const char *out, uint64_t at, uint64_t seed, bool torn)
{
    uint64_t flushes[FILES_MAX], end;
    int fds[FILES_MAX];
    struct fate fate = fate_of(seed, torn);
    load_names(work);
    if (mkdir(out, 0755) < 0 && errno != EEXIST)
        die(out);
    find_flushes(at, flushes, &end);
    for (size_t i = 0; i < sim.count; i++)
        fds[i] = copy_base(sim.names[i], out);
    struct reader reader;
    reader_open(&reader);
    while (reader_next(&reader) && reader.index < end) {
        const struct op *op = &reader.op;
        if (op->type != OP_WRITE && op->type != OP_ZERO)
            continue;
        if (reader.index < flushes[op->file])
            apply(fds[op->file], op, reader.data, 0, op->len);
        else
            apply_unflushed(fds[op->file], &reader, &fate, flushes[op->file], end);
    }
    reader_close(&reader);
    for (size_t i = 0; i < sim.count; i++)
        if (close(fds[i]) < 0)
            die(sim.names[i]);
    (void)printf("cut at=%llu seed=%llu unit=%llu keep=%llu%s\n", (unsigned long long)end,
                 (unsigned long long)seed, (unsigned long long)fate.unit,
                 (unsigned long long)fate.keep_per_mill, fate.in_order ? " in order" : "");
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"at", required_argument, NULL, 'a'},
                                            {"seed", required_argument, NULL, 's'},
                                            {"torn", no_argument, NULL, 't'},
                                            {0}};
    uint64_t at = UINT64_MAX, seed = 0;
    bool torn = false;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'a')
            at = strtoull(optarg, NULL, 10);
        else if (c == 's')
            seed = strtoull(optarg, NULL, 10);
        else if (c == 't')
            torn = true;
        else
            return 2;
    }
    int count = argc - optind;
    char **args = argv + optind;
    if (count == 3 && strcmp(args[0], "serve") == 0)
        return serve(argv[0], args[1], args[2]);
    if (count == 3 && strcmp(args[0], "cut") == 0)
        return cut(args[1], args[2], at, seed, torn);
    if (count == 2 && strcmp(args[0], "log") == 0)
        return print_log(args[1]);
    (void)fputs("usage: tool_powercut serve WORK MOUNT | cut WORK OUT [--at=OP] [--seed=N] "
                "[--torn] | log "
                "WORK\n",
                stderr);
    return 2;
}
