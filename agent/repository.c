/* The repository of a configuration, see repository.h. */
#include "agent/repository.h"

#include <grp.h>
#include <stdio.h>
#include <sys/stat.h>

#include "agent/key_file.h"
#include "agent/key_memory.h"
#include "agent/log.h"
#include "agent/repository_access.h"
#include "io/store_lock.h"

static int find_group(const struct conf *conf, int64_t *ret, struct err *err)
{
    const char *name = conf->repository_group[0] ? conf->repository_group : "tidemark-repo";
    const struct group *group = getgrnam(name);
    if (!group && conf->repository_group[0])
        return err_set(err, ERR_CONFIG, "there is no group '%s' (repository.group)", name);
    *ret = group ? (int64_t)group->gr_gid : -1;
    return 0;
}

int repository_open_store(const struct conf *conf, bool create, const _Atomic bool *cancel,
                          struct store **ret, struct err *err)
{
    struct repository_access access;
    if (!conf->repository_url[0]) {
        (void)err_set(err, ERR_CONFIG, "no repository is configured");
        return err_hint(err, "set `url` in section [repository], or give --repository=URL");
    }
    int rc = repository_access_load(conf, REPOSITORY_JOBS, 0, &access, err);
    if (rc == 0)
        rc = find_group(conf, &access.options.group_id, err);
    access.options.cancel = cancel;
    if (rc == 0)
        rc = store_open(conf->repository_url, &access.options, create, ret, err);
    repository_access_free(&access);
    return rc;
}

static void warn_copies(const struct conf *conf, const struct store *store, bool used_copy)
{
    struct keyring_info info = {0};
    if (used_copy)
        log_warn("repository=%s tidemark.repo is damaged or missing, its copy was used",
                 conf->repository_url);
    if (store_keys(store))
        keyring_describe(store_keys(store), &info);
    if (info.used_copy)
        log_warn("repository=%s key/%08x is damaged or missing, its copy was used: `tidemark key "
                 "rotate` writes both anew",
                 conf->repository_url, info.generation);
}

/* --- hidden, FORMAT.md §14 -------------------------------------------------------------------- */

static int note_hidden(void *ctx, const struct store_hidden *hidden, struct err *err)
{
    (void)err;
    if (*(char *)ctx == '\0')
        (void)snprintf(ctx, STORE_NAME_MAX + 1, "%s", hidden->name);
    return 0;
}

/* In a bucket that locks; ret "": it is not. */
static int find_hidden(const struct conf *conf, struct store *store, char ret[STORE_NAME_MAX + 1],
                       struct err *err)
{
    ret[0] = '\0';
    return repository_lock_s(conf) == 0
               ? 0
               : store_list_hidden(store, "tidemark.repo", note_hidden, ret, err);
}

static int hint_hidden(struct err *err)
{
    return err_hint(err, "'tidemark.repo' is there as an older version: find out whose key hid it; "
                         "README, section Object lock, says how it comes back");
}

/* Nobody is told to make a new repository over one that is hidden. */
static int explain_absent(const struct conf *conf, struct store *store, struct err *err)
{
    char hidden[STORE_NAME_MAX + 1];
    struct err other;
    int rc = find_hidden(conf, store, hidden, &other);
    if (rc < 0)
        return err_hint(err,
                        "with lock_days it may be hidden, which a key with "
                        "s3:ListBucketVersions finds out: %.200s",
                        other.text);
    if (hidden[0])
        return hint_hidden(err);
    if (err->code == ERR_CORRUPT)
        return -ERR_CORRUPT;
    return err_hint(err, repository_needs_credentials(conf)
                             ? "check url and endpoint; a new one is made with `tidemark init`"
                             : "is its filesystem mounted? A new one is made with `tidemark init`");
}

static int refuse_hidden(const struct conf *conf, struct store *store, struct err *err)
{
    char hidden[STORE_NAME_MAX + 1];
    int rc = find_hidden(conf, store, hidden, err);
    if (rc < 0 || !hidden[0])
        return rc;
    (void)err_set(err, ERR_REFUSED, "%s holds a repository: '%s' is hidden behind a newer version",
                  store_url(store), hidden);
    return hint_hidden(err);
}

