/* See key_file.h. */
#include "agent/key_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/secret_file.h"
#include "io/file.h"
#include "io/secret.h"

static const char what[] = "key file";

/* Of a file that is not there or cannot be read. Never "make another one": it opens nothing. */
static void hint_unreadable(const char *path, enum fmt_role role, struct err *err)
{
    if (role == FMT_ROLE_WAL)
        (void)err_hint(err,
                       "it has to be root's, mode 0640, of the server's group (root:postgres): "
                       "so `tidemark key wal FILE` makes it from key_file of [repository]");
    else if (access(path, F_OK) < 0 && errno == ENOENT)
        (void)err_hint(err, "put your copy of the repository's key file back there, root's, mode "
                            "0600; only a repository that is not made yet takes a new one "
                            "(`tidemark key generate`)");
    else
        (void)err_hint(err, "it is root's, mode 0600: run this as root");
}

static int check_role(const char *path, enum fmt_role role, const struct key_secret *secret,
                      struct err *err)
{
    if (secret->role == role)
        return 0;
    if (role == FMT_ROLE_DATA) {
        (void)err_set(err, ERR_AUTH, "key file '%s' is one for WAL only", path);
        return err_hint(err, "key_file of [repository] is the file that `tidemark key generate` "
                             "made");
    }
    (void)err_set(err, ERR_AUTH,
                  "key file '%s' opens the whole repository: the server's user must "
                  "not have it",
                  path);
    return err_hint(err, "make another one for [wal]: `tidemark key wal FILE`");
}

int key_file_load(const char *path, enum fmt_role role, struct key_secret *ret, struct err *err)
{
    void *memory;
    struct key_secret secret;
    size_t len;
    (void)prctl(PR_SET_DUMPABLE, 0); /* keys made of it are in libcrypto's memory as well */
    int rc = secret_alloc(KEY_FILE_TEXT_MAX, &memory, err);
    if (rc < 0)
        return rc;
    char *text = memory;
    rc = secret_file_read(what, path, role == FMT_ROLE_WAL ? SECRET_GROUP : SECRET_OWNER, text,
                          KEY_FILE_TEXT_MAX, &len, err);
    if (rc < 0 && err->hint[0] == '\0')
        hint_unreadable(path, role, err);
    if (rc == 0 && key_secret_parse(text, len, &secret, err) < 0)
        rc = err_prefix(err, "key file '%s'", path);
    if (rc == 0)
        rc = check_role(path, role, &secret, err);
    if (rc == 0)
        *ret = secret;
    explicit_bzero(&secret, sizeof(secret));
    secret_free(memory, KEY_FILE_TEXT_MAX);
    return rc;
}

/* What is lost with it: of a key file everything, of the one that is derived from it nothing. */
static int there_already(const char *path, enum fmt_role role, struct err *err)
{
    (void)err_set(err, ERR_REFUSED, "key file '%s' is there already", path);
    return err_hint(err, role == FMT_ROLE_WAL
                             ? "remove it first: it can be made again from the repository's key "
                               "file at any time"
                             : "give another name: what it encrypts is lost with it, so it is "
                               "never overwritten");
}

static int write_file(int fd, const char *text, int64_t group_id, struct err *err)
{
    if (group_id >= 0 && (fchown(fd, (uid_t)-1, (gid_t)group_id) < 0 || fchmod(fd, 0640) < 0))
        return err_sys(err, ERR_DEVICE, "give it to the group");
    if (write_all(fd, text, strlen(text)) < 0 || fsync(fd) < 0)
        return err_sys(err, ERR_DEVICE, "write it");
    return 0;
}

int key_file_make(const char *path, const struct key_secret *secret, int64_t group_id,
                  struct err *err)
{
    void *memory;
    (void)prctl(PR_SET_DUMPABLE, 0);
    close_fd int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 && errno == EEXIST)
        return there_already(path, secret->role, err);
    if (fd < 0)
        return err_sys(err, ERR_DEVICE, "create key file '%s'", path);
    int rc = secret_alloc(KEY_FILE_TEXT_MAX, &memory, err);
    if (rc == 0) {
        key_secret_print(secret, memory);
        rc = write_file(fd, memory, group_id, err);
        secret_free(memory, KEY_FILE_TEXT_MAX);
    }
    if (rc < 0) {
        (void)unlink(path);
        return err_prefix(err, "key file '%s'", path);
    }
    return 0;
}

static int no_key_file(const struct conf *conf, enum repository_user user, struct err *err)
{
    (void)err_set(err, ERR_AUTH, "repository %s is encrypted, and no key file is configured%s",
                  conf->repository_url, user == REPOSITORY_WAL ? " for WAL" : "");
    return err_hint(err,
                    user == REPOSITORY_WAL
                        ? "make one with `tidemark key wal FILE` (root:postgres, mode 0640) and "
                          "name it: `key_file` in section [wal], or --wal-key-file=FILE"
                        : "put your copy of its key file on this host (root's, mode 0600) and "
                          "name it: `key_file` in section [repository], or --key-file=FILE");
}

int key_file_unlock(const struct conf *conf, enum repository_user user, struct store *store,
                    const struct repo *repo, struct err *err)
{
    bool wal = user == REPOSITORY_WAL;
    const char *path = wal ? conf->wal_key_file : conf->repository_key_file;
    struct key_secret secret;
    if (repo->cipher == REPO_PLAIN && !path[0])
        return 0;
    if (repo->cipher == REPO_PLAIN) {
        (void)err_set(err, ERR_REFUSED, "repository %s is not encrypted, but there is a key_file",
                      conf->repository_url);
        return err_hint(err, "if it was encrypted once, somebody has changed it: look before you "
                             "write to it; if not, remove key_file");
    }
    if (!path[0])
        return no_key_file(conf, user, err);
    int rc = key_file_load(path, wal ? FMT_ROLE_WAL : FMT_ROLE_DATA, &secret, err);
    if (rc == 0)
        rc = keyring_open(store, repo, &secret, err);
    explicit_bzero(&secret, sizeof(secret));
    return rc;
}
