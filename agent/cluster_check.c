/* What no node can know of itself. Before anything is touched: a standby's settings against its
 * primary's, and members that are left out but would write beside the new primary. As the first
 * part of the verification: one system, one history, every standby attached and past the tag.
 *
 * Histories are compared line by line, not by the number of the timeline: somebody who promoted a
 * copy elsewhere made a timeline of the same number that begins at another place, and PostgreSQL
 * streams from one into the other as long as the positions fit. See cluster.h. */
#include "agent/cluster.h"
#include "agent/clock.h"
#include "agent/log.h"
#include "agent/pg.h"

#include <stdio.h>

/* SENDER: it streams, but perhaps still by the primary_conninfo of before a resume. */
enum { POLL_MS = 200, ATTACH_MAX_MS = 60000, SENDER_MAX_MS = 30000 };

static struct drive *primary_of(struct cluster_restore *all)
{
    for (size_t i = 0; i < all->count; i++)
        if (all->drives[i].primary)
            return &all->drives[i];
    return NULL;
}

/* --- the plan: settings ----------------------------------------------------------------------- */

static void PRINTF_LIKE(3, 4) append(char *text, size_t size, const char *fmt, ...)
{
    size_t len = strlen(text);
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text + len, size - len, fmt, ap);
    va_end(ap);
}

/* As the servers will have them: each node keeps its own configuration. */
static const char *setting(const struct drive *drive, const char *name)
{
    return json_str(json_object_get(drive->plan, "settings"), name);
}

/* A standby that replays the primary's parameter change with less of one of these pauses, and does
 * not start again (CheckRequiredParameterValues(), xlogrecovery.c). */
static int check_settings(struct cluster_restore *all, struct err *err)
{
    const struct drive *primary = primary_of(all);
    char list[512] = "";
    for (size_t i = 0; primary && i < all->count; i++) {
        const struct drive *drive = &all->drives[i];
        for (size_t k = 0; record_replay_settings[k]; k++) {
            const char *name = record_replay_settings[k];
            const char *here = setting(drive, name), *there = setting(primary, name);
            unsigned long long have, want;
            if (sscanf(here, "%llu", &have) == 1 && sscanf(there, "%llu", &want) == 1 &&
                have < want)
                append(list, sizeof(list),
                       "%snode %s: %s = %llu is lower than %llu on the primary "
                       "%s",
                       list[0] ? "; " : "", drive->member->name, name, have, want,
                       primary->member->name);
        }
    }
    if (!list[0])
        return 0;
    (void)err_set(err, ERR_REFUSED, "%s", list);
    return err_hint(err, "the standby could not follow; every node keeps its own configuration: "
                         "raise the setting there (no restart is needed), or lower the primary's");
}

/* --- the plan: who is left out ---------------------------------------------------------------- */

static bool is_restored(const struct cluster_restore *all, const struct cluster_member *member)
{
    for (size_t i = 0; i < all->count; i++)
        if (all->drives[i].member == member)
            return true;
    return false;
}

/* Nobody stops the server of a member that is left out. */
static int check_left_out(const struct cluster_restore *all, const struct cluster_member *member,
                          json_t *warnings, struct err *err)
{
    free_json json_t *node = NULL;
    struct err why;
    if (all->unseen[member - all->cluster.members] ||
        cluster_call_within(&all->cluster, member, CLUSTER_ANSWER_S, "GET", "/node", NULL, &node,
                            &why) < 0) {
        json_append_text(
            warnings,
            "member %s is left out and does not answer: its server must not come back as a "
            "primary",
            member->name);
        return 0;
    }
    if (json_is(node, "role", "primary")) {
        (void)err_set(err, ERR_REFUSED,
                      "member %s is left out, and its server is a primary: two would accept writes",
                      member->name);
        return err_hint(err, "stop that server first, or restore the node as well");
    }
    json_append_text(warnings, "member %s is left as it is (%s): it cannot follow the new primary",
                     member->name,
                     json_is(node, "role", "standby") ? "a standby" : "its server is down");
    return 0;
}

/* --- the plan: what the nodes say ------------------------------------------------------------- */

/* What several nodes warn of is one warning of all of them. */
static void add_node_warnings(const struct cluster_restore *all, json_t *warnings)
{
    free_json json_t *nodes_of = json_object();
    const char *text;
    json_t *names, *warning;
    size_t k;
    for (size_t i = 0; i < all->count; i++) {
        json_array_foreach(json_object_get(all->drives[i].plan, "warnings"), k, warning)
        {
            char list[512];
            const char *before = json_str(nodes_of, json_string_value(warning));
            (void)snprintf(list, sizeof(list), "%s%s%s", before, before[0] ? ", " : "",
                           all->drives[i].member->name);
            (void)json_object_set_new(nodes_of, json_string_value(warning), json_string(list));
        }
    }
    json_object_foreach(nodes_of, text, names)
    {
        json_append_text(warnings, "%s: %s", json_string_value(names), text);
    }
}

