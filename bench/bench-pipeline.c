/* bench-pipeline SOURCE TARGET REPOSITORY SCRATCH [LANES…] [sealed]
 *
 * push and pull of a whole device for each lane count, beside the physical references of the same
 * run: O_DIRECT read of the source, O_DIRECT write of the target, cold O_DIRECT read of the
 * repository. SOURCE is filled with PostgreSQL-like rows first; REPOSITORY is an empty directory,
 * SCRATCH one for table files. sealed: each lane count once more with an encrypted repository.
 * bench/bench-pipeline.sh makes the devices and calls this. */
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "bench/bench_io.h"
#include "io/pull.h"
#include "io/push.h"

/* A repository and the store that forgets what it is given. */
struct place {
    const char *what; /* behind the name of each row */
    char directory[480];
    struct store *store;
    struct store *null_store;
    struct repo repo;
};

struct bench {
    const char *scratch;
    int source, target;
    uint64_t size;
    struct place *place; /* the one at work */
    struct place plain, sealed;
    unsigned shot_count;
};

/* A snapshot that can be pulled. */
struct shot {
    struct table table;
    struct push push;
    struct push_result result;
    struct io_progress progress;
    void *manifest_buf;
    struct fmt_manifest manifest;
};

static int open_device(const char *path, int flags, uint64_t *ret_size, struct err *err)
{
    int fd = open(path, flags | O_DIRECT | O_CLOEXEC);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    if (ioctl(fd, BLKGETSIZE64, ret_size) < 0) {
        (void)close(fd);
        return err_sys(err, ERR_DEVICE, "size of '%s'", path);
    }
    return fd;
}

static int check_rate(struct bench *bench, const char *name, int fd, bool is_write, struct err *err)
{
    struct bench_time time;
    bench_start(&time);
    int rc = bench_transfer(fd, bench->size, is_write, err);
    bench_stop(&time);
    if (rc == 0)
        bench_report(name, bench->size, &time, "");
    return rc;
}

/* --- push --------------------------------------------------------------------------------- */

static int push_once(struct bench *bench, struct store *store, unsigned lanes, struct shot *shot,
                     struct err *err)
{
    char path[512];
    uint8_t volume[ID_LEN] = {1}, id[ID_LEN];
    *shot = (struct shot){.table = {.fd = -1}};
    int rc = id_random(id, err);
    (void)snprintf(path, sizeof(path), "%s/table-%u", bench->scratch, bench->shot_count++);
    if (rc == 0)
        rc = table_create(path, volume, id, bench->size, &bench->place->repo, NULL, &shot->table,
                          err);
    if (rc < 0)
        return rc;
    (void)unlink(path);
    shot->push = (struct push){
        .store = store,
        .repo = &bench->place->repo,
        .fd = bench->source,
        .alignment = 4096,
        .work = &shot->table,
        .options = {.lane_count = lanes},
        .progress = &shot->progress,
    };
    const struct extent whole = {0, bench->size};
    return push_run(&shot->push, &whole, 1, err);
}

static int seal(struct bench *bench, struct shot *shot, struct err *err)
{
    const struct push_identity identity = {.logical_sector = 512, .physical_sector = 4096};
    int rc = push_seal(&shot->push, &identity, &shot->result, err);
    if (rc < 0)
        return rc;
    char name[STORE_NAME_MAX + 1];
    size_t len;
    repo_manifest_name(name, shot->table.volume, shot->table.snapshot);
    rc = store_get_all(bench->place->store, name, (size_t)64 << 20, &shot->manifest_buf, &len, err);
    return rc < 0 ? rc
                  : fmt_manifest_decode(shot->manifest_buf, len, bench->place->repo.id,
                                        &shot->manifest, err);
}

static void shot_close(struct shot *shot)
{
    push_release(&shot->push);
    table_close(&shot->table);
    free(shot->manifest_buf);
}

static int bench_push(struct bench *bench, unsigned lanes, struct err *err)
{
    struct bench_time time;
    struct shot shot;
    char name[64], note[96];
    bench_start(&time);
    int rc = push_once(bench, bench->place->null_store, lanes, &shot, err);
    bench_stop(&time);
    if (rc == 0) {
        (void)snprintf(name, sizeof(name), "push to null, %u lanes%s", lanes, bench->place->what);
        (void)snprintf(note, sizeof(note), "ratio %.2f",
                       (double)bench->size / (double)shot.progress.bytes_stored);
        bench_report(name, bench->size, &time, note);
    }
    shot_close(&shot);
    return rc;
}

