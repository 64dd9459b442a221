/* See mark.h. */
#include "agent/mark.h"

#include <stdio.h>
#include <time.h>

#include "io/format.h"

enum { MARK_LEN_MAX = 4096 };

const char mark_expired[] = "expired";
const char mark_abandoned[] = "abandoned";

static const char *const prefixes[] = {[MARK_WITHDRAWN] = "withdrawn/", [MARK_PIN] = "pin/"};

static void object_name(enum mark mark, const uint8_t id[ID_LEN], char ret[STORE_NAME_MAX + 1])
{
    char text[ID_TEXT_LEN];
    id_to_text(id, text);
    (void)snprintf(ret, STORE_NAME_MAX + 1, "%s%s", prefixes[mark], text);
}

static int put(struct store *store, const struct repo *repo, const char *name,
               const uint8_t id[ID_LEN], const char *why, const char *by, struct err *err)
{
    char text_id[ID_TEXT_LEN];
    id_to_text(id, text_id);
    free_json json_t *json = json_pack("{s:i, s:s, s:s*, s:s, s:I}", "format", 1, "id", text_id,
                                       "why", why, "by", by, "written_s", (json_int_t)time(NULL));
    free_mem char *text = json_text(json);
    size_t len = strlen(text);
    free_mem uint8_t *object = malloc(FMT_HEADER_LEN + len);
    if (!object)
        return err_set(err, ERR_INTERNAL, "out of memory for a mark");
    fmt_json_encode(FMT_JSON_MARK, repo->id, id, text, len, object);
    return store_put(store, name, object, FMT_HEADER_LEN + len, err);
}

int mark_put_as(struct store *store, const struct repo *repo, const char *name,
                const uint8_t id[ID_LEN], const char *why, const char *by, struct err *err)
{
    int rc = put(store, repo, name, id, why, by, err);
    return rc < 0 ? rc : 0;
}

int mark_put_new(struct store *store, const struct repo *repo, enum mark mark,
                 const uint8_t id[ID_LEN], const char *why, const char *by, struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    object_name(mark, id, name);
    return put(store, repo, name, id, why, by, err);
}

int mark_put(struct store *store, const struct repo *repo, enum mark mark, const uint8_t id[ID_LEN],
             const char *why, const char *by, struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    object_name(mark, id, name);
    return mark_put_as(store, repo, name, id, why, by, err);
}

int mark_remove(struct store *store, enum mark mark, const uint8_t id[ID_LEN], struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    object_name(mark, id, name);
    return store_remove(store, name, err);
}

int mark_check(struct store *store, enum mark mark, const uint8_t id[ID_LEN], struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    uint64_t size;
    object_name(mark, id, name);
    return store_size(store, name, &size, err);
}

int mark_modified(struct store *store, enum mark mark, const uint8_t id[ID_LEN], int64_t *ret_s,
                  struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    object_name(mark, id, name);
    return store_modified(store, name, ret_s, err);
}

/* --- reading ---------------------------------------------------------------------------------- */

static int check(const json_t *json, enum mark mark, const uint8_t id[ID_LEN], const char **ret_why,
                 struct err *err)
{
    char text[ID_TEXT_LEN];
    bool expired = json_is(json, "why", mark_expired), dead = json_is(json, "why", mark_abandoned);
    id_to_text(id, text);
    if (json_integer_value(json_object_get(json, "format")) != 1)
        return err_set(err, ERR_REFUSED, "the mark has another format");
    if (!json_is(json, "id", text))
        return err_set(err, ERR_CORRUPT, "the mark is another snapshot's");
    if (mark == MARK_WITHDRAWN && !expired && !dead)
        return err_set(err, ERR_CORRUPT, "the mark does not say why");
    *ret_why = mark == MARK_PIN ? NULL : expired ? mark_expired : mark_abandoned;
    return 0;
}

