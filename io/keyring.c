/* See keyring.h. A master key is wrapped as objects are sealed: AES-256-GCM under a key that
 * HKDF makes of the secret and a random salt, with what the key is for as additional data. RFC 3394
 * would do as well, but binds nothing to the key and would be a second primitive to trust. */
#include "io/keyring.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "io/crypt.h"
#include "io/secret.h"
#include "io/store_ops.h"

enum { GENERATION_TRIES = 3 };

struct item {
    uint32_t id;
    enum fmt_role role;
    int64_t created_s;
    uint8_t file_id[KEY_FILE_ID_LEN];
    bool opened;
    uint8_t key[32];
};

struct keyring {
    uint8_t repository[ID_LEN];
    uint32_t generation;
    uint32_t count;
    struct item items[FMT_KEYS_MAX];
};

/* --- wrapping --------------------------------------------------------------------------------- */

struct wrap_aad {
    uint8_t repository[ID_LEN];
    uint32_t id;
    uint32_t role;
    int64_t created_s;
};
static_assert(sizeof(struct wrap_aad) == 32, "wire size");

static struct wrap_aad aad_of(const uint8_t repository[ID_LEN], const struct fmt_key *key)
{
    struct wrap_aad aad = {.id = key->id, .role = key->role, .created_s = key->created_s};
    memcpy(aad.repository, repository, ID_LEN);
    return aad;
}

static const uint8_t wrap_nonce[GCM_NONCE_LEN]; /* zeros: every wrapping has a key of its own */

static struct gcm *wrap_key(const struct key_secret *secret, const uint8_t salt[FMT_SALT_LEN])
{
    static const char info[] = "tidemark key wrap";
    uint8_t key[GCM_KEY_LEN];
    struct gcm *gcm = gcm_new();
    hkdf_sha256(secret->bytes, sizeof(secret->bytes), salt, FMT_SALT_LEN, info, sizeof(info) - 1,
                key, sizeof(key));
    gcm_set_key(gcm, key);
    explicit_bzero(key, sizeof(key));
    return gcm;
}

static int random_bytes(uint8_t to[32], struct err *err)
{
    int rc = id_random(to, err);
    return rc < 0 ? rc : id_random(to + ID_LEN, err);
}

static int wrap(const struct keyring *keys, const struct item *item,
                const struct key_secret *secret, struct fmt_key *ret, struct err *err)
{
    *ret = (struct fmt_key){.id = item->id, .role = item->role, .created_s = item->created_s};
    int rc = random_bytes(ret->salt, err);
    if (rc < 0)
        return rc;
    key_secret_id(secret, ret->file_id);
    struct wrap_aad aad = aad_of(keys->repository, ret);
    struct gcm *gcm = wrap_key(secret, ret->salt);
    gcm_seal(gcm, wrap_nonce, &aad, sizeof(aad), item->key, sizeof(item->key), ret->wrapped,
             ret->tag);
    gcm_free(gcm);
    return 0;
}

/* A key that is wrapped by another secret stays closed; one that says it is by this, and is not,
 * was tampered with. */
static int unwrap(const struct keyring *keys, const struct fmt_key *key,
                  const struct key_secret *secret, struct item *ret, struct err *err)
{
    uint8_t file_id[KEY_FILE_ID_LEN];
    key_secret_id(secret, file_id);
    ret->id = key->id;
    ret->role = (enum fmt_role)key->role;
    ret->created_s = key->created_s;
    memcpy(ret->file_id, key->file_id, sizeof(ret->file_id));
    if (secret->role != ret->role || memcmp(file_id, key->file_id, sizeof(file_id)) != 0)
        return 0;
    struct wrap_aad aad = aad_of(keys->repository, key);
    struct gcm *gcm = wrap_key(secret, key->salt);
    ret->opened = gcm_open(gcm, wrap_nonce, &aad, sizeof(aad), key->wrapped, sizeof(ret->key),
                           key->tag, ret->key);
    gcm_free(gcm);
    if (!ret->opened)
        explicit_bzero(ret->key, sizeof(ret->key));
    return ret->opened ? 0
                       : err_set(err, ERR_CORRUPT, "key %" PRIu32 " cannot be unwrapped", key->id);
}

static int unwrap_both(const struct keyring *keys, const struct fmt_key *key,
                       const struct key_secret *secret, struct item *ret, struct err *err)
{
    struct key_secret wal;
    if (secret->role != FMT_ROLE_DATA || key->role != FMT_ROLE_WAL)
        return unwrap(keys, key, secret, ret, err);
    key_secret_wal(secret, &wal);
    int rc = unwrap(keys, key, &wal, ret, err);
    explicit_bzero(&wal, sizeof(wal));
    return rc;
}

