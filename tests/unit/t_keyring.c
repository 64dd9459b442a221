/* Key files and key rings: who may read what, rotation, another key file, a writer that is killed,
 * and what somebody without a key may make of a ring or of tidemark.repo, and what a host
 * remembers. */
#include "agent/json.h"
#include "agent/key_file.h"
#include "agent/key_memory.h"
#include "io/store_ops.h"
#include "tests/unit/seal_fixture.h"

/* --- key files -------------------------------------------------------------------------------- */

static void test_key_file(void)
{
    struct key_secret secret, wal, got;
    char text[KEY_FILE_TEXT_MAX];
    is_good(key_secret_random(&secret, &err), &err, "a secret");
    key_secret_wal(&secret, &wal);
    key_secret_print(&secret, text);
    size_t len = strlen(text), good = 0;
    is_good(key_secret_parse(text, len, &got, &err), &err, "a key file is read");
    ok(memcmp(&got, &secret, sizeof(got)) == 0, "and holds what was written");
    for (char *at = strchr(text, '='); *at; at++) {
        char was = *at;
        *at = was == '0' ? '1' : '0';
        good += key_secret_parse(text, len, &got, &err) == -ERR_AUTH;
        *at = was;
    }
    is_u64(good, strlen(strchr(text, '=')), "each changed character is seen");
    char *end = text + len;
    key_secret_print(&wal, end);
    is_err(key_secret_parse(text, strlen(text), &got, &err), &err, ERR_AUTH, "more than one",
           "two keys");
    is_good(key_secret_parse(end, strlen(end), &got, &err), &err, "the WAL key file alone");
    ok(got.role == FMT_ROLE_WAL && memcmp(got.bytes, secret.bytes, 32) != 0, "is another secret");
    is_err(key_secret_parse("# nothing\n", 10, &got, &err), &err, ERR_AUTH, "no key", "none");
}

/* --- key rings -------------------------------------------------------------------------------- */

/* A fresh look at the repository. */
static int reopen(const struct key_secret *secret, struct store **ret)
{
    struct repo repo;
    bool used_copy;
    int rc = store_open(f.url, NULL, false, ret, &err);
    if (rc == 0)
        rc = repo_open(*ret, &repo, &used_copy, &err);
    return rc < 0 || !secret ? rc : keyring_open(*ret, &repo, secret, &err);
}

static void test_who(void)
{
    struct store *store;
    struct key_secret wal, other;
    uint8_t object[512] = {0};
    is_good(reopen(NULL, &store), &err, "without keys");
    is_err(get(store, "drill/a"), &err, ERR_AUTH, "no key", "nothing is read");
    is_err(store_put(store, "drill/c", object, sizeof(object), &err), &err, ERR_AUTH, "no key",
           "nothing is written");
    store_close(store);
    key_secret_wal(&f.secret, &wal);
    is_good(reopen(&wal, &store), &err, "with the WAL key file");
    is_good(get(store, "wal/main/1/00000001/00000002.history"), &err, "WAL is read");
    is_err(get(store, "drill/a"), &err, ERR_AUTH, "does not open the data keys", "nothing else");
    store_close(store);
    is_good(key_secret_random(&other, &err), &err, "another key file");
    is_err(reopen(&other, &store), &err, ERR_AUTH, "is not the one of this repository",
           "is refused");
    store_close(store);
}

static void test_rotate(void)
{
    struct store *store;
    struct keyring_info info;
    struct key_secret other;
    uint32_t left = 9;
    is_good(keyring_advance(f.store, &f.repo, &f.secret, true, &left, &err), &err, "rotate");
    keyring_describe(store_keys(f.store), &info);
    ok(info.generation == 2 && info.data_key == 3 && info.wal_key == 4 && left == 0, "new keys");
    put_json("drill/new");
    uint8_t bytes[512];
    load("drill/new", bytes, sizeof(bytes));
    is_u64(get_le32(bytes + 16), 3, "a new object is sealed with the new one");
    is_good(get(f.store, "drill/a"), &err, "an old one is read");
    is_good(reopen(&f.secret, &store), &err, "and after opening again");
    is_good(get(store, "drill/a"), &err, "too");
    is_good(keyring_advance(f.store, &f.repo, &f.secret, true, NULL, &err), &err, "rotate again");
    is_err(keyring_advance(store, &f.repo, &f.secret, true, NULL, &err), &err, ERR_BUSY,
           "somebody else", "who looked before that does not take its place");
    store_close(store);
    is_good(key_secret_random(&other, &err), &err, "another key file");
    is_good(keyring_advance(f.store, &f.repo, &other, false, &left, &err), &err, "rewrap");
    ok(left == 0 && load("key/00000003", bytes, sizeof(bytes)) == 0, "older generations are gone");
    is_err(reopen(&f.secret, &store), &err, ERR_AUTH, "is not the one", "the old file is refused");
    store_close(store);
    is_good(reopen(&other, &store), &err, "the new one is good");
    is_good(get(store, "drill/a"), &err, "for old objects");
    is_good(get(store, "drill/new"), &err, "and newer ones");
    store_close(store);
    f.secret = other;
}

