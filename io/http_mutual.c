/* TLS with certificates on both sides, for http_perform(). Two names are kept apart: the address
 * that is connected to, and what the peer's certificate must say. */
#include "io/http_curl.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <strings.h>

enum {
    KEEPALIVE_S = 5,
    KEEPALIVE_AGAIN_S = 5,
    LOST_MS = 10000, /* nothing of what was sent is acknowledged: the network is cut */
    STALL_S = 30,    /* an agent repeats the line of a job that does not change every 10 s */
};

static int copy(const char *from, char **to, struct err *err)
{
    *to = strdup(from);
    return *to ? 0 : err_set(err, ERR_INTERNAL, "out of memory");
}

/* It becomes the host of a URL: nothing that ends it, and nothing that would be an address there,
 * as is all whose last part is a number. */
static bool is_host(const char *name)
{
    size_t len = strcspn(name, "/:@?#[]\\% ");
    const char *dot = strrchr(name, '.');
    const char *last = dot ? dot + 1 : name;
    bool number = last[strspn(last, "0123456789")] == '\0' || strncasecmp(last, "0x", 2) == 0;
    return len > 0 && len < 256 && name[len] == '\0' && !number;
}

/* "name:port:host:port": only where the connection goes to changes. */
static int route(struct http *http, const char *name, struct err *err)
{
    char text[600];
    const struct http_server *server = &http->server;
    bool six = strchr(server->host, ':') != NULL;
    if (!is_host(name)) {
        (void)err_set(err, ERR_CONFIG, "'%.80s' cannot be the name in a certificate", name);
        return err_hint(
            err, "a node name that ends in a number of its own cannot be told from an address");
    }
    (void)snprintf(http->base, sizeof(http->base), "https://%s:%u", name, server->port);
    (void)snprintf(text, sizeof(text), "%s:%u:%s%s%s:%u", name, server->port, six ? "[" : "",
                   server->host, six ? "]" : "", server->port);
    int rc = copy(text, &http->peer.route, err);
    if (rc == 0)
        http->peer.connect_to = curl_slist_append(NULL, http->peer.route);
    return rc < 0 || http->peer.connect_to ? rc : err_set(err, ERR_INTERNAL, "out of memory");
}

static int open_peer(struct http *http, const struct http_mutual *mutual, struct err *err)
{
    struct http_endpoint endpoint = {.origin = mutual->origin, .ca_file = mutual->ca_file};
    if (strncmp(mutual->origin, "https://", 8) != 0) {
        (void)err_set(err, ERR_CONFIG, "'%.128s' is no address of an agent", mutual->origin);
        return err_hint(err, "write https://HOST:PORT");
    }
    int rc = http_server_open(&http->server, &endpoint, err);
    if (rc == 0)
        rc = copy(mutual->certificate_file, &http->peer.certificate_file, err);
    if (rc == 0)
        rc = copy(mutual->key_file, &http->peer.key_file, err);
    if (rc < 0)
        return rc;
    http->peer.check = mutual->check;
    http->peer.ctx = mutual->ctx;
    (void)snprintf(http->base, sizeof(http->base), "%s", http->server.origin);
    if (mutual->name && strcasecmp(mutual->name, http->server.host) != 0)
        rc = route(http, mutual->name, err);
    http->curl = curl_easy_init();
    return rc < 0 || http->curl ? rc : err_set(err, ERR_INTERNAL, "libcurl did not start");
}

int http_open_mutual(const struct http_mutual *mutual, struct http **ret, struct err *err)
{
    struct http *http = calloc(1, sizeof(*http));
    if (!http)
        return err_set(err, ERR_INTERNAL, "out of memory");
    int rc = open_peer(http, mutual, err);
    if (rc < 0) {
        http_close(http);
        return rc;
    }
    *ret = http;
    return 0;
}

void http_mutual_close(struct http_peer *peer)
{
    curl_slist_free_all(peer->connect_to);
    free(peer->certificate_file);
    free(peer->key_file);
    free(peer->route);
}

/* --- the peer's certificate --------------------------------------------------------------------
 */

static int on_socket(void *ctx, curl_socket_t socket, curlsocktype purpose)
{
    struct http_peer *peer = ctx;
    unsigned lost_ms = LOST_MS;
    (void)purpose;
    peer->unchecked = true;
    /* With the keep-alive probes this ends the wait for an answer, too (tcp(7)). An agent that is
     * only slow acknowledges. What fails to be set is only waited for longer. */
    (void)setsockopt(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, &lost_ms, sizeof(lost_ms));
    return CURL_SOCKOPT_OK;
}

/* What libcurl says of the first certificate of the chain under this name: "Cert:-----BEGIN …". */
static const char *certificate_of(CURL *curl, const char *name)
{
    size_t len = strlen(name);
    struct curl_certinfo *chain = NULL;
    if (curl_easy_getinfo(curl, CURLINFO_CERTINFO, &chain) != CURLE_OK || !chain ||
        chain->num_of_certs < 1)
        return NULL;
    for (const struct curl_slist *at = chain->certinfo[0]; at; at = at->next)
        if (strncmp(at->data, name, len) == 0 && at->data[len] == ':')
            return at->data + len + 1;
    return NULL;
}

