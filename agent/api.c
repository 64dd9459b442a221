/* The doors of the API: libmicrohttpd on the control socket and, when there is one, on a TCP port
 * with TLS; one thread a connection (requests are few; a streamed job occupies its thread). Bodies,
 * connections and header memory are limited, of each door by itself; the peer is known by
 * SO_PEERCRED or by its certificate, and every request that changes something is logged with it. */
#include "agent/api.h"

#include <errno.h>
#include <microhttpd.h>
#include <pwd.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>

#include "agent/address.h"
#include "agent/api_patroni.h"
#include "agent/api_follow.h"
#include "agent/api_request.h"
#include "agent/api_socket.h"
#include "agent/cluster_lock.h"
#include "agent/job.h"
#include "agent/log.h"
#include "agent/tls.h"

enum {
    ADDRESS_CONNECTIONS_MAX = API_CONNECTIONS_MAX / 2, /* TCP: no host can take all */
    IDLE_TIMEOUT_S = 30,
    HEADER_MEMORY = 64 << 10,
    DISCARD_MAX = 2 << 20, /* of a body that is too long anyway */
};

struct door {
    struct api_server *server;
    struct MHD_Daemon *daemon;
    struct tls *tls; /* NULL: a socket */
    bool is_patroni;
    char path[sizeof(((struct conf *)0)->socket)]; /* of a socket, to remove it */
};

struct api_server {
    struct api *api;
    struct door socket_door, patroni_door, tcp_door;
    _Atomic bool stopping;
};

/* --- one request -------------------------------------------------------------------------------*/
struct request {
    char *body;
    size_t len;
    bool too_long;
    bool answered; /* MHD may call once more while it discards the rest of a body */
};

struct peer {
    char text[TLS_SUBJECT_MAX + TLS_SERIAL_MAX + ADDRESS_TEXT_MAX + 64]; /* for the log */
};

static struct ucred credentials_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct ucred cred = {.uid = (uid_t)-1};
    socklen_t len = sizeof(cred);
    if (info)
        (void)getsockopt(info->connect_fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
    return cred;
}

static void local_peer(struct MHD_Connection *connection, struct peer *ret)
{
    struct ucred cred = credentials_of(connection);
    struct passwd entry, *found = NULL;
    char buf[1024], user[64] = "";
    if (getpwuid_r(cred.uid, &entry, buf, sizeof(buf), &found) == 0 && found)
        (void)snprintf(user, sizeof(user), "%s", found->pw_name);
    (void)snprintf(ret->text, sizeof(ret->text), "uid=%d user=%s pid=%d", (int)cred.uid, user,
                   (int)cred.pid);
}

static void *session_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    return info ? info->tls_session : NULL;
}

static void remote_peer(struct MHD_Connection *connection, struct peer *ret)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct sockaddr_storage address = {.ss_family = AF_UNSPEC};
    socklen_t len = sizeof(address);
    char from[ADDRESS_TEXT_MAX];
    struct tls_peer peer;
    if (info)
        (void)getpeername(info->connect_fd, (struct sockaddr *)&address, &len);
    address_format(&address, from);
    tls_session_peer(session_of(connection), &peer);
    (void)snprintf(ret->text, sizeof(ret->text), "subject=\"%s\" serial=%s address=%s",
                   peer.subject, peer.serial, from);
}

/* Also called by those who only read, when they are refused. */
static void log_call(const struct door *door, struct MHD_Connection *connection,
                     const struct api_call *call, bool refused)
{
    struct peer peer;
    if (strcmp(call->method, "GET") == 0 && !refused)
        return;
    if (door->tls)
        remote_peer(connection, &peer);
    else
        local_peer(connection, &peer);
    const char *detail = json_string_value(json_object_get(call->answer, "detail"));
    log_info("request: method=%.16s path=%.200s %s status=%u job=%s%s%s%s", call->method,
             call->path, peer.text, call->status, call->job[0] ? call->job : "-",
             detail ? " err=\"" : "", detail ? detail : "", detail ? "\"" : "");
}

