/* Loading the configuration. inih splits sections, keys and values, but version 55 gets five things
 * silently wrong, all with success as its result: a line over 200 bytes is cut and its tail parsed
 * as another line; a value is cut at " ;"; an indented line repeats the key before it; sections and
 * keys over 49 bytes are cut; a second `key =` wins without a word. So lines come from our own
 * reader, which refuses these, and hands inih `key = x`: values are taken from the line as read. */
#include "agent/conf.h"

#include <assert.h>
#include <ctype.h>
#include <fcntl.h>
#include <ini.h>
#include <limits.h>
#include <sys/stat.h>

#include "agent/conf_table.h"
#include "agent/nearest.h"
#include "io/file.h"

extern char **environ;

enum { LINE_LEN_MAX = 4096, WORD_LEN_MAX = 48, FILE_LEN_MAX = 1 << 20, OPTIONS_MAX = 64 };

struct parser {
    const char *name; /* of the file, for messages */
    const char *at, *end;
    unsigned line;
    char value[LINE_LEN_MAX + 1];
    bool set[OPTIONS_MAX]; /* keys seen in the current section */
    char sections[CONF_VOLUMES_MAX + 8][WORD_LEN_MAX + 1];
    size_t section_count;
    struct conf *conf;
    struct err *err;
    int rc; /* the first error; nothing is read after it */
};

/* --- defaults ----------------------------------------------------------------------------------*/
static void store_default(const struct option *option, void *base)
{
    struct err err;
    if (!option->def[0])
        return;
    int rc = option_store(option, base, option->def, &err);
    assert(rc == 0); /* the table is ours */
}

static void set_defaults(const char *section, void *base)
{
    for (size_t i = 0; i < option_count; i++)
        if ((strcmp(option_table[i].section, "volume") == 0) == (strcmp(section, "volume") == 0))
            store_default(&option_table[i], base);
}

static void set_node_from_host(struct conf *conf)
{
    char host[256] = "";
    (void)gethostname(host, sizeof(host) - 1);
    host[strcspn(host, ".")] = '\0';
    host[CONF_NAME_MAX] = '\0';
    (void)snprintf(conf->node, sizeof(conf->node), "%s", option_name_valid(host) ? host : "node");
}

static void conf_init(struct conf *conf)
{
    memset(conf, 0, sizeof(*conf));
    set_defaults("", conf);
    set_node_from_host(conf);
}

/* --- one option --------------------------------------------------------------------------------*/
static struct conf_volume *volume_find(struct conf *conf, const char *name)
{
    for (size_t i = 0; i < conf->volume_count; i++)
        if (strcmp(conf->volumes[i].name, name) == 0)
            return &conf->volumes[i];
    return NULL;
}

static int volume_get(struct conf *conf, const char *name, struct conf_volume **ret,
                      struct err *err)
{
    struct conf_volume *volume = volume_find(conf, name);
    if (!volume) {
        if (!option_name_valid(name))
            return err_set(err, ERR_CONFIG, "'%.80s' is not a volume name of A-Z a-z 0-9 . _ -",
                           name);
        if (conf->volume_count == CONF_VOLUMES_MAX)
            return err_set(err, ERR_CONFIG, "more than %d volumes", CONF_VOLUMES_MAX);
        volume = &conf->volumes[conf->volume_count++];
        (void)snprintf(volume->name, sizeof(volume->name), "%s", name);
        set_defaults("volume", volume);
    }
    *ret = volume;
    return 0;
}

/* "volume pgdata" → "volume" and the name; other sections have no name (NULL). */
static const char *section_kind(const char *section, const char **ret_volume)
{
    *ret_volume = NULL;
    if (strncmp(section, "volume ", 7) != 0)
        return section;
    *ret_volume = section + 7 + strspn(section + 7, " \t");
    return "volume";
}

