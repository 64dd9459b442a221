/* A proxy that adds latency and nothing else:
 *     tool_delay HOST PORT
 * prints the port that it listens on (127.0.0.1) and forwards every connection to HOST:PORT. What
 * the client sends is held back for the latency from its arrival; what the server sends goes on at
 * once, so one request costs one latency, with TLS too. Commands on stdin, a line each:
 *     latency MS     from now on
 *     forget         counters begin anew
 *     stats          prints "connections N open N peak_open N requests N peak N"
 * A request is unanswered from its first byte to its answer's first byte; peak is the most at the
 * same time. It ends with its stdin.
 *
 * One thread; bytes move by splice(2) through pipes and are never copied, so that it carries more
 * than the servers behind it. A pipe holds WINDOW bytes: more of a large request is on its way only
 * when some has passed, as over a real network. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "io/base.h"
#include "io/clock.h"

enum { WINDOW = 4 << 20, PIECES = 1024, EVENTS = 64 };

struct piece {
    uint64_t due_ns;
    size_t len;
};

/* Bytes of one direction: they wait in the pipe until they are due. */
struct flow {
    int from, to;
    int pipe[2];
    struct piece pieces[PIECES]; /* a ring */
    unsigned first, count;
    bool ended;  /* from will send no more */
    bool passed; /* and to knows */
};

struct connection {
    struct flow up, down;
    bool unanswered, broken;
    struct connection *next;
};

static struct sockaddr_in server;
static struct connection *connections;
static uint64_t latency_ns;
static int epoll_fd, listen_fd;
static unsigned long accepted, requests;
static unsigned open_now, open_peak, unanswered, unanswered_peak;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* --- moving ------------------------------------------------------------------------------- */

static void begin_request(struct connection *c)
{
    if (c->unanswered)
        return;
    c->unanswered = true;
    requests++;
    if (++unanswered > unanswered_peak)
        unanswered_peak = unanswered;
}

static void end_request(struct connection *c)
{
    unanswered -= c->unanswered;
    c->unanswered = false;
}

static bool again(ssize_t len)
{
    return len < 0 && (errno == EAGAIN || errno == EINTR);
}

/* True when bytes came. */
static bool take(struct connection *c, struct flow *flow)
{
    if (flow->ended || flow->count == PIECES)
        return false;
    ssize_t len =
        splice(flow->from, NULL, flow->pipe[1], NULL, WINDOW, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (again(len))
        return false;
    c->broken |= len < 0;
    flow->ended = len <= 0;
    if (len <= 0)
        return false;
    bool is_up = flow == &c->up;
    (is_up ? begin_request : end_request)(c);
    flow->pieces[(flow->first + flow->count++) % PIECES] =
        (struct piece){monotonic_ns() + (is_up ? latency_ns : 0), (size_t)len};
    return true;
}

/* True when bytes went on. */
static bool pass(struct connection *c, struct flow *flow, uint64_t now_ns)
{
    struct piece *piece = &flow->pieces[flow->first];
    if (flow->count == 0 || piece->due_ns > now_ns)
        return false;
    ssize_t len =
        splice(flow->pipe[0], NULL, flow->to, NULL, piece->len, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (len < 0) {
        c->broken |= !again(len);
        return false;
    }
    piece->len -= (size_t)len;
    if (piece->len == 0) {
        flow->first = (flow->first + 1) % PIECES;
        flow->count--;
    }
    return true;
}

static void move(struct connection *c, struct flow *flow)
{
    for (bool more = true; more && !c->broken;) {
        more = take(c, flow);
        more |= pass(c, flow, monotonic_ns());
    }
    if (flow->ended && flow->count == 0 && !flow->passed) {
        flow->passed = true;
        (void)shutdown(flow->to, SHUT_WR);
    }
}

/* --- connections -------------------------------------------------------------------------- */

static void watch(int fd, void *ptr)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                .data.ptr = ptr};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
}

static void open_flow(struct flow *flow, int from, int to)
{
    flow->from = from;
    flow->to = to;
    if (pipe2(flow->pipe, O_NONBLOCK | O_CLOEXEC) < 0)
        die("pipe2");
    /* Fails above fs.pipe-max-size without CAP_SYS_RESOURCE: the pipe is smaller then. */
    if (fcntl(flow->pipe[1], F_SETPIPE_SZ, WINDOW) < 0)
        (void)fcntl(flow->pipe[1], F_SETPIPE_SZ, 1 << 20);
}