static enum MHD_Result send_answer(struct MHD_Connection *connection, const struct api_call *call)
{
    char *text = call->html ? call->html : json_text(call->answer);
    bool problem = call->status >= 400 && call->status != 503;
    size_t len = strlen(text);
    text[len] = '\n'; /* instead of the NUL: a line, for people with curl */
    struct MHD_Response *response =
        MHD_create_response_from_buffer(len + 1, text, MHD_RESPMEM_MUST_FREE);
    if (!response) {
        free(text);
        return MHD_NO;
    }
    (void)MHD_add_response_header(response, "Content-Type",
                                  call->html ? "text/html; charset=utf-8"
                                  : problem  ? "application/problem+json"
                                             : "application/json");
    (void)MHD_add_response_header(response, "Cache-Control", "no-store");
    (void)MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    if (call->html)
        (void)MHD_add_response_header(response, "Content-Security-Policy", API_PAGE_POLICY);
    if (call->allow[0] && call->status == 405)
        (void)MHD_add_response_header(response, "Allow", call->allow);
    if (call->status == 413)
        (void)MHD_add_response_header(response, "Connection", "close");
    enum MHD_Result rc = MHD_queue_response(connection, call->status, response);
    MHD_destroy_response(response);
    return rc;
}

/* --- follow=1 ----------------------------------------------------------------------------------*/
static ssize_t follow_read(void *ctx, uint64_t pos, char *buf, size_t size)
{
    (void)pos;
    size_t len = api_follow_read(ctx, buf, size);
    return len > 0 ? (ssize_t)len : MHD_CONTENT_READER_END_OF_STREAM;
}

static enum MHD_Result send_follow(struct MHD_Connection *connection, struct api_server *server,
                                   const struct api_call *call)
{
    struct api_follow *follow =
        api_follow_new(server->api->conf, call->follow_id, &server->stopping);
    struct MHD_Response *response = MHD_create_response_from_callback(
        MHD_SIZE_UNKNOWN, 16 << 10, follow_read, follow, api_follow_free);
    if (!response) {
        api_follow_free(follow);
        return MHD_NO;
    }
    (void)MHD_add_response_header(response, "Content-Type", "application/x-ndjson");
    enum MHD_Result rc = MHD_queue_response(connection, 200, response);
    MHD_destroy_response(response);
    return rc;
}

/* --- receiving ---------------------------------------------------------------------------------*/
static const char *header(struct MHD_Connection *connection, const char *name)
{
    return MHD_lookup_connection_value(connection, MHD_HEADER_KIND, name);
}

static bool body_is_json(struct MHD_Connection *connection)
{
    static const char json[] = "application/json";
    const char *type = header(connection, "Content-Type");
    if (!type || strncasecmp(type, json, sizeof(json) - 1) != 0)
        return false;
    char next = type[sizeof(json) - 1];
    return next == '\0' || next == ';' || next == ' ';
}

static void refuse(struct api_call *call, unsigned status, const char *text, const char *hint)
{
    struct err err;
    (void)err_set(&err, ERR_USAGE, "%s", text);
    (void)err_hint(&err, "%s", hint);
    api_problem_status(call, status, &err);
}

static size_t body_max(const char *path)
{
    return strcmp(path, "/snapshots") == 0 ? API_TOPOLOGY_MAX : API_BODY_MAX;
}

static void refuse_long(struct api_call *call)
{
    char text[64];
    (void)snprintf(text, sizeof(text), "the body is longer than %zu KiB",
                   body_max(call->path) >> 10);
    refuse(call, 413, text, "");
}

/* The handshake let nobody in without a certificate of the CA, and the socket's mode nobody but its
 * users; what they may do is asked here. */
static bool may_ask(const struct door *door, struct MHD_Connection *connection,
                    struct api_call *call)
{
    struct err err;
    int rc = 0;
    if (door->tls)
        rc = tls_session_check(session_of(connection), TLS_ROLE_COORDINATOR, &err);
    else
        call->caller = credentials_of(connection).pid;
    if (rc == 0 && door->is_patroni)
        rc = api_patroni_admit(door->server->api, call, &err);
    if (rc < 0)
        api_problem(call, &err);
    return rc == 0;
}

/* Browsers name the page that asks. Ours asks for nothing: it was somebody else's, in the browser
 * of a person with a certificate. */
static bool is_browsers(struct MHD_Connection *connection, const char *method)
{
    return strcmp(method, "GET") != 0 && header(connection, "Origin");
}

static bool has_flag(struct MHD_Connection *connection, const char *name)
{
    const char *text = MHD_lookup_connection_value(connection, MHD_GET_ARGUMENT_KIND, name);
    return text && strcmp(text, "1") == 0;
}

