/* What the tests of encryption share: an encrypted repository in a directory, and its objects as
 * bytes that somebody may change. */
#ifndef TIDEMARK_TESTS_UNIT_SEAL_FIXTURE_H
#define TIDEMARK_TESTS_UNIT_SEAL_FIXTURE_H

#include "io/crypt.h"
#include "io/hash.h"
#include "io/seal.h"
#include "tests/lib/pipes.h"

static struct err err;
static struct fixture f;

static void path_of(const char *name, char path[512])
{
    snprintf(path, 512, "%s/repo/%s", f.dir, name);
}

__attribute__((unused)) static size_t load(const char *name, uint8_t *to, size_t size)
{
    char path[512];
    path_of(name, path);
    FILE *file = fopen(path, "rb");
    size_t len = file ? fread(to, 1, size, file) : 0;
    if (file)
        fclose(file);
    return len;
}

__attribute__((unused)) static void save(const char *name, const uint8_t *from, size_t len)
{
    char path[512];
    path_of(name, path);
    unlink(path);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(from, 1, len, file) != len || fclose(file) != 0)
        abort();
}

__attribute__((unused)) static int get(struct store *store, const char *name)
{
    free_mem void *buf = NULL;
    size_t len;
    return store_get_all(store, name, 1 << 20, &buf, &len, &err);
}

static const char secret_text[] = "{\"password\":\"correct horse battery staple\"}";

__attribute__((unused)) static void put_json(const char *name)
{
    uint8_t object[512], snapshot[ID_LEN] = {7};
    size_t len = sizeof(secret_text) - 1;
    fmt_json_encode(FMT_JSON_DRILL, f.repo.id, snapshot, secret_text, len, object);
    is_good(store_put(f.store, name, object, FMT_HEADER_LEN + len, &err), &err, "put %s", name);
}

__attribute__((unused)) static void put_wal(const char *name)
{
    struct fmt_wal wal = {.raw_len = 100000, .system_id = 1, .timeline = 1, .cluster = "main"};
    free_mem uint8_t *raw = calloc(1, wal.raw_len);
    free_mem uint8_t *object = malloc(fmt_wal_len_max(wal.raw_len));
    memcpy(raw + 70000, secret_text, sizeof(secret_text));
    snprintf(wal.name, sizeof(wal.name), "%s", strrchr(name, '/') + 1);
    sha256(raw, wal.raw_len, wal.raw_sha256);
    size_t len = fmt_wal_encode(&wal, f.repo.id, raw, object);
    is_good(store_put(f.store, name, object, len, &err), &err, "put %s", name);
    uint8_t head[FMT_HEADER_LEN + FMT_WAL_FIXED_LEN];
    uint64_t size = 0;
    size_t got = 0;
    is_good(store_get_head(f.store, name, head, sizeof(head), &got, &size, &err), &err,
            "its head alone");
    ok(got == sizeof(head) && size == len && memcmp(head, object, got) == 0, "is the plain one");
}

/* Every checksum of the object is right again: only its seal can tell. */
__attribute__((unused)) static void right_checksum(uint8_t *object)
{
    hash_xxh3_128(object, 176, 0, object + 176);
}

#endif