/* What somebody may make of a ring without any key: all its checksums are right. */
static void right_ring(uint8_t *object, size_t len)
{
    sha256(object + FMT_HEADER_LEN, len - FMT_HEADER_LEN, object + 88);
    right_checksum(object);
}

static struct fmt_key *key_at(uint8_t *object, size_t index)
{
    return (struct fmt_key *)(void *)(object + FMT_HEADER_LEN + FMT_KEYS_FIXED_LEN) + index;
}

static size_t forge_key(uint8_t *object, size_t len)
{
    memset(key_at(object, 0)->wrapped, 0x55, 32);
    return len;
}

static size_t forge_last_dropped(uint8_t *object, size_t len)
{
    put_le32(object + FMT_HEADER_LEN, get_le32(object + FMT_HEADER_LEN) - 1);
    put_le64(object + 24, get_le64(object + 24) - FMT_KEY_LEN);
    return len - FMT_KEY_LEN;
}

/* The newest data key would be the one before it. */
static size_t forge_role(uint8_t *object, size_t len)
{
    struct fmt_key *key = key_at(object, get_le32(object + FMT_HEADER_LEN) - 2);
    key->role = FMT_ROLE_WAL;
    key->file_id[0] ^= 1;
    return len;
}

static size_t forge_number(uint8_t *object, size_t len)
{
    key_at(object, get_le32(object + FMT_HEADER_LEN) - 1)->id++;
    return len;
}

static size_t forge_time(uint8_t *object, size_t len)
{
    key_at(object, 1)->created_s++;
    return len;
}

static size_t forge_file(uint8_t *object, size_t len)
{
    key_at(object, 0)->file_id[0] ^= 1;
    return len;
}

/* Tries bytes as generation 4, both objects. */
static void refuse_ring(const uint8_t *object, size_t len, const char *text, const char *what)
{
    struct store *store;
    save("key/00000004", object, len);
    save("key/00000004.copy", object, len);
    is_err(reopen(&f.secret, &store), &err, ERR_CORRUPT, text, "%s", what);
    ok(err.hint[0] != '\0' || strstr(text, "another key file"), "with a hint");
    store_close(store);
}

static void test_forged_ring(const uint8_t *good, size_t len)
{
    static const struct {
        const char *what, *text;
        size_t (*forge)(uint8_t *object, size_t len);
    } cases[] = {
        {"a key of somebody's own", "cannot be unwrapped", forge_key},
        {"the last key is dropped", "cannot be unwrapped", forge_last_dropped},
        {"a key has another role", "cannot be unwrapped", forge_role},
        {"a key has another number", "cannot be unwrapped", forge_number},
        {"a key has another time", "cannot be unwrapped", forge_time},
        {"a key is another file's", "another key file", forge_file},
    };
    static _Alignas(8) uint8_t bytes[1 << 16];
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        memcpy(bytes, good, len);
        size_t forged_len = cases[i].forge(bytes, len);
        right_ring(bytes, forged_len);
        refuse_ring(bytes, forged_len, cases[i].text, cases[i].what);
    }
    memcpy(bytes, good, len);
    bytes[len - 1] ^= 1;
    refuse_ring(bytes, len, "key/00000004", "damaged");
    save("key/00000004", good, len);
    save("key/00000004.copy", good, len);
}

