/* See client.h. */
#include "agent/client.h"

#include <assert.h>
#include <errno.h>
#include <pwd.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "agent/api.h"
#include "agent/job.h"
#include "io/http.h"

enum { CALL_TIMEOUT_S = 120, POLL_MS = 200 };

struct client {
    const struct conf *conf; /* NULL: an agent by its address */
    struct http *http;       /* NULL: local */
    unsigned timeout_s;
    bool answered;
    struct api api;
};

/* --- connecting --------------------------------------------------------------------------------*/
static int no_access(const struct conf *conf, struct err *err)
{
    (void)err_sys(err, ERR_AUTH, "connect to the agent at '%s'", conf->socket);
    const struct passwd *server = getpwnam(conf->os_user);
    if (server && server->pw_uid == geteuid()) /* who has the socket is as good as root */
        return err_hint(err,
                        "run this as root or another person: the server's user '%s' must not "
                        "be in group tidemark",
                        conf->os_user);
    return err_hint(err, "only root and members of group tidemark may use it: adduser USER "
                         "tidemark, then log in again");
}

static int no_agent(const struct conf *conf, struct err *err)
{
    (void)err_sys(err, ERR_DEVICE, "no agent answers at '%s'", conf->socket);
    return err_hint(err, "start it (systemctl start %s), or run this command as root",
                    conf->coordinator_members[0] ? "tidemark-coordinator" : "tidemark-agent");
}

