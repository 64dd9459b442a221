/* check: timeout=600
 * io/http on a lane: many exchanges over few connections, every way to fail, cancelling, random
 * faults from a seed, and the Nth-failure loop over the ring's operations. Every exchange ends with
 * the right bytes or with an error that says what happened, and leaves nothing behind. */
#include <dlfcn.h>
#include <netdb.h>

#include "io/clock.h"
#include "io/http_lane.h"
#include "tests/lib/fds.h"
#include "tests/lib/webserver.h"
#include "tests/sim/faults.h"

enum { ANSWER_MAX = 1 << 20, BODY_MAX = 1 << 20 };

struct job {
    struct http_exchange x;
    char target[32];
    uint8_t *answer;
    size_t want; /* bytes of a GET's answer */
    bool ended;
    struct http_lane *then; /* done() starts the exchange again on it, once */
};

static struct web web;
static uint8_t body[BODY_MAX];
static struct ring *ring;
static unsigned ended;
/* Short only where something stalls: the machine may be busy with other things. */
static unsigned stall_ms = 20000;

static void on_done(struct http_exchange *x)
{
    struct job *job = x->owner;
    if (job->then) {
        struct http_lane *lane = job->then;
        job->then = NULL;
        http_lane_start(lane, x);
        return;
    }
    if (job->ended)
        abort();
    job->ended = true;
    ended++;
}

static struct job *jobs_new(unsigned count)
{
    struct job *jobs = calloc(count, sizeof(*jobs));
    for (unsigned i = 0; i < count; i++) {
        jobs[i].answer = calloc(1, ANSWER_MAX);
        jobs[i].x = (struct http_exchange){.done = on_done,
                                           .owner = &jobs[i],
                                           .target = jobs[i].target,
                                           .answer = jobs[i].answer,
                                           .answer_capacity = ANSWER_MAX};
    }
    return jobs;
}

static void jobs_free(struct job *jobs, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        free(jobs[i].answer);
    free(jobs);
}

static void get(struct job *job, size_t len)
{
    snprintf(job->target, sizeof(job->target), "/%zu", len);
    job->x.method = "GET";
    job->want = len;
}

static void put(struct job *job, size_t len)
{
    snprintf(job->target, sizeof(job->target), "/key");
    job->x.method = "PUT";
    job->x.body = body;
    job->x.body_len = len;
}

static bool answer_good(const struct job *job)
{
    if (job->x.rc < 0 || job->x.status != 200)
        return false;
    if (job->x.body_len > 0)
        return true;
    for (size_t i = 0; i < job->want; i++)
        if (job->answer[i] != web_byte(i))
            return false;
    return job->x.answer_len == job->want;
}

static struct http_lane *lane_new(unsigned connections)
{
    struct http_endpoint endpoint = {.origin = web.origin, .stall_timeout_ms = stall_ms};
    struct http_lane *lane = NULL;
    struct err err;
    if (http_lane_open(&endpoint, ring, connections, &lane, &err) < 0)
        printf("# %s\n", err.text);
    return lane;
}

/* Until the lane is idle and nothing of it is in the ring; false after 60 s. */
static bool settle(void)
{
    uint64_t limit_ns = monotonic_ns() + 60 * (uint64_t)1000000000;
    struct err err;
    while (ring_pending(ring) > 0)
        if (ring_run(ring, 1, 100000, &err) < 0 || monotonic_ns() > limit_ns)
            return false;
    return true;
}

/* Starts all, waits for all; how many are good. */
static unsigned run_jobs(struct http_lane *lane, struct job *jobs, unsigned count)
{
    unsigned good = 0;
    ended = 0;
    for (unsigned i = 0; i < count; i++)
        http_lane_start(lane, &jobs[i].x);
    if (!settle() || ended != count) {
        printf("# %u of %u ended, %u in the ring\n", ended, count, ring_pending(ring));
        return 0;
    }
    for (unsigned i = 0; i < count; i++)
        good += answer_good(&jobs[i]);
    return good;
}

