/* The route POST /checks of agent/api_handle.c. Any thread. */
#ifndef TIDEMARK_AGENT_API_CHECK_H
#define TIDEMARK_AGENT_API_CHECK_H

#include "agent/api.h"

/* Answers when all checks are made; ERR_BUSY while they are made for somebody else. */
int api_post_checks(struct api *api, struct api_call *call, const char *arg, struct err *err);

#endif