/* --- reading ---------------------------------------------------------------------------------- */

void repo_keys_name(char *name, uint32_t generation, bool copy)
{
    (void)snprintf(name, STORE_NAME_MAX + 1, "key/%08" PRIx32 "%s", generation,
                   copy ? ".copy" : "");
}

static int take_generation(void *ctx, const char *name, uint64_t size, struct err *err)
{
    uint32_t *newest = ctx;
    char again[STORE_NAME_MAX + 1];
    (void)size;
    (void)err;
    uint32_t generation = (uint32_t)strtoul(name + 4, NULL, 16);
    for (int copy = 0; copy < 2; copy++) {
        repo_keys_name(again, generation, copy);
        if (strcmp(name, again) == 0 && generation > *newest)
            *newest = generation;
    }
    return 0;
}

static int no_ring(struct store *store, struct err *err)
{
    (void)err_set(err, ERR_CORRUPT, "%s is encrypted and has no key ring: key/ is empty",
                  store_url(store));
    return err_hint(err, "without the objects of key/ nothing in it can be read: put them back "
                         "from another copy; after an `init` that was interrupted, empty the place "
                         "and init again");
}

static int read_ring(struct store *store, const struct repo *repo, const char *name,
                     uint32_t generation, const struct key_secret *secret, struct keyring *keys,
                     struct err *err)
{
    free_mem void *buf = NULL;
    size_t len;
    const struct fmt_key *from;
    uint32_t number;
    int rc = store_get_all(store, name, fmt_keys_len(FMT_KEYS_MAX), &buf, &len, err);
    if (rc == 0)
        rc = fmt_keys_decode(buf, len, repo->id, &number, &from, &keys->count, err);
    if (rc == 0 && number != generation)
        rc = err_set(err, ERR_CORRUPT, "it is generation %" PRIu32, number);
    for (uint32_t i = 0; rc == 0 && i < keys->count; i++)
        rc = unwrap_both(keys, &from[i], secret, &keys->items[i], err);
    keys->generation = generation;
    return rc < 0 ? err_prefix(err, "object '%s'", name) : 0;
}

/* The copy, when the first is damaged or missing. */
static int read_generation(struct store *store, const struct repo *repo, uint32_t generation,
                           const struct key_secret *secret, struct keyring *keys, struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    struct err second;
    repo_keys_name(name, generation, false);
    int rc = read_ring(store, repo, name, generation, secret, keys, err);
    if (rc != -ERR_MISSING && rc != -ERR_CORRUPT)
        return rc;
    memset(keys->items, 0, sizeof(keys->items));
    repo_keys_name(name, generation, true);
    return read_ring(store, repo, name, generation, secret, keys, &second) == 0 ? 0 : rc;
}

static void file_id_text(const uint8_t id[KEY_FILE_ID_LEN], char text[17])
{
    for (size_t i = 0; i < 8; i++)
        (void)snprintf(text + 2 * i, 3, "%02x", id[i]);
}

static int wrong_file(const struct keyring *keys, const struct key_secret *secret, struct err *err)
{
    char ours[17], theirs[17];
    uint8_t id[KEY_FILE_ID_LEN];
    const struct item *item = &keys->items[0];
    for (uint32_t i = 0; i < keys->count; i++)
        if (keys->items[i].role == secret->role)
            item = &keys->items[i];
    key_secret_id(secret, id);
    file_id_text(id, ours);
    file_id_text(item->file_id, theirs);
    (void)err_set(err, ERR_AUTH, "the key file (%s) is not the one of this repository (%s)", ours,
                  theirs);
    return err_hint(err, "key_file, or --key-file=FILE, has to name the key file that the "
                         "repository was made with, or the last one that `tidemark key rewrap` "
                         "gave it");
}

static bool opens_any(const struct keyring *keys)
{
    for (uint32_t i = 0; i < keys->count; i++)
        if (keys->items[i].opened)
            return true;
    return false;
}

