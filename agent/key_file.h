/* Key files of encrypted repositories (io/keyring.h): reading, making, and opening a repository
 * with them. The one of [repository] belongs to root alone; the one of [wal], derived from it, may
 * be read by the group of the server's user and opens wal/ only. A process that has read one makes
 * no core dumps any more. Lean. One thread. */
#ifndef TIDEMARK_AGENT_KEY_FILE_H
#define TIDEMARK_AGENT_KEY_FILE_H

#include "agent/repository_access.h"
#include "io/keyring.h"

/* ERR_AUTH when it cannot be read, may be read by others, is malformed, or holds the other kind.
 * The caller overwrites *ret. */
int key_file_load(const char *path, enum fmt_role role, struct key_secret *ret, struct err *err);

/* Makes a file that must not be there: mode 0600, or 0640 with this group (-1 = none). ERR_REFUSED
 * when it is there. */
int key_file_make(const char *path, const struct key_secret *secret, int64_t group_id,
                  struct err *err);

/* After repo_open(): gives the store the keys of an encrypted repository, from the key file of this
 * user. ERR_AUTH without one, or with another's; ERR_REFUSED when a key file is configured and the
 * repository is plain: somebody may have put it there to read what is written next. */
int key_file_unlock(const struct conf *conf, enum repository_user user, struct store *store,
                    const struct repo *repo, struct err *err);

#endif
