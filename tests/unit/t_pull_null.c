/* pull into nothing, as `tidemark verify` does it: what an earlier run, an earlier snapshot or the
 * sample leaves out is not read; damage is reported, all of it, and ends nothing. */
#include "tests/lib/pipes.h"

enum { SIZE = 6 * 64 * 1024 * 1024, DAMAGE_MAX = 64 };

static const struct extent used[] = {
    {0, 6 << 20},           {(64 << 20) + 4096, 6 << 20}, {130 << 20, 6 << 20},
    {(192 << 20), 6 << 20}, {(260 << 20), 6 << 20},       {(330 << 20), 6 << 20},
};

struct damages {
    unsigned count;
    uint32_t chunk_count;
    struct {
        char object[STORE_NAME_MAX + 1];
        enum err_code code;
        uint32_t chunk_count;
    } seen[DAMAGE_MAX];
};

static void note_damage(void *ctx, const struct pull_damage *damage)
{
    struct damages *damages = ctx;
    if (damages->count == DAMAGE_MAX)
        return;
    snprintf(damages->seen[damages->count].object, STORE_NAME_MAX + 1, "%s", damage->object);
    damages->seen[damages->count].code = damage->err->code;
    damages->seen[damages->count++].chunk_count = damage->chunk_count;
    damages->chunk_count += damage->chunk_count;
    if (strstr(damage->err->text, damage->object) == NULL)
        ok(false, "the text names the object: %s", damage->err->text);
}

static bool was_seen(const struct damages *damages, const char *object, enum err_code code)
{
    for (unsigned i = 0; i < damages->count; i++)
        if (strcmp(damages->seen[i].object, object) == 0 && damages->seen[i].code == code)
            return true;
    printf("# not among %u: %s\n", damages->count, object);
    return false;
}

/* Name of the object of the chunk at offset; its entry in *ret. */
static void find_chunk(const struct fixture *fixture, const struct shot *shot, uint64_t offset,
                       struct fmt_entry *ret, char *name)
{
    struct err err;
    uint32_t index = (uint32_t)(offset / shot->manifest.region_size);
    free_mem void *buf = NULL;
    struct fmt_region region;
    if (table_fetch_region(fixture->store, &fixture->repo, &shot->manifest, index, &buf, &region,
                           &err) < 0)
        abort();
    *ret = region.entries[offset % shot->manifest.region_size / shot->manifest.chunk_size];
    const struct fmt_pack_ref *pack = &region.packs[ret->pack];
    repo_pack_name(name, shot->manifest.volume, pack->snapshot, pack->number);
}

static void change_file(const struct fixture *fixture, const char *name, const char *how)
{
    char command[512];
    snprintf(command, sizeof(command), "V='%s/repo/%s'; chmod u+w \"$V\"; %s", fixture->dir, name,
             how);
    if (system(command) != 0)
        abort();
}

static void flip_byte(const struct fixture *fixture, const char *name, uint64_t offset)
{
    char path[640];
    uint8_t byte;
    change_file(fixture, name, "true");
    snprintf(path, sizeof(path), "%s/repo/%s", fixture->dir, name);
    close_fd int fd = open(path, O_RDWR);
    if (pread(fd, &byte, 1, (off_t)offset) != 1)
        abort();
    byte ^= 0xff;
    if (pwrite(fd, &byte, 1, (off_t)offset) != 1)
        abort();
}

static int check(struct fixture *fixture, const struct shot *shot, const struct shot *known,
                 struct pull *pull, struct io_progress *progress, struct damages *damages)
{
    static const struct lane_options options = {.lane_count = 2};
    struct err err = {0};
    struct pull wanted = *pull;
    *progress = (struct io_progress){0};
    *damages = (struct damages){0};
    *pull = pull_of(fixture, shot, -1, &options, progress);
    pull->known = known ? &known->manifest : NULL;
    pull->done_before = wanted.done_before;
    pull->sample_percent = wanted.sample_percent;
    pull->sample_seed = wanted.sample_seed;
    pull->damaged = note_damage;
    pull->damaged_ctx = damages;
    int rc = pull_run(pull, &err);
    if (rc < 0)
        printf("# %s\n", err.text);
    return rc;
}

