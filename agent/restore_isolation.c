/* Nothing that a restored server does may reach files of another one. A copy whose pg_tblspc links
 * lead into production deletes production's files (FACTS), and a pid file or log outside is
 * somebody else's. Checked before every start, on the mounted image, with the settings as the
 * server itself will read them; and the links already before a restore follows one of them, to
 * empty pg_wal, say.
 *
 * Two things lie outside by right: configuration that this node kept in its own place (Debian's
 * /etc), and what it names under the directories where every server of the system meets (/run,
 * /var/run, /var/log), as long as no living server uses that very pid file. */
#include "agent/restore.h"
#include "agent/log.h"
#include "agent/pg.h"
#include "agent/process.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>

/* --- settings --------------------------------------------------------------------------------- */

/* The main configuration file when it does not lie in the data directory. */
static bool config_outside(const struct restore *restore, char *ret, size_t size)
{
    char path[CONF_PATH_MAX + 32];
    (void)snprintf(path, sizeof(path), "%s/postgresql.conf", restore->data_directory);
    if (access(path, F_OK) == 0)
        return false;
    for (size_t i = 0; i < restore->record.config_file_count; i++) {
        const char *file = restore->record.config_files[i].path;
        const char *slash = strrchr(file, '/');
        if (!slash || strcmp(slash + 1, "postgresql.conf") != 0)
            continue;
        if (!restore_map_path(restore, file, ret, size))
            (void)snprintf(ret, size, "%s", file);
        return access(ret, F_OK) == 0;
    }
    return false;
}

const char *const *restore_start_options(const struct restore *restore, struct start_options *ret)
{
    char path[CONF_PATH_MAX + 1];
    if (!pg_uses_pg_ctl(&restore->conf) || !config_outside(restore, path, sizeof(path)))
        return NULL;
    (void)snprintf(ret->text[0], sizeof(ret->text[0]), "config_file=%s", path);
    (void)snprintf(ret->text[1], sizeof(ret->text[1]), "data_directory=%s",
                   restore->data_directory);
    ret->extra[0] = ret->text[0];
    ret->extra[1] = ret->text[1];
    ret->extra[2] = NULL;
    return ret->extra;
}

/* PostgreSQL prints one setting a process, 50 ms each: see restore_read_settings(). */
static char *run_postgres(struct restore *restore, const char *name)
{
    char path[CONF_PATH_MAX + 1], option[CONF_PATH_MAX + 32];
    const char *argv[] = {"postgres", "-C", name, "-D", restore->data_directory, NULL, NULL, NULL};
    struct err ignored;
    char *text = NULL;
    if (config_outside(restore, path, sizeof(path))) {
        (void)snprintf(option, sizeof(option), "config_file=%s", path);
        argv[5] = "-c";
        argv[6] = option;
    }
    if (pg_run(&restore->conf, argv, &text, &ignored) < 0)
        return NULL;
    text[strcspn(text, "\n")] = '\0';
    return text;
}

static struct restore_setting *find_setting(struct restore *restore, const char *name)
{
    for (size_t i = 0; i < restore->setting_count; i++)
        if (strcmp(restore->settings[i].name, name) == 0)
            return &restore->settings[i];
    return NULL;
}

void restore_forget_settings(struct restore *restore)
{
    for (size_t i = 0; i < restore->setting_count; i++)
        free(restore->settings[i].value);
    restore->setting_count = 0;
}

struct reading {
    pthread_t thread;
    struct restore *restore;
    struct restore_setting setting;
};

static void *read_setting(void *ctx)
{
    struct reading *reading = ctx;
    reading->setting.value = run_postgres(reading->restore, reading->setting.name);
    return NULL;
}

static void keep_setting(struct restore *restore, struct restore_setting *setting)
{
    if (restore->setting_count == ARRAY_LEN(restore->settings))
        free(setting->value); /* read again by who asks */
    else
        restore->settings[restore->setting_count++] = *setting;
}

void restore_read_settings(struct restore *restore, const char *const *names)
{
    struct reading readings[ARRAY_LEN(restore->settings)];
    size_t count = 0;
    for (size_t i = 0; names[i] && count < ARRAY_LEN(readings); i++) {
        if (find_setting(restore, names[i]))
            continue;
        readings[count] = (struct reading){.restore = restore, .setting.name = names[i]};
        if (pthread_create(&readings[count].thread, NULL, read_setting, &readings[count]) == 0)
            count++;
    }
    for (size_t i = 0; i < count; i++) {
        (void)pthread_join(readings[i].thread, NULL);
        keep_setting(restore, &readings[i].setting);
    }
}

const char *restore_setting(struct restore *restore, const char *name)
{
    const char *const names[] = {name, NULL};
    restore_read_settings(restore, names);
    const struct restore_setting *setting = find_setting(restore, name);
    return setting ? setting->value : NULL;
}

/* --- paths ------------------------------------------------------------------------------------ */

static bool is_inside(const struct restore *restore, const char *path)
{
    for (size_t i = 0; i < restore->volume_count; i++) {
        char mount_point[PATH_MAX];
        const char *here = restore->volumes[i].mount_point;
        if (path_inside(path, realpath(here, mount_point) ? mount_point : here))
            return true;
    }
    return false;
}