int keyring_open(struct store *store, const struct repo *repo, const struct key_secret *secret,
                 struct err *err)
{
    uint32_t generation = 0;
    void *memory;
    assert(repo->cipher == REPO_AES_256_GCM);
    int rc = secret_alloc(sizeof(struct keyring), &memory, err);
    if (rc < 0)
        return rc;
    struct keyring *keys = memory;
    memcpy(keys->repository, repo->id, ID_LEN);
    rc = store_list(store, "key/", take_generation, &generation, err);
    if (rc == 0)
        rc = generation == 0 ? no_ring(store, err)
                             : read_generation(store, repo, generation, secret, keys, err);
    if (rc == 0 && !opens_any(keys))
        rc = wrong_file(keys, secret, err);
    if (rc < 0) {
        keyring_free(keys);
        return rc;
    }
    store_give_keys(store, keys);
    return 0;
}

/* --- writing ---------------------------------------------------------------------------------- */

static int add_key(struct keyring *keys, enum fmt_role role, struct err *err)
{
    if (keys->count == FMT_KEYS_MAX)
        return err_set(err, ERR_REFUSED, "the key ring is full: it has %d keys", FMT_KEYS_MAX);
    uint32_t last = keys->count > 0 ? keys->items[keys->count - 1].id : 0;
    struct item *item = &keys->items[keys->count];
    *item = (struct item){
        .id = last + 1, .role = role, .created_s = (int64_t)time(NULL), .opened = true};
    int rc = random_bytes(item->key, err);
    keys->count += rc == 0;
    return rc;
}

static int encode(struct keyring *keys, const struct key_secret *secret, uint8_t *to,
                  struct err *err)
{
    free_mem struct fmt_key *wrapped = calloc(FMT_KEYS_MAX, sizeof(*wrapped));
    struct key_secret wal;
    int rc = 0;
    if (!wrapped)
        return err_set(err, ERR_INTERNAL, "out of memory");
    key_secret_wal(secret, &wal);
    for (uint32_t i = 0; rc == 0 && i < keys->count; i++) {
        struct item *item = &keys->items[i];
        rc = wrap(keys, item, item->role == FMT_ROLE_WAL ? &wal : secret, &wrapped[i], err);
        memcpy(item->file_id, wrapped[i].file_id, sizeof(item->file_id));
    }
    explicit_bzero(&wal, sizeof(wal));
    if (rc == 0)
        fmt_keys_encode(wrapped, keys->count, keys->generation, keys->repository, to);
    return rc;
}

/* The copy first: a ring that is there has its copy. */
static int write_ring(struct store *store, struct keyring *keys, const struct key_secret *secret,
                      struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    size_t len = fmt_keys_len(keys->count);
    free_mem uint8_t *object = malloc(len);
    if (!object)
        return err_set(err, ERR_INTERNAL, "out of memory");
    assert(secret->role == FMT_ROLE_DATA);
    int rc = encode(keys, secret, object, err);
    for (int copy = 1; rc == 0 && copy >= 0; copy--) {
        repo_keys_name(name, keys->generation, copy);
        rc = store_put(store, name, object, len, err);
    }
    if (rc == STORE_EXISTS) {
        (void)err_set(err, ERR_BUSY, "object '%s' is there already: somebody else changes the keys",
                      name);
        return err_hint(err, "look at `tidemark key status`, then try again");
    }
    return rc;
}

/* Ends the making of a ring that came to rc: it is written and becomes the store's, or goes. */
static int publish(struct store *store, struct keyring *keys, const struct key_secret *secret,
                   int rc, struct err *err)
{
    if (rc == 0)
        rc = write_ring(store, keys, secret, err);
    if (rc < 0)
        keyring_free(keys);
    else
        store_give_keys(store, keys);
    return rc;
}

int keyring_create(struct store *store, const struct repo *repo, const struct key_secret *secret,
                   struct err *err)
{
    void *memory;
    int rc = secret_alloc(sizeof(struct keyring), &memory, err);
    if (rc < 0)
        return rc;
    struct keyring *keys = memory;
    memcpy(keys->repository, repo->id, ID_LEN);
    keys->generation = 1;
    rc = add_key(keys, FMT_ROLE_DATA, err);
    if (rc == 0)
        rc = add_key(keys, FMT_ROLE_WAL, err);
    return publish(store, keys, secret, rc, err);
}

static bool same_file(const struct keyring *keys, const struct key_secret *secret)
{
    uint8_t id[KEY_FILE_ID_LEN];
    key_secret_id(secret, id);
    for (uint32_t i = 0; i < keys->count; i++)
        if (keys->items[i].role == FMT_ROLE_DATA)
            return memcmp(keys->items[i].file_id, id, sizeof(id)) == 0;
    return false;
}

