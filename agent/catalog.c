/* The snapshots of a repository. There is no index: the records themselves are the catalogue, found
 * by listing snapshot/ and read one by one (tens of KiB each). An index would be a second truth
 * that a crash can leave behind.
 *
 * A record counts only when its envelope, its JSON and its name agree; anything else is `damaged`
 * and never a candidate, so that a restore cannot be led to a snapshot that is not what its name
 * says. */
#include "agent/catalog.h"

#include <stdio.h>

#include "agent/catalog_load.h"
#include "agent/catalog_names.h"
#include "agent/mark.h"
#include "io/crypt.h"

enum { NEAREST_MAX = 3, MANIFEST_LEN_MAX = 1 << 30 };

/* --- one record ------------------------------------------------------------------------------- */

int catalog_check_withdrawn(struct store *store, const uint8_t id[ID_LEN], struct err *err)
{
    char text[ID_TEXT_LEN];
    int rc = mark_check(store, MARK_WITHDRAWN, id, err);
    if (rc == -ERR_MISSING) {
        err_clear(err);
        return 0;
    }
    id_to_text(id, text);
    return rc < 0 ? rc : err_set(err, ERR_MISSING, "snapshot %s was withdrawn", text);
}

int catalog_read(struct store *store, const struct repo *repo, const char *cluster,
                 const char *node, const uint8_t id[ID_LEN], struct record *ret, struct err *err)
{
    int rc = catalog_check_withdrawn(store, id, err);
    return rc < 0 ? rc : catalog_read_begun(store, repo, cluster, node, id, ret, err);
}

int catalog_read_begun(struct store *store, const struct repo *repo, const char *cluster,
                       const char *node, const uint8_t id[ID_LEN], struct record *ret,
                       struct err *err)
{
    struct catalog_name name = {.cluster = ""};
    (void)snprintf(name.cluster, sizeof(name.cluster), "%s", cluster);
    (void)snprintf(name.node, sizeof(name.node), "%s", node);
    memcpy(name.id, id, ID_LEN);
    return catalog_read_record(store, repo, &name, ret, err);
}

/* --- many records ----------------------------------------------------------------------------- */

int catalog_list(struct store *store, const struct repo *repo, const char *cluster,
                 int (*each)(void *ctx, const struct record *record, struct err *err), void *ctx,
                 size_t *ret_damaged, struct err *err)
{
    free_catalog_names struct catalog_names names = {0};
    free_catalog_records struct catalog_records records = {0};
    int rc = catalog_names_visible(store, cluster, NULL, &names, err);
    if (rc == 0)
        rc = catalog_load(store, repo, names.items, names.count, &records, err);
    for (size_t i = 0; rc == 0 && i < records.count; i++)
        rc = each(ctx, &records.items[i], err);
    if (rc == 0 && ret_damaged)
        *ret_damaged = records.damaged;
    return rc;
}

/* --- finding one ------------------------------------------------------------------------------ */

static size_t min3(size_t a, size_t b, size_t c)
{
    size_t low = a < b ? a : b;
    return low < c ? low : c;
}

/* Levenshtein distance of two texts of at most RECORD_TAG_MAX bytes. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t row[RECORD_TAG_MAX + 1];
    size_t a_len = strlen(a), b_len = strlen(b);
    for (size_t j = 0; j <= b_len; j++)
        row[j] = j;
    for (size_t i = 1; i <= a_len; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_len; j++) {
            size_t above = row[j];
            row[j] = min3(above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[b_len];
}

/* Appends ", text" to a list that is being built in to. */
static void append(char *to, size_t size, const char *text)
{
    size_t len = strlen(to);
    (void)snprintf(to + len, size - len, "%s%s", len ? ", " : "", text);
}

/* The up to NEAREST_MAX tags with the least edit distance, newest first among equals. */
static void nearest_tags(const struct catalog_records *records, const char *what, char *to,
                         size_t size)
{
    to[0] = '\0';
    if (strlen(what) > RECORD_TAG_MAX)
        return;
    size_t taken = 0;
    for (size_t distance = 1; distance <= RECORD_TAG_MAX && taken < NEAREST_MAX; distance++)
        for (size_t i = records->count; i > 0 && taken < NEAREST_MAX; i--)
            if (edit_distance(what, records->items[i - 1].tag) == distance) {
                append(to, size, records->items[i - 1].tag);
                taken++;
            }
}

