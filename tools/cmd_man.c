/* The verbs as roff, from the same tables as --help: the middle of tidemark(1). */
#include <stdio.h>

#include "tools/cmd.h"

/* '-' and '\' are special; a '.' or "'" in the first column would be a request. */
static void print_text(const char *text, FILE *to)
{
    bool first = true;
    for (; *text; text++) {
        if (first && (*text == '.' || *text == '\''))
            (void)fputs("\\&", to);
        first = *text == '\n';
        if (strncmp(text, "…", strlen("…")) == 0) {
            (void)fputs("...", to);
            text += strlen("…") - 1;
            continue;
        }
        if (*text == '-' || *text == '\\')
            (void)fputc('\\', to);
        (void)fputc(*text, to);
    }
}

/* Lines with columns, of which a table is made, are not filled. */
static void print_notes(const char *notes, FILE *to)
{
    bool filled = true;
    for (const char *at = notes; *at;) {
        char line[256];
        size_t len = strcspn(at, "\n");
        (void)snprintf(line, sizeof(line), "%.*s\n", (int)len, at);
        if (filled != !strstr(line, "  ")) {
            (void)fputs(filled ? ".nf\n" : ".fi\n", to);
            filled = !filled;
        }
        print_text(line, to);
        at += len + (at[len] == '\n');
    }
    (void)fputs(filled ? "" : ".fi\n", to);
}

static void print_option(const struct cmd_option *option, FILE *to)
{
    (void)fputs(".TP\n.B ", to);
    if (option->letter)
        (void)fprintf(to, "\\-%c, ", option->letter);
    (void)fputs("\\-\\-", to);
    print_text(option->name, to);
    if (option->value) {
        (void)fputs(option->value[0] == '[' ? "" : "=", to);
        print_text(option->value, to);
    }
    (void)fputc('\n', to);
    print_text(option->help, to);
    (void)fputc('\n', to);
}

static void print_options(const struct cmd_option *options, FILE *to)
{
    for (; options && options->name; options++)
        print_option(options, to);
}

void cmd_print_man(const struct cmd_verb *const *verbs, size_t count, FILE *to)
{
    for (size_t i = 0; i < count; i++) {
        (void)fprintf(to, ".SS tidemark %s ", verbs[i]->name);
        print_text(verbs[i]->args, to);
        (void)fputc('\n', to);
        print_text(verbs[i]->summary, to);
        (void)fputc('\n', to);
        print_options(verbs[i]->options, to);
        if (verbs[i]->notes) {
            (void)fputs(".PP\n", to);
            print_notes(verbs[i]->notes, to);
        }
    }
    (void)fputs(".SS Options of every verb\n", to);
    print_options(cmd_common_options, to);
}
