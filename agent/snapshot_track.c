/* Marks that are kept since the parent (track.h), of all volumes of a snapshot: what of them is
 * read, and what the log and the record say of it. */
#include "agent/snapshot.h"

#include <inttypes.h>
#include <stdio.h>

#include "agent/log.h"

void snapshot_track_prepare(struct snapshot *snapshot)
{
    for (size_t i = 0; i < snapshot->group.count; i++) {
        const struct snapshot_volume *volume = &snapshot->volumes[i];
        struct track *track = &snapshot->tracks[i];
        track->wanted = snapshot->group.volumes[i].conf->track;
        track->full = snapshot->request.full;
        track_name(track, snapshot->conf, volume->id);
        if (volume->incremental)
            id_to_text(snapshot->parent.id, track->parent);
        if (!track->wanted)
            (void)track_drop(track);
    }
}

int snapshot_track_choose(struct snapshot *snapshot, size_t index, struct extent_list *ret,
                          struct err *err)
{
    static const struct extent_list nothing = {0};
    struct snapshot_volume *volume = &snapshot->volumes[index];
    const struct track *track = &snapshot->tracks[index];
    const char *name = snapshot->group.volumes[index].conf->name;
    if (!track_counts(track)) {
        if (track->wanted)
            log_warn("snapshot=%s volume=%s not tracked, all of it is read: %s", snapshot->id_text,
                     name, track->why);
        return extent_list_subtract(&volume->used, &nothing, ret, err);
    }
    int rc = push_keep(&volume->push, &volume->used, &track->since, ret, &volume->chunks_kept, err);
    if (rc < 0)
        return rc;
    uint64_t read =
        div_round_up(extent_list_bytes(ret), snapshot->repo.chunk_size); /* the last may be short */
    volume->chunks_used = volume->chunks_kept + read;
    log_info("snapshot=%s volume=%s tracked since %s: reads %" PRIu64 " of %" PRIu64 " chunks",
             snapshot->id_text, name, track->parent, read, volume->chunks_used);
    return 0;
}

void snapshot_track_commit(struct snapshot *snapshot)
{
    for (size_t i = 0; i < snapshot->group.count; i++)
        if (snapshot->tracks[i].wanted)
            track_commit(&snapshot->tracks[i], snapshot->id_text);
}

void snapshot_track_abort(struct snapshot *snapshot)
{
    for (size_t i = 0; i < snapshot->group.count; i++)
        if (snapshot->tracks[i].wanted)
            track_abort(&snapshot->tracks[i]);
}

void snapshot_track_describe(const struct snapshot *snapshot, size_t index,
                             struct record_volume *to)
{
    const struct snapshot_volume *volume = &snapshot->volumes[index];
    const struct track *track = &snapshot->tracks[index];
    to->track_used = volume->chunks_used;
    to->track_read = volume->chunks_used - volume->chunks_kept;
    if (track->wanted && !track_counts(track))
        (void)snprintf(to->track_full, sizeof(to->track_full), "%s", track->why);
}

void snapshot_track_result(const struct snapshot *snapshot, json_t *result)
{
    json_t *volumes = json_array();
    for (size_t i = 0; i < snapshot->record.volume_count; i++) {
        const struct record_volume *volume = &snapshot->record.volumes[i];
        if (volume->track_full[0])
            json_array_append_new(volumes, json_pack("{s:s,s:s}", "name", volume->name,
                                                     "track_full", volume->track_full));
        else if (volume->track_used)
            json_array_append_new(volumes, json_pack("{s:s,s:I,s:I}", "name", volume->name,
                                                     "track_used", (json_int_t)volume->track_used,
                                                     "track_read", (json_int_t)volume->track_read));
    }
    if (json_array_size(volumes) > 0)
        json_object_set_new(result, "volumes", volumes);
    else
        json_decref(volumes);
}
