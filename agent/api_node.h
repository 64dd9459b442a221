/* The routes GET /health, /node and /version of agent/api_handle.c. Any thread. */
#ifndef TIDEMARK_AGENT_API_NODE_H
#define TIDEMARK_AGENT_API_NODE_H

#include "agent/api.h"

/* Its file was changed since api_init(): the agent and its jobs go on with what it read. */
bool api_is_conf_stale(const struct api *api);
int api_get_health(struct api *api, struct api_call *call, const char *arg, struct err *err);
int api_get_node(struct api *api, struct api_call *call, const char *arg, struct err *err);
int api_get_version(struct api *api, struct api_call *call, const char *arg, struct err *err);

/* When conf's file was written; 0 = unknown. */
struct timespec api_conf_changed(const struct conf *conf);

#endif