int cluster_check_plan(struct cluster_restore *all, struct err *err)
{
    json_t *plan = json_object_get(all->job->journal, "plan");
    free_json json_t *warnings = json_array();
    int rc = check_settings(all, err);
    for (size_t i = 0; rc == 0 && !all->alone && i < all->cluster.count; i++)
        if (!is_restored(all, &all->cluster.members[i]))
            rc = check_left_out(all, &all->cluster.members[i], warnings, err);
    if (rc < 0)
        return rc;
    add_node_warnings(all, warnings);
    (void)pthread_mutex_lock(&all->mutex);
    cluster_describe(all, warnings);
    (void)json_object_set(plan, "warnings", warnings);
    rc = cluster_journal(all, err);
    (void)pthread_mutex_unlock(&all->mutex);
    return rc;
}

/* --- the verification: one history ------------------------------------------------------------ */

static int diverged(const struct drive *drive, const char *what, struct err *err)
{
    (void)err_set(err, ERR_POSTGRES, "node %s has diverged: %s", drive->member->name, what);
    return err_hint(err, "its data is of another branch: make it anew from the primary, or give "
                         "this restore up (`tidemark cluster abort`) and restore again");
}

/* The line that says where its timeline begins, and those before it. */
static int check_history(const struct cluster_restore *all, const struct drive *drive,
                         const json_t *node, struct err *err)
{
    json_t *history = json_object_get(node, "history");
    const json_t *own = json_array_get(history, json_array_size(history) - 1);
    char number[24], what[256];
    (void)snprintf(number, sizeof(number), "%llu", (unsigned long long)all->record.system_id);
    if (!json_is(node, "system_id", number)) {
        (void)snprintf(what, sizeof(what), "its system identifier is %s, the snapshot's %s",
                       json_str(node, "system_id"), number);
        return diverged(drive, what, err);
    }
    if (!json_is_array(history))
        return err_set(err, ERR_POSTGRES, "node %s: the history of its timeline cannot be read",
                       drive->member->name);
    json_t *wanted = all->history ? all->history : history;
    if (json_equal(history, wanted) && json_is(own, "lsn", json_str(all->fork, "lsn")) &&
        json_equal(json_object_get(own, "timeline"), json_object_get(all->fork, "parent")))
        return 0;
    (void)snprintf(what, sizeof(what),
                   "by its history timeline %lld left timeline %lld at %s, but this restore's left "
                   "timeline %lld at %s",
                   (long long)json_integer_value(json_object_get(node, "timeline")),
                   (long long)json_integer_value(json_object_get(own, "timeline")),
                   json_str(own, "lsn"),
                   (long long)json_integer_value(json_object_get(all->fork, "parent")),
                   json_str(all->fork, "lsn"));
    return diverged(drive, what, err);
}

static bool is_past_fork(const struct cluster_restore *all, const json_t *node)
{
    uint64_t lsn = 0, fork = 0;
    return pg_lsn_parse(json_str(node, "lsn"), &lsn) &&
           pg_lsn_parse(json_str(all->fork, "lsn"), &fork) && lsn > fork;
}

/* One look. *ret_there: the node is what it should be; where it can still become that, rc is 0. */
static int look_at(struct cluster_restore *all, struct drive *drive, const json_t *node,
                   bool *ret_there, struct err *err)
{
    const json_t *timeline = json_object_get(all->fork, "timeline");
    const json_t *receiver = json_object_get(node, "receiver");
    bool same = json_equal(json_object_get(node, "timeline"), timeline);
    const char *role = drive->primary ? "primary" : "standby";
    *ret_there = false;
    if (!json_is(node, "server", "running") || json_is(node, "role", "down"))
        return 0;
    if (!json_is(node, "role", role))
        return err_set(err, ERR_POSTGRES, "node %s is a %s, and should be a %s",
                       drive->member->name, json_str(node, "role"), role);
    if (drive->primary && !same)
        return err_set(err, ERR_POSTGRES, "node %s is on another timeline than it was promoted to",
                       drive->member->name);
    if (json_integer_value(json_object_get(node, "timeline")) > json_integer_value(timeline))
        return diverged(drive, "it is on a later timeline", err);
    if (!same)
        return 0;
    int rc = check_history(all, drive, node, err);
    if (rc == 0 && drive->primary && !all->history)
        all->history = json_incref(json_object_get(node, "history"));
    *ret_there = rc == 0 && is_past_fork(all, node) &&
                 (drive->primary || (json_is(receiver, "status", "streaming") &&
                                     json_equal(json_object_get(receiver, "timeline"), timeline)));
    return rc;
}

static int not_attached(const struct drive *drive, const json_t *node, struct err *err)
{
    const char *state = json_str(node, "server");
    (void)err_set(err, ERR_POSTGRES, "node %s %s", drive->member->name,
                  !json_is(node, "server", "running")
                      ? "does not run"
                      : "does not stream from the primary, past the fork");
    return err_hint(err, "its server is %s: its log says why", state[0] ? state : "not known");
}

