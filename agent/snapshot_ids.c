/* volumes.json: which id each volume of this node has. A shortcut: deleted it is made again from
 * the parent's record. */
#include "agent/snapshot.h"

#include <stdio.h>

static void volumes_path(const struct snapshot *snapshot, char *path, size_t size)
{
    (void)snprintf(path, size, "%s/volumes.json", snapshot->conf->state_dir);
}

int snapshot_id_find(const json_t *ids, const char *name, uint8_t ret[ID_LEN], struct err *err)
{
    const char *text = NULL;
    if (!json_is_object(ids))
        return err_set(err, ERR_CORRUPT, "the ids of volumes are not an object");
    int rc = json_opt_string(ids, name, ERR_CORRUPT, &text, err);
    if (rc == 0 && text && !id_from_text(text, ret))
        rc = err_set(err, ERR_CORRUPT, "the id of volume '%s' is not one", name);
    return rc;
}

/* An id that is written down; zero when there is none. A damaged file is an error, not an empty
 * one: new ids for all volumes would silently make full snapshots for ever. */
int snapshot_ids_load(struct snapshot *snapshot, struct err *err)
{
    char path[CONF_PATH_MAX + 64];
    free_json json_t *ids = NULL;
    volumes_path(snapshot, path, sizeof(path));
    int rc = json_load_path(path, &ids, err);
    if (rc == -ERR_MISSING) {
        err_clear(err);
        return 0;
    }
    if (rc < 0)
        return rc;
    for (size_t i = 0; rc == 0 && i < snapshot->group.count; i++)
        rc = snapshot_id_find(ids, snapshot->group.volumes[i].conf->name, snapshot->volumes[i].id,
                              err);
    return rc < 0 ? err_prefix(err, "'%s'", path) : 0;
}

/* Durable before the first object is written under an id. Entries of other volumes stay. */
int snapshot_ids_save(struct snapshot *snapshot, struct err *err)
{
    char path[CONF_PATH_MAX + 64], text[ID_TEXT_LEN];
    free_json json_t *ids = NULL;
    bool changed = false;
    volumes_path(snapshot, path, sizeof(path));
    if (json_load_path(path, &ids, err) < 0)
        ids = json_object();
    for (size_t i = 0; i < snapshot->group.count; i++) {
        struct snapshot_volume *volume = &snapshot->volumes[i];
        if (id_is_zero(volume->id)) {
            int rc = id_random(volume->id, err);
            if (rc < 0)
                return rc;
        }
        id_to_text(volume->id, text);
        const char *name = snapshot->group.volumes[i].conf->name;
        const char *there = json_string_value(json_object_get(ids, name));
        changed = changed || !there || strcmp(there, text) != 0;
        json_object_set_new(ids, name, json_string(text));
    }
    return changed ? json_save(path, ids, true, err) : 0;
}
