/* The listening sockets of the API; agent/api.c serves them. One thread, before any other runs. */
#ifndef TIDEMARK_AGENT_API_SOCKET_H
#define TIDEMARK_AGENT_API_SOCKET_H

#include "io/err.h"

enum { API_CONNECTIONS_MAX = 64 }; /* of each */

/* A Unix socket (0660, group tidemark; 0600 when there is no such group, which is logged), or, with
 * user, that account's (0600). A stale one is replaced; ERR_BUSY when somebody answers on it. The
 * caller removes it in the end. */
int api_listen_unix(const char *path, const char *user, int *ret_fd, struct err *err);

/* A TCP socket on address ("ADDRESS:PORT", see address.h). ERR_BUSY when the port is taken. */
int api_listen_tcp(const char *address, int *ret_fd, struct err *err);

#endif
