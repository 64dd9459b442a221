/* What time it is where the files of a file:// repository lie. See store_file.h. */
#include <sys/stat.h>

#include "io/file.h"
#include "io/store_file.h"

/* A server of files gives them its own time. */
int store_file_clock(struct store *store, int64_t *ret_ms, struct err *err)
{
    struct store_file *file = CONTAINER_OF(store, struct store_file, store);
    struct store_file_temp temp;
    struct stat st;
    int rc = store_file_put_dir(file, "", err);
    if (rc == 0)
        rc = store_file_temp_open(file, file->dir_fd, 0, &temp, NULL, err);
    if (rc < 0)
        return rc;
    if (write_all(temp.fd, "\n", 1) < 0 || fsync(temp.fd) < 0 || fstat(temp.fd, &st) < 0)
        rc = store_file_error(file, "write a file in", "/", err);
    else
        *ret_ms = (int64_t)st.st_mtim.tv_sec * 1000 + st.st_mtim.tv_nsec / 1000000;
    store_file_temp_close(file, &temp);
    return rc;
}