/* 0: no such argument. False when it is there and is no epoch. */
static bool epoch_of(struct MHD_Connection *connection, uint64_t *ret)
{
    const char *text = MHD_lookup_connection_value(connection, MHD_GET_ARGUMENT_KIND, "epoch");
    size_t len = text ? strlen(text) : 0;
    *ret = text ? strtoull(text, NULL, 10) : 0;
    return !text ||
           (len < 20 && strspn(text, "0123456789") == len && *ret > 0 && *ret <= CLUSTER_EPOCH_MAX);
}

static enum MHD_Result answer(const struct door *door, struct MHD_Connection *connection,
                              const char *path, const char *method, struct request *request)
{
    struct api_server *server = door->server;
    struct api_call call = {.method = method,
                            .path = path,
                            .body = request->body,
                            .body_len = request->len,
                            .idempotency_key = header(connection, "Idempotency-Key"),
                            .follow = has_flag(connection, "follow"),
                            .asker = {.remote = door->tls != NULL}};
    bool good = epoch_of(connection, &call.asker.epoch);
    call.asker.force = has_flag(connection, "force");
    call.asker.keep_fence = has_flag(connection, "keep_fence");
    bool refused = !may_ask(door, connection, &call);
    if (refused)
        call.follow = false;
    else if (request->too_long)
        refuse_long(&call);
    else if (is_browsers(connection, method))
        refuse(&call, 403, "a page of another site asks for this", "");
    else if (!good)
        refuse(&call, 400, "argument 'epoch' is not a number from 1", "");
    else if (request->len > 0 && !body_is_json(connection))
        refuse(&call, 415, "the body is not application/json",
               "send the header Content-Type: application/json");
    else
        api_handle(server->api, &call);
    log_call(door, connection, &call, refused);
    enum MHD_Result rc =
        call.follow_id[0] ? send_follow(connection, server, &call) : send_answer(connection, &call);
    json_decref(call.answer);
    return rc;
}

/* A body that is a little too long is read to its end before it is refused: an answer in the middle
 * of it would be lost to a client that is still sending. One announced as huge is not. */
static bool announced_too_long(struct MHD_Connection *connection)
{
    const char *length = header(connection, "Content-Length");
    return length && (strlen(length) > 9 || strtoul(length, NULL, 10) > DISCARD_MAX);
}

static enum MHD_Result take_body(struct request *request, size_t len_max, const char *data,
                                 size_t *len)
{
    size_t total = request->len + *len;
    if (total > len_max)
        request->too_long = true;
    if (total > DISCARD_MAX)
        return MHD_NO;
    if (!request->too_long) {
        char *grown = realloc(request->body, total + 1);
        if (!grown)
            return MHD_NO;
        memcpy(grown + request->len, data, *len);
        grown[total] = '\0';
        request->body = grown;
    }
    request->len = total;
    *len = 0;
    return MHD_YES;
}

static enum MHD_Result on_request(void *ctx, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *data_len, void **state)
{
    const struct door *door = ctx;
    struct request *request = *state;
    (void)version;
    if (!request) {
        *state = calloc(1, sizeof(*request));
        if (*state && announced_too_long(connection)) {
            struct api_call call = {.method = method, .path = url};
            refuse_long(&call);
            log_call(door, connection, &call, false);
            enum MHD_Result rc = send_answer(connection, &call);
            json_decref(call.answer);
            return rc;
        }
        return *state ? MHD_YES : MHD_NO;
    }
    if (*data_len > 0)
        return take_body(request, body_max(url), data, data_len);
    if (request->answered)
        return MHD_YES;
    request->answered = true;
    return answer(door, connection, url, method, request);
}

static void on_completed(void *ctx, struct MHD_Connection *connection, void **state,
                         enum MHD_RequestTerminationCode code)
{
    struct request *request = *state;
    (void)ctx;
    (void)connection;
    (void)code;
    if (request)
        free(request->body);
    free(request);
    *state = NULL;
}

/* --- the doors ---------------------------------------------------------------------------------*/
static void on_connection(void *ctx, struct MHD_Connection *connection, void **state,
                          enum MHD_ConnectionNotificationCode code)
{
    const struct door *door = ctx;
    (void)state;
    if (door->tls && code == MHD_CONNECTION_NOTIFY_STARTED)
        tls_session_begin(session_of(connection), door->tls);
}

