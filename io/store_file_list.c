/* The list of a directory store: a sorted walk. See store_file.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "io/store_file.h"

struct walk {
    struct store_file *file;
    int (*each)(void *ctx, const char *name, uint64_t size, struct err *err);
    void *ctx;
    char name[STORE_NAME_MAX + 1]; /* prefix of the directory at hand, with its '/' */
};

struct walk_entries {
    char **names; /* directories end with '/': that makes the order of whole names */
    size_t count, capacity;
};

static void entries_release(struct walk_entries *entries)
{
    for (size_t i = 0; i < entries->count; i++)
        free(entries->names[i]);
    free(entries->names);
}

static int entries_add(struct walk_entries *entries, const char *name, bool is_dir, struct err *err)
{
    if (entries->count == entries->capacity) {
        size_t capacity = entries->capacity ? entries->capacity * 2 : 64;
        char **names = reallocarray(entries->names, capacity, sizeof(*names));
        if (names == NULL)
            return err_set(err, ERR_INTERNAL, "out of memory while listing the repository");
        entries->names = names;
        entries->capacity = capacity;
    }
    char *copy;
    if (asprintf(&copy, "%s%s", name, is_dir ? "/" : "") < 0)
        return err_set(err, ERR_INTERNAL, "out of memory while listing the repository");
    entries->names[entries->count++] = copy;
    return 0;
}

static int compare_names(const void *a, const void *b)
{
    const char *const *left = a, *const *right = b;
    return strcmp(*left, *right);
}

/* Strangers' names (lost+found), our temporaries and what NFS keeps of removed files. */
static bool is_foreign(const struct walk *walk, const char *name)
{
    return !store_name_valid(name) || strncmp(name, ".nfs", 4) == 0 ||
           (walk->name[0] == '\0' && strcmp(name, "tmp") == 0);
}

static int read_entries(struct walk *walk, DIR *dir, struct walk_entries *entries, struct err *err)
{
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL)
            return errno == 0 ? 0 : store_file_error(walk->file, "list directory", walk->name, err);
        if (is_foreign(walk, entry->d_name))
            continue;
        struct stat st;
        if (fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
            if (errno == ENOENT)
                continue; /* removed since */
            return store_file_error(walk->file, "stat", entry->d_name, err);
        }
        if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
            continue;
        int rc = entries_add(entries, entry->d_name, S_ISDIR(st.st_mode), err);
        if (rc < 0)
            return rc;
    }
}

static int walk_dir(struct walk *walk, int dir_fd, struct err *err);

static int walk_entry(struct walk *walk, int dir_fd, const char *name, struct err *err)
{
    size_t prefix_len = strlen(walk->name), len = strlen(name);
    if (prefix_len + len > STORE_NAME_MAX)
        return 0; /* no object of ours has such a name */
    memcpy(walk->name + prefix_len, name, len + 1);
    int rc = 0;
    struct stat st;
    if (name[len - 1] == '/') {
        int fd = store_file_open_beneath(dir_fd, name, O_RDONLY | O_DIRECTORY);
        if (fd >= 0)
            rc = walk_dir(walk, fd, err);
        else if (errno != ENOENT)
            rc = store_file_error(walk->file, "open directory", walk->name, err);
    } else if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        rc = walk->each(walk->ctx, walk->name, (uint64_t)st.st_size, err);
    } else if (errno != ENOENT) {
        rc = store_file_error(walk->file, "stat", walk->name, err);
    }
    walk->name[prefix_len] = '\0';
    return rc;
}

/* Takes dir_fd. Recursion is as deep as names have components. */
static int walk_dir(struct walk *walk, int dir_fd, struct err *err)
{
    DIR *dir = fdopendir(dir_fd);
    if (dir == NULL) {
        (void)close(dir_fd);
        return err_set(err, ERR_INTERNAL, "out of memory while listing the repository");
    }
    struct walk_entries entries = {0};
    int rc = read_entries(walk, dir, &entries, err);
    if (rc == 0 && entries.count > 0)
        qsort(entries.names, entries.count, sizeof(*entries.names), compare_names);
    for (size_t i = 0; rc == 0 && i < entries.count; i++)
        rc = walk_entry(walk, dirfd(dir), entries.names[i], err);
    entries_release(&entries);
    (void)closedir(dir);
    return rc;
}

int store_file_list(struct store *store, const char *prefix,
                    int (*each)(void *ctx, const char *name, uint64_t size, struct err *err),
                    void *ctx, struct err *err)
{
    struct walk walk = {
        .file = CONTAINER_OF(store, struct store_file, store), .each = each, .ctx = ctx};
    (void)snprintf(walk.name, sizeof(walk.name), "%s", prefix);
    int fd = store_file_open_beneath(walk.file->root_fd, prefix[0] ? prefix : ".",
                                     O_RDONLY | O_DIRECTORY);
    if (fd >= 0)
        return walk_dir(&walk, fd, err);
    if (errno != ENOENT)
        return store_file_error(walk.file, "open directory", prefix, err);
    int rc = store_file_missing(walk.file, prefix, err);
    return rc == -ERR_MISSING ? 0 : rc; /* a directory without objects does not exist */
}
