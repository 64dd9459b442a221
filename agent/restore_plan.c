/* The plan: everything that can be known before anything is touched. Its result is the journal's
 * "plan", which people read and later steps (restore_load.c) work from. */
#include "agent/restore.h"
#include "agent/pg.h"

#include <stdio.h>

/* Another node of the cluster may have it: `list` shows those of all, a restore takes its own. */
static int explain_missing(struct restore *restore, const char *what, struct err *err)
{
    struct record *record = calloc(1, sizeof(*record)); /* large */
    struct err other;
    char id[ID_TEXT_LEN];
    if (!record)
        return -(int)err->code;
    if (catalog_find(restore->store, &restore->repo, restore->job->conf.cluster, NULL, what, record,
                     NULL, &other) == 0) {
        id_to_text(record->id, id);
        (void)err_set(err, ERR_MISSING, "snapshot '%.64s' (%.12s) is of node %s, and this is %s",
                      what, id, record->node, restore->job->conf.node);
        (void)err_hint(err,
                       "`tidemark cluster restore %.64s` restores every node from it; this one "
                       "alone: make a copy of the configuration with `node = %s`, then `tidemark "
                       "restore --local --config=COPY %.64s`",
                       what, record->node, what);
        record_release(record);
    }
    free(record);
    return -(int)err->code;
}

/* A host without configuration has no cluster and node name of its own to look under; in a cluster
 * restore the snapshot is of one node for all of them. */
static int find_record(struct restore *restore, json_t *warnings, struct err *err)
{
    const struct conf *conf = &restore->job->conf;
    const char *what = restore->request.snapshot;
    const json_t *plan = json_object_get(restore->job->journal, "plan");
    const char *planned = json_string_value(json_object_get(plan, "snapshot"));
    if (planned) /* "latest" must not move between plan and execution */
        what = planned;
    size_t damaged = 0;
    bool empty_host = conf->data_directory[0] == '\0';
    bool any_node = empty_host || restore->request.cluster_job || restore_is_handover(restore);
    int rc = catalog_find(restore->store, &restore->repo, empty_host ? NULL : conf->cluster,
                          any_node ? NULL : conf->node, what, &restore->record, &damaged, err);
    if (rc == -ERR_MISSING && !any_node)
        rc = explain_missing(restore, what, err);
    if (rc < 0)
        return rc;
    restore->record_read = true;
    if (!restore->request.dry_run)
        rc = reading_begin(&restore->reading, restore->store, &restore->repo, restore->job,
                           &restore->record, false, err);
    if (damaged)
        json_append_text(warnings,
                         "%zu snapshot records in the repository are damaged and were passed over",
                         damaged);
    return rc;
}

static void set_archive(struct restore *restore)
{
    restore->archive.store = restore->store;
    restore->archive.repo = &restore->repo;
    restore->archive.system_id = restore->record.system_id;
    (void)snprintf(restore->archive.cluster, sizeof(restore->archive.cluster), "%s",
                   restore->record.cluster);
}

static int check_devices(struct restore *restore, json_t *warnings, struct err *err)
{
    for (size_t i = 0; i < restore->volume_count; i++) {
        int rc = restore_inspect_device(restore, &restore->volumes[i], warnings, err);
        if (rc < 0)
            return rc;
        for (size_t k = 0; k < i; k++)
            if (restore->volumes[k].identity.major == restore->volumes[i].identity.major &&
                restore->volumes[k].identity.minor == restore->volumes[i].identity.minor)
                return err_set(err, ERR_REFUSED, "volumes '%s' and '%s' are the same device '%s'",
                               restore->volumes[k].name, restore->volumes[i].name,
                               restore->volumes[i].identity.path);
    }
    return 0;
}

/* WAL of an LSN target may still lie in pg_wal; the fence pushes it and checks once more. */
static int check_wal(struct restore *restore, json_t *warnings, struct err *err)
{
    int rc = restore_check_wal(restore, err);
    if (rc != -ERR_MISSING || restore->target != TARGET_LSN ||
        !restore_wal_is_local(restore, restore->target_timeline, restore->target_lsn))
        return rc;
    json_append_text(warnings, "not in the repository yet: %s; the fence will push what pg_wal has",
                     err->text);
    err_clear(err);
    return 0;
}

