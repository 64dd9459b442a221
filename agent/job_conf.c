/* The configuration of a job: a copy in its directory, so that every run of it sees what its agent
 * saw when it was made. See job.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "agent/job.h"

static int write_to(const char *path, const struct conf *conf, struct err *err)
{
    close_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FILE *to = fd < 0 ? NULL : fdopen(fd, "w");
    if (!to)
        return err_sys(err, ERR_DEVICE, "create '%s'", path);
    (void)take_fd(&fd);
    int rc = conf_write(conf, to) < 0 || fsync(fileno(to)) < 0
                 ? err_sys(err, ERR_DEVICE, "write '%s'", path)
                 : 0;
    if (fclose(to) != 0 && rc == 0)
        rc = err_sys(err, ERR_DEVICE, "close '%s'", path);
    return rc;
}

int job_write_conf(const char *dir, const struct conf *conf, struct err *err)
{
    char path[JOB_DIR_MAX + 32], to[JOB_DIR_MAX + 32];
    (void)snprintf(path, sizeof(path), "%s/conf.new", dir);
    (void)snprintf(to, sizeof(to), "%s/conf", dir);
    int rc = write_to(path, conf, err);
    if (rc == 0 && rename(path, to) < 0)
        rc = err_sys(err, ERR_DEVICE, "rename '%s'", path);
    return rc;
}

/* The configuration as the agent saw it: without the environment. */
int job_load_conf(const char *dir, struct conf *ret, struct err *err)
{
    char path[JOB_DIR_MAX + 32];
    (void)snprintf(path, sizeof(path), "%s/conf", dir);
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, ERR_DEVICE, "open '%s'", path);
    size_t size = (size_t)st.st_size;
    free_mem char *text = malloc(size + 1);
    if (!text)
        return err_set(err, ERR_INTERNAL, "out of memory");
    if (pread(fd, text, size, 0) != (ssize_t)size)
        return err_sys(err, ERR_DEVICE, "read '%s'", path);
    return conf_parse(path, text, size, ret, err);
}

int job_renew_conf(const struct conf *conf, const char *id, struct err *err)
{
    char dir[JOB_DIR_MAX];
    free_mem struct conf *now = malloc(sizeof(*now)), *of = malloc(sizeof(*of)); /* large */
    if (!now || !of)
        return err_set(err, ERR_INTERNAL, "out of memory");
    if (!conf->file[0])
        return 0;
    job_dir(conf, id, dir);
    int rc = conf_load(conf->file, now, err);
    if (rc == 0)
        rc = job_load_conf(dir, of, err);
    if (rc < 0)
        return err_prefix(err, "the configuration is read anew");
    memcpy(of->coordinator_members, now->coordinator_members, sizeof(of->coordinator_members));
    memcpy(of->coordinator_primary_conninfo, now->coordinator_primary_conninfo,
           sizeof(of->coordinator_primary_conninfo));
    of->coordinator_agent_timeout_s = now->coordinator_agent_timeout_s;
    return job_write_conf(dir, of, err);
}
