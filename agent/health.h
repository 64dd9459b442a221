/* Whether this node is well, for probes, coordinators and people: what its restores say
 * (job_health()), and where they say nothing: its reservation, the marks on its devices, the fence,
 * its server. The first that is not ok decides. Everything is looked at anew; any thread. */
#ifndef TIDEMARK_AGENT_HEALTH_H
#define TIDEMARK_AGENT_HEALTH_H

#include "agent/conf.h"
#include "agent/job_rules.h"
#include "agent/json.h"

/* GET /health of an agent, see conf/openapi.yaml. server: node_server()'s answer, or NULL: the
 * server is asked where its answer matters. New reference. */
json_t *health_report(const struct conf *conf, const json_t *server);

/* What a report has of health, in a fixed order of keys. New reference. */
json_t *health_json(const struct health *health);

/* At a daemon's start: what it found, in the log. health: health_report() or cluster_health(). */
void health_log(const json_t *health);

#endif
