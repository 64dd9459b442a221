/* A snapshot of the cluster: the blocks of the primary or of a standby, the topology of all. A
 * restore brings every node back from the one snapshot. */
#include "agent/cluster.h"
#include "agent/clock.h"
#include "agent/log.h"

#include <stdio.h>

enum { POLL_MS = 200 };

/* One primary, and no node unheard: a topology with holes would restore a cluster with holes. */
static int find_primary(const json_t *members, const json_t **ret, struct err *err)
{
    size_t i;
    json_t *member;
    *ret = NULL;
    json_array_foreach(members, i, member)
    {
        const char *name = json_str(member, "name");
        if (strcmp(json_str(member, "status"), "unreachable") == 0) {
            (void)err_set(err, ERR_DEVICE, "node %s does not answer: %.200s", name,
                          json_str(member, "error"));
            return err_hint(err, "start its agent, or take it out of [coordinator] members");
        }
        if (strcmp(json_str(member, "role"), "primary") != 0)
            continue;
        if (*ret)
            return err_set(err, ERR_REFUSED, "two primaries: %s and %s", json_str(*ret, "name"),
                           name);
        *ret = member;
    }
    if (*ret)
        return 0;
    (void)err_set(err, ERR_POSTGRES, "no node is a primary that runs");
    return err_hint(err, "start it; `tidemark cluster status` shows the nodes");
}

/* Commits wait for a synchronous standby, also while its volumes are frozen. */
static bool is_waited_for(const json_t *primary, const json_t *standby)
{
    const char *name = json_str(json_object_get(standby, "receiver"), "application_name");
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(primary, "replication"), i, item)
    {
        if (json_is(item, "application_name", name))
            return !json_is(item, "sync_state", "async");
    }
    return false;
}

/* The first that streams and that nobody waits for, else the first that streams. */
static int find_standby(const json_t *members, const json_t *primary, const char **ret,
                        struct err *err)
{
    const json_t *found = NULL;
    size_t i;
    json_t *member;
    json_array_foreach(members, i, member)
    {
        if (!json_is(member, "role", "standby") ||
            !json_is(json_object_get(member, "receiver"), "status", "streaming"))
            continue;
        if (!found || (is_waited_for(primary, found) && !is_waited_for(primary, member)))
            found = member;
    }
    if (found) {
        *ret = json_str(found, "name");
        return 0;
    }
    (void)err_set(err, ERR_REFUSED, "no standby streams: there is none to take the snapshot from");
    return err_hint(err, "`tidemark cluster status` shows the nodes; without --from the primary is "
                         "the source");
}

static int find_named(const json_t *members, const char *name, const char **ret, struct err *err)
{
    size_t i;
    json_t *member;
    json_array_foreach(members, i, member)
    {
        if (!json_is(member, "name", name))
            continue;
        if (json_is(member, "role", "primary") || json_is(member, "role", "standby")) {
            *ret = json_str(member, "name");
            return 0;
        }
        return err_set(err, ERR_REFUSED, "the server of node %s does not run", name);
    }
    (void)err_set(err, ERR_USAGE, "'%.80s' is no member of the cluster", name);
    return err_hint(err, "--from is standby, or a name of [coordinator] members");
}

static int find_source(const json_t *members, const char *from, const char **ret, struct err *err)
{
    const json_t *primary = NULL;
    int rc = find_primary(members, &primary, err);
    if (rc < 0)
        return rc;
    if (!from) {
        *ret = json_str(primary, "name");
        return 0;
    }
    return strcmp(from, "standby") == 0 ? find_standby(members, primary, ret, err)
                                        : find_named(members, from, ret, err);
}

static json_t *request_of(const struct job *job, const json_t *members)
{
    json_t *body = json_object();
    json_t *full = json_object_get(job->request, "full");
    (void)json_object_set(body, "tag", json_object_get(job->request, "tag"));
    (void)json_object_set_new(body, "cluster_job", json_string(job->id));
    (void)json_object_set_new(body, "members", cluster_topology(members));
    if (full)
        (void)json_object_set(body, "full", full);
    return body;
}

