/* Option lock_days: what a snapshot needs is locked before the snapshot is there.
 *
 * Its own objects are, from the moment of their PUT, until the date that this file chooses at the
 * beginning; its record as well. Packs and tables of earlier snapshots, the WAL of start … tag, the
 * history of its timeline, tidemark.repo and the key ring were locked for others and end earlier:
 * their locks are extended to the same date when everything is written, and then the record
 * follows. So what is visible as locked needs nothing that is not, wherever the process dies.
 *
 * A lock is put on the newest version of a name. Where somebody hid an object behind another one,
 * that would lock the wrong one, for good, and the snapshot could not be restored: so the versions
 * are listed first. */
#include "agent/snapshot.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "agent/lock.h"
#include "agent/log.h"
#include "agent/repository_access.h"
#include "io/keyring.h"

int snapshot_lock_begin(struct snapshot *snapshot, struct err *err)
{
    uint64_t lock_s = repository_lock_s(snapshot->conf);
    if (lock_s == 0)
        return 0;
    int rc = store_check_lock(snapshot->store, err);
    if (rc < 0)
        return rc;
    snapshot->record.locked_until_s = snapshot->record.started_s + (int64_t)lock_s;
    store_lock_until(snapshot->store, snapshot->record.locked_until_s);
    return 0;
}

struct needs {
    struct snapshot *snapshot;
    struct lock_list list;
};

static int add(struct needs *needs, const char *name, bool optional, struct err *err)
{
    return lock_list_add(&needs->list, name, needs->snapshot->record.locked_until_s, optional, err);
}

static int add_packs(struct needs *needs, const struct fmt_manifest *manifest, struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < manifest->pack_count; i++) {
        const struct fmt_manifest_pack *pack = &manifest->packs[i];
        if (memcmp(pack->snapshot, needs->snapshot->record.id, ID_LEN) == 0)
            continue;
        repo_pack_name(name, manifest->volume, pack->snapshot, pack->number);
        rc = add(needs, name, false, err);
    }
    return rc;
}

/* Regions beside each other mostly share a table pack. */
static int add_tables(struct needs *needs, const struct fmt_manifest *manifest, struct err *err)
{
    char name[STORE_NAME_MAX + 1], last[STORE_NAME_MAX + 1] = "";
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < manifest->region_count; i++) {
        const struct fmt_manifest_region *region = &manifest->regions[i];
        if (memcmp(region->snapshot, needs->snapshot->record.id, ID_LEN) == 0)
            continue;
        repo_table_name(name, manifest->volume, region->snapshot, region->number);
        if (strcmp(name, last) == 0)
            continue;
        memcpy(last, name, sizeof(last));
        rc = add(needs, name, false, err);
    }
    return rc;
}

static int add_volume(struct needs *needs, size_t index, struct err *err)
{
    const struct snapshot *snapshot = needs->snapshot;
    free_mem void *buf = NULL;
    struct fmt_manifest manifest;
    int rc = catalog_manifest_alone(snapshot->store, &snapshot->repo, snapshot->volumes[index].id,
                                    snapshot->record.id, &buf, &manifest, err);
    if (rc == 0)
        rc = add_packs(needs, &manifest, err);
    return rc < 0 ? rc : add_tables(needs, &manifest, err);
}

/* It was there a moment ago; where a timeline began in the first segment that one has another name,
 * and may be missing here. */
static int add_wal(struct needs *needs, struct err *err)
{
    const struct record *record = &needs->snapshot->record;
    char name[STORE_NAME_MAX + 1], file[PG_SEGMENT_TEXT];
    int rc = 0;
    if (!record->archived)
        return 0;
    (void)snprintf(file, sizeof(file), "%08" PRIX32 ".history", record->timeline);
    repo_wal_name(name, record->cluster, record->system_id, record->timeline, file);
    if (record->timeline > 1)
        rc = add(needs, name, true, err);
    uint64_t first = record->start_lsn / record->segment_size;
    for (uint64_t at = first; rc == 0 && at <= (record->tag_lsn - 1) / record->segment_size; at++) {
        pg_segment_name(record->timeline, at, record->segment_size, file);
        repo_wal_name(name, record->cluster, record->system_id, record->timeline, file);
        rc = add(needs, name, at == first, err);
    }
    return rc;
}

/* The copies are there for when the first are not. */
static int add_repository(struct needs *needs, struct err *err)
{
    const struct keyring *keys = store_keys(needs->snapshot->store);
    char name[STORE_NAME_MAX + 1];
    struct keyring_info info;
    int rc = add(needs, "tidemark.repo", true, err);
    if (rc == 0)
        rc = add(needs, "tidemark.repo.copy", true, err);
    if (!keys)
        return rc;
    keyring_describe(keys, &info);
    for (int copy = 0; rc == 0 && copy < 2; copy++) {
        repo_keys_name(name, info.generation, copy);
        rc = add(needs, name, true, err);
    }
    return rc;
}

static int collect(struct needs *needs, struct err *err)
{
    int rc = add_repository(needs, err);
    for (size_t i = 0; rc == 0 && i < needs->snapshot->group.count; i++)
        rc = add_volume(needs, i, err);
    return rc < 0 ? rc : add_wal(needs, err);
}

/* A server that does not know of locks takes every header. */
static int prove(const struct snapshot *snapshot, struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    struct store_lock lock;
    repo_manifest_name(name, snapshot->volumes[0].id, snapshot->record.id);
    int rc = store_read_lock(snapshot->store, name, &lock, err);
    if (rc < 0 || lock.until_s >= snapshot->record.locked_until_s)
        return rc;
    (void)err_set(err, ERR_STORE, "'%s' was put with a lock, and has none", name);
    return err_hint(err, "the key needs permission to lock objects and to read their locks; or the "
                         "server does not lock: then take lock_days out");
}

static int lock_needs(struct needs *needs, uint64_t *ret_extended, struct err *err)
{
    struct snapshot *snapshot = needs->snapshot;
    int rc = lock_check_hidden(snapshot->store, &snapshot->repo, &needs->list, err);
    if (rc == 0)
        rc = lock_extend_all(snapshot->store, &needs->list, &snapshot->job->progress.cancel,
                             ret_extended, err);
    if (rc != -ERR_MISSING && rc != -ERR_CORRUPT)
        return rc;
    (void)err_prefix(err, "this snapshot needs an object that was there before");
    return err_hint(err,
                    "somebody %s it: see `tidemark check`; `tidemark snapshot --full` needs no "
                    "packs and tables of earlier ones",
                    rc == -ERR_MISSING ? "removed" : "replaced");
}

int snapshot_lock(struct snapshot *snapshot, struct err *err)
{
    struct needs needs = {.snapshot = snapshot};
    uint64_t extended = 0;
    if (snapshot->record.locked_until_s == 0)
        return 0;
    int rc = snapshot_phase(snapshot, "locking", err);
    if (rc == 0)
        rc = prove(snapshot, err);
    if (rc == 0)
        rc = collect(&needs, err);
    if (rc == 0 && snapshot->record.locked_until_s > (int64_t)time(NULL))
        rc = lock_needs(&needs, &extended, err);
    lock_list_release(&needs.list);
    if (rc == 0)
        log_info("snapshot=%s locked_objects_extended=%" PRIu64, snapshot->id_text, extended);
    return rc;
}
