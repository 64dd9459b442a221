/* The JSON of a job's directory: goal.json, the plan, the fork and the step of a restore's
 * journal.json, volumes.json beside them, cluster.json, the reservation of the node, and the copy
 * of a cluster restore's journal in the repository. A plan that is accepted is written and read
 * again as the same plan, a copy likewise. */
#include "agent/cluster_copy.h"
#include "agent/cluster_lock.h"
#include "agent/restore.h"
#include "agent/snapshot.h"
#include "tests/fuzz/fuzz.h"

static const char *const volume_names[] = {"pgdata", "pgwal"};

static void check_goal(const json_t *json)
{
    char goal[JOB_GOAL_MAX];
    struct err err;
    if (!fuzz_good(job_goal_parse(json, goal, &err), &err))
        return;
    FUZZ_CHECK(strcmp(goal, json_string_value(json_object_get(json, "goal"))) == 0);
}

static void check_ids(const json_t *json)
{
    struct err err;
    for (size_t i = 0; i < ARRAY_LEN(volume_names); i++) {
        uint8_t id[ID_LEN] = {0};
        char text[ID_TEXT_LEN];
        const json_t *there = json_object_get(json, volume_names[i]);
        bool good = fuzz_good(snapshot_id_find(json, volume_names[i], id, &err), &err);
        FUZZ_CHECK(!good || json_is_object(json));
        id_to_text(id, text);
        if (good && json_is_string(there))
            FUZZ_CHECK(strcmp(text, json_string_value(there)) == 0);
        else
            FUZZ_CHECK(id_is_zero(id));
    }
}

static void check_lock(const json_t *json)
{
    struct cluster_lock lock, again;
    struct err err;
    if (!fuzz_good(cluster_lock_parse(json, &lock, &err), &err))
        return;
    free_json json_t *written = cluster_lock_json(&lock);
    FUZZ_CHECK(lock.epoch > 0 && cluster_lock_parse(written, &again, &err) == 0);
    FUZZ_CHECK(strcmp(lock.job, again.job) == 0 && strcmp(lock.restore, again.restore) == 0);
    FUZZ_CHECK(lock.epoch == again.epoch && lock.held == again.held);
}

static void check_copy(const json_t *json)
{
    struct err err;
    struct cluster_copy_id id = {.epoch = 1, .number = 1, .writer = "0123abcd"};
    free_json json_t *copy = NULL, *again = NULL;
    json_int_t epoch = json_integer_value(json_object_get(json, "epoch"));
    if (epoch > 0 && epoch <= UINT32_MAX)
        id.epoch = (uint32_t)epoch;
    if (json_is_true(json_object_get(json, "over")))
        id.number = CLUSTER_COPY_OVER;
    (void)snprintf(id.job, sizeof(id.job), "%.32s", json_str(json, "id"));
    if (!fuzz_good(cluster_copy_check(json, "main", &id, &copy, &err), &err))
        return;
    FUZZ_CHECK(json_array_size(json_object_get(json_object_get(copy, "plan"), "members")) > 0);
    (void)json_object_set_new(copy, "format", json_integer(1));
    (void)json_object_del(json_object_get(copy, "request"), "type");
    FUZZ_CHECK(cluster_copy_check(copy, "main", &id, &again, &err) == 0);
}

static void check_fork(const json_t *json)
{
    struct restore_fork fork;
    struct err err;
    const json_t *there = json_object_get(json, "fork");
    if (there && fuzz_good(restore_fork_parse(there, ERR_USAGE, &fork, &err), &err))
        FUZZ_CHECK(fork.parent > 0 && fork.timeline > fork.parent && fork.lsn > 0);
}

/* A record with two volumes, as the plan's own. */
static void begin(struct restore *restore, struct record_volume *volumes)
{
    memset(restore, 0, sizeof(*restore));
    for (size_t i = 0; i < ARRAY_LEN(volume_names); i++) {
        memset(&volumes[i], 0, sizeof(volumes[i]));
        (void)snprintf(volumes[i].name, sizeof(volumes[i].name), "%s", volume_names[i]);
    }
    (void)snprintf(restore->record.control_volume, sizeof(restore->record.control_volume), "%s",
                   volume_names[0]);
    memcpy(restore->record.volumes, volumes, ARRAY_LEN(volume_names) * sizeof(*volumes));
    restore->record.volume_count = ARRAY_LEN(volume_names);
}

static void check_plan(const json_t *journal)
{
    static struct restore first, second;
    static struct record_volume volumes[ARRAY_LEN(volume_names)];
    struct err err;
    const json_t *plan = json_object_get(journal, "plan");
    begin(&first, volumes);
    begin(&second, volumes);
    if (!fuzz_good(restore_load_plan(&first, plan, &err), &err))
        return;
    FUZZ_CHECK(first.volumes[0].holds_control && !first.volumes[1].holds_control);
    free_json json_t *warnings = json_array();
    free_json json_t *again = restore_plan_json(&first, warnings);
    FUZZ_CHECK(restore_load_plan(&second, again, &err) == 0);
    free_json json_t *third = restore_plan_json(&second, warnings);
    FUZZ_CHECK(json_equal(again, third));
}

static void check_step(const json_t *journal)
{
    const char *name = json_string_value(json_object_get(journal, "step"));
    enum restore_step step = restore_step_from_name(name);
    FUZZ_CHECK(step < STEP_COUNT);
    FUZZ_CHECK(step == STEP_NONE || strcmp(restore_step_name(step), name) == 0);
    if (job_is_partial(journal)) /* the two lists of steps must agree */
        FUZZ_CHECK(step >= STEP_MARKED && step < STEP_COMPLETE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    free_mem uint8_t *copy = fuzz_copy(data, size);
    free_json json_t *json = NULL;
    struct err err;
    if (!fuzz_good(json_parse((const char *)copy, size, ERR_CORRUPT, &json, &err), &err))
        return 0;
    check_goal(json);
    check_ids(json);
    check_lock(json);
    check_copy(json);
    check_fork(json);
    check_plan(json);
    check_step(json);
    return 0;
}