/* Damage in the WAL that the snapshot itself needs (start to tag) must be known while the old data
 * still exists: recovery would meet it when it is gone. Later segments are looked up only; a target
 * behind the tag may need thousands. Once a job: the executing run finds the earlier plan. */
static int read_snapshot_wal(const struct restore *restore, struct err *err)
{
    const struct record *record = &restore->record;
    if (!record->archived || restore->target == TARGET_SNAPSHOT ||
        json_object_get(restore->job->journal, "plan"))
        return 0;
    uint64_t last = (record->tag_lsn - 1) / record->segment_size;
    for (uint64_t i = record->start_lsn / record->segment_size; i <= last; i++) {
        char name[PG_SEGMENT_TEXT];
        free_mem void *raw = NULL;
        size_t len;
        pg_segment_name(record->timeline, i, record->segment_size, name);
        int rc = job_check_cancel(restore->job, err);
        if (rc == 0)
            rc = wal_read(&restore->archive, name, &raw, &len, err);
        if (rc < 0)
            return err_prefix(err, "WAL of the snapshot");
    }
    return 0;
}

static void warn_losses(const struct restore *restore, const json_t *settings, json_t *warnings)
{
    if (restore->target == TARGET_NAME || restore->target == TARGET_XID)
        json_append_text(warnings,
                         "whether the WAL holds this restore point or transaction is known "
                         "only when it is replayed, after the old data is gone");
    restore_commit_warn(restore, warnings);
    if (restore_is_standby(restore))
        json_append_text(warnings, "the server here is a standby: it becomes a primary");
    const char *names = json_str(settings, "synchronous_standby_names");
    if (!restore->request
             .cluster_job) { /* the plan of the whole names each, and knows who attaches */
        json_append_text(warnings, "replication slots are not restored");
        if (names[0])
            json_append_text(warnings,
                             "synchronous_standby_names = '%s': commits of the restored server "
                             "wait until such a standby is attached",
                             names);
    }
    restore_host_warn(restore, warnings);
    for (size_t i = 0; i < restore->volume_count; i++) {
        const struct restore_volume *volume = &restore->volumes[i];
        const struct conf_volume *conf = conf_volume_by_name(&restore->conf, volume->name);
        if (conf && conf->mount[0] && strcmp(conf->mount, volume->mount_point) != 0)
            json_append_text(warnings,
                             "volume '%s' will be mounted at '%s', the configuration says '%s': "
                             "change it there before the next snapshot",
                             volume->name, volume->mount_point, conf->mount);
    }
    if (restore->request.discard_unarchived_wal)
        json_append_text(warnings, "commits that were acknowledged but not archived may be lost "
                                   "(--discard-unarchived-wal)");
    if (restore->request.action != ACTION_PROMOTE)
        json_append_text(warnings, "the server stays in recovery at the target (action %s)",
                         restore_action_name(restore->request.action));
}

/* A device or snapshot that changed since a person read the plan ends the execution. */
static int compare_with_earlier(const json_t *earlier, const json_t *now, struct err *err)
{
    static const char *const fixed[] = {"snapshot", "target", "data_directory", NULL};
    if (!earlier)
        return 0;
    for (size_t i = 0; fixed[i]; i++)
        if (!json_equal(json_object_get(earlier, fixed[i]), json_object_get(now, fixed[i]))) {
            (void)err_set(err, ERR_REFUSED, "%s changed since the plan was made", fixed[i]);
            return err_hint(err, "plan the restore again");
        }
    const json_t *then = json_object_get(earlier, "volumes"),
                 *here = json_object_get(now, "volumes");
    for (size_t i = 0; i < json_array_size(here); i++) {
        const json_t *a = json_object_get(json_array_get(then, i), "identity");
        const json_t *b = json_object_get(json_array_get(here, i), "identity");
        if (!json_equal(a, b)) {
            (void)err_set(err, ERR_REFUSED,
                          "the device of volume '%s' changed since the plan was "
                          "made",
                          json_string_value(json_object_get(json_array_get(here, i), "name")));
            return err_hint(err, "plan the restore again");
        }
    }
    return 0;
}

