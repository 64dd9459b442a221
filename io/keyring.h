/* The keys of an encrypted repository (FORMAT.md §13). Objects are sealed by master keys, of which
 * each has a number and a role: DATA, or WAL for everything below wal/. They lie in the repository,
 * wrapped by the secret of a key file, in generations: key/<generation> holds all keys so far, and
 * the newest generation counts. No generation is ever replaced, so two that rotate at once cannot
 * lose each other's keys: one of them finds the name taken.
 *
 * A key file holds one of two secrets. Root's opens everything; the one for the server's user is
 * derived from it, opens the WAL keys and says nothing about the other.
 *
 *     keyring_open(store, &repo, &secret, err)       the store seals and opens by itself from here
 *
 * Keys live in memory that core dumps leave out. A ring belongs to its store, is made before other
 * threads use that, and is only read from then on. */
#ifndef TIDEMARK_IO_KEYRING_H
#define TIDEMARK_IO_KEYRING_H

#include "io/format.h"

enum { KEY_FILE_ID_LEN = 16, KEY_FILE_TEXT_MAX = 4096 };

/* What a key file holds; secret itself: secret.h. */
struct key_secret {
    enum fmt_role role;
    uint8_t bytes[32];
};

/* A new one of role DATA. */
int key_secret_random(struct key_secret *ret, struct err *err);
/* The WAL secret of a DATA secret. */
void key_secret_wal(const struct key_secret *data, struct key_secret *ret);
/* Names a secret without telling it. */
void key_secret_id(const struct key_secret *secret, uint8_t ret_id[KEY_FILE_ID_LEN]);
/* The text of a key file, and back: ERR_AUTH says what is wrong, never what stands there. text has
 * KEY_FILE_TEXT_MAX bytes. */
void key_secret_print(const struct key_secret *secret, char *text);
int key_secret_parse(const char *text, size_t len, struct key_secret *ret, struct err *err);

struct keyring;

/* Reads the newest generation, unwraps what this secret opens, and gives the ring to the store.
 * ERR_AUTH for another key file's, ERR_CORRUPT when there is no good ring. */
int keyring_open(struct store *store, const struct repo *repo, const struct key_secret *secret,
                 struct err *err);

/* Generation 1, with one key a role; gives it to the store. ERR_REFUSED when there is one. */
int keyring_create(struct store *store, const struct repo *repo, const struct key_secret *secret,
                   struct err *err);

/* The next generation, wrapped by secret (of role DATA), with new keys or the same ones; the store
 * has it then. secret may be another one than the ring was opened with. Without new keys the
 * generations before are removed: another secret may open them. *ret_left (may be NULL): so many
 * could not be. ERR_BUSY when another was faster. */
int keyring_advance(struct store *store, const struct repo *repo, const struct key_secret *secret,
                    bool new_keys, uint32_t *ret_left, struct err *err);

/* What a ring holds, for people. */
struct keyring_info {
    uint32_t generation;
    uint32_t data_key, wal_key; /* that new objects are sealed with; 0 = not opened */
    uint32_t count;             /* of all keys in it */
    bool used_copy;             /* of its two objects the first is missing or damaged */
};
void keyring_describe(const struct keyring *keys, struct keyring_info *ret);

/* The key that new objects are sealed with; ERR_AUTH when the key file does not open any of this
 * role. */
int keyring_current(const struct keyring *keys, enum fmt_role role, uint32_t *ret_id,
                    struct err *err);
/* The key of one object. ERR_CORRUPT when the key has another role, ERR_AUTH when it is not in the
 * ring or not opened. */
int keyring_object_key(const struct keyring *keys, enum fmt_role role, uint32_t key_id,
                       const uint8_t salt[FMT_SALT_LEN], const char *name, uint8_t ret_key[32],
                       struct err *err);
/* AAD of all that is sealed. */
const uint8_t *keyring_repository(const struct keyring *keys);

void keyring_free(struct keyring *keys); /* accepts NULL */

#endif
