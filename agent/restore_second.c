/* A second primary. A restore ends with a server that takes writes; on a standby's host, or where
 * the cluster failed over to another node since, there may be one already, and what clients commit
 * on the two are two branches that nobody can merge. So whoever may be the primary is asked: as the
 * plan is made, as it is executed, and once more before the server starts, because hours may lie
 * between. Nobody is asked between that start and the promotion, which PostgreSQL does by itself:
 * a pause at the target that we end would not cover `latest` and the image's own end, which have
 * no target to pause at.
 *
 *   it runs     refused (19); --allow-second-primary says that both shall run
 *   unclear     it cannot be asked (no password, no answer, a standby answers and no primary): a
 *               person types that it is down, or says so with --primary-is-down; --yes says nothing
 *               about it
 *   nobody      nothing listens where it should be: the restore goes on. Should something answer
 *               there before the server starts that cannot be asked, that needs the word as well
 *
 * Where the server of this host is a primary and runs as the plan is made, only primary_connection
 * is asked, and its own answer does not count. Standbys are what it should have, and one that
 * cannot be reached holds nothing up: only another one that takes writes does.
 *
 * Where it does not run, that nothing listens at its own address says nothing about others: every
 * standby followed it by that. A former primary that has nobody else to ask goes on, and its plan
 * says so where the snapshot recorded standbys.
 *
 * A part of a cluster restore has its own rules: there the coordinator has every server stopped. A
 * host without a configuration is no node of the cluster. */
#include "agent/conninfo.h"
#include "agent/log.h"
#include "agent/pg.h"
#include "agent/restore.h"

#include <stdio.h>

enum { ASK_TIMEOUT_S = 5, TEXT_MAX = 400 };

enum second { SECOND_NOBODY, SECOND_UNCLEAR, SECOND_RUNS };

static const char *const state_names[] = {
    [SECOND_NOBODY] = "nobody", [SECOND_UNCLEAR] = "unclear", [SECOND_RUNS] = "runs"};

/* --- consent ---------------------------------------------------------------------------------- */

/* A word that came with the execution holds for whoever resumes it. */
void restore_second_load(struct restore *restore)
{
    static const char *const keys[] = {"allow_second_primary", "primary_is_down"};
    bool *const words[] = {&restore->request.allow_second_primary,
                           &restore->request.primary_is_down};
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        if (json_is_true(json_object_get(restore->job->goal_file, keys[i])))
            (void)json_object_set_new(restore->job->journal, keys[i], json_true());
        *words[i] |= json_is_true(json_object_get(restore->job->journal, keys[i]));
    }
}

/* --- who is to be asked ----------------------------------------------------------------------- */

bool restore_is_standby(const struct restore *restore)
{
    char path[CONF_PATH_MAX + 32];
    (void)snprintf(path, sizeof(path), "%s/standby.signal", restore->data_directory);
    return !restore->request.cluster_job && !restore_is_handover(restore) &&
           access(path, F_OK) == 0;
}

static bool is_recorded_as_standby(const struct restore *restore)
{
    const char *node = restore->conf.node;
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(restore->record.topology, "nodes"), i, item)
    {
        if (json_is(item, "node", node) && json_is(item, "role", "standby"))
            return true;
    }
    json_array_foreach(json_object_get(restore->record.topology, "members"), i, item)
    {
        if (json_is(item, "name", node) && json_is(item, "role", "standby"))
            return true;
    }
    return false;
}

static bool add_way(json_t *ways, const char *conninfo)
{
    size_t i;
    json_t *known;
    json_array_foreach(ways, i, known)
    {
        if (conninfo && strcmp(json_string_value(known), conninfo) == 0)
            return true;
    }
    return conninfo && conninfo[0] && json_array_append_new(ways, json_string(conninfo)) == 0;
}

static void add_ways(json_t *ways, const json_t *more)
{
    size_t i;
    json_t *way;
    json_array_foreach(more, i, way)
    {
        (void)add_way(ways, json_string_value(way));
    }
}

static bool runs_here(const struct restore *restore)
{
    return restore->server_was_running && !restore_is_standby(restore);
}

