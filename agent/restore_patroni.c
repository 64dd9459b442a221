/* Is a Patroni in charge of the server? It would start the server in the middle of a restore,
 * promote a node that is not restored, or re-create this one from it. What counts is the process:
 * its configuration names the data directory, or, with manager = patroni, says nothing of one.
 *
 * Whether the server is a child of Patroni's says nothing: the postmaster is adopted by init. */
#include "agent/restore.h"
#include "io/file.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

enum { TEXT_MAX = 1 << 20, ARGS_MAX = 16 };

struct patroni {
    int pid;
    char config[CONF_PATH_MAX + 1]; /* "" = its environment alone */
};

/* A file of /proc or a configuration: its first MiB, NUL-ended; NULL when it cannot be read. */
static char *read_text(const char *path, size_t *ret_len)
{
    struct stat st;
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return NULL;
    free_mem char *text = malloc(TEXT_MAX + 1);
    if (!text || read_all(fd, text, TEXT_MAX, ret_len) < 0)
        return NULL;
    text[*ret_len] = '\0';
    return take_ptr(&text);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool is_program(const char *arg)
{
    const char *name = base_name(arg);
    return strcmp(name, "patroni") == 0 || strcmp(name, "patroni.py") == 0;
}

/* "patroni CONF", "python3 [-u] /usr/bin/patroni CONF", "python3 -m patroni CONF": the index of
 * CONF; 0 when it is none of them. */
static size_t config_index(char *const *args, size_t count)
{
    size_t i = 1;
    if (count > 0 && is_program(args[0]))
        return 1;
    if (count < 2 || strncmp(base_name(args[0]), "python", 6) != 0)
        return 0;
    while (i + 1 < count && args[i][0] == '-' && strcmp(args[i], "-m") != 0)
        i++;
    if (i + 1 < count && strcmp(args[i], "-m") == 0)
        i++;
    return is_program(args[i]) ? i + 1 : 0;
}

static size_t split_args(char *text, size_t len, char *ret[ARGS_MAX])
{
    size_t count = 0;
    for (char *at = text; at < text + len && count < ARGS_MAX; at += strlen(at) + 1)
        ret[count++] = at;
    return count;
}

/* "/srv/pg/data" in the text, and not as the beginning of "/srv/pg/data2". */
static bool names_directory(const char *text, size_t len, const char *directory)
{
    size_t size = strlen(directory);
    const char *end = text + len;
    for (const char *at = text; size && (at = memmem(at, (size_t)(end - at), directory, size));
         at++) {
        const char *after = at + size + (at[size] == '/');
        bool begins = at == text || !isalnum((unsigned char)at[-1]);
        if (begins && (*after == '\0' || strchr(" \t\r\n\"',}#", *after)))
            return true;
    }
    return false;
}

struct words {
    const char *directory;
    bool names_it, names_one; /* a data directory at all */
};

static void look(struct words *words, const char *path)
{
    size_t len = 0;
    free_mem char *text = read_text(path, &len);
    if (!text)
        return;
    words->names_it |= names_directory(text, len, words->directory);
    words->names_one |= memmem(text, len, "data_dir", 8) || memmem(text, len, "DATA_DIR", 8);
}

/* Patroni takes a file, or a directory of them. */
static void look_into(struct words *words, const char *path)
{
    char file[2 * CONF_PATH_MAX];
    DIR *dir = opendir(path);
    look(words, path);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        (void)snprintf(file, sizeof(file), "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.')
            look(words, file);
    }
    if (dir)
        (void)closedir(dir);
}

/* Its paths are those of its own root and working directory: it may live in a container. */
static bool is_in_charge(const struct restore *restore, int pid, struct patroni *ret)
{
    char path[2 * CONF_PATH_MAX], *args[ARGS_MAX];
    struct words words = {.directory = restore->data_directory};
    size_t len = 0;
    (void)snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
    free_mem char *text = read_text(path, &len);
    size_t count = text ? split_args(text, len, args) : 0, first = config_index(args, count);
    if (first == 0)
        return false;
    (void)snprintf(path, sizeof(path), "/proc/%d/environ", pid);
    look(&words, path);
    ret->pid = pid;
    ret->config[0] = '\0';
    for (size_t i = first; i < count; i++) {
        (void)snprintf(path, sizeof(path), "/proc/%d/%s%s", pid,
                       args[i][0] == '/' ? "root" : "cwd/", args[i]);
        look_into(&words, path);
        (void)snprintf(ret->config, sizeof(ret->config), "%s", args[i]);
    }
    return words.names_it || (restore->conf.manager == MANAGER_PATRONI && !words.names_one);
}

static bool find_patroni(const struct restore *restore, struct patroni *ret)
{
    DIR *dir = opendir("/proc");
    bool found = false;
    for (struct dirent *entry; dir && !found && (entry = readdir(dir));)
        if (isdigit((unsigned char)entry->d_name[0]))
            found = is_in_charge(restore, (int)strtol(entry->d_name, NULL, 10), ret);
    if (dir)
        (void)closedir(dir);
    return found;
}

int restore_check_patroni(const struct restore *restore, struct err *err)
{
    struct patroni patroni;
    if (!find_patroni(restore, &patroni))
        return 0;
    (void)err_set(err, ERR_REFUSED,
                  "Patroni is in charge of '%s' (pid %d, %s): it would start, promote or re-create "
                  "servers while they are restored",
                  restore->data_directory, patroni.pid,
                  patroni.config[0] ? patroni.config : "no configuration file");
    return err_hint(err, "stop Patroni on all nodes; restore the node that is to lead; `patronictl "
                         "remove` the cluster from the DCS; start Patroni there, then on the "
                         "others with empty data directories. Or let Patroni bootstrap from the "
                         "snapshot (README, Patroni)");
}
