/* tidemark key: the key files and the keys of an encrypted repository. Works from here, as init
 * does: an agent has the key file, but no business in changing it. */
#include <errno.h>
#include <stdio.h>

#include "agent/key_file.h"
#include "agent/key_memory.h"
#include "agent/process.h"
#include "agent/repository.h"
#include "io/store_lock.h"
#include "tools/cmd.h"

static void id_text(const struct key_secret *secret, char text[2 * KEY_FILE_ID_LEN + 1])
{
    uint8_t id[KEY_FILE_ID_LEN];
    key_secret_id(secret, id);
    id_to_text(id, text); /* as long as any id */
    text[16] = '\0';
}

static int need_file(const struct cmd *cmd, struct err *err)
{
    if (cmd->arg_count == 2)
        return 0;
    return err_set(err, ERR_USAGE, "expected: tidemark key %s FILE", cmd->args[0]);
}

static int need_configured(const struct cmd *cmd, struct err *err)
{
    if (cmd->conf.repository_key_file[0])
        return 0;
    (void)err_set(err, ERR_USAGE, "no key file is configured");
    return err_hint(err, "set `key_file` in section [repository], or give --key-file=FILE");
}

static void print_made(const struct cmd *cmd, const struct key_secret *secret, const char *path)
{
    char id[2 * KEY_FILE_ID_LEN + 1];
    id_text(secret, id);
    if (cmd->json) {
        free_json json_t *json = json_pack("{s:s, s:s}", "file", path, "id", id);
        cmd_print_json(json);
    } else {
        (void)printf("key file %s made at %s\n", id, path);
    }
}

/* --- files ------------------------------------------------------------------------------------ */

static int run_generate(struct cmd *cmd, struct err *err)
{
    struct key_secret secret = {0};
    int rc = need_file(cmd, err);
    if (rc == 0)
        rc = key_secret_random(&secret, err);
    if (rc == 0)
        rc = key_file_make(cmd->args[1], &secret, -1, err);
    if (rc == 0) {
        print_made(cmd, &secret, cmd->args[1]);
        (void)fputs("Keep a copy of it where neither this server nor the repository is: without it "
                    "NOBODY\ncan read what it encrypts, and with it everybody can.\n",
                    stderr);
    }
    explicit_bzero(&secret, sizeof(secret));
    return rc;
}

/* Root makes it for the server's user: root's alone it would be good for nobody. -1: not root. */
static int server_group(const struct conf *conf, int64_t *ret, struct err *err)
{
    char home[256];
    uid_t uid;
    gid_t gid;
    *ret = -1;
    if (geteuid() != 0)
        return 0;
    int rc = process_user(conf->os_user, &uid, &gid, home, err);
    if (rc < 0) {
        (void)err_prefix(err, "the key file is for the server's user");
        return err_hint(err, "install PostgreSQL, or set `os_user` in section [postgresql], first: "
                             "the file gets the group of that account");
    }
    *ret = (int64_t)gid;
    return 0;
}

static int run_wal(struct cmd *cmd, struct err *err)
{
    struct key_secret data = {0}, wal = {0};
    int64_t group_id = -1;
    int rc = need_file(cmd, err);
    if (rc == 0)
        rc = need_configured(cmd, err);
    if (rc == 0)
        rc = server_group(&cmd->conf, &group_id, err);
    if (rc == 0)
        rc = key_file_load(cmd->conf.repository_key_file, FMT_ROLE_DATA, &data, err);
    if (rc == 0) {
        key_secret_wal(&data, &wal);
        rc = key_file_make(cmd->args[1], &wal, group_id, err);
    }
    if (rc == 0)
        print_made(cmd, &wal, cmd->args[1]);
    explicit_bzero(&data, sizeof(data));
    explicit_bzero(&wal, sizeof(wal));
    return rc;
}

/* --- the repository --------------------------------------------------------------------------- */

static void print_ring(const struct cmd *cmd, const struct keyring_info *info)
{
    if (cmd->json) {
        free_json json_t *json =
            json_pack("{s:I, s:I, s:I, s:I}", "generation", (json_int_t)info->generation, "keys",
                      (json_int_t)info->count, "data_key", (json_int_t)info->data_key, "wal_key",
                      (json_int_t)info->wal_key);
        cmd_print_json(json);
        return;
    }
    (void)printf("generation %u of the key ring, %u keys; new objects: key %u, WAL: key %u\n",
                 info->generation, info->count, info->data_key, info->wal_key);
}

static int open_encrypted(const struct cmd *cmd, struct store **ret, struct repo *repo,
                          struct err *err)
{
    int rc = need_configured(cmd, err);
    return rc < 0 ? rc : repository_open(&cmd->conf, NULL, ret, repo, err);
}

static void show_ring(const struct cmd *cmd, const struct store *store)
{
    struct keyring_info info;
    keyring_describe(store_keys(store), &info);
    print_ring(cmd, &info);
}

