/* What a fence does for WAL that it finds in the archive: its name is made durable before the only
 * other copy is overwritten. On a directory store. */
#include "agent/restore.h"
#include "tests/tap.h"
#include "tests/unit/wal_fixture.h"

#include <errno.h>
#include <sys/syscall.h>

static struct err err;
static struct restore restore;
static struct job job;
static uint8_t raw[SEGMENT];

/* Called instead of libc's: counts the flushes of the directories of timelines 1 and 2, of which
 * the second's fail when failing. */
static struct stat watched[2];
static unsigned flushes[2];
static bool failing;
int fsync(int fd)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(watched); i++) {
        bool hit = st.st_dev == watched[i].st_dev && st.st_ino == watched[i].st_ino;
        flushes[i] += hit;
        if (hit && i == 1 && failing) {
            errno = EIO;
            return -1;
        }
    }
    return (int)syscall(SYS_fsync, fd);
}

static void watch(const struct fixture *f)
{
    for (uint32_t i = 0; i < ARRAY_LEN(watched); i++) {
        char path[512];
        (void)snprintf(path, sizeof(path), "%s/repo/wal/main/%llu/%08X", f->dir, SYSTEM_ID, i + 1);
        flushes[i] = 0;
        if (stat(path, &watched[i]) < 0)
            abort();
    }
}

/* A file of pg_wal; archived: the archive has it as well. */
static void add(struct fixture *f, const char *name, const void *ptr, size_t len, bool archived)
{
    char path[512];
    (void)snprintf(path, sizeof(path), "%s/pg_wal/%s", f->dir, name);
    write_bytes(path, ptr, len);
    if (archived)
        is_good(wal_push(&f->archive, path, name, &err), &err, "%s is archived", name);
}

static void add_segment(struct fixture *f, uint32_t timeline, uint64_t number, bool archived)
{
    char name[PG_SEGMENT_TEXT];
    make_segment(raw, timeline, number, (uint8_t)number);
    pg_segment_name(timeline, number, SEGMENT, name);
    add(f, name, raw, SEGMENT, archived);
}

static bool open_all(struct fixture *f, char *directory, size_t len)
{
    if (!fixture_open(f, &err))
        return false;
    (void)snprintf(directory, len, "%s/pg_wal", f->dir);
    (void)snprintf(restore.data_directory, sizeof(restore.data_directory), "%s", f->dir);
    restore.job = &job;
    restore.archive = f->archive;
    restore.record.segment_size = SEGMENT;
    restore.record.system_id = SYSTEM_ID;
    return mkdir(directory, 0700) == 0;
}

static void test_found(struct fixture *f, const char *directory)
{
    uint64_t pushed = 0;
    for (uint64_t number = 1; number <= 3; number++)
        add_segment(f, 1, number, true);
    add_segment(f, 2, 3, true);
    add_segment(f, 2, 4, true);
    watch(f);
    is_good(restore_salvage(&restore, directory, &pushed, &err), &err, "all WAL is archived");
    is_u64(pushed, 0, "nothing is pushed");
    is_u64(flushes[0], 1, "the names of timeline 1 are flushed, once");
    is_u64(flushes[1], 1, "and those of timeline 2");
    failing = true;
    is_err(restore_salvage(&restore, directory, &pushed, &err), &err, ERR_STORE,
           "flush the directory", "where that fails nothing may be overwritten");
    restore.request.discard_unarchived_wal = true;
    is_err(restore_salvage(&restore, directory, &pushed, &err), &err, ERR_STORE,
           "cannot be saved (000000020000000000000004)",
           "and it counts as lost where that is asked");
    restore.request.discard_unarchived_wal = false;
    failing = false;
}

/* It is looked at by itself, between the names of the directory. */
static void test_history(struct fixture *f, const char *directory)
{
    static const char history[] = "1\t0/300000\tno recovery target specified\n";
    uint64_t pushed = 0;
    add(f, "00000002.history", history, sizeof(history) - 1, true);
    watch(f);
    is_good(restore_salvage(&restore, directory, &pushed, &err), &err, "a history file as well");
    is_u64(flushes[1], 2, "its name is flushed, too");
}

int main(void)
{
    struct fixture f;
    char directory[128];
    if (!open_all(&f, directory, sizeof(directory))) {
        printf("Bail out! %s\n", err.text);
        return 255;
    }
    test_found(&f, directory);
    test_history(&f, directory);
    fixture_close(&f);
    return done();
}