int restore_plan(struct restore *restore, struct err *err)
{
    free_json json_t *warnings = json_array();
    int rc = find_record(restore, warnings, err);
    if (rc < 0)
        return rc;
    set_archive(restore);
    rc = restore_cluster_check(restore, err);
    if (rc == 0)
        rc = restore_choose_volumes(restore, err);
    if (rc == 0)
        rc = restore_complete_conf(restore, err);
    if (rc == 0)
        rc = restore_handover_check(restore, err);
    if (rc == 0)
        rc = restore_read_manifests(restore, err);
    if (rc == 0)
        rc = restore_resolve_target(restore, warnings, err);
    if (rc == 0)
        rc = check_wal(restore, warnings, err);
    if (rc == 0)
        rc = read_snapshot_wal(restore, err);
    if (rc == 0)
        rc = check_devices(restore, warnings, err);
    if (rc == 0)
        rc = restore_check_server(restore, warnings, err);
    if (rc < 0)
        return rc;
    free_json json_t *settings = restore_plan_settings(restore);
    free_json json_t *primary = NULL;
    free_json json_t *other = NULL;
    rc = restore_check_primary(restore, settings, &primary, err);
    if (rc == 0)
        rc = restore_second_check(restore, warnings, &other, err);
    if (rc < 0)
        return rc;
    warn_losses(restore, settings, warnings);
    json_t *plan = restore_plan_json(restore, warnings);
    (void)json_object_set(plan, "settings", settings);
    if (primary)
        (void)json_object_set(plan, "primary", primary);
    if (other)
        (void)json_object_set(plan, "other_primary", other);
    rc = compare_with_earlier(json_object_get(restore->job->journal, "plan"), plan, err);
    if (rc < 0) {
        json_decref(plan);
        return rc;
    }
    json_object_set_new(restore->job->journal, "plan", plan);
    return 0;
}

/* --- read back -----------------------------------------------------------------------------------
 */

static int load_record(struct restore *restore, const json_t *plan, struct err *err)
{
    const char *cluster, *node, *text;
    uint8_t id[ID_LEN];
    int rc = json_get_string(plan, "cluster", ERR_CORRUPT, &cluster, err);
    if (rc == 0)
        rc = json_get_string(plan, "node", ERR_CORRUPT, &node, err);
    if (rc == 0)
        rc = json_get_string(plan, "snapshot", ERR_CORRUPT, &text, err);
    if (rc < 0)
        return rc;
    if (!id_from_text(text, id))
        return err_set(err, ERR_CORRUPT, "the plan's snapshot '%s' is not an id", text);
    rc = catalog_read_begun(restore->store, &restore->repo, cluster, node, id, &restore->record,
                            err);
    if (rc < 0)
        return rc;
    restore->record_read = true;
    rc = reading_begin(&restore->reading, restore->store, &restore->repo, restore->job,
                       &restore->record, true, err);
    if (rc < 0)
        return rc;
    restore->archive.store = restore->store;
    restore->archive.repo = &restore->repo;
    restore->archive.system_id = restore->record.system_id;
    (void)snprintf(restore->archive.cluster, sizeof(restore->archive.cluster), "%s", cluster);
    return 0;
}

int restore_load(struct restore *restore, struct err *err)
{
    const json_t *plan = json_object_get(restore->job->journal, "plan");
    if (!json_is_object(plan))
        return err_set(err, ERR_CORRUPT, "the journal of job %s has no plan", restore->job->id);
    int rc = restore->record_read ? 0 : load_record(restore, plan, err);
    if (rc == 0)
        rc = restore_load_plan(restore, plan, err);
    if (rc == 0)
        rc = restore_complete_conf(restore, err);
    for (size_t i = 0; rc == 0 && i < restore->volume_count; i++)
        if (!restore->volumes[i].manifest_buf)
            rc = catalog_manifest(restore->store, &restore->repo, &restore->record, i,
                                  &restore->volumes[i].manifest_buf, &restore->volumes[i].manifest,
                                  err);
    return rc;
}