/* --- open ------------------------------------------------------------------------------------- */

int repository_open(const struct conf *conf, const _Atomic bool *cancel, struct store **ret_store,
                    struct repo *ret_repo, struct err *err)
{
    struct store *store;
    bool used_copy = false;
    int rc = repository_open_store(conf, false, cancel, &store, err);
    if (rc < 0)
        return rc;
    rc = repo_open(store, ret_repo, &used_copy, err);
    if (rc < 0) {
        if (rc == -ERR_MISSING || rc == -ERR_CORRUPT)
            rc = explain_absent(conf, store, err);
        store_close(store);
        return rc;
    }
    rc = key_file_unlock(conf, REPOSITORY_JOBS, store, ret_repo, err);
    if (rc == 0)
        rc = key_memory_check(conf, ret_repo, store, err);
    if (rc < 0) {
        store_close(store);
        return rc;
    }
    warn_copies(conf, store, used_copy);
    *ret_store = store;
    return 0;
}

/* A directory that was in use keeps its owner and mode: a group that cannot reach wal/ in it cannot
 * archive. */
static void warn_unreachable(const struct conf *conf)
{
    const char *path = repository_directory(conf);
    struct err ignored;
    struct stat st;
    int64_t group_id = -1;
    if (!path || find_group(conf, &group_id, &ignored) < 0 || group_id < 0 || stat(path, &st) < 0)
        return;
    mode_t needed = (int64_t)st.st_gid == group_id ? 050 : 05;
    if ((st.st_mode & needed) == needed)
        return;
    log_warn("'%s' was not empty, so its owner and mode are left alone: for the server's user to "
             "archive, chgrp %s '%s' && chmod g+rx '%s'",
             path, conf->repository_group[0] ? conf->repository_group : "tidemark-repo", path,
             path);
}

static int create(const struct conf *conf, bool encrypt, struct store *store, struct repo *ret,
                  struct err *err)
{
    struct key_secret secret;
    if (!encrypt)
        return repo_create(store, conf->chunk_size, ret, err);
    int rc = key_file_load(conf->repository_key_file, FMT_ROLE_DATA, &secret, err);
    if (rc == 0)
        rc = repo_create_sealed(store, conf->chunk_size, &secret, ret, err);
    explicit_bzero(&secret, sizeof(secret));
    return rc;
}

/* Who has a key file means to use it. */
static int check_encrypt(const struct conf *conf, bool encrypt, struct err *err)
{
    if (encrypt == (conf->repository_key_file[0] != '\0'))
        return 0;
    if (!encrypt) {
        (void)err_set(err, ERR_USAGE, "there is a key_file, but no --cipher");
        return err_hint(err, "--cipher=aes-256-gcm makes an encrypted repository; for a plain one "
                             "remove key_file");
    }
    (void)err_set(err, ERR_USAGE, "an encrypted repository needs a key file");
    return err_hint(err, "`tidemark key generate FILE` makes one; then set `key_file` in section "
                         "[repository], or give --key-file=FILE");
}

int repository_init(const struct conf *conf, bool encrypt, struct repo *ret, struct err *err)
{
    struct store *store;
    int rc = check_encrypt(conf, encrypt, err);
    if (rc == 0)
        rc = repository_open_store(conf, true, NULL, &store, err);
    if (rc < 0)
        return rc;
    if (repository_lock_s(conf) > 0)
        rc = store_check_lock(store, err);
    if (rc == 0)
        rc = refuse_hidden(conf, store, err);
    if (rc == 0)
        rc = create(conf, encrypt, store, ret, err);
    store_close(store);
    if (rc == 0 && !repository_needs_credentials(conf) && !conf->repository_group[0] &&
        !getgrnam("tidemark-repo"))
        log_warn("there is no group tidemark-repo: only root can use this repository, so "
                 "archive_command will fail; make the group with the server's user in it, or set "
                 "[repository] group, and init again in an empty directory");
    else if (rc == 0)
        warn_unreachable(conf);
    return rc;
}
