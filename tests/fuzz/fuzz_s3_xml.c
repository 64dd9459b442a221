/* The XML of S3, each document by each parser: an answer or an error, never more; and what is
 * escaped comes back. */
#include "io/s3_xml.h"

#include "tests/fuzz/fuzz.h"

static int each_key(void *ctx, const char *key, uint64_t size, struct err *err)
{
    uint64_t *count = ctx;
    (void)size, (void)err;
    FUZZ_CHECK(key[0] != '\0' && strlen(key) <= S3_KEY_MAX);
    (*count)++;
    return 0;
}

static int each_error(void *ctx, const char *key, const struct s3_xml_error *why, struct err *err)
{
    (void)ctx, (void)err;
    FUZZ_CHECK(strlen(key) <= S3_KEY_MAX && strlen(why->code) < sizeof(why->code));
    return 0;
}

static void check_list(const char *text, size_t size)
{
    static struct s3_xml_page page;
    struct err err;
    uint64_t count = 0;
    if (!fuzz_good(s3_xml_list_parse(text, size, each_key, &count, &page, &err), &err))
        return;
    FUZZ_CHECK(page.count == count);
    FUZZ_CHECK(!page.truncated || page.token[0] != '\0');
    FUZZ_CHECK((count == 0) == (page.last_key[0] == '\0'));
}

static int each_version(void *ctx, const struct s3_xml_version *version, struct err *err)
{
    uint64_t *count = ctx;
    (void)err;
    FUZZ_CHECK(version->key[0] != '\0' && strlen(version->key) <= S3_KEY_MAX);
    FUZZ_CHECK(version->version[0] != '\0' && strlen(version->version) <= S3_VERSION_MAX);
    (*count)++;
    return 0;
}

static void check_versions(const char *text, size_t size)
{
    static struct s3_xml_versions_page page;
    struct err err;
    uint64_t count = 0;
    char word[16];
    if (s3_xml_text_parse(text, size, "VersioningConfiguration/Status", word, sizeof(word)))
        FUZZ_CHECK(strlen(word) < sizeof(word));
    bool good =
        fuzz_good(s3_xml_versions_parse(text, size, each_version, &count, &page, &err), &err);
    FUZZ_CHECK(good ? page.count == count : count == 0); /* all of it, or nothing */
    FUZZ_CHECK(!good || !page.truncated || page.key_marker[0] != '\0');
}

/* Any text without NUL is one element's text, escaped, and read back as it was. */
static void check_escape(const char *text, size_t size)
{
    struct s3_xml_error error;
    char document[2048] = "<Error><Code>", plain[200];
    size_t len = strnlen(text, min_u64(size, 60));
    if (len == 0)
        return;
    for (size_t i = 0; i < len; i++)
        plain[i] = (char)(' ' + (uint8_t)text[i] % 95);
    plain[len] = '\0';
    FUZZ_CHECK(s3_xml_escape(plain, document, sizeof(document) - 32));
    strcat(document, "</Code></Error>");
    FUZZ_CHECK(s3_xml_error_parse(document, strlen(document), &error));
    FUZZ_CHECK(strcmp(error.code, plain) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    free_mem uint8_t *copy = fuzz_copy(data, size);
    const char *text = (const char *)copy;
    struct s3_xml_error error;
    struct err err;
    check_list(text, size);
    check_versions(text, size);
    (void)fuzz_good(s3_xml_delete_parse(text, size, each_error, NULL, &err), &err);
    if (s3_xml_error_parse(text, size, &error))
        FUZZ_CHECK(error.code[0] != '\0');
    check_escape(text, size);
    return 0;
}
