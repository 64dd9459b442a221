/* What a configuration says about opening its repository: options of store_open(), with the keys
 * for s3://. Lean. One thread. */
#ifndef TIDEMARK_AGENT_REPOSITORY_ACCESS_H
#define TIDEMARK_AGENT_REPOSITORY_ACCESS_H

#include "agent/conf.h"
#include "agent/credentials.h"
#include "io/store.h"

enum repository_user {
    REPOSITORY_JOBS, /* repository.credentials_file */
    REPOSITORY_WAL,  /* wal.credentials_file, else repository.credentials_file */
};

struct repository_access {
    struct store_options options; /* for store_open(); group_id -1 */
    struct store_s3_options s3;
    struct credentials *credentials;
};

/* Keys are read for s3:// only. ERR_AUTH as in credentials.h. The log hears of a store that does
 * not answer for some seconds, and of its return (store_options.notice). retry_timeout_ms bounds
 * the configured one; 0 = does not. */
int repository_access_load(const struct conf *conf, enum repository_user user,
                           unsigned retry_timeout_ms, struct repository_access *ret,
                           struct err *err);
/* After store_open(), which has copied what it needs. */
void repository_access_free(struct repository_access *access);

/* How long what is put is locked (lock_days), seconds; 0 = not. */
uint64_t repository_lock_s(const struct conf *conf);

/* The file with the keys of this user, "" when none is configured. */
const char *repository_credentials_file(const struct conf *conf, enum repository_user user);

/* True for a URL that needs keys. */
bool repository_needs_credentials(const struct conf *conf);

/* The directory of a file:// repository, NULL for others. Borrowed. */
const char *repository_directory(const struct conf *conf);

#endif