static int read_once(struct store *store, const struct repo *repo, enum mark mark,
                     const uint8_t id[ID_LEN], const char **ret_why, struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    free_mem void *buf = NULL;
    free_json json_t *json = NULL;
    struct fmt_header header;
    const char *text;
    size_t len, text_len;
    object_name(mark, id, name);
    int rc = store_get_all(store, name, MARK_LEN_MAX, &buf, &len, err);
    if (rc == 0)
        rc = fmt_json_decode(buf, len, FMT_JSON_MARK, repo->id, &header, &text, &text_len, err);
    if (rc == 0 && memcmp(header.snapshot, id, ID_LEN) != 0)
        rc = err_set(err, ERR_CORRUPT, "the object is another snapshot's");
    if (rc == 0)
        rc = json_parse(text, text_len, ERR_CORRUPT, &json, err);
    if (rc == 0)
        rc = check(json, mark, id, ret_why, err);
    return rc == -ERR_CORRUPT || rc == -ERR_REFUSED ? err_prefix(err, "%s", name) : rc;
}

int mark_read(struct store *store, const struct repo *repo, enum mark mark,
              const uint8_t id[ID_LEN], const char **ret_why, struct err *err)
{
    int rc = -ERR_CORRUPT;
    for (unsigned i = 0; rc == -ERR_CORRUPT && i < STORE_READ_TRIES; i++)
        rc = read_once(store, repo, mark, id, ret_why, err);
    return rc;
}

/* --- lists ------------------------------------------------------------------------------------ */

void mark_list_release(struct mark_list *list)
{
    free(list->ids);
    *list = (struct mark_list){.ids = NULL};
}

static int add(void *ctx, const char *name, uint64_t size, struct err *err)
{
    struct mark_list *list = ctx;
    uint8_t id[ID_LEN];
    (void)size;
    if (!id_from_text(strchr(name, '/') + 1, id))
        return 0;
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 64;
        uint8_t(*ids)[ID_LEN] = realloc(list->ids, capacity * sizeof(*ids));
        if (!ids)
            return err_set(err, ERR_INTERNAL, "out of memory for a list of marks");
        list->ids = ids;
        list->capacity = capacity;
    }
    memcpy(list->ids[list->count++], id, ID_LEN);
    return 0;
}

/* Names ascend, and so do the ids that are their hex digits. */
int mark_list(struct store *store, enum mark mark, struct mark_list *ret, struct err *err)
{
    return store_list(store, prefixes[mark], add, ret, err);
}

static int compare_ids(const void *a, const void *b)
{
    return memcmp(a, b, ID_LEN);
}

bool mark_list_has(const struct mark_list *list, const uint8_t id[ID_LEN])
{
    return list->count && bsearch(id, list->ids, list->count, ID_LEN, compare_ids) != NULL;
}

/* --- names ------------------------------------------------------------------------------------ */

struct names_search {
    const char *beginning;
    struct mark_names *found;
};

static int note_name(void *ctx, const char *name, uint64_t size, struct err *err)
{
    const struct names_search *search = ctx;
    struct mark_names *found = search->found;
    (void)size;
    if (strncmp(name, search->beginning, strlen(search->beginning)) != 0)
        return 0;
    void *grown = reallocarray(found->items, found->count + 1, sizeof(*found->items));
    if (!grown)
        return err_set(err, ERR_INTERNAL, "out of memory for a list of marks");
    found->items = grown;
    (void)snprintf(found->items[found->count++], sizeof(*found->items), "%s", name);
    return 0;
}

int mark_names(struct store *store, const char *beginning, struct mark_names *ret, struct err *err)
{
    struct names_search search = {.beginning = beginning, .found = ret};
    char prefix[STORE_NAME_MAX + 1];
    (void)snprintf(prefix, sizeof(prefix), "%s", beginning);
    strrchr(prefix, '/')[1] = '\0';
    return store_list(store, prefix, note_name, &search, err);
}
