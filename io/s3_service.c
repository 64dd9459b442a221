/* URL, endpoint and options of an s3:// repository, checked once: see s3_service.h. */
#include "io/s3_service.h"

#include <stdio.h>
#include <sys/random.h>

#include "io/secret.h"
#include "io/store_ops.h"

enum {
    CONNECTIONS_DEFAULT = 32,
    RETRY_TIMEOUT_DEFAULT_MS = 120000,
    STALL_TIMEOUT_DEFAULT_MS = 30000,
    STALL_TIMEOUT_MIN_MS = 1000,
};

static const char letters_and_digits[] =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

static bool is_set(const char *text)
{
    return text != NULL && text[0] != '\0';
}

/* Letters, digits and what `more` lists. */
static bool consists_of(const char *text, size_t len, const char *more)
{
    for (size_t i = 0; i < len; i++)
        if (strchr(letters_and_digits, text[i]) == NULL && strchr(more, text[i]) == NULL)
            return false;
    return true;
}

/* Visible ASCII: what may stand in a header. */
static bool is_visible(const char *text, size_t len_max)
{
    size_t len = strlen(text);
    for (size_t i = 0; i < len; i++)
        if (text[i] <= ' ' || text[i] > '~')
            return false;
    return len > 0 && len <= len_max;
}

static int parse_address(struct s3_service *service, const char *address, struct err *err)
{
    size_t len = strcspn(address, "/");
    const char *prefix = address[len] == '/' ? address + len + 1 : "";
    size_t prefix_len = strlen(prefix);
    if (prefix_len > 0 && prefix[prefix_len - 1] == '/')
        prefix_len--;
    if (len < 3 || len > S3_BUCKET_MAX || !consists_of(address, len, ".-_") ||
        strchr(letters_and_digits, address[0]) == NULL) {
        if (strchr(address, '@')) /* not shown: what stands before it may be a secret */
            (void)err_set(err, ERR_CONFIG, "the URL holds an '@': credentials do not go there");
        else
            (void)err_set(err, ERR_CONFIG, "'%.80s' does not begin with the name of a bucket",
                          address);
        return err_hint(err, "write s3://bucket/prefix; the server goes into `endpoint`, keys into "
                             "`credentials_file`");
    }
    memcpy(service->bucket, address, len);
    if (prefix_len == 0)
        return 0;
    if (prefix_len <= S3_PREFIX_MAX)
        memcpy(service->prefix, prefix, prefix_len);
    if (prefix_len > S3_PREFIX_MAX || !store_name_valid(service->prefix)) {
        (void)err_set(err, ERR_CONFIG, "'%.80s' is not a prefix for objects", prefix);
        return err_hint(err, "directories of A-Z a-z 0-9 . _ -, at most %d bytes", S3_PREFIX_MAX);
    }
    service->prefix[prefix_len] = '/';
    return 0;
}

static int bad_endpoint(const char *endpoint, struct err *err)
{
    if (strchr(endpoint, '@'))
        (void)err_set(err, ERR_CONFIG, "the endpoint holds an '@': credentials do not go there");
    else
        (void)err_set(err, ERR_CONFIG, "endpoint '%.200s' is malformed", endpoint);
    return err_hint(err, "write https://host or http://host:port, without a path");
}

static int parse_endpoint(struct s3_service *service, const char *endpoint, struct err *err)
{
    static const char aws[] = ".amazonaws.com";
    if (!is_set(endpoint)) {
        service->tls = service->is_aws = service->is_derived = true;
        (void)snprintf(service->host, sizeof(service->host), "s3.%s.amazonaws.com",
                       service->region);
        return 0;
    }
    service->tls = strncmp(endpoint, "https://", 8) == 0;
    if (!service->tls && strncmp(endpoint, "http://", 7) != 0)
        return bad_endpoint(endpoint, err);
    const char *host = endpoint + (service->tls ? 8 : 7);
    size_t len = strlen(host);
    if (len > 0 && host[len - 1] == '/')
        len--;
    if (len == 0 || len > S3_HOST_MAX || !consists_of(host, len, ".-:[]"))
        return bad_endpoint(endpoint, err);
    memcpy(service->host, host, len);
    size_t name_len = strcspn(service->host, ":");
    service->is_aws = name_len > strlen(aws) &&
                      strncmp(service->host + name_len - strlen(aws), aws, strlen(aws)) == 0;
    return 0;
}

static int choose_addressing(struct s3_service *service, enum store_s3_addressing wanted,
                             struct err *err)
{
    service->addressing = wanted;
    if (wanted == STORE_S3_AUTO) /* a dot does not match the certificate's wildcard */
        service->addressing = service->is_aws && strchr(service->bucket, '.') == NULL
                                  ? STORE_S3_VIRTUAL
                                  : STORE_S3_PATH;
    if (service->addressing == STORE_S3_VIRTUAL && strspn(service->host, "0123456789.:[]") > 0 &&
        service->host[strspn(service->host, "0123456789.:[]")] == '\0') {
        (void)err_set(err, ERR_CONFIG, "addressing = virtual needs a host name, not %s",
                      service->host);
        return err_hint(err, "name the endpoint's host, or set addressing = path");
    }
    return 0;
}

