/* tidemark init: makes a repository. The only verb that writes to the repository from here. */
#include <stdio.h>

#include "agent/repository.h"
#include "tools/cmd.h"

static const struct cmd_option options[] = {
    {"chunk-size", 0, "SIZE", "16KiB, 32KiB or 64KiB (default: [repository] chunk_size)"},
    {"cipher", 0, "NAME", "aes-256-gcm: encrypt everything in it; needs a key file"},
    {NULL, 0, NULL, NULL},
};

static int wants_cipher(const struct cmd *cmd, bool *ret, struct err *err)
{
    const char *cipher = cmd_option(cmd, "cipher");
    *ret = cipher && strcmp(cipher, "aes-256-gcm") == 0;
    if (!cipher || *ret || strcmp(cipher, "none") == 0)
        return 0;
    return err_set(err, ERR_USAGE, "unknown cipher '%.40s': aes-256-gcm or none", cipher);
}

/* Nobody must learn this too late. */
static void warn_key(const char *path)
{
    (void)fprintf(stderr,
                  "Everything in it is encrypted. Without the key file %s NOBODY can read\n"
                  "it again, and there is no other way in: keep a copy of that file where neither\n"
                  "this server nor the repository is. For archive_command and restore_command:\n"
                  "`tidemark key wal FILE`, then `key_file` in section [wal].\n",
                  path);
}

static int run(struct cmd *cmd, struct err *err)
{
    struct repo repo;
    char id[ID_TEXT_LEN];
    const char *chunk_size = cmd_option(cmd, "chunk-size");
    bool encrypt = false;
    int rc = chunk_size ? conf_set(&cmd->conf, "repository.chunk_size", chunk_size, err) : 0;
    if (rc == 0)
        rc = wants_cipher(cmd, &encrypt, err);
    if (rc == 0)
        rc = repository_init(&cmd->conf, encrypt, &repo, err);
    if (rc < 0)
        return rc;
    id_to_text(repo.id, id);
    if (cmd->json) {
        free_json json_t *json = json_pack(
            "{s:s, s:s, s:I, s:s}", "id", id, "url", cmd->conf.repository_url, "chunk_size",
            (json_int_t)repo.chunk_size, "cipher", encrypt ? "aes-256-gcm" : "none");
        cmd_print_json(json);
    } else {
        (void)printf("repository %s made at %s (chunks of %u KiB)\n", id, cmd->conf.repository_url,
                     repo.chunk_size / 1024);
    }
    if (encrypt)
        warn_key(cmd->conf.repository_key_file);
    return 0;
}

const struct cmd_verb verb_init = {
    .name = "init",
    .args = "",
    .summary = "Makes the repository. Refused where there is one already.",
    .options = options,
    .notes = "The directory of a file:// repository becomes setgid and belongs to [repository]\n"
             "group (default: tidemark-repo when it exists): the server's user, who is in "
             "it, reads\nit, and writes to wal/, reading/ and tmp/ only.\n",
    .is_local = true,
    .run = run,
};
