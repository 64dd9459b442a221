/* Reading keys: see credentials.h. Everything that held a value is overwritten. */
#include "agent/credentials.h"

#include <pwd.h>
#include <stdio.h>
#include <sys/prctl.h>

#include "agent/secret_file.h"
#include "io/secret.h"

enum { FILE_LEN_MAX = 64 << 10, PATH_LEN_MAX = 1200 };

/* --- one value ---------------------------------------------------------------------------------*/
/* The field of a key ("aws_secret_access_key"), NULL for any other. */
static char *field_of(struct credentials *credentials, const char *key, size_t len,
                      size_t *ret_size)
{
    const struct {
        const char *key;
        char *field;
        size_t size;
    } fields[] = {
        {"access_key", credentials->access_key, sizeof(credentials->access_key)},
        {"aws_access_key_id", credentials->access_key, sizeof(credentials->access_key)},
        {"secret_key", credentials->secret_key, sizeof(credentials->secret_key)},
        {"aws_secret_access_key", credentials->secret_key, sizeof(credentials->secret_key)},
        {"session_token", credentials->session_token, sizeof(credentials->session_token)},
        {"aws_session_token", credentials->session_token, sizeof(credentials->session_token)},
    };
    for (size_t i = 0; i < ARRAY_LEN(fields); i++)
        if (strlen(fields[i].key) == len && strncmp(fields[i].key, key, len) == 0) {
            *ret_size = fields[i].size;
            return fields[i].field;
        }
    return NULL;
}

/* --- files -------------------------------------------------------------------------------------*/
struct file {
    const char *path;
    const char *profile;
    unsigned line;
    bool in_section, in_profile;
};

static size_t trim(const char **text, size_t len)
{
    while (len > 0 && (**text == ' ' || **text == '\t')) {
        (*text)++;
        len--;
    }
    while (len > 0 && strchr(" \t\r", (*text)[len - 1]) != NULL)
        len--;
    return len;
}

static int bad_line(const struct file *file, const char *what, struct err *err)
{
    (void)err_set(err, ERR_AUTH, "%s:%u: %s", file->path, file->line, what);
    return err_hint(err, "lines are access_key = …, secret_key = … and session_token = …");
}

static int take_section(struct file *file, const char *line, size_t len, struct err *err)
{
    const char *name = line + 1;
    if (line[len - 1] != ']')
        return bad_line(file, "malformed [profile]", err);
    size_t name_len = trim(&name, len - 2);
    file->in_section = true;
    file->in_profile =
        strlen(file->profile) == name_len && strncmp(file->profile, name, name_len) == 0;
    return 0;
}

static int take_line(struct file *file, const char *line, size_t len, struct credentials *to,
                     struct err *err)
{
    size_t size;
    len = trim(&line, len);
    if (len == 0 || line[0] == '#' || line[0] == ';')
        return 0;
    if (line[0] == '[')
        return take_section(file, line, len, err);
    if (file->in_section && !file->in_profile)
        return 0;
    const char *equals = memchr(line, '=', len);
    if (equals == NULL)
        return bad_line(file, "not KEY = VALUE", err);
    const char *key = line, *value = equals + 1;
    size_t key_len = trim(&key, (size_t)(equals - line));
    size_t value_len = trim(&value, len - (size_t)(value - line));
    char *field = field_of(to, key, key_len, &size);
    if (field == NULL) /* profiles of AWS hold other things as well */
        return file->in_section ? 0 : bad_line(file, "unknown key", err);
    if (value_len == 0 || value_len >= size)
        return bad_line(file, "the value is empty or too long", err);
    memcpy(field, value, value_len);
    field[value_len] = '\0';
    return 0;
}

static int parse(struct file *file, const char *text, size_t len, struct credentials *to,
                 struct err *err)
{
    const char *end = text + len;
    int rc = 0;
    while (rc == 0 && text < end) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        const char *stop = newline ? newline : end;
        file->line++;
        rc = take_line(file, text, (size_t)(stop - text), to, err);
        text = stop + 1;
    }
    return rc;
}

