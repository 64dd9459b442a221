/* Private to agent/catalog*.c and expire: the names of records, without reading one. One thread. */
#ifndef TIDEMARK_AGENT_CATALOG_NAMES_H
#define TIDEMARK_AGENT_CATALOG_NAMES_H

#include "agent/catalog_load.h"

struct catalog_names {
    struct catalog_name *items;
    size_t count, capacity;
};

void catalog_names_release(struct catalog_names *names);
#define free_catalog_names __attribute__((cleanup(catalog_names_release)))

int catalog_names_add(struct catalog_names *names, const struct catalog_name *name,
                      struct err *err);

/* Adds every record there is, of all clusters, withdrawn or not, in the order of their names. */
int catalog_names_all(struct store *store, struct catalog_names *ret, struct err *err);

/* Adds those of snapshots that are not withdrawn, narrowed to cluster and node unless these are
 * NULL or "". */
int catalog_names_visible(struct store *store, const char *cluster, const char *node,
                          struct catalog_names *ret, struct err *err);

#endif
