/* pull_run(): from a manifest to lanes, and the acknowledging of what is durable. The work of a
 * lane is in pull_lane.c and the files that pull_lane.h names. */
#include "io/pull.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>

#include "io/clock.h"
#include "io/pull_lane.h"

static const uint64_t acknowledge_bytes = GIB;
static const uint64_t acknowledge_ns = 5000000000;

void pull_region_durable_next_flush(struct pull_job *job, uint32_t region_index, uint64_t bytes)
{
    (void)pthread_mutex_lock(&job->mutex);
    job->bitmap[region_index / 8] |= (uint8_t)(1 << (region_index % 8));
    job->bytes_unacknowledged += bytes;
    (void)pthread_mutex_unlock(&job->mutex);
}

static int flush(const struct pull *pull, struct err *err)
{
    if (pull->sink == PULL_TO_NULL || ring_fsync_now(pull->fd) == 0)
        return 0;
    return err_sys(err, ERR_DEVICE, "flush the target");
}

/* The bitmap is copied before the flush: bits set meanwhile may not be durable. */
static int acknowledge(struct pull_job *job, struct err *err)
{
    free_mem uint8_t *bitmap = malloc(job->bitmap_len);
    if (bitmap == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    (void)pthread_mutex_lock(&job->mutex);
    memcpy(bitmap, job->bitmap, job->bitmap_len);
    job->bytes_unacknowledged = 0;
    (void)pthread_mutex_unlock(&job->mutex);
    int rc = flush(job->pull, err);
    if (rc < 0 || job->pull->acknowledge == NULL)
        return rc;
    return job->pull->acknowledge(job->pull->acknowledge_ctx, bitmap, job->bitmap_len, err);
}

static int tick(void *ctx, struct err *err)
{
    struct pull_job *job = ctx;
    uint64_t now_ns = monotonic_ns();
    (void)pthread_mutex_lock(&job->mutex);
    uint64_t bytes = job->bytes_unacknowledged;
    (void)pthread_mutex_unlock(&job->mutex);
    if (bytes == 0 || (bytes < acknowledge_bytes && now_ns - job->acknowledged_ns < acknowledge_ns))
        return 0;
    job->acknowledged_ns = now_ns;
    return acknowledge(job, err);
}

/* --- objects for the null sink ------------------------------------------------------------ */

static int compare_objects(const void *a, const void *b)
{
    const struct pull_object *left = a, *right = b;
    if (left->kind != right->kind)
        return left->kind < right->kind ? -1 : 1;
    int order = memcmp(left->snapshot, right->snapshot, ID_LEN);
    return order ? order : (left->number > right->number) - (left->number < right->number);
}

static uint32_t drop_repeats(struct pull_object *objects, uint32_t count)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++)
        if (kept == 0 || compare_objects(&objects[kept - 1], &objects[i]) != 0)
            objects[kept++] = objects[i];
    return kept;
}

