/* See secret_file.h. */
#include "agent/secret_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "io/file.h"

static int check_owner(const char *what, const char *path, uid_t owner, struct err *err)
{
    uid_t reader = geteuid();
    if (owner == 0 || owner == reader)
        return 0;
    (void)err_set(err, ERR_AUTH,
                  "%s '%s': the owner is user %u, not root or user %u, "
                  "who reads it",
                  what, path, (unsigned)owner, (unsigned)reader);
    return err_hint(err, "chown root '%s' (and 640 with the group of whoever else needs it)", path);
}

static int check_mode(const char *what, const char *path, enum secret_reader reader, int fd,
                      struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_sys(err, ERR_AUTH, "stat %s '%s'", what, path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_AUTH, "%s '%s': not a file", what, path);
    bool group = st.st_uid == 0 && reader == SECRET_GROUP;
    if ((st.st_mode & (group ? 037 : 077)) == 0)
        return check_owner(what, path, st.st_uid, err);
    (void)err_set(err, ERR_AUTH, "%s '%s' may be used by others (mode %04o)", what, path,
                  (unsigned)st.st_mode & 07777);
    return err_hint(err,
                    reader == SECRET_GROUP ? "chmod 600 '%s' (640 for a group of root's file)"
                                           : "chmod 600 '%s'",
                    path);
}

int secret_file_read(const char *what, const char *path, enum secret_reader reader, char *buf,
                     size_t size, size_t *ret_len, struct err *err)
{
    /* Not to wait for the other end of a FIFO: it is refused below. */
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return err_sys(err, ERR_AUTH, "open %s '%s'", what, path);
    int rc = check_mode(what, path, reader, fd, err);
    if (rc < 0)
        return rc;
    if (read_all(fd, buf, size, ret_len) < 0)
        return err_sys(err, ERR_AUTH, "read %s '%s'", what, path);
    if (*ret_len == size)
        return err_set(err, ERR_AUTH, "%s '%s': longer than %zu bytes", what, path, size - 1);
    return 0;
}
