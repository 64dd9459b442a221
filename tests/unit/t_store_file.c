/* io/store + io/store_file, client mode. */
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "io/store_file.h"
#include "tests/tap.h"

static char root[64];
static char url[80];

/* Called instead of libc's. sleepy: the object was written long before it is linked. */
static bool sleepy;
int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
    const struct timespec old[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
    if (sleepy && utimensat(from_fd, from, old, 0) < 0)
        return -1;
    return (int)syscall(SYS_linkat, from_fd, from, to_fd, to, flags);
}

/* An object is as old as its name: `tidemark expire` goes by that. */
static void test_slept(struct store *store, struct err *err)
{
    int64_t modified_s = 0, now_ms = 0;
    sleepy = true;
    is_good(store_put(store, "pin/slept", "x", 1, err), err, "put by a writer that slept");
    sleepy = false;
    is_good(store_modified(store, "pin/slept", &modified_s, err), err, "its time");
    is_good(store_clock(store, &now_ms, err), err, "the store's clock");
    ok(now_ms / 1000 - modified_s < 1000000, "it is as young as its name");
}

static int collect(void *ctx, const char *name, uint64_t size, struct err *err)
{
    (void)err;
    char *text = ctx;
    size_t len = strlen(text);
    snprintf(text + len, 4096 - len, "%s=%llu ", name, (unsigned long long)size);
    return 0;
}

static int stop_at_once(void *ctx, const char *name, uint64_t size, struct err *err)
{
    (void)name, (void)size, (void)err;
    ++*(int *)ctx;
    return 7;
}

static mode_t mode_of(const char *name)
{
    char path[600];
    struct stat st;
    snprintf(path, sizeof(path), "%s/%s", root, name);
    return stat(path, &st) == 0 ? st.st_mode & 07777 : 0;
}