static void test_resume(struct fixture *fixture, const struct shot *shot, uint64_t whole)
{
    struct pull pull = {0};
    struct io_progress progress;
    struct damages damages;
    static const uint8_t done[1] = {0x1e};
    pull.done_before = done;
    ok(check(fixture, shot, NULL, &pull, &progress, &damages) == 0, "the rest of four of six");
    is_u64(progress.bytes_total, SIZE / 3, "two regions are left");
    is_u64(progress.bytes_done, SIZE / 3, "and were read");
    ok(progress.bytes_stored < whole / 2, "less is fetched: %llu of %llu",
       (unsigned long long)progress.bytes_stored, (unsigned long long)whole);
}

static void test_sample(struct fixture *fixture, const struct shot *shot)
{
    unsigned chosen[2] = {0}, different = 0;
    struct io_progress progress;
    struct damages damages;
    uint64_t before = 0;
    for (unsigned i = 0; i < 20; i++) {
        struct pull pull = {.sample_percent = i < 10 ? 1 : 50, .sample_seed = i};
        if (check(fixture, shot, NULL, &pull, &progress, &damages) < 0 ||
            progress.bytes_done != progress.bytes_total)
            ok(false, "sample %u", i);
        chosen[i / 10] += (unsigned)(progress.bytes_total / (64 << 20));
        different += progress.bytes_stored != before;
        before = progress.bytes_stored;
        struct pull again = {.sample_percent = i < 10 ? 1 : 50, .sample_seed = i};
        if (check(fixture, shot, NULL, &again, &progress, &damages) < 0 ||
            progress.bytes_stored != before)
            ok(false, "sample %u again: %llu, %llu bytes", i,
               (unsigned long long)progress.bytes_stored, (unsigned long long)before);
    }
    ok(chosen[0] >= 10 && chosen[0] < 15, "1 %% of six regions is one: %u in ten", chosen[0]);
    ok(chosen[1] > 18 && chosen[1] < 42, "50 %%: %u of 60", chosen[1]);
    ok(different > 8, "other seeds choose other regions (%u times)", different);
    struct pull pull = {.sample_percent = 100, .sample_seed = 7};
    ok(check(fixture, shot, NULL, &pull, &progress, &damages) == 0 && progress.bytes_done == SIZE,
       "100 %% is all of it");
    struct pull all = {0};
    ok(check(fixture, shot, NULL, &all, &progress, &damages) == 0 &&
           all.packs_checked == pull.packs_checked && all.tables_checked == pull.tables_checked,
       "with all objects: %u packs, %u table packs", all.packs_checked, all.tables_checked);
}

static void test_known(struct fixture *fixture, const struct shot *first, const struct shot *second,
                       uint64_t whole)
{
    struct io_progress progress;
    struct damages damages;
    struct pull pull = {0}, none = {0};
    ok(check(fixture, second, first, &pull, &progress, &damages) == 0, "with the first known");
    is_u64(pull.packs_checked, 1, "only the pack of the incremental is looked at");
    ok(progress.bytes_stored < whole / 4, "little is fetched: %llu of %llu",
       (unsigned long long)progress.bytes_stored, (unsigned long long)whole);
    ok(progress.chunks_same > 0, "chunks of a changed region are known, too");
    is_u64(progress.bytes_done, progress.bytes_total, "all bytes are counted");
    struct fmt_entry shared, own;
    char shared_name[STORE_NAME_MAX + 1], own_name[STORE_NAME_MAX + 1];
    find_chunk(fixture, second, (130 << 20) + (5 << 20), &shared, shared_name);
    find_chunk(fixture, second, 130 << 20, &own, own_name);
    ok(strcmp(shared_name, own_name) != 0, "one region, chunks of both snapshots");
    flip_byte(fixture, shared_name, shared.offset + 40);
    (void)check(fixture, second, first, &pull, &progress, &damages);
    is_u64(damages.count, 0, "damage of what is known is not met again");
    (void)check(fixture, second, NULL, &none, &progress, &damages);
    ok(damages.count == 1 && was_seen(&damages, shared_name, ERR_CORRUPT), "without it, it is");
    flip_byte(fixture, shared_name, shared.offset + 40);
    flip_byte(fixture, own_name, own.offset + 40);
    (void)check(fixture, second, first, &pull, &progress, &damages);
    ok(damages.count == 1 && was_seen(&damages, own_name, ERR_CORRUPT),
       "damage of what is new is met");
    flip_byte(fixture, own_name, own.offset + 40);
}

