/* What a verification has found and how far it came, in its journal: after kill -9 another run goes
 * on from there. */
#include "agent/verification.h"

#include <inttypes.h>
#include <stdio.h>

/* --- damage ------------------------------------------------------------------------------------
 */

void verification_open_notes(struct verification *own, struct job *job)
{
    own->job = job;
    own->damaged = json_array();
    own->names = json_object();
    own->affected = json_array();
    own->unsure = json_array();
    own->gone = json_array();
    (void)pthread_mutex_init(&own->mutex, NULL);
}

void verification_close_notes(struct verification *own)
{
    json_decref(own->damaged);
    json_decref(own->names);
    json_decref(own->affected);
    json_decref(own->unsure);
    json_decref(own->gone);
    json_decref(own->snapshots);
    (void)pthread_mutex_destroy(&own->mutex);
}

static json_t *make_entry(const struct verification *own, const char *object, const struct err *err)
{
    char text[sizeof(err->text) + sizeof(own->where) + 4];
    if (json_array_size(own->damaged) >= VERIFICATION_DAMAGED_MAX)
        return json_pack("{s:s}", "code", err_code_name(err->code));
    (void)snprintf(text, sizeof(text), "%s%s%s", own->where, own->where[0] ? ": " : "", err->text);
    json_t *entry = json_pack("{s:s,s:s,s:s,s:I}", "object", object, "code",
                              err_code_name(err->code), "text", text, "chunks", (json_int_t)0);
    (void)json_array_append(own->damaged, entry);
    return entry;
}

bool verification_note(struct verification *own, const char *object, uint32_t chunk_count,
                       const struct err *err)
{
    if (err->code != ERR_CORRUPT && err->code != ERR_MISSING)
        return false;
    (void)pthread_mutex_lock(&own->mutex);
    own->corrupt |= err->code == ERR_CORRUPT;
    own->met = true;
    json_t *entry = json_object_get(own->names, object);
    if (!entry) {
        entry = make_entry(own, object, err);
        (void)json_object_set_new(own->names, object, entry);
        own->damaged_count++;
    }
    json_t *chunks = json_object_get(entry, "chunks");
    if (chunks)
        (void)json_integer_set(chunks, json_integer_value(chunks) + chunk_count);
    (void)pthread_mutex_unlock(&own->mutex);
    return true;
}

static enum verification_reach reach(const struct verification *own, const char *name)
{
    const json_t *entry = json_object_get(own->names, name);
    return !entry                                               ? REACH_NONE
           : json_is(entry, "code", err_code_name(ERR_MISSING)) ? REACH_MISSING
                                                                : REACH_DAMAGED;
}

