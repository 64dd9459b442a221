/* What the tests and benchmarks of push and pull share: a volume in an image file with a pattern
 * that looks like a filesystem, a repository in a temporary directory, one call a snapshot and one
 * a restore. Everything lives below one directory, which fixture_close() removes. */
#ifndef TIDEMARK_TESTS_LIB_PIPES_H
#define TIDEMARK_TESTS_LIB_PIPES_H

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "io/pull.h"
#include "io/push.h"
#include "tests/tap.h"

struct fixture {
    char dir[64];
    char url[96];
    struct store *store;
    struct repo repo;
    struct key_secret secret; /* of an encrypted one */
    uint64_t seed;
    unsigned snapshot_number;
    uint8_t volume[ID_LEN];
};

/* A snapshot as tests need it: its table and its manifest. */
struct shot {
    struct table table;
    struct push push;
    struct push_result result;
    struct io_progress progress;
    void *manifest_buf;
    struct fmt_manifest manifest;
};

static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* sealed: an encrypted repository, with keys. */
__attribute__((unused)) static int fixture_open_as(struct fixture *fixture, const char *base,
                                                   uint32_t chunk_size, uint64_t seed, bool sealed,
                                                   struct err *err)
{
    *fixture = (struct fixture){.seed = seed | 1};
    snprintf(fixture->dir, sizeof(fixture->dir), "%s/tidemark-pipes-XXXXXX", base);
    if (mkdtemp(fixture->dir) == NULL)
        return err_sys(err, ERR_INTERNAL, "mkdtemp");
    snprintf(fixture->url, sizeof(fixture->url), "file://%s/repo", fixture->dir);
    for (size_t i = 0; i < ID_LEN; i++)
        fixture->volume[i] = (uint8_t)(i + 1);
    int rc = store_open(fixture->url, NULL, true, &fixture->store, err);
    if (rc == 0 && sealed)
        rc = key_secret_random(&fixture->secret, err);
    if (rc < 0)
        return rc;
    return sealed ? repo_create_sealed(fixture->store, chunk_size, &fixture->secret, &fixture->repo,
                                       err)
                  : repo_create(fixture->store, chunk_size, &fixture->repo, err);
}

__attribute__((unused)) static int fixture_open(struct fixture *fixture, const char *base,
                                                uint32_t chunk_size, uint64_t seed, struct err *err)
{
    return fixture_open_as(fixture, base, chunk_size, seed, false, err);
}

__attribute__((unused)) static void fixture_close(struct fixture *fixture)
{
    store_close(fixture->store);
    char command[128];
    snprintf(command, sizeof(command), "rm -rf '%s'", fixture->dir);
    if (system(command) != 0)
        printf("# cannot remove %s\n", fixture->dir);
}

/* Fills len bytes with one of four kinds of pages: zeros, text, half random, random. */
__attribute__((unused)) static void fill_page(uint8_t *page, size_t len, uint64_t *state)
{
    uint64_t kind = next_random(state) % 8;
    memset(page, 0, len);
    if (kind == 0)
        return;
    size_t random_len = kind == 1 ? len : kind < 5 ? len / 2 : len / 16;
    for (size_t i = 0; i + 8 <= random_len; i += 8) {
        uint64_t value = next_random(state);
        memcpy(page + i, &value, 8);
    }
    for (size_t i = random_len; i < len; i++)
        page[i] = (uint8_t)("tidemark "[i % 9]);
}

/* A sparse image of size bytes whose extents hold pages; returns the fd (O_RDWR, buffered). */
__attribute__((unused)) static int image_create(struct fixture *fixture, const char *name,
                                                uint64_t size, const struct extent *used,
                                                size_t used_count)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", fixture->dir, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        abort();
    uint8_t page[65536];
    for (size_t i = 0; i < used_count; i++) {
        for (uint64_t at = 0; at < used[i].len; at += sizeof(page)) {
            size_t len = (size_t)min_u64(sizeof(page), used[i].len - at);
            fill_page(page, len, &fixture->seed);
            if (pwrite(fd, page, len, (off_t)(used[i].offset + at)) != (ssize_t)len)
                abort();
        }
    }
    if (fsync(fd) < 0)
        abort();
    return fd;
}

__attribute__((unused)) static int open_direct(const struct fixture *fixture, const char *name,
                                               int flags)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", fixture->dir, name);
    int fd = open(path, flags | O_DIRECT | O_CLOEXEC, 0600);
    return fd >= 0 || errno != EINVAL ? fd : open(path, flags | O_CLOEXEC, 0600);
}