/* Every pack and every table pack that the manifest reaches. */
static int list_reached(const struct fmt_manifest *manifest, struct pull_object **ret,
                        uint32_t *ret_count, struct err *err)
{
    size_t count = (size_t)manifest->pack_count + manifest->region_count;
    struct pull_object *objects = calloc(count, sizeof(*objects));
    if (objects == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory for %zu objects", count);
    for (uint32_t i = 0; i < manifest->pack_count; i++) {
        objects[i].kind = FMT_PACK;
        objects[i].number = manifest->packs[i].number;
        objects[i].stored_len = manifest->packs[i].stored_len;
        memcpy(objects[i].snapshot, manifest->packs[i].snapshot, ID_LEN);
    }
    for (uint32_t i = 0; i < manifest->region_count; i++) {
        struct pull_object *object = &objects[manifest->pack_count + i];
        object->kind = FMT_TABLES;
        object->number = manifest->regions[i].number;
        memcpy(object->snapshot, manifest->regions[i].snapshot, ID_LEN);
    }
    qsort(objects, count, sizeof(*objects), compare_objects);
    *ret = objects;
    *ret_count = drop_repeats(objects, (uint32_t)count);
    return 0;
}

/* Those that were not looked at with the earlier snapshot, and are in the sample. */
static int list_objects(struct pull_job *job, struct err *err)
{
    struct pull *pull = job->pull;
    free_mem struct pull_object *known = NULL;
    uint32_t known_count = 0, kept = 0;
    int rc = list_reached(pull->manifest, &job->objects, &job->object_count, err);
    if (rc == 0 && pull_is_comparable(pull))
        rc = list_reached(pull->known, &known, &known_count, err);
    for (uint32_t i = 0; rc == 0 && i < job->object_count; i++) {
        const struct pull_object *object = &job->objects[i];
        if (pull_skips_object(pull, object) ||
            (known != NULL &&
             bsearch(object, known, known_count, sizeof(*known), compare_objects) != NULL))
            continue;
        pull->packs_checked += object->kind == FMT_PACK;
        pull->tables_checked += object->kind == FMT_TABLES;
        job->objects[kept++] = *object;
    }
    job->object_count = kept;
    return rc;
}

struct listing {
    struct pull_object *first; /* of one kind and snapshot, in the order of their numbers */
    struct pull_object *end;
};

static int take_size(void *ctx, const char *name, uint64_t size, struct err *err)
{
    const struct listing *listing = ctx;
    (void)err;
    char *rest;
    unsigned long long number = strtoull(strrchr(name, '/') + 1, &rest, 16);
    struct pull_object key = *listing->first;
    key.number = (uint32_t)number;
    struct pull_object *object =
        bsearch(&key, listing->first, (size_t)(listing->end - listing->first), sizeof(key),
                compare_objects);
    if (*rest == '\0' && number <= UINT32_MAX && object != NULL)
        object->size = size;
    return 0;
}

/* A GET cannot tell that an object goes on behind what was asked for; a listing has all sizes. */
static int list_sizes(struct pull_job *job, struct err *err)
{
    struct pull_object *end = job->objects + job->object_count;
    char prefix[STORE_NAME_MAX + 1];
    int rc = 0;
    for (struct pull_object *at = job->objects; rc == 0 && at < end;) {
        struct listing listing = {.first = at};
        while (at < end && at->kind == listing.first->kind &&
               memcmp(at->snapshot, listing.first->snapshot, ID_LEN) == 0)
            at++;
        listing.end = at;
        pull_object_name(job->pull, listing.first, prefix);
        strrchr(prefix, '/')[1] = '\0';
        rc = store_list(job->pull->store, prefix, take_size, &listing, err);
    }
    return rc;
}

/* --- run ---------------------------------------------------------------------------------- */

/* The withheld extents come from a snapshot record: wrong ones are an error, not a bug. */
static int check_target(const struct pull *pull, struct err *err)
{
    if (pull->sink == PULL_TO_NULL)
        return 0;
    assert(pull->fd >= 0);
    assert(pull->alignment > 0 && (pull->alignment & (pull->alignment - 1)) == 0);
    assert(pull->alignment <= PULL_HEAD_LEN);
    for (size_t i = 0; i < pull->withheld_count; i++)
        if (pull->withheld[i].offset % pull->alignment != 0 ||
            pull->withheld[i].len % pull->alignment != 0)
            return err_set(err, ERR_REFUSED,
                           "%" PRIu64 " bytes to withhold at %" PRIu64
                           " are not whole sectors of %" PRIu32 " bytes",
                           pull->withheld[i].len, pull->withheld[i].offset, pull->alignment);
    return 0;
}

static int check_pull(const struct pull *pull, struct err *err)
{
    const struct fmt_manifest *manifest = pull->manifest;
    if (manifest->chunk_size != pull->repo->chunk_size ||
        manifest->region_size != pull->repo->region_size)
        return err_set(err, ERR_CORRUPT, "manifest and repository differ in geometry");
    if (manifest->size < PULL_HEAD_LEN)
        return err_set(err, ERR_CORRUPT, "a volume of %" PRIu64 " bytes", manifest->size);
    if (pull->sink == PULL_TO_DEVICE && manifest->size % pull->alignment != 0)
        return err_set(err, ERR_REFUSED,
                       "the volume's %" PRIu64 " bytes are not whole sectors of %u bytes",
                       manifest->size, pull->alignment);
    return check_target(pull, err);
}

static int plan_memory(struct pull *pull, const struct store_lane_shape *shape, uint32_t batch_min,
                       struct buffers_plan *ret, struct err *err)
{
    struct buffers_need need = {
        .block_name = "write",
        .object_name = "get",
        .block_len = PULL_BLOCK_LEN,
        .block_count = PULL_BLOCK_COUNT,
        .object_len = shape->get_len + STORE_LANE_SLACK,
        .object_min = PULL_GETS_MIN,
        .object_max = (unsigned)max_u64(PULL_GETS_MIN, min_u64(shape->lane_max, PULL_GETS_MAX)),
        .object_total = shape->total_max,
        .object_spare = 1, /* the one that is being decoded */
        .object_extra = shape->overhead_len,
        .fixed_len = PULL_BLOCK_LEN + PULL_REGIONS * PULL_TABLE_BUF_LEN +
                     (pull_is_comparable(pull) ? PULL_REGIONS * PULL_TABLE_BUF_LEN : 0) +
                     PULL_PROBES * PULL_PROBE_BUF_LEN + 2 * FMT_CHUNK_SIZE_MAX,
        .lane_max = div_round_up(pull->manifest->region_count, batch_min),
    };
    int rc = buffers_plan(&pull->options, &need, ret, err);
    if (rc == 0)
        (void)snprintf(pull->memory_sum, sizeof(pull->memory_sum), "%s", ret->text);
    return rc;
}

static uint32_t piece_max(const struct pull *pull)
{
    uint64_t max = pull->request_max ? pull->request_max : PULL_BLOCK_LEN;
    max = min_u64(align_down(max, 4096), PULL_BLOCK_LEN);
    return (uint32_t)max_u64(max, FMT_CHUNK_SIZE_MAX); /* PULL_PIECES_MAX holds from here on */
}

static int run_lanes(struct pull_job *job, const struct buffers_plan *plan, struct err *err)
{
    struct pull *pull = job->pull;
    job->acknowledged_ns = monotonic_ns();
    (void)pthread_mutex_init(&job->mutex, NULL);
    struct lanes_job lanes = {
        .plan = plan,
        .item_count = (uint64_t)pull->manifest->region_count + job->object_count,
        .store = pull->store,
        .request_count = plan->object_count + PULL_REGIONS + PULL_PROBES,
        .fd = pull->fd,
        .progress = pull->progress,
        .run = pull_lane_run,
        .tick = pull->acknowledge != NULL ? tick : NULL,
        .ctx = job,
    };
    int rc = lanes_run(&lanes, err);
    /* An image file whose length is no whole number of sectors was written over its end. */
    if (rc == 0 && pull->sink == PULL_TO_FILE && pull->manifest->size % pull->alignment != 0 &&
        ftruncate(pull->fd, (off_t)pull->manifest->size) < 0)
        rc = err_sys(err, ERR_DEVICE, "cut the target to its length");
    if (rc == 0)
        rc = acknowledge(job, err);
    (void)pthread_mutex_destroy(&job->mutex);
    return rc;
}

static int plan_null(struct pull_job *job, struct err *err)
{
    job->skip = calloc(1, job->bitmap_len);
    if (job->skip == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    pull_skip_regions(job);
    int rc = list_objects(job, err);
    return rc < 0 ? rc : list_sizes(job, err);
}

int pull_run(struct pull *pull, struct err *err)
{
    int rc = check_pull(pull, err);
    if (rc < 0)
        return rc;
    struct buffers_plan plan;
    struct store_lane_shape shape;
    store_lane_shape(pull->store, &shape);
    uint32_t batch_min = pull_plan_batch(pull->manifest, shape.get_len);
    rc = plan_memory(pull, &shape, batch_min, &plan, err);
    if (rc < 0)
        return rc;
    struct pull_job job = {
        .pull = pull,
        .get_count = plan.object_count,
        .get_len = shape.get_len,
        .batch_min = batch_min,
        .piece_max = piece_max(pull),
        .bitmap_len = (size_t)div_round_up(pull->manifest->region_count, 8),
    };
    job.bitmap = calloc(1, job.bitmap_len);
    if (job.bitmap == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    /* What an earlier run acknowledged stays claimed: whoever resumes digests it again. */
    if (pull->done_before != NULL)
        memcpy(job.bitmap, pull->done_before, job.bitmap_len);
    if (pull->sink == PULL_TO_NULL)
        rc = plan_null(&job, err);
    (void)atomic_fetch_add(&pull->progress->bytes_total, pull->manifest->size - job.bytes_skipped);
    if (rc == 0)
        rc = run_lanes(&job, &plan, err);
    free(job.objects);
    free(job.skip);
    free(job.bitmap);
    return rc;
}
