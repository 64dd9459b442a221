/* See api_patroni.h. The control socket is root-equivalent, and the server's user must not have it:
 * who is superuser in the database would be root. This door opens for one thing. */
#include "agent/api_patroni.h"

#include "agent/job_rules.h"

static int refuse(const struct api_call *call, struct err *err)
{
    (void)err_set(err, ERR_AUTH, "%.16s %.200s is not possible on the socket of Patroni",
                  call->method, call->path);
    return err_hint(err, "it takes handovers: `tidemark patroni-restore`");
}

/* Anything but these could reach beyond this node's own volumes, or lose WAL. */
static int admit_restore(const struct api_call *call, struct err *err)
{
    static const char *const keys[] = {"snapshot", "target",   "target_timeline",
                                       "execute",  "handover", NULL};
    free_json json_t *body = NULL;
    int rc = call->body_len ? json_parse(call->body, call->body_len, ERR_USAGE, &body, err)
                            : refuse(call, err);
    if (rc < 0)
        return rc;
    if (!json_is_object(json_object_get(body, "handover")) ||
        !json_is_true(json_object_get(body, "execute")) || json_check_keys(body, keys, err) < 0)
        return refuse(call, err);
    return 0;
}

int api_patroni_admit(const struct api *api, const struct api_call *call, struct err *err)
{
    static const char jobs[] = "/jobs/";
    free_json json_t *status = NULL;
    bool reads = strcmp(call->method, "GET") == 0, ends = strcmp(call->method, "DELETE") == 0;
    if (strcmp(call->method, "POST") == 0 && strcmp(call->path, "/restores") == 0)
        return admit_restore(call, err);
    if ((!reads && !ends) || strncmp(call->path, jobs, sizeof(jobs) - 1) != 0)
        return refuse(call, err);
    int rc = job_status(api->conf, call->path + sizeof(jobs) - 1, &status, err);
    return rc == 0 && job_is_handover(status) ? 0 : refuse(call, err);
}

int api_check_handover(struct api *api, const json_t *request, struct err *err)
{
    static const struct job_asker nobody = {.epoch = 0};
    free_json json_t *jobs = NULL;
    size_t i;
    json_t *job;
    bool ended;
    if (!json_object_get(request, "handover"))
        return 0;
    if (api->conf->manager != MANAGER_PATRONI) {
        (void)err_set(err, ERR_CONFIG, "a handover needs [postgresql] manager = patroni");
        return err_hint(err, "then no other restore starts while Patroni runs");
    }
    (void)pthread_mutex_lock(&api->mutex);
    int rc = job_list(api->conf, &jobs, err);
    json_array_foreach(jobs, i, job)
    {
        bool left = job_is_handover(job) && job_is_partial(job) &&
                    !json_is_true(json_object_get(job, "running"));
        if (rc == 0 && left)
            rc = job_request_cancel(api->conf, json_str(job, "id"), &nobody, &ended, err);
    }
    (void)pthread_mutex_unlock(&api->mutex);
    return rc;
}
