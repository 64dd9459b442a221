/* The repository of a configuration: its URL, and for file:// the group that owns its objects
 * (repository.group; by default tidemark-repo when there is such a group). Lean, as wal.h. One
 * thread. */
#ifndef TIDEMARK_AGENT_REPOSITORY_H
#define TIDEMARK_AGENT_REPOSITORY_H

#include "agent/conf.h"
#include "io/repo.h"

/* The store alone; create makes the directory; cancel as in struct store_options. ERR_CONFIG
 * without repository.url or for a group that does not exist. */
int repository_open_store(const struct conf *conf, bool create, const _Atomic bool *cancel,
                          struct store **ret, struct err *err);

/* Store, tidemark.repo and, of an encrypted repository, its keys (key_file.h); warns in the log
 * when only the copy is good. */
int repository_open(const struct conf *conf, const _Atomic bool *cancel, struct store **ret_store,
                    struct repo *ret_repo, struct err *err);

/* `tidemark init`: makes the directory and tidemark.repo with conf->chunk_size, and keys when it is
 * to be encrypted. ERR_REFUSED when there is a repository already, ERR_USAGE when encrypt and
 * key_file do not go together. */
int repository_init(const struct conf *conf, bool encrypt, struct repo *ret, struct err *err);

#endif
