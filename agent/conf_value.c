/* Text to value and back, for every type of option. What is ambiguous is refused: a time without a
 * unit, a decimal MB, a number with a tail. */
#include "agent/conf_table.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>

#include "agent/address.h"

struct unit {
    const char *name;
    uint64_t factor;
};

static const struct unit size_units[] = {
    {"", 1}, {"B", 1}, {"KiB", KIB}, {"MiB", MIB}, {"GiB", GIB}, {"TiB", GIB * 1024}, {NULL, 0}};
static const struct unit time_ms_units[] = {
    {"ms", 1}, {"s", 1000}, {"min", 60000}, {"h", 3600000}, {NULL, 0}};
static const struct unit time_s_units[] = {{"s", 1}, {"min", 60}, {"h", 3600}, {NULL, 0}};
static const struct unit count_units[] = {{"", 1}, {NULL, 0}};
static const struct unit percent_units[] = {{"%", 1}, {NULL, 0}};

bool option_name_valid(const char *text)
{
    size_t len = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    return len > 0 && len <= CONF_NAME_MAX && text[len] == '\0' && strcmp(text, ".") != 0 &&
           strcmp(text, "..") != 0;
}

static const struct unit *units_of(enum option_type type)
{
    if (type == OPTION_SIZE)
        return size_units;
    if (type == OPTION_TIME_MS)
        return time_ms_units;
    if (type == OPTION_TIME_S)
        return time_s_units;
    return type == OPTION_PERCENT ? percent_units : count_units;
}

static int store_number(const struct option *option, char *field, uint64_t value)
{
    if (option->field_size == sizeof(uint64_t)) {
        memcpy(field, &value, sizeof(value));
        return 0;
    }
    assert(option->field_size == sizeof(uint32_t));
    assert(value <= UINT32_MAX);
    uint32_t narrow = (uint32_t)value;
    memcpy(field, &narrow, sizeof(narrow));
    return 0;
}

static uint64_t load_number(const struct option *option, const char *field)
{
    if (option->field_size == sizeof(uint64_t))
        return get_le64(field);
    if (option->field_size == sizeof(uint32_t))
        return get_le32(field);
    return (uint8_t)*field;
}

static int bad_value(const struct option *option, const char *text, struct err *err)
{
    return err_set(err, ERR_CONFIG, "'%.80s' is not valid, expected: %s", text, option->unit);
}

static int parse_number(const struct option *option, const char *text, uint64_t *ret,
                        struct err *err)
{
    if (!isdigit((unsigned char)text[0]))
        return bad_value(option, text, err);
    char *end;
    errno = 0;
    uint64_t number = strtoull(text, &end, 10);
    if (errno)
        return bad_value(option, text, err);
    while (*end == ' ')
        end++;
    const struct unit *unit = units_of(option->type);
    while (unit->name && strcmp(unit->name, end) != 0)
        unit++;
    bool bare_zero = number == 0 && *end == '\0';
    if (!unit->name && !bare_zero)
        return bad_value(option, text, err);
    if (!mul_u64(number, unit->name ? unit->factor : 0, &number) || number < option->min ||
        number > option->max)
        return err_set(err, ERR_CONFIG, "'%.80s' is out of range, expected: %s", text,
                       option->unit);
    *ret = number;
    return 0;
}

static int store_text(const struct option *option, char *field, const char *text, struct err *err)
{
    size_t len = strlen(text);
    if (len >= option->field_size)
        return err_set(err, ERR_CONFIG, "value is longer than %zu bytes", option->field_size - 1);
    memcpy(field, text, len + 1);
    return 0;
}

static int store_path(const struct option *option, char *field, const char *text, struct err *err)
{
    if (text[0] != '/')
        return err_set(err, ERR_CONFIG, "'%.200s' is not an absolute path", text);
    return store_text(option, field, text, err);
}

static int store_address(const struct option *option, char *field, const char *text,
                         struct err *err)
{
    struct sockaddr_storage address;
    socklen_t len;
    return address_parse(text, &address, &len) ? store_text(option, field, text, err)
                                               : bad_value(option, text, err);
}

/* The text is not repeated: the path of a webhook is often its secret. */
static int store_http_url(const struct option *option, char *field, const char *text,
                          struct err *err)
{
    size_t scheme = strncmp(text, "https://", 8) == 0  ? 8
                    : strncmp(text, "http://", 7) == 0 ? 7
                                                       : 0;
    if (scheme == 0 || text[scheme + strspn(text + scheme, "/?#:@")] == '\0' ||
        strchr("/?#:@", text[scheme]) || strchr(text, ' '))
        return err_set(err, ERR_CONFIG, "the value is not valid, expected: %s", option->unit);
    return store_text(option, field, text, err);
}

static int store_word(const struct option *option, char *field, const char *text, struct err *err)
{
    for (unsigned i = 0; option->words[i]; i++) {
        if (strcmp(option->words[i], text) != 0)
            continue;
        if (option->field_size == 1)
            *field = (char)i;
        else
            (void)store_number(option, field, i);
        return 0;
    }
    return bad_value(option, text, err);
}

static void set_manager(struct conf *conf, enum conf_manager manager, const char *arg)
{
    conf->manager = manager;
    (void)snprintf(conf->manager_arg, sizeof(conf->manager_arg), "%s", arg);
}

