/* tidemark init: makes a repository. The only verb that writes to the repository from here. */
#include <grp.h>
#include <stdio.h>

#include "tools/cmd.h"

static const struct cmd_option options[] = {
    {"chunk-size", 0, "SIZE", "16KiB, 32KiB or 64KiB (default: [repository] chunk_size)"},
    {NULL, 0, NULL, NULL},
};

/* The server's own user writes WAL into a file:// repository, root everything else: a common group
 * owns it. */
static int find_group(const struct conf *conf, int64_t *ret, struct err *err)
{
    const char *name = conf->repository_group[0] ? conf->repository_group : "tidemark-repo";
    const struct group *group = getgrnam(name);
    if (!group && conf->repository_group[0])
        return err_set(err, ERR_CONFIG, "[repository] group '%s' does not exist", name);
    *ret = group ? (int64_t)group->gr_gid : -1;
    return 0;
}

static int make(struct cmd *cmd, struct repo *ret, struct err *err)
{
    struct store_options store_options;
    struct store *store;
    int rc = find_group(&cmd->conf, &store_options.group_id, err);
    if (rc == 0)
        rc = store_open(cmd->conf.repository_url, &store_options, true, &store, err);
    if (rc < 0)
        return rc;
    rc = repo_create(store, cmd->conf.chunk_size, ret, err);
    store_close(store);
    return rc;
}

static int run(struct cmd *cmd, struct err *err)
{
    struct repo repo;
    char id[ID_TEXT_LEN];
    const char *chunk_size = cmd_option(cmd, "chunk-size");
    int rc = chunk_size ? conf_set(&cmd->conf, "repository.chunk_size", chunk_size, err) : 0;
    if (rc == 0 && !cmd->conf.repository_url[0]) {
        (void)err_set(err, ERR_CONFIG, "no repository is configured");
        return err_hint(err, "set url in [repository], or give --repository=URL");
    }
    if (rc == 0)
        rc = make(cmd, &repo, err);
    if (rc < 0)
        return rc;
    id_to_text(repo.id, id);
    if (cmd->json) {
        free_json json_t *json =
            json_pack("{s:s, s:s, s:I}", "id", id, "url", cmd->conf.repository_url, "chunk_size",
                      (json_int_t)repo.chunk_size);
        cmd_print_json(json);
    } else {
        (void)printf("repository %s made at %s (chunks of %u KiB)\n", id, cmd->conf.repository_url,
                     repo.chunk_size / 1024);
    }
    return 0;
}

const struct cmd_verb verb_init = {
    .name = "init",
    .args = "",
    .summary = "Makes the repository. Refused where there is one already.",
    .options = options,
    .notes = "The directory of a file:// repository becomes setgid and belongs to [repository]\n"
             "group (default: tidemark-repo when it exists): root and the server's user write to "
             "it.\n",
    .run = run,
};
