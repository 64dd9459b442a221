/* What a verification keeps of damage: all names, also those that it does not list, so that every
 * snapshot that needs one is found; and over a kill as many as its journal has room for. */
#include <stdio.h>

#include "agent/verification.h"
#include "tests/tap.h"

static struct err err;
static char directory[] = "/tmp/tidemark-t-verification-XXXXXX";
static const uint8_t volume[ID_LEN] = {1}, snapshot[ID_LEN] = {2};

static void open_all(struct verification *own, struct job *job)
{
    memset(own, 0, sizeof(*own));
    verification_open_notes(own, job);
}

static bool note(struct verification *own, uint32_t pack, enum err_code code)
{
    struct err damage;
    char name[STORE_NAME_MAX + 1];
    repo_pack_name(name, volume, snapshot, pack);
    (void)err_set(&damage, code, "object '%s'", name);
    return verification_note(own, name, 1, &damage);
}

static enum verification_reach reach(struct verification *own, uint32_t pack_number)
{
    struct fmt_manifest_pack pack = {.number = pack_number};
    struct fmt_manifest manifest = {.packs = &pack, .pack_count = 1};
    memcpy(pack.snapshot, snapshot, ID_LEN);
    memcpy(manifest.volume, volume, ID_LEN);
    return verification_reach(own, &manifest);
}

static void test_many(struct verification *own)
{
    ok(!note(own, 0, ERR_STORE), "a store that fails is no damage");
    for (uint32_t i = 0; i < 150; i++)
        if (!note(own, i, i % 2 ? ERR_CORRUPT : ERR_MISSING))
            ok(false, "pack %u is damage", i);
    (void)note(own, 3, ERR_CORRUPT);
    (void)note(own, 140, ERR_MISSING);
    is_u64(own->damaged_count, 150, "each is counted once");
    is_u64(json_array_size(own->damaged), VERIFICATION_DAMAGED_MAX, "so many are listed");
    is_u64((uint64_t)json_integer_value(json_object_get(json_array_get(own->damaged, 3), "chunks")),
           2, "with all that is damaged in one");
    is_u64(reach(own, 98), REACH_MISSING, "a snapshot that needs one of the list");
    is_u64(reach(own, 148), REACH_MISSING, "one that needs another");
    is_u64(reach(own, 149), REACH_DAMAGED, "and one that reaches it");
    is_u64(reach(own, 150), REACH_NONE, "one that does not");
}

static void load(struct verification *own, struct job *job, struct verification *from)
{
    bool resumed = false;
    uint8_t *bitmap = NULL;
    size_t len = 0;
    is_good(verification_save(from, NULL, 0, &err), &err, "it is journalled");
    verification_close_notes(from);
    open_all(own, job);
    is_good(verification_load(own, &resumed, &bitmap, &len, &err), &err,
            "and another run reads it");
    ok(resumed, "to go on");
}

static void test_resumed(struct verification *own, struct job *job)
{
    struct verification first = *own;
    load(own, job, &first);
    is_u64(own->damaged_count, 150, "with the count");
    is_u64(reach(own, 98), REACH_MISSING, "and what was listed");
    is_u64(reach(own, 148), REACH_MISSING, "or not");
    is_u64(reach(own, 149), REACH_DAMAGED, "whether missing or damaged");
    is_u64(reach(own, 150), REACH_NONE, "is what it was");
    (void)note(own, 149, ERR_CORRUPT);
    is_u64(own->damaged_count, 150, "and not counted twice");
}

/* A journal is no place for the names of a whole repository. */
static void test_lost(struct verification *own, struct job *job)
{
    const uint32_t many = VERIFICATION_DAMAGED_MAX + VERIFICATION_NAMES_MAX + 1;
    for (uint32_t i = 150; i < many; i++)
        (void)note(own, i, ERR_MISSING);
    is_u64(reach(own, many), REACH_NONE, "all names are known");
    struct verification first = *own;
    load(own, job, &first);
    is_u64(reach(own, many - 2), REACH_MISSING, "the last one that the journal has");
    is_u64(reach(own, many - 1), REACH_DAMAGED, "behind it nothing is sure");
    is_u64(reach(own, many), REACH_DAMAGED, "nor that a snapshot is good");
}

int main(void)
{
    static struct verification own;
    static struct job job;
    char command[128];
    if (!mkdtemp(directory))
        return 1;
    (void)snprintf(job.dir, sizeof(job.dir), "%s", directory);
    (void)pthread_mutex_init(&job.mutex, NULL);
    job.journal = json_object();
    open_all(&own, &job);
    own.snapshots = json_array();
    test_many(&own);
    test_resumed(&own, &job);
    test_lost(&own, &job);
    verification_close_notes(&own);
    json_decref(job.journal);
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    ok(system(command) == 0, "clean up");
    return done();
}