static int unknown_section(const char *section, struct err *err)
{
    char word[WORD_LEN_MAX + 1];
    (void)snprintf(word, sizeof(word), "%.*s", (int)strcspn(section, " "), section);
    const char *near = nearest_name(word, option_sections);
    if (strcmp(section, "volume") == 0)
        return err_set(err, ERR_CONFIG, "section [volume] needs a name: [volume NAME]");
    if (near)
        return err_set(err, ERR_CONFIG, "unknown section [%.80s] (did you mean [%s%s]?)", section,
                       near, strcmp(near, "volume") == 0 ? " NAME" : "");
    return err_set(err, ERR_CONFIG, "unknown section [%.80s]", section);
}

static int section_check(const char *section, struct err *err)
{
    const char *volume;
    const char *kind = section_kind(section, &volume);
    for (size_t i = 0; option_sections[i]; i++)
        if (strcmp(kind, option_sections[i]) == 0 && (volume || strcmp(kind, "volume") != 0))
            return 0;
    return unknown_section(section, err);
}

static int unknown_key(const char *section, const char *kind, const char *key, struct err *err)
{
    const char *names[CONF_KEYS_MAX + 1];
    option_keys(kind, names);
    const char *near = nearest_name(key, names);
    if (near)
        return err_set(err, ERR_CONFIG, "unknown option '%.80s' in [%s] (did you mean '%s'?)", key,
                       section, near);
    return err_set(err, ERR_CONFIG, "unknown option '%.80s' in [%s]", key, section);
}

static int set_option(struct conf *conf, const char *section, const char *key, const char *value,
                      size_t *ret_index, struct err *err)
{
    int rc = section_check(section, err);
    if (rc < 0)
        return rc;
    const char *volume_name;
    const char *kind = section_kind(section, &volume_name);
    const struct option *option = option_find(kind, key);
    if (!option)
        return unknown_key(section, kind, key, err);
    void *base = conf;
    if (volume_name) {
        struct conf_volume *volume;
        rc = volume_get(conf, volume_name, &volume, err);
        if (rc < 0)
            return rc;
        base = volume;
    }
    rc = option_store(option, base, value, err);
    if (rc < 0)
        return err_prefix(err, "%s", key);
    if (ret_index)
        *ret_index = (size_t)(option - option_table);
    return 0;
}

int conf_set(struct conf *conf, const char *key, const char *value, struct err *err)
{
    const char *dot = strrchr(key, '.');
    char section[CONF_NAME_MAX + 16];
    if (!dot || (size_t)(dot - key) >= sizeof(section))
        return err_set(err, ERR_CONFIG, "'%.80s' is not SECTION.KEY", key);
    memcpy(section, key, (size_t)(dot - key));
    section[dot - key] = '\0';
    return set_option(conf, section, dot + 1, value, NULL, err);
}

const struct conf_volume *conf_volume_by_name(const struct conf *conf, const char *name)
{
    for (size_t i = 0; i < conf->volume_count; i++)
        if (strcmp(conf->volumes[i].name, name) == 0)
            return &conf->volumes[i];
    return NULL;
}

/* --- lines -------------------------------------------------------------------------------------*/
static int line_error(struct parser *parser)
{
    parser->rc = err_prefix(parser->err, "%s:%u", parser->name, parser->line);
    return parser->rc;
}

/* The next line without its end, trailing blanks removed. False at the end or after an error. */
static bool next_line(struct parser *parser, char line[LINE_LEN_MAX + 1])
{
    if (parser->rc < 0 || parser->at == parser->end)
        return false;
    const char *newline = memchr(parser->at, '\n', (size_t)(parser->end - parser->at));
    const char *stop = newline ? newline : parser->end;
    size_t len = (size_t)(stop - parser->at);
    parser->line++;
    if (len > LINE_LEN_MAX) {
        (void)err_set(parser->err, ERR_CONFIG, "line is longer than %d bytes", LINE_LEN_MAX);
        (void)line_error(parser);
        return false;
    }
    if (memchr(parser->at, '\0', len)) {
        (void)err_set(parser->err, ERR_CONFIG, "line contains a NUL byte");
        (void)line_error(parser);
        return false;
    }
    memcpy(line, parser->at, len);
    while (len > 0 && isspace((unsigned char)line[len - 1]))
        len--;
    line[len] = '\0';
    parser->at = newline ? newline + 1 : parser->end;
    return true;
}

