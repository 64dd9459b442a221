/* What a verification has found and how far it came, in its journal: after kill -9 another run goes
 * on from there. */
#include "agent/verification.h"

#include <inttypes.h>
#include <stdio.h>

/* --- damage ------------------------------------------------------------------------------------
 */

bool verification_note(struct verification *own, const char *object, uint32_t chunk_count,
                       const struct err *err)
{
    size_t i;
    json_t *entry, *found = NULL;
    if (err->code != ERR_CORRUPT && err->code != ERR_MISSING)
        return false;
    (void)pthread_mutex_lock(&own->mutex);
    own->corrupt |= err->code == ERR_CORRUPT;
    own->met = true;
    json_array_foreach(own->damaged, i, entry)
    {
        if (strcmp(json_str(entry, "object"), object) == 0)
            found = entry;
    }
    json_int_t chunks = json_integer_value(json_object_get(found, "chunks"));
    if (found)
        (void)json_object_set_new(found, "chunks", json_integer(chunks + chunk_count));
    else if (own->damaged_count++ < VERIFICATION_DAMAGED_MAX) {
        char text[sizeof(err->text) + sizeof(own->where) + 4];
        (void)snprintf(text, sizeof(text), "%s%s%s", own->where, own->where[0] ? ": " : "",
                       err->text);
        (void)json_array_append_new(own->damaged,
                                    json_pack("{s:s,s:s,s:s,s:I}", "object", object, "code",
                                              err_code_name(err->code), "text", text, "chunks",
                                              (json_int_t)chunk_count));
    }
    (void)pthread_mutex_unlock(&own->mutex);
    return true;
}

static enum verification_reach reach(const struct verification *own, const char *name)
{
    size_t i;
    json_t *entry;
    json_array_foreach(own->damaged, i, entry)
    {
        if (strcmp(json_str(entry, "object"), name) == 0)
            return json_is(entry, "code", err_code_name(ERR_MISSING)) ? REACH_MISSING
                                                                      : REACH_DAMAGED;
    }
    return REACH_NONE;
}

/* A manifest lists a pack, or a table pack, because something in it is its own. */
enum verification_reach verification_reach(struct verification *own,
                                           const struct fmt_manifest *manifest)
{
    char name[STORE_NAME_MAX + 1];
    enum verification_reach most = REACH_NONE;
    for (uint32_t i = 0; own->damaged_count > 0 && i < manifest->pack_count; i++) {
        repo_pack_name(name, manifest->volume, manifest->packs[i].snapshot,
                       manifest->packs[i].number);
        enum verification_reach found = reach(own, name);
        most = found > most ? found : most;
    }
    for (uint32_t i = 0; own->damaged_count > 0 && i < manifest->region_count; i++) {
        repo_table_name(name, manifest->volume, manifest->regions[i].snapshot,
                        manifest->regions[i].number);
        enum verification_reach found = reach(own, name);
        most = found > most ? found : most;
    }
    return most;
}

/* --- position ----------------------------------------------------------------------------------
 */

static const char *const count_names[] = {"manifests",   "table_packs", "packs",
                                          "wal_objects", "bytes_read",  "bytes_stored"};

static void list_counts(struct verification *own, uint64_t *ret[6])
{
    uint64_t *const counts[6] = {&own->manifests,   &own->table_packs, &own->packs,
                                 &own->wal_objects, &own->bytes_read,  &own->bytes_stored};
    memcpy(ret, counts, sizeof(counts));
}

/* With what this run has read so far. */
static uint64_t total(const struct verification *own, size_t index, const uint64_t *count)
{
    const struct io_progress *progress = &own->job->progress;
    return *count + (index == 4   ? atomic_load(&progress->bytes_done)
                     : index == 5 ? atomic_load(&progress->bytes_stored)
                                  : 0);
}

int verification_save(struct verification *own, const uint8_t *bitmap, size_t bitmap_len,
                      struct err *err)
{
    uint64_t *counts[6];
    list_counts(own, counts);
    (void)pthread_mutex_lock(&own->mutex);
    json_t *position = json_pack(
        "{s:O,s:I,s:I,s:I,s:I,s:b,s:b}", "snapshots", own->snapshots, "at", (json_int_t)own->at,
        "volume", (json_int_t)own->volume, "seed", (json_int_t)own->seed, "damaged_count",
        (json_int_t)own->damaged_count, "corrupt", own->corrupt, "met", own->met);
    for (size_t i = 0; i < ARRAY_LEN(counts); i++)
        (void)json_object_set_new(position, count_names[i],
                                  json_integer((json_int_t)total(own, i, counts[i])));
    if (bitmap)
        (void)json_object_set_new(position, "regions", json_base64(bitmap, bitmap_len));
    (void)json_object_set_new(own->job->journal, "position", position);
    (void)json_object_set_new(own->job->journal, "damaged", json_deep_copy(own->damaged));
    (void)json_object_set_new(own->job->journal, "affected", json_deep_copy(own->affected));
    (void)json_object_set_new(own->job->journal, "unsure", json_deep_copy(own->unsure));
    (void)pthread_mutex_unlock(&own->mutex);
    return job_journal(own->job, NULL, NULL, err);
}

