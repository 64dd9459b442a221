/* The WAL archive on a directory store: names, push, get, presence, ranges over a fork, histories.
 */
#include "tests/tap.h"
#include "tests/unit/wal_fixture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>

#include "agent/wal_page.h"

static uint8_t raw[SEGMENT], back[SEGMENT + 1];
static struct err err;

/* Called instead of libc's: counts the flushes of what is watched, which fail when failing. */
static struct stat watched;
static unsigned flushes;
static bool failing;
int fsync(int fd)
{
    struct stat st;
    bool hit = fstat(fd, &st) == 0 && st.st_dev == watched.st_dev && st.st_ino == watched.st_ino;
    flushes += hit;
    if (hit && failing) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_fsync, fd);
}

static void watch(const struct fixture *f, const char *directory)
{
    char path[512];
    (void)snprintf(path, sizeof(path), "%s/repo/%s", f->dir, directory);
    flushes = 0;
    if (stat(path, &watched) < 0)
        abort();
}

static void test_names(void)
{
    static const struct {
        const char *name;
        int kind; /* -1 = invalid */
        uint32_t timeline;
    } cases[] = {
        {"000000010000000000000001", WAL_SEGMENT, 1},
        {"0000000A0000000000000001.partial", WAL_PARTIAL, 10},
        {"0000000A0000000000000001.00A00F30.partial", WAL_PARTIAL, 10},
        {"000000010000000000000001.00000028.backup", WAL_BACKUP, 1},
        {"00000002.history", WAL_HISTORY, 2},
        {"", -1, 0},
        {"00000000.history", -1, 0},
        {"0000002.history", -1, 0},
        {"00000002.history.tmp", -1, 0},
        {"00000001000000000000000a", -1, 0},
        {"000000010000000000000001.0000028.backup", -1, 0},
        {"000000010000000000000001.00000028.backupx", -1, 0},
        {"000000010000000000000001.partial.partial", -1, 0},
        {"000000010000000000000001.0A00F30.partial", -1, 0},
        {"000000010000000000000001.00a00f30.partial", -1, 0},
        {"000000010000000000000001.00A00F30.partialx", -1, 0},
        {"000000010000000000000001.00A00F30", -1, 0},
        {"000000010000000000000001.", -1, 0},
        {"../00000002.history", -1, 0},
        {"RECOVERYXLOG", -1, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        enum wal_kind kind = WAL_SEGMENT;
        uint32_t timeline = 0;
        bool valid = wal_name_parse(cases[i].name, &kind, &timeline);
        ok(valid == (cases[i].kind >= 0) &&
               (!valid || ((int)kind == cases[i].kind && timeline == cases[i].timeline)),
           "name '%s'", cases[i].name);
    }
}

static void test_page(void)
{
    static const char name[] = "000000020000000000000005";
    struct wal_page page;
    make_segment(raw, 2, 5, 0);
    is_good(wal_page_check(raw, SEGMENT, name, SYSTEM_ID, SEGMENT, &err), &err, "a good page");
    is_good(wal_page_decode(raw, SEGMENT, &page, &err), &err, "decodes");
    is_u64(page.address, 5 * SEGMENT, "its address");
    put_le32(raw + 4, 1);
    is_good(wal_page_check(raw, SEGMENT, name, SYSTEM_ID, SEGMENT, &err), &err,
            "the parent's timeline is fine after a fork");
    put_le32(raw + 4, 3);
    is_err(wal_page_check(raw, SEGMENT, name, SYSTEM_ID, SEGMENT, &err), &err, ERR_CORRUPT,
           "timeline 3", "a child's timeline is not");
    make_segment(raw, 2, 6, 0);
    is_err(wal_page_check(raw, SEGMENT, name, SYSTEM_ID, SEGMENT, &err), &err, ERR_CORRUPT,
           "0/600000", "another address");
    make_segment(raw, 2, 5, 0);
    is_err(wal_page_check(raw, SEGMENT, name, 1, SEGMENT, &err), &err, ERR_CORRUPT,
           "belongs to system", "another system");
    is_err(wal_page_check(raw, SEGMENT, name, SYSTEM_ID, SEGMENT - 1, &err), &err, ERR_CORRUPT,
           "header says 1048576", "another size");
    is_err(wal_page_check(raw, 39, name, SYSTEM_ID, SEGMENT, &err), &err, ERR_CORRUPT, "39 bytes",
           "too short");
    put_le32(raw + 32, 3 << 20);
    is_err(wal_page_decode(raw, SEGMENT, &page, &err), &err, ERR_CORRUPT, "segment size",
           "an impossible segment size");
    make_segment(raw, 2, 5, 0);
    raw[0] = 0x0D; /* PostgreSQL 14 */
    is_err(wal_page_decode(raw, SEGMENT, &page, &err), &err, ERR_CORRUPT, "magic is D10D",
           "an old server's magic");
    raw[0] = 0x18;
    is_good(wal_page_decode(raw, SEGMENT, &page, &err), &err, "PostgreSQL 18's magic");
    raw[2] = 0;
    is_err(wal_page_decode(raw, SEGMENT, &page, &err), &err, ERR_CORRUPT, "no long header",
           "a short header");
    memset(raw, 0, SEGMENT);
    is_err(wal_page_decode(raw, SEGMENT, &page, &err), &err, ERR_CORRUPT, "magic is 0000", "zeros");
}

static bool came_back(struct fixture *f, const char *name, const void *want, size_t len)
{
    char to[256];
    snprintf(to, sizeof(to), "%s/back", f->dir);
    int rc = wal_get(&f->archive, name, to, false, &err);
    return rc == 0 && read_bytes(to, back) == len && memcmp(back, want, len) == 0;
}

static void test_push_get(struct fixture *f)
{
    static const char name[] = "000000010000000000000003";
    make_segment(raw, 1, 3, 1);
    is_err(wal_check(&f->archive, name, &err), &err, ERR_MISSING, name, "absent at first");
    is_good(push_bytes(f, name, raw, SEGMENT, &err), &err, "a segment is pushed");
    is_good(push_bytes(f, name, raw, SEGMENT, &err), &err, "the same again is fine");
    is_good(wal_check(&f->archive, name, &err), &err, "it is there");
    ok(came_back(f, name, raw, SEGMENT), "and comes back: %s", err.text);
    raw[SEGMENT - 1] ^= 1;
    is_err(push_bytes(f, name, raw, SEGMENT, &err), &err, ERR_REFUSED, "holds another",
           "other bytes under the same name are refused");
    raw[SEGMENT - 1] ^= 1;
    ok(came_back(f, name, raw, SEGMENT), "and the first stay");
    is_err(push_bytes(f, "000000010000000000000004", raw, SEGMENT, &err), &err, ERR_REFUSED,
           "its header says", "a segment under a wrong name");
    is_err(push_bytes(f, name, raw, SEGMENT - 8192, &err), &err, ERR_REFUSED, "header says 1048576",
           "a short segment");
    is_err(push_bytes(f, "nonsense", raw, SEGMENT, &err), &err, ERR_USAGE, "not the name",
           "a name that is none");
    is_err(wal_push(&f->archive, "/nonexistent/x", name, &err), &err, ERR_DEVICE, "open",
           "no such file");
    is_good(push_bytes(f, "000000010000000000000003.partial", raw, SEGMENT, &err), &err,
            ".partial");
    static const char backup[] = "START WAL LOCATION: 0/300028 (file 000000010000000000000003)\n";
    is_good(
        push_bytes(f, "000000010000000000000003.00000028.backup", backup, sizeof(backup) - 1, &err),
        &err, ".backup");
    is_err(push_bytes(f, "000000010000000000000003.00000029.backup", "x", 1, &err), &err,
           ERR_REFUSED, "no backup history", "a .backup that is none");
    ok(came_back(f, "000000010000000000000003.partial", raw, SEGMENT) &&
           came_back(f, "000000010000000000000003.00000028.backup", backup, sizeof(backup) - 1),
       "both come back");
    is_err(push_bytes(f, "00000002.history", "1\tx\n", 4, &err), &err, ERR_REFUSED,
           "malformed line", "a .history that is none");
}

/* Who pushes what is there already answers for it as well: the first pusher may have died between
 * the name and its flush. Each with a store of its own, as archive_command has. */
static void test_push_again(struct fixture *f)
{
    static const char name[] = "000000010000000000000003";
    static const char *const directories[] = {"", "wal", "wal/main", "wal/main/7345678901234567890",
                                              "wal/main/7345678901234567890/00000001"};
    struct store *first = f->archive.store;
    make_segment(raw, 1, 3, 1);
    for (size_t i = 0; i < ARRAY_LEN(directories); i++) {
        is_good(store_open(f->url, NULL, false, &f->archive.store, &err), &err, "a later pusher");
        watch(f, directories[i]);
        is_good(push_bytes(f, name, raw, SEGMENT, &err), &err, "finds its segment");
        ok(flushes > 0, "and flushes 'repo/%s' before it says so", directories[i]);
        flushes = 0;
        is_good(push_bytes(f, name, raw, SEGMENT, &err), &err, "once more");
        is_u64(flushes, i + 1 == ARRAY_LEN(directories),
               "its own directory alone is flushed again");
        store_close(f->archive.store);
    }
    f->archive.store = first;
    failing = true;
    is_err(push_bytes(f, name, raw, SEGMENT, &err), &err, ERR_STORE, "flush the directory",
           "where that fails nothing is promised");
    is_err(wal_flush_name(&f->archive, name, &err), &err, ERR_STORE, "flush the directory",
           "nor to who only looked");
    failing = false;
    is_good(wal_flush_name(&f->archive, name, &err), &err, "and later it is");
    memset(&watched, 0, sizeof(watched));
}

/* The first page_count pages of segment 9, with bytes of the last one up to end: what a server has
 * written of it. */
static void make_started(uint64_t page_count, size_t end)
{
    make_segment(raw, 1, 9, 0);
    memset(raw + WAL_PAGE_HEADER_LEN, 0, SEGMENT - WAL_PAGE_HEADER_LEN);
    for (uint64_t i = 0; i < page_count; i++) {
        uint8_t *page = raw + i * WAL_PAGE_LEN;
        size_t len = i + 1 < page_count ? WAL_PAGE_LEN : end;
        memset(page + WAL_PAGE_HEADER_LEN, (int)(0x41 + i), len - WAL_PAGE_HEADER_LEN);
        put_le64(page + 8, 9 * SEGMENT + i * WAL_PAGE_LEN);
    }
}

static int push_started(struct fixture *f, bool behind, char ret_name[WAL_NAME_MAX + 1])
{
    static const char segment[] = "000000010000000000000009";
    write_bytes(f->path, raw, SEGMENT);
    return wal_partial_push(&f->archive, f->path, segment, behind, ret_name, &err);
}

/* What has grown is one more object, and none is ever replaced. */
static void test_partial(struct fixture *f)
{
    char name[WAL_NAME_MAX + 1] = "";
    static uint8_t first[SEGMENT], second[SEGMENT];
    is_u64(wal_partial_number("000000010000000000000009.partial"), 0, "PostgreSQL's own name");
    is_u64(wal_partial_number("000000010000000000000009.00002100.partial"), 0x2100, "a number");
    make_started(2, 0x100);
    is_u64(wal_partial_len(raw, SEGMENT, 9 * SEGMENT), 0x2100, "the length of what was written");
    memcpy(first, raw, SEGMENT);
    is_good(push_started(f, false, name), &err, "the first");
    is_str(name, "000000010000000000000009.00002100.partial", "is named after its end");
    is_good(push_started(f, false, name), &err, "the same again");
    is_str(name, "", "is there");
    watch(f, "wal/main/7345678901234567890/00000001");
    is_good(push_started(f, false, name), &err, "and once more");
    is_u64(flushes, 1, "its name is flushed before that is said");
    make_started(3, 0x200);
    memcpy(second, raw, SEGMENT);
    is_good(push_started(f, false, name), &err, "it has grown");
    is_str(name, "000000010000000000000009.00004200.partial", "and has another name");
    ok(came_back(f, "000000010000000000000009.00002100.partial", first, SEGMENT) &&
           came_back(f, "000000010000000000000009.00004200.partial", second, SEGMENT),
       "both are there");
    make_started(3, 0x180); /* the last page was half a record when the machine crashed */
    is_good(push_started(f, false, name), &err, "its last page was written anew");
    is_str(name, "000000010000000000000009.00004201.partial",
           "the last one counts, not the longer");
    make_started(2, 0x200);
    is_err(push_started(f, false, name), &err, ERR_REFUSED, "other WAL", "fewer pages");
    is_good(push_started(f, true, name), &err, "a standby may have fewer");
    is_str(name, "", "and nothing is pushed");
    make_started(4, 0x200);
    raw[WAL_PAGE_LEN + 100] ^= 1;
    is_err(push_started(f, true, name), &err, ERR_REFUSED, "00004201.partial", "another page");
    write_bytes(f->path, raw, SEGMENT);
    is_err(wal_partial_push(&f->archive, f->path, "000000010000000000000008", false, name, &err),
           &err, ERR_REFUSED, "its header says", "its content is looked at as that of a push");
}

static void test_lost_repository(struct fixture *f)
{
    char from[256], aside[256], to[256];
    snprintf(from, sizeof(from), "%s/repo/tidemark.repo", f->dir);
    snprintf(aside, sizeof(aside), "%s/aside", f->dir);
    snprintf(to, sizeof(to), "%s/back", f->dir);
    is_err(wal_get(&f->archive, "0000000100000000000000AA", to, false, &err), &err, ERR_MISSING,
           "does not hold", "absence is confirmed");
    struct repo other = f->repo;
    other.id[0] ^= 1;
    struct wal_archive archive = f->archive;
    archive.repo = &other;
    is_err(wal_get(&archive, "0000000100000000000000AA", to, false, &err), &err, ERR_STORE,
           "another repository", "not by a repository with another id");
    char copy[256], copy_aside[256];
    snprintf(copy, sizeof(copy), "%s/repo/tidemark.repo.copy", f->dir);
    snprintf(copy_aside, sizeof(copy_aside), "%s/aside.copy", f->dir);
    ok(rename(from, aside) == 0, "tidemark.repo goes away");
    is_err(wal_get(&f->archive, "0000000100000000000000AA", to, false, &err), &err, ERR_MISSING,
           "does not hold", "its copy is enough");
    ok(rename(copy, copy_aside) == 0, "the copy too");
    is_err(wal_get(&f->archive, "0000000100000000000000AA", to, false, &err), &err, ERR_STORE, "",
           "then nothing is absent for sure");
    ok(rename(aside, from) == 0 && rename(copy_aside, copy) == 0, "both are back");
}

/* A flipped bit in any 97th byte of an object is found by get, in the head also by check. */
static void test_damage(struct fixture *f)
{
    char path[512], to[256];
    static uint8_t object[SEGMENT * 2];
    snprintf(path, sizeof(path), "%s/repo/wal/main/%llu/00000001/000000010000000000000003", f->dir,
             SYSTEM_ID);
    snprintf(to, sizeof(to), "%s/back", f->dir);
    size_t len = read_bytes(path, object);
    ok(len > 1000 && chmod(path, 0600) == 0, "the object has %zu bytes", len);
    unsigned missed = 0;
    for (size_t i = 0; i < len; i += 97) {
        object[i] ^= 0x10;
        write_bytes(path, object, len);
        int rc = wal_get(&f->archive, "000000010000000000000003", to, false, &err);
        missed += rc != -ERR_CORRUPT && rc != -ERR_REFUSED;
        object[i] ^= 0x10;
    }
    is_u64(missed, 0, "every flip is found");
    for (size_t cut = 0; cut < len; cut += len / 40) {
        write_bytes(path, object, cut);
        int rc = wal_get(&f->archive, "000000010000000000000003", to, false, &err);
        missed += rc != -ERR_CORRUPT;
        missed += wal_check(&f->archive, "000000010000000000000003", &err) != -ERR_CORRUPT;
    }
    is_u64(missed, 0, "every cut is found, by check as well");
    make_segment(raw, 1, 3, 1);
    write_bytes(path, object, 100);
    is_err(push_bytes(f, "000000010000000000000003", raw, SEGMENT, &err), &err, ERR_CORRUPT, "",
           "a push on top of a damaged object says so");
    write_bytes(path, object, len);
    ok(came_back(f, "000000010000000000000003", raw, SEGMENT), "intact again");
}

static int parse(uint32_t timeline, const char *text, struct wal_history *history)
{
    return wal_history_parse(timeline, text, strlen(text), history, &err);
}

static void test_history_text(void)
{
    struct wal_history *h = malloc(sizeof(*h));
    is_good(parse(3, "1\t0/3000000\tno recovery target\n\n# x\n2\t1/5000028\tbefore 2000\n", h),
            &err, "a history");
    ok(h->count == 2 && h->entries[1].parent == 2 && h->entries[1].switch_lsn == 0x105000028,
       "its entries");
    is_u64(wal_history_owner(h, 0), 1, "owner at the beginning");
    is_u64(wal_history_owner(h, 0x2FFFFFF), 1, "owner before the first fork");
    is_u64(wal_history_owner(h, 0x3000000), 2, "owner at the fork");
    is_u64(wal_history_owner(h, 0x105000028), 3, "owner after the second fork");
    is_good(parse(2, "1\t0/3000000", h), &err, "no newline at the end, no reason");
    is_good(parse(4, "1\t0/900\n2\t0/A00\n3\t0/200\n", h), &err, "a target before two forks");
    ok(h->count == 1 && h->entries[0].parent == 1 && h->entries[0].switch_lsn == 0x200,
       "it left the timeline that holds it");
    is_good(parse(4, "1\t0/100\n2\t0/900\n3\t0/200\n", h), &err, "a target between two forks");
    ok(h->count == 2 && h->entries[0].switch_lsn == 0x100 && h->entries[1].parent == 2 &&
           h->entries[1].switch_lsn == 0x200,
       "it left the second");
    static const struct {
        uint32_t timeline;
        const char *text, *message;
    } bad[] = {
        {2, "", "no ancestors"},
        {2, "# only\n", "no ancestors"},
        {2, "x\t0/1\n", "malformed"},
        {2, "1\n", "malformed"},
        {2, "1\t0-1\n", "malformed"},
        {2, "-1\t0/1\n", "malformed"},
        {2, "2\t0/1\n", "out of order"},
        {2, "0\t0/1\n", "out of order"},
        {4, "2\t0/1\n1\t0/2\n", "out of order"},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        is_err(parse(bad[i].timeline, bad[i].text, h), &err, ERR_CORRUPT, bad[i].message,
               "bad history %zu", i);
    is_err(wal_history_parse(2, "1\t0/1\0\n", 7, h, &err), &err, ERR_CORRUPT, "binary", "a NUL");
    char *many = malloc(40 * 1100);
    size_t len = 0;
    for (int i = 1; i <= 1025; i++)
        len += (size_t)sprintf(many + len, "%d\t0/%X\tx\n", i, i);
    is_err(wal_history_parse(2000, many, len, h, &err), &err, ERR_REFUSED, "1024", "too long");
    free(many);
    free(h);
}

/* Timeline 2 forks in the middle of segment 12 of timeline 1. */
static void test_ranges(struct fixture *f)
{
    const uint64_t fork = 12ull * SEGMENT + 5000;
    char text[64];
    for (uint64_t number = 10; number <= 13; number++)
        is_good(push_segment(f, 1, number, &err), &err, "segment %d of timeline 1", (int)number);
    is_good(wal_check_range(&f->archive, 1, 10 * SEGMENT + 40, fork, SEGMENT, &err), &err,
            "a range on one timeline");
    is_good(wal_check_range(&f->archive, 1, fork, fork, SEGMENT, &err), &err, "an empty range");
    is_err(wal_check_range(&f->archive, 1, 10 * SEGMENT, 14 * SEGMENT + 1, SEGMENT, &err), &err,
           ERR_MISSING, "00000001000000000000000E", "one byte of the next segment");
    is_good(wal_check_range(&f->archive, 1, 10 * SEGMENT, 14 * SEGMENT, SEGMENT, &err), &err,
            "exactly to the end of a segment");
    is_err(wal_check_range(&f->archive, 2, 10 * SEGMENT, fork + 10, SEGMENT, &err), &err,
           ERR_MISSING, "00000002.history", "a timeline without history");
    snprintf(text, sizeof(text), "1\t0/%llX\tno recovery target specified\n",
             (unsigned long long)fork);
    is_good(push_bytes(f, "00000002.history", text, strlen(text), &err), &err, "its history");
    is_good(wal_check_range(&f->archive, 2, 10 * SEGMENT, fork, SEGMENT, &err), &err,
            "up to the fork the parent's segment is enough");
    is_err(wal_check_range(&f->archive, 2, 10 * SEGMENT, fork + 1, SEGMENT, &err), &err,
           ERR_MISSING, "00000002000000000000000C", "beyond it the child's is needed");
    is_good(push_segment(f, 2, 12, &err), &err, "segment 12 of timeline 2");
    is_good(wal_check_range(&f->archive, 2, 10 * SEGMENT, 13 * SEGMENT, SEGMENT, &err), &err,
            "a range over the fork");
    is_err(wal_check_range(&f->archive, 2, 10 * SEGMENT, 14 * SEGMENT, SEGMENT, &err), &err,
           ERR_MISSING, "00000002000000000000000D", "the parent's later ones do not count");
    for (uint64_t number = 13; number <= 40; number++)
        if (number != 30)
            is_good(push_segment(f, 2, number, &err), &err, "segment %d", (int)number);
    is_err(wal_check_range(&f->archive, 2, 10 * SEGMENT, 41 * SEGMENT, SEGMENT, &err), &err,
           ERR_MISSING, "00000002000000000000001E", "one of many is missing");
    is_good(push_segment(f, 2, 30, &err), &err, "segment 30");
    is_good(wal_check_range(&f->archive, 2, 10 * SEGMENT, 41 * SEGMENT, SEGMENT, &err), &err,
            "many, over the fork");
    is_err(wal_check_range(&f->archive, 2, 10 * SEGMENT, 41 * SEGMENT + 1, SEGMENT, &err), &err,
           ERR_MISSING, "000000020000000000000029", "many, and one byte more");
    uint32_t *timelines;
    size_t count;
    is_good(wal_timelines(&f->archive, &timelines, &count, &err), &err, "timelines");
    ok(count == 2 && timelines[0] == 1 && timelines[1] == 2, "1 and 2");
    free(timelines);
    struct wal_archive other = f->archive;
    other.system_id = 5;
    is_good(wal_timelines(&other, &timelines, &count, &err), &err, "of a system without WAL");
    ok(count == 0, "none");
    free(timelines);
}

static void test_get_errors(struct fixture *f)
{
    struct stat st;
    char to[256];
    is_err(wal_get(&f->archive, "000000010000000000000003", "/nonexistent/x", false, &err), &err,
           ERR_DEVICE, "create", "a directory that is not there");
    is_err(wal_get(&f->archive, "x", f->path, false, &err), &err, ERR_USAGE, "not the name",
           "a name that is none");
    snprintf(to, sizeof(to), "%s/isdir", f->dir);
    ok(mkdir(to, 0700) == 0, "a directory in the way");
    is_err(wal_get(&f->archive, "000000010000000000000003", to, true, &err), &err, ERR_DEVICE,
           "rename", "is an error");
    strcat(to, ".tidemark");
    ok(stat(to, &st) < 0, "and no temporary file is left");
}

int main(void)
{
    struct fixture f;
    if (!fixture_open(&f, &err)) {
        printf("Bail out! %s\n", err.text);
        return 255;
    }
    test_names();
    test_page();
    test_history_text();
    test_push_get(&f);
    test_push_again(&f);
    test_partial(&f);
    test_lost_repository(&f);
    test_damage(&f);
    test_ranges(&f);
    test_get_errors(&f);
    fixture_close(&f);
    return done();
}