static void test_many(void)
{
    enum { COUNT = 100 };
    struct http_lane *lane = lane_new(8);
    struct job *jobs = jobs_new(COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        if (i % 3 == 0)
            put(&jobs[i], 1 + i * 10000);
        else
            get(&jobs[i], i * 10000);
        jobs[i].then = i % 10 == 5 ? lane : NULL;
    }
    is_u64(run_jobs(lane, jobs, COUNT), COUNT, "exchanges over 8 connections");
    is_u64(web.puts_done, 34 + 3, "every PUT arrived");
    ok(web.accepted <= 8, "over %u connections, which stay open", web.accepted);
    is_u64(ring_pending(ring), 0, "idle connections leave nothing in the ring");
    jobs_free(jobs, COUNT);
    http_lane_close(lane);
}

static void test_one_fault(enum web_fault kind, bool is_put, const char *part)
{
    struct http_lane *lane = lane_new(4);
    struct job *jobs = jobs_new(8);
    web_again(&web);
    web.faults[0] = kind; /* on a new connection, so that libcurl does not repeat it */
    for (unsigned i = 0; i < 8; i++) {
        if (is_put)
            put(&jobs[i], BODY_MAX);
        else
            get(&jobs[i], 900000);
    }
    is_u64(run_jobs(lane, jobs, 8), 7, "%s with fault %d: the others are good",
           is_put ? "PUT" : "GET", (int)kind);
    for (unsigned i = 0; i < 8; i++)
        if (!answer_good(&jobs[i]))
            ok(jobs[i].x.rc == -ERR_STORE && strstr(jobs[i].x.err.text, part) &&
                   jobs[i].x.maybe_executed,
               "one says '%s'", jobs[i].x.err.text);
    jobs_free(jobs, 8);
    http_lane_close(lane);
}

static void test_stop(void)
{
    struct http_lane *lane = lane_new(2);
    struct job *jobs = jobs_new(6);
    struct err err;
    web_again(&web);
    for (unsigned i = 0; i < WEB_FAULTS_MAX; i++)
        web.faults[i] = WEB_STALL_IN_ANSWER;
    ended = 0;
    for (unsigned i = 0; i < 6; i++) {
        get(&jobs[i], 900000);
        http_lane_start(lane, &jobs[i].x);
    }
    uint64_t before = monotonic_ns();
    while (web.requests < 2 && monotonic_ns() - before < 10000000000)
        (void)ring_run(ring, 1, 10000, &err);
    before = monotonic_ns();
    http_lane_stop(lane);
    is_u64(ended, 0, "stopping ends nothing at once");
    ok(settle() && ended == 6, "but soon");
    ok(monotonic_ns() - before < 10000000000, "… before anything times out");
    unsigned cancelled = 0;
    for (unsigned i = 0; i < 6; i++)
        cancelled += jobs[i].x.rc == -ERR_CANCELLED;
    is_u64(cancelled, 6, "as cancelled");
    ended = 0;
    jobs[0].ended = false;
    http_lane_start(lane, &jobs[0].x);
    ok(settle() && ended == 1 && jobs[0].x.rc == -ERR_CANCELLED, "what comes later as well");
    jobs_free(jobs, 6);
    http_lane_close(lane);
}

static void test_no_server(void)
{
    struct web gone;
    struct err err;
    struct http_lane *lane;
    web_start(&gone);
    web_stop(&gone);
    struct http_endpoint endpoint = {.origin = gone.origin};
    is_good(http_lane_open(&endpoint, ring, 4, &lane, &err), &err, "a lane to nobody");
    struct job *jobs = jobs_new(8);
    for (unsigned i = 0; i < 8; i++)
        get(&jobs[i], 10);
    is_u64(run_jobs(lane, jobs, 8), 0, "nothing is good");
    for (unsigned i = 0; i < 8; i++)
        ok(jobs[i].ended && jobs[i].x.rc == -ERR_STORE && jobs[i].x.err.sys_errno == ECONNREFUSED &&
               !jobs[i].x.maybe_executed,
           "refused: %s", jobs[i].x.err.text);
    jobs_free(jobs, 8);
    http_lane_close(lane);
    lane = NULL;
    endpoint.origin = "nonsense";
    is_err(http_lane_open(&endpoint, ring, 4, &lane, &err), &err, ERR_CONFIG, "nonsense",
           "a malformed origin");
    ok(!lane, "leave the result alone");
}

