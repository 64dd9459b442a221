/* A line of /proc/self/mountinfo, and fields of its escapes. What is accepted is accepted again
 * when it is written with every blank, tab, newline and backslash escaped, and gives the same
 * entry. */
#include "io/mountinfo.h"
#include "tests/fuzz/fuzz.h"

static void put_field(FILE *to, const char *text, const char *end)
{
    for (; *text; text++)
        if (strchr(" \t\n\\", *text))
            fprintf(to, "\\%03o", (unsigned char)*text);
        else
            (void)fputc(*text, to);
    fprintf(to, "%s", end);
}

/* An optional field, to be skipped. */
static char *write_line(const struct mount_entry *entry)
{
    char *text = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&text, &len);
    FUZZ_CHECK(to != NULL);
    fprintf(to, "36 35 %u:%u ", entry->major, entry->minor);
    put_field(to, entry->root, " ");
    put_field(to, entry->mount_point, " ");
    put_field(to, entry->options, " shared:1 - ");
    put_field(to, entry->fs_type, " ");
    put_field(to, entry->source, " ");
    put_field(to, entry->super_options, "");
    FUZZ_CHECK(fclose(to) == 0);
    return text;
}

static void check_entry(const struct mount_entry *entry)
{
    static struct mount_entry second;
    free_mem char *text = write_line(entry);
    FUZZ_CHECK(mount_entry_parse(text, &second));
    FUZZ_CHECK(entry->major == second.major && entry->minor == second.minor);
    FUZZ_CHECK(strcmp(entry->root, second.root) == 0);
    FUZZ_CHECK(strcmp(entry->mount_point, second.mount_point) == 0);
    FUZZ_CHECK(strcmp(entry->source, second.source) == 0);
    FUZZ_CHECK(strcmp(entry->fs_type, second.fs_type) == 0);
    FUZZ_CHECK(strcmp(entry->options, second.options) == 0);
    FUZZ_CHECK(strcmp(entry->super_options, second.super_options) == 0);
    FUZZ_CHECK(entry->read_only == second.read_only);
    if (mount_has_option(entry->options, "ro"))
        FUZZ_CHECK(entry->read_only);
}

static void check_field(const char *text)
{
    char field[32];
    const char *end = proc_field(text, field, sizeof(field));
    FUZZ_CHECK(!end || (end > text && end <= text + strlen(text)));
    FUZZ_CHECK(!end || (field[0] != '\0' && strlen(field) < sizeof(field)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct mount_entry entry;
    free_mem char *line = fuzz_text(data, size);
    if (mount_entry_parse(line, &entry))
        check_entry(&entry);
    check_field(line);
    return 0;
}
