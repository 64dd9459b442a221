/* Pins of snapshots (mark.h) over the API. Only agent/api*.c include it. */
#ifndef TIDEMARK_AGENT_API_PIN_H
#define TIDEMARK_AGENT_API_PIN_H

#include "agent/api.h"
#include "agent/record.h"
#include "io/store.h"

/* POST and DELETE /snapshots/{what}/pin. Any thread. */
int api_post_pin(struct api *api, struct api_call *call, const char *what, struct err *err);
int api_delete_pin(struct api *api, struct api_call *call, const char *what, struct err *err);

/* Sets "pinned" in each of these records. */
int api_show_pins(struct store *store, json_t *records, struct err *err);

/* api_handle.c: a snapshot by id or tag, this node's own or else another's, in its repository. */
struct api_snapshot {
    struct store *store;
    struct repo repo;
    struct record *record;
};
int api_snapshot_open(const struct conf *conf, const char *what, struct api_snapshot *ret,
                      struct err *err);
void api_snapshot_close(struct api_snapshot *snapshot);

#endif
