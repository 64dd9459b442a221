/* Ages and the removal of objects of a directory store, see store_file.h. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "io/store_file.h"

enum { SNAPSHOT_DIR_LEN = 32 };

static struct store_file *of(struct store *store)
{
    return CONTAINER_OF(store, struct store_file, store);
}

int store_file_modified(struct store *store, const char *name, int64_t *ret_s, struct err *err)
{
    struct stat st;
    close_fd int fd = -1;
    int rc = store_file_open_object(of(store), name, 0, &fd, &st, err);
    if (rc == 0)
        *ret_s = st.st_mtime;
    return rc;
}

/* What one snapshot wrote lies in a directory of its own, "pack/<volume>/<snapshot>": it goes with
 * the last object, because nobody writes there again. Others stay: somebody may be about to. */
static void remove_own_dir(struct store_file *file, const char *dir)
{
    char parent[STORE_NAME_MAX + 1];
    const char *base = store_file_split(dir, parent);
    if (strchr(parent, '/') == NULL || strlen(base) != SNAPSHOT_DIR_LEN ||
        strspn(base, "0123456789abcdef") != SNAPSHOT_DIR_LEN)
        return;
    close_fd int fd = store_file_open_beneath(file->root_fd, parent, O_RDONLY | O_DIRECTORY);
    if (fd >= 0)
        (void)unlinkat(fd, base, AT_REMOVEDIR); /* not empty: stays */
}

int store_file_remove(struct store *store, const char *name, struct err *err)
{
    struct store_file *file = of(store);
    char dir[STORE_NAME_MAX + 1];
    const char *base = store_file_split(name, dir);
    close_fd int dir_fd =
        store_file_open_beneath(file->root_fd, dir[0] ? dir : ".", O_RDONLY | O_DIRECTORY);
    if (dir_fd >= 0 && unlinkat(dir_fd, base, 0) == 0) {
        remove_own_dir(file, dir);
        return 0;
    }
    return errno == ENOENT ? 0 : store_file_error(file, "remove object", name, err);
}