static int run_status(struct cmd *cmd, struct err *err)
{
    struct store *store;
    struct repo repo;
    int rc = open_encrypted(cmd, &store, &repo, err);
    if (rc < 0)
        return rc;
    show_ring(cmd, store);
    store_close(store);
    return 0;
}

/* In a bucket that keeps versions a plain removal only hides, and the old key file would open what
 * is hidden. A key that may not ask is good enough where none are kept, so this ends nothing. */
static void prepare_removes(struct store *store)
{
    struct err err;
    if (store_prepare_removes(store, &err) == 0)
        return;
    (void)fprintf(stderr,
                  "It is not known whether the bucket keeps versions (%s).\nIf it does, the older "
                  "generations of key/ are only hidden, and the old key file opens them: do\n"
                  "`tidemark key rewrap` with the same file again, with a key that may ask "
                  "(s3:GetBucketVersioning).\n",
                  err.text);
}

/* A new generation, wrapped by the key file at path. */
static int advance(struct cmd *cmd, const char *path, bool new_keys, struct err *err)
{
    struct store *store;
    struct repo repo;
    struct key_secret secret = {0};
    uint32_t left = 0;
    int rc = open_encrypted(cmd, &store, &repo, err);
    if (rc < 0)
        return rc;
    rc = key_file_load(path, FMT_ROLE_DATA, &secret, err);
    if (rc == 0 && !new_keys)
        prepare_removes(store);
    if (rc == 0)
        rc = keyring_advance(store, &repo, &secret, new_keys, &left, err);
    if (rc == 0)
        rc = key_memory_check(&cmd->conf, &repo, store, err);
    explicit_bzero(&secret, sizeof(secret));
    if (rc == 0)
        show_ring(cmd, store);
    store_close(store);
    if (rc == 0 && left > 0)
        (void)fprintf(stderr,
                      "%u objects of older generations in key/ could not be removed: as long as "
                      "they are there,\nthe old key file opens all objects made so far. `tidemark "
                      "key rewrap` with the same file and with\nkeys that may delete removes "
                      "them; what is locked (lock_days), when its lock is over.\n",
                      left);
    return rc;
}

static int run_rotate(struct cmd *cmd, struct err *err)
{
    return advance(cmd, cmd->conf.repository_key_file, true, err);
}

/* That one is missing means something else than for a repository's own: see key_file.c. */
static int need_made(const char *path, struct err *err)
{
    if (access(path, F_OK) == 0 || errno != ENOENT)
        return 0;
    (void)err_sys(err, ERR_AUTH, "open key file '%s'", path);
    return err_hint(err, "make it first: `tidemark key generate %.128s`", path);
}

static int run_rewrap(struct cmd *cmd, struct err *err)
{
    int rc = need_file(cmd, err);
    if (rc == 0)
        rc = need_made(cmd->args[1], err);
    if (rc == 0)
        rc = advance(cmd, cmd->args[1], false, err);
    if (rc == 0)
        (void)fprintf(stderr,
                      "From now on the key file is %s, on every host that uses the repository: "
                      "put it in\nthe place of the old one (root's, mode 0600), remove that of "
                      "[wal] and make it anew (`tidemark\nkey wal FILE`: root:postgres, mode "
                      "0640). Where `key_file` gets another name, restart the agent.\nUntil then "
                      "they get exit 13, and WAL waits in pg_wal. Keep a copy of it elsewhere.\n",
                      cmd->args[1]);
    return rc;
}

static int run(struct cmd *cmd, struct err *err)
{
    static const struct {
        const char *name;
        int (*run)(struct cmd *cmd, struct err *err);
    } actions[] = {{"generate", run_generate},
                   {"wal", run_wal},
                   {"status", run_status},
                   {"rotate", run_rotate},
                   {"rewrap", run_rewrap}};
    for (size_t i = 0; i < ARRAY_LEN(actions); i++)
        if (strcmp(cmd->args[0], actions[i].name) == 0)
            return actions[i].run(cmd, err);
    (void)err_set(err, ERR_USAGE, "unknown action '%.40s'", cmd->args[0]);
    return err_hint(err, "generate, wal, status, rotate or rewrap");
}

const struct cmd_verb verb_key = {
    .name = "key",
    .args = "generate|wal|status|rotate|rewrap [FILE]",
    .args_min = 1,
    .args_max = 2,
    .summary = "Makes key files, and changes the keys of an encrypted repository.",
    .notes = "generate FILE   a new key file, for `tidemark init --cipher=aes-256-gcm`\n"
             "wal FILE        from [repository] key_file, the one for tidemark-wal;\n"
             "                always the same\n"
             "status          which keys the repository has\n"
             "rotate          new keys, which new objects are sealed with; the old ones\n"
             "                stay readable\n"
             "rewrap FILE     the key file FILE, which `generate` has made, takes the place\n"
             "                of [repository] key_file; then put it there, remove that of\n"
             "                [wal], and make it anew with `wal`;\n"
             "                objects stay as they are, so who had the old file and a\n"
             "                copy of the repository still has them\n",
    .is_local = true,
    .run = run,
};
