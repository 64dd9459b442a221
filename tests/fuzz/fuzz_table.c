/* The local table cache: a file that a crash, a full disk or a person may have changed. What opens
 * must be usable: every entry's pack exists. */
#include <sys/mman.h>

#include "io/table.h"
#include "tests/fuzz/fuzz.h"

enum { HEADER_LEN = 4096 };

static void one(const uint8_t *data, size_t size)
{
    struct table table;
    struct err err;
    char path[64];
    close_fd int fd = memfd_create("table", MFD_CLOEXEC);
    FUZZ_CHECK(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (!fuzz_good(table_open(path, &table, &err), &err)) {
        FUZZ_CHECK(err.code == ERR_CORRUPT);
        return;
    }
    for (uint64_t i = 0; i < table.chunk_count; i++) {
        FUZZ_CHECK(table_chunk_len(&table, i) > 0);
        if (!(fmt_entry_flags(&table.entries[i]) & (FMT_ZERO | FMT_FREE)))
            FUZZ_CHECK(table.entries[i].pack < table.pack_count);
    }
    table_close(&table);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    free_mem uint8_t *copy = fuzz_copy(data, size);
    one(copy, size);
    if (size >= HEADER_LEN) {
        struct sha256_stream *stream = sha256_open();
        sha256_update(stream, copy, HEADER_LEN - FMT_SHA256_LEN);
        sha256_update(stream, copy + HEADER_LEN, size - HEADER_LEN);
        sha256_finish(stream, copy + HEADER_LEN - FMT_SHA256_LEN);
        one(copy, size);
    }
    return 0;
}