/* A manifest lists a pack, or a table pack, because something in it is its own. */
enum verification_reach verification_reach(struct verification *own,
                                           const struct fmt_manifest *manifest)
{
    char name[STORE_NAME_MAX + 1];
    bool lost = own->damaged_count > json_object_size(own->names); /* names of an earlier run */
    enum verification_reach most = lost ? REACH_DAMAGED : REACH_NONE;
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

/* What is behind the list of damage: name → whether it is missing. */
static json_t *save_names(const struct verification *own)
{
    size_t behind = 0, listed = json_array_size(own->damaged);
    const char *name;
    json_t *entry, *names = json_object();
    json_object_foreach(own->names, name, entry)
    {
        if (behind++ >= listed && json_object_size(names) < VERIFICATION_NAMES_MAX)
            (void)json_object_set_new(
                names, name, json_boolean(json_is(entry, "code", err_code_name(ERR_MISSING))));
    }
    return names;
}

static json_t *tags_of(const json_t *snapshots)
{
    size_t i;
    json_t *snapshot, *tags = json_array();
    json_array_foreach(snapshots, i, snapshot)
    {
        (void)json_array_append_new(tags, json_string(json_str(snapshot, "tag")));
    }
    return tags;
}

int verification_save(struct verification *own, const uint8_t *bitmap, size_t bitmap_len,
                      struct err *err)
{
    uint64_t *counts[6];
    list_counts(own, counts);
    (void)pthread_mutex_lock(&own->mutex);
    json_t *position = json_pack(
        "{s:O,s:o,s:o,s:o,s:o,s:I,s:I,s:I,s:I,s:b,s:b}", "snapshots", own->snapshots, "gone",
        json_deep_copy(own->gone), "affected", json_deep_copy(own->affected), "unsure",
        json_deep_copy(own->unsure), "names", save_names(own), "at", (json_int_t)own->at, "volume",
        (json_int_t)own->volume, "seed", (json_int_t)own->seed, "damaged_count",
        (json_int_t)own->damaged_count, "corrupt", own->corrupt, "met", own->met);
    for (size_t i = 0; i < ARRAY_LEN(counts); i++)
        (void)json_object_set_new(position, count_names[i],
                                  json_integer((json_int_t)total(own, i, counts[i])));
    if (bitmap)
        (void)json_object_set_new(position, "regions", json_base64(bitmap, bitmap_len));
    (void)json_object_set_new(own->job->journal, "position", position);
    (void)json_object_set_new(own->job->journal, "damaged", json_deep_copy(own->damaged));
    (void)json_object_set_new(own->job->journal, "affected", tags_of(own->affected));
    (void)json_object_set_new(own->job->journal, "unsure", tags_of(own->unsure));
    (void)pthread_mutex_unlock(&own->mutex);
    return job_journal(own->job, NULL, NULL, err);
}

/* An array of the position, in place of the empty one. */
static bool load_list(const json_t *position, const char *key, json_t **list)
{
    json_t *found = json_object_get(position, key);
    json_decref(*list);
    *list = json_deep_copy(found);
    return json_is_array(found);
}

static int load_lists(struct verification *own, const json_t *position, struct err *err)
{
    size_t i;
    const char *name;
    json_t *entry;
    bool good = load_list(position, "snapshots", &own->snapshots) &&
                (!json_object_get(position, "gone") || load_list(position, "gone", &own->gone)) &&
                load_list(position, "affected", &own->affected) &&
                load_list(position, "unsure", &own->unsure) &&
                load_list(own->job->journal, "damaged", &own->damaged);
    if (!good)
        return err_set(err, ERR_CORRUPT, "the job's position is not one");
    json_array_foreach(own->damaged, i, entry)
    {
        (void)json_object_set(own->names, json_str(entry, "object"), entry);
    }
    json_object_foreach(json_object_get(position, "names"), name, entry)
    {
        enum err_code code = json_is_true(entry) ? ERR_MISSING : ERR_CORRUPT;
        (void)json_object_set_new(own->names, name,
                                  json_pack("{s:s}", "code", err_code_name(code)));
    }
    return 0;
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
    return load_lists(own, position, err);
}

/* --- the end -----------------------------------------------------------------------------------
 */

uint64_t verification_objects(const struct verification *own)
{
    bool any = own->manifests > 0 || own->record_read;
    uint64_t records = own->what ? any : own->at - json_array_size(own->gone);
    return records + own->manifests + own->table_packs + own->packs + own->wal_objects;
}

void verification_set_result(struct verification *own)
{
    uint64_t *counts[6];
    list_counts(own, counts);
    const json_t *first = json_array_get(own->snapshots, 0);
    size_t there = json_array_size(own->snapshots) - json_array_size(own->gone);
    json_t *result = json_pack(
        "{s:I,s:I,s:I,s:O}", "objects", (json_int_t)verification_objects(own), "snapshots",
        (json_int_t)there, "damaged_objects", (json_int_t)own->damaged_count, "gone", own->gone);
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
    (void)json_object_set_new(result, "affected", tags_of(own->affected));
    (void)json_object_set_new(result, "unsure", tags_of(own->unsure));
    (void)json_object_set(result, "affected_snapshots", own->affected);
    (void)json_object_set(result, "unsure_snapshots", own->unsure);
    (void)json_object_set_new(own->job->journal, "result", result);
}

/* "db1/one, db2/one and 3 more": whole names only. */
static void list_names(const json_t *snapshots, bool with_node, char *ret, size_t size)
{
    enum { MORE_LEN = 24 };
    size_t i, len = 0, count = json_array_size(snapshots);
    ret[0] = '\0';
    for (i = 0; i < count; i++) {
        const json_t *snapshot = json_array_get(snapshots, i);
        const char *node = with_node ? json_str(snapshot, "node") : "";
        const char *tag = json_str(snapshot, "tag");
        if (len + strlen(node) + strlen(tag) + MORE_LEN >= size)
            break;
        len += (size_t)snprintf(ret + len, size - len, "%s%s%s%s", i ? ", " : "", node,
                                with_node ? "/" : "", tag);
    }
    if (i == 0 && count > 0)
        (void)snprintf(ret, size, "%zu snapshot%s", count, count == 1 ? "" : "s");
    else if (i < count)
        (void)snprintf(ret + len, size - len, " and %zu more", count - i);
}

/* Nothing that was asked for was there to be read. */
static int nothing_read(const struct verification *own, struct err *err)
{
    char names[160];
    list_names(own->gone, true, names, sizeof(names));
    (void)err_set(err, ERR_MISSING, "nothing was verified: %s was withdrawn or removed meanwhile",
                  names);
    return err_hint(err, "`tidemark list` shows what is there");
}

static int tell_damage(const struct verification *own, struct err *err)
{
    char affected[220], unsure[100];
    bool shared = json_array_size(own->unsure) > 0, all = own->what == NULL;
    uint64_t objects = verification_objects(own);
    list_names(own->affected, all, affected, shared ? sizeof(unsure) : sizeof(affected));
    list_names(own->unsure, all, unsure, sizeof(unsure));
    enum err_code code = own->corrupt ? ERR_CORRUPT : ERR_MISSING;
    (void)err_set(err, code, "%s", json_str(json_array_get(own->damaged, 0), "text"));
    if (own->damaged_count > 1) {
        size_t len = strlen(err->text);
        (void)snprintf(err->text + len, sizeof(err->text) - len,
                       "; and %" PRIu64 " more damaged object%s", own->damaged_count - 1,
                       own->damaged_count == 2 ? "" : "s");
    }
    return err_hint(err,
                    "of %" PRIu64 " object%s; %s cannot be restored whole, take a new one "
                    "(--full)%s%s%s; --json lists all",
                    objects, objects == 1 ? "" : "s", affected[0] ? affected : "this snapshot",
                    shared ? "; whether the damage is in " : "", unsure,
                    shared ? ", which share objects, `tidemark verify` of each tells" : "");
}

int verification_outcome(struct verification *own, struct err *err)
{
    size_t gone = json_array_size(own->gone);
    bool none = gone > 0 && gone == json_array_size(own->snapshots);
    if (none && (own->what || own->damaged_count == 0))
        return nothing_read(own, err);
    return own->damaged_count == 0 ? 0 : tell_damage(own, err);
}
