/* synchronous_standby_names: whom commits wait for. Pure, any thread. */
#ifndef TIDEMARK_AGENT_SYNC_NAMES_H
#define TIDEMARK_AGENT_SYNC_NAMES_H

#include "io/base.h"

/* Reads setting as PostgreSQL does (syncrep_gram.y). *ret_wanted: for how many standbys a commit
 * waits; *ret_found: how many of the application names, one a standby, it names. False when it is
 * no such setting. */
bool sync_names_count(const char *setting, const char *const *applications, size_t count,
                      unsigned *ret_wanted, unsigned *ret_found);

#endif
