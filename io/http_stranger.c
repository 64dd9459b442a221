/* What answers where an agent should, when it does not speak TLS: a wrong port is named by what is
 * there. Two questions on connections of their own, asked only after a handshake has failed. */
#include "io/http_curl.h"

#include <poll.h>
#include <stdio.h>

#include "io/clock.h"

enum { ANSWER_MS = 2000 };

static CURL *connect_plain(const struct http *http)
{
    const struct http_server *server = &http->server;
    bool six = strchr(server->host, ':') != NULL;
    char url[sizeof(server->host) + 32];
    CURL *curl = curl_easy_init();
    if (!curl)
        return NULL;
    if (http->socket[0])
        (void)snprintf(url, sizeof(url), "http://localhost");
    else
        (void)snprintf(url, sizeof(url), "http://%s%s%s:%u", six ? "[" : "", server->host,
                       six ? "]" : "", server->port);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_CONNECT_ONLY, 1L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)ANSWER_MS);
    if (http->socket[0])
        curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, http->socket);
    if (server->addresses)
        curl_easy_setopt(curl, CURLOPT_RESOLVE, server->addresses);
    if (curl_easy_perform(curl) == CURLE_OK)
        return curl;
    curl_easy_cleanup(curl);
    return NULL;
}

/* The first bytes of the answer; their number. */
static size_t receive(CURL *curl, char *answer, size_t size)
{
    curl_socket_t fd = CURL_SOCKET_BAD;
    size_t len = 0;
    uint64_t begin_ms = monotonic_ms(), waited_ms = 0;
    (void)curl_easy_getinfo(curl, CURLINFO_ACTIVESOCKET, &fd);
    CURLcode code = CURLE_AGAIN;
    while (code == CURLE_AGAIN && waited_ms < ANSWER_MS) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        (void)poll(&wait, 1, (int)(ANSWER_MS - waited_ms));
        code = curl_easy_recv(curl, answer, size, &len);
        waited_ms = monotonic_ms() - begin_ms;
    }
    return code == CURLE_OK ? len : 0;
}

static size_t ask(const struct http *http, const void *question, size_t question_len, char *answer,
                  size_t size)
{
    size_t sent = 0, len = 0;
    CURL *curl = connect_plain(http);
    if (!curl)
        return 0;
    if (curl_easy_send(curl, question, question_len, &sent) == CURLE_OK && sent == question_len)
        len = receive(curl, answer, size);
    curl_easy_cleanup(curl);
    return len;
}

/* SSLRequest (protocol-message-formats in PostgreSQL's manual): its answer is one byte. */
static bool is_postgres(const struct http *http)
{
    static const unsigned char question[] = {0, 0, 0, 8, 4, 210, 22, 47};
    char answer[2];
    return ask(http, question, sizeof(question), answer, sizeof(answer)) == 1 &&
           (answer[0] == 'S' || answer[0] == 'N');
}

static bool is_web_server(const struct http *http)
{
    static const char question[] = "GET / HTTP/1.0\r\n\r\n";
    char answer[5];
    return ask(http, question, sizeof(question) - 1, answer, sizeof(answer)) == sizeof(answer) &&
           memcmp(answer, "HTTP/", sizeof(answer)) == 0;
}

const char *http_stranger(const struct http *http)
{
    if (is_postgres(http))
        return "a PostgreSQL server";
    return !http->socket[0] && is_web_server(http) ? "a web server without TLS" : NULL;
}
