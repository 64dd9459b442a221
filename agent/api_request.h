/* Bodies of POST requests, checked in one place for the agent, for a command line without an agent
 * and for the fuzzer. Pure, any thread. */
#ifndef TIDEMARK_AGENT_API_REQUEST_H
#define TIDEMARK_AGENT_API_REQUEST_H

#include "agent/json.h"

/* POST /snapshots has the members of a cluster with their slots. */
enum { API_BODY_MAX = 64 << 10, API_TOPOLOGY_MAX = 1 << 20 };

/* Parses and checks the body of a request of this type ("snapshot", "restore", "verification",
 * "execute", "verify", "resume", …; nothing is {}). ERR_USAGE names the
 * field, and for an unknown one the nearest. *ret is the body plus "type": what becomes
 * request.json; new reference. */
int api_request_parse(const char *type, const char *body, size_t len, json_t **ret,
                      struct err *err);

/* Of a snapshot that is to be taken. FORMAT.md allows a tag to begin with '-', and those that do
 * are found and restored; on a command line it looks like an option. ERR_USAGE. */
int api_request_check_tag(const char *tag, struct err *err);

#endif
