/* What the API says of the node itself: see api_node.h. */
#include "agent/api_node.h"

#include <string.h>
#include <sys/stat.h>

#include "agent/cluster_gate.h"
#include "agent/job_rules.h"
#include "agent/node_report.h"

struct timespec api_conf_changed(const struct conf *conf)
{
    struct stat st;
    bool found = conf->file[0] && stat(conf->file, &st) == 0;
    return found ? st.st_mtim : (struct timespec){0};
}

/* The agent and its jobs go on with what it read at its start. */
static bool is_conf_stale(const struct api *api)
{
    struct timespec now = api_conf_changed(api->conf), then = api->conf_changed;
    return now.tv_sec != then.tv_sec || now.tv_nsec != then.tv_nsec;
}

int api_get_health(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    struct health health;
    (void)arg;
    (void)err;
    struct err why;
    job_health(api->conf, &health);
    bool left_out = strcmp(health.status, "ok") == 0 && cluster_gate_check(api->conf, &why) < 0;
    if (left_out)
        health.status = "diverged";
    call->status = strcmp(health.status, "ok") == 0 ? 200 : 503;
    call->answer = json_pack("{s:s, s:s, s:s, s:s, s:b}", "status", health.status, "cluster",
                             api->conf->cluster, "node", api->conf->node, "version",
                             TIDEMARK_VERSION, "stale_configuration", is_conf_stale(api));
    if (left_out) {
        (void)json_object_set_new(call->answer, "cause", json_string(why.text));
        (void)json_object_set_new(call->answer, "hint", json_string(why.hint));
    }
    if (health.job[0]) {
        (void)json_object_set_new(call->answer, "job", json_string(health.job));
        (void)json_object_set_new(call->answer, "step", json_string(health.step));
        (void)json_object_set_new(call->answer, "given_up", json_boolean(health.given_up));
        if (health.cluster_job[0])
            (void)json_object_set_new(call->answer, "cluster_job", json_string(health.cluster_job));
    }
    return 0;
}

int api_get_node(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    (void)arg;
    (void)err;
    call->status = 200;
    call->answer = node_report(api->conf);
    return 0;
}

int api_get_version(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    (void)api;
    (void)arg;
    (void)err;
    call->status = 200;
    call->answer =
        json_pack("{s:s, s:s, s:i}", "program", "tidemark", "version", TIDEMARK_VERSION, "api", 1);
    return 0;
}
