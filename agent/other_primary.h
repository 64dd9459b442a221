/* Whether another server of this cluster takes writes, at the hosts of [postgresql]
 * primary_connection. Opens sessions of its own, up to a few seconds a host; any thread. */
#ifndef TIDEMARK_AGENT_OTHER_PRIMARY_H
#define TIDEMARK_AGENT_OTHER_PRIMARY_H

#include "agent/conf.h"

enum { OTHER_PRIMARY_TEXT = 1200 };

/* system_id: of this host's server, as text. runs_here: that one runs as a primary and is not to be
 * taken for another. ret: "host:port" of the first that surely is another; stays as it is where
 * none is, or where nobody can be asked. */
bool other_primary_find(const struct conf *conf, const char *system_id, bool runs_here,
                        char ret[OTHER_PRIMARY_TEXT]);

#endif
