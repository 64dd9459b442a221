/* Local files: whole writes and durable directory entries. Blocking; any thread. */
#ifndef TIDEMARK_IO_FILE_H
#define TIDEMARK_IO_FILE_H

#include "io/err.h"

/* write(2) until all len bytes are written. 0, or -1 with errno; never a short write. */
int write_all(int fd, const void *ptr, size_t len);

/* read(2) until buf is full or the file ends. 0, or -1 with errno. */
int read_all(int fd, void *buf, size_t capacity, size_t *ret_len);

/* Makes the entries of a directory durable: without it a power cut brings the old ones back. The
 * second takes the path of one of its entries. */
int sync_directory(const char *path, struct err *err);
int sync_parent(const char *path, struct err *err);

#endif
