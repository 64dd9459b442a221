/* GET /jobs/{id}?follow=1: one status line whenever it changes, until the job no longer runs. One
 * thread each. */
#ifndef TIDEMARK_AGENT_API_FOLLOW_H
#define TIDEMARK_AGENT_API_FOLLOW_H

#include <stdatomic.h>

#include "agent/conf.h"

struct api_follow;

/* conf and *stopping, which ends it early, are borrowed. Never NULL. */
struct api_follow *api_follow_new(const struct conf *conf, const char *id,
                                  const _Atomic bool *stopping);
/* The next bytes, at most size; waits for them. 0 at the end. */
size_t api_follow_read(struct api_follow *follow, char *buf, size_t size);
void api_follow_free(void *follow);

#endif