/* The agent's job in ours: its phase, its end. */
static int follow(struct job *job, const struct cluster *cluster,
                  const struct cluster_member *source, const char *id, json_t **ret,
                  struct err *err)
{
    char path[64], phase[32] = "";
    uint64_t heard_ms = now_ms(), patience_ms = job->conf.coordinator_agent_timeout_s * 1000ull;
    (void)snprintf(path, sizeof(path), "/jobs/%s", id);
    for (;;) {
        free_json json_t *status = NULL;
        int rc = cluster_call(cluster, source, "GET", path, NULL, &status, err);
        bool silent = rc == -ERR_DEVICE || rc == -ERR_STORE; /* its agent restarts, perhaps */
        if (rc < 0 && (!silent || now_ms() - heard_ms > patience_ms))
            return rc;
        if (rc == 0)
            heard_ms = now_ms();
        if (rc == 0 && !json_is_true(json_object_get(status, "running"))) {
            *ret = json_incref(status);
            return 0;
        }
        rc = 0;
        if (status && strcmp(phase, json_str(status, "phase")) != 0) {
            (void)snprintf(phase, sizeof(phase), "%s", json_str(status, "phase"));
            rc = job_journal(job, NULL, phase, err);
        }
        if (rc == 0)
            rc = job_check_cancel(job, err);
        if (rc == -ERR_CANCELLED) {
            free_json json_t *answer = NULL;
            struct err ignored;
            (void)cluster_call(cluster, source, "DELETE", path, NULL, &answer, &ignored);
        }
        if (rc < 0)
            return rc;
        (void)usleep(POLL_MS * 1000);
    }
}

static int take_result(struct job *job, const json_t *status, struct err *err)
{
    const json_t *error = json_object_get(status, "error");
    if (json_is_object(error)) {
        (void)err_set(err, err_code_from_name(json_str(error, "code")), "%s",
                      json_str(error, "text"));
        return err_hint(err, "%s", json_str(error, "hint"));
    }
    (void)json_object_set(job->journal, "result", json_object_get(status, "result"));
    return 0;
}

static int snapshot_on(struct job *job, const struct cluster *cluster, const json_t *members,
                       const char *source_name, struct err *err)
{
    const struct cluster_member *source = cluster_member(cluster, source_name);
    free_json json_t *body = request_of(job, members);
    free_json json_t *answer = NULL;
    free_json json_t *status = NULL;
    const char *id = "";
    if (!source)
        return err_set(err, ERR_USAGE, "'%.80s' is no member of the cluster", source_name);
    (void)json_object_set_new(job->journal, "source", json_string(source->name));
    int rc = cluster_call(cluster, source, "POST", "/snapshots", body, &answer, err);
    if (rc == 0)
        rc = json_get_string(answer, "id", ERR_INTERNAL, &id, err);
    if (rc < 0)
        return rc;
    log_info("cluster snapshot: source=%s job=%s", source->name, id);
    rc = follow(job, cluster, source, id, &status, err);
    return rc < 0 ? rc : take_result(job, status, err);
}

int cluster_snapshot_run(struct job *job, struct err *err)
{
    struct cluster cluster;
    int rc = cluster_members(&job->conf, &cluster, err);
    (void)json_object_set(job->journal, "tag", json_object_get(job->request, "tag"));
    if (rc == 0)
        rc = job_journal(job, NULL, "asking the nodes", err);
    if (rc < 0)
        return rc;
    free_json json_t *status = cluster_status(&cluster);
    const json_t *members = json_object_get(status, "members");
    const char *source = "";
    rc = find_source(members, json_string_value(json_object_get(job->request, "from")), &source,
                     err);
    return rc < 0 ? rc : snapshot_on(job, &cluster, members, source, err);
}
