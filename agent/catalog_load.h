/* Private to agent/catalog*.c: reading one record, and all of a list by several threads, because a
 * record costs a round trip or two and there may be thousands. */
#ifndef TIDEMARK_AGENT_CATALOG_LOAD_H
#define TIDEMARK_AGENT_CATALOG_LOAD_H

#include "agent/record.h"
#include "io/repo.h"

enum { CATALOG_RECORD_LEN_MAX = 64 << 20 };

struct catalog_name {
    char cluster[64], node[64];
    uint8_t id[ID_LEN];
};

struct catalog_records {
    struct record *items;
    size_t count;
    size_t damaged;
    char first_damaged[sizeof(((struct err *)0)->text)]; /* by the order of the names */
};

void catalog_records_release(struct catalog_records *records);
#define free_catalog_records __attribute__((cleanup(catalog_records_release)))

/* The record of this name, which has to be the one in it; a damaged one is read again. */
int catalog_read_record(struct store *store, const struct repo *repo,
                        const struct catalog_name *name, struct record *ret, struct err *err);

/* Reads all names; a damaged record is counted, one that vanished since the listing is skipped, a
 * store that fails ends it. Oldest first. The threads have clones of the store, none outlives the
 * call; as many as the store has connections, 8 at most. */
int catalog_load(struct store *store, const struct repo *repo, const struct catalog_name *names,
                 size_t count, struct catalog_records *ret, struct err *err);

#endif
