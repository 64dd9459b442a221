/* Private to io/store_file*.c and io/store_lane.c: the parts of the directory store that its
 * client mode and its lane mode share.
 *
 * Durability of a put, in this order: data → fsync(file) → link(2), which never replaces → fsync of
 * the directory and, once a directory, of all its ancestors (who made one may have died before its
 * parent was flushed). Every name that can be seen therefore has its whole content; that it
 * stays is sure after a put of one's own, or store_flush_name(). */
#ifndef TIDEMARK_IO_STORE_FILE_H
#define TIDEMARK_IO_STORE_FILE_H

#include <sys/stat.h>

#include "io/store_ops.h"

/* Directories are setgid: what is made in them inherits the group, which the server's user is in.
 * It reads everything, and writes where it has to: wal/, reading/ (a verification of its own) and
 * tmp/. In the last two, which it shares with root, it removes only what it has put (the sticky
 * bit). Nobody can remove or rename what lies in a directory that he may not write to. */
enum {
    STORE_FILE_DIR_MODE = 02750,
    STORE_FILE_WAL_DIR_MODE = 02770,
    STORE_FILE_SHARED_DIR_MODE = 03770,
    STORE_FILE_OBJECT_MODE = 0440,
};

struct store_file {
    struct store store;
    int root_fd;
    int64_t group_id;
    /* Directory that the last put went to, open and with durable ancestors; -1 = none. */
    int dir_fd;
    char dir[STORE_NAME_MAX + 1];
    bool no_tmpfile; /* the filesystem has no O_TMPFILE (NFS): named temporaries under tmp/ */
    bool swept;      /* old ones were removed */
};

/* An object that is being written: nameless (O_TMPFILE), or tmp/<random>. Of the latter a writer
 * that dies leaves one behind, which a later writer removes after a day. */
struct store_file_temp {
    int fd;
    char name[48]; /* "" when nameless */
};

/* "a/b/c" → dir "a/b", returns "c". dir has STORE_NAME_MAX + 1 bytes. */
const char *store_file_split(const char *name, char *dir);

/* openat(2) that cannot leave the root and follows no link at any level (openat2(2), 5.6). */
int store_file_open_beneath(int dir_fd, const char *path, int flags);

/* Opens dir ("" = root), making what is missing and flushing the way down to it. The caller closes
 * *ret_fd. */
int store_file_open_dir(struct store_file *file, const char *dir, int *ret_fd, struct err *err);

/* Makes file->dir_fd the directory dir: puts in one directory follow one another. */
int store_file_put_dir(struct store_file *file, const char *dir, struct err *err);

/* A new temporary with mode and group of an object. flags: 0 or O_DIRECT (falls back to 0 where
 * the filesystem has none; *ret_direct says which). */
int store_file_temp_open(struct store_file *file, int dir_fd, int flags,
                         struct store_file_temp *ret, bool *ret_direct, struct err *err);

/* Gives the flushed temporary its name. 0, STORE_EXISTS or an error. Does not flush dir_fd. */
int store_file_temp_link(struct store_file *file, struct store_file_temp *temp, int dir_fd,
                         const char *base, const char *name, struct err *err);

/* Closes and forgets the temporary, whether it was linked or not. */
void store_file_temp_close(struct store_file *file, struct store_file_temp *temp);

/* Opens an object for reading without following links. ERR_MISSING only when absence is
 * confirmed: an unmounted NFS is an empty directory, not an empty repository. Nobody writes to
 * an object: what *ret_stat says stays true. */
int store_file_open_object(struct store_file *file, const char *name, int flags, int *ret_fd,
                           struct stat *ret_stat, struct err *err);

/* After ENOENT: it means absence only where the repository itself can be seen. ERR_MISSING or
 * ERR_STORE. */
int store_file_missing(struct store_file *file, const char *name, struct err *err);

/* store_file_list.c */
int store_file_list(struct store *store, const char *prefix,
                    int (*each)(void *ctx, const char *name, uint64_t size, struct err *err),
                    void *ctx, struct err *err);

/* store_clock(), in a file of its own (store_file_clock.c). */
int store_file_clock(struct store *store, int64_t *ret_ms, struct err *err);

/* store_file_remove.c */
int store_file_modified(struct store *store, const char *name, int64_t *ret_s, struct err *err);
int store_file_remove(struct store *store, const char *name, struct err *err);

/* Lane mode (store_file_lane.c). */
int store_file_lane_open(struct store *store, struct ring *ring, unsigned lane_index,
                         unsigned lane_count, unsigned request_count, struct store_lane **ret,
                         struct err *err);
void store_file_lane_close(struct store_lane *lane);
void store_file_lane_put(struct store_lane *lane, struct store_request *request);
void store_file_lane_get(struct store_lane *lane, struct store_request *request);

/* ERR_STORE with errno's text; says that the repository is full when it is. */
int store_file_error(struct store_file *file, const char *what, const char *name, struct err *err);

#endif
