/* tidemark expire: withdraws what no rule keeps, removes what was withdrawn a grace ago. */
#include <inttypes.h>
#include <stdio.h>

#include "tools/cmd.h"

static const struct cmd_option options[] = {
    {"dry-run", 'n', NULL, "say what would stay, what would go and why; change nothing"},
    {"confirm", 0, NULL, "with TAG: do it; without this option it is a dry run"},
    {NULL, 0, NULL, NULL},
};

static int make_body(const struct cmd *cmd, json_t *body, struct err *err)
{
    bool confirm = cmd_option(cmd, "confirm"), dry_run = cmd_option(cmd, "dry-run");
    if (confirm && dry_run)
        return err_set(err, ERR_USAGE, "--dry-run and --confirm contradict each other");
    if (confirm && cmd->arg_count == 0)
        return err_set(err, ERR_USAGE, "--confirm is for snapshots that are named");
    json_t *names = json_array();
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < cmd->arg_count; i++) {
        rc = cmd_check_name("snapshot", cmd->args[i], err);
        (void)json_array_append_new(names, json_string(cmd->args[i]));
    }
    (void)json_object_set_new(body, "dry_run",
                              json_boolean(dry_run || (cmd->arg_count > 0 && !confirm)));
    if (cmd->arg_count > 0)
        (void)json_object_set(body, "snapshots", names);
    json_decref(names);
    return rc;
}

static uint64_t number(const json_t *json, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(json, key));
}

static void format_why(const json_t *item, char *ret, size_t size)
{
    const char *why = cmd_text(item, "why");
    bool locked = strstr(why, "locked") && json_object_get(item, "locked_until_s");
    char date[32];
    cmd_format_time(json_integer_value(json_object_get(item, "locked_until_s")), date);
    (void)snprintf(ret, size, "%s%s%s", why, locked ? " until " : "", locked ? date : "");
}

static void print_row(const json_t *item)
{
    char when[32], stored[24], why[128];
    format_why(item, why, sizeof(why));
    cmd_format_time(json_integer_value(json_object_get(item, "captured_s")), when);
    cmd_format_size(number(item, "bytes_stored"), stored);
    (void)printf("%-8s  %-30s  %-12.12s  %-23s  %-16s  %10s  %s\n", cmd_text(item, "action"),
                 cmd_text_or_dash(item, "tag"), cmd_text(item, "id"), when, cmd_text(item, "node"),
                 stored, why);
}

/* Of those with this action. */
static size_t count(const json_t *result, const char *action)
{
    size_t i, found = 0;
    json_t *item;
    json_array_foreach(json_object_get(result, "snapshots"), i, item) found +=
        json_is(item, "action", action);
    return found;
}

static void print_sums(const json_t *result, bool named)
{
    bool dry_run = json_is_true(json_object_get(result, "dry_run"));
    const char *would = dry_run ? "would be " : "";
    uint64_t more = number(result, "later_bytes") - number(result, "bytes");
    char now[24], wal[24], later[24];
    cmd_format_size(number(result, "bytes"), now);
    cmd_format_size(number(result, "wal_bytes"), wal);
    cmd_format_size(more, later);
    (void)printf("%zu %swithdrawn", count(result, "withdraw"), would);
    if (number(result, "abandoned") > 0)
        (void)printf(", and %" PRIu64 " that never became a snapshot", number(result, "abandoned"));
    (void)printf("; %" PRIu64 " objects (%s) and %" PRIu64 " of WAL (%s) %sremoved\n",
                 number(result, "objects"), now, number(result, "wal_objects"), wal, would);
    if (more > 0)
        (void)printf("once the grace of %" PRIu64 " s is over for all that is withdrawn, %s%s\n",
                     number(result, "grace_s"), later, number(result, "bytes") > 0 ? " more" : "");
    if (number(result, "locked_objects") > 0)
        (void)printf("%" PRIu64
                     " objects that nobody needs are locked: they stay until that ends\n",
                     number(result, "locked_objects"));
    if (number(result, "locks_extended") > 0)
        (void)printf("the locks of %" PRIu64 " objects were extended\n",
                     number(result, "locks_extended"));
    if (dry_run)
        (void)printf("this was a dry run, nothing was changed%s\n",
                     named ? ": add --confirm to withdraw what you named" : "");
}

static int print_result(const struct cmd *cmd, const json_t *status, struct err *err)
{
    const json_t *result = json_object_get(status, "result");
    size_t i;
    json_t *item;
    if (cmd->json) {
        cmd_print_json(status);
    } else {
        (void)printf("%-8s  %-30s  %-12s  %-23s  %-16s  %10s  %s\n", "ACTION", "TAG", "ID",
                     "CAPTURED", "NODE", "STORED", "WHY");
        json_array_foreach(json_object_get(result, "snapshots"), i, item) print_row(item);
        print_sums(result, cmd->arg_count > 0);
    }
    if (number(result, "damaged") > 0) {
        (void)err_set(err, ERR_CORRUPT,
                      "%" PRIu64 " damaged snapshot records: no rule removes them, and WAL stays",
                      number(result, "damaged"));
        return err_hint(err, "`tidemark expire --confirm ID` gives one up");
    }
    if (number(result, "unreadable_marks") > 0) {
        (void)err_set(err, ERR_CORRUPT,
                      "%" PRIu64 " marks cannot be read: these snapshots are hidden, and nothing "
                      "of them is removed",
                      number(result, "unreadable_marks"));
        return err_hint(err, "`tidemark expire --confirm ID` withdraws one in earnest; whoever "
                             "removes the object withdrawn/ID has its snapshot back");
    }
    return 0;
}

static int run(struct cmd *cmd, struct err *err)
{
    free_json json_t *body = json_object();
    free_json json_t *status = NULL;
    int rc = make_body(cmd, body, err);
    if (rc == 0)
        rc = cmd_run_one_job(cmd, "/expirations", body, &status, err);
    if (rc == 0)
        cmd_warn_stale(cmd);
    return rc < 0 ? rc : print_result(cmd, status, err);
}

const struct cmd_verb verb_expire = {
    .name = "expire",
    .args = "[TAG|ID]…",
    .args_max = CMD_ARGS_MAX,
    .summary = "Withdraws snapshots that no rule keeps, and removes what was withdrawn long ago.",
    .options = options,
    .notes =
        "Without names [retention] decides, and this is no dry run: it is what a timer calls. "
        "With\n"
        "names these snapshots are meant and no rule is asked, but nothing happens without\n"
        "--confirm. Withdrawn snapshots are gone at once for `list` and `restore`; their objects\n"
        "are removed by the first run that finds their [retention] grace over. What is locked\n"
        "(lock_days) stays until that date; asked for by name it is refused.\n",
    .run = run,
};
