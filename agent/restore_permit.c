/* The start permit: while a restore recovers, postgresql.auto.conf includes a file of /run, which
 * only the job makes, right before it starts the server. Without it, because the job never came so
 * far, was refused or given up, or because the host was booted since, PostgreSQL refuses to start,
 * whoever tries, until the restore is resumed: an include that cannot be opened is fatal at start
 * (guc-file.l, ParseConfigFile(), strict), and its message shows the path, which says what to do.
 *
 * Without it a server whose host fails between the removal of recovery.signal and the checkpoint
 * after it comes back in crash recovery on the old timeline (StartupXLOG(): pg_control still names
 * it), writable, with whatever WAL happens to lie in pg_wal. */
#include "agent/restore.h"
#include "io/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

/* Not below the agent's own directory, which systemd removes with the agent. */
static const char permit_dir[] = "/run/tidemark-restore";

static const char prefix[] = "not-complete.run-tidemark-restore--resume.";

static void path_for(const char *job, char *ret, size_t size)
{
    (void)snprintf(ret, size, "%s/%s%s", permit_dir, prefix, job);
}

void restore_permit_path(const struct restore *restore, char *ret, size_t size)
{
    path_for(restore->job->id, ret, size);
}

/* A server that waits at its target for a person, or was shut down there, is that person's; one
 * that was handed over is Patroni's, which starts it as often as it likes. */
bool restore_permit_wanted(const struct restore *restore)
{
    return restore->request.action == ACTION_PROMOTE && !restore->request.handover_directory;
}

int restore_permit_grant(const struct restore *restore, struct err *err)
{
    static const char text[] = "# tidemark: a restore is under way; gone with the next reboot\n";
    char path[PERMIT_PATH_MAX];
    if (!restore_permit_wanted(restore))
        return 0;
    if (mkdir(permit_dir, 0755) < 0 && errno != EEXIST)
        return err_sys(err, ERR_DEVICE, "create '%s'", permit_dir);
    restore_permit_path(restore, path, sizeof(path));
    close_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0 || fchmod(fd, 0644) < 0 || chmod(permit_dir, 0755) < 0 ||
        write_all(fd, text, sizeof(text) - 1) < 0)
        return err_sys(err, ERR_DEVICE, "write '%s'", path);
    return 0;
}

void restore_permit_revoke(const struct restore *restore)
{
    restore_permit_forget(restore->job->id);
}

void restore_permit_forget(const char *job)
{
    char path[PERMIT_PATH_MAX];
    path_for(job, path, sizeof(path));
    (void)unlink(path);
    (void)rmdir(permit_dir); /* fails, rightly, while another restore has its permit there */
}

static bool is_over(const struct conf *conf, const char *job)
{
    free_json json_t *status = NULL;
    struct err ignored; /* another agent's on this host, or no job's */
    return job_status(conf, job, &status, &ignored) == 0 && job_is_over(status);
}

void restore_permit_sweep(const struct conf *conf)
{
    size_t len = sizeof(prefix) - 1;
    DIR *dir = opendir(permit_dir);
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        if (strncmp(entry->d_name, prefix, len) == 0 && is_over(conf, entry->d_name + len))
            restore_permit_forget(entry->d_name + len);
    if (dir)
        (void)closedir(dir);
}