/* --- pull --------------------------------------------------------------------------------- */

enum pull_kind { TO_NULL, TO_DEVICE, DELTA_SAME, DELTA_SOME, DELTA_OTHER };

/* Onto a device where all is right, where every 20th MiB is something else, and all of it. */
static int bench_pull(struct bench *bench, const struct shot *shot, unsigned lanes,
                      enum pull_kind kind, struct err *err)
{
    static const char *const names[] = {"directory to null", "directory to device",
                                        "with delta, all is right", "with delta, 5 % differ",
                                        "with delta, all differs"};
    bool null = kind == TO_NULL;
    struct bench_time time;
    struct io_progress progress = {0};
    struct pull pull = {
        .store = bench->place->store,
        .repo = &bench->place->repo,
        .manifest = &shot->manifest,
        .sink = null ? PULL_TO_NULL : PULL_TO_DEVICE,
        .fd = null ? -1 : bench->target,
        .alignment = 4096,
        .free_policy = PULL_FREE_ZERO,
        .compare = kind >= DELTA_SAME,
        .options = {.lane_count = lanes},
        .progress = &progress,
    };
    bench_start(&time);
    int rc = pull_run(&pull, err);
    bench_stop(&time);
    char name[64];
    (void)snprintf(name, sizeof(name), "pull %s, %u lanes%s", names[kind], lanes,
                   bench->place->what);
    if (rc == 0)
        bench_report(name, bench->size, &time, "");
    return rc;
}

/* Every nth MiB of the target becomes another. */
static int spoil(const struct bench *bench, unsigned nth, struct err *err)
{
    free_mem void *buf = aligned_alloc(4096, MIB);
    if (!buf)
        return err_set(err, ERR_INTERNAL, "out of memory");
    memset(buf, 0xdb, MIB);
    for (uint64_t at = 0; at + MIB <= bench->size; at += nth * MIB)
        if (pwrite(bench->target, buf, MIB, (off_t)at) != (ssize_t)MIB)
            return err_sys(err, ERR_DEVICE, "write the target");
    return 0;
}

/* Cold: O_DIRECT never looks into the page cache. */
static int read_repository(struct bench *bench, const struct shot *shot, struct err *err)
{
    struct bench_time time;
    uint64_t stored = 0;
    bench_start(&time);
    for (uint32_t i = 0; i < shot->manifest.pack_count; i++) {
        const struct fmt_manifest_pack *pack = &shot->manifest.packs[i];
        char name[STORE_NAME_MAX + 1], path[STORE_NAME_MAX + 512];
        repo_pack_name(name, shot->table.volume, pack->snapshot, pack->number);
        (void)snprintf(path, sizeof(path), "%s/%s", bench->place->directory, name);
        close_fd int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
        if (fd < 0)
            return err_sys(err, ERR_STORE, "open '%s'", path);
        int rc = bench_transfer(fd, pack->stored_len, false, err);
        if (rc < 0)
            return rc;
        stored += pack->stored_len;
    }
    bench_stop(&time);
    char note[96];
    (void)snprintf(note, sizeof(note), "= %.2f stored GB/s", (double)stored / 1e9 / time.wall_s);
    bench_report("reference: repository read", bench->size, &time, note);
    return 0;
}

static int bench_directory(struct bench *bench, unsigned lanes, bool with_reference,
                           struct err *err)
{
    struct bench_time time;
    struct shot shot;
    bench_start(&time);
    int rc = push_once(bench, bench->place->store, lanes, &shot, err);
    if (rc == 0)
        rc = seal(bench, &shot, err);
    bench_stop(&time);
    char name[64];
    (void)snprintf(name, sizeof(name), "push to directory, %u lanes%s", lanes, bench->place->what);
    if (rc == 0)
        bench_report(name, bench->size, &time, "sealed and durable");
    if (rc == 0 && with_reference)
        rc = read_repository(bench, &shot, err);
    if (rc == 0)
        rc = bench_pull(bench, &shot, lanes, TO_NULL, err);
    if (rc == 0)
        rc = bench_pull(bench, &shot, lanes, TO_DEVICE, err);
    for (int kind = DELTA_SAME; rc == 0 && kind <= DELTA_OTHER; kind++) {
        if (kind > DELTA_SAME)
            rc = spoil(bench, kind == DELTA_SOME ? 20 : 1, err);
        if (rc == 0)
            rc = bench_pull(bench, &shot, lanes, (enum pull_kind)kind, err);
    }
    shot_close(&shot);
    return rc;
}

