/* Where absolute paths lead: what a snapshot allows and a restore accepts. Pure but for
 * path_resolve(), which looks at the filesystem. Any thread. */
#ifndef TIDEMARK_AGENT_PATH_H
#define TIDEMARK_AGENT_PATH_H

#include <limits.h>
#include <stdbool.h>

/* By the text alone: path is directory or lies below it. */
bool path_inside(const char *path, const char *directory);
/* By the text alone: absolute, not "/" itself, no empty, "." or ".." component. */
bool path_is_plain(const char *path);
/* Follows the links of what exists of an absolute path: "/a/link/new.log" → "/target/new.log". A
 * link to nothing is what its own text says. */
void path_resolve(const char *path, char ret[PATH_MAX]);

/* Directories of a data directory that a restore empties, NULL-ended. It follows no link there. */
extern const char *const path_emptied[];

#endif
