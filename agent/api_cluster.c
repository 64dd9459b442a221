/* See api_cluster.h. */
#include "agent/api_cluster.h"

#include <stdio.h>

#include "agent/api_request.h"
#include "agent/cluster.h"
#include "agent/cluster_archive.h"

/* --- the coordinator -------------------------------------------------------------------------- */

int api_check_coordinator(struct api *api, const json_t *request, struct err *err)
{
    struct cluster cluster;
    (void)request;
    return cluster_members(api->conf, &cluster, err);
}

int api_get_cluster(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    struct cluster cluster;
    struct err why;
    json_t *restores = NULL;
    (void)arg;
    int rc = cluster_members(api->conf, &cluster, err);
    if (rc < 0)
        return rc;
    call->status = 200;
    call->answer = cluster_status(&cluster);
    if (cluster_archive_list(api->conf, false, &restores, &why) == 0)
        (void)json_object_set_new(call->answer, "restores", restores);
    else
        (void)json_object_set_new(call->answer, "restores_error", json_string(why.text));
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
    if (strspn(id, "0123456789abcdef") != strlen(id) || strlen(id) < 6)
        return err_set(err, ERR_MISSING, "'%.64s' is not the id of a job", id);
    int rc = cluster_adopt(api->conf, id, goal, &api->mutex, call->job, err);
    if (rc < 0)
        return rc;
    call->status = 202;
    call->answer = json_pack("{s:s}", "id", call->job);
    return 0;
}

/* --- the node --------------------------------------------------------------------------------- */

int api_post_claim(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    static const char *const words[] = {
        [CLAIM_GRANTED] = "granted", [CLAIM_LOST] = "lost", [CLAIM_BUSY] = "busy"};
    struct cluster_lock want = {.epoch = 0}, now;
    enum cluster_claim claim = CLAIM_LOST;
    free_json json_t *request = NULL;
    uint8_t id[ID_LEN];
    (void)arg;
    int rc = api_request_parse("claim", call->body, call->body_len, &request, err);
    if (rc == 0)
        rc = json_get_u64(request, "epoch", ERR_USAGE, &want.epoch, err);
    if (rc < 0)
        return rc;
    if (!id_from_text(json_str(request, "job"), id) ||
        !id_from_text(json_str(request, "token"), id))
        return err_set(err, ERR_USAGE, "job and token are ids of 32 hexadecimal digits");
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
