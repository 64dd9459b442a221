/* See api_cluster.h. */
#include "agent/api_cluster.h"

#include <stdio.h>

#include "agent/api_node.h"
#include "agent/api_request.h"
#include "agent/clock.h"
#include "agent/cluster.h"
#include "agent/cluster_archive.h"

/* --- the coordinator -------------------------------------------------------------------------- */

int api_check_coordinator(struct api *api, const json_t *request, struct err *err)
{
    struct cluster cluster;
    (void)request;
    return cluster_members(api->conf, &cluster, err);
}

/* A copy only knows what was when it was written: of a restore of our own we know what is, of
 * another coordinator's the agents know whether it still asks. */
static void describe(const struct conf *conf, json_t *restore, const json_t *members)
{
    free_json json_t *own = NULL;
    struct err ignored;
    bool ours = job_status(conf, json_str(restore, "id"), &own, &ignored) == 0 &&
                !json_is(own, "state", "taken_over");
    const json_t *from = ours ? own : restore;
    const json_t *nodes = json_object_get(ours ? own : json_object_get(restore, "plan"), "members");
    const char *wave = json_is_true(json_object_get(from, "touched")) ? cluster_wave(nodes)
                                                                      : json_str(from, "step");
    (void)json_object_set_new(restore, "wave", json_string(wave));
    if (ours) {
        (void)json_object_set(restore, "state", json_object_get(own, "state"));
        (void)json_object_set(restore, "running", json_object_get(own, "running"));
        return;
    }
    uint64_t epoch = (uint64_t)json_integer_value(json_object_get(restore, "epoch"));
    const json_t *held =
        json_object_get(cluster_last_heard(members, json_str(restore, "id"), epoch), "reservation");
    if (held)
        (void)json_object_set(restore, "heard_ago_ms", json_object_get(held, "heard_ago_ms"));
}

static void add_restores(const struct conf *conf, json_t *answer)
{
    json_t *restores = NULL, *restore;
    struct err why;
    size_t i;
    if (cluster_archive_list(conf, false, &restores, &why) < 0) {
        (void)json_object_set_new(answer, "restores_error", json_string(why.text));
        return;
    }
    json_array_foreach(restores, i, restore)
    {
        describe(conf, restore, json_object_get(answer, "members"));
    }
    (void)json_object_set_new(answer, "restores", restores);
}

int api_get_cluster(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    struct cluster cluster;
    (void)arg;
    int rc = cluster_members(api->conf, &cluster, err);
    if (rc < 0)
        return rc;
    call->status = 200;
    call->answer = cluster_status(&cluster);
    json_t *health = cluster_health_of(api->conf, call->answer);
    (void)json_object_del(health, "members"); /* more of them is in the answer itself */
    (void)json_object_set_new(health, "stale_configuration", json_boolean(api_is_conf_stale(api)));
    (void)json_object_set_new(call->answer, "health", health);
    add_restores(api->conf, call->answer);
    return 0;
}

int api_get_page(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    struct cluster cluster;
    (void)arg;
    if (!api->conf->coordinator_members[0])
        return err_set(err, ERR_MISSING, "there is no page of one node");
    int rc = cluster_members(api->conf, &cluster, err);
    if (rc < 0)
        return rc;
    call->status = 200;
    call->html = cluster_page(&cluster);
    return 0;
}

bool api_is_elsewhere(struct api *api, const char *id)
{
    free_json json_t *status = NULL;
    struct err ignored;
    if (!api->conf->coordinator_members[0])
        return false;
    int rc = job_status(api->conf, id, &status, &ignored);
    if (rc < 0)
        return rc == -ERR_MISSING;
    bool again =
        json_is(status, "state", "failed") && json_is_true(json_object_get(status, "taking"));
    return json_is(status, "state", "taken_over") || again;
}

int api_take_over(struct api *api, struct api_call *call, const char *id, const char *goal,
                  struct err *err)
{
    free_json json_t *request = NULL;
    if (strspn(id, "0123456789abcdef") != strlen(id) || strlen(id) < 6)
        return err_set(err, ERR_MISSING, "'%.64s' is not the id of a job", id);
    int rc = api_request_parse("resume", call->body, call->body_len, &request, err);
    if (rc < 0)
        return rc;
    struct cluster_adoption how = {.goal = goal,
                                   .insist = json_is_true(json_object_get(request, "take_over"))};
    rc = cluster_adopt(api->conf, id, &how, &api->mutex, call->job, err);
    if (rc < 0)
        return rc;
    call->status = 202;
    call->answer = json_pack("{s:s}", "id", call->job);
    return 0;
}

/* --- the node --------------------------------------------------------------------------------- */

static void note_heard(struct api *api, const char *restore, uint64_t epoch)
{
    (void)pthread_mutex_lock(&api->heard_mutex);
    (void)snprintf(api->heard.restore, sizeof(api->heard.restore), "%s", restore);
    api->heard.epoch = epoch;
    api->heard.at_ms = now_ms();
    (void)pthread_mutex_unlock(&api->heard_mutex);
}

void api_note_heard(struct api *api, const char *restore, uint64_t epoch)
{
    struct cluster_lock lock;
    struct err ignored;
    if (epoch && cluster_lock_read(api->conf, &lock, &ignored) == 0 && lock.epoch == epoch &&
        strcmp(lock.restore, restore) == 0)
        note_heard(api, restore, epoch);
}

void api_add_heard(struct api *api, json_t *reservation, uint64_t epoch)
{
    json_int_t now = json_integer_value(json_object_get(reservation, "epoch"));
    if (epoch && now == (json_int_t)epoch)
        note_heard(api, json_str(reservation, "restore"), epoch);
    (void)pthread_mutex_lock(&api->heard_mutex);
    struct api_heard heard = api->heard;
    (void)pthread_mutex_unlock(&api->heard_mutex);
    if (heard.restore[0] && json_is(reservation, "restore", heard.restore) &&
        now == (json_int_t)heard.epoch)
        (void)json_object_set_new(reservation, "heard_ago_ms",
                                  json_integer((json_int_t)(now_ms() - heard.at_ms)));
}

int api_post_claim(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    static const char *const words[] = {
        [CLAIM_GRANTED] = "granted", [CLAIM_LOST] = "lost", [CLAIM_BUSY] = "busy"};
    struct cluster_lock want = {.epoch = 0}, now;
    enum cluster_claim claim = CLAIM_LOST;
    free_json json_t *request = NULL;
    (void)arg;
    int rc = api_request_parse("claim", call->body, call->body_len, &request, err);
    if (rc == 0)
        rc = json_get_u64(request, "epoch", ERR_USAGE, &want.epoch, err);
    if (rc < 0)
        return rc;
    (void)snprintf(want.job, sizeof(want.job), "%s", json_str(request, "job"));
    (void)snprintf(want.token, sizeof(want.token), "%s", json_str(request, "token"));
    (void)snprintf(want.coordinator, sizeof(want.coordinator), "%s",
                   json_str(request, "coordinator"));
    rc = cluster_lock_claim(api->conf, &want, &claim, &now, err);
    if (rc < 0)
        return rc;
    call->status = 200;
    call->answer = cluster_lock_json(&now);
    (void)json_object_del(call->answer, "token"); /* the holder's own */
    (void)json_object_set_new(call->answer, "claim", json_string(words[claim]));
    return 0;
}
