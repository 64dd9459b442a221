/* Interfaces are compared, and no socket is bound: with net.ipv4.ip_nonlocal_bind, which hosts with
 * a floating address set, bind() takes anything. See local_address.h. */
#include "agent/local_address.h"

#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>

static const struct in_addr *in4(const struct sockaddr *address)
{
    return &((const struct sockaddr_in *)(const void *)address)->sin_addr;
}

static const struct in6_addr *in6(const struct sockaddr *address)
{
    return &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr;
}

/* All of 127.0.0.0/8 is this host's, though the interface has one address of it. */
static bool is_loopback(const struct sockaddr *address)
{
    return address->sa_family == AF_INET ? ntohl(in4(address)->s_addr) >> 24 == IN_LOOPBACKNET
                                         : IN6_IS_ADDR_LOOPBACK(in6(address));
}

static bool is_same(const struct sockaddr *one, const struct sockaddr *other)
{
    if (!other || one->sa_family != other->sa_family)
        return false;
    return one->sa_family == AF_INET ? in4(one)->s_addr == in4(other)->s_addr
                                     : memcmp(in6(one), in6(other), sizeof(struct in6_addr)) == 0;
}

static bool is_ours(const struct sockaddr *address, const struct ifaddrs *interfaces)
{
    if (address->sa_family != AF_INET && address->sa_family != AF_INET6)
        return false;
    bool found = is_loopback(address);
    for (; interfaces && !found; interfaces = interfaces->ifa_next)
        found = is_same(address, interfaces->ifa_addr);
    return found;
}

bool address_is_local(const char *host)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *addresses = NULL;
    struct ifaddrs *interfaces = NULL;
    if (host[0] == '/' || host[0] == '@')
        return true;
    if (getaddrinfo(host, NULL, &hints, &addresses) != 0)
        return false;
    bool all = getifaddrs(&interfaces) == 0;
    for (const struct addrinfo *at = addresses; at && all; at = at->ai_next)
        all = is_ours(at->ai_addr, interfaces);
    if (interfaces)
        freeifaddrs(interfaces);
    freeaddrinfo(addresses);
    return all;
}