/* What the old key file opens has to go, or it is good for ever. */
static uint32_t remove_before(struct store *store, uint32_t generation)
{
    char name[STORE_NAME_MAX + 1];
    struct err ignored;
    uint32_t left = 0;
    for (uint32_t i = 1; i < generation; i++)
        for (int copy = 0; copy < 2; copy++) {
            repo_keys_name(name, i, copy);
            left += store_remove(store, name, &ignored) < 0;
        }
    return left;
}

int keyring_advance(struct store *store, const struct repo *repo, const struct key_secret *secret,
                    bool new_keys, uint32_t *ret_left, struct err *err)
{
    const struct keyring *old = store_keys(store);
    void *memory;
    assert(old != NULL && memcmp(old->repository, repo->id, ID_LEN) == 0);
    for (uint32_t i = 0; i < old->count; i++)
        if (!old->items[i].opened)
            return err_set(err, ERR_AUTH,
                           "this key file does not open key %" PRIu32 " of the repository",
                           old->items[i].id);
    int rc = secret_alloc(sizeof(struct keyring), &memory, err);
    if (rc < 0)
        return rc;
    struct keyring *keys = memory;
    memcpy(keys, old, sizeof(*keys));
    keys->generation++;
    if (new_keys)
        rc = add_key(keys, FMT_ROLE_DATA, err);
    if (rc == 0 && new_keys)
        rc = add_key(keys, FMT_ROLE_WAL, err);
    uint32_t generation = keys->generation;
    bool same = same_file(old, secret);
    rc = publish(store, keys, secret, rc, err); /* frees the old ones */
    if (rc < 0)
        return rc;
    uint32_t left = same ? 0 : remove_before(store, generation);
    if (ret_left)
        *ret_left = left;
    return 0;
}

/* --- use -------------------------------------------------------------------------------------- */

static const struct item *newest(const struct keyring *keys, enum fmt_role role)
{
    const struct item *found = NULL;
    for (uint32_t i = 0; i < keys->count; i++)
        if (keys->items[i].role == role)
            found = &keys->items[i];
    return found;
}

void keyring_describe(const struct keyring *keys, struct keyring_info *ret)
{
    const struct item *data = newest(keys, FMT_ROLE_DATA), *wal = newest(keys, FMT_ROLE_WAL);
    *ret = (struct keyring_info){
        .generation = keys->generation,
        .data_key = data && data->opened ? data->id : 0,
        .wal_key = wal && wal->opened ? wal->id : 0,
        .count = keys->count,
    };
}

static int not_opened(enum fmt_role role, struct err *err)
{
    (void)err_set(err, ERR_AUTH, "this key file does not open the %s keys of the repository",
                  role == FMT_ROLE_WAL ? "WAL" : "data");
    return err_hint(err, role == FMT_ROLE_WAL
                             ? "make one for the server's user: `tidemark key wal FILE`"
                             : "the key file of [wal] is good for wal/ only: name that of "
                               "[repository]");
}

int keyring_current(const struct keyring *keys, enum fmt_role role, uint32_t *ret_id,
                    struct err *err)
{
    const struct item *item = newest(keys, role);
    if (!item || !item->opened)
        return not_opened(role, err);
    *ret_id = item->id;
    return 0;
}

static const struct item *find(const struct keyring *keys, uint32_t id)
{
    for (uint32_t i = 0; i < keys->count; i++)
        if (keys->items[i].id == id)
            return &keys->items[i];
    return NULL;
}

int keyring_object_key(const struct keyring *keys, enum fmt_role role, uint32_t key_id,
                       const uint8_t salt[FMT_SALT_LEN], const char *name, uint8_t ret_key[32],
                       struct err *err)
{
    const struct item *item = find(keys, key_id);
    if (!item) {
        (void)err_set(err, ERR_AUTH,
                      "sealed with key %" PRIu32 ", which the key ring does not have", key_id);
        return err_hint(err, "key/%08" PRIx32 " was read: has a newer one been lost?",
                        keys->generation);
    }
    if (item->role != role)
        return err_set(err, ERR_CORRUPT, "sealed with key %" PRIu32 ", which is %s", key_id,
                       role == FMT_ROLE_WAL ? "not for WAL" : "for WAL only");
    if (!item->opened)
        return not_opened(role, err);
    hkdf_sha256(item->key, sizeof(item->key), salt, FMT_SALT_LEN, name, strlen(name), ret_key, 32);
    return 0;
}

const uint8_t *keyring_repository(const struct keyring *keys)
{
    return keys->repository;
}

void keyring_free(struct keyring *keys)
{
    secret_free(keys, sizeof(*keys));
}
