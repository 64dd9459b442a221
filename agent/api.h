/* The API of one node: api_handle() answers one request and knows nothing of HTTP libraries, so
 * that the command line can call it in its own process when there is no agent; api_serve() puts it
 * on the control socket and on the port of [tls] (agent/api.c, the only file that includes
 * libmicrohttpd). conf/openapi.yaml
 * describes the requests. */
#ifndef TIDEMARK_AGENT_API_H
#define TIDEMARK_AGENT_API_H

#include <pthread.h>
#include <time.h>

#include "agent/conf.h"
#include "agent/job_rules.h"
#include "agent/json.h"
#include "io/repo.h"

/* Of a node: the coordinator that last looked after its part of a cluster restore. */
struct api_heard {
    char restore[ID_TEXT_LEN]; /* the job here; "" = nobody did since this process began */
    uint64_t epoch, at_ms;     /* monotonic */
};

struct api {
    const struct conf *conf;
    /* One change of jobs at a time. Never held while the repository is asked: its directory may
     * hang, and cancelling, or stopping the agent, must not wait for it. */
    pthread_mutex_t mutex;
    struct timespec conf_changed; /* when conf's file was written that we read; 0 = unknown */
    pthread_mutex_t check_mutex;  /* whoever has it makes the checks */
    pthread_mutex_t heard_mutex;
    struct api_heard heard;
};

struct api_call {
    /* in, borrowed */
    const char *method; /* "GET", "POST", "DELETE" */
    const char *path;   /* without the query */
    const char *body;
    size_t body_len;
    const char *idempotency_key; /* NULL = none */
    bool follow;                 /* ?follow=1 */
    struct job_asker asker;      /* ?epoch=N of GET and DELETE, ?force=1 of DELETE, and the door */
    int caller;                  /* pid of who asks on this host; 0 = not known */
    /* out */
    unsigned status;             /* HTTP */
    json_t *answer;              /* new reference; a problem document when status ≥ 400 */
    char *html;                  /* instead of it: a page, malloc'ed, the caller's */
    char allow[32];              /* for 405 */
    char job[ID_TEXT_LEN];       /* the job it was about, for the log; may be empty */
    char follow_id[ID_TEXT_LEN]; /* not empty: stream the status lines of this job instead */
};

void api_init(struct api *api, const struct conf *conf);

/* Any thread. Always fills status and answer. */
void api_handle(struct api *api, struct api_call *call);

/* status and a problem document from err; ERR_USAGE → 400, MISSING → 404, BUSY, REFUSED, PARTIAL →
 * 409, … */
void api_problem(struct api_call *call, const struct err *err);
void api_problem_status(struct api_call *call, unsigned status, const struct err *err);

/* Of html: it shows texts of many hosts, so it loads nothing, runs nothing and sends nothing. */
#define API_PAGE_POLICY                                                                            \
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "         \
    "frame-ancestors 'none'"

/* --- the control socket and the TCP port ---------------------------------------------------- */
struct api_server;

/* Opens the control socket (see api_listen_unix()) and, when [patroni] socket is set, that one
 * (api_patroni.h) and, when [tls] listen is set, the TCP port: who asks there shows a certificate
 * with role coordinator. Starts their threads. ERR_BUSY when somebody else has one of them;
 * ERR_CONFIG and ERR_AUTH for the files of [tls]. */
int api_serve(struct api *api, struct api_server **ret, struct err *err);
/* Ends streams, waits for requests in work, closes both. Jobs go on. NULL is fine. */
void api_server_stop(struct api_server *server);

#endif
