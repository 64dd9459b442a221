/* Sealing and opening objects of an encrypted repository (FORMAT.md §13).
 *
 * Objects that are sealed as a whole (JSON, manifests, WAL) are sealed and opened by store_put(),
 * store_get_all() and store_get_head(), so that nobody can forget it: writers build plain objects,
 * readers decode plain ones. Of packs and table packs the parts are sealed one by one, by whoever
 * builds them, in place:
 *
 *     seal_begin(seal, keys, role, key_id, salt, name, err)      once an object
 *     seal_part(seal, offset, bytes, len)                        bytes has room for the tag
 *     seal_open_part(seal, offset, from, len, to)
 *
 * A struct seal is one thread's. */
#ifndef TIDEMARK_IO_SEAL_H
#define TIDEMARK_IO_SEAL_H

#include "io/keyring.h"

/* What sealing adds to an object at the most. */
enum { SEAL_OVERHEAD_MAX = 64 };

struct seal;
struct seal *seal_new(void);
void seal_free(struct seal *seal); /* accepts NULL */

/* The key of this object from now on. Errors of keyring_object_key(). */
int seal_begin(struct seal *seal, const struct keyring *keys, enum fmt_role role, uint32_t key_id,
               const uint8_t salt[FMT_SALT_LEN], const char *name, struct err *err);
/* Seals len bytes that lie at this offset of the object, where they are; the tag follows them.
 * Never twice for one offset of one object. */
void seal_part(struct seal *seal, uint64_t offset, uint8_t *bytes, size_t len);
/* from: len bytes and their tag. to: len bytes; may be from. False: they are not what was sealed
 * there, or not under this name. */
bool seal_open_part(struct seal *seal, uint64_t offset, const uint8_t *from, size_t len,
                    uint8_t *to);

/* For packs and table packs that a manifest reaches: key and salt are in it. ERR_CORRUPT when they
 * are not. */
int seal_begin_reached(struct seal *seal, const struct keyring *keys,
                       const struct fmt_manifest *manifest, const uint8_t snapshot[ID_LEN],
                       const char *name, struct err *err);
int seal_no_origin(const uint8_t snapshot[ID_LEN], struct err *err); /* -ERR_CORRUPT */

/* Key and salt for what is written now; the salt is random. */
struct seal_origin {
    uint32_t key_id; /* 0: the repository is plain */
    uint8_t salt[FMT_SALT_LEN];
};
int seal_origin_new(const struct keyring *keys, enum fmt_role role, struct seal_origin *ret,
                    struct err *err);

/* --- for io/store.c --- */
/* True for objects that are never sealed: they lead to the keys. */
bool seal_exempts(const char *name);
/* A plain object as it is stored: malloc'ed; NULL for packs and table packs, which must be sealed
 * already. */
int seal_object(const struct keyring *keys, const char *name, const uint8_t *plain, size_t len,
                uint8_t **ret, size_t *ret_len, struct err *err);
/* The plain object; packs and table packs stay as they are. ERR_CORRUPT names the object; so does
 * an object that is not sealed. */
int seal_open_object(const struct keyring *keys, const char *name, const uint8_t *from, size_t len,
                     uint8_t **ret, size_t *ret_len, struct err *err);
/* The first bytes of a WAL object: FMT_HEADER_LEN + FMT_WAL_FIXED_LEN plain ones of
 * SEAL_WAL_HEAD_LEN. */
enum { SEAL_WAL_HEAD_LEN = FMT_HEADER_LEN + FMT_WAL_FIXED_LEN + 32 };
int seal_open_wal_head(const struct keyring *keys, const char *name, const uint8_t *from,
                       size_t len, uint8_t *to, struct err *err);
/* So much longer is a WAL object than its plain form. */
enum { SEAL_WAL_OVERHEAD = 48 };

#endif
