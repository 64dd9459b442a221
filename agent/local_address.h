/* Whether an address leads to this very host. */
#ifndef TIDEMARK_AGENT_LOCAL_ADDRESS_H
#define TIDEMARK_AGENT_LOCAL_ADDRESS_H

#include "io/base.h"

/* host: as libpq takes it: a directory of Unix sockets, an abstract one, a name, or an address in
 * numbers. True where all addresses of it are loopback's or of an interface of this network
 * namespace; false also when it cannot be resolved. Asks the resolver, which may block. Any thread.
 */
bool address_is_local(const char *host);

#endif