static int not_found(const struct catalog_records *records, const char *what, struct err *err)
{
    char nearest[NEAREST_MAX * (RECORD_TAG_MAX + 2) + 1];
    nearest_tags(records, what, nearest, sizeof(nearest));
    /* It may well be the one that is damaged: "missing" would be a claim that nobody can make. */
    if (records->damaged) {
        (void)err_set(err, ERR_CORRUPT, "no snapshot '%.64s' among the records that can be read",
                      what);
        return err_hint(err, "%zu snapshot record%s damaged, the first: %.200s", records->damaged,
                        records->damaged == 1 ? " is" : "s are", records->first_damaged);
    }
    (void)err_set(err, ERR_MISSING, "no snapshot '%.64s'", what);
    if (nearest[0])
        return err_hint(err, "the nearest tags are: %s", nearest);
    return err_hint(err, "this repository holds no snapshot of this cluster and node yet");
}

static void describe(const struct record *record, char *to, size_t size)
{
    char id[ID_TEXT_LEN], text[2 * 64 + ID_TEXT_LEN + 8];
    id_to_text(record->id, id);
    (void)snprintf(text, sizeof(text), "%s (%s/%s)", id, record->cluster, record->node);
    append(to, size, text);
}

static int take(struct catalog_records *records, size_t index, struct record *ret)
{
    *ret = records->items[index];
    memset(&records->items[index], 0, sizeof(*ret));
    return 0;
}

static int find_tag(struct catalog_records *records, const char *what, struct record *ret,
                    struct err *err)
{
    char candidates[320] = "";
    size_t count = 0, index = 0;
    for (size_t i = 0; i < records->count; i++)
        if (strcmp(records->items[i].tag, what) == 0) {
            describe(&records->items[i], candidates, sizeof(candidates));
            index = i;
            count++;
        }
    if (count == 1)
        return take(records, index, ret);
    if (count == 0)
        return not_found(records, what, err);
    (void)err_set(err, ERR_USAGE, "tag '%s' is ambiguous: %s", what, candidates);
    return err_hint(err, "give the snapshot's id instead");
}

/* A full id, or a prefix of at least six digits. */
static bool is_id_prefix(const char *what)
{
    size_t len = strlen(what);
    return len >= 6 && len < ID_TEXT_LEN && strspn(what, "0123456789abcdef") == len;
}

/* Finds by name, before any record is read: so a damaged record is reported as what it is to who
 * asks for it by id. Leaves *ret_found false when no id begins so. */
static int find_id(struct store *store, const struct repo *repo, const struct catalog_names *names,
                   const char *what, struct record *ret, bool *ret_found, struct err *err)
{
    char candidates[320] = "", id[ID_TEXT_LEN];
    const struct catalog_name *found = NULL;
    size_t count = 0;
    for (size_t i = 0; i < names->count; i++) {
        id_to_text(names->items[i].id, id);
        if (strncmp(id, what, strlen(what)) != 0)
            continue;
        append(candidates, sizeof(candidates), id);
        found = &names->items[i];
        count++;
    }
    *ret_found = count > 0;
    if (count == 1)
        return catalog_read_record(store, repo, found, ret, err);
    return count ? err_set(err, ERR_USAGE, "id '%s' is ambiguous: %s", what, candidates) : 0;
}

static int one_cluster(const struct catalog_names *names, struct err *err)
{
    for (size_t i = 1; i < names->count; i++)
        if (strcmp(names->items[i].cluster, names->items[0].cluster) != 0) {
            (void)err_set(err, ERR_USAGE, "the repository holds several clusters: %s, %s%s",
                          names->items[0].cluster, names->items[i].cluster, ", …");
            return err_hint(err, "name one with `cluster` in the configuration, or give an id");
        }
    return 0;
}

/* What is neither an id nor absent: a tag or "latest", which need every record. */
static int find_in_records(struct store *store, const struct repo *repo,
                           const struct catalog_names *names, const char *what, struct record *ret,
                           size_t *ret_damaged, struct err *err)
{
    free_catalog_records struct catalog_records records = {0};
    int rc = catalog_load(store, repo, names->items, names->count, &records, err);
    if (rc < 0)
        return rc;
    if (ret_damaged)
        *ret_damaged = records.damaged;
    if (strcmp(what, "latest") != 0)
        return find_tag(&records, what, ret, err);
    return records.count ? take(&records, records.count - 1, ret) : not_found(&records, what, err);
}

