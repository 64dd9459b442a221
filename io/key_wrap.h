/* Wrapping the master keys of a key ring by the secret of a key file (FORMAT.md §13): pure, any
 * thread. A wrapped key answers for the whole ring, so that no key can be left out, get another
 * role or be carried into another generation, and for tidemark.repo:
 *
 *     key_wrap_begin(&ring, repo, generation, keys, count)       once a ring; keys with their heads
 *     key_wrap(&ring, secret, key, &keys[i], err)                or key_unwrap() of each */
#ifndef TIDEMARK_IO_KEY_WRAP_H
#define TIDEMARK_IO_KEY_WRAP_H

#include "io/keyring.h"

struct key_wrap_ring {
    uint8_t repository[ID_LEN];
    uint32_t generation;
    uint32_t count;
    uint8_t digest[FMT_SHA256_LEN]; /* of tidemark.repo and the heads of all keys */
};

/* Of the keys only id, role and time, their heads, are looked at. */
void key_wrap_begin(struct key_wrap_ring *ring, const struct repo *repo, uint32_t generation,
                    const struct fmt_key *keys, uint32_t count);

/* to has its head; gets the rest. */
int key_wrap(const struct key_wrap_ring *ring, const struct key_secret *secret,
             const uint8_t key[32], struct fmt_key *to, struct err *err);

/* True when the key says that this secret wraps it. */
bool key_wrap_is_by(const struct fmt_key *key, const struct key_secret *secret);

/* False: it is not what was wrapped, or not in this ring, or not in this repository. */
bool key_unwrap(const struct key_wrap_ring *ring, const struct key_secret *secret,
                const struct fmt_key *key, uint8_t ret_key[32]);

#endif