static int load_file(const char *path, struct credentials *to, struct err *err)
{
    const char *profile = getenv("AWS_PROFILE");
    struct file file = {.path = path, .profile = profile && *profile ? profile : "default"};
    void *buf;
    size_t len = 0;
    int rc = secret_alloc(FILE_LEN_MAX + 1, &buf, err);
    if (rc < 0)
        return rc;
    rc = secret_file_read("credentials", path, SECRET_GROUP, buf, FILE_LEN_MAX + 1, &len, err);
    if (rc < 0 && err->hint[0] == '\0')
        (void)err_hint(err, "credentials_file has to name a file that this user can read: lines "
                            "access_key = … and secret_key = …, mode 0600 or root's 0640");
    if (rc == 0)
        rc = parse(&file, buf, len, to, err);
    secret_free(buf, FILE_LEN_MAX + 1);
    if (rc == 0 && (to->access_key[0] == '\0' || to->secret_key[0] == '\0')) {
        (void)err_set(err, ERR_AUTH, "credentials '%s' have no access_key and secret_key", path);
        return err_hint(err, "profile '%.80s' was looked for (AWS_PROFILE)", file.profile);
    }
    return rc;
}

/* --- the environment and AWS's own file --------------------------------------------------------*/
/* 1 when they are there. */
static int load_environment(const char *prefix, struct credentials *to, struct err *err)
{
    static const char *const names[] = {"ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"};
    char *fields[] = {to->access_key, to->secret_key, to->session_token};
    const size_t sizes[] = {sizeof(to->access_key), sizeof(to->secret_key),
                            sizeof(to->session_token)};
    char name[64];
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        (void)snprintf(name, sizeof(name), "%s_%s", prefix, names[i]);
        const char *value = getenv(name);
        if (value == NULL || *value == '\0')
            continue;
        if (strlen(value) >= sizes[i])
            return err_set(err, ERR_AUTH, "%s is too long", name);
        (void)snprintf(fields[i], sizes[i], "%s", value);
    }
    bool key = to->access_key[0] != '\0', secret = to->secret_key[0] != '\0';
    if (key != secret)
        return err_set(err, ERR_AUTH, "%s_%s is set, but %s_%s is not", prefix, names[!key], prefix,
                       names[key]);
    if (!key) /* a token alone belongs to keys that are not here */
        explicit_bzero(to, sizeof(*to));
    return key;
}

static bool aws_file(char path[PATH_LEN_MAX])
{
    const char *named = getenv("AWS_SHARED_CREDENTIALS_FILE");
    const char *home = getenv("HOME");
    if (named && *named) {
        (void)snprintf(path, PATH_LEN_MAX, "%s", named);
        return true;
    }
    const struct passwd *user = home && *home ? NULL : getpwuid(geteuid());
    if (user)
        home = user->pw_dir;
    if (!home || !*home)
        return false;
    (void)snprintf(path, PATH_LEN_MAX, "%s/.aws/credentials", home);
    return access(path, F_OK) == 0;
}

static int no_credentials(struct err *err)
{
    (void)err_set(err, ERR_AUTH, "there are no credentials for the repository");
    return err_hint(err, "set credentials_file (--credentials-file), or AWS_ACCESS_KEY_ID and "
                         "AWS_SECRET_ACCESS_KEY in the environment");
}

static int load(const char *file, struct credentials *to, struct err *err)
{
    char path[PATH_LEN_MAX];
    if (file[0])
        return load_file(file, to, err);
    int rc = load_environment("TIDEMARK", to, err);
    if (rc == 0)
        rc = load_environment("AWS", to, err);
    if (rc != 0) {
        (void)prctl(PR_SET_DUMPABLE, 0); /* the environment is in the dump */
        return rc < 0 ? rc : 0;
    }
    return aws_file(path) ? load_file(path, to, err) : no_credentials(err);
}

int credentials_load(const char *file, struct credentials **ret, struct err *err)
{
    void *memory;
    int rc = secret_alloc(sizeof(struct credentials), &memory, err);
    if (rc < 0)
        return rc;
    struct credentials *credentials = memory;
    rc = load(file, credentials, err);
    if (rc < 0) {
        credentials_free(credentials);
        return rc;
    }
    if (credentials->session_token[0])
        (void)prctl(PR_SET_DUMPABLE, 0); /* it is sent as it is, from ordinary buffers */
    *ret = credentials;
    return 0;
}

void credentials_free(struct credentials *credentials)
{
    secret_free(credentials, sizeof(*credentials));
}
