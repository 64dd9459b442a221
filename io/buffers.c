/* Arena and arithmetic of the lanes' payload memory. */
#include "io/buffers.h"

#include <assert.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20, LANES_DEFAULT_MAX = 8, LANES_MAX = 64 };

int buffers_open(struct buffers *ret, size_t len, size_t touch_len, struct err *err)
{
    size_t arena_len = (size_t)align_up(len, HUGE_PAGE);
    size_t map_len = arena_len + HUGE_PAGE;
    void *map = mmap(NULL, map_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return err_sys(err, ERR_INTERNAL, "map %zu MiB of payload memory", map_len >> 20);
    uint8_t *base = (uint8_t *)align_up((uintptr_t)map, HUGE_PAGE);
    (void)madvise(base, arena_len, MADV_HUGEPAGE); /* without huge pages it is only slower */
    (void)madvise(base, arena_len, MADV_DONTFORK);
    memset(base, 0, touch_len); /* huge pages at once, no faults between reads */
    *ret = (struct buffers){.base = base, .len = arena_len, .map = map, .map_len = map_len};
    return 0;
}

void *buffers_cut(struct buffers *buffers, size_t len, size_t align)
{
    size_t at = (size_t)align_up(buffers->used, align);
    assert(at <= buffers->len && len <= buffers->len - at);
    buffers->used = at + len;
    return buffers->base + at;
}

void buffers_close(struct buffers *buffers)
{
    if (buffers->map != NULL)
        (void)munmap(buffers->map, buffers->map_len);
    *buffers = (struct buffers){0};
}

static unsigned lanes_wanted(const struct lane_options *options)
{
    if (options->lane_count > 0)
        return options->lane_count < LANES_MAX ? options->lane_count : LANES_MAX;
    cpu_set_t cpus;
    int cores = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    return (unsigned)(cores < LANES_DEFAULT_MAX ? cores : LANES_DEFAULT_MAX);
}

static size_t lane_len(const struct buffers_need *need, unsigned objects)
{
    size_t blocks = (size_t)align_up(need->block_count * need->block_len + need->fixed_len, 4096);
    return (size_t)align_up(blocks + objects * need->object_len, HUGE_PAGE);
}

/* What helps a lane: its share of what helps all of them. */
static unsigned objects_wanted(const struct buffers_need *need, unsigned lanes)
{
    uint64_t wanted = need->object_max;
    if (need->object_total > 0)
        wanted = min_u64(wanted, div_round_up(need->object_total, lanes) + need->object_spare);
    return (unsigned)max_u64(wanted, need->object_min);
}

static uint64_t cost(const struct buffers_need *need, unsigned lanes, unsigned objects)
{
    return lanes * ((uint64_t)lane_len(need, objects) + (uint64_t)objects * need->object_extra);
}

int buffers_plan(const struct lane_options *options, const struct buffers_need *need,
                 struct buffers_plan *ret, struct err *err)
{
    assert(need->object_min > 0 && need->object_min <= need->object_max);
    uint64_t memory_max = options->memory_max ? options->memory_max : 512 * MIB;
    struct buffers_plan plan = {.lane_count = lanes_wanted(options)};
    if (need->lane_max > 0 && plan.lane_count > need->lane_max)
        plan.lane_count = (unsigned)need->lane_max;
    if (need->object_total > 0 && plan.lane_count > need->object_total)
        plan.lane_count = need->object_total;
    plan.object_count = objects_wanted(need, plan.lane_count);
    while (cost(need, plan.lane_count, plan.object_count) > memory_max) {
        if (plan.object_count > need->object_min)
            plan.object_count--;
        else if (plan.lane_count > 1)
            plan.lane_count--;
        else
            break;
    }
    plan.lane_len = lane_len(need, plan.object_count);
    /* Objects that go through sockets are touched when they are needed: seldom all of them are. */
    plan.ring_len = need->object_extra > 0 ? lane_len(need, 0) : plan.lane_len;
    uint64_t total = cost(need, plan.lane_count, plan.object_count);
    (void)snprintf(plan.text, sizeof(plan.text),
                   "%u lanes x (%u %s buffers x %zu KiB + %u %s buffers x %zu KiB + %zu KiB) = "
                   "%llu MiB of memory_max %llu MiB",
                   plan.lane_count, need->block_count, need->block_name, need->block_len >> 10,
                   plan.object_count, need->object_name,
                   (need->object_len + need->object_extra) >> 10, need->fixed_len >> 10,
                   (unsigned long long)(total / MIB), (unsigned long long)(memory_max / MIB));
    if (total > memory_max) {
        (void)err_set(err, ERR_CONFIG, "memory_max is too small for one lane: %s", plan.text);
        return err_hint(err, "set memory_max to %llu MiB or more",
                        (unsigned long long)(total / MIB));
    }
    *ret = plan;
    return 0;
}