/* Names in example.test are looked up here: lookups_fail says how often in vain, lookup_ms how long
 * it takes. */
static unsigned lookups, lookups_fail;
static int lookup_ms;

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
                struct addrinfo **ret)
{
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    bool ours = host && strcmp(host, "store.example.test") == 0;
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
    lookups += ours;
    if (ours && lookup_ms > 0)
        poll(NULL, 0, lookup_ms);
    if (ours && lookups_fail > 0) {
        lookups_fail--;
        return EAI_AGAIN;
    }
    return real(ours ? "127.0.0.1" : host, service, hints, ret);
}

/* The resolver is down when the lane is opened and comes back: exchanges fail meanwhile, all of
 * them at once, with one look-up. */
static void test_names(void)
{
    char origin[64];
    struct err err;
    struct http_lane *lane = NULL;
    struct job *jobs = jobs_new(8);
    web_again(&web);
    snprintf(origin, sizeof(origin), "http://store.example.test:%u", web.port);
    struct http_endpoint endpoint = {.origin = origin, .stall_timeout_ms = stall_ms};
    lookups = 0;
    lookups_fail = 1;
    is_good(http_lane_open(&endpoint, ring, 4, &lane, &err), &err,
            "a lane while no name can be looked up");
    for (unsigned i = 0; i < 8; i++)
        get(&jobs[i], 1000);
    is_u64(run_jobs(lane, jobs, 8), 0, "no exchange is good");
    for (unsigned i = 0; i < 8; i++)
        ok(jobs[i].x.rc == -ERR_STORE && strstr(jobs[i].x.err.text, "store.example.test") &&
               !jobs[i].x.maybe_executed,
           "%s", jobs[i].x.err.text);
    is_u64(lookups, 1, "after one look-up");
    unsigned good = 0;
    for (unsigned tries = 0; good < 8 && tries < 1000; tries++) { /* a second and a bit */
        poll(NULL, 0, 10);
        for (unsigned i = 0; i < 8; i++)
            jobs[i].ended = false;
        good = run_jobs(lane, jobs, 8);
    }
    is_u64(good, 8, "they are when the resolver is back");
    is_u64(lookups, 2, "after one look-up more");
    jobs_free(jobs, 8);
    http_lane_close(lane);
}

/* The server closes a connection, and the resolver, asked again, blocks the lane for longer than
 * the stall timeout: the answers of the others are in their sockets by then, and all of them count.
 */
static void test_late(void)
{
    char origin[64];
    struct err err;
    struct http_lane *lane = NULL;
    struct job *jobs = jobs_new(9);
    web_again(&web);
    snprintf(origin, sizeof(origin), "http://store.example.test:%u", web.port);
    struct http_endpoint endpoint = {.origin = origin, .stall_timeout_ms = 400};
    is_good(http_lane_open(&endpoint, ring, 8, &lane, &err), &err, "a lane");
    for (unsigned i = 0; i < 9; i++)
        get(&jobs[i], 200000);
    web.delay_ms = 100;
    for (unsigned i = 0; i < 8; i++)
        http_lane_start(lane, &jobs[i].x);
    while (web.requests < 8)
        (void)ring_run(ring, 1, 10000, &err);
    lane->server.resolved_ns = 0; /* as after a connection that failed */
    lookup_ms = 1000;
    http_lane_start(lane, &jobs[8].x);
    ok(settle(), "all end");
    lookup_ms = 0;
    web.delay_ms = 0;
    unsigned good = 0;
    for (unsigned i = 0; i < 9; i++)
        good += answer_good(&jobs[i]);
    is_u64(good, 9, "none of them stalled while the lane looked a name up");
    jobs_free(jobs, 9);
    http_lane_close(lane);
}

