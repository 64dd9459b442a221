/* The members of a cluster and the requests to their agents, see cluster.h. */
#include "agent/cluster.h"

#include <stdio.h>

/* --- configuration ---------------------------------------------------------------------------- */

static bool is_address(const char *text)
{
    return strncmp(text, "https://", 8) == 0 ? text[8] != '\0' : strncmp(text, "unix:/", 6) == 0;
}

static int take_member(struct cluster *cluster, const char *word, size_t len, struct err *err)
{
    struct cluster_member *member = &cluster->members[cluster->count];
    const char *equals = memchr(word, '=', len);
    size_t name_len = equals ? (size_t)(equals - word) : len;
    if (cluster->count == CLUSTER_MEMBERS_MAX)
        return err_set(err, ERR_CONFIG, "more than %d members", CLUSTER_MEMBERS_MAX);
    if (!equals || name_len > CONF_NAME_MAX || len - name_len - 1 > CLUSTER_ADDRESS_MAX)
        return err_set(err, ERR_CONFIG, "'%.*s' is not NAME=ADDRESS", (int)min_u64(len, 80), word);
    (void)snprintf(member->name, sizeof(member->name), "%.*s", (int)name_len, word);
    (void)snprintf(member->address, sizeof(member->address), "%.*s", (int)(len - name_len - 1),
                   equals + 1);
    if (!repo_name_valid(member->name, CONF_NAME_MAX))
        return err_set(err, ERR_CONFIG, "'%s' is not the name of a node", member->name);
    if (!is_address(member->address))
        return err_set(err, ERR_CONFIG,
                       "'%s' is not the address of an agent: https://host:port or unix:/path",
                       member->address);
    if (cluster_member(cluster, member->name))
        return err_set(err, ERR_CONFIG, "member '%s' is there twice", member->name);
    cluster->count++;
    return 0;
}

static int compare_names(const void *a, const void *b)
{
    const struct cluster_member *left = a, *right = b;
    return strcmp(left->name, right->name);
}

int cluster_members(const struct conf *conf, struct cluster *ret, struct err *err)
{
    static const char blanks[] = " \t,";
    *ret = (struct cluster){.conf = conf};
    for (const char *at = conf->coordinator_members; *(at += strspn(at, blanks));) {
        size_t len = strcspn(at, blanks);
        int rc = take_member(ret, at, len, err);
        if (rc < 0)
            return err_prefix(err, "[coordinator] members");
        at += len;
    }
    if (ret->count == 0) {
        (void)err_set(err, ERR_CONFIG, "this is no coordinator: [coordinator] has no members");
        return err_hint(err, "members = NAME=ADDRESS …, in the coordinator's configuration");
    }
    qsort(ret->members, ret->count, sizeof(ret->members[0]), compare_names);
    return 0;
}

const struct cluster_member *cluster_member(const struct cluster *cluster, const char *name)
{
    for (size_t i = 0; i < cluster->count; i++)
        if (strcmp(cluster->members[i].name, name) == 0)
            return &cluster->members[i];
    return NULL;
}

/* --- how a standby reaches its primary -------------------------------------------------------- */

/* https://HOST:PORT → HOST, without the brackets of an IPv6 address; "" for a socket. */
static void host_of(const struct cluster_member *member, char *ret, size_t size)
{
    const char *at = member->address;
    ret[0] = '\0';
    if (strncmp(at, "https://", 8) != 0)
        return;
    at += 8;
    size_t len = at[0] == '[' ? strcspn(++at, "]") : strcspn(at, ":/");
    (void)snprintf(ret, size, "%.*s", (int)len, at);
}

static int fill_template(const char *template, const char *host, const char *name, char *ret,
                         size_t size, struct err *err)
{
    size_t len = 0;
    for (const char *at = template; *at; at++) {
        char one[2] = {*at, '\0'};
        const char *part = one;
        if (at[0] == '%' && (at[1] == 'h' || at[1] == 'n'))
            part = *++at == 'h' ? host : name;
        len += (size_t)snprintf(ret + min_u64(len, size - 1), size - min_u64(len, size - 1), "%s",
                                part);
    }
    if (len >= size)
        return err_set(err, ERR_CONFIG, "[coordinator] primary_conninfo is too long");
    free_json json_t *text = json_string(ret);
    return text ? 0 : err_set(err, ERR_CONFIG, "[coordinator] primary_conninfo is not UTF-8");
}

