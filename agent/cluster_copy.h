/* The copy of a cluster restore's journal that goes to the repository (FORMAT.md §8), so that
 * another coordinator can take the restore over: cluster_archive.h writes and finds them. It says
 * what was planned and who has it; how far each node is, its agent knows better. It holds nothing
 * secret: how a standby reaches its primary is not in it.
 *
 * Pure, any thread. The bytes of a copy are a stranger's until cluster_copy_parse() has read them.
 */
#ifndef TIDEMARK_AGENT_CLUSTER_COPY_H
#define TIDEMARK_AGENT_CLUSTER_COPY_H

#include "agent/conf.h"
#include "agent/json.h"
#include "io/repo.h"
#include "io/store.h"

enum {
    CLUSTER_COPY_LEN_MAX = 1 << 20,
    CLUSTER_WRITER_LEN = 8,
};
/* The number of the last copy of a restore that is over. */
#define CLUSTER_COPY_OVER UINT32_MAX

/* What a copy's name says. Copies of one job sort by age: a takeover is a higher epoch. */
struct cluster_copy_id {
    char job[ID_TEXT_LEN];
    uint32_t epoch, number;
    char writer[CLUSTER_WRITER_LEN + 1]; /* hex; tells coordinators with the same epoch apart */
};

/* name has STORE_NAME_MAX + 1 bytes. */
void cluster_copy_name(char *name, const char *cluster, const struct cluster_copy_id *id);
/* False for a name that is no copy of this cluster. */
bool cluster_copy_name_parse(const char *name, const char *cluster, struct cluster_copy_id *ret);

/* New reference: the copy of journal, which has its "plan" and the state that is to be told.
 * coordinator: who writes it. */
json_t *cluster_copy_make(const struct cluster_copy_id *id, const char *cluster,
                          const char *coordinator, const json_t *request, const json_t *journal);

/* An object of the repository: *ret gets a new reference to a copy whose every field was checked,
 * and nothing else is in it. ERR_CORRUPT; ERR_REFUSED for a newer format. */
int cluster_copy_parse(const void *buf, size_t len, const struct repo *repo, const char *cluster,
                       const struct cluster_copy_id *id, json_t **ret, struct err *err);
/* The same of its JSON, whose envelope was checked. */
int cluster_copy_check(const json_t *json, const char *cluster, const struct cluster_copy_id *id,
                       json_t **ret, struct err *err);

#endif
