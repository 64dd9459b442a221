/* Where a server listens: "ADDRESS:PORT", "127.0.0.1:7421" or "[::1]:7421". No names: a look-up
 * may fail or change its mind while the host boots. Lean, pure, any thread. */
#ifndef TIDEMARK_AGENT_ADDRESS_H
#define TIDEMARK_AGENT_ADDRESS_H

#include <stdbool.h>
#include <sys/socket.h>

enum { ADDRESS_TEXT_MAX = 80 };

/* False when text is no address with a port from 1 to 65535. */
bool address_parse(const char *text, struct sockaddr_storage *ret, socklen_t *ret_len);
/* The same way back; "-" for what is neither IPv4 nor IPv6. */
void address_format(const struct sockaddr_storage *address, char ret[ADDRESS_TEXT_MAX]);

#endif