/* More sockets than the lane made room for: some exchanges fail, the others do not. */
static void test_no_room(void)
{
    struct http_lane *lane = lane_new(4);
    struct job *jobs = jobs_new(8);
    web_again(&web);
    lane->socket_count = 2;
    for (unsigned i = 0; i < 8; i++)
        get(&jobs[i], 900000);
    unsigned good = run_jobs(lane, jobs, 8), explained = 0;
    for (unsigned i = 0; i < 8; i++)
        explained += jobs[i].x.rc == -ERR_STORE && strstr(jobs[i].x.err.text, "more sockets");
    ok(good >= 2 && explained > 0 && good + explained == 8,
       "without room for a socket: %u good, %u failed", good, explained);
    jobs_free(jobs, 8);
    http_lane_close(lane);
}

/* The injected error; or a PUT met the connection that the server closes after a request, and
 * libcurl does not send again what failed while it was sent. */
static bool errno_explained(int sys_errno)
{
    return sys_errno == EIO || sys_errno == ECONNRESET || sys_errno == EPIPE;
}

/* The connection of every request dies: descriptors are used again at once, polls that were
 * replaced complete late. */
static void test_reused_descriptors(void)
{
    enum { COUNT = 200 };
    struct http_lane *lane = lane_new(8);
    struct job *jobs = jobs_new(COUNT);
    web_again(&web);
    for (unsigned i = 0; i < WEB_FAULTS_MAX; i++)
        web.faults[i] = i % 2 ? WEB_CLOSE_AFTER : WEB_NONE;
    for (unsigned i = 0; i < COUNT; i++) {
        if (i % 2)
            put(&jobs[i], 70000);
        else
            get(&jobs[i], 70000);
    }
    unsigned good = run_jobs(lane, jobs, COUNT), explained = 0;
    for (unsigned i = 0; i < COUNT; i++) {
        if (jobs[i].x.rc < 0)
            printf("# %u: %s\n", i, jobs[i].x.err.text);
        explained +=
            answer_good(&jobs[i]) || (jobs[i].x.rc == -ERR_STORE && jobs[i].x.body_len > 0 &&
                                      errno_explained(jobs[i].x.err.sys_errno));
    }
    ok(explained == COUNT && good > COUNT - 10, "%u are good though connections close all the time",
       good);
    ok(web.accepted >= COUNT / 2 - 8, "%u connections", web.accepted);
    jobs_free(jobs, COUNT);
    http_lane_close(lane);
}

static void test_random(uint64_t seed)
{
    enum { COUNT = 150 };
    uint64_t state = seed | 1;
    struct http_lane *lane = lane_new(16);
    struct job *jobs = jobs_new(COUNT);
    web_again(&web);
    for (unsigned i = 0; i < WEB_FAULTS_MAX; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        unsigned kind = (unsigned)(state >> 33) % 64;
        web.faults[i] = kind < WEB_FAULT_COUNT ? (enum web_fault)kind : WEB_NONE;
    }
    for (unsigned i = 0; i < COUNT; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        if (state >> 63)
            put(&jobs[i], 1 + (state >> 33) % BODY_MAX);
        else
            get(&jobs[i], (state >> 33) % ANSWER_MAX);
    }
    unsigned good = run_jobs(lane, jobs, COUNT), explained = 0;
    for (unsigned i = 0; i < COUNT; i++)
        explained += jobs[i].x.rc == -ERR_STORE || (jobs[i].x.rc == 0 && jobs[i].x.status == 503) ||
                     (jobs[i].x.rc == 0 && jobs[i].x.answer_cut) || answer_good(&jobs[i]);
    ok(explained == COUNT && good > COUNT / 2, "seed %llu: %u good, the others failed aloud",
       (unsigned long long)seed, good);
    jobs_free(jobs, COUNT);
    http_lane_close(lane);
}

/* No descriptor is left, neither of ours nor of the server's side of a connection. */
static bool all_closed(unsigned fds)
{
    for (unsigned i = 0; i < 5000 && (web.open > 0 || count_fds() != fds); i++)
        poll(NULL, 0, 1);
    return web.open == 0 && count_fds() == fds;
}