static int check_section_line(struct parser *parser, const char *line)
{
    const char *close = strchr(line, ']');
    if (!close || close[1])
        return err_set(parser->err, ERR_CONFIG, "malformed section line, expected [NAME]");
    size_t len = (size_t)(close - line - 1);
    if (len > WORD_LEN_MAX)
        return err_set(parser->err, ERR_CONFIG, "section name is longer than %d bytes",
                       WORD_LEN_MAX);
    char section[WORD_LEN_MAX + 1];
    memcpy(section, line + 1, len);
    section[len] = '\0';
    for (size_t i = 0; i < parser->section_count; i++)
        if (strcmp(parser->sections[i], section) == 0)
            return err_set(parser->err, ERR_CONFIG, "section [%s] is there twice", section);
    int rc = section_check(section, parser->err);
    if (rc < 0)
        return rc;
    const char *volume_name;
    struct conf_volume *volume;
    (void)section_kind(section, &volume_name);
    if (volume_name && (rc = volume_get(parser->conf, volume_name, &volume, parser->err)) < 0)
        return rc;
    if (parser->section_count == ARRAY_LEN(parser->sections))
        return err_set(parser->err, ERR_CONFIG, "too many sections");
    memcpy(parser->sections[parser->section_count++], section, len + 1);
    memset(parser->set, 0, sizeof(parser->set));
    return 0;
}

/* `key = value`: keeps the value and shortens the line to what inih can hold. */
static int check_key_line(struct parser *parser, char *line)
{
    char *equals = strchr(line, '=');
    size_t key_len = strcspn(line, "= \t");
    if (!equals || key_len == 0 || line + key_len + strspn(line + key_len, " \t") != equals)
        return err_set(parser->err, ERR_CONFIG, "malformed line, expected KEY = VALUE");
    if (key_len > WORD_LEN_MAX || memchr(line, ':', key_len))
        return err_set(parser->err, ERR_CONFIG, "malformed line, expected KEY = VALUE");
    if (parser->section_count == 0)
        return err_set(parser->err, ERR_CONFIG, "'%.*s' stands before the first [section]",
                       (int)key_len, line);
    const char *value = equals + 1 + strspn(equals + 1, " \t");
    if (strstr(value, " ;") || strstr(value, " #") || strstr(value, "\t;") || strstr(value, "\t#"))
        return err_set(parser->err, ERR_CONFIG,
                       "'%c' after a blank could be a comment or part of the value: put comments "
                       "on lines of their own",
                       strpbrk(strpbrk(value, " \t"), ";#")[0]);
    (void)snprintf(parser->value, sizeof(parser->value), "%s", value);
    memcpy(line + key_len, "=x", sizeof("=x")); /* keys are short: it fits */
    return 0;
}

static int check_line(struct parser *parser, char *line)
{
    if (isspace((unsigned char)line[0]))
        return err_set(parser->err, ERR_CONFIG, "indented line: begin it in the first column");
    if (line[0] == '#' || line[0] == ';' || line[0] == '\0') {
        line[0] = '\0';
        return 0;
    }
    return line[0] == '[' ? check_section_line(parser, line) : check_key_line(parser, line);
}

/* inih's fgets. */
static char *read_line(char *buf, int size, void *ctx)
{
    struct parser *parser = ctx;
    char line[LINE_LEN_MAX + 1];
    if (!next_line(parser, line))
        return NULL;
    if (check_line(parser, line) < 0) {
        (void)line_error(parser);
        return NULL;
    }
    assert(strlen(line) < (size_t)size); /* the checks above leave at most "[" + 48 + "]" */
    (void)snprintf(buf, (size_t)size, "%s", line);
    return buf;
}

