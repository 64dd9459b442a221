/* See address.h. */
#include "agent/address.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool parse_port(const char *text, in_port_t *ret)
{
    char *end;
    if (!isdigit((unsigned char)text[0]) || strlen(text) > 5)
        return false;
    unsigned long port = strtoul(text, &end, 10);
    if (*end != '\0' || port < 1 || port > 65535)
        return false;
    *ret = htons((uint16_t)port);
    return true;
}

static bool parse_v6(const char *host, in_port_t port, struct sockaddr_storage *ret,
                     socklen_t *ret_len)
{
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = port};
    if (inet_pton(AF_INET6, host, &six.sin6_addr) != 1)
        return false;
    memset(ret, 0, sizeof(*ret));
    memcpy(ret, &six, sizeof(six));
    *ret_len = sizeof(six);
    return true;
}

static bool parse_v4(const char *host, in_port_t port, struct sockaddr_storage *ret,
                     socklen_t *ret_len)
{
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = port};
    if (inet_pton(AF_INET, host, &four.sin_addr) != 1)
        return false;
    memset(ret, 0, sizeof(*ret));
    memcpy(ret, &four, sizeof(four));
    *ret_len = sizeof(four);
    return true;
}

bool address_parse(const char *text, struct sockaddr_storage *ret, socklen_t *ret_len)
{
    char host[INET6_ADDRSTRLEN];
    in_port_t port;
    const char *colon = strrchr(text, ':');
    if (!colon || !parse_port(colon + 1, &port))
        return false;
    size_t len = (size_t)(colon - text);
    bool bracket = len >= 2 && text[0] == '[' && colon[-1] == ']';
    const char *begin = text + bracket;
    len -= bracket ? 2 : 0;
    if (len == 0 || len >= sizeof(host))
        return false;
    memcpy(host, begin, len);
    host[len] = '\0';
    return bracket ? parse_v6(host, port, ret, ret_len) : parse_v4(host, port, ret, ret_len);
}

void address_format(const struct sockaddr_storage *address, char ret[ADDRESS_TEXT_MAX])
{
    char host[INET6_ADDRSTRLEN] = "";
    struct sockaddr_in four;
    struct sockaddr_in6 six;
    if (address->ss_family == AF_INET) {
        memcpy(&four, address, sizeof(four));
        (void)inet_ntop(AF_INET, &four.sin_addr, host, sizeof(host));
        (void)snprintf(ret, ADDRESS_TEXT_MAX, "%s:%u", host, ntohs(four.sin_port));
    } else if (address->ss_family == AF_INET6) {
        memcpy(&six, address, sizeof(six));
        (void)inet_ntop(AF_INET6, &six.sin6_addr, host, sizeof(host));
        (void)snprintf(ret, ADDRESS_TEXT_MAX, "[%s]:%u", host, ntohs(six.sin6_port));
    } else {
        (void)snprintf(ret, ADDRESS_TEXT_MAX, "-");
    }
}
