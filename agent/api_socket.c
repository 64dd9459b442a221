/* See api_socket.h. */
#include "agent/api_socket.h"

#include <assert.h>
#include <errno.h>
#include <grp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "agent/address.h"
#include "agent/log.h"
#include "agent/process.h"

static int make_parent(const char *path, struct err *err)
{
    char parent[sizeof(((struct sockaddr_un *)0)->sun_path)];
    (void)snprintf(parent, sizeof(parent), "%s", path);
    char *slash = strrchr(parent, '/');
    assert(slash); /* conf.c takes absolute paths only */
    *slash = '\0';
    if (parent[0] && mkdir(parent, 0755) < 0 && errno != EEXIST)
        return err_sys(err, ERR_DEVICE, "create '%s'", parent);
    return 0;
}

/* A socket that nobody answers on is left over from an agent that was killed. */
static int remove_stale(const struct sockaddr_un *address, struct err *err)
{
    struct stat st;
    if (lstat(address->sun_path, &st) < 0)
        return errno == ENOENT ? 0 : err_sys(err, ERR_DEVICE, "stat '%s'", address->sun_path);
    if (!S_ISSOCK(st.st_mode))
        return err_set(err, ERR_CONFIG, "'%s' is there and is not a socket", address->sun_path);
    close_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_sys(err, ERR_INTERNAL, "socket");
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0)
        return err_set(err, ERR_BUSY, "another agent answers on '%s'", address->sun_path);
    if (unlink(address->sun_path) < 0)
        return err_sys(err, ERR_DEVICE, "remove '%s'", address->sun_path);
    return 0;
}

static int give_to_group(const char *path, struct err *err)
{
    struct group entry, *found = NULL;
    char buf[4096];
    if (getgrnam_r("tidemark", &entry, buf, sizeof(buf), &found) != 0 || !found) {
        log_warn("there is no group tidemark: only root can use the control socket: socket=%s",
                 path);
        return 0;
    }
    if (chown(path, (uid_t)-1, found->gr_gid) < 0 || chmod(path, 0660) < 0)
        return err_sys(err, ERR_DEVICE, "give '%s' to group tidemark", path);
    return 0;
}

static int give_to_user(const char *path, const char *user, struct err *err)
{
    uid_t uid;
    gid_t gid;
    char home[256];
    int rc = process_user(user, &uid, &gid, home, err);
    if (rc == 0 && (chown(path, uid, gid) < 0 || chmod(path, 0600) < 0))
        rc = err_sys(err, ERR_DEVICE, "give '%s' to user %s", path, user);
    return rc;
}

int api_listen_unix(const char *path, const char *user, int *ret_fd, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    int rc = make_parent(path, err);
    if (rc == 0)
        rc = remove_stale(&address, err);
    if (rc < 0)
        return rc;
    close_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_sys(err, ERR_INTERNAL, "socket");
    mode_t old = umask(0177); /* nobody else before the group is set */
    rc = bind(fd, (const struct sockaddr *)&address, sizeof(address));
    (void)umask(old);
    if (rc < 0)
        return err_sys(err, ERR_DEVICE, "bind '%s'", path);
    rc = user ? give_to_user(path, user, err) : give_to_group(path, err);
    if (rc == 0 && listen(fd, API_CONNECTIONS_MAX) < 0)
        rc = err_sys(err, ERR_DEVICE, "listen on '%s'", path);
    if (rc < 0)
        (void)unlink(path);
    else
        *ret_fd = take_fd(&fd);
    return rc;
}

int api_listen_tcp(const char *address, int *ret_fd, struct err *err)
{
    struct sockaddr_storage at;
    socklen_t len;
    int on = 1;
    if (!address_parse(address, &at, &len))
        return err_set(err, ERR_CONFIG, "'%s' is not ADDRESS:PORT", address);
    close_fd int fd = socket(at.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_sys(err, ERR_INTERNAL, "socket");
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (at.ss_family == AF_INET6) /* [::] and 0.0.0.0 are two listeners, as they look */
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    if (bind(fd, (const struct sockaddr *)&at, len) < 0)
        return err_sys(err, errno == EADDRINUSE ? ERR_BUSY : ERR_DEVICE, "bind '%s'", address);
    if (listen(fd, API_CONNECTIONS_MAX) < 0)
        return err_sys(err, ERR_DEVICE, "listen on '%s'", address);
    *ret_fd = take_fd(&fd);
    return 0;
}