static int refuse(const char *what, const char *path, const char *to, struct err *err)
{
    (void)err_set(err, ERR_REFUSED, "%s '%s' leads outside the restored volumes, to '%s'", what,
                  path, to);
    return err_hint(err, "the server is not started: it would work on files of another one");
}

static int check_path(const struct restore *restore, const char *what, const char *path,
                      struct err *err)
{
    char resolved[PATH_MAX];
    path_resolve(path, resolved);
    return is_inside(restore, resolved) ? 0 : refuse(what, path, resolved, err);
}

/* Every entry below the data directory's `name`, "" for itself. */
static int each_entry(const struct restore *restore, const char *name,
                      int (*each)(const struct restore *, const char *path, const char *name,
                                  struct err *err),
                      struct err *err)
{
    char directory[CONF_PATH_MAX + 32], path[CONF_PATH_MAX + 288];
    (void)snprintf(directory, sizeof(directory), "%s%s", restore->data_directory, name);
    DIR *dir = opendir(directory);
    if (!dir)
        return err_sys(err, ERR_CORRUPT, "open '%s'", directory);
    int rc = 0;
    for (struct dirent *entry; rc == 0 && (entry = readdir(dir));) {
        if (entry->d_name[0] == '.')
            continue;
        (void)snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name);
        rc = each(restore, path, entry->d_name, err);
    }
    (void)closedir(dir);
    return rc;
}

/* pg_wal may be a link to its recorded place, which is not yet the one here. */
static int check_directory(const struct restore *restore, const char *path, const char *name,
                           struct err *err)
{
    struct stat st;
    if (strcmp(name, "pg_wal") == 0 || stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
        return 0;
    return check_path(restore, "directory", path, err);
}

int restore_check_directories(const struct restore *restore, struct err *err)
{
    int rc = check_path(restore, "data directory", restore->data_directory, err);
    return rc < 0 ? rc : each_entry(restore, "", check_directory, err);
}

static int check_tablespace(const struct restore *restore, const char *path, const char *name,
                            struct err *err)
{
    (void)name;
    return check_path(restore, "tablespace link", path, err);
}

int restore_check_links(const struct restore *restore, struct err *err)
{
    char path[CONF_PATH_MAX + 16];
    (void)snprintf(path, sizeof(path), "%s/pg_wal", restore->data_directory);
    int rc = check_path(restore, "pg_wal", path, err);
    if (rc == 0)
        rc = each_entry(restore, "/pg_tblspc", check_tablespace, err);
    for (size_t i = 0; rc == 0 && i < restore->record.tablespace_count; i++) {
        char here[CONF_PATH_MAX + 1];
        if (restore_map_path(restore, restore->record.tablespaces[i].location, here, sizeof(here)))
            rc = check_path(restore, "tablespace", here, err);
    }
    return rc;
}

/* --- files that the server writes ------------------------------------------------------------- */

/* A place where servers meet, and nobody lives behind this name. */
static bool is_shared_place(const char *path)
{
    static const char *const places[] = {"/run", "/var/run", "/var/log"};
    bool shared = false;
    for (size_t i = 0; i < ARRAY_LEN(places); i++)
        shared |= path_inside(path, places[i]);
    int pid = 0;
    FILE *file = shared ? fopen(path, "re") : NULL;
    if (!file)
        return shared;
    bool numbered = fscanf(file, "%d", &pid) == 1;
    (void)fclose(file);
    return !numbered || pid <= 0 || !process_alive(pid);
}

/* The settings come from this node's own files, which the restore did not bring. */
static bool is_own_config(const struct restore *restore)
{
    char path[CONF_PATH_MAX + 1];
    return !restore->request.config_image && config_outside(restore, path, sizeof(path)) &&
           !is_inside(restore, path);
}

static int check_setting(struct restore *restore, const char *name, struct err *err)
{
    const char *value = restore_setting(restore, name);
    if (!value || !value[0])
        return 0;
    char path[2 * CONF_PATH_MAX];
    if (value[0] == '/')
        (void)snprintf(path, sizeof(path), "%s", value);
    else
        (void)snprintf(path, sizeof(path), "%s/%s", restore->data_directory, value);
    char resolved[PATH_MAX];
    path_resolve(path, resolved);
    if (is_inside(restore, resolved) || is_shared_place(resolved) || is_own_config(restore))
        return 0;
    return refuse(name, value, resolved, err);
}

int restore_check_written_paths(struct restore *restore, struct err *err)
{
    /* The last one is not checked: the start will ask for it. */
    static const char *const names[] = {"external_pid_file", "log_directory",
                                        "stats_temp_directory", "unix_socket_directories", NULL};
    int rc = 0;
    restore_read_settings(restore, names);
    for (size_t i = 0; rc == 0 && i < 3; i++)
        rc = check_setting(restore, names[i], err);
    return rc;
}

int restore_check_isolation(struct restore *restore, struct err *err)
{
    int rc = restore_check_directories(restore, err);
    if (rc == 0)
        rc = restore_check_links(restore, err);
    if (rc == 0)
        rc = restore_check_written_paths(restore, err);
    if (rc < 0)
        log_error("isolation: %s", err->text);
    return rc;
}
