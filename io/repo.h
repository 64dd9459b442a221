/* The repository's own identity: tidemark.repo and its copy (FORMAT.md §2), and the names of
 * objects. Pure apart from the store calls. One thread. */
#ifndef TIDEMARK_IO_REPO_H
#define TIDEMARK_IO_REPO_H

#include "io/store.h"

enum { ID_LEN = 16, ID_TEXT_LEN = 33 }; /* 128-bit random ids, lower-case hex + NUL */

enum repo_cipher { REPO_PLAIN = 0, REPO_AES_256_GCM = 1 };

struct repo {
    uint8_t id[ID_LEN];
    uint32_t chunk_size;  /* bytes: 16, 32 or 64 KiB */
    uint32_t region_size; /* bytes: 64 MiB */
    uint64_t digest_seed; /* XXH3 seed of all chunk digests */
    int64_t created_s;    /* Unix seconds */
    enum repo_cipher cipher;
};

/* Fills buf from getrandom(2). */
int id_random(uint8_t id[ID_LEN], struct err *err);
void id_to_text(const uint8_t id[ID_LEN], char text[ID_TEXT_LEN]);
/* True when text is 32 lower-case hex digits. */
bool id_from_text(const char *text, uint8_t id[ID_LEN]);
bool id_is_zero(const uint8_t id[ID_LEN]);

/* Writes tidemark.repo and the copy. ERR_REFUSED when the store already holds a repository. */
int repo_create(struct store *store, uint32_t chunk_size, struct repo *ret, struct err *err);

/* An encrypted one, with its first key ring, wrapped by the secret of a key file; the store has the
 * keys then (keyring.h). */
struct key_secret;
int repo_create_sealed(struct store *store, uint32_t chunk_size, const struct key_secret *secret,
                       struct repo *ret, struct err *err);

/* Reads tidemark.repo, or the copy when the first is damaged or missing (then *ret_used_copy).
 * ERR_MISSING when there is neither, ERR_CORRUPT when both are damaged. The store of an encrypted
 * repository gives and takes nothing from then on, ERR_AUTH, until it has keys (keyring.h). */
int repo_open(struct store *store, struct repo *ret, bool *ret_used_copy, struct err *err);

/* Object names (FORMAT.md §1); name has STORE_NAME_MAX + 1 bytes. */
void repo_pack_name(char *name, const uint8_t volume[ID_LEN], const uint8_t snapshot[ID_LEN],
                    uint32_t number);
void repo_table_name(char *name, const uint8_t volume[ID_LEN], const uint8_t snapshot[ID_LEN],
                     uint32_t number);
void repo_manifest_name(char *name, const uint8_t volume[ID_LEN], const uint8_t snapshot[ID_LEN]);
void repo_record_name(char *name, const char *cluster, const char *node,
                      const uint8_t snapshot[ID_LEN]);
void repo_wal_name(char *name, const char *cluster, uint64_t system_id, uint32_t timeline,
                   const char *file);

/* "key/<generation>", or its copy. */
void repo_keys_name(char *name, uint32_t generation, bool copy);

/* True when text may be a component of a name: [A-Za-z0-9._-]{1,len_max}, not "." or "..". */
bool repo_name_valid(const char *text, size_t len_max);

/* True for a usable tag: [A-Za-z0-9._-]{1,30}, not "latest", not 32 hex digits. */
bool repo_tag_valid(const char *tag);

#endif