int catalog_find(struct store *store, const struct repo *repo, const char *cluster,
                 const char *node, const char *what, struct record *ret, size_t *ret_damaged,
                 struct err *err)
{
    free_catalog_names struct catalog_names names = {0};
    if (ret_damaged)
        *ret_damaged = 0;
    int rc = catalog_names_visible(store, cluster, node, &names, err);
    if (rc < 0)
        return rc;
    bool full_id = is_id_prefix(what) && strlen(what) == ID_TEXT_LEN - 1;
    if (!full_id && (rc = one_cluster(&names, err)) < 0)
        return rc;
    if (!full_id) {
        /* A tag wins over an id prefix: people choose tags, and may choose "decade". */
        rc = find_in_records(store, repo, &names, what, ret, ret_damaged, err);
        if ((rc != -ERR_MISSING && rc != -ERR_CORRUPT) || !is_id_prefix(what))
            return rc;
    }
    bool found;
    struct err by_id;
    int id_rc = find_id(store, repo, &names, what, ret, &found, &by_id);
    if (found) {
        *err = by_id;
        if (id_rc == 0)
            err_clear(err);
        return id_rc;
    }
    if (!full_id)
        return rc;
    (void)err_set(err, ERR_MISSING, "no snapshot '%s'", what);
    return err_hint(err, "`tidemark list` shows the snapshots");
}

/* --- commit ----------------------------------------------------------------------------------- */

int catalog_check_tag(struct store *store, const struct repo *repo, const char *cluster,
                      const char *node, const char *tag, struct err *err)
{
    free_catalog_names struct catalog_names names = {0};
    free_catalog_records struct catalog_records records = {0};
    int rc = catalog_names_visible(store, cluster, node, &names, err);
    if (rc == 0)
        rc = catalog_load(store, repo, names.items, names.count, &records, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < records.count; i++)
        if (strcmp(records.items[i].tag, tag) == 0) {
            char id[ID_TEXT_LEN];
            id_to_text(records.items[i].id, id);
            (void)err_set(err, ERR_BUSY, "tag '%s' is taken by snapshot %s", tag, id);
            return err_hint(err, "choose another tag");
        }
    return 0;
}

/* The same bytes under the same name are our own PUT whose answer was lost. */
static int compare_object(struct store *store, const char *object, const void *ptr, size_t len,
                          struct err *err)
{
    free_mem void *there = NULL;
    size_t there_len;
    int rc = store_get_all(store, object, CATALOG_RECORD_LEN_MAX, &there, &there_len, err);
    if (rc < 0)
        return rc;
    if (there_len != len || memcmp(there, ptr, len) != 0)
        return err_set(err, ERR_REFUSED, "%s: another object has this name already", object);
    return 0;
}

/* A PUT that nobody waits for any more may still be done, and the snapshot is whole then. */
static int not_stored(const struct record *record, struct err *err)
{
    char hint[sizeof(err->hint)];
    if (!err->maybe_done)
        return -(int)err->code;
    memcpy(hint, err->hint, sizeof(hint));
    (void)err_prefix(err, "the record of the snapshot may still arrive");
    return err_hint(err, "look at `tidemark list` before you use the tag '%s' again%s%s",
                    record->tag, hint[0] ? "; " : "", hint);
}

int catalog_commit(struct store *store, const struct repo *repo, const struct record *record,
                   struct err *err)
{
    if (record_check(record, err) < 0) {
        err->code = ERR_INTERNAL; /* we made it: not the repository's fault */
        return err_prefix(err, "not committed");
    }
    int rc = catalog_check_tag(store, repo, record->cluster, record->node, record->tag, err);
    if (rc < 0)
        return rc;
    free_json json_t *json = record_to_json(record);
    free_mem char *text = json_text(json);
    size_t text_len = strlen(text);
    free_mem uint8_t *object = malloc(FMT_HEADER_LEN + text_len);
    if (!object)
        return err_set(err, ERR_INTERNAL, "out of memory for a snapshot record");
    fmt_json_encode(FMT_JSON_RECORD, repo->id, record->id, text, text_len, object);
    char name[STORE_NAME_MAX + 1];
    repo_record_name(name, record->cluster, record->node, record->id);
    rc = store_put(store, name, object, FMT_HEADER_LEN + text_len, err);
    if (rc == STORE_EXISTS)
        rc = compare_object(store, name, object, FMT_HEADER_LEN + text_len, err);
    return rc < 0 ? not_stored(record, err) : rc;
}

/* --- manifests -------------------------------------------------------------------------------- */

/* The longest that a manifest of this volume can be: every pack holds at least one chunk, and each
 * region's table and each pack may be another snapshot's. */