/* Frees everything of a shot; accepts half-built ones. */
__attribute__((unused)) static void shot_close(struct shot *shot)
{
    push_release(&shot->push);
    table_close(&shot->table);
    free(shot->manifest_buf);
    shot->manifest_buf = NULL;
}

__attribute__((unused)) static int shot_load_manifest(struct fixture *fixture, struct shot *shot,
                                                      struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    size_t len;
    repo_manifest_name(name, shot->table.volume, shot->table.snapshot);
    int rc = store_get_all(fixture->store, name, (size_t)64 << 20, &shot->manifest_buf, &len, err);
    return rc < 0 ? rc
                  : fmt_manifest_decode(shot->manifest_buf, len, fixture->repo.id, &shot->manifest,
                                        err);
}

/* Opens the working table of a new snapshot. */
__attribute__((unused)) static int shot_open(struct fixture *fixture, int fd, uint64_t size,
                                             const struct shot *parent,
                                             const struct lane_options *options, struct shot *shot,
                                             struct err *err)
{
    uint8_t id[ID_LEN] = {0xaa};
    char path[128];
    *shot = (struct shot){.table = {.fd = -1}};
    put_le32(id + 4, ++fixture->snapshot_number);
    snprintf(path, sizeof(path), "%s/table-%u", fixture->dir, fixture->snapshot_number);
    shot->push = (struct push){
        .store = fixture->store,
        .repo = &fixture->repo,
        .fd = fd,
        .alignment = 512,
        .work = &shot->table,
        .parent = parent ? &parent->table : NULL,
        .options = *options,
        .progress = &shot->progress,
    };
    return table_create(path, fixture->volume, id, size, &fixture->repo,
                        parent ? &parent->table : NULL, &shot->table, err);
}

__attribute__((unused)) static int shot_seal(struct fixture *fixture, const struct shot *parent,
                                             struct shot *shot, struct err *err)
{
    struct push_identity identity = {
        .logical_sector = 512,
        .physical_sector = 4096,
        .fs_type = "ext4",
        .parent_manifest = parent ? &parent->manifest : NULL,
    };
    int rc = push_seal(&shot->push, &identity, &shot->result, err);
    return rc < 0 ? rc : shot_load_manifest(fixture, shot, err);
}

/* One snapshot in one call. */
__attribute__((unused)) static int shot_take(struct fixture *fixture, int fd, uint64_t size,
                                             const struct extent *used, size_t used_count,
                                             const struct shot *parent,
                                             const struct lane_options *options, struct shot *shot,
                                             struct err *err)
{
    int rc = shot_open(fixture, fd, size, parent, options, shot, err);
    if (rc == 0)
        rc = push_run(&shot->push, used, used_count, err);
    return rc < 0 ? rc : shot_seal(fixture, parent, shot, err);
}

/* A pull with nothing special; the caller changes what it wants. */
__attribute__((unused)) static struct pull pull_of(struct fixture *fixture, const struct shot *shot,
                                                   int fd, const struct lane_options *options,
                                                   struct io_progress *progress)
{
    return (struct pull){
        .store = fixture->store,
        .repo = &fixture->repo,
        .manifest = &shot->manifest,
        .sink = fd < 0 ? PULL_TO_NULL : PULL_TO_FILE,
        .fd = fd,
        .alignment = 512,
        .free_policy = PULL_FREE_ZERO,
        .options = *options,
        .progress = progress,
    };
}

/* True when the two files are equal in their first size bytes; says where they differ. */
__attribute__((unused)) static bool same_bytes(int a, int b, uint64_t size)
{
    static uint8_t left[1 << 20] __attribute__((aligned(4096))); /* either may be O_DIRECT */
    static uint8_t right[1 << 20] __attribute__((aligned(4096)));
    for (uint64_t at = 0; at < size; at += sizeof(left)) {
        size_t len = (size_t)min_u64(sizeof(left), size - at);
        if (pread(a, left, len, (off_t)at) != (ssize_t)len ||
            pread(b, right, len, (off_t)at) != (ssize_t)len) {
            printf("# cannot read %zu bytes at %llu\n", len, (unsigned long long)at);
            return false;
        }
        if (memcmp(left, right, len) == 0)
            continue;
        size_t i = 0;
        while (left[i] == right[i])
            i++;
        printf("# differs at %llu\n", (unsigned long long)(at + i));
        return false;
    }
    return true;
}

#endif
