/* The routes about clusters of agent/api_handle.c. Any thread. */
#ifndef TIDEMARK_AGENT_API_CLUSTER_H
#define TIDEMARK_AGENT_API_CLUSTER_H

#include "agent/api.h"

/* On a coordinator. */
int api_check_coordinator(struct api *api, const json_t *request, struct err *err);
int api_get_cluster(struct api *api, struct api_call *call, const char *arg, struct err *err);
/* Its page for a browser. */
int api_get_page(struct api *api, struct api_call *call, const char *arg, struct err *err);
/* Whether `resume` and `abort` of this job mean to take it over: a coordinator does not have it, or
 * lost it to another. */
bool api_is_elsewhere(struct api *api, const char *id);
/* Not with api->mutex held. The body of call is that of `resume`, or empty. */
int api_take_over(struct api *api, struct api_call *call, const char *id, const char *goal,
                  struct err *err);

/* On a node. Its part `restore` was asked for with this epoch: so its coordinator lives. Ignored
 * unless it is the epoch that the node knows; 0 = none was given. */
void api_note_heard(struct api *api, const char *restore, uint64_t epoch);
/* The same of who asks for GET /node with this epoch; and "heard_ago_ms" in what that says of the
 * reservation, when it is known. */
void api_add_heard(struct api *api, json_t *reservation, uint64_t epoch);
int api_post_claim(struct api *api, struct api_call *call, const char *arg, struct err *err);

#endif
