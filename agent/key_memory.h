/* What this host remembers of encrypted repositories: the highest generation of the key ring that
 * it has seen, in <state_dir>/keyring-<repository>.json. A key ring says itself which generation it
 * is and cannot be forged, but who can write to the store can put an older one back, which was good
 * then; only somebody outside the store can know. One thread. */
#ifndef TIDEMARK_AGENT_KEY_MEMORY_H
#define TIDEMARK_AGENT_KEY_MEMORY_H

#include "agent/conf.h"
#include "io/keyring.h"

/* The store has its keys. When they are of an older generation than was seen before they are read
 * once more; ERR_REFUSED when they still are, else this one is remembered. Without a state_dir
 * nothing is, and that is no error. */
int key_memory_check(const struct conf *conf, const struct repo *repo, struct store *store,
                     struct err *err);

#endif
