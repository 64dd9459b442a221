/* Drives io/store.h from a test, one command a line on stdin, one answer a line on stdout:
 *     put NAME LEN SEED      the object's bytes follow from LEN and SEED
 *     get NAME LEN SEED      reads it whole and compares; "ok" or "differs at N"
 *     range NAME OFFSET LEN LEN_WHOLE SEED
 *     size NAME   remove NAME   list PREFIX (names, then "ok COUNT")
 *     clear NAME COUNT       removes NAME0 … in batches
 * An answer is "ok …", "exists" or "error NAME TEXT | HINT".
 *     tool_store URL KEY=VALUE …   endpoint region addressing ca_file connections retry_ms
 *                                  stall_ms seed; keys come from AWS_ACCESS_KEY_ID and
 *                                  AWS_SECRET_ACCESS_KEY */
#include "tests/s3/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OBJECT_MAX = 64 << 20 };

/* Bytes that depend on their place, so that a shifted or repeated piece is noticed. */
static void fill(uint8_t *buf, size_t len, uint64_t seed)
{
    uint64_t state = seed * 0x9E3779B97F4A7C15u + len;
    for (size_t i = 0; i < len; i++) {
        if (i % 8 == 0) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        buf[i] = (uint8_t)(state >> (i % 8 * 8));
    }
}

static int compare(const uint8_t *got, size_t got_len, const uint8_t *want, size_t want_len)
{
    if (got_len != want_len)
        return printf("length %zu instead of %zu\n", got_len, want_len);
    for (size_t i = 0; i < want_len; i++)
        if (got[i] != want[i])
            return printf("differs at %zu\n", i);
    return printf("ok\n");
}

static int put(struct store *store, const char *name, size_t len, uint64_t seed, struct err *err)
{
    free_mem uint8_t *data = malloc(len + 1);
    fill(data, len, seed);
    int rc = store_put(store, name, data, len, err);
    if (rc >= 0)
        printf(rc == STORE_EXISTS ? "exists\n" : "ok\n");
    return rc;
}

static int get(struct store *store, const char *name, size_t len, uint64_t seed, struct err *err)
{
    free_mem uint8_t *want = malloc(len + 1);
    free_mem void *got = NULL;
    size_t got_len;
    fill(want, len, seed);
    int rc = store_get_all(store, name, OBJECT_MAX, &got, &got_len, err);
    if (rc == 0)
        compare(got, got_len, want, len);
    return rc;
}

static int range(struct store *store, const char *name, const uint64_t *numbers, struct err *err)
{
    uint64_t offset = numbers[0], len = numbers[1], whole = numbers[2];
    free_mem uint8_t *want = malloc(whole + 1);
    free_mem uint8_t *got = malloc(len + 1);
    size_t got_len;
    fill(want, whole, numbers[3]);
    int rc = store_get(store, name, offset, got, len, &got_len, err);
    uint64_t most = offset < whole ? whole - offset : 0;
    if (rc == 0)
        compare(got, got_len, want + (offset < whole ? offset : 0), len < most ? len : most);
    return rc;
}

static int print_name(void *ctx, const char *name, uint64_t size, struct err *err)
{
    (void)err;
    (*(size_t *)ctx)++;
    printf("%s %llu\n", name, (unsigned long long)size);
    return 0;
}

static int size(struct store *store, const char *name, struct err *err)
{
    uint64_t found;
    int rc = store_size(store, name, &found, err);
    if (rc == 0)
        printf("ok %llu\n", (unsigned long long)found);
    return rc;
}

/* NAME0 … NAME<count - 1>, in batches. */
static int clear(struct store *store, const char *name, size_t count, struct err *err)
{
    enum { CLEAR_MAX = 4000, CLEAR_LEN = 540 };
    static char text[CLEAR_MAX][CLEAR_LEN];
    static const char *names[CLEAR_MAX];
    if (count > CLEAR_MAX)
        return err_set(err, ERR_USAGE, "too many");
    for (size_t i = 0; i < count; i++) {
        snprintf(text[i], CLEAR_LEN, "%s%zu", name, i);
        names[i] = text[i];
    }
    int rc = store_remove_many(store, names, count, err);
    if (rc == 0)
        printf("ok %zu\n", count);
    return rc;
}

static int run(struct store *store, const char *line, struct err *err)
{
    char verb[16], name[512] = "";
    unsigned long long n[4] = {0};
    int fields =
        sscanf(line, "%15s %511s %llu %llu %llu %llu", verb, name, &n[0], &n[1], &n[2], &n[3]);
    if (fields < 1 || n[0] > OBJECT_MAX || n[1] > OBJECT_MAX * 1024ull || n[2] > OBJECT_MAX)
        return err_set(err, ERR_USAGE, "bad line: %s", line);
    if (strcmp(verb, "put") == 0)
        return put(store, name, n[0], n[1], err);
    if (strcmp(verb, "get") == 0)
        return get(store, name, n[0], n[1], err);
    if (strcmp(verb, "range") == 0)
        return range(store, name, (const uint64_t[]){n[0], n[1], n[2], n[3]}, err);
    if (strcmp(verb, "size") == 0)
        return size(store, name, err);
    if (strcmp(verb, "clear") == 0)
        return clear(store, name, n[0], err);
    size_t count = 0;
    bool list = strcmp(verb, "list") == 0;
    int rc =
        list ? store_list(store, name, print_name, &count, err) : store_remove(store, name, err);
    if (rc == 0)
        printf("ok %zu\n", count);
    return rc;
}

static void complain(const struct err *err)
{
    printf("error %s %s | %s\n", err_code_name(err->code), err->text, err->hint);
}

int main(int argc, char **argv)
{
    struct store_s3_options s3;
    options_read(&s3, argc - 2, argv + 2);
    struct store_options options = {.group_id = -1, .s3 = &s3};
    struct store *store;
    struct err err;
    if (argc < 2 || store_open(argv[1], &options, false, &store, &err) < 0) {
        complain(&err);
        return 1;
    }
    char line[1024];
    while (fgets(line, sizeof(line), stdin)) {
        if (run(store, line, &err) < 0)
            complain(&err);
        fflush(stdout);
    }
    store_close(store);
    return 0;
}