/* The word alone is pg_ctl or patroni; every other manager has an argument. */
static int store_manager(struct conf *conf, const char *text, struct err *err)
{
    static const char *const prefixes[] = {[MANAGER_SYSTEMD] = "systemd:",
                                           [MANAGER_COMMAND] = "command:",
                                           [MANAGER_PATRONI] = "patroni:"};
    bool pg_ctl = strcmp(text, "pg_ctl") == 0;
    if (pg_ctl || strcmp(text, "patroni") == 0) {
        set_manager(conf, pg_ctl ? MANAGER_PG_CTL : MANAGER_PATRONI, "");
        return 0;
    }
    for (size_t i = 0; i < ARRAY_LEN(prefixes); i++) {
        size_t len = prefixes[i] ? strlen(prefixes[i]) : 0;
        if (len == 0 || strncmp(text, prefixes[i], len) != 0)
            continue;
        text += len + strspn(text + len, " ");
        if (!*text)
            return err_set(err, ERR_CONFIG, "nothing follows '%s'", prefixes[i]);
        set_manager(conf, (enum conf_manager)i, text);
        return 0;
    }
    return err_set(err, ERR_CONFIG,
                   "'%.80s' is not valid, expected: pg_ctl | systemd:UNIT | command:COMMAND | "
                   "patroni[:UNIT]",
                   text);
}

static int store_nonempty(const struct option *option, void *base, const char *text,
                          struct err *err)
{
    char *field = (char *)base + option->offset;
    uint64_t number = 0;
    int rc;
    switch (option->type) {
    case OPTION_TEXT:
        return store_text(option, field, text, err);
    case OPTION_NAME:
        if (!option_name_valid(text))
            return err_set(err, ERR_CONFIG, "'%.80s' is not a name of A-Z a-z 0-9 . _ -", text);
        return store_text(option, field, text, err);
    case OPTION_PATH:
        return store_path(option, field, text, err);
    case OPTION_ADDRESS:
        return store_address(option, field, text, err);
    case OPTION_URL:
        return store_http_url(option, field, text, err);
    case OPTION_WORD:
        return store_word(option, field, text, err);
    case OPTION_MANAGER:
        return store_manager(base, text, err);
    case OPTION_SIZE:
    case OPTION_COUNT:
    case OPTION_PERCENT:
    case OPTION_TIME_MS:
    case OPTION_TIME_S:
        rc = parse_number(option, text, &number, err);
        return rc < 0 ? rc : store_number(option, field, number);
    }
    return err_set(err, ERR_INTERNAL, "option of unknown type");
}

static bool has_control_character(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            return true;
    return false;
}

int option_store(const struct option *option, void *base, const char *text, struct err *err)
{
    if (!*text)
        return err_set(err, ERR_CONFIG, "the value is empty, expected: %s", option->unit);
    if (strlen(text) > CONF_PATH_MAX)
        return err_set(err, ERR_CONFIG, "value is longer than %d bytes", CONF_PATH_MAX);
    if (has_control_character(text))
        return err_set(err, ERR_CONFIG, "the value contains a control character");
    int rc = store_nonempty(option, base, text, err);
    if (rc == 0 && strcmp(option->key, "chunk_size") == 0) {
        uint64_t size = load_number(option, (char *)base + option->offset);
        if (size & (size - 1))
            return bad_value(option, text, err);
    }
    return rc;
}

static void format_size(uint64_t value, char *text, size_t size)
{
    static const char *const names[] = {"", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;
    while (value > 0 && value % 1024 == 0 && unit + 1 < ARRAY_LEN(names)) {
        value /= 1024;
        unit++;
    }
    (void)snprintf(text, size, "%" PRIu64 "%s", value, names[unit]);
}

static void format_manager(const struct conf *conf, char *text, size_t size)
{
    static const char *const words[] = {[MANAGER_PG_CTL] = "pg_ctl",
                                        [MANAGER_SYSTEMD] = "systemd",
                                        [MANAGER_COMMAND] = "command",
                                        [MANAGER_PATRONI] = "patroni"};
    (void)snprintf(text, size, "%s%s%s", words[conf->manager], conf->manager_arg[0] ? ":" : "",
                   conf->manager_arg);
}

void option_format(const struct option *option, const void *base, char *text, size_t size)
{
    const char *field = (const char *)base + option->offset;
    switch (option->type) {
    case OPTION_TEXT:
    case OPTION_NAME:
    case OPTION_PATH:
    case OPTION_ADDRESS:
    case OPTION_URL:
        (void)snprintf(text, size, "%s", field);
        return;
    case OPTION_WORD:
        (void)snprintf(text, size, "%s", option->words[load_number(option, field)]);
        return;
    case OPTION_MANAGER:
        format_manager(base, text, size);
        return;
    case OPTION_SIZE:
        format_size(load_number(option, field), text, size);
        return;
    case OPTION_PERCENT:
        (void)snprintf(text, size, "%" PRIu64 "%%", load_number(option, field));
        return;
    case OPTION_COUNT:
        (void)snprintf(text, size, "%" PRIu64, load_number(option, field));
        return;
    case OPTION_TIME_MS:
    case OPTION_TIME_S:
        (void)snprintf(text, size, "%" PRIu64 "%s", load_number(option, field),
                       option->type == OPTION_TIME_MS ? "ms" : "s");
        return;
    }
}
