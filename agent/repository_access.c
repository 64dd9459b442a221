/* From configuration to store options: see repository_access.h. */
#include "agent/repository_access.h"

#include "agent/log.h"

bool repository_needs_credentials(const struct conf *conf)
{
    return strncmp(conf->repository_url, "s3://", 5) == 0;
}

const char *repository_credentials_file(const struct conf *conf, enum repository_user user)
{
    if (user == REPOSITORY_WAL && conf->wal_credentials_file[0])
        return conf->wal_credentials_file;
    return conf->repository_credentials_file;
}

uint64_t repository_lock_s(const struct conf *conf)
{
    enum { DAY_S = 24 * 3600 };
    const char *shorter = getenv("TIDEMARK_TEST_LOCK_S"); /* tests see a lock end */
    uint64_t lock_s = (uint64_t)conf->repository_lock_days * DAY_S;
    return shorter ? min_u64(lock_s, strtoull(shorter, NULL, 10)) : lock_s;
}

static void log_notice(void *ctx, const struct store_notice *notice)
{
    (void)ctx;
    if (notice->failing)
        log_warn("the store does not answer as it should: %s; tried again for up to %llu s",
                 notice->why, (unsigned long long)div_round_up(notice->left_ms, 1000));
    else
        log_warn("the store answers again, after %llu s",
                 (unsigned long long)div_round_up(notice->since_ms, 1000));
}

int repository_access_load(const struct conf *conf, enum repository_user user,
                           unsigned retry_timeout_ms, struct repository_access *ret,
                           struct err *err)
{
    *ret = (struct repository_access){.options = {.group_id = -1, .notice = log_notice}};
    if (!repository_needs_credentials(conf))
        return 0;
    int rc = credentials_load(repository_credentials_file(conf, user), &ret->credentials, err);
    if (rc < 0)
        return rc;
    unsigned configured_ms = conf->repository_retry_timeout_s * 1000;
    ret->s3 = (struct store_s3_options){
        .endpoint = conf->repository_endpoint,
        .region = conf->repository_region,
        .addressing = conf->repository_addressing,
        .ca_file = conf->repository_ca_file,
        .access_key = ret->credentials->access_key,
        .secret_key = ret->credentials->secret_key,
        .session_token = ret->credentials->session_token,
        .connections = conf->repository_connections,
        .lock_mode = conf->repository_lock_mode == LOCK_GOVERNANCE ? STORE_LOCK_GOVERNANCE
                                                                   : STORE_LOCK_COMPLIANCE,
        .lock_s = repository_lock_s(conf),
        .retry_timeout_ms =
            retry_timeout_ms ? (unsigned)min_u64(retry_timeout_ms, configured_ms) : configured_ms,
    };
    ret->options.s3 = &ret->s3;
    return 0;
}

void repository_access_free(struct repository_access *access)
{
    credentials_free(access->credentials);
    access->credentials = NULL;
}

const char *repository_directory(const struct conf *conf)
{
    static const char scheme[] = "file://";
    size_t len = sizeof(scheme) - 1;
    return strncmp(conf->repository_url, scheme, len) == 0 ? conf->repository_url + len : NULL;
}
