/* See catalog_names.h. */
#include "agent/catalog_names.h"

#include "agent/mark.h"

void catalog_names_release(struct catalog_names *names)
{
    free(names->items);
    *names = (struct catalog_names){.items = NULL};
}

int catalog_names_add(struct catalog_names *names, const struct catalog_name *name, struct err *err)
{
    if (names->count == names->capacity) {
        size_t capacity = names->capacity ? 2 * names->capacity : 64;
        struct catalog_name *items = realloc(names->items, capacity * sizeof(*items));
        if (!items)
            return err_set(err, ERR_INTERNAL, "out of memory for the list of snapshots");
        names->items = items;
        names->capacity = capacity;
    }
    names->items[names->count++] = *name;
    return 0;
}

/* Cuts "<cluster>/<node>/<id>.json"; false for anything else (foreign files are not ours). */
static bool parse_record_name(const char *text, struct catalog_name *ret)
{
    const char *slash = strchr(text, '/');
    const char *second = slash ? strchr(slash + 1, '/') : NULL;
    const char *dot = second ? strchr(second + 1, '.') : NULL;
    char id[ID_TEXT_LEN] = "";
    if (!dot || strcmp(dot, ".json") != 0 || dot - second - 1 != ID_TEXT_LEN - 1)
        return false;
    if ((size_t)(slash - text) >= sizeof(ret->cluster) ||
        (size_t)(second - slash - 1) >= sizeof(ret->node))
        return false;
    memset(ret, 0, sizeof(*ret));
    memcpy(ret->cluster, text, (size_t)(slash - text));
    memcpy(ret->node, slash + 1, (size_t)(second - slash - 1));
    memcpy(id, second + 1, sizeof(id) - 1);
    return id_from_text(id, ret->id);
}

static int on_record(void *ctx, const char *name, uint64_t size, struct err *err)
{
    (void)size;
    struct catalog_name parsed;
    if (!parse_record_name(name + strlen("snapshot/"), &parsed))
        return 0;
    return catalog_names_add(ctx, &parsed, err);
}

int catalog_names_all(struct store *store, struct catalog_names *ret, struct err *err)
{
    return store_list(store, "snapshot/", on_record, ret, err);
}

int catalog_names_visible(struct store *store, const char *cluster, const char *node,
                          struct catalog_names *ret, struct err *err)
{
    free_catalog_names struct catalog_names all = {0};
    free_mark_list struct mark_list withdrawn = {0};
    int rc = catalog_names_all(store, &all, err);
    if (rc == 0)
        rc = mark_list(store, MARK_WITHDRAWN, &withdrawn, err);
    for (size_t i = 0; rc == 0 && i < all.count; i++) {
        const struct catalog_name *name = &all.items[i];
        bool wanted = (!cluster || !*cluster || strcmp(cluster, name->cluster) == 0) &&
                      (!node || !*node || strcmp(node, name->node) == 0);
        if (wanted && !mark_list_has(&withdrawn, name->id))
            rc = catalog_names_add(ret, name, err);
    }
    return rc;
}