/* Everything at once; nothing hides anything else. */
static void test_damage(struct fixture *fixture, const struct shot *shot)
{
    struct io_progress progress;
    struct damages damages;
    struct pull pull = {0};
    struct fmt_entry a, b, c, lost;
    char name[STORE_NAME_MAX + 1], other[STORE_NAME_MAX + 1], table[STORE_NAME_MAX + 1];
    find_chunk(fixture, shot, 1 << 20, &a, name);
    find_chunk(fixture, shot, (1 << 20) + 4 * shot->manifest.chunk_size, &b, name);
    find_chunk(fixture, shot, (64 << 20) + (1 << 20), &c, name);
    flip_byte(fixture, name, a.offset + 50);
    flip_byte(fixture, name, b.offset + 50);
    ok(check(fixture, shot, NULL, &pull, &progress, &damages) == 0, "two damaged chunks");
    ok(damages.count >= 1 && damages.chunk_count == 2 && was_seen(&damages, name, ERR_CORRUPT),
       "both are reported (%u, %u chunks)", damages.count, damages.chunk_count);
    is_u64(progress.bytes_done, SIZE, "all bytes are passed over");
    find_chunk(fixture, shot, 130 << 20, &lost, other);
    if (strcmp(name, other) == 0)
        find_chunk(fixture, shot, 335 << 20, &lost, other);
    change_file(fixture, other, "rm \"$V\"");
    const struct fmt_manifest_region *place = &shot->manifest.regions[4];
    repo_table_name(table, shot->manifest.volume, place->snapshot, place->number);
    flip_byte(fixture, table, place->offset + 100);
    flip_byte(fixture, name, 20);
    ok(check(fixture, shot, NULL, &pull, &progress, &damages) == 0, "and a lost pack, a table …");
    ok(was_seen(&damages, name, ERR_CORRUPT), "the chunks are reported");
    ok(was_seen(&damages, other, ERR_MISSING), "and the pack");
    ok(was_seen(&damages, table, ERR_CORRUPT), "and the table");
    is_u64(progress.bytes_done, SIZE, "all bytes are passed over");
    pull.damaged = NULL;
    struct err err = {0};
    static const struct lane_options options = {.lane_count = 1};
    pull = pull_of(fixture, shot, -1, &options, &progress);
    ok(pull_run(&pull, &err) < 0, "who does not want to hear of it gets an error: %s", err.text);
}

int main(void)
{
    struct fixture fixture;
    struct err err = {0};
    is_good(fixture_open(&fixture, "/var/tmp", 32768, 77, &err), &err, "a repository");
    int image = image_create(&fixture, "image", SIZE, used, ARRAY_LEN(used));
    close_fd int direct = open_direct(&fixture, "image", O_RDONLY);
    static const struct lane_options options = {.lane_count = 1};
    struct shot first, second;
    is_good(shot_take(&fixture, direct, SIZE, used, ARRAY_LEN(used), NULL, &options, &first, &err),
            &err, "a snapshot");
    static uint8_t page[65536];
    uint64_t seed = 99;
    for (size_t i = 0; i < sizeof(page); i++)
        page[i] = (uint8_t)next_random(&seed);
    if (pwrite(image, page, sizeof(page), 130 << 20) != sizeof(page) || fsync(image) < 0)
        abort();
    is_good(
        shot_take(&fixture, direct, SIZE, used, ARRAY_LEN(used), &first, &options, &second, &err),
        &err, "an incremental");
    struct pull pull = {0};
    struct io_progress progress;
    struct damages damages;
    ok(check(&fixture, &first, NULL, &pull, &progress, &damages) == 0 && damages.count == 0,
       "the first is good");
    uint64_t whole = progress.bytes_stored;
    test_resume(&fixture, &first, whole);
    test_sample(&fixture, &second);
    test_known(&fixture, &first, &second, whole);
    test_damage(&fixture, &second);
    shot_close(&first);
    shot_close(&second);
    (void)close(image);
    fixture_close(&fixture);
    return done();
}