/* An old ring under a newer number, and the number behind which none comes. */
static void test_generation(const uint8_t *good, size_t len)
{
    static const struct {
        uint32_t number;
        const char *text;
    } cases[] = {{5, "cannot be unwrapped"}, {0xffffffff, "key ring:"}};
    static uint8_t bytes[1 << 16];
    struct store *store;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char name[2][STORE_NAME_MAX + 1], path[512];
        memcpy(bytes, good, len);
        put_le32(bytes + 80, cases[i].number);
        right_checksum(bytes);
        for (int copy = 0; copy < 2; copy++) {
            repo_keys_name(name[copy], cases[i].number, copy);
            save(name[copy], bytes, len);
        }
        is_err(reopen(&f.secret, &store), &err, ERR_CORRUPT, cases[i].text,
               "an old ring as generation %08x", cases[i].number);
        ok(strstr(err.text, name[0]) != NULL, "and which");
        store_close(store);
        for (int copy = 0; copy < 2; copy++) {
            path_of(name[copy], path);
            unlink(path);
        }
    }
}

/* tidemark.repo says how chunks are cut and hashed: with another one nothing would be found again.
 */
static void test_changed_repo(void)
{
    static const size_t places[] = {192, 200, 208}; /* chunk size, seed, time */
    uint8_t good[FMT_REPO_LEN], bytes[FMT_REPO_LEN];
    struct store *store;
    load("tidemark.repo", good, sizeof(good));
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        memcpy(bytes, good, sizeof(bytes));
        if (i == 0)
            put_le32(bytes + places[i], get_le32(bytes + places[i]) ^ (16 << 10 | 32 << 10));
        else
            bytes[places[i]] ^= 1;
        right_ring(bytes, sizeof(bytes));
        save("tidemark.repo", bytes, sizeof(bytes));
        is_err(reopen(&f.secret, &store), &err, ERR_CORRUPT, "cannot be unwrapped",
               "another tidemark.repo, byte %zu", places[i]);
        ok(strstr(err.hint, "tidemark.repo") != NULL, "the hint says where to look");
        store_close(store);
    }
    save("tidemark.repo", good, sizeof(good));
    is_good(reopen(&f.secret, &store), &err, "put right again");
    store_close(store);
}

static void test_damaged_ring(void)
{
    static uint8_t bytes[1 << 16], good[1 << 16];
    struct store *store;
    struct keyring_info info;
    size_t len = load("key/00000004", good, sizeof(good));
    memcpy(bytes, good, len);
    bytes[300] ^= 1;
    save("key/00000004", bytes, len);
    is_good(reopen(&f.secret, &store), &err, "a damaged ring: its copy");
    keyring_describe(store_keys(store), &info);
    ok(info.used_copy && info.generation == 4, "which is known");
    store_close(store);
    test_forged_ring(good, len);
    test_generation(good, len);
    test_changed_repo();
}

/* What a writer leaves that is killed after each of its steps. */
static void test_killed(void)
{
    static uint8_t bytes[1 << 16];
    struct keyring_info info;
    struct store *store;
    char path[512];
    uint32_t left = 9;
    is_good(keyring_advance(f.store, &f.repo, &f.secret, true, NULL, &err), &err, "rotate");
    path_of("key/00000005", path);
    unlink(path);
    is_good(reopen(&f.secret, &store), &err, "killed behind the copy");
    keyring_describe(store_keys(store), &info);
    ok(info.generation == 5 && info.used_copy, "the new generation counts");
    size_t len = load("key/00000004", bytes, sizeof(bytes));
    ok(len > 0 && load("key/00000004.copy", bytes, sizeof(bytes)) == len, "the old one is whole");
    is_good(keyring_advance(store, &f.repo, &f.secret, true, NULL, &err), &err, "once more");
    keyring_describe(store_keys(store), &info);
    ok(info.generation == 6 && !info.used_copy, "writes both of the next one");
    /* A rewrap that was killed before it had removed the older ones. */
    is_good(keyring_advance(store, &f.repo, &f.secret, false, &left, &err), &err, "rewrap");
    ok(left == 0 && load("key/00000004.copy", bytes, sizeof(bytes)) == 0 &&
           load("key/00000006", bytes, sizeof(bytes)) == 0,
       "removes older ones, with the same key file as well");
    is_good(get(store, "drill/a"), &err, "the oldest object is read");
    store_close(store);
    store_close(f.store);
    is_good(reopen(&f.secret, &f.store), &err, "opened anew");
}