/* inih's callback: 1 = fine. After an error the reader ends the stream. */
static int take_option(void *ctx, const char *section, const char *key, const char *value)
{
    struct parser *parser = ctx;
    (void)value; /* "x", see check_key_line() */
    size_t index = 0;
    int rc = set_option(parser->conf, section, key, parser->value, &index, parser->err);
    if (rc == 0 && parser->set[index])
        rc = err_set(parser->err, ERR_CONFIG, "'%s' is set twice in [%s]", key, section);
    if (rc < 0) {
        (void)line_error(parser);
        return 0;
    }
    parser->set[index] = true;
    return 1;
}

static int check_tls(const struct conf *conf, const char *name, struct err *err)
{
    bool whole = conf->tls_certificate_file[0] && conf->tls_key_file[0] && conf->tls_ca_file[0];
    if (conf->tls_listen[0] && !whole)
        return err_set(err, ERR_CONFIG,
                       "%s: [tls] listen needs certificate_file, key_file and ca_file", name);
    return 0;
}

/* As store_open() takes it; here file and section can be named, before anything needs it. */
static int check_url(const struct conf *conf, const char *name, struct err *err)
{
    const char *url = conf->repository_url;
    if (!url[0] || strncmp(url, "file:///", 8) == 0 || strncmp(url, "s3://", 5) == 0)
        return 0;
    (void)err_set(err, ERR_CONFIG, "%s: [repository] url = %.200s is no repository", name, url);
    return err_hint(err, "write file:///absolute/directory or s3://bucket/prefix");
}

static int check_patroni(const struct conf *conf, const char *name, struct err *err)
{
    if (conf->patroni_socket[0] && conf->manager != MANAGER_PATRONI)
        return err_set(err, ERR_CONFIG, "%s: [patroni] socket needs [postgresql] manager = patroni",
                       name);
    if (conf->patroni_socket[0] && strcmp(conf->patroni_socket, conf->socket) == 0)
        return err_set(err, ERR_CONFIG, "%s: [patroni] socket is the control socket", name);
    return 0;
}

static int check_whole(const struct conf *conf, const char *name, struct err *err)
{
    for (size_t i = 0; i < conf->volume_count; i++) {
        const struct conf_volume *volume = &conf->volumes[i];
        if (!volume->mount[0] && !volume->device[0])
            return err_set(err, ERR_CONFIG, "%s: [volume %s] has neither mount nor device", name,
                           volume->name);
        if (volume->provider == PROVIDER_COMMAND &&
            (!volume->snapshot_command[0] || !volume->drop_command[0]))
            return err_set(
                err, ERR_CONFIG,
                "%s: [volume %s] provider = command needs snapshot_command and drop_command", name,
                volume->name);
        if (volume->track && volume->provider != PROVIDER_PRECOPY)
            return err_set(err, ERR_CONFIG, "%s: [volume %s] track = yes is for provider = precopy",
                           name, volume->name);
    }
    int rc = check_patroni(conf, name, err);
    if (rc == 0)
        rc = check_url(conf, name, err);
    return rc < 0 ? rc : check_tls(conf, name, err);
}

static int parse_into(const char *name, const char *text, size_t len, struct conf *conf,
                      struct err *err)
{
    static_assert(OPTIONS_MAX >= 40, "one flag an option");
    assert(option_count <= OPTIONS_MAX);
    struct parser *parser = calloc(1, sizeof(*parser));
    if (!parser)
        return err_set(err, ERR_INTERNAL, "out of memory");
    parser->name = name;
    parser->at = text;
    parser->end = text + len;
    parser->conf = conf;
    parser->err = err;
    int bad_line = ini_parse_stream(read_line, parser, take_option, parser);
    int rc = parser->rc;
    free(parser);
    if (rc == 0 && bad_line != 0)
        rc = err_set(err, ERR_CONFIG, "%s:%d: malformed line", name, bad_line);
    return rc;
}