/* Of a standby whose restore was given up the volumes do not say any more that it was one. */
static void load_given_up(struct restore *restore)
{
    char dir[JOB_DIR_MAX], path[JOB_DIR_MAX + 32];
    free_json json_t *journal = NULL;
    struct err ignored;
    json_decref(take_ptr(&restore->second_before));
    if (restore_is_standby(restore) || runs_here(restore) || !restore_given_up_before(restore, dir))
        return;
    (void)snprintf(path, sizeof(path), "%s/journal.json", dir);
    if (json_load_path(path, &journal, &ignored) == 0)
        restore->second_before =
            json_incref(json_object_get(json_object_get(journal, "plan"), "other_primary"));
}

/* As configured, as this standby follows it, as the others of a cluster snapshot did, and as a
 * restore that was given up knew it. */
static json_t *ways_to_primary(struct restore *restore)
{
    json_t *ways = json_array(), *member;
    size_t i;
    (void)add_way(ways, restore->conf.primary_connection);
    if (runs_here(restore))
        return ways;
    bool own =
        restore_is_standby(restore) && add_way(ways, restore_setting(restore, "primary_conninfo"));
    json_array_foreach(json_object_get(restore->record.topology, "members"), i, member)
    {
        bool is_own = own && json_is(member, "name", restore->conf.node);
        if (json_is(member, "role", "standby") && !is_own)
            (void)add_way(ways, json_str(member, "primary_conninfo"));
    }
    add_ways(ways, json_object_get(restore->second_before, "asked"));
    return ways;
}

static bool is_concerned(const struct restore *restore)
{
    return !restore->request.cluster_job && !restore_is_handover(restore) &&
           restore_host_is_configured(restore);
}

static bool is_promoted(const struct restore *restore)
{
    return restore->request.action == ACTION_PROMOTE;
}

static void find_own_port(struct restore *restore)
{
    const char *port = restore_setting(restore, "port");
    restore->own_port = port ? (unsigned)strtoul(port, NULL, 10) : 0;
}

/* A clone of its own: it archives nothing, and nobody finds it where the node's clients look. What
 * lies here now says nothing about the settings of an image. */
static bool is_clone(struct restore *restore)
{
    static const char *const names[] = {"archive_mode", "port", NULL};
    restore_read_settings(restore, names);
    const char *mode = restore_setting(restore, "archive_mode");
    const char *port = restore_setting(restore, "port");
    bool elsewhere = strcmp(restore->data_directory, restore->record.data_directory) != 0 ||
                     (port && strtoul(port, NULL, 10) != restore->record.port);
    return !restore->request.config_image && !restore_is_standby(restore) && mode &&
           strcmp(mode, "off") == 0 && elsewhere;
}

/* --- asking ----------------------------------------------------------------------------------- */

static void ask_way(const struct restore *restore, const char *conninfo, bool by_own,
                    json_t *servers)
{
    struct err err;
    if (pg_ask_servers(&restore->conf, conninfo, by_own, ASK_TIMEOUT_S, servers, &err) < 0)
        (void)json_array_append_new(servers, json_pack("{s:s, s:s, s:s}", "host", "", "answer",
                                                       "unclear", "text", err.text));
}

/* A server of another cluster says nothing about ours. */
static void check_system(const struct restore *restore, json_t *server)
{
    char ours[24], text[96];
    const char *theirs = json_str(server, "system_id");
    (void)snprintf(ours, sizeof(ours), "%llu", (unsigned long long)restore->record.system_id);
    if (theirs[0] && strcmp(theirs, ours) != 0) {
        (void)snprintf(text, sizeof(text), "it is of another cluster, system identifier %.24s",
                       theirs);
        (void)json_object_set_new(server, "answer", json_string("unclear"));
        (void)json_object_set_new(server, "text", json_string(text));
    }
    (void)json_object_del(server, "system_id");
}

/* "nobody" at the address of the server that is to be restored. Whatever is local under its port
 * is taken for that, in any directory, on any interface: at worst nobody else is found down. */