/* --- a store that loses its answers ----------------------------------------------------------- */

static int get_none(struct store *store, const char *name, size_t len_max, void **ret_buf,
                    size_t *ret_len, struct err *ret_err)
{
    (void)store, (void)len_max, (void)ret_buf, (void)ret_len;
    return err_set(ret_err, ERR_STORE, "no answer for %s", name);
}

static void test_not_read_back(void)
{
    const struct store_ops *sound = f.store->ops;
    struct store_ops ops = *sound;
    struct keyring_info info;
    struct store *store;
    ops.get_all = get_none;
    f.store->ops = &ops;
    is_err(keyring_advance(f.store, &f.repo, &f.secret, true, NULL, &err), &err, ERR_STORE,
           "counts from now on, but could not be read back: no answer",
           "no answer behind the puts");
    ok(strstr(err.hint, "keep the old key file and the new one") != NULL, "and what to do");
    f.store->ops = sound;
    is_good(reopen(&f.secret, &store), &err, "opened again");
    keyring_describe(store_keys(store), &info);
    is_u64(info.generation, 8, "it does count");
    store_close(f.store);
    f.store = store;
}

/* --- what a host remembers -------------------------------------------------------------------- */

static uint64_t remembered(const char *path)
{
    free_json json_t *json = NULL;
    uint64_t generation = 0;
    is_good(json_load_path(path, &json, &err), &err, "what is remembered");
    is_good(json_get_u64(json, "generation", ERR_CORRUPT, &generation, &err), &err, "is a number");
    return generation;
}

static void test_memory(void)
{
    static struct conf conf;
    char path[CONF_PATH_MAX + 64], id[ID_TEXT_LEN];
    struct keyring_info info;
    struct store *late;
    id_to_text(f.repo.id, id);
    snprintf(conf.state_dir, sizeof(conf.state_dir), "%s", f.dir);
    snprintf(conf.repository_key_file, sizeof(conf.repository_key_file), "%s/key", f.dir);
    snprintf(path, sizeof(path), "%s/keyring-%s.json", f.dir, id);
    is_good(key_file_make(conf.repository_key_file, &f.secret, -1, &err), &err, "the key file");
    is_good(reopen(&f.secret, &late), &err, "a job has read generation 8");
    is_good(keyring_advance(f.store, &f.repo, &f.secret, true, NULL, &err), &err, "rotate");
    is_good(key_memory_check(&conf, &f.repo, f.store, &err), &err, "which remembers");
    is_u64(remembered(path), 9, "generation 9");
    is_good(key_memory_check(&conf, &f.repo, late, &err), &err, "the job looks again");
    keyring_describe(store_keys(late), &info);
    is_u64(info.generation, 9, "and has 9 as well");
    store_close(late);
    static const char high[] = "{\"generation\": 11}";
    FILE *file = fopen(path, "w");
    ok(file && fputs(high, file) >= 0 && fclose(file) == 0, "the host has seen generation 11");
    is_err(key_memory_check(&conf, &f.repo, f.store, &err), &err, ERR_REFUSED,
           "host has seen 0000000b", "an older one that stays is refused");
    is_u64(remembered(path), 11, "and 11 stays remembered");
    static const char damaged[] = "not JSON, longer than what would be written over it";
    file = fopen(path, "w");
    ok(file && fputs(damaged, file) >= 0 && fclose(file) == 0, "the file is damaged");
    is_good(key_memory_check(&conf, &f.repo, f.store, &err), &err, "a warning");
    char left[sizeof(damaged)] = "";
    file = fopen(path, "r");
    ok(file && fgets(left, sizeof(left), file) && fclose(file) == 0, "it is read");
    is_str(left, damaged, "and nothing is written over it");
}

int main(void)
{
    test_key_file();
    is_good(fixture_open_as(&f, "/var/tmp", 32 << 10, 1, true, &err), &err,
            "an encrypted repository");
    put_json("drill/a");
    put_wal("wal/main/1/00000001/00000002.history");
    test_who();
    test_rotate();
    test_damaged_ring();
    test_killed();
    test_not_read_back();
    test_memory();
    fixture_close(&f);
    return done();
}
