/* What fuzz targets share. A target is tests/fuzz/fuzz_<name>.c with LLVMFuzzerTestOneInput() and a
 * corpus in tests/fuzz/corpus/<name>/. `make fuzz` builds it with clang and libFuzzer, `make
 * fuzz-replay` with gcc and a main that runs files; tests/fuzz/README.md has the rest.
 *
 * Random bytes never pass a checksum, so the targets of the format try each input twice: as it is,
 * and with its checksums put right. */
#ifndef TIDEMARK_TESTS_FUZZ_H
#define TIDEMARK_TESTS_FUZZ_H

#include <stdio.h>

#include "io/crypt.h"
#include "io/format.h"
#include "io/hash.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A property that must hold for every input. */
#define FUZZ_CHECK(cond)                                                                           \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #cond);              \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* A copy of exactly size bytes, so that a byte read behind it is seen; free() it. */
static inline uint8_t *fuzz_copy(const uint8_t *data, size_t size)
{
    uint8_t *copy = calloc(1, size ? size : 1);
    FUZZ_CHECK(copy != NULL);
    if (size)
        memcpy(copy, data, size);
    return copy;
}

/* The input as a string, which ends at its first NUL; free() it. */
static inline char *fuzz_text(const uint8_t *data, size_t size)
{
    char *text = calloc(1, size + 1);
    FUZZ_CHECK(text != NULL);
    if (size)
        memcpy(text, data, size);
    return text;
}

/* Makes the start of the input the header of an object: magic, version, length, checksum. */
static inline void fuzz_seal_header(uint8_t *object, size_t size)
{
    if (size < FMT_HEADER_LEN)
        return;
    put_le64(object + 24, size - FMT_HEADER_LEN);
    hash_xxh3_128(object, 176, 0, object + 176);
}

static inline void fuzz_seal_body(uint8_t *object, size_t size)
{
    if (size < FMT_HEADER_LEN)
        return;
    sha256(object + FMT_HEADER_LEN, size - FMT_HEADER_LEN, object + 88);
    fuzz_seal_header(object, size);
}

/* The input as an object, and with its checksums put right; 0 for LLVMFuzzerTestOneInput(). */
static inline int fuzz_object(const uint8_t *data, size_t size,
                              void (*one)(const uint8_t *object, size_t size))
{
    free_mem uint8_t *copy = fuzz_copy(data, size);
    one(copy, size);
    fuzz_seal_body(copy, size);
    one(copy, size);
    return 0;
}

/* A decoder's answer: success, or a negative code with a text. */
static inline bool fuzz_good(int rc, const struct err *err)
{
    FUZZ_CHECK(rc == 0 || (rc == -(int)err->code && err->text[0] != '\0'));
    return rc == 0;
}

#endif
