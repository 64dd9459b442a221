/* tidemark init: makes a repository. The only verb that writes to the repository from here. */
#include <stdio.h>

#include "agent/repository.h"
#include "tools/cmd.h"

static const struct cmd_option options[] = {
    {"chunk-size", 0, "SIZE", "16KiB, 32KiB or 64KiB (default: [repository] chunk_size)"},
    {NULL, 0, NULL, NULL},
};

static int run(struct cmd *cmd, struct err *err)
{
    struct repo repo;
    char id[ID_TEXT_LEN];
    const char *chunk_size = cmd_option(cmd, "chunk-size");
    int rc = chunk_size ? conf_set(&cmd->conf, "repository.chunk_size", chunk_size, err) : 0;
    if (rc == 0)
        rc = repository_init(&cmd->conf, &repo, err);
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
    .is_local = true,
    .run = run,
};
