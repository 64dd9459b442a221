/* How a standby will reach its primary, tried while the old data still exists: a password that is
 * wrong or a line that pg_hba.conf lacks would come out when all nodes are overwritten. The server
 * that is asked is the old one; it has this cluster's system identifier as the restored one will.
 */
#include "agent/conninfo.h"
#include "agent/log.h"
#include "agent/pg.h"
#include "agent/restore.h"

#include <stdio.h>

enum { TRY_TIMEOUT_S = 5 };

static void note(json_t *primary, const char *tried, const char *text)
{
    (void)json_object_set_new(primary, "tried", json_string(tried));
    (void)json_object_set_new(primary, "text", json_string(text));
}

static int refuse(const struct restore *restore, const char *what, const char *why, struct err *err)
{
    char shown[2 * CONF_PATH_MAX];
    (void)conninfo_masked(restore->request.primary_conninfo, shown, sizeof(shown));
    (void)err_set(err, ERR_REFUSED, "primary_conninfo \"%.300s\" %s: %.300s", shown, what, why);
    return err_hint(
        err,
        "nothing was touched; correct [coordinator] primary_conninfo, the passfile of "
        "'%.40s' here, or pg_hba.conf there; where it is right for the restored primary "
        "alone (roles and passwords come from the snapshot), stop the primary's server "
        "first, then it is not tried",
        restore->conf.os_user);
}

/* No server at all, or one that does not let this user in, is as it will be. Not so a server that
 * is full or shuts down, or one of several hosts that is not the primary yet. */
static bool is_final(const struct pg_conninfo *conninfo, const struct pg_tried *tried)
{
    const char *state = tried->sqlstate;
    return conninfo->one_server &&
           (!state[0] || strncmp(state, "28", 2) == 0 || strcmp(state, "42501") == 0);
}

static int try_primary(const struct restore *restore, const struct pg_conninfo *conninfo,
                       json_t *primary, struct err *err)
{
    struct pg_tried tried = {.system_id = ""};
    char want[24];
    (void)snprintf(want, sizeof(want), "%llu", (unsigned long long)restore->record.system_id);
    int rc = pg_try_replication(&restore->conf, restore->request.primary_conninfo, TRY_TIMEOUT_S,
                                &tried, err);
    if (rc < 0) {
        note(primary, "unclear", err->text);
        return 0;
    }
    if (strcmp(tried.system_id, want) == 0) {
        note(primary, "yes", "the primary answers");
        return 0;
    }
    if (tried.system_id[0])
        return refuse(restore, "leads to another cluster, whose system identifier is",
                      tried.system_id, err);
    if (is_final(conninfo, &tried))
        return refuse(restore, "does not reach the primary", tried.why, err);
    note(primary, "unclear", tried.why);
    return 0;
}

/* What libpqwalreceiver.c falls back to when the conninfo gives none. */
static const char *application_name(const struct pg_conninfo *conninfo, const json_t *settings)
{
    const char *cluster_name = json_str(settings, "cluster_name");
    return conninfo->application_name[0] ? conninfo->application_name
           : cluster_name[0]             ? cluster_name
                                         : "walreceiver";
}

int restore_check_primary(const struct restore *restore, const json_t *settings, json_t **ret,
                          struct err *err)
{
    json_t *earlier = json_object_get(json_object_get(restore->job->journal, "plan"), "primary");
    struct pg_conninfo conninfo;
    if (!restore->request.standby)
        return 0;
    if (earlier) { /* once a job: by now the primary may be fenced */
        *ret = json_incref(earlier);
        return 0;
    }
    int rc = pg_conninfo_read(restore->request.primary_conninfo, &conninfo, err);
    if (rc < 0) {
        (void)err_prefix(err, "primary_conninfo");
        return err_hint(err, "nothing was touched; correct [coordinator] primary_conninfo");
    }
    free_json json_t *primary =
        json_pack("{s:s, s:s, s:s}", "application_name", application_name(&conninfo, settings),
                  "tried", "no", "text", "");
    if (!primary)
        return err_set(err, ERR_CONFIG, "primary_conninfo: application_name is not UTF-8");
    if (restore->request.try_primary)
        rc = try_primary(restore, &conninfo, primary, err);
    if (rc < 0)
        return rc;
    log_info("the way to the primary: tried=%s %s", json_str(primary, "tried"),
             json_str(primary, "text"));
    *ret = json_incref(primary);
    return 0;
}
