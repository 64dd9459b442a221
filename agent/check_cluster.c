/* Checks of a coordinator, and of a node in the care of Patroni. */
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "agent/check.h"
#include "agent/cluster.h"
#include "agent/restore.h"

/* --- members ---------------------------------------------------------------------------------- */

/* A field that an older agent does not know is refused by it. */
static int check_version(const json_t *node, struct err *err)
{
    const char *version = json_str(node, "version");
    if (strcmp(version, TIDEMARK_VERSION) == 0)
        return 0;
    (void)err_set(err, ERR_CONFIG, "its agent has version %.40s, this is %s", version,
                  TIDEMARK_VERSION);
    return err_hint(err, "install the same version on all hosts of the cluster");
}

static void check_member(struct check *check, const struct cluster_member *member,
                         const json_t *node, const struct err *why)
{
    char name[CONF_NAME_MAX + 8], timeline[32] = "";
    struct err err = *why;
    int rc = node ? check_version(node, &err) : -(int)why->code;
    if (node && json_is_integer(json_object_get(node, "timeline")))
        (void)snprintf(timeline, sizeof(timeline), " on timeline %lld",
                       (long long)json_integer_value(json_object_get(node, "timeline")));
    check->detail[0] = '\0';
    if (node)
        (void)snprintf(
            check->detail, sizeof(check->detail), "%s: %s%s, health %s, agent %s", member->address,
            json_is(node, "role", "down") ? "server down" : json_str(node, "role"), timeline,
            json_str(json_object_get(node, "health"), "status"), json_str(node, "version"));
    (void)snprintf(name, sizeof(name), "node %s", member->name);
    size_t len = strlen(name); /* it is the line's name already */
    if (strncmp(err.text, name, len) == 0 && strncmp(err.text + len, ": ", 2) == 0)
        memmove(err.text, err.text + len + 2, strlen(err.text + len + 2) + 1);
    check_tell(check, name, rc, &err);
}

/* Without exactly one no snapshot of the cluster is possible. */
static void check_primary(struct check *check, const struct cluster *cluster,
                          json_t *const nodes[CLUSTER_MEMBERS_MAX])
{
    struct err err;
    char *names = check->detail;
    size_t count = 0;
    names[0] = '\0';
    for (size_t i = 0; i < cluster->count; i++) {
        size_t len = strlen(names);
        if (!json_is(nodes[i], "role", "primary"))
            continue;
        (void)snprintf(names + len, sizeof(check->detail) - len, "%s%s", count++ ? ", " : "",
                       cluster->members[i].name);
    }
    int rc = count == 1  ? 0
             : count > 1 ? err_set(&err, ERR_REFUSED, "several members are primaries: %s", names)
                         : err_set(&err, ERR_POSTGRES, "no member is a primary that runs");
    if (rc < 0)
        (void)err_hint(&err, "`tidemark cluster status` shows how the nodes are");
    check_tell(check, "primary", rc, &err);
}

/* --- [coordinator] ---------------------------------------------------------------------------- */

/* Every member may become the primary. */
static int check_template(const struct conf *conf, const struct cluster *cluster, struct err *err)
{
    char text[CONF_PATH_MAX + 1];
    struct pg_conninfo conninfo;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < cluster->count; i++) {
        const char *standby = cluster->members[i == 0 && cluster->count > 1].name;
        rc = cluster_fill_conninfo(conf, &cluster->members[i], standby, text, sizeof(text), err);
        if (rc == 0)
            rc = pg_conninfo_read(text, &conninfo, err);
        if (rc < 0 && !err->hint[0])
            (void)err_hint(err, "correct [coordinator] primary_conninfo: host=%%h user=… "
                                "application_name=%%n");
    }
    return rc;
}

int check_conninfo(struct check *check, struct err *err)
{
    const char *template = check->conf->coordinator_primary_conninfo;
    struct cluster cluster;
    if (cluster_members(check->conf, &cluster, err) < 0)
        return CHECK_NONE; /* the members' row says why */
    (void)snprintf(check->detail, sizeof(check->detail),
                   "as recorded in the snapshot: no other member can be the primary");
    if (!template[0])
        return 0;
    (void)snprintf(
        check->detail, sizeof(check->detail), "libpq can read it; the plan of a restore tries it%s",
        strstr(template, "%n") ? "" : "; without application_name=%n the standbys have one name");
    return check_template(check->conf, &cluster, err);
}

int check_sections(struct check *check, struct err *err)
{
    const struct conf *conf = check->conf;
    const char *what = conf->manager == MANAGER_PATRONI ? "[patroni] and manager = patroni"
                       : conf->volume_count             ? "[volume]"
                       : conf->data_directory[0]        ? "[postgresql] data_directory"
                                                        : NULL;
    if (!what)
        return CHECK_NONE;
    (void)err_set(err, ERR_CONFIG, "%s: a coordinator has no server and no volumes", what);
    return err_hint(err, "take it out; it stands in the configuration of the node's agent");
}

int check_members(struct check *check, struct err *err)
{
    json_t *nodes[CLUSTER_MEMBERS_MAX];
    struct err errs[CLUSTER_MEMBERS_MAX];
    struct cluster cluster;
    int rc = cluster_members(check->conf, &cluster, err);
    if (rc < 0)
        return rc;
    cluster_call_all(&cluster, "GET", "/node", nodes, errs);
    for (size_t i = 0; i < cluster.count; i++)
        check_member(check, &cluster.members[i], nodes[i], &errs[i]);
    check_primary(check, &cluster, nodes);
    for (size_t i = 0; i < cluster.count; i++)
        json_decref(nodes[i]);
    return CHECK_NONE;
}

/* --- Patroni ---------------------------------------------------------------------------------- */

static int check_socket(const struct conf *conf, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    close_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_sys(err, ERR_INTERNAL, "socket");
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", conf->patroni_socket);
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
        return 0;
    (void)err_sys(err, errno == EACCES ? ERR_AUTH : ERR_DEVICE, "[patroni] socket '%s'",
                  conf->patroni_socket);
    return err->code == ERR_AUTH
               ? err_hint(err, "it is the server's user's, '%s'; root may look", conf->os_user)
               : err_hint(err, "the agent makes it when it starts: is it running, with this file?");
}

/* Whether one is in charge is good to know, and neither good nor bad. */
int check_patroni(struct check *check, struct err *err)
{
    const struct conf *conf = check->conf;
    struct err ignored;
    if (conf->manager != MANAGER_PATRONI)
        return CHECK_NONE;
    struct restore *restore = calloc(1, sizeof(*restore)); /* large */
    if (!restore)
        return err_set(err, ERR_INTERNAL, "out of memory");
    restore->conf = *conf;
    (void)snprintf(restore->data_directory, sizeof(restore->data_directory), "%s",
                   conf->data_directory);
    bool in_charge = restore_check_patroni(restore, &ignored) < 0;
    free(restore);
    (void)snprintf(check->detail, sizeof(check->detail), "%s; %s",
                   conf->patroni_socket[0] ? "it may ask for snapshots"
                                           : "it may ask for nothing: [patroni] socket is not set",
                   in_charge ? "it runs: `tidemark restore` is refused meanwhile"
                             : "none runs here with this data directory");
    return conf->patroni_socket[0] ? check_socket(conf, err) : 0;
}