/* With the epoch: the agent tells others that we are at work. */
static const char *node_path(const struct cluster_restore *all, char *ret, size_t size)
{
    (void)snprintf(ret, size, "/node?epoch=%llu", (unsigned long long)all->epoch);
    return ret;
}

/* A standby may just be connecting again. */
static int check_node(struct cluster_restore *all, struct drive *drive, struct err *err)
{
    char path[64];
    uint64_t since_ms = now_ms();
    for (;;) {
        free_json json_t *node = NULL;
        bool there = false, late = now_ms() - since_ms > ATTACH_MAX_MS;
        int rc = cluster_ask(drive, ASK_UNLESS_CANCELLED, "GET", node_path(all, path, sizeof(path)),
                             NULL, &node, err);
        if (rc == 0)
            rc = look_at(all, drive, node, &there, err);
        if (rc < 0 || there)
            return rc;
        if (late)
            return not_attached(drive, node, err);
        rc = job_check_cancel(all->job, err);
        if (rc < 0)
            return rc;
        pause_ms(POLL_MS);
    }
}

/* --- the verification: whose standby it is -----------------------------------------------------
 */

/* Of a node that rejoins it is no drive. */
static const struct cluster_member *primary_member(struct cluster_restore *all)
{
    const struct drive *drive = primary_of(all);
    const json_t *plan = json_object_get(all->job->journal, "plan");
    return drive ? drive->member : cluster_member(&all->cluster, json_str(plan, "primary"));
}

static bool is_sender(const json_t *primary_node, const char *application)
{
    size_t i;
    json_t *sender;
    json_array_foreach(json_object_get(primary_node, "replication"), i, sender)
    {
        if (json_is(sender, "application_name", application) &&
            (json_is(sender, "state", "streaming") || json_is(sender, "state", "catchup")))
            return true;
    }
    return false;
}

/* A server replaces other bytes in the names of its clients (pg_clean_ascii()), from 16 on by more
 * than one. */
static bool is_kept_by_servers(const char *application)
{
    for (; *application; application++)
        if (*application < ' ' || *application > '~')
            return false;
    return true;
}

/* The name by which its primary knows the standby now: after a resume it may just be changing. */
static void ask_name(struct cluster_restore *all, const struct drive *drive, char *ret, size_t size)
{
    char path[64];
    free_json json_t *node = NULL;
    struct err ignored;
    (void)cluster_call_within(&all->cluster, drive->member, CLUSTER_ANSWER_S, "GET",
                              node_path(all, path, sizeof(path)), NULL, &node, &ignored);
    (void)snprintf(ret, size, "%s",
                   json_str(json_object_get(node, "receiver"), "application_name"));
}

/* It streams, and perhaps from another standby, or from a server that is none of the cluster's. */
static int check_sender(struct cluster_restore *all, const struct drive *drive, struct err *err)
{
    const struct cluster_member *primary = primary_member(all);
    uint64_t since_ms = now_ms();
    while (primary) {
        char name[128], path[64];
        free_json json_t *node = NULL;
        struct err why;
        ask_name(all, drive, name, sizeof(name));
        (void)cluster_call_within(&all->cluster, primary, CLUSTER_ANSWER_S, "GET",
                                  node_path(all, path, sizeof(path)), NULL, &node, &why);
        if (name[0] && (is_sender(node, name) || !is_kept_by_servers(name)))
            return 0;
        if (now_ms() - since_ms > SENDER_MAX_MS) {
            (void)err_set(err, ERR_POSTGRES,
                          "node %s streams, but primary %s %s as '%s': does its primary_conninfo "
                          "lead to another server?",
                          drive->member->name, primary->name,
                          node ? "has no standby that is attached" : "does not say who is attached",
                          name);
            return err_hint(err, "correct [coordinator] primary_conninfo");
        }
        int rc = job_check_cancel(all->job, err);
        if (rc < 0)
            return rc;
        pause_ms(POLL_MS);
    }
    return 0;
}

/* The primary first: the others are compared with it. A node that rejoins is alone with the fork.
 */
int cluster_check_history(struct cluster_restore *all, struct err *err)
{
    struct drive *primary = primary_of(all);
    int rc = primary ? check_node(all, primary, err) : 0;
    for (size_t i = 0; rc == 0 && i < all->count; i++)
        if (!all->drives[i].primary)
            rc = check_node(all, &all->drives[i], err);
    for (size_t i = 0; rc == 0 && i < all->count; i++)
        if (!all->drives[i].primary)
            rc = check_sender(all, &all->drives[i], err);
    json_decref(all->history);
    all->history = NULL;
    if (rc == 0)
        log_info("cluster restore: job=%s nodes=%zu: one history", all->job->id, all->count);
    return rc;
}
