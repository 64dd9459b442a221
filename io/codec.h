/* LZ4 blocks and the zero test (the only file that includes lz4). Pure, any thread. */
#ifndef TIDEMARK_IO_CODEC_H
#define TIDEMARK_IO_CODEC_H

#include "io/base.h"

/* Compresses into to (capacity bytes); returns the compressed length, or 0 when it would not be
 * smaller than len or does not fit: store it raw then. acceleration 1..65537, default 2. */
size_t codec_compress(const void *from, size_t len, void *to, size_t capacity, int acceleration);

/* Decompresses exactly len bytes; false when the input is not such a block. Never reads or writes
 * outside the given ranges, whatever the input holds. */
bool codec_decompress(const void *from, size_t from_len, void *to, size_t len);

/* True when all len bytes are zero. */
bool codec_is_zero(const void *ptr, size_t len);

#endif
