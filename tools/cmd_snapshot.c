/* tidemark snapshot: takes one and follows it. */
#include <inttypes.h>
#include <stdio.h>

#include "agent/log.h"
#include "tools/cmd.h"

static const struct cmd_option options[] = {
    {"tag", 't', "TAG", "its name: 1 to 30 of A-Z a-z 0-9 . _ -"},
    {"full", 0, NULL, "store every used chunk again, compare with no earlier snapshot"},
    {"no-archive", 0, NULL, "the server does not archive: keep the WAL in the image"},
    {"with-wal", 0, NULL, "keep the WAL in the image although it is archived"},
    {"checkpoint", 0, "fast|spread", "default: [postgresql] checkpoint"},
    {"detach", 0, NULL, "print the job's id and do not wait"},
    {NULL, 0, NULL, NULL},
};

void cmd_note_tag(const char *tag)
{
    size_t len = strlen(tag);
    if (len >= 6 && strspn(tag, "0123456789abcdef") == len)
        log_warn("tag '%s' looks like the beginning of an id: where both exist, the tag is meant",
                 tag);
}

static int make_body(const struct cmd *cmd, json_t *body, struct err *err)
{
    const char *tag = cmd_option(cmd, "tag");
    if (!tag && cmd->arg_count == 1)
        tag = cmd->args[0];
    else if (cmd->arg_count == 1)
        return err_set(err, ERR_USAGE, "unexpected argument '%.100s'", cmd->args[0]);
    if (!tag) {
        (void)err_set(err, ERR_USAGE, "a snapshot needs --tag=TAG");
        return err_hint(err, "choose a name that no snapshot has, such as --tag=before-release; "
                             "`tidemark list` shows those taken");
    }
    (void)json_object_set_new(body, "tag", json_string(tag));
    cmd_add_option(cmd, "full", "full", body);
    cmd_add_option(cmd, "no-archive", "no_archive", body);
    cmd_add_option(cmd, "with-wal", "with_wal", body);
    cmd_add_option(cmd, "checkpoint", "checkpoint", body);
    return 0;
}

static void print_tracks(const json_t *result)
{
    size_t i;
    json_t *volume;
    json_array_foreach(json_object_get(result, "volumes"), i, volume)
    {
        char text[CMD_TRACK_LEN];
        if (cmd_format_track(volume, cmd_text(result, "parent"), text))
            (void)printf("volume %s: %s\n", cmd_text(volume, "name"), text);
    }
}

static void print_result(const json_t *status, const char *tag)
{
    const json_t *progress = json_object_get(status, "progress");
    const char *id =
        json_string_value(json_object_get(json_object_get(status, "result"), "snapshot"));
    char read[24], stored[24];
    cmd_format_size((uint64_t)json_integer_value(json_object_get(progress, "bytes_done")), read);
    cmd_format_size((uint64_t)json_integer_value(json_object_get(progress, "bytes_stored")),
                    stored);
    (void)printf("snapshot %s%s%s%s: %s read, %s stored\n", tag, id ? " (" : "", id ? id : "",
                 id ? ")" : "", read, stored);
    print_tracks(json_object_get(status, "result"));
}

static int detach(const struct cmd *cmd, struct client *client, const json_t *body, struct err *err)
{
    free_json json_t *answer = NULL;
    int rc = client_call(client, "POST", "/snapshots", body, &answer, err);
    if (rc == 0 && cmd->json)
        cmd_print_json(answer);
    else if (rc == 0)
        (void)printf("%s\n", json_string_value(json_object_get(answer, "id")));
    return rc;
}

static int run(struct cmd *cmd, struct err *err)
{
    free_json json_t *body = json_object();
    free_json json_t *status = NULL;
    struct client *client;
    int rc = make_body(cmd, body, err);
    if (rc == 0)
        rc = cmd_open(cmd, &client, err);
    if (rc < 0)
        return rc;
    if (cmd_option(cmd, "detach"))
        rc = detach(cmd, client, body, err);
    else
        rc = cmd_run_job(cmd, client, "/snapshots", body, &status, err);
    client_close(client);
    if (rc != -ERR_CANCELLED)
        cmd_warn_stale(cmd);
    if (rc == 0)
        cmd_note_tag(cmd_text(body, "tag"));
    if (rc == 0 && status && cmd->json)
        cmd_print_json(status);
    else if (rc == 0 && status)
        print_result(status, json_string_value(json_object_get(body, "tag")));
    return rc;
}

const struct cmd_verb verb_snapshot = {
    .name = "snapshot",
    .args = "--tag=TAG",
    .args_max = 1,
    .summary = "Takes a snapshot of all volumes at one instant and names it TAG.",
    .options = options,
    .notes = "Ctrl-C cancels: nothing of the snapshot becomes visible.\n",
    .run = run,
};
