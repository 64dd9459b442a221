/* tidemark export: a volume of a snapshot as an image file on this host. */
#include <limits.h>
#include <stdio.h>

#include "tools/cmd.h"

static const struct cmd_option options[] = {
    {"volume", 0, "NAME", "which volume of the snapshot (needed when it has several)"},
    {"force", 0, NULL, "replace FILE, and what a killed export left"},
    {NULL, 0, NULL, NULL},
};

/* The job does not run where we do. */
static int add_file(json_t *body, const char *file, struct err *err)
{
    char path[PATH_MAX] = "";
    size_t len = 0;
    if (strcmp(file, "-") == 0) {
        (void)err_set(err, ERR_USAGE, "an export is a sparse file: it cannot go to stdout");
        return err_hint(err, "name a file; ./- for one of this name");
    }
    if (file[0] != '/') {
        if (!getcwd(path, sizeof(path)))
            return err_sys(err, ERR_USAGE, "where are we");
        len = strlen(path);
    }
    int more = snprintf(path + len, sizeof(path) - len, "%s%s", len ? "/" : "", file);
    if (more < 0 || len + (size_t)more >= sizeof(path))
        return err_set(err, ERR_USAGE, "'%.80s…' is too long for the path of a file", file);
    json_t *text = json_string(path);
    if (!text)
        return err_set(err, ERR_USAGE, "the path of the file is not UTF-8");
    (void)json_object_set_new(body, "file", text);
    return 0;
}

static void print_result(const json_t *result)
{
    char bytes[24], disk[24];
    cmd_format_size((uint64_t)json_integer_value(json_object_get(result, "bytes")), bytes);
    cmd_format_size((uint64_t)json_integer_value(json_object_get(result, "bytes_on_disk")), disk);
    (void)printf("volume %s of snapshot %s is in %s: %s, %s on disk\nnote: %s\n",
                 cmd_text(result, "volume"), cmd_text(result, "tag"), cmd_text(result, "file"),
                 bytes, disk, cmd_text(result, "note"));
}

static int run(struct cmd *cmd, struct err *err)
{
    free_json json_t *status = NULL;
    free_json json_t *body = json_pack("{s:s}", "snapshot", cmd->args[0]);
    int rc = cmd_check_name("snapshot", cmd->args[0], err);
    if (rc == 0)
        rc = add_file(body, cmd->args[1], err);
    cmd_add_option(cmd, "volume", "volume", body);
    cmd_add_option(cmd, "force", "force", body);
    if (rc == 0)
        rc = cmd_use_own_state(cmd, err);
    if (rc == 0)
        rc = cmd_run_one_job(cmd, "/exports", body, &status, err);
    if (rc < 0)
        return rc;
    if (cmd->json)
        cmd_print_json(status);
    else
        print_result(json_object_get(status, "result"));
    return 0;
}

const struct cmd_verb verb_export = {
    .name = "export",
    .args = "TAG|ID|latest FILE",
    .args_min = 2,
    .args_max = 2,
    .summary = "Writes a volume of a snapshot to a sparse image file on this host.",
    .options = options,
    .notes = "FILE.partial gets the name FILE when it is whole. Mount it with\n"
             "  mount -o loop FILE DIRECTORY    (XFS beside its original: -o loop,nouuid)\n"
             "read-write once, because the filesystem replays its journal.\n",
    .is_local = true,
    .run = run,
};