int conf_parse(const char *name, const char *text, size_t len, struct conf *ret, struct err *err)
{
    struct conf *conf = malloc(sizeof(*conf));
    if (!conf)
        return err_set(err, ERR_INTERNAL, "out of memory");
    conf_init(conf);
    (void)snprintf(conf->file, sizeof(conf->file), "%s", name);
    int rc = parse_into(name, text, len, conf, err);
    if (rc == 0)
        rc = check_whole(conf, name, err);
    if (rc == 0)
        *ret = *conf;
    free(conf);
    return rc;
}

/* --- environment -------------------------------------------------------------------------------*/
static void to_variable(const char *section, const char *key, char *text, size_t size)
{
    (void)snprintf(text, size, "TIDEMARK_%s_%s", section, key);
    for (; *text; text++)
        *text = isalnum((unsigned char)*text) ? (char)toupper((unsigned char)*text) : '_';
}

/* Every name that is valid for this configuration, in turn; each() returns non-zero to stop. */
static int each_variable(const struct conf *conf,
                         int (*each)(void *ctx, const char *variable, const char *key), void *ctx)
{
    for (size_t i = 0; i < option_count; i++) {
        const struct option *option = &option_table[i];
        bool is_volume = strcmp(option->section, "volume") == 0;
        for (size_t v = 0; v < (is_volume ? conf->volume_count : 1); v++) {
            char section[CONF_NAME_MAX + 16], key[128], variable[192];
            (void)snprintf(section, sizeof(section), "%s%s%s", option->section,
                           is_volume ? " " : "", is_volume ? conf->volumes[v].name : "");
            (void)snprintf(key, sizeof(key), "%s.%s", section, option->key);
            to_variable(section, option->key, variable, sizeof(variable));
            int rc = each(ctx, variable, key);
            if (rc)
                return rc;
        }
    }
    return 0;
}

struct variable_search {
    const char *name;
    size_t name_len;
    char key[128]; /* out */
    char near[192];
};

static int match_variable(void *ctx, const char *variable, const char *key)
{
    struct variable_search *search = ctx;
    char word[192];
    (void)snprintf(word, sizeof(word), "%.*s", (int)search->name_len, search->name);
    if (strcmp(word, variable) == 0) {
        (void)snprintf(search->key, sizeof(search->key), "%s", key);
        return 1;
    }
    const char *one[] = {variable, NULL};
    if (!search->near[0] && nearest_name(word + 9, (const char *const[]){one[0] + 9, NULL}))
        (void)snprintf(search->near, sizeof(search->near), "%s", variable);
    return 0;
}

/* TIDEMARK_CONFIG and friends are not options: only names that begin with a section count. */
static bool names_a_section(const char *variable)
{
    for (size_t i = 0; option_sections[i]; i++) {
        size_t len = strlen(option_sections[i]);
        if (strncasecmp(variable + 9, option_sections[i], len) == 0 && variable[9 + len] == '_')
            return true;
    }
    return false;
}

static int apply_variable(struct conf *conf, const char *entry, struct err *err)
{
    const char *equals = strchr(entry, '=');
    if (!equals || strncmp(entry, "TIDEMARK_", 9) != 0 || !names_a_section(entry))
        return 0;
    struct variable_search search = {.name = entry, .name_len = (size_t)(equals - entry)};
    if (!each_variable(conf, match_variable, &search)) {
        (void)err_set(err, ERR_CONFIG, "unknown environment variable %.*s",
                      (int)min_u64(search.name_len, 120), entry);
        return search.near[0] ? err_hint(err, "did you mean %s?", search.near) : -(int)err->code;
    }
    int rc = conf_set(conf, search.key, equals + 1, err);
    return rc < 0 ? err_prefix(err, "environment variable %.*s", (int)search.name_len, entry) : 0;
}