static void find_own(const struct restore *restore, json_t *server)
{
    unsigned long port = strtoul(json_str(server, "port"), NULL, 10);
    if (json_is_true(json_object_get(server, "local")) &&
        (port == restore->own_port || port == restore->record.port)) {
        (void)json_object_set_new(server, "answer", json_string("own"));
        (void)json_object_set_new(server, "text", json_string(""));
    }
    (void)json_object_del(server, "local");
}

static bool names_others(const json_t *servers)
{
    size_t i;
    json_t *server;
    json_array_foreach(servers, i, server)
    {
        if (!json_is(server, "answer", "own"))
            return true;
    }
    return false;
}

/* It may be this host's own. */
static bool is_untold(const json_t *server)
{
    return json_is(server, "answer", "primary") && json_str(server, "text")[0];
}

static bool any_untold(const json_t *servers)
{
    size_t i;
    json_t *server;
    json_array_foreach(servers, i, server)
    {
        if (is_untold(server))
            return true;
    }
    return false;
}

static enum second judge(const json_t *servers, bool by_own)
{
    bool clear = false, unclear = any_untold(servers);
    size_t i;
    json_t *server;
    json_array_foreach(servers, i, server)
    {
        if (json_is(server, "answer", "primary") && !is_untold(server))
            return SECOND_RUNS;
        clear |= by_own || json_is(server, "answer", "nobody");
        /* What a standby follows may be at an address that nobody named. */
        unclear |= json_is(server, "answer", "unclear") ||
                   (!by_own && json_is(server, "answer", "standby"));
    }
    return clear && !unclear ? SECOND_NOBODY : SECOND_UNCLEAR;
}

/* by_own: by the server of this host, which is a primary and runs. */
static void ask_all(const struct restore *restore, const json_t *ways, bool by_own, json_t *servers)
{
    size_t i;
    json_t *item;
    json_array_foreach(ways, i, item)
    {
        ask_way(restore, json_string_value(item), by_own, servers);
    }
    json_array_foreach(servers, i, item)
    {
        check_system(restore, item);
        find_own(restore, item);
    }
}

/* "db1:5432, db3:5432 (no answer)": those that made it what it is. */
static void describe(const json_t *servers, enum second state, char *ret, size_t size)
{
    size_t i, len = 0;
    json_t *server;
    (void)snprintf(ret, size, "%s",
                   json_array_size(servers) == 0 ? "how to reach it is not known" : "");
    json_array_foreach(servers, i, server)
    {
        const char *answer = json_str(server, "answer"), *text = json_str(server, "text");
        bool runs = strcmp(answer, "primary") == 0 && !text[0];
        if (len >= size || (state == SECOND_RUNS && !runs))
            continue;
        if (!text[0])
            text = strcmp(answer, "standby") == 0 ? "a standby"
                   : strcmp(answer, "own") == 0   ? "this server"
                                                  : "";
        const char *colon = json_str(server, "port")[0] ? ":" : "";
        len += (size_t)snprintf(ret + len, size - len, "%s%s%s%s%s%.200s%s", len ? ", " : "",
                                json_str(server, "host"), colon, json_str(server, "port"),
                                text[0] ? " (" : "", text, text[0] ? ")" : "");
    }
}

/* --- what follows ----------------------------------------------------------------------------- */

static int refuse_runs(const char *where, struct err *err)
{
    (void)err_set(err, ERR_REFUSED,
                  "the primary of this cluster runs and takes writes, at %s: the restored server "
                  "would be a second one",
                  where);
    return err_hint(err, "stop it first; or restore all nodes with `tidemark cluster restore`; "
                         "where both shall run, as for a clone, --allow-second-primary");
}

static const char *unknown(bool by_own)
{
    return by_own ? "whether another primary of this cluster runs is not known"
                  : "whether the primary of this cluster still runs is not known";
}

static int refuse_unclear(bool by_own, const char *where, const char *how, struct err *err)
{
    (void)err_set(err, ERR_REFUSED, "%s: %s", unknown(by_own), where);
    return err_hint(err,
                    by_own ? "make sure that there is none, then %s with --primary-is-down; "
                             "[postgresql] connection says how this host's own server is asked"
                           : "make sure that it is down, then %s with --primary-is-down; "
                             "[postgresql] primary_connection says how it is asked",
                    how);
}