/* One run of the Nth-failure loop; false when something is wrong, which it prints. */
static bool run_once(enum fault_kind kind, unsigned at, unsigned fds)
{
    enum { COUNT = 6 };
    struct err err;
    web_again(&web);
    web.faults[3] = WEB_CLOSE_AFTER;
    fault_arm(kind, at);
    if (ring_open(&ring, &err) < 0)
        return false;
    struct http_lane *lane = lane_new(2);
    struct job *jobs = jobs_new(COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        if (i % 2)
            put(&jobs[i], 300000);
        else
            get(&jobs[i], 300000);
    }
    unsigned good = run_jobs(lane, jobs, COUNT), explained = 0;
    bool fired = fault.fired, harmless = fault_is_harmless(), settled = ended == COUNT;
    fault_arm(FAULT_NONE, 0);
    fault.fired = fired;
    for (unsigned i = 0; i < COUNT; i++)
        explained += answer_good(&jobs[i]) ||
                     (jobs[i].x.rc == -ERR_STORE && errno_explained(jobs[i].x.err.sys_errno) &&
                      strstr(jobs[i].x.err.text, web.origin));
    bool right = settled && explained == COUNT && (good == COUNT || (fired && !harmless));
    http_lane_close(lane);
    ring_close(ring);
    right &= all_closed(fds);
    if (!right)
        printf("# %s at %u: %u good, %u explained, fds %u, now %u\n", fault_names[kind], at, good,
               explained, fds, count_fds());
    for (unsigned i = 0; i < COUNT && !right; i++)
        printf("# %u: rc %d '%s'\n", i, jobs[i].x.rc, jobs[i].x.err.text);
    jobs_free(jobs, COUNT);
    return right;
}

static void test_nth(unsigned fds)
{
    static const enum fault_kind kinds[] = {FAULT_EIO, FAULT_EIO_ON, FAULT_EINTR, FAULT_EAGAIN};
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        unsigned bad = 0, at = 1;
        do
            bad += !run_once(kinds[i], at++, fds);
        while (fault.fired && bad < 5);
        ok(bad == 0, "%s at each of %u operations", fault_names[kinds[i]], at - 2);
        ok(at > 8, "there are operations");
    }
}

int main(void)
{
    struct err err;
    const char *seed = getenv("TIDEMARK_SEED");
    for (size_t i = 0; i < sizeof(body); i++)
        body[i] = web_byte(i);
    if (ring_open(&ring, &err) < 0) {
        skip(err.text);
        return done();
    }
    web_start(&web);
    unsigned fds = count_fds() - 1; /* without the ring */
    test_many();
    test_one_fault(WEB_RESET_AT_HEAD, false, web.origin);
    test_one_fault(WEB_RESET_AT_HEAD, true, web.origin);
    test_one_fault(WEB_RESET_IN_BODY, true, web.origin);
    test_one_fault(WEB_RESET_UNANSWERED, true, web.origin);
    test_one_fault(WEB_RESET_IN_ANSWER, false, web.origin);
    test_one_fault(WEB_SHORT, false, web.origin);
    test_one_fault(WEB_LONG_HEAD, false, "longer than 8192 bytes");
    test_one_fault(WEB_ENDLESS_CONTINUE, false, "longer than 8192 bytes");
    test_one_fault(WEB_ENDLESS_TRAILER, false, "longer than 8192 bytes");
    test_one_fault(WEB_NOT_HTTP, false, web.origin);
    test_stop();
    test_no_server();
    test_names();
    test_no_room();
    test_reused_descriptors();
    stall_ms = 1500;
    test_one_fault(WEB_STALL, false, "nothing moved for 1500 ms");
    test_one_fault(WEB_STALL_IN_BODY, true, "nothing moved for 1500 ms");
    test_one_fault(WEB_STALL_IN_ANSWER, false, "nothing moved for 1500 ms");
    test_one_fault(WEB_TRICKLE, false, "less than 1024 bytes a second moved for 3000 ms");
    test_late();
    for (uint64_t i = 0; i < 4; i++)
        test_random(seed ? strtoull(seed, NULL, 10) : monotonic_ns() + i);
    ring_close(ring);
    stall_ms = 20000;
    ok(all_closed(fds), "every connection is closed");
    test_nth(fds);
    web_stop(&web);
    return done();
}
