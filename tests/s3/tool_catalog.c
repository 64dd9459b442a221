/* The catalogue of a repository with many snapshots, one command a line on stdin, one answer a
 * line: fill COUNT     makes a repository with records of the tags tag-0 … (written as a commit
 * does, without looking at all others before each) list           "ok COUNT DAMAGED, the first is
 * TAG" through catalog_list() find TAG       "ok TAG" through catalog_find() tool_catalog URL
 * KEY=VALUE … (options.h). "# seconds S" comes before an answer. */
#include "agent/catalog.h"

#include "io/clock.h"
#include "tests/s3/options.h"
#include "tests/unit/record_fixture.h"

static struct store *store;
static struct repo repo;

static int put_record(unsigned number, struct err *err)
{
    char tag[32], name[STORE_NAME_MAX + 1];
    struct record *record = calloc(1, sizeof(*record));
    snprintf(tag, sizeof(tag), "tag-%u", number);
    fixture_record(record, 1, tag);
    put_le32(record->id, number);
    record->captured_s += number;
    record->committed_s += number;
    free_json json_t *json = record_to_json(record);
    free_mem char *text = json_text(json);
    size_t len = FMT_HEADER_LEN + strlen(text);
    free_mem uint8_t *object = malloc(len);
    fmt_json_encode(FMT_JSON_RECORD, repo.id, record->id, text, strlen(text), object);
    repo_record_name(name, record->cluster, record->node, record->id);
    record_release(record);
    free(record);
    return store_put(store, name, object, len, err);
}

static int fill(unsigned count, struct err *err)
{
    int rc = repo_create(store, 32768, &repo, err);
    for (unsigned i = 0; rc == 0 && i < count; i++)
        rc = put_record(i, err);
    if (rc == 0)
        printf("ok %u\n", count);
    return rc;
}

struct found {
    size_t count;
    char first[64];
};

static int each(void *ctx, const struct record *record, struct err *err)
{
    struct found *found = ctx;
    (void)err;
    if (found->count++ == 0)
        snprintf(found->first, sizeof(found->first), "%s", record->tag);
    return 0;
}

static int list(struct err *err)
{
    struct found found = {.count = 0};
    size_t damaged;
    int rc = catalog_list(store, &repo, "main", each, &found, &damaged, err);
    if (rc == 0)
        printf("ok %zu %zu, the first is %s\n", found.count, damaged, found.first);
    return rc;
}

static int find(const char *tag, struct err *err)
{
    struct record *record = calloc(1, sizeof(*record));
    int rc = catalog_find(store, &repo, "main", "db1", tag, record, NULL, err);
    if (rc == 0) {
        printf("ok %s\n", record->tag);
        record_release(record);
    }
    free(record);
    return rc;
}

static int run(const char *line, struct err *err)
{
    char verb[16] = "", word[64] = "";
    bool used_copy;
    (void)sscanf(line, "%15s %63s", verb, word);
    if (strcmp(verb, "fill") == 0)
        return fill((unsigned)strtoul(word, NULL, 10), err);
    int rc = repo_open(store, &repo, &used_copy, err);
    if (rc < 0)
        return rc;
    uint64_t start_ms = monotonic_ms();
    rc = strcmp(verb, "list") == 0 ? list(err) : find(word, err);
    fprintf(stderr, "# %s seconds %.2f\n", verb, (double)(monotonic_ms() - start_ms) / 1000);
    return rc;
}

int main(int argc, char **argv)
{
    struct store_s3_options s3;
    options_read(&s3, argc - 2, argv + 2);
    struct store_options options = {.group_id = -1, .s3 = &s3};
    struct err err;
    char line[256];
    if (argc < 2 || store_open(argv[1], &options, false, &store, &err) < 0)
        return 1;
    while (fgets(line, sizeof(line), stdin)) {
        if (run(line, &err) < 0)
            printf("error %s %s | %s\n", err_code_name(err.code), err.text, err.hint);
        fflush(stdout);
    }
    store_close(store);
    return 0;
}
