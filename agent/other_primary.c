/* See other_primary.h. A restore asks more and wants to know more: restore_second.c. */
#include "agent/other_primary.h"

#include <stdio.h>

#include "agent/json.h"
#include "agent/pg.h"

enum { ASK_TIMEOUT_S = 1 }; /* a probe waits for the answer */

/* One with a text takes writes, but may be this host's own. */
static bool is_other(const json_t *server, const char *system_id)
{
    return json_is(server, "answer", "primary") && !json_str(server, "text")[0] &&
           json_is(server, "system_id", system_id);
}

bool other_primary_find(const struct conf *conf, const char *system_id, bool runs_here,
                        char ret[OTHER_PRIMARY_TEXT])
{
    free_json json_t *servers = json_array();
    struct err ignored;
    size_t i;
    json_t *server;
    if (!conf->primary_connection[0] || !system_id[0] ||
        pg_ask_servers(conf, conf->primary_connection, runs_here, ASK_TIMEOUT_S, servers,
                       &ignored) < 0)
        return false;
    json_array_foreach(servers, i, server)
    {
        if (!is_other(server, system_id))
            continue;
        (void)snprintf(ret, OTHER_PRIMARY_TEXT, "%s:%s", json_str(server, "host"),
                       json_str(server, "port"));
        return true;
    }
    return false;
}