static void test_names(void)
{
    static const char *const good[] = {"a", "a/b", "A-z_0.9/..a", "...", "a/.b"};
    static const char *const bad[] = {"",     "/a",  "a/",  "a//b", ".",      "..",
                                      "../a", "a/.", "a b", "a\n",  "a/../b", "\xc3\xa4"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        ok(store_name_valid(good[i]), "name '%s' is good", good[i]);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        ok(!store_name_valid(bad[i]), "name %zu is refused", i);
    char name[STORE_NAME_MAX + 2];
    memset(name, 'x', sizeof(name));
    name[STORE_NAME_MAX + 1] = '\0';
    ok(!store_name_valid(name), "a name too long is refused");
    name[STORE_NAME_MAX] = '\0';
    ok(store_name_valid(name), "the longest name is good");
}

static void test_open(struct err *err)
{
    struct store *store;
    is_err(store_open("http://x", NULL, false, &store, err), err, ERR_CONFIG, "unknown scheme",
           "unknown scheme");
    is_err(store_open("file://x", NULL, false, &store, err), err, ERR_CONFIG, "absolute",
           "relative path");
    is_err(store_open(url, NULL, false, &store, err), err, ERR_STORE, "No such file",
           "a directory that is not there");
    is_err(store_open("file:///proc/1/x/y", NULL, true, &store, err), err, ERR_STORE, "make",
           "create where it is impossible");
}

static void test_absence(struct store *store, struct err *err)
{
    uint64_t size;
    is_err(store_size(store, "tidemark.repo", &size, err), err, ERR_MISSING, "tidemark.repo",
           "no identity in a new directory: confirmed");
    is_err(store_size(store, "wal/x", &size, err), err, ERR_STORE, "holds no repository",
           "no object in an empty directory: not confirmed");
    is_err(store_list(store, "pack/", collect, NULL, err), err, ERR_STORE, "holds no repository",
           "list in an empty directory: not confirmed");
    is_good(store_put(store, "tidemark.repo", "id", 2, err), err, "put tidemark.repo");
    is_err(store_size(store, "wal/x", &size, err), err, ERR_MISSING, "wal/x",
           "beside tidemark.repo absence is confirmed");
    is_good(store_list(store, "pack/", collect, NULL, err), err, "and an empty list is a list");
}

static void test_objects(struct store *store, struct err *err)
{
    is_good(store_put(store, "pack/v/s/00000001", "hello", 5, err), err, "put");
    is_u64(store_put(store, "pack/v/s/00000001", "other", 5, err), STORE_EXISTS,
           "a second put reports EXISTS");
    char buf[16];
    size_t len = 99;
    is_good(store_get(store, "pack/v/s/00000001", 1, buf, 3, &len, err), err, "get a range");
    ok(len == 3 && memcmp(buf, "ell", 3) == 0, "the first content is still there");
    is_good(store_get(store, "pack/v/s/00000001", 3, buf, 16, &len, err), err, "get past the end");
    is_u64(len, 2, "gives what is there");
    void *all;
    is_good(store_get_all(store, "pack/v/s/00000001", 5, &all, &len, err), err, "get_all");
    ok(len == 5 && memcmp(all, "hello", 5) == 0, "whole content");
    free(all);
    is_err(store_get_all(store, "pack/v/s/00000001", 4, &all, &len, err), err, ERR_CORRUPT,
           "5 bytes", "get_all of a longer object");
    is_u64(mode_of("pack/v/s/00000001"), 0440, "objects are 0440");
    is_u64(mode_of("pack/v/s"), 02750, "directories are 2750");
    is_u64(mode_of("pack"), 02750, "all the way");
    is_u64(mode_of(""), 02750, "and the root: the group reads");
    is_good(store_put(store, "wal/c/1/00000001/x", "", 0, err), err, "put below wal/");
    is_u64(mode_of("wal"), 02770, "there the group writes");
    is_u64(mode_of("wal/c/1/00000001"), 02770, "all the way down");
    is_u64(mode_of("reading"), 03770, "marks of readers: and removes its own");
    is_u64(mode_of("tmp"), 03770, "and so with temporaries");
    is_good(store_put(store, "empty", "", 0, err), err, "an empty object");
    is_good(store_get_all(store, "empty", 0, &all, &len, err), err, "can be read");
    free(all);
    is_err(store_put(store, "../x", "", 0, err), err, ERR_INTERNAL, "not an object name",
           "names cannot leave the root");
    is_err(store_list(store, "a", collect, NULL, err), err, ERR_INTERNAL, "not a list prefix",
           "a prefix is a directory");
}

static void test_list(struct store *store, struct err *err)
{
    is_good(store_put(store, "l/a/1", "1", 1, err), err, "put");
    is_good(store_put(store, "l/a-b", "22", 2, err), err, "put");
    is_good(store_put(store, "l/a.c/2", "333", 3, err), err, "put");
    is_good(store_put(store, "l/b", "", 0, err), err, "put");
    char path[128];
    snprintf(path, sizeof(path), "%s/lost+found", root);
    ok(mkdir(path, 0) == 0, "a stranger's directory");
    char text[4096] = "";
    is_good(store_list(store, "l/", collect, text, err), err, "list");
    is_str(text, "l/a-b=2 l/a.c/2=3 l/a/1=1 l/b=0 ", "in byte order of whole names");
    text[0] = '\0';
    is_good(store_list(store, "", collect, text, err), err, "list everything");
    ok(strstr(text, "tidemark.repo=2 ") && !strstr(text, "lost") && !strstr(text, "tmp"),
       "everything of ours, nothing else");
    int count = 0;
    is_u64(store_list(store, "l/", stop_at_once, &count, err), 7, "each() can stop");
    is_u64(count, 1, "at once");
    is_good(store_remove(store, "l/a-b", err), err, "remove");
    is_good(store_remove(store, "l/a-b", err), err, "remove what is gone");
    is_good(store_remove(store, "no/such/dir", err), err, "remove in no directory");
    text[0] = '\0';
    is_good(store_list(store, "l/", collect, text, err), err, "list again");
    is_str(text, "l/a.c/2=3 l/a/1=1 l/b=0 ", "without it");
}

static void test_links(struct store *store, struct err *err)
{
    char path[128];
    uint64_t size;
    snprintf(path, sizeof(path), "%s/link", root);
    ok(symlink("/etc", path) == 0, "a link in the repository");
    is_err(store_size(store, "link/passwd", &size, err), err, ERR_STORE, "link/passwd",
           "links are not followed by readers");
    is_err(store_put(store, "link/x", "", 0, err), err, ERR_STORE, "link", "nor by writers");
    is_err(store_size(store, "pack/v", &size, err), err, ERR_STORE, "not a file",
           "a directory is not an object");
    (void)unlink(path);
    ok(mkfifo(path, 0600) == 0, "a FIFO in the repository");
    is_err(store_size(store, "link", &size, err), err, ERR_STORE, "not a file",
           "a FIFO is not one, and nobody waits for its writer");
    (void)unlink(path);
    struct stat st;
    close_fd int fd = -1;
    is_good(store_file_open_object(CONTAINER_OF(store, struct store_file, store),
                                   "pack/v/s/00000001", O_DIRECT, &fd, &st, err),
            err, "open an object");
    int flags = fcntl(fd, F_GETFL);
    ok((flags & O_NONBLOCK) == 0 && (flags & O_DIRECT) != 0,
       "it is read with direct I/O that may block (0%o)", (unsigned)flags);
}

/* NFS has no O_TMPFILE: the named way must give the same result and leave nothing behind. */
static void test_named_temporaries(struct store *store, struct err *err)
{
    CONTAINER_OF(store, struct store_file, store)->no_tmpfile = true;
    is_good(store_put(store, "named/x", "abc", 3, err), err, "put through tmp/");
    is_u64(store_put(store, "named/x", "abd", 3, err), STORE_EXISTS, "EXISTS through tmp/");
    char command[256];
    snprintf(command, sizeof(command), "test -z \"$(ls -A %s/tmp)\"", root);
    ok(system(command) == 0, "no temporary stays");
    is_u64(mode_of("named/x"), 0440, "mode");
    /* Writers died: 25 hours ago, just now; and a file of somebody else's. */
    snprintf(command, sizeof(command),
             "cd %s/tmp && O=0123456789abcdef0123456789abcdef && touch -d '-25 hours' $O mine && "
             "touch f$(echo $O | cut -c2-)",
             root);
    ok(system(command) == 0, "temporaries of dead writers");
    is_good(store_put(store, "named/y", "abc", 3, err), err, "this writer has looked already");
    struct store *later = NULL;
    is_good(store_open(url, NULL, false, &later, err), err, "a later writer");
    CONTAINER_OF(later, struct store_file, store)->no_tmpfile = true;
    is_good(store_put(later, "named/z", "abc", 3, err), err, "puts an object");
    store_close(later);
    snprintf(command, sizeof(command),
             "cd %s/tmp && test \"$(ls -A | tr '\\n' ' ')\" = "
             "'f123456789abcdef0123456789abcdef mine ' && rm *",
             root);
    ok(system(command) == 0, "the old one is gone, the others are there");
}

static void test_full(struct err *err)
{
    char dir[] = "/var/tmp/tidemark-store-full-XXXXXX", command[200], full[80];
    if (!mkdtemp(dir)) {
        skip("no temporary directory");
        return;
    }
    snprintf(command, sizeof(command), "mount -t tmpfs -o size=64k none %s 2>/dev/null", dir);
    if (system(command) != 0) {
        skip("cannot mount a tmpfs (not root)");
        (void)rmdir(dir);
        return;
    }
    snprintf(full, sizeof(full), "file://%s", dir);
    struct store *store = NULL;
    is_good(store_open(full, NULL, false, &store, err), err, "open a small store");
    char *big = calloc(1, 256 * KIB);
    is_err(store_put(store, "big", big, 256 * KIB, err), err, ERR_STORE, "is full",
           "a full repository says so");
    is_good(store_put(store, "tidemark.repo", "", 0, err), err, "a small object fits");
    uint64_t size;
    is_err(store_size(store, "big", &size, err), err, ERR_MISSING, "big", "nothing is visible");
    free(big);
    store_close(store);
    snprintf(command, sizeof(command), "umount %s && rmdir %s", dir, dir);
    ok(system(command) == 0, "unmount");
}

int main(void)
{
    struct err err = {0};
    snprintf(root, sizeof(root), "/var/tmp/tidemark-t-store-%d", (int)getpid());
    snprintf(url, sizeof(url), "file://%s", root);
    test_names();
    test_open(&err);
    struct store *store = NULL;
    umask(077);
    is_good(store_open(url, NULL, true, &store, &err), &err, "create");
    if (store == NULL)
        return done();
    is_str(store_url(store), url, "URL");
    test_absence(store, &err);
    test_objects(store, &err);
    test_slept(store, &err);
    test_list(store, &err);
    test_links(store, &err);
    test_named_temporaries(store, &err);
    store_close(store);
    test_full(&err);
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", root);
    ok(system(command) == 0, "clean up");
    return done();
}
