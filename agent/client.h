/* The other side of the API: over the control socket, over TLS to an agent elsewhere, or, when
 * there is no agent, by calling the same handlers in this process; jobs are processes of their own
 * in any case. A client belongs to one thread. */
#ifndef TIDEMARK_AGENT_CLIENT_H
#define TIDEMARK_AGENT_CLIENT_H

#include "agent/conf.h"
#include "agent/json.h"
#include "agent/tls.h"

struct client;

enum client_mode {
    CLIENT_AUTO,  /* the agent; without one in this process, which needs root */
    CLIENT_LOCAL, /* in this process */
};

/* conf is borrowed. ERR_AUTH when the socket is there but may not be used, ERR_DEVICE when no agent
 * answers and we are not root. */
int client_open(const struct conf *conf, enum client_mode mode, struct client **ret,
                struct err *err);
/* Does anybody listen at the path of "unix:/path"? ERR_DEVICE or ERR_AUTH with the system's word
 * for it, which client_call() cannot say. 0 for other addresses. */
int client_look(const char *address, struct err *err);

/* An agent by its address, "https://HOST:PORT" or "unix:/path/agent.sock", and by nothing else.
 * Over TLS our certificate is that of tls; the agent's has to be of the same CA, with role agent,
 * and has to name `node` (NULL: HOST). ERR_USAGE for another kind of address, else as tls_load()
 * and http_open_mutual(): no connection is made yet. Then client_call() fails with ERR_DEVICE when
 * there is no answer, ERR_AUTH when one side does not accept the other's certificate. All is
 * copied. */
struct client_remote {
    const char *address;
    const char *node;
    struct tls_files tls;
    unsigned timeout_s; /* of one client_call(); 0 = 120 */
};
int client_open_remote(const struct client_remote *remote, struct client **ret, struct err *err);

bool client_is_local(const struct client *client);
/* An agent has answered, if with an error: what is wrong is not the way to it. */
bool client_was_answered(const struct client *client);
void client_close(struct client *client);

/* path is not escaped: it is built from ids and tags that were checked. body may be NULL. An error
 * answer becomes err with its code, text and hint; except 503 of /health, which is an answer. */
int client_call(struct client *client, const char *method, const char *path, const json_t *body,
                json_t **ret, struct err *err);

/* Calls each() with every new status of the job, at least about twice a second while bytes move,
 * until it no longer runs; *ret is the last status (new reference). stop() is asked at least every
 * second: true ends with ERR_CANCELLED, the job goes on. */
struct client_follow {
    void (*each)(void *ctx, const json_t *status);
    bool (*stop)(void *ctx);
    void *ctx;
};
int client_follow(struct client *client, const char *id, const struct client_follow *follow,
                  json_t **ret, struct err *err);

#endif