/* fd is the daemon's, or closed. */
static int open_door(struct door *door, struct api_server *server, int fd, struct err *err)
{
    struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_PRIORITIES, 0, NULL},
        {MHD_OPTION_HTTPS_MEM_CERT, 0, NULL},
        {MHD_OPTION_HTTPS_MEM_KEY, 0, NULL},
        {MHD_OPTION_HTTPS_MEM_TRUST, 0, NULL},
        {MHD_OPTION_PER_IP_CONNECTION_LIMIT, ADDRESS_CONNECTIONS_MAX, NULL},
        {MHD_OPTION_END, 0, NULL}};
    static char priorities[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2";
    unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_POLL;
    door->server = server;
    if (door->tls) {
        flags |= MHD_USE_TLS;
        tls[0].ptr_value = priorities;
        tls[1].ptr_value = tls_certificate_pem(door->tls);
        tls[2].ptr_value = tls_key_pem(door->tls);
        tls[3].ptr_value = tls_ca_pem(door->tls);
    }
    door->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, door, MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)API_CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)IDLE_TIMEOUT_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEADER_MEMORY,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL, MHD_OPTION_NOTIFY_CONNECTION,
        on_connection, door, door->tls ? MHD_OPTION_ARRAY : MHD_OPTION_END, tls, MHD_OPTION_END);
    if (door->daemon)
        return 0;
    (void)close(fd);
    return err_set(err, ERR_INTERNAL, "the HTTP server did not start");
}

static int open_socket(struct api_server *server, struct door *door, const char *path,
                       const char *user, struct err *err)
{
    int fd = -1;
    int rc = api_listen_unix(path, user, &fd, err);
    if (rc < 0)
        return rc;
    rc = open_door(door, server, fd, err);
    if (rc < 0)
        (void)unlink(path);
    else
        (void)snprintf(door->path, sizeof(door->path), "%s", path);
    return rc;
}

static int open_sockets(struct api_server *server, struct err *err)
{
    const struct conf *conf = server->api->conf;
    int rc = open_socket(server, &server->socket_door, conf->socket, NULL, err);
    server->patroni_door.is_patroni = true;
    if (rc == 0 && conf->patroni_socket[0])
        rc = open_socket(server, &server->patroni_door, conf->patroni_socket, conf->os_user, err);
    return rc;
}

/* Peers would refuse to talk with us; the control socket serves all the same. */
static void warn_own(const struct tls *tls)
{
    struct err err;
    time_t expires;
    if (tls_check_own(tls, TLS_ROLE_AGENT, &expires, &err) < 0)
        log_warn("coordinators will refuse our certificate: err=\"%s\"", err.text);
}

static int open_tcp(struct api_server *server, struct err *err)
{
    const struct conf *conf = server->api->conf;
    struct tls_files files = {conf->tls_certificate_file, conf->tls_key_file, conf->tls_ca_file};
    int fd = -1;
    if (!conf->tls_listen[0])
        return 0;
    int rc = tls_load(&files, &server->tcp_door.tls, err);
    if (rc == 0)
        rc = api_listen_tcp(conf->tls_listen, &fd, err);
    if (rc == 0)
        rc = open_door(&server->tcp_door, server, fd, err);
    if (rc < 0)
        return err_prefix(err, "[tls]");
    tls_forget_key(server->tcp_door.tls); /* GnuTLS has it */
    warn_own(server->tcp_door.tls);
    return 0;
}

int api_serve(struct api *api, struct api_server **ret, struct err *err)
{
    struct api_server *server = calloc(1, sizeof(*server));
    if (!server)
        abort();
    server->api = api;
    int rc = open_tcp(server, err); /* first: it is the one that configuration can break */
    if (rc == 0)
        rc = open_sockets(server, err);
    if (rc < 0) {
        api_server_stop(server);
        return rc;
    }
    *ret = server;
    return 0;
}

void api_server_stop(struct api_server *server)
{
    if (!server)
        return;
    atomic_store(&server->stopping, true);
    struct door *doors[] = {&server->socket_door, &server->patroni_door, &server->tcp_door};
    for (size_t i = 0; i < ARRAY_LEN(doors); i++)
        if (doors[i]->path[0])
            (void)unlink(doors[i]->path);
    for (size_t i = 0; i < ARRAY_LEN(doors); i++)
        if (doors[i]->daemon)
            MHD_stop_daemon(doors[i]->daemon); /* joins the threads, closes the listener */
    tls_free(server->tcp_door.tls);
    free(server);
}