/* A node that is the primary itself, or was and nobody says where others are, is not held up by
 * what cannot be reached. */
static bool is_strict(const struct restore *restore, const json_t *servers)
{
    if (runs_here(restore))
        return any_untold(servers);
    return (restore->conf.primary_connection[0] && names_others(servers)) ||
           restore_is_standby(restore) || is_recorded_as_standby(restore) ||
           json_is_true(json_object_get(restore->second_before, "strict"));
}

static bool only_plans(const struct restore *restore)
{
    return restore->request.dry_run || strcmp(restore->job->goal, "prepare") == 0;
}

static int conclude(const struct restore *restore, enum second state, bool strict,
                    const char *where, json_t *warnings, struct err *err)
{
    const struct restore_request *request = &restore->request;
    if (state == SECOND_RUNS && !request->allow_second_primary)
        return refuse_runs(where, err);
    if (state == SECOND_RUNS)
        json_append_text(warnings,
                         "the primary at %s goes on: two servers of this cluster will take writes, "
                         "on two branches, and the new one archives into the same repository "
                         "unless its archive_mode is off",
                         where);
    if (state != SECOND_UNCLEAR)
        return 0;
    bool allowed = request->allow_second_primary || request->primary_is_down || !strict;
    if (!allowed && !only_plans(restore))
        return refuse_unclear(runs_here(restore), where,
                              "restore without --yes on a terminal, which asks for your word, or",
                              err);
    json_append_text(warnings, "%s: %s", unknown(runs_here(restore)), where);
    return 0;
}

/* Of a server that was a primary, and whose standbys nobody says how to reach. */
static void warn_of_standbys(struct restore *restore, json_t *warnings)
{
    size_t i;
    json_t *node;
    json_array_foreach(json_object_get(restore->record.topology, "nodes"), i, node)
    {
        if (json_array_size(json_object_get(node, "standbys")) == 0 || is_clone(restore))
            continue;
        json_append_text(warnings,
                         "this server had standbys when the snapshot was taken: whether one of "
                         "them was promoted since is not asked, for [postgresql] "
                         "primary_connection names none of them");
        return;
    }
}

static json_t *public_ways(const json_t *ways)
{
    json_t *list = json_array(), *way;
    char text[2 * CONF_PATH_MAX];
    size_t i;
    json_array_foreach(ways, i, way)
    {
        if (conninfo_public(json_string_value(way), text, sizeof(text)) && text[0])
            (void)json_array_append_new(list, json_string(text));
    }
    return list;
}

static json_t *not_asked(const struct restore *restore, const char *why, bool clone)
{
    return json_pack("{s:s, s:s, s:b, s:b, s:o}", "state", "not asked", "text", why, "clone", clone,
                     "strict", is_strict(restore, NULL), "asked",
                     public_ways(restore->second_ways));
}

int restore_second_check(struct restore *restore, json_t *warnings, json_t **ret, struct err *err)
{
    char where[TEXT_MAX], why_not[TEXT_MAX + 32];
    if (!is_concerned(restore))
        return 0;
    json_decref(restore->second_ways);
    load_given_up(restore);
    restore->second_ways = ways_to_primary(restore);
    find_own_port(restore);
    bool none = json_array_size(restore->second_ways) == 0;
    if (none && !is_strict(restore, NULL)) {
        if (!runs_here(restore) && is_promoted(restore))
            warn_of_standbys(restore, warnings);
        return 0;
    }
    if (!is_promoted(restore)) {
        *ret = not_asked(restore, "the server is not promoted, that is left to you", false);
        return 0;
    }
    if (is_clone(restore)) {
        *ret = not_asked(restore, "archive_mode is off, and port or directory are others: a clone",
                         true);
        return 0;
    }
    free_json json_t *servers = json_array();
    ask_all(restore, restore->second_ways, runs_here(restore), servers);
    enum second state = judge(servers, runs_here(restore));
    describe(servers, state, where, sizeof(where));
    bool strict = is_strict(restore, servers);
    log_info("%s primary of this cluster: %s: %s", runs_here(restore) ? "another" : "the",
             state_names[state], where);
    bool lenient = !runs_here(restore) && !strict;
    if (lenient && state != SECOND_RUNS)
        warn_of_standbys(restore, warnings);
    if (lenient && !names_others(servers)) {
        (void)snprintf(why_not, sizeof(why_not), "no other server is named: %s", where);
        *ret = not_asked(restore, why_not, false);
        return 0;
    }
    int rc = conclude(restore, state, strict, where, warnings, err);
    if (rc < 0)
        return rc;
    bool asks = state == SECOND_UNCLEAR && strict && !restore->request.allow_second_primary &&
                !restore->request.primary_is_down;
    *ret = json_pack("{s:s, s:s, s:b, s:b, s:b, s:O, s:o}", "state", state_names[state], "text",
                     where, "runs_here", runs_here(restore), "strict", strict, "needs_word", asks,
                     "servers", servers, "asked", public_ways(restore->second_ways));
    return 0;
}