static uint64_t manifest_len_max(const struct repo *repo, const struct record_volume *volume)
{
    uint64_t regions = div_round_up(volume->size, repo->region_size);
    uint64_t chunks = div_round_up(volume->size, repo->chunk_size);
    return FMT_HEADER_LEN + FMT_MANIFEST_FIXED_LEN + regions * FMT_MANIFEST_REGION_LEN +
           chunks * FMT_MANIFEST_PACK_LEN +
           (repo->cipher == REPO_PLAIN ? 0 : (regions + chunks) * FMT_MANIFEST_ORIGIN_LEN);
}

static int check_manifest(const struct repo *repo, const struct record *record,
                          const struct record_volume *volume, const struct fmt_manifest *manifest,
                          struct err *err)
{
    if (memcmp(manifest->volume, volume->id, ID_LEN) != 0 ||
        memcmp(manifest->snapshot, record->id, ID_LEN) != 0)
        return err_set(err, ERR_CORRUPT, "it belongs to another volume or snapshot");
    if (manifest->size != volume->size || manifest->chunk_size != repo->chunk_size ||
        manifest->region_size != repo->region_size)
        return err_set(err, ERR_CORRUPT, "its geometry is not the record's");
    return 0;
}

static int catalog_manifest_once(struct store *store, const struct repo *repo,
                                 const struct record *record, size_t volume_index, void **ret_buf,
                                 struct fmt_manifest *ret, struct err *err)
{
    const struct record_volume *volume = &record->volumes[volume_index];
    char name[STORE_NAME_MAX + 1];
    free_mem void *buf = NULL;
    size_t len;
    repo_manifest_name(name, volume->id, record->id);
    int rc = store_get_all(store, name, manifest_len_max(repo, volume), &buf, &len, err);
    if (rc < 0)
        return rc;
    uint8_t digest[FMT_SHA256_LEN];
    sha256(buf, len, digest);
    struct fmt_manifest manifest;
    if (memcmp(digest, volume->manifest_sha256, sizeof(digest)) != 0)
        rc = err_set(err, ERR_CORRUPT, "its SHA-256 is not the one in the snapshot record");
    else
        rc = fmt_manifest_decode(buf, len, repo->id, &manifest, err);
    if (rc == 0)
        rc = check_manifest(repo, record, volume, &manifest, err);
    if (rc < 0)
        return err_prefix(err, "%s", name);
    *ret = manifest;
    *ret_buf = take_ptr(&buf);
    return 0;
}

int catalog_manifest(struct store *store, const struct repo *repo, const struct record *record,
                     size_t volume_index, void **ret_buf, struct fmt_manifest *ret, struct err *err)
{
    int rc = -ERR_CORRUPT;
    for (unsigned i = 0; rc == -ERR_CORRUPT && i < STORE_READ_TRIES; i++)
        rc = catalog_manifest_once(store, repo, record, volume_index, ret_buf, ret, err);
    return rc;
}

static int manifest_alone_once(struct store *store, const struct repo *repo,
                               const uint8_t volume[ID_LEN], const uint8_t snapshot[ID_LEN],
                               void **ret_buf, struct fmt_manifest *ret, struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    free_mem void *buf = NULL;
    size_t len;
    struct fmt_manifest manifest;
    repo_manifest_name(name, volume, snapshot);
    int rc = store_get_all(store, name, MANIFEST_LEN_MAX, &buf, &len, err);
    if (rc < 0)
        return rc;
    rc = fmt_manifest_decode(buf, len, repo->id, &manifest, err);
    if (rc == 0 && (memcmp(manifest.volume, volume, ID_LEN) != 0 ||
                    memcmp(manifest.snapshot, snapshot, ID_LEN) != 0))
        rc = err_set(err, ERR_CORRUPT, "it belongs to another volume or snapshot");
    if (rc < 0)
        return err_prefix(err, "%s", name);
    *ret = manifest;
    *ret_buf = take_ptr(&buf);
    return 0;
}

int catalog_manifest_alone(struct store *store, const struct repo *repo,
                           const uint8_t volume[ID_LEN], const uint8_t snapshot[ID_LEN],
                           void **ret_buf, struct fmt_manifest *ret, struct err *err)
{
    int rc = -ERR_CORRUPT;
    for (unsigned i = 0; rc == -ERR_CORRUPT && i < STORE_READ_TRIES; i++)
        rc = manifest_alone_once(store, repo, volume, snapshot, ret_buf, ret, err);
    return rc;
}
