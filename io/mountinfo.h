/* /proc/self/mountinfo (proc_pid_mountinfo(5)): what is mounted in this mount namespace. Pure
 * parsing plus one reader; any thread. */
#ifndef TIDEMARK_IO_MOUNTINFO_H
#define TIDEMARK_IO_MOUNTINFO_H

#include "io/err.h"

enum { MOUNT_PATH_MAX = 1023 };

struct mount_entry {
    unsigned major, minor;         /* st_dev of its files; 0:x for btrfs and virtual ones */
    char root[MOUNT_PATH_MAX + 1]; /* "/" unless a bind mount shows only a part */
    char mount_point[MOUNT_PATH_MAX + 1];
    char source[MOUNT_PATH_MAX + 1]; /* as given to mount(2): a hint, the device may be renamed */
    char fs_type[64];
    char options[512];       /* per mount: rw,relatime,… */
    char super_options[512]; /* per filesystem: rw,data=ordered,… */
    bool read_only;          /* either of the two says ro */
};

/* Parses one line without its newline; octal escapes (\040 …) are undone. False when malformed or
 * when a field is longer than its array. */
bool mount_entry_parse(const char *line, struct mount_entry *ret);

/* Calls each() for every entry, oldest mount first, until it returns non-zero, which is then
 * returned; malformed lines are skipped. ERR_DEVICE when the file cannot be read. */
int mount_each(int (*each)(void *ctx, const struct mount_entry *entry), void *ctx, struct err *err);

/* Path of the block device with this number (/dev/loop3): from the kernel's own name of it, else
 * from `hint` (a mount's source; may be NULL). ERR_DEVICE when neither node is that device. */
int device_node_path(unsigned dev_major, unsigned dev_minor, const char *hint, char *ret,
                     size_t ret_len, struct err *err);

/* Copies the first blank-separated field of a line of /proc/mounts, mountinfo or swaps with its
 * octal escapes undone; returns where it ends, NULL when there is none or it does not fit. */
const char *proc_field(const char *from, char *ret, size_t ret_len);

/* True when the comma-separated list holds the option: "dax" finds "dax" and "dax=always". */
bool mount_has_option(const char *options, const char *name);

#endif