int verification_load(struct verification *own, bool *ret, uint8_t **ret_bitmap,
                      size_t *ret_bitmap_len, struct err *err)
{
    const json_t *journal = own->job->journal, *position = json_object_get(journal, "position");
    uint64_t *counts[6];
    *ret = position != NULL;
    if (!position)
        return 0;
    list_counts(own, counts);
    int rc = json_get_u64(position, "at", ERR_CORRUPT, &own->at, err);
    if (rc == 0)
        rc = json_get_u64(position, "volume", ERR_CORRUPT, &own->volume, err);
    if (rc == 0)
        rc = json_get_u64(position, "seed", ERR_CORRUPT, &own->seed, err);
    if (rc == 0)
        rc = json_get_u64(position, "damaged_count", ERR_CORRUPT, &own->damaged_count, err);
    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(counts); i++)
        rc = json_get_u64(position, count_names[i], ERR_CORRUPT, counts[i], err);
    if (rc == 0 && json_object_get(position, "regions"))
        rc = json_get_base64(position, "regions", ERR_CORRUPT, (void **)ret_bitmap, ret_bitmap_len,
                             err);
    if (rc < 0)
        return rc;
    own->corrupt = json_is_true(json_object_get(position, "corrupt"));
    own->met = json_is_true(json_object_get(position, "met"));
    own->snapshots = json_incref(json_object_get(position, "snapshots"));
    json_decref(own->damaged);
    json_decref(own->affected);
    json_decref(own->unsure);
    own->damaged = json_deep_copy(json_object_get(journal, "damaged"));
    own->affected = json_deep_copy(json_object_get(journal, "affected"));
    own->unsure = json_deep_copy(json_object_get(journal, "unsure"));
    return json_is_array(own->snapshots) && own->damaged && own->affected && own->unsure
               ? 0
               : err_set(err, ERR_CORRUPT, "the job's position is not one");
}

/* --- the end -----------------------------------------------------------------------------------
 */

uint64_t verification_objects(const struct verification *own)
{
    bool any = own->manifests > 0 || own->record_read;
    uint64_t records = own->what ? any : own->at;
    return records + own->manifests + own->table_packs + own->packs + own->wal_objects;
}

void verification_set_result(struct verification *own)
{
    uint64_t *counts[6];
    list_counts(own, counts);
    const json_t *first = json_array_get(own->snapshots, 0);
    json_t *result = json_pack("{s:I,s:I,s:I}", "objects", (json_int_t)verification_objects(own),
                               "snapshots", (json_int_t)json_array_size(own->snapshots),
                               "damaged_objects", (json_int_t)own->damaged_count);
    for (size_t i = 0; i < ARRAY_LEN(counts); i++)
        (void)json_object_set_new(result, count_names[i],
                                  json_integer((json_int_t)total(own, i, counts[i])));
    if (own->what && first) {
        (void)json_object_set_new(result, "snapshot", json_string(json_str(first, "id")));
        (void)json_object_set_new(result, "tag", json_string(json_str(first, "tag")));
    }
    if (own->percent) {
        (void)json_object_set_new(result, "percent", json_integer((json_int_t)own->percent));
        (void)json_object_set_new(result, "seed", json_integer((json_int_t)own->seed));
    }
    (void)json_object_set_new(result, "damaged", json_deep_copy(own->damaged));
    (void)json_object_set_new(result, "affected", json_deep_copy(own->affected));
    (void)json_object_set_new(result, "unsure", json_deep_copy(own->unsure));
    (void)json_object_set_new(own->job->journal, "result", result);
}

static void list_tags(const json_t *tags, char *ret, size_t size)
{
    size_t i;
    json_t *tag;
    ret[0] = '\0';
    json_array_foreach(tags, i, tag)
    {
        size_t len = strlen(ret);
        (void)snprintf(ret + len, size - len, "%s%s", len ? ", " : "", json_string_value(tag));
    }
}

int verification_outcome(struct verification *own, struct err *err)
{
    char tags[160], unsure[160];
    bool shared = json_array_size(own->unsure) > 0;
    uint64_t objects = verification_objects(own);
    if (own->damaged_count == 0)
        return 0;
    list_tags(own->affected, tags, sizeof(tags));
    list_tags(own->unsure, unsure, sizeof(unsure));
    enum err_code code = own->corrupt ? ERR_CORRUPT : ERR_MISSING;
    (void)err_set(err, code, "%s", json_str(json_array_get(own->damaged, 0), "text"));
    if (own->damaged_count > 1) {
        size_t len = strlen(err->text);
        (void)snprintf(err->text + len, sizeof(err->text) - len,
                       "; and %" PRIu64 " more damaged object%s", own->damaged_count - 1,
                       own->damaged_count == 2 ? "" : "s");
    }
    return err_hint(
        err,
        "of %" PRIu64 " object%s; %s cannot be restored whole, take a new one (--full)%s%s%s; "
        "--json lists all damage",
        objects, objects == 1 ? "" : "s", tags[0] ? tags : "this snapshot",
        shared ? "; whether what is damaged is a part of " : "", unsure,
        shared ? ", which share objects with it, is told by `tidemark verify` of each" : "");
}
