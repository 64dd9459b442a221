/* Reading files that hold secrets. Lean. */
#ifndef TIDEMARK_AGENT_SECRET_FILE_H
#define TIDEMARK_AGENT_SECRET_FILE_H

#include "io/err.h"

/* Who may read a file besides its owner. */
enum secret_reader {
    SECRET_OWNER, /* nobody: 0600 or less */
    SECRET_GROUP, /* the group of root's file: 0640; PostgreSQL's own rule for private keys */
};

/* Reads the whole file, of less than size bytes; what names its kind ("credentials"). It belongs to
 * root or to the user who reads it: the owner of somebody else's could change the secret, and with
 * it whom it protects from. ERR_AUTH, never with a value. */
int secret_file_read(const char *what, const char *path, enum secret_reader reader, char *buf,
                     size_t size, size_t *ret_len, struct err *err);

#endif
