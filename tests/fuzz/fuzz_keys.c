/* Key rings, key files, and sealed objects of an encrypted repository: nothing that was not sealed
 * with its keys is ever opened. */
#include <stdlib.h>

#include "io/seal.h"
#include "tests/fuzz/fuzz.h"

static struct store *store;
static struct repo repo;

/* The fuzzed bytes meet keys that they cannot know. */
static void open_store(void)
{
    static char dir[] = "/tmp/tidemark-fuzz-XXXXXX";
    char url[64], command[64];
    struct key_secret secret;
    struct err err;
    FUZZ_CHECK(mkdtemp(dir) != NULL);
    snprintf(url, sizeof(url), "file://%s", dir);
    FUZZ_CHECK(store_open(url, NULL, true, &store, &err) == 0);
    FUZZ_CHECK(key_secret_random(&secret, &err) == 0);
    FUZZ_CHECK(repo_create_sealed(store, 32768, &secret, &repo, &err) == 0);
    snprintf(command, sizeof(command), "rm -rf '%s'", dir);
    FUZZ_CHECK(system(command) == 0);
}

static void ring(const uint8_t *data, size_t size)
{
    const struct fmt_key *keys;
    uint32_t generation, count;
    struct err err;
    if (!fuzz_good(fmt_keys_decode(data, size, NULL, &generation, &keys, &count, &err), &err))
        return;
    FUZZ_CHECK(size == fmt_keys_len(count));
    free_mem uint8_t *again = malloc(size);
    FUZZ_CHECK(again != NULL);
    fmt_keys_encode(keys, count, generation, data + 32, again);
    FUZZ_CHECK(memcmp(again, data, size) == 0);
}

static void key_file(const uint8_t *data, size_t size)
{
    struct key_secret secret, second;
    char text[KEY_FILE_TEXT_MAX];
    struct err err;
    if (key_secret_parse((const char *)data, size, &secret, &err) < 0) {
        FUZZ_CHECK(err.code == ERR_AUTH);
        return;
    }
    key_secret_print(&secret, text);
    FUZZ_CHECK(key_secret_parse(text, strlen(text), &second, &err) == 0);
    FUZZ_CHECK(secret.role == second.role && memcmp(secret.bytes, second.bytes, 32) == 0);
}

/* As it is, and with all that the header must say. */
static void object(uint8_t *data, size_t size, const char *name, uint32_t key_id)
{
    uint8_t *plain = NULL, head[FMT_HEADER_LEN + FMT_WAL_FIXED_LEN];
    size_t len;
    struct err err;
    if (size >= FMT_HEADER_LEN && data[0] != 'x') {
        memcpy(data + 32, repo.id, ID_LEN);
        put_le32(data + 16, key_id);
        put_le64(data + 24, size - FMT_HEADER_LEN);
        hash_xxh3_128(data, 176, 0, data + 176);
    }
    if (seal_open_object(store_keys(store), name, data, size, &plain, &len, &err) == 0) {
        /* Packs and table packs are sealed in parts: they come as they are. */
        FUZZ_CHECK(len == size && memcmp(plain, data, size) == 0);
        FUZZ_CHECK(memcmp(data, "TMPACK", 6) == 0 || memcmp(data, "TMTABLE", 7) == 0);
    }
    free(plain);
    FUZZ_CHECK(seal_open_wal_head(store_keys(store), name, data, size, head, &err) < 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    free_mem uint8_t *copy = fuzz_copy(data, size);
    if (!store)
        open_store();
    key_file(copy, size);
    ring(copy, size);
    fuzz_seal_body(copy, size);
    ring(copy, size);
    object(copy, size, "drill/x", 1);
    object(copy, size, "wal/main/1/00000001/000000010000000000000001", 2);
    return 0;
}