static int apply_environment(struct conf *conf, bool with_volumes, struct err *err)
{
    for (char **entry = environ; entry && *entry; entry++) {
        if (!with_volumes && strncasecmp(*entry, "TIDEMARK_VOLUME_", 16) == 0)
            continue;
        int rc = apply_variable(conf, *entry, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* --- files -------------------------------------------------------------------------------------*/
static int read_file(const char *path, char **ret, size_t *ret_len, struct err *err)
{
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        (void)err_sys(err, ERR_CONFIG, "open configuration '%s'", path);
        return err_hint(err, "--config=FILE or TIDEMARK_CONFIG names it; `tidemark-agent "
                             "--print-sample` prints one");
    }
    free_mem char *text = malloc(FILE_LEN_MAX + 1);
    if (!text)
        return err_set(err, ERR_INTERNAL, "out of memory");
    size_t len;
    if (read_all(fd, text, FILE_LEN_MAX + 1, &len) < 0)
        return err_sys(err, ERR_CONFIG, "read configuration '%s'", path);
    if (len > FILE_LEN_MAX)
        return err_set(err, ERR_CONFIG, "configuration '%s' is longer than 1 MiB", path);
    *ret = take_ptr(&text);
    *ret_len = len;
    return 0;
}

/* /usr/lib/postgresql/<major>/bin of the data directory, where the distribution puts it. */
static void complete_bin_directory(struct conf *conf)
{
    char path[CONF_PATH_MAX + 64], major[8] = "";
    (void)snprintf(path, sizeof(path), "%s/PG_VERSION", conf->data_directory);
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, major, sizeof(major) - 1) <= 0)
        return;
    size_t digits = strspn(major, "0123456789");
    major[digits] = '\0';
    (void)snprintf(path, sizeof(path), "/usr/lib/postgresql/%s/bin", major);
    if (digits > 0 && access(path, X_OK) == 0)
        (void)snprintf(conf->bin_directory, sizeof(conf->bin_directory), "%s", path);
}

void conf_complete(struct conf *conf)
{
    if (!conf->bin_directory[0] && conf->data_directory[0])
        complete_bin_directory(conf);
    if (!conf->log_file[0])
        (void)snprintf(conf->log_file, sizeof(conf->log_file), "%s/postgresql.log",
                       conf->state_dir);
    if (!conf->wal_spool[0] && conf->data_directory[0])
        (void)snprintf(conf->wal_spool, sizeof(conf->wal_spool), "%s/pg_wal/tidemark-spool",
                       conf->data_directory);
}

int conf_load_environment(struct conf *ret, struct err *err)
{
    int rc = conf_parse("defaults", "", 0, ret, err);
    return rc < 0 ? rc : apply_environment(ret, false, err);
}

int conf_load(const char *file, struct conf *ret, struct err *err)
{
    static const char usual[] = "/etc/tidemark/tidemark.conf";
    if (!file)
        file = getenv("TIDEMARK_CONFIG");
    if (!file && access(usual, F_OK) == 0)
        file = usual;
    free_mem char *text = NULL;
    size_t len = 0;
    int rc = file ? read_file(file, &text, &len, err) : 0;
    if (rc < 0)
        return rc;
    free_mem struct conf *conf = malloc(sizeof(*conf));
    if (!conf)
        return err_set(err, ERR_INTERNAL, "out of memory");
    rc = conf_parse(file ? file : "", text ? text : "", len, conf, err);
    if (rc == 0)
        rc = apply_environment(conf, true, err);
    if (rc == 0)
        rc = check_whole(conf, file ? file : "environment", err);
    if (rc != 0)
        return rc;
    conf_complete(conf);
    *ret = *conf;
    return 0;
}
