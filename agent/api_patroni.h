/* The second socket, [patroni] socket: what the server's own user may ask for. Only agent/api*.c
 * include it. */
#ifndef TIDEMARK_AGENT_API_PATRONI_H
#define TIDEMARK_AGENT_API_PATRONI_H

#include "agent/api.h"

/* ERR_AUTH unless the call is a handover from beginning to end (POST /restores), or about the job
 * of one (GET and DELETE /jobs/{id}). Any thread. */
int api_patroni_admit(const struct api *api, const struct api_call *call, struct err *err);

/* Before a restore is launched, from whichever socket. A handover needs manager = patroni, and
 * gives up one that was left unfinished: Patroni has done other things with this node since. */
int api_check_handover(struct api *api, const json_t *request, struct err *err);

#endif
