/* Provider precopy: how much may be read while the volumes are frozen. */
#include "agent/capture_precopy.h"

#include <inttypes.h>

#include "agent/log.h"
#include "io/clock.h"

enum {
    SAMPLE_CHUNKS = 256, /* read to learn the device's rate */
    RATE_PASSES = 3,     /* that found too much: was the device only busy when it was measured? */
};

uint64_t capture_freeze_max_ns(const struct capture *capture)
{
    const struct conf *conf = capture->conf;
    return min_u64(conf->freeze_max_ms, conf->freeze_deadline_ms) * UINT64_C(1000000);
}

struct gather_source capture_gather_source(const struct capture *capture, size_t index,
                                           const struct extent_list *extents)
{
    const struct device *device = &capture->volumes[index].live;
    return (struct gather_source){
        .fd = device->fd, .request_max = device->identity.request_max, .extents = extents};
}

/* `count` chunks, evenly spread over what is used. */
static int sample(const struct capture *capture, size_t index, unsigned count,
                  struct extent_list *ret, struct err *err)
{
    const struct capture_volume *volume = &capture->volumes[index];
    uint64_t chunk_size = capture->precopy->chunk_size, size = volume->live.identity.size;
    uint64_t step = max_u64(extent_list_bytes(&volume->used) / count, chunk_size);
    uint64_t next = 0, passed = 0; /* bytes of used */
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < volume->used.count; i++) {
        const struct extent *extent = &volume->used.items[i];
        for (; rc == 0 && next < passed + extent->len; next += step) {
            uint64_t at = align_down(extent->offset + (next - passed), chunk_size);
            rc = extent_list_add(ret, at, min_u64(chunk_size, size - at), err);
        }
        passed += extent->len;
    }
    return rc;
}

/* How fast are scattered chunks read now, with the load that there is? */
static int measure_rate(struct capture *capture, struct err *err)
{
    struct precopy *precopy = capture->precopy;
    size_t count = capture->group->count;
    struct extent_list samples[CONF_VOLUMES_MAX] = {0};
    struct gather_source sources[CONF_VOLUMES_MAX];
    struct gather *gather = NULL;
    bool complete = false;
    uint64_t bytes = 0, start_ns = 0;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < count; i++) {
        rc = sample(capture, i, (unsigned)(SAMPLE_CHUNKS / count), &samples[i], err);
        sources[i] = capture_gather_source(capture, i, &samples[i]);
        bytes += extent_list_bytes(&samples[i]);
    }
    if (rc == 0)
        rc = gather_open(bytes, &gather, err);
    if (rc == 0) {
        start_ns = monotonic_ns();
        rc = gather_read(gather, sources, count, UINT64_MAX, &complete, err);
    }
    if (rc == 0)
        precopy->rate = bytes * 1000000 / max_u64(1, (monotonic_ns() - start_ns) / 1000);
    gather_close(gather);
    for (size_t i = 0; i < count; i++)
        extent_list_release(&samples[i]);
    return rc;
}

static int set_budget(struct precopy *precopy, const struct capture *capture,
                      const struct capture_request *request, struct err *err)
{
    uint64_t max = (uint64_t)((double)precopy->rate * (double)capture_freeze_max_ns(capture) / 2e9);
    precopy->budget = max_u64(min_u64(max, request->memory_max), precopy->chunk_size);
    precopy->goal = min_u64(max / 5, precopy->budget);
    gather_close(precopy->gather);
    precopy->gather = NULL;
    int rc = gather_open(precopy->budget, &precopy->gather, err);
    if (rc == 0)
        log_info("precopy: memory: %" PRIu64 " KiB for what is read while frozen (%" PRIu64
                 " MiB/s × half of freeze_max, at most %" PRIu64 " MiB)",
                 precopy->budget / KIB, precopy->rate / MIB, request->memory_max / MIB);
    return rc;
}

int capture_budget_take(struct capture *capture, const struct capture_request *request,
                        struct err *err)
{
    struct precopy *precopy = capture->precopy;
    precopy->changed = UINT64_MAX;
    int rc = measure_rate(capture, err);
    if (rc == 0 && capture_breaks("rate"))
        precopy->rate = 1;
    return rc < 0 ? rc : set_budget(precopy, capture, request, err);
}

int capture_budget_again(struct capture *capture, const struct capture_request *request,
                         struct err *err)
{
    struct precopy *precopy = capture->precopy;
    if (precopy->passes % RATE_PASSES != 0 || precopy->changed <= precopy->budget)
        return 0;
    uint64_t before = precopy->rate;
    int rc = measure_rate(capture, err);
    if (rc < 0 || precopy->rate <= before) {
        precopy->rate = max_u64(precopy->rate, before);
        return rc;
    }
    return set_budget(precopy, capture, request, err);
}

bool capture_budget_allows(struct precopy *precopy, uint64_t bytes)
{
    bool shrinks = bytes < precopy->changed / 4 * 3 && precopy->passes < PRECOPY_PASSES_MAX;
    precopy->changed = bytes;
    return bytes <= precopy->goal || (bytes <= precopy->budget && !shrinks);
}
