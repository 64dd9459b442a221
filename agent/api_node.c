/* What the API says of the node itself: see api_node.h. */
#include "agent/api_node.h"

#include <string.h>
#include <sys/stat.h>

#include "agent/api_cluster.h"
#include "agent/cluster.h"
#include "agent/conf_report.h"
#include "agent/health.h"
#include "agent/node_report.h"

struct timespec api_conf_changed(const struct conf *conf)
{
    struct stat st;
    bool found = conf->file[0] && stat(conf->file, &st) == 0;
    return found ? st.st_mtim : (struct timespec){0};
}

bool api_is_conf_stale(const struct api *api)
{
    struct timespec now = api_conf_changed(api->conf), then = api->conf_changed;
    return now.tv_sec != then.tv_sec || now.tv_nsec != then.tv_nsec;
}

int api_get_health(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    const struct conf *conf = api->conf;
    (void)arg;
    (void)err;
    call->answer = conf->coordinator_members[0] ? cluster_health(conf) : health_report(conf, NULL);
    (void)json_object_set_new(call->answer, "cluster", json_string(conf->cluster));
    (void)json_object_set_new(call->answer, "node", json_string(conf->node));
    (void)json_object_set_new(call->answer, "version", json_string(TIDEMARK_VERSION));
    (void)json_object_set_new(call->answer, "configuration_file",
                              conf->file[0] ? json_string(conf->file) : json_null());
    (void)json_object_set_new(call->answer, "stale_configuration",
                              json_boolean(api_is_conf_stale(api)));
    call->status = json_is(call->answer, "status", "ok") ? 200 : 503;
    return 0;
}

int api_get_node(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    (void)arg;
    (void)err;
    call->status = 200;
    call->answer = node_report(api->conf);
    api_add_heard(api, json_object_get(call->answer, "reservation"), call->asker.epoch);
    return 0;
}

int api_get_version(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    (void)arg;
    (void)err;
    call->status = 200;
    call->answer =
        json_pack("{s:s, s:s, s:i, s:b, s:s, s:o}", "program", "tidemark", "version",
                  TIDEMARK_VERSION, "api", 1, "stale_configuration", (int)api_is_conf_stale(api),
                  "configuration_file", api->conf->file, "configuration", conf_report(api->conf));
    return 0;
}