/* The plan keeps no passwords: who resumes has those of the configuration. */
static json_t *ways_again(const struct restore *restore, const json_t *plan)
{
    json_t *ways = json_array();
    (void)add_way(ways, restore->conf.primary_connection);
    add_ways(ways, restore->second_ways ? restore->second_ways : json_object_get(plan, "asked"));
    return ways;
}

static const json_t *planned(const struct restore *restore)
{
    return json_object_get(json_object_get(restore->job->journal, "plan"), "other_primary");
}

/* The plan took it for one by the configuration that was here before. */
static bool is_clone_yet(struct restore *restore)
{
    struct err ignored;
    restore_forget_settings(restore);
    bool yet = restore_permit_grant(restore, &ignored) == 0 && is_clone(restore);
    restore_permit_revoke(restore);
    if (!yet)
        log_warn("with the settings that it has now the restored server is no clone");
    return yet;
}

/* What was unclear in the plan was allowed then. Where it saw nobody, somebody may be there now;
 * where the primary was this host's own, standbys that were down may be. */
int restore_second_recheck(struct restore *restore, struct err *err)
{
    const json_t *plan = planned(restore);
    bool clone = json_is_true(json_object_get(plan, "clone"));
    char where[TEXT_MAX];
    if (!plan || restore->request.allow_second_primary || !is_promoted(restore) ||
        (clone && is_clone_yet(restore)))
        return 0;
    free_json json_t *servers = json_array();
    free_json json_t *ways = ways_again(restore, plan);
    ask_all(restore, ways, false, servers);
    enum second now = judge(servers, false);
    bool allowed = restore->request.primary_is_down ||
                   (!clone && !json_is(plan, "state", "nobody")) ||
                   json_is_true(json_object_get(plan, "runs_here"));
    if (now == SECOND_NOBODY || (now == SECOND_UNCLEAR && allowed))
        return 0;
    describe(servers, now, where, sizeof(where));
    return now == SECOND_RUNS ? refuse_runs(where, err)
                              : refuse_unclear(false, where, "resume", err);
}

/* Of a primary that this job has stopped: standbys are what it should have, and its own address
 * answers no more. */
int restore_second_lift(const struct restore *restore, struct err *err)
{
    const struct restore_request *request = &restore->request;
    const json_t *plan = planned(restore);
    char where[TEXT_MAX];
    if (!is_concerned(restore) || request->allow_second_primary ||
        json_is_true(json_object_get(plan, "clone")))
        return 0;
    free_json json_t *servers = json_array();
    free_json json_t *ways = ways_again(restore, plan);
    ask_all(restore, ways, false, servers);
    enum second now = json_array_size(ways) > 0 ? judge(servers, true) : SECOND_NOBODY;
    bool allowed = request->primary_is_down || !json_is(plan, "state", "nobody");
    if (now == SECOND_NOBODY || (now == SECOND_UNCLEAR && allowed))
        return 0;
    describe(servers, now, where, sizeof(where));
    return now == SECOND_RUNS
               ? err_set(err, ERR_REFUSED, "another primary of this cluster runs, at %s", where)
               : err_set(err, ERR_REFUSED, "%s: %s", unknown(true), where);
}
