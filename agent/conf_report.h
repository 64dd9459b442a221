/* What decides on what a verb acts: the cluster and node, the repository and its rules, the server
 * and its volumes. An agent tells its own (GET /version), so that whoever names another
 * configuration is not answered of this one. Any thread. */
#ifndef TIDEMARK_AGENT_CONF_REPORT_H
#define TIDEMARK_AGENT_CONF_REPORT_H

#include "agent/conf.h"
#include "agent/json.h"

/* {"repository.url": "file:///b", "volume pgdata.mount": …}, as conf_set() names them; no secret
 * is among them. New reference. */
json_t *conf_report(const struct conf *conf);

/* False: both are the same. Else text says of the first that differs what it is in either. */
enum { CONF_DIFFERENCE_LEN = 512 };
bool conf_report_differs(const json_t *ours, const json_t *theirs, char text[CONF_DIFFERENCE_LEN]);

#endif