/* After the handshake, before the request. */
static int on_connected(void *ctx, char *a, char *b, int c, int d)
{
    struct http *http = ctx;
    struct http_peer *peer = &http->peer;
    (void)a, (void)b, (void)c, (void)d;
    if (!peer->unchecked || !peer->check)
        return CURL_PREREQFUNC_OK;
    const char *certificate = certificate_of(http->curl, "Cert");
    peer->rc = certificate ? peer->check(peer->ctx, certificate, &peer->err)
                           : err_set(&peer->err, ERR_INTERNAL, "libcurl shows no certificate");
    peer->unchecked = peer->rc < 0;
    return peer->rc < 0 ? CURL_PREREQFUNC_ABORT : CURL_PREREQFUNC_OK;
}

/* --- a request ---------------------------------------------------------------------------------
 */

int http_mutual_begin(struct http *http, bool follows, struct err *err)
{
    CURL *curl = http->curl;
    struct http_peer *peer = &http->peer;
    peer->rc = 0;
    if (http_server_resolve(&http->server, err) < 0) {
        err->code = ERR_DEVICE;
        return err_hint(err, "see the address and /etc/resolv.conf");
    }
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "https");
    curl_easy_setopt(curl, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 1L);
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 2L);
    curl_easy_setopt(curl, CURLOPT_CAINFO, http->server.ca_file);
    curl_easy_setopt(curl, CURLOPT_CAPATH, NULL);
    curl_easy_setopt(curl, CURLOPT_SSLCERT, peer->certificate_file);
    curl_easy_setopt(curl, CURLOPT_SSLKEY, peer->key_file);
    curl_easy_setopt(curl, CURLOPT_KEYPASSWD, ""); /* never ask on the terminal */
    /* A resumed session shows no certificate. */
    curl_easy_setopt(curl, CURLOPT_SSL_SESSIONID_CACHE, 0L);
    curl_easy_setopt(curl, CURLOPT_CERTINFO, 1L);
    curl_easy_setopt(curl, CURLOPT_MAXCONNECTS, 1L);
    curl_easy_setopt(curl, CURLOPT_SOCKOPTFUNCTION, on_socket);
    curl_easy_setopt(curl, CURLOPT_SOCKOPTDATA, peer);
    curl_easy_setopt(curl, CURLOPT_PREREQFUNCTION, on_connected);
    curl_easy_setopt(curl, CURLOPT_PREREQDATA, http);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)http->server.connect_timeout_ms);
    curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(curl, CURLOPT_TCP_KEEPIDLE, (long)KEEPALIVE_S);
    curl_easy_setopt(curl, CURLOPT_TCP_KEEPINTVL, (long)KEEPALIVE_AGAIN_S);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, follows ? (long)STALL_S : 0L);
    if (http->server.addresses)
        curl_easy_setopt(curl, CURLOPT_RESOLVE, http->server.addresses);
    if (peer->connect_to)
        curl_easy_setopt(curl, CURLOPT_CONNECT_TO, peer->connect_to);
    return 0;
}

/* With TLS 1.3 a client is connected before the server has looked at its certificate: a refusal
 * comes as an alert in the place of the answer, and libcurl has no code for that. */
static bool is_alert(const char *text)
{
    return strstr(text, " alert ") != NULL;
}

static int refused_us(const struct http *http, const char *text, struct err *err)
{
    (void)err_set(err, ERR_AUTH, "the agent at %s does not accept the certificate '%s': %s",
                  http->server.origin, http->peer.certificate_file, text);
    return err_hint(err, "the agent's log says why");
}

static int refused_it(const struct http *http, const char *text, struct err *err)
{
    long chain = 0; /* 1: libcurl's first value, it failed at the name in it; else who signed it */
    (void)curl_easy_getinfo(http->curl, CURLINFO_SSL_VERIFYRESULT, &chain);
    const char *names = certificate_of(http->curl, "X509v3 Subject Alternative Name");
    (void)err_set(err, ERR_AUTH, "the certificate of %s is not accepted: %s%s%.200s",
                  http->server.origin, text, names ? "; it names " : "", names ? names : "");
    if (chain <= 1)
        return err_hint(err, "it must name '%.*s' among its alternative names",
                        (int)strcspn(http->base + 8, ":"), http->base + 8);
    return err_hint(err, "'%s' must hold the CA that signed it", http->server.ca_file);
}

int http_mutual_failure(const struct http *http, CURLcode code, struct err *err)
{
    const char *text = http->error[0] ? http->error : curl_easy_strerror(code);
    if (http->peer.rc < 0) {
        *err = http->peer.err;
        return err_prefix(err, "%s", http->server.origin);
    }
    if (code == CURLE_PEER_FAILED_VERIFICATION)
        return refused_it(http, text, err);
    if (code == CURLE_SSL_CERTPROBLEM || code == CURLE_SSL_CACERT_BADFILE)
        return err_set(err, ERR_CONFIG, "use the certificates of [tls]: %s", text);
    if (code == CURLE_SSL_CLIENTCERT || is_alert(text))
        return refused_us(http, text, err);
    const char *stranger = code == CURLE_SSL_CONNECT_ERROR ? http_stranger(http) : NULL;
    if (stranger)
        return err_set(err, ERR_CONFIG, "%s answers at %s, not an agent", stranger,
                       http->server.origin);
    (void)err_set(err, ERR_DEVICE, "no answer from the agent at %s: %s", http->server.origin, text);
    if (code == CURLE_COULDNT_CONNECT)
        return err_hint(err, "does it run there, with [tls] listen?");
    if (code == CURLE_RECV_ERROR || code == CURLE_SEND_ERROR || code == CURLE_GOT_NOTHING)
        return err_hint(err, "it hung up: its log says whether it refused the certificate");
    return -(int)err->code;
}
