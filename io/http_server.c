/* An endpoint: its origin taken apart, its addresses, libcurl's global state. */
#include "io/http_curl.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <strings.h>

#include "io/clock.h"

enum {
    CONNECT_TIMEOUT_MS = 10000,
    STALL_TIMEOUT_MS = 30000,
    ADDRESSES_MAX = 8,
    LOOKUP_PAUSE_NS = 1000000000, /* after one that failed, and … */
    LOOKUP_PAUSE_TIMES = 4,       /* … so many times what it took */
};

static CURLcode global_code;

static void global_init(void)
{
    global_code = curl_global_init(CURL_GLOBAL_DEFAULT);
}

int http_curl_init(struct err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, global_init);
    if (global_code != CURLE_OK)
        return err_set(err, ERR_INTERNAL, "libcurl did not start: %s",
                       curl_easy_strerror(global_code));
    return 0;
}

/* "http[s]://" host or [v6] [":" port], and nothing behind it but one '/'. */
static int parse_origin(struct http_server *server, struct err *err)
{
    const char *origin = server->origin;
    bool tls = strncmp(origin, "https://", 8) == 0;
    bool scheme = tls || strncmp(origin, "http://", 7) == 0;
    const char *host = origin + (tls ? 8 : scheme ? 7 : 0);
    bool bracket = scheme && host[0] == '[';
    size_t len = !scheme ? 0 : bracket ? strcspn(host, "]") : strcspn(host, ":/");
    const char *end = scheme ? host + len : origin;
    if (bracket && *end == ']')
        end++;
    else if (bracket)
        scheme = false;
    unsigned long port = tls ? 443 : 80;
    char *port_end = NULL;
    if (*end == ':') {
        port = end[1] >= '0' && end[1] <= '9' ? strtoul(end + 1, &port_end, 10) : 0;
        end = port_end ? port_end : end;
    }
    host += bracket;
    len -= bracket;
    bool good = scheme && len > 0 && len < sizeof(server->host) && port > 0 && port < 65536 &&
                *end == '\0' && !strpbrk(origin, "@ ?#\\");
    if (!good) {
        (void)err_set(err, ERR_CONFIG, "'%.128s' is no address of a server", origin);
        return err_hint(err, "write https://host or https://host:port, without a path");
    }
    memcpy(server->host, host, len);
    server->host[len] = '\0';
    server->port = (unsigned)port;
    return 0;
}

/* Numbers need no look-up; libcurl knows localhost, which glibc does not for names below it. */
static bool needs_lookup(const char *host)
{
    struct in6_addr address;
    size_t len = strlen(host);
    bool local = strcasecmp(host, "localhost") == 0 ||
                 (len > 10 && strcasecmp(host + len - 10, ".localhost") == 0);
    return !local && inet_pton(AF_INET, host, &address) != 1 &&
           inet_pton(AF_INET6, host, &address) != 1;
}

int http_server_open(struct http_server *server, const struct http_endpoint *endpoint,
                     struct err *err)
{
    int rc = http_curl_init(err);
    if (rc < 0)
        return rc;
    *server = (struct http_server){
        .connect_timeout_ms =
            endpoint->connect_timeout_ms ? endpoint->connect_timeout_ms : CONNECT_TIMEOUT_MS,
        .stall_timeout_ms =
            endpoint->stall_timeout_ms ? endpoint->stall_timeout_ms : STALL_TIMEOUT_MS,
        .origin = strdup(endpoint->origin),
        .ca_file = endpoint->ca_file ? strdup(endpoint->ca_file) : NULL,
    };
    if (!server->origin || (endpoint->ca_file && !server->ca_file))
        return err_set(err, ERR_INTERNAL, "out of memory");
    size_t len = strlen(server->origin);
    if (len > 0 && server->origin[len - 1] == '/')
        server->origin[len - 1] = '\0';
    if (server->ca_file && access(server->ca_file, R_OK) < 0)
        return err_sys(err, ERR_CONFIG, "read the CA file '%s'", server->ca_file);
    rc = parse_origin(server, err);
    server->resolve = rc == 0 && needs_lookup(server->host);
    return rc;
}

void http_server_close(struct http_server *server)
{
    curl_slist_free_all(server->addresses);
    free(server->origin);
    free(server->ca_file);
    *server = (struct http_server){0};
}

/* "host:port:address,[address]", as CURLOPT_RESOLVE wants it. */
static int keep_addresses(struct http_server *server, const struct addrinfo *found, struct err *err)
{
    char line[sizeof(server->host) + 16 + ADDRESSES_MAX * (INET6_ADDRSTRLEN + 3)];
    int len = snprintf(line, sizeof(line), "%s:%u:", server->host, server->port);
    unsigned count = 0;
    for (const struct addrinfo *at = found; at && count < ADDRESSES_MAX; at = at->ai_next) {
        char text[INET6_ADDRSTRLEN];
        if (getnameinfo(at->ai_addr, at->ai_addrlen, text, sizeof(text), NULL, 0, NI_NUMERICHOST))
            continue;
        bool six = at->ai_family == AF_INET6;
        len += snprintf(line + len, sizeof(line) - (size_t)len, "%s%s%s%s", count ? "," : "",
                        six ? "[" : "", text, six ? "]" : "");
        count++;
    }
    struct curl_slist *list = count ? curl_slist_append(NULL, line) : NULL;
    if (!list)
        return err_set(err, ERR_INTERNAL, "keep the addresses of '%s'", server->host);
    curl_slist_free_all(server->addresses);
    server->addresses = list;
    server->resolved_ns = monotonic_ns();
    return 0;
}

/* The old addresses may still be right. */
static int unresolved(const struct http_server *server, struct err *err)
{
    if (server->addresses)
        return 0;
    *err = server->unresolved;
    return -(int)err->code;
}

int http_server_resolve(struct http_server *server, struct err *err)
{
    if (!server->resolve || server->resolved_ns)
        return 0;
    uint64_t begin_ns = monotonic_ns();
    if (server->unresolved_ns && begin_ns - server->unresolved_ns < server->lookup_pause_ns)
        return unresolved(server, err);
    server->unresolved_ns = 0;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
    struct addrinfo *found;
    int rc = getaddrinfo(server->host, NULL, &hints, &found);
    if (rc != 0) {
        struct err *why = &server->unresolved;
        (void)err_set(why, ERR_STORE, "look up '%s': %s", server->host, gai_strerror(rc));
        (void)err_hint(why, "see the endpoint's name and /etc/resolv.conf");
        server->unresolved_ns = monotonic_ns();
        server->lookup_pause_ns =
            max_u64(LOOKUP_PAUSE_NS, (server->unresolved_ns - begin_ns) * LOOKUP_PAUSE_TIMES);
        return unresolved(server, err);
    }
    rc = keep_addresses(server, found, err);
    freeaddrinfo(found);
    return rc;
}
