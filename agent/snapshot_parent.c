/* What a snapshot is compared with: the newest committed snapshot of this node whose manifests can
 * be read, and the table of each of its volumes.
 *
 * Two local things, both only shortcuts: volumes.json (which id a volume has) and the table cache
 * (what a manifest says, as one mapped file). Lost or damaged they are made again from the
 * repository, with the same result. A cache counts only when it is the table of the parent itself:
 * the table of a snapshot that failed, was withdrawn or expired names packs that may be gone. */
#include "agent/snapshot.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

#include "agent/log.h"

/* --- the parent ------------------------------------------------------------------------------- */

struct id_list {
    uint8_t (*items)[ID_LEN];
    size_t count;
    const char *node;
};

static int collect(void *ctx, const struct record *record, struct err *err)
{
    struct id_list *list = ctx;
    if (strcmp(record->node, list->node) != 0)
        return 0;
    uint8_t(*items)[ID_LEN] = realloc(list->items, (list->count + 1) * sizeof(*items));
    if (!items)
        return err_set(err, ERR_INTERNAL, "out of memory for the list of snapshots");
    memcpy(items[list->count++], record->id, ID_LEN);
    list->items = items;
    return 0;
}

/* The parent's volume with our id; or, when this host has forgotten its ids, the one with our name
 * on the same filesystem. SIZE_MAX when there is none of the same size. */
static size_t match_volume(const struct snapshot *snapshot, size_t index,
                           const struct record *candidate)
{
    const struct volume *volume = &snapshot->group.volumes[index];
    const uint8_t *id = snapshot->volumes[index].id;
    for (size_t i = 0; i < candidate->volume_count; i++) {
        const struct record_volume *old = &candidate->volumes[i];
        bool same = id_is_zero(id) ? strcmp(old->name, volume->conf->name) == 0 &&
                                         strcmp(old->fs_uuid, volume->device.fs_uuid) == 0
                                   : memcmp(old->id, id, ID_LEN) == 0;
        if (same && old->size == volume->device.size)
            return i;
    }
    return SIZE_MAX;
}

static void forget_parent(struct snapshot *snapshot)
{
    for (size_t i = 0; i < snapshot->group.count; i++) {
        struct snapshot_volume *volume = &snapshot->volumes[i];
        free(volume->parent_manifest_buf);
        volume->parent_manifest_buf = NULL;
        volume->incremental = false;
    }
    record_release(&snapshot->parent);
    snapshot->has_parent = false;
}

/* Takes candidate as parent when every volume that it shares with us has a readable manifest.
 * Volumes it does not have are captured whole. */
static int try_parent(struct snapshot *snapshot, const uint8_t id[ID_LEN], struct err *err)
{
    const struct conf *conf = snapshot->conf;
    int rc = catalog_read(snapshot->store, &snapshot->repo, conf->cluster, conf->node, id,
                          &snapshot->parent, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; rc == 0 && i < snapshot->group.count; i++) {
        struct snapshot_volume *volume = &snapshot->volumes[i];
        size_t old = match_volume(snapshot, i, &snapshot->parent);
        if (old == SIZE_MAX)
            continue;
        rc = catalog_manifest(snapshot->store, &snapshot->repo, &snapshot->parent, old,
                              &volume->parent_manifest_buf, &volume->parent_manifest, err);
        if (rc < 0)
            break;
        memcpy(volume->id, snapshot->parent.volumes[old].id, ID_LEN);
        volume->incremental = true;
        snapshot->has_parent = true;
    }
    if (rc < 0 || !snapshot->has_parent)
        forget_parent(snapshot);
    return rc;
}

static bool is_damage(int rc)
{
    return rc == -ERR_CORRUPT || rc == -ERR_MISSING || rc == -ERR_REFUSED;
}

static int choose_parent(struct snapshot *snapshot, const struct id_list *ids, struct err *err)
{
    for (size_t i = ids->count; i > 0 && !snapshot->has_parent; i--) {
        int rc = try_parent(snapshot, ids->items[i - 1], err);
        if (rc < 0 && !is_damage(rc))
            return rc;
        if (rc < 0)
            log_warn("snapshot=%s a parent was passed over err=\"%s\"", snapshot->id_text,
                     err->text);
    }
    err_clear(err);
    return 0;
}

int snapshot_find_parent(struct snapshot *snapshot, struct err *err)
{
    struct id_list ids = {.node = snapshot->conf->node};
    size_t damaged = 0;
    int rc = snapshot_ids_load(snapshot, err);
    if (rc == 0 && !snapshot->request.full)
        rc = catalog_list(snapshot->store, &snapshot->repo, snapshot->conf->cluster, collect, &ids,
                          &damaged, err);
    if (rc == 0 && damaged)
        log_warn("snapshot=%s %zu snapshot records are damaged and were passed over",
                 snapshot->id_text, damaged);
    if (rc == 0)
        rc = choose_parent(snapshot, &ids, err);
    free(ids.items);
    return rc < 0 ? rc : snapshot_ids_save(snapshot, err);
}