/* --- main --------------------------------------------------------------------------------- */

static int open_place(struct place *place, const char *directory, bool sealed, struct err *err)
{
    struct key_secret secret;
    char url[512];
    place->what = sealed ? ", sealed" : "";
    (void)snprintf(place->directory, sizeof(place->directory), "%s%s", directory,
                   sealed ? "-sealed" : "");
    (void)snprintf(url, sizeof(url), "file://%s", place->directory);
    int rc = store_open(url, NULL, true, &place->store, err);
    if (rc == 0 && !sealed)
        rc = repo_create(place->store, 32 << 10, &place->repo, err);
    if (rc == 0 && sealed)
        rc = key_secret_random(&secret, err);
    if (rc == 0 && sealed)
        rc = repo_create_sealed(place->store, 32 << 10, &secret, &place->repo, err);
    if (rc == 0)
        place->null_store = bench_null_store(place->store);
    return rc;
}

static void close_place(struct place *place)
{
    store_close(place->null_store);
    store_close(place->store);
}

static int bench_place(struct bench *bench, struct place *place, unsigned lanes,
                       bool with_reference, struct err *err)
{
    bench->place = place;
    int rc = bench_push(bench, lanes, err);
    return rc < 0 ? rc : bench_directory(bench, lanes, with_reference, err);
}

static int prepare(struct bench *bench, char **argv, bool sealed, struct err *err)
{
    uint64_t target_size = 0;
    bench->source = open_device(argv[1], O_RDWR, &bench->size, err);
    if (bench->source < 0)
        return bench->source;
    bench->target = open_device(argv[2], O_RDWR, &target_size, err);
    if (bench->target < 0)
        return bench->target;
    if (target_size < bench->size)
        return err_set(err, ERR_USAGE, "the target is smaller than the source");
    bench->scratch = argv[4];
    int rc = open_place(&bench->plain, argv[3], false, err);
    if (rc == 0 && sealed)
        rc = open_place(&bench->sealed, argv[3], true, err);
    if (rc == 0)
        rc = bench_fill(bench->source, bench->size, 20261125, err);
    return rc < 0 ? rc : bench_warm_memory(2 * GIB, err);
}

static int run(int argc, char **argv, struct err *err)
{
    struct bench bench = {0};
    bool sealed = strcmp(argv[argc - 1], "sealed") == 0;
    int lanes_end = sealed ? argc - 1 : argc;
    int rc = prepare(&bench, argv, sealed, err);
    if (rc == 0)
        rc = check_rate(&bench, "reference: source read", bench.source, false, err);
    /* Twice: the first pass allocates what lies under the target. */
    if (rc == 0)
        rc = bench_transfer(bench.target, bench.size, true, err);
    if (rc == 0)
        rc = check_rate(&bench, "reference: target write", bench.target, true, err);
    for (int i = 5; rc == 0 && i < lanes_end; i++) {
        unsigned lanes = (unsigned)strtoul(argv[i], NULL, 10);
        rc = bench_place(&bench, &bench.plain, lanes, i == 5, err);
        if (rc == 0 && sealed)
            rc = bench_place(&bench, &bench.sealed, lanes, false, err);
    }
    close_place(&bench.sealed);
    close_place(&bench.plain);
    return rc;
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        (void)fprintf(stderr, "usage: %s SOURCE TARGET REPOSITORY SCRATCH LANES… [sealed]\n",
                      argv[0]);
        return 2;
    }
    struct err err = {0};
    if (run(argc, argv, &err) == 0)
        return 0;
    (void)fprintf(stderr, "bench-pipeline: %s\n", err.text);
    return err_exit_status(err.code);
}