/* -1 with errno: nobody listens. Only connect(2) says why not; libcurl does not. */
static int probe_socket(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    close_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (strlen(path) >= sizeof(address.sun_path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    return connect(fd, (const struct sockaddr *)&address, sizeof(address));
}

/* *ret_there: somebody listens. */
static int probe(const struct conf *conf, bool *ret_there, struct err *err)
{
    *ret_there = probe_socket(conf->socket) == 0;
    if (*ret_there)
        return 0;
    if (errno == EACCES || errno == EPERM)
        return no_access(conf, err);
    return geteuid() == 0 ? 0 : no_agent(conf, err);
}

int client_open(const struct conf *conf, enum client_mode mode, struct client **ret,
                struct err *err)
{
    bool there = false;
    int rc = mode == CLIENT_AUTO ? probe(conf, &there, err) : 0;
    if (rc < 0)
        return rc;
    struct client *client = calloc(1, sizeof(*client));
    if (!client)
        return err_set(err, ERR_INTERNAL, "out of memory");
    client->conf = conf;
    client->timeout_s = CALL_TIMEOUT_S;
    api_init(&client->api, conf);
    if (there)
        rc = http_open_unix(conf->socket, &client->http, err);
    if (rc < 0) {
        free(client);
        return rc;
    }
    *ret = client;
    return 0;
}

static int check_agent(void *ctx, const char *certificate, struct err *err)
{
    (void)ctx;
    return tls_check_role(certificate, TLS_ROLE_AGENT, err);
}

static int open_tls(const struct client_remote *remote, struct http **ret, struct err *err)
{
    struct http_mutual mutual = {.origin = remote->address,
                                 .name = remote->node,
                                 .ca_file = remote->tls.ca_file,
                                 .certificate_file = remote->tls.certificate_file,
                                 .key_file = remote->tls.key_file,
                                 .check = check_agent};
    struct tls *tls; /* libcurl reads the files itself, but says less when they do not fit */
    int rc = tls_load(&remote->tls, &tls, err);
    if (rc < 0)
        return err_prefix(err, "[tls]");
    tls_free(tls);
    return http_open_mutual(&mutual, ret, err);
}

int client_look(const char *address, struct err *err)
{
    if (strncmp(address, "unix:/", 6) != 0 || probe_socket(address + 5) == 0)
        return 0;
    (void)err_sys(err, errno == EACCES || errno == EPERM ? ERR_AUTH : ERR_DEVICE,
                  "connect to the agent at '%.200s'", address + 5);
    return err_hint(err, "is it running there? `socket` in its configuration names the path");
}

int client_open_remote(const struct client_remote *remote, struct client **ret, struct err *err)
{
    bool is_socket = strncmp(remote->address, "unix:/", 6) == 0;
    if (!is_socket && strncmp(remote->address, "https://", 8) != 0) {
        (void)err_set(err, ERR_USAGE, "'%.200s' is no address of an agent", remote->address);
        return err_hint(err, "https://HOST:PORT or unix:/path/agent.sock");
    }
    struct client *client = calloc(1, sizeof(*client));
    if (!client)
        return err_set(err, ERR_INTERNAL, "out of memory");
    client->timeout_s = remote->timeout_s ? remote->timeout_s : CALL_TIMEOUT_S;
    int rc = is_socket ? http_open_unix(remote->address + 5, &client->http, err)
                       : open_tls(remote, &client->http, err);
    if (rc < 0) {
        free(client);
        return rc;
    }
    *ret = client;
    return 0;
}

bool client_is_local(const struct client *client)
{
    return !client->http;
}

bool client_was_answered(const struct client *client)
{
    return client->answered;
}

void client_close(struct client *client)
{
    if (!client)
        return;
    http_close(client->http);
    free(client);
}

/* --- calls -------------------------------------------------------------------------------------*/
static int from_problem(const json_t *problem, unsigned status, struct err *err)
{
    struct err ignored;
    const char *code = "internal", *detail = NULL, *hint = NULL;
    (void)json_opt_string(problem, "code", ERR_INTERNAL, &code, &ignored);
    (void)json_opt_string(problem, "detail", ERR_INTERNAL, &detail, &ignored);
    (void)json_opt_string(problem, "hint", ERR_INTERNAL, &hint, &ignored);
    enum err_code value = err_code_from_name(code);
    if (value == ERR_OK)
        value = ERR_INTERNAL;
    if (detail)
        (void)err_set(err, value, "%s", detail);
    else
        (void)err_set(err, value, "the agent answered with status %u", status);
    return hint ? err_hint(err, "%s", hint) : -(int)value;
}

static bool is_health(const char *path)
{
    return strcmp(path, "/health") == 0;
}

static int take_answer(const char *path, unsigned status, json_t *answer, json_t **ret,
                       struct err *err)
{
    if (status >= 400 && !(status == 503 && is_health(path))) {
        int rc = from_problem(answer, status, err);
        json_decref(answer);
        return rc;
    }
    *ret = answer;
    return 0;
}

static int call_http(struct client *client, const char *method, const char *path,
                     const json_t *body, json_t **ret, struct err *err)
{
    free_mem char *text = body ? json_text(body) : NULL;
    struct http_request request = {.method = method,
                                   .path = path,
                                   .body = text,
                                   .body_len = text ? strlen(text) : 0,
                                   .timeout_s = client->timeout_s};
    struct http_response response = {0};
    json_t *answer = NULL;
    int rc = http_perform(client->http, &request, &response, err);
    if (rc < 0)
        return rc;
    rc = json_parse(response.body, response.len, ERR_INTERNAL, &answer, err);
    free(response.body);
    if (rc < 0)
        return err_prefix(err, "what answers, with status %u, is no agent", response.status);
    client->answered = true;
    return take_answer(path, response.status, answer, ret, err);
}

static int call_local(struct client *client, const char *method, const char *path,
                      const json_t *body, json_t **ret, struct err *err)
{
    free_mem char *text = body ? json_text(body) : NULL;
    char plain[256]; /* what has an argument here is short */
    size_t len = strcspn(path, "?");
    (void)snprintf(plain, sizeof(plain), "%.*s", (int)len, path);
    struct api_call call = {.method = method,
                            .path = path[len] ? plain : path,
                            .body = text,
                            .body_len = text ? strlen(text) : 0,
                            .asker = {.force = strcmp(path + len, "?force=1") == 0}};
    api_handle(&client->api, &call);
    return take_answer(path, call.status, call.answer, ret, err);
}

int client_call(struct client *client, const char *method, const char *path, const json_t *body,
                json_t **ret, struct err *err)
{
    return client->http ? call_http(client, method, path, body, ret, err)
                        : call_local(client, method, path, body, ret, err);
}

/* --- following ---------------------------------------------------------------------------------*/
struct follower {
    const struct client_follow *follow;
    json_t *last;
};

static int follow_line(void *ctx, const char *text, size_t len, struct err *err)
{
    struct follower *follower = ctx;
    json_t *status = NULL;
    int rc = json_parse(text, len, ERR_INTERNAL, &status, err);
    if (rc < 0)
        return err_prefix(err, "the agent's answer");
    json_decref(follower->last);
    follower->last = status;
    follower->follow->each(follower->follow->ctx, status);
    return 0;
}

static bool follow_stop(void *ctx)
{
    const struct follower *follower = ctx;
    return follower->follow->stop(follower->follow->ctx);
}

static int follow_http(struct client *client, const char *id, struct follower *follower,
                       struct err *err)
{
    char path[96];
    (void)snprintf(path, sizeof(path), "/jobs/%s?follow=1", id);
    struct http_request request = {
        .method = "GET", .path = path, .stop = follow_stop, .line = follow_line, .ctx = follower};
    struct http_response response = {0};
    int rc = http_perform(client->http, &request, &response, err);
    if (rc < 0)
        return rc;
    free_json json_t *problem = NULL;
    if (response.status >= 400) {
        rc = json_parse(response.body, response.len, ERR_INTERNAL, &problem, err);
        if (rc == 0)
            rc = from_problem(problem, response.status, err);
    }
    free(response.body);
    return rc;
}

static int follow_local(struct client *client, const char *id, struct follower *follower,
                        struct err *err)
{
    for (;;) {
        json_t *status = NULL;
        int rc = job_status(client->conf, id, &status, err);
        if (rc < 0)
            return rc;
        json_decref(follower->last);
        follower->last = status;
        follower->follow->each(follower->follow->ctx, status);
        if (!json_is_true(json_object_get(status, "running")))
            break;
        if (follow_stop(follower))
            return err_set(err, ERR_CANCELLED, "interrupted");
        job_pause(client->conf, id, POLL_MS);
    }
    job_reap(); /* the job was our child */
    return 0;
}

/* A stream that ends while the job runs means that the agent stopped. Whether the job did as well
 * is known to root; what it left is then its last status; of an agent elsewhere nothing is known.
 */
static int check_ended(const struct client *client, const char *id, json_t **last, struct err *err)
{
    json_t *now = NULL;
    struct err ignored;
    if (*last && !json_is_true(json_object_get(*last, "running")))
        return 0;
    bool known = *last && client->conf && geteuid() == 0 &&
                 job_status(client->conf, id, &now, &ignored) == 0;
    if (known) {
        json_decref(*last);
        *last = now;
    }
    if (*last && !json_is_true(json_object_get(*last, "running")))
        return 0;
    (void)err_set(err, ERR_DEVICE, "%s; the job %s without it",
                  client->conf ? "the agent stopped" : "the connection to the agent ended",
                  known ? "goes on" : "may go on");
    return err_hint(err, "follow it with `tidemark jobs --follow %s` once the agent is back", id);
}

int client_follow(struct client *client, const char *id, const struct client_follow *follow,
                  json_t **ret, struct err *err)
{
    struct follower follower = {.follow = follow};
    int rc = client->http ? follow_http(client, id, &follower, err)
                          : follow_local(client, id, &follower, err);
    if (rc == 0 || (rc == -ERR_DEVICE && follower.last))
        rc = check_ended(client, id, &follower.last, err);
    if (rc < 0) {
        json_decref(follower.last);
        return rc;
    }
    *ret = follower.last;
    return 0;
}
