/* Memory for keys: pages of their own that core dumps leave out (MADV_DONTDUMP), that a forked
 * child finds empty (MADV_WIPEONFORK), that are not swapped where the limit allows (mlock), and
 * that are overwritten when they are freed. Any thread. */
#ifndef TIDEMARK_IO_SECRET_H
#define TIDEMARK_IO_SECRET_H

#include "io/err.h"

/* Zeroed. ERR_INTERNAL without memory. */
int secret_alloc(size_t len, void **ret, struct err *err);
/* Accepts NULL. */
void secret_free(void *ptr, size_t len);

#endif