static int take_credentials(struct s3_service *service, const struct store_s3_options *options,
                            struct err *err)
{
    if (!is_set(options->access_key) || !is_set(options->secret_key)) {
        (void)err_set(err, ERR_AUTH, "there are no credentials for s3://%s", service->bucket);
        return err_hint(err, "set credentials_file, or AWS_ACCESS_KEY_ID and "
                             "AWS_SECRET_ACCESS_KEY in the environment");
    }
    /* '/' and ',' end the key's id in the Authorization header. */
    if (!is_visible(options->access_key, S3_KEY_ID_MAX) ||
        strpbrk(options->access_key, "/,") != NULL)
        return err_set(err, ERR_AUTH, "the access key is malformed");
    if (!is_visible(options->secret_key, S3_SECRET_MAX))
        return err_set(err, ERR_AUTH, "the secret key is malformed");
    if (is_set(options->session_token) && !is_visible(options->session_token, S3_SESSION_MAX))
        return err_set(err, ERR_AUTH, "the session token is malformed");
    (void)snprintf(service->access_key, sizeof(service->access_key), "%s", options->access_key);
    (void)snprintf(service->secret_key, sizeof(service->secret_key), "%s", options->secret_key);
    (void)snprintf(service->session_token, sizeof(service->session_token), "%s",
                   is_set(options->session_token) ? options->session_token : "");
    return 0;
}

static int take_limits(struct s3_service *service, const struct store_s3_options *options,
                       struct err *err)
{
    service->connections = options->connections ? options->connections : CONNECTIONS_DEFAULT;
    service->retry_timeout_ms =
        options->retry_timeout_ms ? options->retry_timeout_ms : RETRY_TIMEOUT_DEFAULT_MS;
    service->stall_timeout_ms =
        options->stall_timeout_ms ? options->stall_timeout_ms : STALL_TIMEOUT_DEFAULT_MS;
    /* A stalled try must leave time for another one. */
    if (service->stall_timeout_ms > service->retry_timeout_ms / 2)
        service->stall_timeout_ms = service->retry_timeout_ms / 2;
    if (service->stall_timeout_ms < STALL_TIMEOUT_MIN_MS)
        service->stall_timeout_ms = STALL_TIMEOUT_MIN_MS;
    if (options->lock_s > 0 && options->lock_mode != STORE_LOCK_NONE) {
        service->lock_mode = options->lock_mode;
        service->lock_s = options->lock_s;
    }
    service->seed = options->seed;
    if (service->seed == 0 && getrandom(&service->seed, sizeof(service->seed), 0) < 0)
        return err_sys(err, ERR_INTERNAL, "random seed");
    return 0;
}

static int fill(struct s3_service *service, const char *address,
                const struct store_s3_options *options, struct err *err)
{
    const char *region = is_set(options->region) ? options->region : "us-east-1";
    if (strlen(region) > S3_REGION_MAX || !consists_of(region, strlen(region), "-_."))
        return err_set(err, ERR_CONFIG, "'%.80s' is not a region", region);
    (void)snprintf(service->region, sizeof(service->region), "%s", region);
    if (is_set(options->ca_file) && strlen(options->ca_file) >= sizeof(service->ca_file))
        return err_set(err, ERR_CONFIG, "the path of ca_file is too long");
    (void)snprintf(service->ca_file, sizeof(service->ca_file), "%s",
                   is_set(options->ca_file) ? options->ca_file : "");
    int rc = parse_address(service, address, err);
    if (rc == 0)
        rc = parse_endpoint(service, options->endpoint, err);
    if (rc == 0)
        rc = choose_addressing(service, options->addressing, err);
    if (rc == 0)
        rc = take_limits(service, options, err);
    return rc == 0 ? take_credentials(service, options, err) : rc;
}

int s3_service_open(const char *address, const struct store_s3_options *options,
                    struct s3_service **ret, struct err *err)
{
    static const struct store_s3_options none;
    void *memory;
    int rc = secret_alloc(sizeof(struct s3_service), &memory, err);
    if (rc < 0)
        return rc;
    rc = fill(memory, address, options ? options : &none, err);
    if (rc < 0)
        s3_service_close(memory);
    else
        *ret = memory;
    return rc;
}

int s3_service_copy(const struct s3_service *from, struct s3_service **ret, struct err *err)
{
    void *memory;
    int rc = secret_alloc(sizeof(*from), &memory, err);
    if (rc < 0)
        return rc;
    memcpy(memory, from, sizeof(*from));
    *ret = memory;
    return 0;
}

void s3_service_close(struct s3_service *service)
{
    secret_free(service, sizeof(*service));
}

static const char *bucket_in_host(const struct s3_service *service)
{
    return service->addressing == STORE_S3_VIRTUAL ? service->bucket : "";
}

void s3_service_origin(const struct s3_service *service, char ret[S3_ORIGIN_MAX])
{
    const char *bucket = bucket_in_host(service);
    (void)snprintf(ret, S3_ORIGIN_MAX, "%s://%s%s%s", service->tls ? "https" : "http", bucket,
                   bucket[0] ? "." : "", service->host);
}

void s3_service_host(const struct s3_service *service, char ret[S3_ORIGIN_MAX])
{
    const char *bucket = bucket_in_host(service);
    (void)snprintf(ret, S3_ORIGIN_MAX, "%s%s%s", bucket, bucket[0] ? "." : "", service->host);
}

void s3_service_text(const struct s3_service *service, char *ret, size_t size)
{
    (void)snprintf(ret, size, "s3://%s/%s at %s://%s", service->bucket, service->prefix,
                   service->tls ? "https" : "http", service->host);
}
