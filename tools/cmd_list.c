/* tidemark list: the snapshots of the repository, oldest first. */
#include <inttypes.h>
#include <stdio.h>

#include "tools/cmd.h"

/* Volume sizes and stored bytes of one record, summed. */
static void sum_volumes(const json_t *record, uint64_t *ret_size, uint64_t *ret_stored)
{
    size_t i;
    json_t *volume;
    *ret_size = *ret_stored = 0;
    json_array_foreach(json_object_get(record, "volumes"), i, volume)
    {
        const json_t *stored = json_object_get(volume, "bytes_stored");
        if (!stored)
            stored = json_object_get(json_object_get(volume, "statistics"), "bytes_stored");
        *ret_size += (uint64_t)json_integer_value(json_object_get(volume, "size"));
        *ret_stored += (uint64_t)json_integer_value(stored);
    }
}

static void print_row(const json_t *record)
{
    char when[32], size_text[24], stored_text[24];
    uint64_t size, stored;
    sum_volumes(record, &size, &stored);
    cmd_format_size(size, size_text);
    cmd_format_size(stored, stored_text);
    cmd_format_time(json_integer_value(json_object_get(record, "captured_s")), when);
    (void)printf("%-30s  %-12.12s  %-23s  %-16s  %10s  %10s\n", cmd_text_or_dash(record, "tag"),
                 cmd_text_or_dash(record, "id"), when, cmd_text_or_dash(record, "node"), size_text,
                 stored_text);
}

static int run(struct cmd *cmd, struct err *err)
{
    struct client *client;
    free_json json_t *answer = NULL;
    int rc = cmd_open(cmd, &client, err);
    if (rc < 0)
        return rc;
    rc = client_call(client, "GET", "/snapshots", NULL, &answer, err);
    client_close(client);
    if (rc < 0)
        return rc;
    size_t i;
    json_t *record;
    if (!cmd->json)
        (void)printf("%-30s  %-12s  %-23s  %-16s  %10s  %10s\n", "TAG", "ID", "CAPTURED", "NODE",
                     "SIZE", "STORED");
    json_array_foreach(json_object_get(answer, "snapshots"), i, record)
    {
        if (cmd->json)
            cmd_print_json(record);
        else
            print_row(record);
    }
    json_int_t damaged = json_integer_value(json_object_get(answer, "damaged"));
    if (damaged > 0)
        return err_set(err, ERR_CORRUPT, "%lld damaged snapshot records are not listed",
                       (long long)damaged);
    return 0;
}

const struct cmd_verb verb_list = {
    .name = "list",
    .args = "",
    .summary = "Lists the snapshots of the repository, oldest first.",
    .run = run,
};
