/* What a coordinator has to know of this node: its server's role, history and replication, its
 * settings that other nodes depend on, its volumes, and whether a cluster restore holds it. */
#ifndef TIDEMARK_AGENT_NODE_REPORT_H
#define TIDEMARK_AGENT_NODE_REPORT_H

#include "agent/conf.h"
#include "agent/json.h"

/* GET /node, see conf/openapi.yaml. Never fails: what cannot be known is null, and "error" says why
 * the server could not be asked. Opens a session of its own; any thread. New reference. */
json_t *node_report(const struct conf *conf);
/* Of that what the server alone says: role, server, timeline, history, … */
json_t *node_server(const struct conf *conf);

#endif
