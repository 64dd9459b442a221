/* agent/address: what a listener's address may look like. agent/local_address: whose one is. */
#include "agent/address.h"
#include "agent/local_address.h"

#include "tests/tap.h"

static void gives(const char *text, int family)
{
    struct sockaddr_storage address;
    socklen_t len = 0;
    char back[ADDRESS_TEXT_MAX];
    if (!ok(address_parse(text, &address, &len), "'%s' is an address", text))
        return;
    ok(address.ss_family == family && len > 0, "of its family");
    address_format(&address, back);
    is_str(back, text, "and comes back");
}

static void refuses(const char *text)
{
    struct sockaddr_storage address = {.ss_family = 77};
    socklen_t len = 1;
    ok(!address_parse(text, &address, &len), "'%s' is none", text);
    ok(address.ss_family == 77 && len == 1, "nothing was written");
}

static void belongs(const char *host, bool local)
{
    ok(address_is_local(host) == local, "%s is %sthis host's", host, local ? "" : "not ");
}

int main(void)
{
    static const char *const bad[] = {"",
                                      "127.0.0.1",
                                      "127.0.0.1:",
                                      "127.0.0.1:0",
                                      "127.0.0.1:65536",
                                      ":7421",
                                      "db1:7421",
                                      "localhost:7421",
                                      "127.0.0.1:7x",
                                      "127.0.0.1: 7",
                                      "127.1:742",
                                      "::1:7421",
                                      "[::1]",
                                      "[::1:7421",
                                      "[127.0.0.1]:7421",
                                      "[]:7421",
                                      "[::1]7421",
                                      "127.0.0.1:-1",
                                      "127.0.0.1:+1",
                                      "1.2.3.4.5:1",
                                      "[fe80::1%lo]:7421",
                                      "127.0.0.1:0000001",
                                      "999.0.0.1:1",
                                      "*:7421",
                                      "[:7421"};
    gives("127.0.0.1:7421", AF_INET);
    gives("0.0.0.0:1", AF_INET);
    gives("[::1]:65535", AF_INET6);
    gives("[::]:7421", AF_INET6);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        refuses(bad[i]);
    struct sockaddr_storage other = {.ss_family = AF_UNIX};
    char text[ADDRESS_TEXT_MAX];
    address_format(&other, text);
    is_str(text, "-", "another family has no text");
    belongs("/var/run/postgresql", true);
    belongs("@postgresql", true);
    belongs("localhost", true);
    belongs("127.9.8.7", true);
    belongs("::1", true);
    belongs("192.0.2.1", false); /* TEST-NET-1, which nobody has */
    belongs("2001:db8::1", false);
    belongs("no such name", false);
    return done();
}
