/* The table of options and the conversion of one value: shared by the parts of agent/conf*.c and
 * by nobody else (conf.h is the interface). Pure, any thread. */
#ifndef TIDEMARK_AGENT_CONF_TABLE_H
#define TIDEMARK_AGENT_CONF_TABLE_H

#include "agent/conf.h"

enum option_type {
    OPTION_TEXT,    /* any text up to the field's size */
    OPTION_NAME,    /* [A-Za-z0-9._-]{1,63}: becomes part of object names */
    OPTION_PATH,    /* absolute path */
    OPTION_ADDRESS, /* ADDRESS:PORT to listen on, see address.h */
    OPTION_URL,     /* http:// or https://, a host, and what follows */
    OPTION_SIZE,    /* bytes: 0, or a number with KiB, MiB, GiB, TiB, or bare bytes */
    OPTION_COUNT,   /* a plain number */
    OPTION_PERCENT, /* a whole number with % */
    OPTION_TIME_MS, /* a number with ms, s, min, h; stored in milliseconds */
    OPTION_TIME_S,  /* the same, stored in seconds */
    OPTION_WORD,    /* one of words; stored as its index */
    OPTION_MANAGER, /* pg_ctl | systemd:UNIT | command:COMMAND | patroni[:UNIT]: two fields */
};

struct option {
    const char *section; /* "volume" stands for every [volume NAME] */
    const char *key;
    enum option_type type;
    size_t offset;     /* in struct conf; in struct conf_volume when section is "volume" */
    size_t field_size; /* bytes */
    const char *def;   /* as it would be written; "" = not set */
    uint64_t min, max; /* of numbers, in the stored unit */
    const char *const *words;
    const char *unit; /* for people: what a value looks like */
    const char *help;
    const char *example; /* shown in the sample when there is no default; NULL = none */
};

extern const struct option option_table[];
extern const size_t option_count;

/* NULL-ended list of the keys of a section into names (CONF_KEYS_MAX + 1 entries). */
enum { CONF_KEYS_MAX = 24 };
void option_keys(const char *section, const char *names[CONF_KEYS_MAX + 1]);
extern const char *const option_sections[];

const struct option *option_find(const char *section, const char *key);

/* Stores text in base (a struct conf or struct conf_volume). ERR_CONFIG with a text that names
 * neither file nor key: the caller knows them. */
int option_store(const struct option *option, void *base, const char *text, struct err *err);

/* The value as option_store() reads it back; "" when not set. */
void option_format(const struct option *option, const void *base, char *text, size_t size);

bool option_name_valid(const char *text);

#endif
