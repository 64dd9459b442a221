/* A repository in a temporary directory and WAL segments of 1 MiB for the tests of the archive. */
#ifndef TIDEMARK_TESTS_UNIT_WAL_FIXTURE_H
#define TIDEMARK_TESTS_UNIT_WAL_FIXTURE_H

#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

#include "agent/pg_names.h"
#include "agent/wal.h"

enum { SEGMENT = 1 << 20 };
#define SYSTEM_ID 7345678901234567890ull

struct fixture {
    char dir[64];
    char path[256];
    char url[128];
    struct repo repo;
    struct wal_archive archive;
};

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void fixture_close(struct fixture *f)
{
    store_close(f->archive.store);
    (void)nftw(f->dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static bool fixture_open(struct fixture *f, struct err *err)
{
    memset(f, 0, sizeof(*f));
    strcpy(f->dir, "/var/tmp/tidemark-t-wal-XXXXXX");
    if (!mkdtemp(f->dir))
        return false;
    snprintf(f->path, sizeof(f->path), "%s/file", f->dir);
    snprintf(f->url, sizeof(f->url), "file://%s/repo", f->dir);
    if (store_open(f->url, NULL, true, &f->archive.store, err) < 0 ||
        repo_create(f->archive.store, 32768, &f->repo, err) < 0)
        return false;
    f->archive.repo = &f->repo;
    f->archive.system_id = SYSTEM_ID;
    strcpy(f->archive.cluster, "main");
    return true;
}

/* A segment of the number on the timeline; fill varies its content. */
static void make_segment(uint8_t *to, uint32_t timeline, uint64_t number, uint8_t fill)
{
    memset(to, 0, SEGMENT);
    for (size_t i = 64; i < SEGMENT / 2; i++)
        to[i] = (uint8_t)(i * 31 + (i >> 9) + fill);
    to[0] = 0x10;
    to[1] = 0xD1;
    to[2] = 2;
    put_le32(to + 4, timeline);
    put_le64(to + 8, number * SEGMENT);
    put_le64(to + 24, SYSTEM_ID);
    put_le32(to + 32, SEGMENT);
    put_le32(to + 36, 8192);
}

static void write_bytes(const char *path, const void *ptr, size_t len)
{
    FILE *file = fopen(path, "we");
    if (!file || fwrite(ptr, 1, len, file) != len || fclose(file) != 0)
        abort();
}

/* Returns the length; buf has at least SEGMENT + 1 bytes. */
__attribute__((unused)) static size_t read_bytes(const char *path, void *buf)
{
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    size_t len = fread(buf, 1, SEGMENT + 1, file);
    (void)fclose(file);
    return len;
}

static int push_bytes(struct fixture *f, const char *name, const void *ptr, size_t len,
                      struct err *err)
{
    write_bytes(f->path, ptr, len);
    return wal_push(&f->archive, f->path, name, err);
}

__attribute__((unused)) static int push_segment(struct fixture *f, uint32_t timeline,
                                                uint64_t number, struct err *err)
{
    static uint8_t raw[SEGMENT];
    char name[PG_SEGMENT_TEXT];
    make_segment(raw, timeline, number, (uint8_t)number);
    pg_segment_name(timeline, number, SEGMENT, name);
    return push_bytes(f, name, raw, SEGMENT, err);
}

#endif
