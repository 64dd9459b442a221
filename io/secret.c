/* Memory for keys: see secret.h. */
#include "io/secret.h"

#include <sys/mman.h>

static size_t whole_pages(size_t len)
{
    return (size_t)align_up(len, (uint64_t)sysconf(_SC_PAGESIZE));
}

int secret_alloc(size_t len, void **ret, struct err *err)
{
    size_t size = whole_pages(len);
    void *ptr = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ptr == MAP_FAILED)
        return err_sys(err, ERR_INTERNAL, "memory for a key");
    if (madvise(ptr, size, MADV_DONTDUMP) < 0 || madvise(ptr, size, MADV_WIPEONFORK) < 0) {
        int rc = err_sys(err, ERR_INTERNAL, "memory for a key");
        (void)munmap(ptr, size);
        return rc;
    }
    (void)mlock(ptr, size); /* RLIMIT_MEMLOCK may be 0 for the server's user */
    *ret = ptr;
    return 0;
}

void secret_free(void *ptr, size_t len)
{
    if (ptr == NULL)
        return;
    explicit_bzero(ptr, len);
    (void)munmap(ptr, whole_pages(len));
}
