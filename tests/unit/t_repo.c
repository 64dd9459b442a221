/* The repository's identity in a directory store: create, open, the copy, refusals; names. */
#include "io/repo.h"

#include <limits.h>
#include <sys/stat.h>

#include "io/format.h"
#include "tests/tap.h"

static struct err err;
static char dir[64] = "/tmp/tidemark-t_repo.XXXXXX";

static void path_of(char path[PATH_MAX], const char *name)
{
    (void)snprintf(path, PATH_MAX, "%s/%s", dir, name);
}

static void overwrite(const char *name, const void *bytes, size_t len)
{
    char path[PATH_MAX];
    path_of(path, name);
    (void)chmod(path, 0600);
    FILE *file = fopen(path, "w");
    if (!file || fwrite(bytes, 1, len, file) != len || fclose(file) != 0)
        abort();
}

static void drop(const char *name)
{
    char path[PATH_MAX];
    path_of(path, name);
    (void)unlink(path);
}

/* Objects whose identity is lost, or hidden: nobody could read them beside a new one. */
static void test_lost(struct store *store)
{
    static const char *const names[] = {"wal/main/1/00000001/000000010000000000000001",
                                        "snapshot/main/db1/0123456789abcdef0123456789abcdef.json",
                                        "pack/0123456789abcdef0123456789abcdef/a/00000000"};
    struct repo made;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        is_good(store_put(store, names[i], "x", 1, &err), &err, "%s", names[i]);
        is_err(repo_create(store, 32768, &made, &err), &err, ERR_REFUSED, names[i],
               "no new identity beside it");
        is_good(store_remove(store, names[i], &err), &err, "removed");
    }
}

static void test_create_and_open(struct store *store)
{
    struct repo made, got;
    bool used_copy = true;
    is_err(repo_open(store, &got, &used_copy, &err), &err, ERR_MISSING, "holds no repository",
           "an empty directory is no repository");
    ok(err.hint[0] != '\0', "with a hint");
    is_err(repo_create(store, 8192, &made, &err), &err, ERR_USAGE, "8192", "chunks of 8 KiB");
    is_good(repo_create(store, 32768, &made, &err), &err, "create");
    is_good(repo_open(store, &got, &used_copy, &err), &err, "open");
    ok(!used_copy, "from the first object");
    ok(memcmp(&made, &got, sizeof(got)) == 0, "it is the same");
    is_u64(got.chunk_size, 32768, "chunk size");
    is_u64(got.region_size, 64 * MIB, "region size");
    is_err(repo_create(store, 32768, &made, &err), &err, ERR_REFUSED, "already holds a repository",
           "a second create is refused");
}

static void test_copy(struct store *store)
{
    struct repo first, got;
    bool used_copy;
    uint8_t object[FMT_REPO_LEN];
    is_good(repo_open(store, &first, &used_copy, &err), &err, "open before the damage");
    fmt_repo_encode(&first, object);
    overwrite("tidemark.repo", object, sizeof(object) - 1);
    is_good(repo_open(store, &got, &used_copy, &err), &err, "cut: open from the copy");
    ok(used_copy && memcmp(&first, &got, sizeof(got)) == 0, "which is the same and says so");
    object[FMT_HEADER_LEN] ^= 1;
    overwrite("tidemark.repo", object, sizeof(object));
    is_good(repo_open(store, &got, &used_copy, &err), &err, "flipped bit: open from the copy");
    overwrite("tidemark.repo.copy", object, sizeof(object));
    is_err(repo_open(store, &got, &used_copy, &err), &err, ERR_CORRUPT, "SHA-256",
           "both damaged: corrupt");
    drop("tidemark.repo");
    is_err(repo_open(store, &got, &used_copy, &err), &err, ERR_CORRUPT, "tidemark.repo.copy",
           "one missing, one damaged: corrupt");
    is_err(repo_create(store, 32768, &got, &err), &err, ERR_REFUSED, "already holds",
           "no new identity beside a copy");
    object[FMT_HEADER_LEN] ^= 1;
    overwrite("tidemark.repo.copy", object, sizeof(object));
    is_good(repo_open(store, &got, &used_copy, &err), &err, "missing: open from the copy");
    drop("tidemark.repo.copy");
    overwrite("tidemark.repo", object, sizeof(object));
    is_good(repo_open(store, &got, &used_copy, &err), &err, "no copy: open from the first");
    ok(!used_copy, "and says so");
    drop("tidemark.repo");
}

static void test_ids(void)
{
    uint8_t a[ID_LEN], b[ID_LEN];
    char text[ID_TEXT_LEN];
    is_good(id_random(a, &err), &err, "random id");
    is_good(id_random(b, &err), &err, "another");
    ok(memcmp(a, b, ID_LEN) != 0, "they differ");
    id_to_text(a, text);
    ok(id_from_text(text, b) && memcmp(a, b, ID_LEN) == 0, "text and back");
    static const char *const bad[] = {
        "", "0123456789abcdef0123456789abcde", "0123456789abcdef0123456789abcdef0",
        "0123456789ABCDEF0123456789abcdef", "0123456789abcdeg0123456789abcdef"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        ok(!id_from_text(bad[i], b), "'%s' is no id", bad[i]);
}

static void test_names(void)
{
    char name[STORE_NAME_MAX + 1];
    uint8_t volume[ID_LEN], snapshot[ID_LEN];
    memset(volume, 0x2f, ID_LEN);
    memset(snapshot, 0xa0, ID_LEN);
    repo_pack_name(name, volume, snapshot, 26);
    is_str(name, "pack/2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f/a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0/0000001a",
           "pack");
    repo_table_name(name, volume, snapshot, 0xffffffff);
    is_str(name, "table/2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f/a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0/ffffffff",
           "table pack");
    repo_manifest_name(name, volume, snapshot);
    is_str(name, "volume/2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f/a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0",
           "manifest");
    repo_record_name(name, "main", "db1", snapshot);
    is_str(name, "snapshot/main/db1/a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0.json", "record");
    repo_wal_name(name, "main", 7400000000000000001, 26, "0000001A0000000000000001");
    is_str(name, "wal/main/7400000000000000001/0000001A/0000001A0000000000000001", "WAL");
}

static void test_valid_names(void)
{
    static const char *const good[] = {"a", "before-release", "v1.2_x", "...", "A-Z.0"};
    static const char *const bad[] = {"",    ".",        "..",  "a/b",
                                      "a b", "\xc3\xa4", "a\n", "0123456789a"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        ok(repo_name_valid(good[i], 14), "name '%s'", good[i]);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        ok(!repo_name_valid(bad[i], 10), "no name: case %zu", i);
    ok(repo_tag_valid("before-release"), "tag");
    ok(!repo_tag_valid("latest"), "not latest");
    ok(repo_tag_valid("123456789012345678901234567890"), "30 characters");
    ok(!repo_tag_valid("1234567890123456789012345678901"), "not 31");
    ok(!repo_tag_valid("0123456789abcdef0123456789abcdef"), "not an id");
}

int main(void)
{
    struct store *store;
    char url[128];
    if (!mkdtemp(dir))
        abort();
    (void)snprintf(url, sizeof(url), "file://%s", dir);
    if (store_open(url, NULL, true, &store, &err) < 0) {
        printf("Bail out! %s\n", err.text);
        return 1;
    }
    test_lost(store);
    test_create_and_open(store);
    test_copy(store);
    test_ids();
    test_names();
    test_valid_names();
    store_close(store);
    char command[128];
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", dir);
    ok(system(command) == 0, "clean up");
    return done();
}
