/* See keyring.h; how a key is wrapped is key_wrap.c's part. */
#include "io/keyring.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "io/crypt.h"
#include "io/key_wrap.h"
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
    struct repo repo;
    uint32_t generation;
    uint32_t count;
    bool used_copy; /* the first of its two objects is missing or damaged */
    struct item items[FMT_KEYS_MAX];
};

static int new_ring(const struct repo *repo, struct keyring **ret, struct err *err)
{
    void *memory;
    int rc = secret_alloc(sizeof(struct keyring), &memory, err);
    if (rc < 0)
        return rc;
    *ret = memory;
    (*ret)->repo = *repo;
    return 0;
}

static int random_key(uint8_t to[32], struct err *err)
{
    int rc = id_random(to, err);
    return rc < 0 ? rc : id_random(to + ID_LEN, err);
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

/* A key that is wrapped by another secret stays closed; one that says it is by this, and is not,
 * was tampered with. */
static int open_key(const struct key_wrap_ring *ring, const struct fmt_key *key,
                    const struct key_secret *secret, struct item *ret, struct err *err)
{
    struct key_secret wal = *secret;
    if (secret->role == FMT_ROLE_DATA && key->role == FMT_ROLE_WAL)
        key_secret_wal(secret, &wal);
    ret->id = key->id;
    ret->role = (enum fmt_role)key->role;
    ret->created_s = key->created_s;
    memcpy(ret->file_id, key->file_id, sizeof(ret->file_id));
    bool ours = key_wrap_is_by(key, &wal);
    ret->opened = ours && key_unwrap(ring, &wal, key, ret->key);
    explicit_bzero(&wal, sizeof(wal));
    if (ret->opened || !ours)
        return 0;
    return err_set(err, ERR_CORRUPT,
                   "key %" PRIu32 " cannot be unwrapped: the key ring, or tidemark.repo, is not "
                   "what was written",
                   key->id);
}

static int read_ring(struct store *store, const char *name, uint32_t generation,
                     const struct key_secret *secret, struct keyring *keys, struct err *err)
{
    free_mem void *buf = NULL;
    size_t len;
    const struct fmt_key *from;
    uint32_t number;
    int rc = store_get_all(store, name, fmt_keys_len(FMT_KEYS_MAX), &buf, &len, err);
    if (rc == 0)
        rc = fmt_keys_decode(buf, len, keys->repo.id, &number, &from, &keys->count, err);
    if (rc == 0 && number != generation)
        rc = err_set(err, ERR_CORRUPT, "it is generation %" PRIu32, number);
    keys->generation = generation;
    struct key_wrap_ring ring;
    if (rc == 0)
        key_wrap_begin(&ring, &keys->repo, generation, from, keys->count);
    for (uint32_t i = 0; rc == 0 && i < keys->count; i++)
        rc = open_key(&ring, &from[i], secret, &keys->items[i], err);
    return rc < 0 ? err_prefix(err, "object '%s'", name) : 0;
}

/* The copy, when the first is damaged or missing. */
static int read_generation(struct store *store, uint32_t generation,
                           const struct key_secret *secret, struct keyring *keys, struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    struct err second;
    repo_keys_name(name, generation, false);
    int rc = read_ring(store, name, generation, secret, keys, err);
    if (rc != -ERR_MISSING && rc != -ERR_CORRUPT)
        return rc;
    memset(keys->items, 0, sizeof(keys->items));
    repo_keys_name(name, generation, true);
    keys->used_copy = true;
    int copy_rc = read_ring(store, name, generation, secret, keys, &second);
    if (copy_rc == 0)
        return 0;
    if (rc == -ERR_MISSING)
        *err = second;
    if (err->code != ERR_CORRUPT && err->code != ERR_MISSING)
        return -(int)err->code;
    return err_hint(err,
                    "put this object, or its copy, and tidemark.repo back as they were; if nobody "
                    "changed keys with `tidemark key`, somebody else wrote them");
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
    return err_hint(err,
                    "put your copy of the repository's key file back: the one it was made "
                    "with, or the last that `tidemark key rewrap` gave it%s",
                    secret->role == FMT_ROLE_WAL
                        ? "; `tidemark key wal FILE` makes that of [wal] from it"
                        : "");
}

/* A key file opens all keys of its role, the one of the repository all there are. */
static int check_opened(const struct keyring *keys, const struct key_secret *secret,
                        struct err *err)
{
    const struct item *closed = NULL;
    uint32_t opened = 0;
    for (uint32_t i = 0; i < keys->count; i++) {
        const struct item *item = &keys->items[i];
        opened += item->opened;
        if (!item->opened && (secret->role == FMT_ROLE_DATA || item->role == secret->role))
            closed = item;
    }
    if (opened == 0)
        return wrong_file(keys, secret, err);
    if (!closed)
        return 0;
    return err_set(err, ERR_CORRUPT,
                   "key ring: key %" PRIu32 " is wrapped by another key file than the others",
                   closed->id);
}

int keyring_open(struct store *store, const struct repo *repo, const struct key_secret *secret,
                 struct err *err)
{
    uint32_t generation = 0;
    struct keyring *keys;
    assert(repo->cipher == REPO_AES_256_GCM);
    int rc = new_ring(repo, &keys, err);
    if (rc < 0)
        return rc;
    rc = store_list(store, "key/", take_generation, &generation, err);
    if (rc == 0)
        rc = generation == 0 ? no_ring(store, err)
                             : read_generation(store, generation, secret, keys, err);
    if (rc == 0)
        rc = check_opened(keys, secret, err);
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
    int rc = random_key(item->key, err);
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
    for (uint32_t i = 0; i < keys->count; i++) {
        const struct item *item = &keys->items[i];
        wrapped[i] =
            (struct fmt_key){.id = item->id, .role = item->role, .created_s = item->created_s};
    }
    struct key_wrap_ring ring;
    key_wrap_begin(&ring, &keys->repo, keys->generation, wrapped, keys->count);
    for (uint32_t i = 0; rc == 0 && i < keys->count; i++)
        rc = key_wrap(&ring, wrapped[i].role == FMT_ROLE_WAL ? &wal : secret, keys->items[i].key,
                      &wrapped[i], err);
    explicit_bzero(&wal, sizeof(wal));
    if (rc == 0)
        fmt_keys_encode(wrapped, keys->count, keys->generation, keys->repo.id, to);
    return rc;
}

/* Where the store does not create once, two may find no object and write at the same moment: at
 * least one of them sees it here. */
static int read_back(struct store *store, const char *name, const uint8_t *object, size_t len,
                     struct err *err)
{
    free_mem void *there = NULL;
    size_t there_len;
    int rc = store_get_all(store, name, fmt_keys_len(FMT_KEYS_MAX), &there, &there_len, err);
    if (rc < 0)
        return rc;
    return there_len == len && memcmp(there, object, len) == 0 ? 0 : STORE_EXISTS;
}

static int somebody_else(const char *name, struct err *err)
{
    (void)err_set(err, ERR_BUSY, "object '%s' is not ours: somebody else changes the keys", name);
    return err_hint(err, "look at `tidemark key status`, then do it again, on one host");
}

/* It counts as soon as one of its objects is there, so it cannot be taken back: somebody may have
 * sealed with it. */
static int half_written(uint32_t generation, bool copy_there, struct err *err)
{
    if (copy_there)
        (void)err_prefix(err,
                         "generation %08" PRIx32 " of the key ring counts from now on, but only "
                         "its copy is known to be there",
                         generation);
    else if (err->maybe_done)
        (void)err_prefix(err, "generation %08" PRIx32 " of the key ring may still arrive",
                         generation);
    else
        return -(int)err->code;
    return err_hint(err, "look at `tidemark key status` and do it again; keep the old key file and "
                         "the new one until then");
}

static int not_read_back(uint32_t generation, struct err *err)
{
    (void)err_prefix(err,
                     "generation %08" PRIx32 " of the key ring counts from now on, but could not "
                     "be read back",
                     generation);
    return err_hint(err, "keep the old key file and the new one; look at `tidemark key status`");
}

/* Each put is whole or not at all, and readers take the copy where the first is missing: whenever
 * this is killed, the newest generation that is there can be read, and the one before is whole. */
static int put_ring(struct store *store, uint32_t generation, const uint8_t *object, size_t len,
                    struct err *err)
{
    char name[2][STORE_NAME_MAX + 1];
    int rc = 0, copy = 1;
    for (; copy >= 0; copy--) {
        repo_keys_name(name[copy], generation, copy);
        rc = store_put(store, name[copy], object, len, err);
        if (rc == STORE_EXISTS)
            return somebody_else(name[copy], err);
        if (rc < 0)
            return half_written(generation, copy == 0, err);
    }
    for (copy = 1; rc == 0 && copy >= 0; copy--)
        rc = read_back(store, name[copy], object, len, err);
    if (rc == STORE_EXISTS)
        return somebody_else(name[copy + 1], err);
    return rc < 0 ? not_read_back(generation, err) : 0;
}

static int write_ring(struct store *store, struct keyring *keys, const struct key_secret *secret,
                      struct err *err)
{
    size_t len = fmt_keys_len(keys->count);
    free_mem uint8_t *object = malloc(len);
    if (!object)
        return err_set(err, ERR_INTERNAL, "out of memory");
    assert(secret->role == FMT_ROLE_DATA);
    keys->used_copy = false;
    int rc = encode(keys, secret, object, err);
    return rc < 0 ? rc : put_ring(store, keys->generation, object, len, err);
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
    struct keyring *keys;
    int rc = new_ring(repo, &keys, err);
    if (rc < 0)
        return rc;
    keys->generation = 1;
    rc = add_key(keys, FMT_ROLE_DATA, err);
    if (rc == 0)
        rc = add_key(keys, FMT_ROLE_WAL, err);
    return publish(store, keys, secret, rc, err);
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
    struct keyring *keys;
    assert(old != NULL && memcmp(old->repo.id, repo->id, ID_LEN) == 0);
    if (old->generation == FMT_GENERATION_MAX)
        return err_set(err, ERR_REFUSED, "generation %08" PRIx32 " of the key ring is the last",
                       old->generation);
    for (uint32_t i = 0; i < old->count; i++)
        if (!old->items[i].opened)
            return err_set(err, ERR_AUTH,
                           "this key file does not open key %" PRIu32 " of the repository",
                           old->items[i].id);
    int rc = new_ring(repo, &keys, err);
    if (rc < 0)
        return rc;
    *keys = *old;
    keys->generation++;
    if (new_keys)
        rc = add_key(keys, FMT_ROLE_DATA, err);
    if (rc == 0 && new_keys)
        rc = add_key(keys, FMT_ROLE_WAL, err);
    uint32_t generation = keys->generation;
    rc = publish(store, keys, secret, rc, err); /* frees the old ones */
    if (rc < 0)
        return rc;
    uint32_t left = new_keys ? 0 : remove_before(store, generation);
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
        .used_copy = keys->used_copy,
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
    return keys->repo.id;
}

void keyring_free(struct keyring *keys)
{
    secret_free(keys, sizeof(*keys));
}
