/* The table turned outwards: a loaded configuration as a file, the sample file, the manual page. */
#include "agent/conf_table.h"

enum { VALUE_MAX = CONF_PATH_MAX + 64 };

static void write_option(const struct option *option, const void *base, FILE *to)
{
    char value[VALUE_MAX];
    option_format(option, base, value, sizeof(value));
    if (value[0])
        (void)fprintf(to, "%s = %s\n", option->key, value);
}

static void write_section(const char *section, const void *base, FILE *to)
{
    for (size_t i = 0; i < option_count; i++)
        if (strcmp(option_table[i].section, section) == 0)
            write_option(&option_table[i], base, to);
}

int conf_write(const struct conf *conf, FILE *to)
{
    for (size_t i = 0; option_sections[i]; i++) {
        if (strcmp(option_sections[i], "volume") == 0)
            continue;
        (void)fprintf(to, "[%s]\n", option_sections[i]);
        write_section(option_sections[i], conf, to);
    }
    for (size_t i = 0; i < conf->volume_count; i++) {
        (void)fprintf(to, "[volume %s]\n", conf->volumes[i].name);
        write_section("volume", &conf->volumes[i], to);
    }
    return fflush(to) == 0 && !ferror(to) ? 0 : -1;
}

/* Help as comment lines of at most 78 columns. */
static void print_wrapped(const char *text, FILE *to)
{
    while (*text) {
        size_t len = strlen(text);
        if (len > 76) {
            len = 76;
            while (len > 0 && text[len] != ' ')
                len--;
        }
        (void)fprintf(to, "# %.*s\n", (int)len, text);
        text += len + strspn(text + len, " ");
    }
}

static void print_sample_option(const struct option *option, FILE *to)
{
    print_wrapped(option->help, to);
    (void)fprintf(to, "# Values: %s\n", option->unit);
    const char *value = option->def[0] ? option->def : option->example;
    (void)fprintf(to, "#%s = %s\n\n", option->key, value ? value : "");
}

void conf_print_sample(FILE *to)
{
    (void)fputs("# Tidemark. Every option with its default; remove the '#' in the first column to "
                "change one.\n"
                "# Lines begin in the first column; comments stand on lines of their own. Each "
                "option can also be\n"
                "# given in the environment as TIDEMARK_<SECTION>_<KEY> "
                "(TIDEMARK_VOLUME_<NAME>_<KEY>).\n",
                to);
    for (size_t i = 0; option_sections[i]; i++) {
        bool is_volume = strcmp(option_sections[i], "volume") == 0;
        if (is_volume)
            (void)fputs("\n# One section a volume under the server; the name is free.\n"
                        "#[volume pgdata]\n\n",
                        to);
        else
            (void)fprintf(to, "\n[%s]\n\n", option_sections[i]);
        for (size_t k = 0; k < option_count; k++)
            if (strcmp(option_table[k].section, option_sections[i]) == 0)
                print_sample_option(&option_table[k], to);
    }
}

/* roff wants '-' and '\' escaped and no '.' in the first column; help texts begin with a letter. */
static void print_roff(const char *text, FILE *to)
{
    for (; *text; text++) {
        if (*text == '-' || *text == '\\')
            (void)fputc('\\', to);
        if (strncmp(text, "…", strlen("…")) == 0) {
            (void)fputs("...", to);
            text += strlen("…") - 1;
            continue;
        }
        (void)fputc(*text, to);
    }
}

static void print_man_option(const struct option *option, FILE *to)
{
    (void)fputs(".TP\n.B ", to);
    print_roff(option->key, to);
    (void)fputs(" = ", to);
    print_roff(option->unit, to);
    (void)fputc('\n', to);
    print_roff(option->help, to);
    (void)fputc('\n', to);
    if (option->def[0]) {
        (void)fputs("Default: ", to);
        print_roff(option->def, to);
        (void)fputs(".\n", to);
    }
}

void conf_print_man(FILE *to)
{
    for (size_t i = 0; option_sections[i]; i++) {
        bool is_volume = strcmp(option_sections[i], "volume") == 0;
        (void)fprintf(to, ".SS [%s%s]\n", option_sections[i], is_volume ? " NAME" : "");
        for (size_t k = 0; k < option_count; k++)
            if (strcmp(option_table[k].section, option_sections[i]) == 0)
                print_man_option(&option_table[k], to);
    }
}

void conf_print_help(FILE *to)
{
    for (size_t i = 0; i < option_count; i++) {
        const struct option *option = &option_table[i];
        bool new_section = i == 0 || strcmp(option->section, option_table[i - 1].section) != 0;
        if (new_section)
            (void)fprintf(to, "\n[%s%s]\n", option->section,
                          strcmp(option->section, "volume") == 0 ? " NAME" : "");
        (void)fprintf(to, "  %-18s %s%s%s%s\n", option->key, option->unit,
                      option->def[0] ? " (default " : "", option->def, option->def[0] ? ")" : "");
    }
}