int cluster_fill_conninfo(const struct conf *conf, const struct cluster_member *primary,
                          const char *standby, char *ret, size_t size, struct err *err)
{
    const char *template = conf->coordinator_primary_conninfo;
    char host[CLUSTER_ADDRESS_MAX + 1];
    host_of(primary, host, sizeof(host));
    if (!strstr(template, "%h") || host[0])
        return fill_template(template, host, standby, ret, size, err);
    (void)err_set(err, ERR_CONFIG,
                  "[coordinator] primary_conninfo has %%h, but '%s' of member %s has no host",
                  primary->address, primary->name);
    return err_hint(err, "write the host in the place of %%h, or the member's https:// address");
}

/* --- requests --------------------------------------------------------------------------------- */

/* Where to look when another answers than was meant, or nobody does. A job has a copy of the
 * configuration. */
static int name_line(const struct cluster *cluster, const struct cluster_member *member,
                     struct err *err)
{
    const struct conf *conf = cluster->conf;
    bool copy = strncmp(conf->file, conf->state_dir, strlen(conf->state_dir)) == 0;
    struct err before = *err;
    return err_hint(err, "%s%ssee '%s=%s' in [coordinator] members of %s", before.hint,
                    before.hint[0] ? "; " : "", member->name, member->address,
                    copy || !conf->file[0] ? "the coordinator's configuration" : conf->file);
}

/* What an agent says of itself is of use only when it is the one that is meant. */
static int check_node(const struct conf *conf, const struct cluster_member *member,
                      const json_t *node, struct err *err)
{
    const char *cluster = json_str(node, "cluster"), *name = json_str(node, "node");
    if (strcmp(cluster, conf->cluster) != 0) {
        (void)err_set(err, ERR_CONFIG, "its agent has cluster = %.80s, this coordinator %s",
                      cluster, conf->cluster);
        return err_hint(err, "[tidemark] cluster has to be the same in all configurations");
    }
    if (strcmp(name, member->name) == 0)
        return 0;
    return err_set(err, ERR_CONFIG, "the agent of node %.80s answers at %s", name, member->address);
}

int cluster_call_within(const struct cluster *cluster, const struct cluster_member *member,
                        unsigned timeout_s, const char *method, const char *path,
                        const json_t *body, json_t **ret, struct err *err)
{
    struct client *client = NULL;
    const struct conf *conf = cluster->conf;
    free_json json_t *answer = NULL;
    const struct client_remote remote = {.address = member->address,
                                         .node = member->name,
                                         .timeout_s = timeout_s,
                                         .tls = {.certificate_file = conf->tls_certificate_file,
                                                 .key_file = conf->tls_key_file,
                                                 .ca_file = conf->tls_ca_file}};
    int rc = client_open_remote(&remote, &client, err);
    if (rc == 0)
        rc = client_call(client, method, path, body, &answer, err);
    bool strange = client && !client_was_answered(client);
    client_close(client);
    if (rc == 0 && strcmp(path, "/node") == 0) {
        rc = check_node(conf, member, answer, err);
        strange = rc < 0;
    }
    if (rc < 0 && strange)
        (void)name_line(cluster, member, err);
    if (rc < 0)
        return err_prefix(err, "node %s", member->name);
    *ret = take_ptr(&answer);
    return 0;
}

int cluster_call(const struct cluster *cluster, const struct cluster_member *member,
                 const char *method, const char *path, const json_t *body, json_t **ret,
                 struct err *err)
{
    return cluster_call_within(cluster, member, 0, method, path, body, ret, err);
}

struct one_call {
    const struct cluster *cluster;
    const struct cluster_member *member;
    const char *method, *path;
    json_t **answer;
    struct err *err;
    pthread_t thread;
    bool started;
};

static void *call_one(void *ctx)
{
    struct one_call *call = ctx;
    (void)cluster_call_within(call->cluster, call->member, CLUSTER_ANSWER_S, call->method,
                              call->path, NULL, call->answer, call->err);
    return NULL;
}

void cluster_call_all(const struct cluster *cluster, const char *method, const char *path,
                      json_t *answers[CLUSTER_MEMBERS_MAX], struct err errs[CLUSTER_MEMBERS_MAX])
{
    struct one_call calls[CLUSTER_MEMBERS_MAX];
    for (size_t i = 0; i < cluster->count; i++) {
        answers[i] = NULL;
        err_clear(&errs[i]);
        calls[i] = (struct one_call){.cluster = cluster,
                                     .member = &cluster->members[i],
                                     .method = method,
                                     .path = path,
                                     .answer = &answers[i],
                                     .err = &errs[i]};
        calls[i].started = pthread_create(&calls[i].thread, NULL, call_one, &calls[i]) == 0;
        if (!calls[i].started)
            (void)call_one(&calls[i]);
    }
    for (size_t i = 0; i < cluster->count; i++)
        if (calls[i].started)
            (void)pthread_join(calls[i].thread, NULL);
}
