/* See api_pin.h. */
#include "agent/api_pin.h"

#include "agent/catalog.h"
#include "agent/mark.h"

int api_show_pins(struct store *store, json_t *records, struct err *err)
{
    free_mark_list struct mark_list pins = {0};
    size_t i;
    json_t *record;
    int rc = json_array_size(records) > 0 ? mark_list(store, MARK_PIN, &pins, err) : 0;
    json_array_foreach(records, i, record)
    {
        uint8_t id[ID_LEN];
        bool pinned = id_from_text(json_str(record, "id"), id) && mark_list_has(&pins, id);
        (void)json_object_set_new(record, "pinned", json_boolean(pinned));
    }
    return rc;
}

/* An expire that listed the pins before ours was written may have withdrawn the snapshot. It looks
 * for a pin behind its mark, as we look for a mark behind our pin (expire.h). */
static int put_pin(const struct api_snapshot *snapshot, const struct conf *conf, struct err *err)
{
    const uint8_t *id = snapshot->record->id;
    int rc = mark_put(snapshot->store, &snapshot->repo, MARK_PIN, id, NULL, conf->node, err);
    if (rc == 0)
        rc = catalog_check_withdrawn(snapshot->store, id, err);
    if (rc == -ERR_MISSING)
        return err_hint(err, "if an expire runs at this moment, it or the next one finds the pin, "
                             "and the snapshot returns: look again then");
    return rc;
}

static int change_pin(struct api *api, struct api_call *call, const char *what, bool pinned,
                      struct err *err)
{
    struct api_snapshot snapshot;
    char id[ID_TEXT_LEN];
    int rc = api_snapshot_open(api->conf, what, &snapshot, err);
    if (rc < 0)
        return rc;
    id_to_text(snapshot.record->id, id);
    rc = pinned ? put_pin(&snapshot, api->conf, err)
                : mark_remove(snapshot.store, MARK_PIN, snapshot.record->id, err);
    if (rc == 0) {
        call->status = 200;
        call->answer =
            json_pack("{s:s, s:s, s:b}", "id", id, "tag", snapshot.record->tag, "pinned", pinned);
    }
    api_snapshot_close(&snapshot);
    return rc;
}

int api_post_pin(struct api *api, struct api_call *call, const char *what, struct err *err)
{
    return change_pin(api, call, what, true, err);
}

int api_delete_pin(struct api *api, struct api_call *call, const char *what, struct err *err)
{
    return change_pin(api, call, what, false, err);
}