int snapshot_check_parent(struct snapshot *snapshot, struct err *err)
{
    if (!snapshot->has_parent)
        return 0;
    struct record *again = calloc(1, sizeof(*again));
    if (!again)
        return err_set(err, ERR_INTERNAL, "out of memory for a snapshot record");
    int rc = catalog_read(snapshot->store, &snapshot->repo, snapshot->conf->cluster,
                          snapshot->conf->node, snapshot->parent.id, again, err);
    if (rc == 0)
        record_release(again);
    free(again);
    if (!is_damage(rc))
        return rc;
    char why[sizeof(err->text)];
    (void)snprintf(why, sizeof(why), "%s", err->text);
    (void)err_set(err, ERR_BUSY, "the snapshot's parent went away while it ran: %.500s", why);
    return err_hint(err, "take the snapshot again: it will be compared with another one, or full");
}

/* --- tables ----------------------------------------------------------------------------------- */

static bool is_table_of(const struct table *table, const struct fmt_manifest *manifest)
{
    return memcmp(table->volume, manifest->volume, ID_LEN) == 0 &&
           memcmp(table->snapshot, manifest->snapshot, ID_LEN) == 0 &&
           table->size == manifest->size && table->chunk_size == manifest->chunk_size &&
           table->region_size == manifest->region_size;
}

/* The cache, or a new one from the repository. */
static int open_parent_table(struct snapshot *snapshot, size_t index, struct err *err)
{
    struct snapshot_volume *volume = &snapshot->volumes[index];
    const char *name = snapshot->group.volumes[index].conf->name;
    int rc = table_open(volume->cache_path, &volume->parent_table, err);
    if (rc == 0 && is_table_of(&volume->parent_table, &volume->parent_manifest))
        return 0;
    if (rc == 0)
        table_close(&volume->parent_table);
    log_info("snapshot=%s volume=%s table cache is %s, read from the repository", snapshot->id_text,
             name,
             rc == 0              ? "another snapshot's"
             : rc == -ERR_MISSING ? "missing"
                                  : "damaged");
    rc = table_rebuild(volume->cache_path, snapshot->store, &snapshot->repo,
                       &volume->parent_manifest, &volume->parent_table, err);
    return rc < 0 ? err_prefix(err, "tables of volume '%s'", name) : 0;
}

static int table_paths(struct snapshot *snapshot, struct err *err)
{
    char directory[CONF_PATH_MAX + 16], id[ID_TEXT_LEN];
    (void)snprintf(directory, sizeof(directory), "%s/tables", snapshot->conf->state_dir);
    if (mkdir(directory, 0700) < 0 && errno != EEXIST)
        return err_sys(err, ERR_DEVICE, "create '%s'", directory);
    for (size_t i = 0; i < snapshot->group.count; i++) {
        struct snapshot_volume *volume = &snapshot->volumes[i];
        id_to_text(volume->id, id);
        (void)snprintf(volume->work_path, sizeof(volume->work_path), "%s/%s.work", directory, id);
        (void)snprintf(volume->cache_path, sizeof(volume->cache_path), "%s/%s.table", directory,
                       id);
    }
    return 0;
}

/* A parent whose tables are damaged in the repository is no parent; the snapshot is then full, and
 * does not depend on what is damaged. */
static int open_parent_tables(struct snapshot *snapshot, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < snapshot->group.count; i++)
        if (snapshot->volumes[i].incremental)
            rc = open_parent_table(snapshot, i, err);
    if (!is_damage(rc))
        return rc;
    log_warn("snapshot=%s the parent cannot be used, this snapshot is full err=\"%s\"",
             snapshot->id_text, err->text);
    for (size_t i = 0; i < snapshot->group.count; i++)
        table_close(&snapshot->volumes[i].parent_table);
    forget_parent(snapshot);
    err_clear(err);
    return 0;
}

int snapshot_open_tables(struct snapshot *snapshot, struct err *err)
{
    int rc = table_paths(snapshot, err);
    if (rc == 0)
        rc = open_parent_tables(snapshot, err);
    for (size_t i = 0; rc == 0 && i < snapshot->group.count; i++) {
        struct snapshot_volume *volume = &snapshot->volumes[i];
        rc = table_create(volume->work_path, volume->id, snapshot->record.id,
                          snapshot->group.volumes[i].device.size, &snapshot->repo,
                          volume->incremental ? &volume->parent_table : NULL, &volume->work, err);
    }
    return rc;
}

void snapshot_install_tables(struct snapshot *snapshot)
{
    for (size_t i = 0; i < snapshot->group.count; i++) {
        const struct snapshot_volume *volume = &snapshot->volumes[i];
        if (rename(volume->work_path, volume->cache_path) < 0)
            log_warn("snapshot=%s '%s' was not installed, the next snapshot reads it from the "
                     "repository err=\"%s\"",
                     snapshot->id_text, volume->cache_path, strerrorname_np(errno));
    }
}