static void accept_one(void)
{
    int on = 1;
    int client = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    int to = client < 0 ? -1 : socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (to < 0 || connect(to, (struct sockaddr *)&server, sizeof(server)) < 0) {
        (void)close(client);
        (void)close(to);
        return;
    }
    (void)fcntl(to, F_SETFL, O_NONBLOCK);
    (void)setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(to, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    struct connection *c = calloc(1, sizeof(*c));
    if (c == NULL)
        die("calloc");
    open_flow(&c->up, client, to);
    open_flow(&c->down, to, client);
    c->next = connections;
    connections = c;
    accepted++;
    if (++open_now > open_peak)
        open_peak = open_now;
    watch(client, c);
    watch(to, c);
}

static bool is_over(const struct connection *c)
{
    return c->broken || (c->up.passed && c->down.passed);
}

static void close_connection(struct connection *c)
{
    struct linger reset = {.l_onoff = c->broken}; /* hand a reset on as one */
    const int fds[] = {c->up.from,    c->up.to,        c->up.pipe[0],
                       c->up.pipe[1], c->down.pipe[0], c->down.pipe[1]};
    (void)setsockopt(fds[0], SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    (void)setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    for (size_t i = 0; i < ARRAY_LEN(fds); i++)
        (void)close(fds[i]);
    end_request(c);
    open_now--;
    free(c);
}

/* Passes on what became due; returns when the next bytes are (0 = none wait). */
static uint64_t visit_all(void)
{
    uint64_t next_ns = 0, now_ns = monotonic_ns();
    for (struct connection **at = &connections; *at != NULL;) {
        struct connection *c = *at;
        const struct flow *up = &c->up;
        if (up->count > 0 && up->pieces[up->first].due_ns <= now_ns)
            move(c, &c->up);
        if (is_over(c)) {
            *at = c->next;
            close_connection(c);
            continue;
        }
        uint64_t due_ns = up->count > 0 ? up->pieces[up->first].due_ns : 0;
        if (due_ns > now_ns && (next_ns == 0 || due_ns < next_ns))
            next_ns = due_ns;
        at = &c->next;
    }
    return next_ns;
}

/* --- commands ----------------------------------------------------------------------------- */

static void command(const char *line)
{
    unsigned long ms;
    if (sscanf(line, "latency %lu", &ms) == 1)
        latency_ns = ms * 1000000;
    else if (strcmp(line, "stats\n") == 0)
        printf("connections %lu open %u peak_open %u requests %lu peak %u\n", accepted, open_now,
               open_peak, requests, unanswered_peak);
    else if (strcmp(line, "forget\n") == 0) {
        accepted = requests = 0;
        open_peak = open_now;
        unanswered_peak = unanswered;
    } else
        printf("unknown\n");
    (void)fflush(stdout);
}

/* False at the end of stdin. */
static bool read_commands(void)
{
    static char buf[4096];
    static size_t used;
    ssize_t len = read(STDIN_FILENO, buf + used, sizeof(buf) - 1 - used);
    if (len <= 0)
        return len < 0 && errno == EAGAIN;
    used += (size_t)len;
    for (char *end; (end = memchr(buf, '\n', used)) != NULL;) {
        char line[sizeof(buf)];
        size_t line_len = (size_t)(end + 1 - buf);
        memcpy(line, buf, line_len);
        line[line_len] = '\0';
        used -= line_len;
        memmove(buf, end + 1, used);
        command(line);
    }
    return used < sizeof(buf) - 1;
}

/* --- the loop ----------------------------------------------------------------------------- */

static void listen_somewhere(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(address);
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listen_fd < 0 || bind(listen_fd, (struct sockaddr *)&address, len) < 0 ||
        listen(listen_fd, 256) < 0 || getsockname(listen_fd, (struct sockaddr *)&address, &len) < 0)
        die("listen");
    printf("%u\n", ntohs(address.sin_port));
    (void)fflush(stdout);
}

static void watch_level(int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = fd == listen_fd ? &listen_fd : NULL};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
}

static bool handle(const struct epoll_event *event)
{
    if (event->data.ptr == NULL)
        return read_commands();
    if (event->data.ptr == &listen_fd) {
        accept_one();
        return true;
    }
    struct connection *c = event->data.ptr; /* freed by visit_all() only */
    move(c, &c->up);
    move(c, &c->down);
    return true;
}

int main(int argc, char **argv)
{
    if (argc != 3 || inet_pton(AF_INET, argv[1], &server.sin_addr) != 1)
        return fprintf(stderr, "usage: tool_delay ADDRESS PORT\n"), 2;
    server.sin_family = AF_INET;
    server.sin_port = htons((uint16_t)strtoul(argv[2], NULL, 10));
    (void)signal(SIGPIPE, SIG_IGN);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    listen_somewhere();
    watch_level(listen_fd);
    watch_level(STDIN_FILENO);
    for (bool going = true; going;) {
        struct epoll_event events[EVENTS];
        uint64_t next_ns = visit_all(), now_ns = monotonic_ns();
        uint64_t wait_ns = next_ns > now_ns ? next_ns - now_ns : 0;
        const struct timespec wait = {.tv_sec = (time_t)(wait_ns / 1000000000),
                                      .tv_nsec = (long)(wait_ns % 1000000000)};
        int count = epoll_pwait2(epoll_fd, events, EVENTS, next_ns ? &wait : NULL, NULL);
        for (int i = 0; i < count; i++)
            going &= handle(&events[i]);
    }
    return 0;
}
